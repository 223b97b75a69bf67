//! `[resolver]`: where the addresses of host names come from, and how long they hold.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::diagnostics::{Errors, Span};
use super::document::{self, Entry, Known};
use super::known_keys::Place;
use super::values::{self, quote};

/// DNS's own (RFC 1035 section 4.2.1).
const PORT: u16 = 53;
const TTLS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// How host names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// Empty: those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
    /// An answer is not asked for again any sooner. Default 5 s.
    pub min_ttl: Duration,
    /// Nor any later. Default 5 min.
    pub max_ttl: Duration,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { servers: Vec::new(), min_ttl: Duration::from_secs(5), max_ttl: Duration::from_secs(300) }
    }
}

/// `[resolver]`, which may be absent.
pub(super) fn read(errors: &mut Errors, entry: Option<Entry<'_>>) -> Resolver {
    let mut resolver = Resolver::default();
    let Some(entry) = entry else { return resolver };
    let Some(table) = entry.value.get_ref().as_table() else {
        let help = "write `[resolver]` and below it `min_ttl = \"5s\"`";
        document::mismatch(errors, "resolver", "a table", entry.value, help);
        return resolver;
    };
    let known = Known::read(errors, Place::Resolver, table);
    if let Some(entry) = known.get("servers") {
        resolver.servers = read_servers(errors, entry);
    }
    let (least, most) = (known.get("min_ttl"), known.get("max_ttl"));
    for (entry, ttl) in [(least, &mut resolver.min_ttl), (most, &mut resolver.max_ttl)] {
        let given = entry.and_then(|entry| values::duration(errors, entry, &TTLS));
        *ttl = given.map_or(*ttl, |at| at.value);
    }
    if let Some(entry) = most.or(least).filter(|_| resolver.min_ttl > resolver.max_ttl) {
        let [least, most] = [resolver.min_ttl, resolver.max_ttl].map(values::show_duration);
        let message = format!("`min_ttl` {least} is more than `max_ttl` {most}");
        errors.at(entry.span(), message).help("write a smaller `min_ttl` or a larger `max_ttl`");
    }
    resolver
}

fn read_servers(errors: &mut Errors, entry: Entry<'_>) -> Vec<SocketAddr> {
    let help = "write a list of addresses, with a port or without, such as [\"192.0.2.53\", \"[2001:db8::53]:5353\"]";
    let mut servers = Vec::new();
    for item in document::list(errors, entry, "a list of addresses", help) {
        let Some(text) = document::text(errors, "servers", item, "a list of addresses", help) else {
            continue;
        };
        let bare = text.value.parse::<IpAddr>().map(|address| SocketAddr::new(address, PORT));
        match bare.or_else(|_| text.value.parse::<SocketAddr>()) {
            Ok(server) if server.port() != 0 && !server.ip().is_unspecified() => servers.push(server),
            _ => {
                let span: Span = item.span().into();
                errors.at(span, format!("{} is no address of a DNS server", quote(text.value))).help(help);
            }
        }
    }
    servers
}
