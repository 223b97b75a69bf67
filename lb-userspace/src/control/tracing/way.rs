//! What is told of one packet: the numbers of its way in the names that people use.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lb_common::abi::Mode;
use lb_common::abi::flow::FlowState;
use lb_common::abi::net::unmapped;
use lb_common::abi::trace::{MAX_STEPS, TraceEvent};
use lb_common::env::{Reach, Step};
use lb_common::packet::eth::EtherType;
use lb_common::packet::tcp::TcpFlags;
use lb_common::verdict::{Action, Reason};

use crate::api::explain::protocol_name;
use crate::api::trace::{Filter, TraceLine};
use crate::config::Forward;
use crate::control::explain::interface_name;
use crate::dataplane::image::{Id, Image, address_from};

/// TCP's PSH, which nothing here goes by.
const PSH: TcpFlags = TcpFlags(0x08);

/// What numbers in the maps are called.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// The service of each listener.
    listeners: BTreeMap<Id, String>,
    /// Service and name of each backend.
    backends: BTreeMap<Id, (String, String)>,
}

impl Names {
    pub(super) fn of(image: &Image) -> Self {
        let service = |id| image.listeners.get(&id).map_or_else(String::new, |entry| entry.service.clone());
        Self {
            listeners: image.listeners.keys().map(|id| (*id, service(*id))).collect(),
            backends: image
                .backends
                .iter()
                .map(|(id, entry)| (*id, (service(entry.server.listener), entry.name.clone())))
                .collect(),
        }
    }

    fn backend(&self, id: Id) -> String {
        self.backends.get(&id).map_or_else(|| format!("backend number {id}"), |(_, name)| name.clone())
    }
}

/// The packet's way, as far as filters go by it.
pub(super) struct Way {
    steps: Vec<(Step, u32, u32)>,
    service: Option<String>,
    backend: Option<String>,
    end: Option<(Action, Reason)>,
}

impl Way {
    pub(super) fn of(event: &TraceEvent, names: &Names) -> Self {
        let mut way = Self { steps: Vec::new(), service: None, backend: None, end: None };
        for [step, first, second] in event.steps.iter().take(event.count.min(MAX_STEPS) as usize) {
            let Some(step) = Step::from_number(*step) else { continue };
            let backend = match step {
                Step::Listener => {
                    way.service = names.listeners.get(first).cloned();
                    None
                }
                Step::FromBackend | Step::Flow | Step::Stuck | Step::Reverse | Step::Fragment => Some(first),
                Step::Picked | Step::Moved | Step::Mode => Some(second),
                Step::Full => Some(second).filter(|id| **id != 0),
                Step::Done => {
                    let reason = Reason::ALL.get(*first as usize);
                    way.end = Action::from_number(*second).zip(reason.copied());
                    continue;
                }
                Step::NoFlow | Step::Routed | Step::Snat | Step::IcmpError | Step::Tags => None,
            };
            if let Some((service, name)) = backend.and_then(|id| names.backends.get(id)) {
                way.service = Some(service.clone());
                way.backend = Some(name.clone());
            }
            way.steps.push((step, *first, *second));
        }
        way
    }
}

/// Everything of a filter: several share the part of it that the program goes by.
pub(super) fn wants(filter: &Filter, event: &TraceEvent, way: &Way) -> bool {
    let early = filter.early();
    let (source, destination): ([u64; 2], [u64; 2]) =
        (bytemuck::must_cast(event.source), bytemuck::must_cast(event.destination));
    let is_in = |address: [u64; 2], network: [u64; 2], mask: [u64; 2]| {
        address[0] & mask[0] == network[0] && address[1] & mask[1] == network[1]
    };
    (early.protocol == 0 || early.protocol == u32::from(event.protocol))
        && (early.port.raw() == 0 || [event.source_port, event.destination_port].contains(&early.port))
        && is_in(source, early.source, early.source_mask)
        && is_in(destination, early.destination, early.destination_mask)
        && (is_in(source, early.host, early.host_mask) || is_in(destination, early.host, early.host_mask))
        && filter
            .service
            .as_ref()
            .is_none_or(|service| way.service.as_ref() == Some(service) && is_service(filter, way))
        && filter.reason.is_none_or(|reason| way.end.is_some_and(|(_, end)| end == reason))
        && (!filter.dropped || way.end.is_some_and(|(action, _)| action == Action::Drop))
}

