//! Whether next hops may be remembered, and which events end what is remembered.

use std::collections::HashMap;
use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

/// The rules that every machine has: their priorities and tables (ip-rule(8)).
const DEFAULT_RULES: [(u32, u32); 3] = [(0, 255), (32766, 254), (32767, 253)];

/// What an event means for the next hops that are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// They stand.
    Nothing,
    /// They are looked up anew.
    Forget,
    /// Whether they may be remembered at all must be found out anew; until then they are not.
    Reread,
}

/// What is remembered of events, to tell those that matter.
#[derive(Debug, Default)]
pub struct Events {
    /// The MAC address of each neighbour that can be sent to.
    neighbours: HashMap<(u32, IpAddr), Vec<u8>>,
}

impl Events {
    /// What an event means while next hops are remembered (`caching`) or are not.
    pub fn effect(&mut self, message: &RouteNetlinkMessage, caching: bool) -> Effect {
        match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.neighbour(neighbour, is_valid(neighbour)),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.neighbour(neighbour, false),
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Effect::Reread,
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                // A full table is not read for each of its routes: while all are plain, one more plain route changes
                // nothing about that.
                if caching && route_obstacle(route).is_none() { Effect::Forget } else { Effect::Reread }
            }
            _ => Effect::Forget,
        }
    }

    /// After events were lost.
    pub fn forget(&mut self) {
        self.neighbours.clear();
    }

    /// Neighbours go from reachable to stale and back all the time; only another MAC address, or none, matters.
    fn neighbour(&mut self, message: &NeighbourMessage, valid: bool) -> Effect {
        if !matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6) {
            // Forwarding entries of bridges and VXLANs come the same way.
            return Effect::Nothing;
        }
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        });
        let Some(address) = address else { return Effect::Forget };
        let key = (message.header.ifindex, address);
        let mac = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
            _ => None,
        });
        // Interfaces without MAC addresses, such as tunnels, have neighbours without one.
        let now = valid.then(|| mac.unwrap_or_default());
        let before = match now.clone() {
            Some(mac) => self.neighbours.insert(key, mac),
            None => self.neighbours.remove(&key),
        };
        if before == now { Effect::Nothing } else { Effect::Forget }
    }
}

/// As the kernel's `NUD_VALID`: in these states it sends without asking first. Several bits at once do not happen.
fn is_valid(neighbour: &NeighbourMessage) -> bool {
    matches!(
        neighbour.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    )
}

/// Why the way of a packet depends on more than its destination, or `None` when it does not.
pub fn obstacle<'a>(
    rules: impl IntoIterator<Item = &'a RuleMessage>,
    routes: impl IntoIterator<Item = &'a RouteMessage>,
) -> Option<String> {
    rules.into_iter().find_map(rule_obstacle).or_else(|| routes.into_iter().find_map(route_obstacle))
}

fn is_ip(family: AddressFamily) -> bool {
    matches!(family, AddressFamily::Inet | AddressFamily::Inet6)
}

fn rule_obstacle(rule: &RuleMessage) -> Option<String> {
    if !is_ip(rule.header.family) {
        return None;
    }
    let mut priority = 0;
    let mut table = u32::from(rule.header.table);
    let mut plain = rule.header.src_len == 0
        && rule.header.dst_len == 0
        && rule.header.tos == 0
        && rule.header.action == RuleAction::ToTable;
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Protocol(_) => {}
            // What the kernel says when nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::L3MDev(false) => {}
            RuleAttribute::Other(_) => {}
            _ => plain = false,
        }
    }
    if plain && DEFAULT_RULES.contains(&(priority, table)) {
        return None;
    }
    Some(format!("the {} rule with priority {priority}", family_name(rule.header.family)))
}

fn route_obstacle(route: &RouteMessage) -> Option<String> {
    let header = &route.header;
    if !is_ip(header.address_family) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let what = if header.tos != 0 {
        "has a tos"
    } else if header.source_prefix_length != 0 {
        "is for some sources only"
    } else if route.attributes.iter().any(|a| matches!(a, RouteAttribute::MultiPath(_))) {
        "has several next hops"
    } else if uses_unknown_nexthop(route) {
        "uses a nexthop object that may be a group"
    } else {
        return None;
    };
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => Some(address_text(address)),
        _ => None,
    });
    let destination = destination
        .map_or_else(|| "default".to_owned(), |to| format!("{to}/{}", header.destination_prefix_length));
    Some(format!("the {} route {destination}, which {what}", family_name(header.address_family)))
}

/// With `net.ipv4.nexthop_compat_mode=0`, the kernel names nothing but the object.
fn uses_unknown_nexthop(route: &RouteMessage) -> bool {
    let has = |wanted: fn(&RouteAttribute) -> bool| route.attributes.iter().any(wanted);
    has(|a| matches!(a, RouteAttribute::NhId(_))) && !has(|a| matches!(a, RouteAttribute::Oif(_)))
}

