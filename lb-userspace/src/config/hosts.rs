//! Backends that are written as host names.

use std::net::IpAddr;

use super::cross::Parts;
use super::diagnostics::Errors;
use super::document::{self, Entry};
use super::known_keys::Place;
use super::listen::{self, Endpoint};
use super::values::{self, Role, quote};
use super::{Forward, modes};

/// A name (RFC 1035 section 2.3.4), and one of its labels.
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

/// A server, or several, by the name that leads to the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Of its backends, each of which also bears its address: `mx-198.51.100.11`.
    pub name: String,
    /// What is asked for.
    pub host: String,
    /// Which of its addresses are used.
    pub families: Families,
    /// `None`: the port the client connected to.
    pub port: Option<u16>,
    /// Of each of its backends.
    pub weight: u16,
    pub priority: u8,
    /// Of each of its backends.
    pub max_connections: Option<u32>,
    pub enabled: bool,
}

impl Host {
    /// The name of the backend with this address. It depends on nothing else, so that it stays.
    pub fn backend_name(&self, address: IpAddr) -> String {
        format!("{}-{address}", self.name)
    }

    /// Without the families that no listener has a use for.
    pub(super) fn within(self, used: Families) -> Self {
        let Families { v4, v6 } = self.families;
        Self { families: Families { v4: v4 && used.v4, v6: v6 && used.v6 }, ..self }
    }
}

/// Kinds of addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    pub const BOTH: Self = Self { v4: true, v6: true };

    pub const fn has(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }

    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { v4: self.v4 || other.v4, v6: self.v6 || other.v6 }
    }
}

/// Why an address that a name has cannot be a server's: a reason that follows "is".
pub(crate) fn no_server(address: IpAddr) -> Option<&'static str> {
    values::unusable(address, Role::Backend).map(|(reason, _)| reason)
}

/// Whether some address of the host may be behind a listener with this address.
pub(super) const fn may_serve(host: &Host, mode: Forward, vip: IpAddr) -> bool {
    match mode {
        Forward::Ipip | Forward::Gue => host.families.v4 || host.families.v6,
        Forward::Nat | Forward::Snat | Forward::Dsr => host.families.has(vip),
    }
}

/// Of each pool, the families that any listener has a use for.
pub(super) fn families(parts: &Parts, resolved: &[usize], backups: &[Option<usize>]) -> Vec<Families> {
    let mut used = vec![Families::default(); parts.pools.len()];
    for ((service, pool), backup) in parts.services.iter().zip(resolved).zip(backups) {
        for listen in &service.listen {
            let servers = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
            let [v4, v6] = servers
                .map(|server| modes::uses(service.forwarding.mode.value, listen.value.address, server));
            for pool in [Some(*pool), *backup].into_iter().flatten() {
                used[pool] = used[pool].and(Families { v4, v6 });
            }
        }
    }
    used
}

/// A text that is a host name, and what stands behind its colon.
pub(super) fn split(text: &str) -> Option<(&str, Option<&str>)> {
    match listen::split(text) {
        Endpoint::Bare(name) if is_name(name) => Some((name, None)),
        Endpoint::WithPort(name, port) if is_name(name) => Some((name, Some(port))),
        _ => None,
    }
}

/// Letters, digits, `-` and `_` in labels, of which the last is no number: `198.51.100.300` is a mistyped address.
pub(crate) fn is_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let good = |label: &str| {
        (1..=LONGEST_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= LONGEST_NAME
        && name.split('.').all(good)
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// `host` of a backend.
pub(super) fn read<'a>(errors: &mut Errors, entry: Entry<'a>) -> Option<&'a str> {
    let help = "write the name alone: `host = \"mx.example.com\"`";
    let text = document::text(errors, "host", entry.value, "a host name in quotes", help)?;
    match split(text.value) {
        Some((name, None)) => return Some(name),
        Some((name, Some(port))) => {
            let message = format!("`host` contains a port: {}", quote(text.value));
            errors.at(text.span, message).help(format!("write `host = \"{name}\", port = {port}`"));
        }
        None if text.value.parse::<IpAddr>().is_ok() => {
            let message = format!("`host` is an address: {}", quote(text.value));
            errors.at(text.span, message).help(format!("write `address = \"{}\"`", text.value));
        }
        None => {
            errors.at(text.span, format!("`host` is no host name: {}", quote(text.value))).help(help);
        }
    }
    None
}

/// `family` of a backend.
pub(super) fn read_families(errors: &mut Errors, entry: Entry<'_>) -> Option<Families> {
    let help = "write \"any\", \"ipv4\" or \"ipv6\"";
    Some(match document::word(errors, Place::Family, entry, help)? {
        "ipv4" => Families { v4: true, v6: false },
        "ipv6" => Families { v4: false, v6: true },
        _ => Families::BOTH,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_addresses() {
        assert_eq!(split("mx.example.com"), Some(("mx.example.com", None)));
        assert_eq!(split("mx.example.com.:2525"), Some(("mx.example.com.", Some("2525"))));
        assert_eq!(split("mx1"), Some(("mx1", None)));
        assert_eq!(split("_mail.example.com"), Some(("_mail.example.com", None)));
        let long = format!("{}.example.com", "a".repeat(64));
        for no in [
            "198.51.100.11",
            "198.51.100.300",
            "2001:db8::1",
            "[2001:db8::1]:25",
            "",
            "a..b",
            "-a",
            "a/24",
            &long,
        ] {
            assert_eq!(split(no), None, "{no}");
        }
    }
}
