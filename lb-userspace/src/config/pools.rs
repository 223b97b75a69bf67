//! Reading pools and their backends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{At, Errors, Span};
use super::document::{self, Entry, Known, Value};
use super::known_keys::Place;
use super::values::{self, Role, quote};
use super::{Backend, Check, Families, Host, OnDown, Quorum, checks, hosts, listen};

const DEFAULT_WEIGHT: u16 = 1;
/// As many flows as the largest table has room for.
const MOST_CONNECTIONS: RangeInclusive<u32> = 1..=64 << 20;
/// As many as a pool can have, each with the largest weight.
const MOST_QUORUM: u32 = 1_000_000;
const SLOW_STARTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
const HELP: &str = "write a list such as [\"198.51.100.11\", \"198.51.100.12\"]";

/// A pool as read, with the places of its parts.
#[derive(Debug)]
pub(super) struct PoolParts {
    pub(super) name: At<String>,
    /// Listed by a service itself, not in `[pools]`.
    pub(super) own: bool,
    pub(super) check: Option<At<Check>>,
    pub(super) on_down: OnDown,
    pub(super) quorum: Quorum,
    /// Where `quorum` stands, or else `hysteresis`.
    pub(super) quorum_span: Span,
    pub(super) slow_start: Duration,
    pub(super) backends: Vec<At<Backend>>,
    pub(super) hosts: Vec<At<Host>>,
    /// Every backend of the file is in `backends` or `hosts`; else some were left out because of errors.
    pub(super) complete: bool,
}

/// `[pools.NAME]`
pub(super) fn read(errors: &mut Errors, name: At<&str>, table: &DeTable<'_>) -> PoolParts {
    let known = Known::read(errors, Place::Pool, table);
    if known.lacks("backends") {
        let message = format!("pool {} has no `backends`", quote(name.value));
        errors.absent(name.span, message).help("add `backends = [\"198.51.100.11\", \"198.51.100.12\"]`");
    }
    read_known(errors, name, &known, false)
}

/// The keys that a pool and a service with backends of its own have in common.
pub(super) fn read_known(errors: &mut Errors, name: At<&str>, known: &Known<'_>, own: bool) -> PoolParts {
    let check = known.get("check").and_then(|entry| checks::read(errors, entry));
    let on_down = known.get("on_down").and_then(|entry| read_on_down(errors, entry)).unwrap_or_default();
    let (quorum, quorum_span) = read_quorum(errors, known);
    let slow_start = known
        .get("slow_start")
        .and_then(|entry| values::duration(errors, entry, &SLOW_STARTS))
        .map_or(Duration::ZERO, |at| at.value);
    let Servers { backends, hosts, complete } =
        known.get("backends").map(|entry| read_backends(errors, entry)).unwrap_or_default();
    let name = At { value: name.value.to_owned(), span: name.span };
    PoolParts { name, own, check, on_down, quorum, quorum_span, slow_start, backends, hosts, complete }
}

fn read_quorum(errors: &mut Errors, known: &Known<'_>) -> (Quorum, Span) {
    let (weight, hysteresis) = (known.get("quorum"), known.get("hysteresis"));
    let span = weight.or(hysteresis).map(|entry| entry.span()).unwrap_or_default();
    let default = Quorum::default();
    let read = |errors: &mut Errors, entry: Option<Entry<'_>>, least, default| match entry {
        Some(entry) => document::integer(errors, entry, least..=MOST_QUORUM),
        None => Some(default),
    };
    let number = read(errors, weight, 1, default.weight);
    let more = read(errors, hysteresis, 0, default.hysteresis);
    let (Some(weight), Some(more)) = (number, more) else { return (default, span) };
    if let Some(entry) = hysteresis.filter(|_| more >= weight) {
        let message = format!("`hysteresis` {more} is not less than the quorum {weight}");
        let error = errors.at(entry.span(), message);
        error.help(
            "with it a pool would keep its quorum without any backend; write a smaller one, or remove it",
        );
        return (default, span);
    }
    (Quorum { weight, hysteresis: more }, span)
}

fn read_on_down(errors: &mut Errors, entry: Entry<'_>) -> Option<OnDown> {
    match document::word(errors, Place::OnDown, entry, "write \"reset\" or \"keep\"")? {
        "keep" => Some(OnDown::Keep),
        _ => Some(OnDown::Reset),
    }
}

