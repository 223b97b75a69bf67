//! Interfaces that packets may leave by: what stands in `PORTS` and `VLANS`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{Be16, Port, Tag, VlanKey};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, VlanProtocol};

/// A VLAN interface (ip-link(8), `type vlan`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vlan {
    /// Index of the interface that it stands on.
    parent: u32,
    /// EtherType of its tag.
    ether_type: u16,
    /// VLAN number, 1 to 4094.
    number: u16,
}

/// What is known of the machine's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    vlans: BTreeMap<u32, Vlan>,
    /// Global addresses of each interface with the lengths of their prefixes, in the order in which the kernel told of
    /// them.
    addresses: BTreeMap<u32, Vec<(IpAddr, u8)>>,
}

impl Interfaces {
    /// Takes in an event, or an answer to a request for all. Says whether anything changed.
    pub fn learn(&mut self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewLink(link) => match vlan(link) {
                Some(vlan) => self.vlans.insert(link.header.index, vlan) != Some(vlan),
                None => self.vlans.remove(&link.header.index).is_some(),
            },
            RouteNetlinkMessage::DelLink(link) => {
                let addresses = self.addresses.remove(&link.header.index).is_some();
                self.vlans.remove(&link.header.index).is_some() || addresses
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let Some(address) = global(message) else { return false };
                let known = self.addresses.entry(message.header.index).or_default();
                let entry = (address, message.header.prefix_len);
                if let Some(same) = known.iter_mut().find(|(other, _)| *other == address) {
                    return std::mem::replace(same, entry) != entry;
                }
                known.push(entry);
                true
            }
            RouteNetlinkMessage::DelAddress(message) => {
                let Some(address) = global(message) else { return false };
                let Some(known) = self.addresses.get_mut(&message.header.index) else { return false };
                let before = known.len();
                known.retain(|(other, _)| *other != address);
                known.len() != before
            }
            _ => false,
        }
    }

    /// What the packet path must know when the program runs on the interfaces with indexes `carriers`.
    pub fn table(&self, carriers: &[u32]) -> Table {
        let mut table = Table::default();
        for &index in carriers {
            table.ports.push(self.port(index, index, &[]));
        }
        for &index in self.vlans.keys() {
            if carriers.contains(&index) {
                continue;
            }
            let Some((device, tags)) = self.stack(index) else { continue };
            if !carriers.contains(&device) {
                continue;
            }
            table.ports.push(self.port(index, device, &tags));
            let number = |place: usize| tags.get(place).map_or(Be16::default(), |tag| tag.control);
            table.vlans.insert(VlanKey { device, outer: number(0), inner: number(1) }, index);
        }
        table
    }

    /// The interface at the bottom of a VLAN interface, and the tags from the outside in. `None` with more than two.
    fn stack(&self, index: u32) -> Option<(u32, Vec<Tag>)> {
        let mut tags = Vec::new();
        let mut at = index;
        while let Some(vlan) = self.vlans.get(&at) {
            if tags.len() == 2 {
                return None;
            }
            // The lower interface adds its tag outside.
            tags.insert(0, Tag { ether_type: Be16::new(vlan.ether_type), control: Be16::new(vlan.number) });
            at = vlan.parent;
        }
        Some((at, tags))
    }

    /// What an interface's answers come from: its address in the largest subnet, so that of its addresses for services,
    /// which are hosts' prefixes mostly, none is taken. (Those of IPv6 come first where the kernel lists them, as they
    /// were added last.)
    fn own(&self, ifindex: u32) -> (Option<[u8; 4]>, Option<[u8; 16]>) {
        let mut addresses = self.addresses.get(&ifindex).cloned().unwrap_or_default();
        // Stable: among equals the first is taken.
        addresses.sort_by_key(|(_, prefix)| *prefix);
        let v4 = addresses.iter().find_map(|(address, _)| match address {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().find_map(|(address, _)| match address {
            IpAddr::V6(v6) => Some(v6.octets()),
            IpAddr::V4(_) => None,
        });
        (v4, v6)
    }

    fn port(&self, ifindex: u32, device: u32, tags: &[Tag]) -> Port {
        let (v4, v6) = self.own(ifindex);
        let tag = |place: usize| tags.get(place).copied().unwrap_or_default();
        Port {
            ifindex,
            device,
            tags: [tag(0), tag(1)],
            // At most two.
            tag_count: u32::try_from(tags.len()).unwrap_or_default(),
            addr4: v4.unwrap_or(Ipv4Addr::UNSPECIFIED.octets()),
            addr6: v6.unwrap_or(Ipv6Addr::UNSPECIFIED.octets()),
        }
    }
}

/// Content of `PORTS` and `VLANS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Those that carry the program first: of two that share a place in the map, the first is used.
    pub ports: Vec<Port>,
    pub vlans: BTreeMap<VlanKey, u32>,
}

fn vlan(link: &LinkMessage) -> Option<Vlan> {
    let mut parent = None;
    let mut number = None;
    // Kernels before 3.10 do not say which; they know no other.
    let mut ether_type = 0x8100;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                let data = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
                    _ => None,
                });
                for info in data.into_iter().flatten() {
                    match info {
                        InfoVlan::Id(id) => number = Some(*id),
                        InfoVlan::Protocol(VlanProtocol::Ieee8021Ad) => ether_type = 0x88a8,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Vlan { parent: parent?, ether_type, number: number? })
}

