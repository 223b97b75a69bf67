//! Reading how a service's packets travel: `forward`, and what belongs to single modes.

use std::net::IpAddr;

use super::Forward;
use super::diagnostics::{At, Errors, Span};
use super::document::{self, Entry, Known};
use super::known_keys::Place;
use super::values::{self, Role, quote};

/// Below the ports of the gateway's own connections, which begin at 32768 (`ip_local_port_range`, ip(7)).
const DEFAULT_SNAT_PORTS: (u16, u16) = (1024, 32767);
/// IANA's port for Generic UDP Encapsulation.
const DEFAULT_GUE_PORT: u16 = 6080;
/// Addresses of one service.
const MOST_SNAT_ADDRESSES: usize = 64;

const SNAT_HELP: &str = "write `snat = { addresses = [\"198.51.100.1\"] }`, with addresses of this gateway";
const ADDRESSES_HELP: &str = "write `addresses = [\"198.51.100.1\"]`, with addresses of this gateway";
const FORWARD_HELP: &str = "write \"nat\", \"snat\", \"dsr\", \"ipip\" or \"gue\"";

/// How a service forwards, with the places of what is compared with other parts.
#[derive(Debug)]
pub(super) struct Forwarding {
    /// At the service's name when it is not given.
    pub(super) mode: At<Forward>,
    /// False when what the file says is no mode; `mode` is then a guess.
    pub(super) clear: bool,
    /// Given, or what the mode allows.
    pub(super) second_chance: bool,
    /// There when `mode` is snat, unless it was reported.
    pub(super) snat: Option<SnatParts>,
    pub(super) gue_port: u16,
}

/// `snat`
#[derive(Debug)]
pub(super) struct SnatParts {
    pub(super) addresses: Vec<At<IpAddr>>,
    /// Of the list of addresses.
    pub(super) span: Span,
    /// Every address of the file is in `addresses`; else some were left out because of errors.
    pub(super) complete: bool,
    /// The first and the last.
    pub(super) ports: (u16, u16),
}

/// Whether the gateway sees what the backends answer, and rewrites ports and addresses both ways.
pub(super) const fn rewrites(mode: Forward) -> bool {
    matches!(mode, Forward::Nat | Forward::Snat)
}

/// From the keys of a service.
pub(super) fn read(errors: &mut Errors, name: At<&str>, known: &Known<'_>) -> Forwarding {
    let (mode, clear) = match known.get("forward") {
        Some(entry) => {
            let mode = read_mode(errors, entry);
            (At { value: mode.unwrap_or_default(), span: entry.span() }, mode.is_some())
        }
        None => (At { value: Forward::Nat, span: name.span }, known.lacks("forward")),
    };
    let snat_entry = known.get("snat");
    let snat = snat_entry.and_then(|entry| read_snat(errors, entry));
    let gue_entry = known.get("gue_port");
    let gue_port = gue_entry.and_then(|entry| read_port(errors, entry)).unwrap_or(DEFAULT_GUE_PORT);
    let chance_entry = known.get("second_chance");
    let second_chance = chance_entry.and_then(|entry| document::boolean(errors, entry));

    // What belongs to which mode is worth saying only when the mode is known.
    if clear {
        for (entry, owner) in [(snat_entry, Forward::Snat), (gue_entry, Forward::Gue)] {
            if let Some(entry) = entry.filter(|_| mode.value != owner) {
                belongs_elsewhere(errors, entry, owner, &mode);
            }
        }
        if mode.value == Forward::Snat && snat_entry.is_none() && known.lacks("snat") {
            let message = format!("service {} forwards by snat and has no `snat`", quote(name.value));
            errors.absent(mode.span, message).help(format!(
                "{}; they become the source of what the servers get",
                SNAT_HELP.replacen("write", "add", 1)
            ));
        }
        if let Some(entry) = chance_entry.filter(|_| second_chance == Some(true) && !rewrites(mode.value)) {
            let message = format!(
                "`second_chance` needs the servers' answers, which with {} do not pass this gateway",
                mode.value
            );
            let error = errors.at(entry.span(), message);
            error.related(mode.span, "the mode").help("remove it, or write `second_chance = false`");
        }
    }
    let snat = snat.filter(|_| clear && mode.value == Forward::Snat);
    let second_chance = second_chance.unwrap_or_else(|| rewrites(mode.value));
    Forwarding { mode, clear, second_chance, snat, gue_port }
}