/// What `backends` lists.
#[derive(Debug, Default)]
struct Servers {
    backends: Vec<At<Backend>>,
    hosts: Vec<At<Host>>,
    complete: bool,
}

/// One of them.
enum Server {
    Backend(Backend),
    Host(Host),
}

fn read_backends(errors: &mut Errors, entry: Entry<'_>) -> Servers {
    let items = document::list(errors, entry, "a list of servers", HELP);
    let mut servers = Servers { complete: !items.is_empty(), ..Servers::default() };
    let mut seen = Seen::default();
    for item in items {
        let span = Span::from(item.span());
        match read_backend(errors, item) {
            Some(Server::Backend(value)) => {
                let backend = At { value, span };
                report_duplicates(errors, &seen, &backend);
                seen.add(&backend);
                servers.backends.push(backend);
            }
            Some(Server::Host(value)) => {
                let host = At { value, span };
                report_same_host(errors, &servers, &seen, &host);
                seen.hosts.entry(host.value.name.clone()).or_insert(host.span);
                servers.hosts.push(host);
            }
            None => servers.complete = false,
        }
    }
    servers
}

/// Where those before stand: the first one of each place, and of each name.
#[derive(Default)]
struct Seen {
    servers: HashMap<(IpAddr, Option<u16>), Span>,
    backends: HashMap<String, Span>,
    hosts: HashMap<String, Span>,
}

impl Seen {
    fn add(&mut self, backend: &At<Backend>) {
        let Backend { address, port, name, .. } = &backend.value;
        self.servers.entry((*address, *port)).or_insert(backend.span);
        self.backends.entry(name.clone()).or_insert(backend.span);
    }

    fn named(&self, name: &str) -> Option<Span> {
        self.backends.get(name).or_else(|| self.hosts.get(name)).copied()
    }
}

fn report_duplicates(errors: &mut Errors, before: &Seen, backend: &At<Backend>) {
    let new = &backend.value;
    if let Some(old) = before.servers.get(&(new.address, new.port)) {
        let port = new.port.map(|port| format!(" port {port}")).unwrap_or_default();
        let message = format!("backend {}{port} is in this pool twice", new.address);
        errors.at(backend.span, message).related(*old, "first here").help("remove one of the two");
    } else if let Some(old) = before.named(&new.name) {
        report_same_name(errors, backend.span, old, &new.name);
    }
}

fn report_same_host(errors: &mut Errors, before: &Servers, seen: &Seen, host: &At<Host>) {
    let new = &host.value;
    let same = |old: &&At<Host>| (&old.value.host, old.value.port) == (&new.host, new.port);
    if let Some(old) = before.hosts.iter().find(same) {
        let message = format!("host {} is in this pool twice", quote(&new.host));
        errors.at(host.span, message).related(old.span, "first here").help("remove one of the two");
    } else if let Some(old) = seen.named(&new.name) {
        report_same_name(errors, host.span, old, &new.name);
    }
}

fn report_same_name(errors: &mut Errors, span: Span, old: Span, name: &str) {
    let message = format!("two backends of this pool are named {}", quote(name));
    errors.at(span, message).related(old, "first here").help("give each a name of its own");
}

fn read_backend(errors: &mut Errors, item: &Value<'_>) -> Option<Server> {
    let span = Span::from(item.span());
    match item.get_ref() {
        DeValue::String(text) => {
            if let Some((host, port)) = hosts::split(text) {
                let port = match port {
                    Some(port) => Some(values::port(errors, span, port)?),
                    None => None,
                };
                return Some(Server::Host(Host {
                    name: text.to_string(),
                    host: host.to_owned(),
                    families: Families::BOTH,
                    port,
                    weight: DEFAULT_WEIGHT,
                    priority: 0,
                    max_connections: None,
                    enabled: true,
                }));
            }
            let (address, port) = listen::read_endpoint(errors, text, span)?;
            Some(Server::Backend(Backend {
                name: text.to_string(),
                address,
                port,
                weight: DEFAULT_WEIGHT,
                priority: 0,
                max_connections: None,
                enabled: true,
                host: None,
                leaving: false,
            }))
        }
        DeValue::Table(table) => read_table(errors, span, table),
        _ => {
            let help = "write \"198.51.100.11\", or { name = \"mx1\", address = \"198.51.100.11\" }";
            document::mismatch(errors, "backends", "a list of addresses or tables", item, help);
            None
        }
    }
}

