//! Neighbours that the packet path cannot do without: the next hops to backends that get packets as they are, or in a
//! tunnel. The kernel asks for the MAC address of a neighbour when it sends to it, but it never sends there itself.
//!
//! So it is made to ask, as by `ip neigh replace ADDRESS dev DEVICE use` (ip-neighbour(8)): when the neighbour is not
//! known, and when it was not heard of for a while. Entries that somebody has set by hand are left alone.

use std::io;
use std::net::IpAddr;

use log::{debug, warn};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};

use super::ask::{Kernel, family};

/// How many are looked at in one go: each costs the kernel some microseconds.
const AT_ONCE: usize = 256;

/// The addresses to send to, and where among them the next look begins.
#[derive(Debug, Default)]
pub struct Neighbours {
    addresses: Vec<IpAddr>,
    next: usize,
}

impl Neighbours {
    /// Replaces the addresses. Those that are new are looked at now.
    pub fn replace(&mut self, mut addresses: Vec<IpAddr>) {
        addresses.sort_unstable();
        addresses.dedup();
        if self.addresses == addresses {
            return;
        }
        let known = std::mem::replace(&mut self.addresses, addresses);
        self.next = 0;
        let new = self.addresses.iter().filter(|address| known.binary_search(address).is_err());
        look(new.copied());
    }

    /// Looks at all, or at the next ones of many. To be called about once a second.
    pub fn refresh(&mut self) {
        if self.addresses.is_empty() {
            return;
        }
        look(self.turn().into_iter());
    }

    fn turn(&mut self) -> Vec<IpAddr> {
        let count = self.addresses.len().min(AT_ONCE);
        let turn = self.addresses.iter().copied().cycle().skip(self.next).take(count).collect();
        self.next = (self.next + count).checked_rem(self.addresses.len()).unwrap_or_default();
        turn
    }
}

fn look(addresses: impl Iterator<Item = IpAddr>) {
    let mut addresses = addresses.peekable();
    if addresses.peek().is_none() {
        return;
    }
    let kernel = match Kernel::open() {
        Ok(kernel) => kernel,
        Err(error) => return warn!("cannot ask for neighbours: {error}"),
    };
    for address in addresses {
        if let Err(error) = kernel.resolve(address) {
            // Without a route the packet path counts what it cannot send.
            debug!("cannot ask for the neighbour on the way to {address}: {error}");
        }
    }
}

impl Kernel {
    /// Has the kernel find out the MAC address on the way to `address`, unless it knows it well.
    pub(crate) fn resolve(&self, address: IpAddr) -> io::Result<()> {
        let Some(route) = self.route(address)? else { return Ok(()) };
        let Some((device, next_hop)) = next_hop(&route, address) else { return Ok(()) };
        if self.neighbour(device, next_hop)?.is_some_and(|entry| is_settled(entry.header.state)) {
            return Ok(());
        }
        let mut request = neighbour(device, next_hop);
        request.header.flags = NeighbourFlags::Use;
        let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
        self.ask(RouteNetlinkMessage::NewNeighbour(request), flags).map(drop)
    }

    /// What is known of a neighbour; nothing where nobody has asked for it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn neighbour(&self, device: u32, address: IpAddr) -> io::Result<Option<NeighbourMessage>> {
        match self.ask(RouteNetlinkMessage::GetNeighbour(neighbour(device, address)), 0) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(entry))) => Ok(Some(entry)),
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(None),
        }
    }
}

/// By which interface and whom a route leads to `address`; nothing where there is nobody to ask for.
pub(crate) fn next_hop(route: &RouteMessage, address: IpAddr) -> Option<(u32, IpAddr)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut device = None;
    let mut next_hop = address;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(via)) | RouteAttribute::Via(RouteVia::Inet(via)) => {
                next_hop = IpAddr::V4(*via);
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(via)) | RouteAttribute::Via(RouteVia::Inet6(via)) => {
                next_hop = IpAddr::V6(*via);
            }
            _ => {}
        }
    }
    Some((device?, next_hop))
}

/// Whether nothing is to be asked: somebody has set it, or it was heard of in the last half minute, or it is being asked.
fn is_settled(state: NeighbourState) -> bool {
    matches!(
        state,
        NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Incomplete
    )
}

fn neighbour(device: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = device;
    message.attributes = vec![NeighbourAttribute::Destination(match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    })];
    message
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn many_are_looked_at_in_turns() {
        let all: Vec<IpAddr> = (0..600_u32).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n).into()).collect();
        let mut neighbours = Neighbours { addresses: all.clone(), next: 0 };
        let turns = [neighbours.turn(), neighbours.turn(), neighbours.turn()].concat();
        assert_eq!(turns[..600], all);
        assert_eq!(turns[600..], all[..168]);
        let mut few = Neighbours { addresses: all[..2].to_vec(), next: 0 };
        assert_eq!(few.turn(), all[..2]);
        assert_eq!(few.turn(), all[..2]);
    }

    #[test]
    fn the_next_hop_is_the_router_if_there_is_one() {
        let address = IpAddr::from([198, 51, 100, 9]);
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        assert_eq!(next_hop(&route, address), None);
        route.attributes = vec![RouteAttribute::Oif(7)];
        assert_eq!(next_hop(&route, address), Some((7, address)));
        let router = Ipv4Addr::new(192, 0, 2, 1);
        route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(router)));
        assert_eq!(next_hop(&route, address), Some((7, router.into())));
        route.header.kind = RouteType::Local;
        assert_eq!(next_hop(&route, address), None);
    }
}
