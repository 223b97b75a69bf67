//! Routes, and who stands at their first step.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteType};

use super::super::facts::{Mac, Neighbour, Way};
use crate::net::{Kernel, neighbours};

/// The kernel asks three times, a second apart (arp(7)).
const PATIENCE: Duration = Duration::from_millis(3500);
const PAUSE: Duration = Duration::from_millis(50);

type Ways = BTreeMap<IpAddr, Way>;
type Neighbours = BTreeMap<(u32, IpAddr), Neighbour>;

/// How this machine sends to these addresses. The kernel is made to ask for next hops that it does not know, which takes
/// some seconds where nobody answers.
pub(super) fn read(addresses: &[IpAddr]) -> (Ways, Neighbours) {
    let (mut ways, mut known) = (Ways::new(), Neighbours::new());
    let Ok(kernel) = Kernel::open() else { return (ways, known) };
    for address in addresses {
        let way = match kernel.route(*address) {
            Ok(Some(route)) => way(&route, *address),
            Ok(None) => Way::None("the kernel knows none".to_owned()),
            Err(error) => Way::None(error.to_string()),
        };
        // What cannot be asked for has no entry, which is no finding.
        let _ = kernel.resolve(*address);
        ways.insert(*address, way);
    }
    let hops: Vec<(u32, IpAddr)> = ways.values().filter_map(hop).collect();
    let end = Instant::now() + PATIENCE;
    loop {
        let mut asking = Vec::new();
        for (device, address) in &hops {
            match kernel.neighbour(*device, *address).map(|entry| entry.as_ref().map(judge)) {
                Ok(Some(Heard::Asking)) => asking.push((*device, *address)),
                Ok(Some(Heard::Is(neighbour))) => {
                    known.insert((*device, *address), neighbour);
                }
                _ => {}
            }
        }
        if asking.is_empty() {
            break;
        }
        if Instant::now() >= end {
            // They are as good as silent.
            known.extend(asking.into_iter().map(|hop| (hop, Neighbour::Silent)));
            break;
        }
        std::thread::sleep(PAUSE);
    }
    (ways, known)
}

fn hop(way: &Way) -> Option<(u32, IpAddr)> {
    match way {
        Way::Out { device, next_hop, .. } => Some((*device, *next_hop)),
        Way::Local | Way::None(_) => None,
    }
}

fn way(route: &RouteMessage, address: IpAddr) -> Way {
    if route.header.kind == RouteType::Local {
        return Way::Local;
    }
    match neighbours::next_hop(route, address) {
        Some((device, next_hop)) => Way::Out { device, next_hop, mtu: mtu(route) },
        None => Way::None(format!("the route is of type {:?}", route.header.kind).to_lowercase()),
    }
}

fn mtu(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) => Some(*mtu),
            _ => None,
        }),
        _ => None,
    })
}

enum Heard {
    /// The kernel is asking.
    Asking,
    Is(Neighbour),
}

fn judge(entry: &NeighbourMessage) -> Heard {
    let mac = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    match (entry.header.state, mac) {
        (NeighbourState::Incomplete | NeighbourState::None, _) => Heard::Asking,
        (NeighbourState::Failed, _) => Heard::Is(Neighbour::Silent),
        (_, mac) => Heard::Is(Neighbour::Known(mac.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteAddress;

    use super::*;

    #[test]
    fn ways_are_read() {
        let address: IpAddr = [198, 51, 100, 9].into();
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Local;
        assert_eq!(way(&route, address), Way::Local);
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![
            RouteAttribute::Oif(3),
            RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, 1].into())),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]),
        ];
        let out = Way::Out { device: 3, next_hop: [192, 0, 2, 1].into(), mtu: Some(1400) };
        assert_eq!(way(&route, address), out);
        route.header.kind = RouteType::BlackHole;
        assert_eq!(way(&route, address), Way::None("the route is of type blackhole".to_owned()));
    }

    #[test]
    fn neighbours_are_read() {
        let mut entry = NeighbourMessage::default();
        entry.header.state = NeighbourState::Incomplete;
        assert!(matches!(judge(&entry), Heard::Asking));
        entry.header.state = NeighbourState::Failed;
        assert!(matches!(judge(&entry), Heard::Is(Neighbour::Silent)));
        entry.header.state = NeighbourState::Stale;
        entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 7])];
        assert!(matches!(judge(&entry), Heard::Is(Neighbour::Known([2, 0, 0, 0, 0, 7]))));
    }
}