fn read_table(errors: &mut Errors, span: Span, table: &DeTable<'_>) -> Option<Server> {
    let known = Known::read(errors, Place::Backend, table);
    let host = known.get("host");
    let address = match (known.get("address"), host) {
        (Some(_), Some(host)) => {
            let error = errors.at(host.key.span, "a backend has either an `address` or a `host`");
            error.help("keep `address` for one address, `host` for all addresses of a name");
            None
        }
        (Some(entry), None) => read_address(errors, entry),
        (None, Some(_)) => None,
        (None, None) => {
            if known.lacks("address") && known.lacks("host") {
                errors.absent(span, "the backend has no `address`").help("add `address = \"198.51.100.11\"`");
            }
            None
        }
    };
    let found = match host {
        Some(entry) => hosts::read(errors, entry),
        None => None,
    };
    let families = match known.get("family") {
        Some(entry) if host.is_none() => {
            let error = errors.at(entry.key.span, "`family` is for a `host` only");
            error.help("remove it: an address has its family");
            None
        }
        Some(entry) => hosts::read_families(errors, entry),
        None => Some(Families::BOTH),
    };
    let port = match known.get("port") {
        Some(entry) => document::integer(errors, entry, 1..=65535).map(|port| u16::try_from(port).ok()),
        None => Some(None),
    };
    let weight = match known.get("weight") {
        Some(entry) => {
            document::integer(errors, entry, 0..=1000).and_then(|weight| u16::try_from(weight).ok())
        }
        None => Some(DEFAULT_WEIGHT),
    };
    let priority = match known.get("priority") {
        Some(entry) => document::integer(errors, entry, 0..=255).and_then(|number| u8::try_from(number).ok()),
        None => Some(0),
    };
    let max_connections = match known.get("max_connections") {
        Some(entry) => document::integer(errors, entry, MOST_CONNECTIONS).map(Some),
        None => Some(None),
    };
    let enabled = match known.get("enabled") {
        Some(entry) => document::boolean(errors, entry),
        None => Some(true),
    };
    let name = match known.get("name") {
        Some(entry) => document::text(errors, "name", entry.value, "a text", "write `name = \"mx1\"`")
            .filter(|name| values::check_name(errors, "backend", *name))
            .map(|name| Some(name.value.to_owned())),
        None => Some(None),
    };
    if let (Some(_), Some(_)) = (known.get("address"), host) {
        return None;
    }
    if host.is_some() {
        let (host, families, port) = (found?.to_owned(), families?, port?);
        let unnamed = || port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let name = name?.unwrap_or_else(unnamed);
        return Some(Server::Host(Host {
            name,
            host,
            families,
            port,
            weight: weight?,
            priority: priority?,
            max_connections: max_connections?,
            enabled: enabled?,
        }));
    }
    families?;
    let ((address, written), port) = (address?, port?);
    // As it would be written without a table, so that two ports of one server have two names.
    let unnamed = || match (port, address) {
        (None, _) => written.to_owned(),
        (Some(port), IpAddr::V4(_)) => format!("{written}:{port}"),
        (Some(port), IpAddr::V6(_)) => format!("[{written}]:{port}"),
    };
    let name = name?.unwrap_or_else(unnamed);
    Some(Server::Backend(Backend {
        name,
        address,
        port,
        weight: weight?,
        priority: priority?,
        max_connections: max_connections?,
        enabled: enabled?,
        host: None,
        leaving: false,
    }))
}

fn read_address<'a>(errors: &mut Errors, entry: Entry<'a>) -> Option<(IpAddr, &'a str)> {
    let help = "write `address = \"198.51.100.11\"`";
    let text = document::text(errors, "address", entry.value, "an IP address in quotes", help)?;
    if let listen::Endpoint::WithPort(address, port) = listen::split(text.value)
        && address.parse::<IpAddr>().is_ok()
        && port.parse::<u16>().is_ok()
    {
        let message = format!("`address` contains a port: {}", quote(text.value));
        errors.at(text.span, message).help(format!("write `address = \"{address}\", port = {port}`"));
        return None;
    }
    if hosts::split(text.value).is_some() {
        let message = format!("`address` is a host name: {}", quote(text.value));
        errors.at(text.span, message).help("write `host` instead of `address`");
        return None;
    }
    let address = values::address(errors, text.span, text.value, Role::Backend)?;
    Some((address, text.value))
}