fn address_text(address: &netlink_packet_route::route::RouteAddress) -> String {
    use netlink_packet_route::route::RouteAddress;
    match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        other => format!("{other:?}"),
    }
}

const fn family_name(family: AddressFamily) -> &'static str {
    if matches!(family, AddressFamily::Inet6) { "IPv6" } else { "IPv4" }
}

/// The route epoch after `last`: never 0, which would stand for no caching.
pub const fn next_epoch(last: u32) -> u32 {
    match last.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::route::{RouteAddress, RouteNextHop};

    use super::*;

    fn rule(priority: u32, table: u8, extra: Option<RuleAttribute>) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet;
        rule.header.table = table;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Priority(priority),
            RuleAttribute::SuppressPrefixLen(u32::MAX),
            RuleAttribute::Table(u32::from(table)),
        ];
        rule.attributes.extend(extra);
        rule
    }

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.destination_prefix_length = 8;
        route.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 0)))];
        route.attributes.extend(attributes);
        route
    }

    #[test]
    fn the_rules_of_every_machine_and_plain_routes_allow_caching() {
        let rules = [rule(0, 255, None), rule(32766, 254, None), rule(32767, 253, None)];
        let routes = [
            route(vec![RouteAttribute::Oif(1)]),
            route(vec![RouteAttribute::NhId(3), RouteAttribute::Oif(1)]),
        ];
        assert_eq!(obstacle(&rules, &routes), None);
    }

    #[test]
    fn any_other_rule_forbids_it() {
        for strange in [
            rule(100, 254, None),
            rule(32766, 100, None),
            rule(32766, 254, Some(RuleAttribute::FwMark(1))),
            rule(32766, 254, Some(RuleAttribute::L3MDev(true))),
            rule(32766, 254, Some(RuleAttribute::SuppressPrefixLen(0))),
        ] {
            assert!(obstacle([&strange], []).is_some(), "{strange:?}");
        }
        let mut from = rule(32766, 254, None);
        from.header.src_len = 24;
        assert_eq!(obstacle([&from], []).as_deref(), Some("the IPv4 rule with priority 32766"));
    }

    #[test]
    fn routes_that_depend_on_more_than_the_destination_forbid_it() {
        let multipath = route(vec![RouteAttribute::MultiPath(vec![RouteNextHop::default(); 2])]);
        assert_eq!(
            obstacle([], [&multipath]).as_deref(),
            Some("the IPv4 route 10.0.0.0/8, which has several next hops")
        );
        let mut tos = route(vec![]);
        tos.header.tos = 8;
        let mut source = route(vec![]);
        source.header.source_prefix_length = 64;
        for strange in [tos, source, route(vec![RouteAttribute::NhId(1)])] {
            assert!(obstacle([], [&strange]).is_some(), "{strange:?}");
        }
    }

    fn neighbour(state: NeighbourState, mac: u8) -> RouteNetlinkMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 2;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(10, 0, 0, 9))),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, mac]),
        ];
        RouteNetlinkMessage::NewNeighbour(message)
    }

    #[test]
    fn neighbours_matter_when_they_come_change_or_go() {
        let mut events = Events::default();
        let mut effect = |state, mac| events.effect(&neighbour(state, mac), true);
        assert_eq!(effect(NeighbourState::Incomplete, 0), Effect::Nothing);
        assert_eq!(effect(NeighbourState::Reachable, 1), Effect::Forget);
        assert_eq!(effect(NeighbourState::Stale, 1), Effect::Nothing);
        assert_eq!(effect(NeighbourState::Probe, 1), Effect::Nothing);
        assert_eq!(effect(NeighbourState::Reachable, 2), Effect::Forget);
        assert_eq!(effect(NeighbourState::Failed, 2), Effect::Forget);
        assert_eq!(effect(NeighbourState::Failed, 2), Effect::Nothing);
        assert_eq!(effect(NeighbourState::Reachable, 2), Effect::Forget);
    }

    #[test]
    fn tables_are_read_again_only_where_that_can_change_the_answer() {
        let mut events = Events::default();
        let plain = RouteNetlinkMessage::NewRoute(route(vec![RouteAttribute::Oif(1)]));
        let group = RouteNetlinkMessage::DelRoute(route(vec![RouteAttribute::NhId(1)]));
        assert_eq!(events.effect(&plain, true), Effect::Forget);
        assert_eq!(events.effect(&plain, false), Effect::Reread);
        assert_eq!(events.effect(&group, true), Effect::Reread);
        assert_eq!(events.effect(&RouteNetlinkMessage::DelRule(rule(5, 5, None)), true), Effect::Reread);
    }

    #[test]
    fn the_epoch_skips_zero() {
        assert_eq!((next_epoch(0), next_epoch(7), next_epoch(u32::MAX)), (1, 8, 1));
    }
}
