//! What listeners mean together: no packet may be for two of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::diagnostics::{At, Errors};
use super::services::ServiceParts;
use super::values::quote;
use super::{Listen, Protocol};

/// Ranges of one VIP and protocol: a packet is compared with one after the other.
const MOST_RANGES: usize = 8;

type Placed<'a> = (&'a ServiceParts, &'a At<Listen>);

/// The listeners of one VIP and protocol, by their first ports. None overlaps another.
#[derive(Default)]
struct Ports<'a> {
    by_port: BTreeMap<u16, Placed<'a>>,
    ranges: Vec<&'a At<Listen>>,
}

/// Reports listeners that are there twice, that overlap, and ranges beyond the most of one VIP.
pub(super) fn check(errors: &mut Errors, services: &[ServiceParts]) {
    let mut seen: HashMap<(IpAddr, Protocol), Ports<'_>> = HashMap::new();
    for service in services {
        for listen in &service.listen {
            let new = listen.value;
            let ports = seen.entry((new.address, new.protocol)).or_default();
            // As those before do not overlap, only the last that begins before this one ends can reach into it.
            let before = ports.by_port.range(..=new.last_port).next_back().map(|(_, placed)| *placed);
            match before.filter(|(_, first)| first.value.last_port >= new.port) {
                Some(first) => twice(errors, first, (service, listen)),
                None => {
                    ports.by_port.insert(new.port, (service, listen));
                    if new.port != new.last_port {
                        ports.ranges.push(listen);
                    }
                }
            }
        }
    }
    for ports in seen.values() {
        if let (Some(first), Some(beyond)) = (ports.ranges.first(), ports.ranges.get(MOST_RANGES)) {
            let Listen { address, protocol, .. } = beyond.value;
            let message = format!("{address} has more than {MOST_RANGES} ranges of {protocol} ports");
            let error = errors.at(beyond.span, message);
            error.related(first.span, "the first one");
            error.help("join ranges, list ports one by one, or use another address");
        }
    }
}

fn twice(errors: &mut Errors, (first_service, first): Placed<'_>, (service, listen): Placed<'_>) {
    let label = if first_service.name.value == service.name.value {
        "first here".to_owned()
    } else {
        format!("service {}", quote(&first_service.name.value))
    };
    let (message, help) = if first.value == listen.value {
        (format!("{} is listened on twice", listen.value), "remove one, or give it another port or protocol")
    } else {
        (
            format!("{} overlaps with {}", listen.value, first.value),
            "narrow one of them, so that each port is in one of them only",
        )
    };
    errors.at(listen.span, message).related(first.span, label).help(help);
}
