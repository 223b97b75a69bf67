//! Interfaces, their addresses, drivers and programs (rtnetlink(7)).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};

use super::super::facts::{Interface, Mac, Xdp};
use super::ethtool::Ethtool;
use crate::net::dump;

/// All interfaces of this network namespace, by name.
///
/// # Errors
/// When the kernel does not tell.
pub(super) async fn read() -> io::Result<BTreeMap<String, Interface>> {
    let messages = dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
    let mut interfaces: BTreeMap<String, Interface> = messages
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => interface(link),
            _ => None,
        })
        .collect();
    for message in dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await? {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        let owner = interfaces.values_mut().find(|interface| interface.index == message.header.index);
        if let (Some(owner), Some(address)) = (owner, address(&message)) {
            owner.addresses.push(address);
        }
    }
    let programs = programs();
    let ethtool = Ethtool::open();
    for (name, interface) in &mut interfaces {
        if let Some(xdp) = &mut interface.xdp {
            xdp.name = programs.get(&xdp.id).cloned().unwrap_or_default();
        }
        if let Ok(ethtool) = &ethtool {
            interface.driver = ethtool.driver(name).unwrap_or_default();
            interface.lro = ethtool.joins_received(name).unwrap_or_default();
            interface.tx_checksum = ethtool.leaves_checksums(name).unwrap_or_default();
        }
    }
    Ok(interfaces)
}

fn interface(link: &LinkMessage) -> Option<(String, Interface)> {
    let mut name = None;
    let mut interface = Interface {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        running: link.header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        ..Interface::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                interface.mac = Mac::try_from(bytes.as_slice()).unwrap_or_default();
            }
            LinkAttribute::Link(index) => interface.lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => interface.elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
                interface.kind = kind.map(kind_name).unwrap_or_default();
            }
            LinkAttribute::Xdp(xdp) => interface.xdp = program(xdp),
            _ => {}
        }
    }
    Some((name?, interface))
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

fn program(attributes: &[LinkXdp]) -> Option<Xdp> {
    let mut xdp = Xdp::default();
    let mut there = false;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => return None,
            LinkXdp::Attached(how) => {
                there = true;
                xdp.generic = *how == XdpAttached::SocketBuffer;
            }
            LinkXdp::ProgId(id) => xdp.id = *id,
            _ => {}
        }
    }
    there.then_some(xdp)
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// Names of loaded programs; none without the right to know.
fn programs() -> HashMap<u32, String> {
    let known = aya::programs::loaded_programs().filter_map(Result::ok);
    known.filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned()))).collect()
}