fn read_mode(errors: &mut Errors, entry: Entry<'_>) -> Option<Forward> {
    Some(match document::word(errors, Place::Forward, entry, FORWARD_HELP)? {
        "snat" => Forward::Snat,
        "dsr" => Forward::Dsr,
        "ipip" => Forward::Ipip,
        "gue" => Forward::Gue,
        _ => Forward::Nat,
    })
}

fn belongs_elsewhere(errors: &mut Errors, entry: Entry<'_>, owner: Forward, mode: &At<Forward>) {
    let key = entry.key.value;
    let message =
        format!("`{key}` belongs to `forward = \"{owner}\"`, and this service forwards by {}", mode.value);
    errors.at(entry.key.span, message).help(format!("remove it, or write `forward = \"{owner}\"`"));
}

fn read_port(errors: &mut Errors, entry: Entry<'_>) -> Option<u16> {
    document::integer(errors, entry, 1..=65535).and_then(|port| u16::try_from(port).ok())
}

fn read_snat(errors: &mut Errors, entry: Entry<'_>) -> Option<SnatParts> {
    let Some(table) = entry.value.get_ref().as_table() else {
        document::mismatch(errors, "snat", "a table", entry.value, SNAT_HELP);
        return None;
    };
    let known = Known::read(errors, Place::Snat, table);
    let ports = known.get("ports").and_then(|entry| read_ports(errors, entry)).unwrap_or(DEFAULT_SNAT_PORTS);
    let Some(entry) = known.get("addresses") else {
        if known.lacks("addresses") {
            let error = errors.absent(entry.key.span, "`snat` has no `addresses`");
            error.help(ADDRESSES_HELP.replacen("write", "add", 1));
        }
        return None;
    };
    let (addresses, complete) = read_addresses(errors, entry);
    Some(SnatParts { addresses, span: entry.span(), complete, ports })
}

fn read_addresses(errors: &mut Errors, entry: Entry<'_>) -> (Vec<At<IpAddr>>, bool) {
    let expected = "a list of addresses";
    let items = document::list(errors, entry, expected, ADDRESSES_HELP);
    let mut addresses: Vec<At<IpAddr>> = Vec::new();
    let mut complete = !items.is_empty();
    for item in items {
        let address = document::text(errors, "addresses", item, expected, ADDRESSES_HELP).and_then(|text| {
            let value = values::address(errors, text.span, text.value, Role::Snat)?;
            Some(At { value, span: text.span })
        });
        let Some(address) = address else {
            complete = false;
            continue;
        };
        if let Some(first) = addresses.iter().find(|first| first.value == address.value) {
            let error = errors.at(address.span, format!("snat address {} is listed twice", address.value));
            error.related(first.span, "first here").help("remove one of the two");
        }
        addresses.push(address);
    }
    if addresses.len() > MOST_SNAT_ADDRESSES {
        let message = format!("`snat` has {} addresses", addresses.len());
        errors.at(entry.span(), message).help(format!(
            "write at most {MOST_SNAT_ADDRESSES} for a service; each has room for tens of thousands of connections \
             to each server"
        ));
    }
    (addresses, complete)
}

fn read_ports(errors: &mut Errors, entry: Entry<'_>) -> Option<(u16, u16)> {
    let (first, last) = DEFAULT_SNAT_PORTS;
    let help = format!("write `ports = \"{first}-{last}\"`");
    let text = document::text(errors, "ports", entry.value, "a range of ports in quotes", &help)?;
    values::port_range(errors, text.span, text.value)
}