/// The interface's own address, when it is one that others know it by.
fn global(message: &AddressMessage) -> Option<IpAddr> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    // IPv6 has only the one; IPv4's, on a point-to-point link, is the other end's.
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, parent: u32, number: u16, protocol: VlanProtocol) -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![
            LinkAttribute::Link(parent),
            LinkAttribute::LinkInfo(vec![LinkInfo::Data(InfoData::Vlan(vec![
                InfoVlan::Id(number),
                InfoVlan::Protocol(protocol),
            ]))]),
        ];
        RouteNetlinkMessage::NewLink(link)
    }

    fn address(index: u32, address: &str, scope: AddressScope) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.scope = scope;
        message.attributes = vec![AddressAttribute::Local(address.parse().expect("an address"))];
        message
    }

    const fn tag(ether_type: u16, number: u16) -> Tag {
        Tag { ether_type: Be16::new(ether_type), control: Be16::new(number) }
    }

    #[test]
    fn an_interface_that_carries_the_program_is_its_own_device_with_its_first_addresses() {
        let mut interfaces = Interfaces::default();
        for (text, scope) in [
            ("fe80::1", AddressScope::Link),
            ("10.0.0.1", AddressScope::Universe),
            ("2001:db8::1", AddressScope::Universe),
            ("10.0.0.2", AddressScope::Universe),
        ] {
            interfaces.learn(&RouteNetlinkMessage::NewAddress(address(3, text, scope)));
        }
        let table = interfaces.table(&[3]);
        let port = table.ports[0];
        assert_eq!((port.ifindex, port.device, port.tag_count, port.addr4), (3, 3, 0, [10, 0, 0, 1]));
        assert_eq!(port.addr6, "2001:db8::1".parse::<Ipv6Addr>().expect("an address").octets());

        let gone = address(3, "10.0.0.1", AddressScope::Universe);
        assert!(interfaces.learn(&RouteNetlinkMessage::DelAddress(gone)));
        assert_eq!(interfaces.table(&[3]).ports[0].addr4, [10, 0, 0, 2]);
    }

    #[test]
    fn answers_come_from_the_subnets_address_and_not_from_a_services() {
        let mut interfaces = Interfaces::default();
        for (text, prefix) in [("2001:db8:cb::10", 128), ("2001:db8:c1::1", 64), ("2001:db8:c1::2", 64)] {
            let mut message = address(3, text, AddressScope::Universe);
            message.header.prefix_len = prefix;
            assert!(interfaces.learn(&RouteNetlinkMessage::NewAddress(message.clone())));
            assert!(!interfaces.learn(&RouteNetlinkMessage::NewAddress(message)), "nothing new");
        }
        let own = "2001:db8:c1::1".parse::<Ipv6Addr>().expect("an address").octets();
        assert_eq!(interfaces.table(&[3]).ports[0].addr6, own);
    }

    #[test]
    fn vlans_have_their_tags_from_the_outside_in() {
        let mut interfaces = Interfaces::default();
        assert!(interfaces.learn(&link(10, 3, 100, VlanProtocol::Ieee8021Ad)));
        assert!(interfaces.learn(&link(11, 10, 200, VlanProtocol::Ieee8021Q)));
        assert!(!interfaces.learn(&link(11, 10, 200, VlanProtocol::Ieee8021Q)), "nothing new");
        interfaces.learn(&link(12, 11, 300, VlanProtocol::Ieee8021Q));
        interfaces.learn(&link(13, 4, 5, VlanProtocol::Ieee8021Q));
        let table = interfaces.table(&[3]);
        let indexes: Vec<u32> = table.ports.iter().map(|port| port.ifindex).collect();
        assert_eq!(indexes, [3, 10, 11], "neither three tags nor a device without the program");
        assert_eq!((table.ports[1].device, table.ports[1].tag_count), (3, 1));
        assert_eq!(table.ports[1].tags, [tag(0x88a8, 100), Tag::default()]);
        assert_eq!((table.ports[2].device, table.ports[2].tag_count), (3, 2));
        assert_eq!(table.ports[2].tags, [tag(0x88a8, 100), tag(0x8100, 200)]);
        let key = |outer, inner| VlanKey { device: 3, outer: Be16::new(outer), inner: Be16::new(inner) };
        assert_eq!(table.vlans, BTreeMap::from([(key(100, 0), 10), (key(100, 200), 11)]));

        let mut gone = LinkMessage::default();
        gone.header.index = 10;
        assert!(interfaces.learn(&RouteNetlinkMessage::DelLink(gone)));
        assert_eq!(interfaces.table(&[3]).ports.len(), 1);
    }

    #[test]
    fn vlans_that_stand_on_each_other_in_a_circle_are_left_out() {
        let mut interfaces = Interfaces::default();
        interfaces.learn(&link(1, 2, 1, VlanProtocol::Ieee8021Q));
        interfaces.learn(&link(2, 1, 2, VlanProtocol::Ieee8021Q));
        assert_eq!(interfaces.table(&[3]).ports.len(), 1);
    }
}
