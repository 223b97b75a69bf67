//! Reading `listen`, and the `ADDRESS:PORT` that backends may be written as.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use toml::de::DeValue;

use super::diagnostics::{At, Errors, Span};
use super::document::{self, Entry};
use super::known_keys::{self, Place};
use super::values::{self, Role, clip, quote};
use super::{Listen, Protocol};

const HELP: &str = "write \"203.0.113.10:25\" or \"[2001:db8::10]:25\", with /udp at the end for UDP";

/// One or many listeners. The flag is false when something was left out because of an error.
pub(super) fn read(errors: &mut Errors, entry: Entry<'_>) -> (Vec<At<Listen>>, bool) {
    let expected = "an address and port in quotes, or a list of them";
    let items = match entry.value.get_ref() {
        DeValue::String(_) => std::slice::from_ref(entry.value),
        _ => document::list(errors, entry, expected, HELP),
    };
    let mut listeners: Vec<At<Listen>> = Vec::new();
    let mut complete = !items.is_empty();
    for item in items {
        let listen = document::text(errors, "listen", item, expected, HELP)
            .and_then(|text| read_one(errors, text).map(|value| At { value, span: text.span }));
        match listen {
            Some(listen) => listeners.push(listen),
            None => complete = false,
        }
    }
    (listeners, complete)
}

fn read_one(errors: &mut Errors, text: At<&str>) -> Option<Listen> {
    let span = text.span;
    if text.value.is_empty() {
        errors.at(span, "a listener is empty").help(HELP);
        return None;
    }
    let (endpoint, protocol) = match text.value.rsplit_once('/') {
        // 203.0.113.10/24 and 203.0.113.10/24:25 are a network, not a protocol.
        Some((endpoint, protocol)) if !protocol.starts_with(|c: char| c.is_ascii_digit()) => {
            let word = known_keys::known(errors, Place::Protocol, protocol, span)?;
            let protocol = match word {
                "udp" => Protocol::Udp,
                "any" => Protocol::Any,
                _ => Protocol::Tcp,
            };
            (endpoint, protocol)
        }
        _ => (text.value, Protocol::Tcp),
    };
    let (address, ports) = match split(endpoint) {
        Endpoint::WithPort(address, _) if protocol == Protocol::Any => {
            let message = format!("listener {} has a port, and protocol any has none", quote(text.value));
            let help = format!("write \"{}/any\", or /tcp or /udp after the port", clip(address));
            errors.at(span, message).help(help);
            return None;
        }
        Endpoint::WithPort(address, ports) => (address, Some(ports)),
        Endpoint::Bare(address) if protocol == Protocol::Any => (address, None),
        Endpoint::Bare(address) => {
            let message = format!("listener {} has no port", quote(text.value));
            errors.at(span, message).help(add_port(address, protocol));
            return None;
        }
        Endpoint::Malformed(help) => {
            errors.at(span, format!("listener {} is no address and port", quote(text.value))).help(help);
            return None;
        }
    };
    if address.is_empty() || address == "*" {
        let message = format!("listener {} has no address", quote(text.value));
        errors.at(span, message).help(HELP);
        return None;
    }
    // Both are looked at, so that both are reported.
    let address = values::address(errors, span, address, Role::Vip);
    let (port, last_port) = match ports {
        Some(ports) => values::port_range(errors, span, ports)?,
        None => (0, 0),
    };
    Some(Listen { address: address?, port, last_port, protocol })
}

/// A text taken apart, nothing of it verified.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Endpoint<'a> {
    Bare(&'a str),
    WithPort(&'a str, &'a str),
    /// What to write instead.
    Malformed(&'static str),
}

/// Splits `ADDRESS`, `ADDRESS:PORT` and `[ADDRESS]:PORT`.
pub(super) fn split(text: &str) -> Endpoint<'_> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return Endpoint::Malformed("close the bracket after the address, as in \"[2001:db8::10]:25\"");
        };
        if address.parse::<Ipv6Addr>().is_err() && !address.contains(':') {
            return Endpoint::Malformed("brackets are for IPv6 only; write \"ADDRESS:PORT\" without them");
        }
        return match rest.strip_prefix(':') {
            Some(port) => Endpoint::WithPort(address, port),
            None if rest.is_empty() => Endpoint::Bare(address),
            None => Endpoint::Malformed(
                "write a colon and the port after the bracket, as in \"[2001:db8::10]:25\"",
            ),
        };
    }
    // A zone (fe80::1%eth0) is refused where the address is read.
    if text.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()) {
        return Endpoint::Bare(text);
    }
    match text.split_once(':') {
        // 203.0.113.10:8000:8100 is relayd's port range; anything else with two colons means IPv6.
        Some((address, port)) if !port.contains(':') || address.contains('.') => {
            Endpoint::WithPort(address, port)
        }
        Some(_) => Endpoint::Malformed(
            "write an IPv6 address in brackets before the port, as in \"[2001:db8::10]:25\"",
        ),
        None => Endpoint::Bare(text),
    }
}

/// What to write instead of an address without port.
fn add_port(address: &str, protocol: Protocol) -> String {
    let suffix = if protocol == Protocol::Udp { "/udp" } else { "" };
    let Ok(parsed) = address.parse::<IpAddr>() else { return HELP.to_owned() };
    // 2001:db8::10:25 is an address, though hardly the one that was meant.
    if let Some((before, port)) = address.rsplit_once(':')
        && before.parse::<Ipv6Addr>().is_ok()
        && port.parse::<u16>().is_ok()
    {
        return format!("write \"[{before}]:{port}{suffix}\" if {port} is the port");
    }
    let example = SocketAddr::new(parsed, 25);
    format!(
        "write \"{example}{suffix}\", with the port that clients connect to, \
         or \"{address}/any\" for what is neither TCP nor UDP"
    )
}

/// An address and the port if there is one, for a backend.
pub(super) fn read_endpoint(errors: &mut Errors, text: &str, span: Span) -> Option<(IpAddr, Option<u16>)> {
    match split(text) {
        Endpoint::Bare(address) => Some((values::address(errors, span, address, Role::Backend)?, None)),
        Endpoint::WithPort(address, port) => {
            let address = values::address(errors, span, address, Role::Backend);
            let port = values::port(errors, span, port);
            Some((address?, Some(port?)))
        }
        Endpoint::Malformed(help) => {
            errors.at(span, format!("backend {} is no address", quote(text))).help(help);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_split() {
        assert_eq!(split("198.51.100.1"), Endpoint::Bare("198.51.100.1"));
        assert_eq!(split("198.51.100.1:25"), Endpoint::WithPort("198.51.100.1", "25"));
        assert_eq!(split("2001:db8::1"), Endpoint::Bare("2001:db8::1"));
        assert_eq!(split("[2001:db8::1]"), Endpoint::Bare("2001:db8::1"));
        assert_eq!(split("[2001:db8::1]:25"), Endpoint::WithPort("2001:db8::1", "25"));
        assert_eq!(split("198.51.100.1:8000:8010"), Endpoint::WithPort("198.51.100.1", "8000:8010"));
        for wrong in ["[2001:db8::1", "[198.51.100.1]:25", "[2001:db8::1]25", "2001:db8:0:0:0:0:0:0:1:25"] {
            assert!(matches!(split(wrong), Endpoint::Malformed(_)), "{wrong}");
        }
    }
}