/// A server's answer to a check is not its service's.
fn is_service(filter: &Filter, way: &Way) -> bool {
    let to_gateway = Some(Reason::ReplyToGateway);
    way.end.map(|(_, reason)| reason) != to_gateway || filter.reason == to_gateway
}

pub(super) fn line_of(event: &TraceEvent, way: &Way, names: &Names, interface: String) -> TraceLine {
    let is_ip = matches!(EtherType(event.ether_type), EtherType::IPV4 | EtherType::IPV6);
    let address = |bytes: [u8; 16]| {
        let v4 = EtherType(event.ether_type) == EtherType::IPV4;
        is_ip.then(|| if v4 { (*unmapped(&bytes)).into() } else { address_from(bytes) })
    };
    let port = |port: u16| (port != 0).then_some(port);
    /// The bits of a tag's control word that are the VLAN's number.
    const NUMBER: u16 = 0xfff;
    TraceLine {
        time: epoch_seconds(event.time),
        interface,
        vlan: Some(event.vlan.get() & NUMBER).filter(|number| *number != 0),
        source: address(event.source),
        destination: address(event.destination),
        source_port: port(event.source_port.get()),
        destination_port: port(event.destination_port.get()),
        protocol: is_ip.then(|| protocol_name(event.protocol)),
        flags: tcpdump_flags(TcpFlags(event.flags)),
        fragment: event.fragment != 0,
        length: event.len,
        service: way.service.clone(),
        backend: way.backend.clone(),
        action: way.end.map_or("unknown", |(action, _)| action.name()).to_owned(),
        reason: way.end.map_or("unknown", |(_, reason)| reason.name()).to_owned(),
        steps: way.steps.iter().map(|step| in_words(*step, names)).collect(),
        missed: 0,
    }
}

/// Seconds since the epoch of a time of the monotonic clock, in nanoseconds.
fn epoch_seconds(monotonic: u64) -> f64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let now = now.map_or(Duration::ZERO, Duration::from);
    let ago = now.saturating_sub(Duration::from_nanos(monotonic));
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    epoch.saturating_sub(ago).as_secs_f64()
}

/// As tcpdump(8) writes them.
fn tcpdump_flags(flags: TcpFlags) -> String {
    let letters =
        [(TcpFlags::SYN, 'S'), (TcpFlags::FIN, 'F'), (PSH, 'P'), (TcpFlags::RST, 'R'), (TcpFlags::ACK, '.')];
    letters.iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, letter)| *letter).collect()
}

fn in_words((step, first, second): (Step, u32, u32), names: &Names) -> String {
    match step {
        Step::Listener => {
            let service = names.listeners.get(&first).map_or("that is gone", String::as_str);
            format!("for the service {service}")
        }
        Step::FromBackend => format!("from {}", names.backend(first)),
        Step::Flow => {
            let state = u8::try_from(second).map_or(FlowState::Free, FlowState::from_bits);
            format!("known flow with {}, {}", names.backend(first), state.name())
        }
        Step::NoFlow => "unknown flow".to_owned(),
        Step::Picked => format!("slot {first} holds {}", names.backend(second)),
        Step::Moved => format!("{} was silent, {} is next", names.backend(first), names.backend(second)),
        Step::Routed => match Reach::from_number(first) {
            Some(Reach::Known) => format!("out by {}", interface_name(second)),
            Some(Reach::NeighbourUnknown) => "the next hop's MAC address is unknown".to_owned(),
            Some(Reach::Elsewhere) => format!("out by {}, which has no program", interface_name(second)),
            Some(Reach::TooBig) => "larger than the way takes".to_owned(),
            Some(Reach::NotForwarded) => "no route, or to this machine".to_owned(),
            Some(Reach::Refused) => "a route forbids it".to_owned(),
            Some(Reach::ForwardingDisabled) => "forwarding is switched off".to_owned(),
            Some(Reach::Abandoned) => "no daemon has been alive for too long".to_owned(),
            Some(Reach::Unsupported) | None => "the route needs what XDP cannot do".to_owned(),
        },
        Step::Full if second == 0 => format!("{} has no room for another flow", names.backend(first)),
        Step::Full => format!("{} has no room, {} has", names.backend(first), names.backend(second)),
        Step::Done => "done".to_owned(),
        Step::Stuck => format!("the client is remembered with {}", names.backend(first)),
        Step::Mode => {
            let mode = u8::try_from(first).ok().and_then(|mode| Forward::from_mode(Mode(mode)));
            let mode = mode.map_or_else(|| "an unknown mode".to_owned(), |mode| mode.to_string());
            format!("by {mode} to {}", names.backend(second))
        }
        Step::Snat => format!("port {first} of address number {second} stands for the client"),
        Step::Reverse => format!("on the way back of a flow with {}", names.backend(first)),
        Step::IcmpError => format!("ICMP error of type {first}, code {second}"),
        Step::Fragment => format!("follows the first fragment with {}", names.backend(first)),
        Step::Tags => format!("{first} VLAN tags, of {}", interface_name(second)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use lb_common::abi::Be16;
    use lb_common::abi::net::mapped;

    use super::*;

    /// A SYN-ACK that has come this way.
    pub(in crate::control::tracing) fn event(steps: &[(Step, u32, u32)]) -> TraceEvent {
        let mut event = TraceEvent {
            ether_type: Be16::new(0x0800),
            source: mapped([192, 0, 2, 1]),
            destination: mapped([203, 0, 113, 10]),
            source_port: Be16::new(40_000),
            destination_port: Be16::new(25),
            protocol: 6,
            flags: 0x12,
            len: 74,
            vlan: Be16::new(0x600a),
            ..TraceEvent::default()
        };
        for (place, (step, first, second)) in event.steps.iter_mut().zip(steps) {
            *place = [step.number(), *first, *second];
            event.count += 1;
        }
        event
    }

    pub(in crate::control::tracing) fn names() -> Names {
        Names {
            listeners: BTreeMap::from([(1, "mail".to_owned())]),
            backends: BTreeMap::from([(7, ("mail".to_owned(), "mx1".to_owned()))]),
        }
    }

    #[test]
    fn a_packet_becomes_a_line_for_those_who_want_it() {
        let end = (Step::Done, Reason::ToBackend as u32, Action::Redirect as u32);
        let event = event(&[(Step::Listener, 1, 0), (Step::NoFlow, 0, 0), (Step::Picked, 5, 7), end]);
        let names = names();
        let way = Way::of(&event, &names);
        let line = line_of(&event, &way, &names, "ext".to_owned());
        assert_eq!((line.service.as_deref(), line.backend.as_deref()), (Some("mail"), Some("mx1")));
        assert_eq!((line.action.as_str(), line.reason.as_str()), ("redirect", "to_backend"));
        assert_eq!((line.flags.as_str(), line.vlan, line.source_port), ("S.", Some(10), Some(40_000)));
        assert_eq!(line.source, Some("192.0.2.1".parse().expect("an address")));
        assert_eq!(line.steps, ["for the service mail", "unknown flow", "slot 5 holds mx1"]);
        let wanted =
            |text: &str| wants(&Filter::parse(text.split_whitespace()).expect("a filter"), &event, &way);
        for text in [
            "",
            "host 192.0.2.0/24",
            "host 203.0.113.10 port 25 proto tcp",
            "src 192.0.2.1 dst 203.0.113.10 port 40000",
            "service mail reason to_backend",
        ] {
            assert!(wanted(text), "{text}");
        }
        for text in [
            "drop",
            "port 26",
            "proto udp",
            "src 203.0.113.10",
            "dst 192.0.2.1",
            "service web",
            "reason no_route",
        ] {
            assert!(!wanted(text), "{text}");
        }
    }
}
