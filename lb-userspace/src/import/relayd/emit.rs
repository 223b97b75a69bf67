//! From what a relayd.conf says to Matapa's tables.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::Surroundings;
use super::checks;
use super::names::Names;
use super::source::Place;
use super::syntax::{Document, Host, Listener, Mode, Note, Redirect, Table, Target};
use super::toml::{Block, Line, quoted};
use crate::config::is_name;

/// Seconds; relayd's and Matapa's.
const SESSION_TIMEOUT: u64 = 600;
/// Seconds that the loader takes for a session.
const SESSION_TIMEOUTS: std::ops::RangeInclusive<u64> = 1..=12 * 3600;

/// Pools and services, in an order in which each pool stands before the first service that uses it.
pub(super) fn blocks(document: &Document, around: &Surroundings<'_>) -> Vec<Block> {
    let mut emitter = Emitter {
        document,
        around,
        pools: HashMap::new(),
        told: HashSet::new(),
        pool_names: Names::default(),
        service_names: Names::default(),
        blocks: Vec::new(),
    };
    for redirect in &document.redirects {
        emitter.redirect(redirect);
    }
    emitter.blocks
}

/// The interfaces that listeners and servers are said to be behind, without repetition.
pub(super) fn interfaces(document: &Document) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for redirect in &document.redirects {
        let listeners = redirect.listeners.iter().filter_map(|listener| listener.interface.as_ref());
        let targets = redirect.targets.iter().filter_map(|target| target.interface.as_ref());
        for name in listeners.chain(targets) {
            if !names.contains(&name.value) {
                names.push(name.value.clone());
            }
        }
    }
    names
}

struct Emitter<'a> {
    document: &'a Document,
    around: &'a Surroundings<'a>,
    /// Names of the pools by what they say.
    pools: HashMap<String, String>,
    /// Tables with notes in a pool already.
    told: HashSet<usize>,
    pool_names: Names,
    service_names: Names,
    blocks: Vec<Block>,
}

impl Emitter<'_> {
    fn redirect(&mut self, redirect: &Redirect) {
        let mut notes = Vec::new();
        let Some(target) = redirect.targets.first() else { return };
        let listeners = self.listeners(redirect, &mut notes);
        let pool = self.pool(redirect, target, &mut notes);
        let backup = redirect.targets.get(1).map(|backup| self.pool(redirect, backup, &mut notes));
        let pools = vec![pool.clone()];
        let mut lines = Vec::new();
        let given = self.service_names.give(&redirect.name.value);
        lines.push(Line::new(format!("[services.{}]", key(&given))));
        match listeners.as_slice() {
            [one] => lines.push(Line::new(format!("listen = {}", quoted(one)))),
            many => {
                lines.push(Line::new("listen = ["));
                lines.extend(many.iter().map(|one| Line::item(format!("  {},", quoted(one)))));
                lines.push(Line::new("]"));
            }
        }
        lines.push(Line::new(format!("pool = {}", quoted(&pool))));
        if let Some(backup) = backup {
            lines.push(Line::of_pool(format!("backup = {}", quoted(&backup)), backup));
        }
        if target.route {
            lines.push(Line::new("forward = \"dsr\""));
        }
        lines.push(Line::new(format!("scheduler = \"{}\"", scheduler(target, &mut notes))));
        let session = session_timeout(redirect, &mut notes);
        if session != SESSION_TIMEOUT {
            lines.push(Line::new(format!("session_timeout = {}", seconds(session))));
        }
        if redirect.sticky.is_some() {
            lines.push(Line::new(format!(
                "sticky = {}                       # sticky-address: since the client's last new connection",
                seconds(session)
            )));
        }
        if redirect.disabled.is_some() {
            lines.push(Line::new(
                "enabled = false                     # `matapa service enable`, or true, enables it",
            ));
        }
        if target.demote.is_some() || redirect.targets.get(1).is_some_and(|backup| backup.demote.is_some()) {
            let text = "demote: every [carp.NAME] of this gateway is demoted by itself while a service has no server \
                        up";
            notes.push(note(target.demote.unwrap_or(target.place), text));
        }
        self.blocks.push(Block {
            about: note(redirect.name.place, format!("redirect \"{}\"", redirect.name.value)),
            notes,
            lines,
            pools,
            is_pool: false,
            taken_back: false,
        });
    }

    /// As `listen` has them.
    fn listeners(&self, redirect: &Redirect, notes: &mut Vec<Note>) -> Vec<String> {
        let mut all = Vec::new();
        for listener in &redirect.listeners {
            let Listener { address, protocol, first, last, .. } = listener;
            if let Some(interface) = &listener.interface {
                let text = format!(
                    "interface {}: Matapa takes packets for {} on every one of `interfaces`",
                    interface.value, address.value
                );
                notes.push(note(interface.place, text));
            }
            if protocol != "tcp" && protocol != "udp" {
                let text = format!(
                    "listen on {} {protocol}: left out; \"ADDRESS/any\" is for all that is neither TCP nor UDP",
                    address.value
                );
                notes.push(note(address.place, text));
                continue;
            }
            let addresses = self.addresses(&address.value);
            if addresses.is_empty() {
                let text = format!(
                    "listen on {}: left out, as it has no address here; write the address itself",
                    address.value
                );
                notes.push(note(address.place, text));
            } else if address.value.parse::<IpAddr>().is_err() {
                let text = format!("listen on {}: the addresses that it has now are written", address.value);
                notes.push(note(address.place, text));
            }
            for address in addresses {
                let mut text = SocketAddr::new(address, *first).to_string();
                if listener.is_range() {
                    let _ = write!(text, "-{last}");
                }
                if protocol == "udp" {
                    text.push_str("/udp");
                }
                all.push(text);
            }
        }
        all
    }

    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        match name.parse() {
            Ok(address) => vec![address],
            Err(_) => (self.around.addresses)(name),
        }
    }

    /// The name of the pool for this use of a table, which is made if there is none yet.
    fn pool(&mut self, redirect: &Redirect, target: &Target, notes: &mut Vec<Note>) -> String {
        let table = &self.document.tables[target.table];
        let ports = Ports::of(redirect, target);
        if ports.unequal {
            let text = "relayd sends the single ports of this redirect to one port, and the range to its own; here each \
                        connection keeps the port that the client used";
            notes.push(note(target.place, text));
        }
        let check = self.check(target, &ports, notes);
        // What is said of a table is said once.
        let mut own = Vec::new();
        let mut backends = Vec::new();
        for host in &table.hosts {
            backends.extend(self.backend(host, ports.server, table.disabled, &mut own));
        }
        if table.disabled {
            let text =
                "disabled: its hosts are; `matapa backend enable`, or true instead of false, enables them";
            own.push(note(table.name.place, text));
        }
        own.extend(differing_retries(table));
        if !self.told.insert(target.table) {
            own.clear();
        }
        let mut lines = Vec::new();
        lines.push(Line::new(check));
        lines.push(Line::new(
            "on_down = \"keep\"                    # as relayd does; \"reset\" has clients connect anew at once",
        ));
        lines.push(Line::new("backends = ["));
        lines.extend(backends.into_iter().map(Line::item));
        lines.push(Line::new("]"));

        let mut said = target.table.to_string();
        for line in &lines {
            let _ = write!(said, "\n{line:?}");
        }
        if let Some(name) = self.pools.get(&said) {
            return name.clone();
        }
        let first = !self.pools.values().any(|name| *name == table.name.value);
        let wanted =
            if first { table.name.value.clone() } else { format!("{}-{}", table.name.value, ports.check) };
        let name = self.pool_names.give(&wanted);
        self.pools.insert(said, name.clone());
        lines.insert(0, Line::new(format!("[pools.{}]", key(&name))));
        self.blocks.push(Block {
            about: note(table.name.place, format!("table <{}>", table.name.value)),
            notes: own,
            lines,
            pools: vec![name.clone()],
            is_pool: true,
            taken_back: false,
        });
        name
    }

    /// The line with the check.
    fn check(&self, target: &Target, ports: &Ports, notes: &mut Vec<Note>) -> String {
        let table = &self.document.tables[target.table];
        let written = checks::write(&target.check.value, ports.check);
        notes.extend(written.notes.into_iter().map(|text| note(target.check.place, text)));
        let mut line = format!("check = {{ type = \"{}\"", written.kind);
        for (key, value) in &written.keys {
            let _ = write!(line, ", {key} = {value}");
        }
        if written.kind != "icmp" && ports.name_check_port {
            let _ = write!(line, ", port = {}", ports.check);
        }
        let timeout = target.timeout.unwrap_or(table.timeout).max(1);
        let timeout =
            if timeout.is_multiple_of(1000) { seconds(timeout / 1000) } else { format!("\"{timeout}ms\"") };
        let _ = write!(
            line,
            ", interval = {}, timeout = {timeout}, rise = 1, fall = {} }}",
            seconds(target.interval),
            retries(table).saturating_add(1).min(1000)
        );
        line
    }

    /// A line of the list of backends.
    fn backend(
        &self,
        host: &Host,
        port: Option<u16>,
        disabled: bool,
        notes: &mut Vec<Note>,
    ) -> Option<String> {
        let Host { name, parent, priority, ttl, .. } = host;
        for (place, text) in [
            (parent, "parent: each server is checked by itself; equal checks of one server are made once"),
            (priority, "priority: it is for routers, and means nothing here"),
            (ttl, "ip ttl: checks are sent with the host's usual TTL"),
        ] {
            if let Some(place) = place {
                notes.push(note(*place, text));
            }
        }
        let literal = name.value.parse::<IpAddr>().ok();
        if literal.is_none() && !is_name(&name.value) {
            let text =
                format!("host {}: left out, as it is no host name; write the address itself", name.value);
            notes.push(note(name.place, text));
            return None;
        }
        if literal.is_none() {
            let text = format!(
                "host {}: all its addresses are servers, and it is asked for again when they may have changed; relayd \
                 uses the first that it has at the start",
                name.value
            );
            notes.push(note(name.place, text));
        }
        if !disabled {
            let whole = match (literal, port) {
                (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
                (Some(address), None) => address.to_string(),
                (None, Some(port)) => format!("{}:{port}", name.value),
                (None, None) => name.value.clone(),
            };
            return Some(format!("  {},", quoted(&whole)));
        }
        let mut line = String::from("  { ");
        let _ = match literal {
            Some(address) => write!(line, "address = {}", quoted(&address.to_string())),
            None => write!(line, "host = {}", quoted(&name.value)),
        };
        if let Some(port) = port {
            let _ = write!(line, ", port = {port}");
        }
        if disabled {
            line.push_str(", enabled = false");
        }
        line.push_str(" },");
        Some(line)
    }
}

/// Of all hosts, as all are checked alike.
fn retries(table: &Table) -> u32 {
    table.hosts.iter().map(|host| host.retry).max().unwrap_or_default()
}

fn differing_retries(table: &Table) -> Option<Note> {
    let retry = retries(table);
    table.hosts.iter().any(|host| host.retry != retry).then(|| {
        let text =
            format!("retry: differs between hosts, and all are checked alike; the largest, {retry}, holds");
        note(table.name.place, text)
    })
}

/// Which ports packets and checks go to.
struct Ports {
    /// That of the servers, where it is not what the client used.
    server: Option<u16>,
    /// That relayd checks.
    check: u16,
    /// Matapa would check another one.
    name_check_port: bool,
    /// Some listeners keep their port in relayd, others do not.
    unequal: bool,
}

impl Ports {
    /// relayd rewrites the port for single listeners always, to that of the first one unless another is given, and for
    /// ranges if one is given. With `route to` nothing is rewritten.
    fn of(redirect: &Redirect, target: &Target) -> Self {
        let first = redirect.listeners.first().map_or(0, |listener| listener.first);
        let check = target.port.unwrap_or(first);
        let has_range = redirect.listeners.iter().any(Listener::is_range);
        let all_equal = redirect.listeners.iter().all(|one| (one.first, one.last) == (check, check));
        let singles_differ = redirect.listeners.iter().any(|one| !one.is_range() && one.first != check);
        let (server, unequal) = if target.route || all_equal {
            (None, false)
        } else if target.port.is_some() || !has_range {
            (Some(check), false)
        } else {
            (None, singles_differ)
        };
        let only_tcp = redirect.listeners.iter().all(|listener| listener.protocol == "tcp");
        let checked_anyway = server.is_some() || redirect.listeners.iter().all(|one| one.first == check);
        Self { server, check, name_check_port: !only_tcp || !checked_anyway, unequal }
    }
}

fn scheduler(target: &Target, notes: &mut Vec<Note>) -> &'static str {
    if let Some(place) = target.key {
        let text = "the key of the hash: `cluster.seed_file` has two gateways choose alike, for all services";
        notes.push(note(place, text));
    }
    let Some(mode) = &target.mode else { return "round-robin" };
    match mode.value {
        Mode::RoundRobin => "round-robin",
        Mode::Random => "random",
        Mode::LeastStates => "least-connections",
        Mode::SourceHash => "source-hash",
        Mode::LoadBalance => {
            notes.push(note(
                mode.place,
                "mode loadbalance: relayd has it for relays only; source-hash stands here",
            ));
            "source-hash"
        }
        Mode::Hash => {
            notes.push(note(mode.place, "mode hash: relayd has it for relays only; maglev stands here"));
            "maglev"
        }
    }
}

/// Seconds.
fn session_timeout(redirect: &Redirect, notes: &mut Vec<Note>) -> u64 {
    let Some(timeout) = &redirect.session_timeout else { return SESSION_TIMEOUT };
    let clamped = timeout.value.clamp(*SESSION_TIMEOUTS.start(), *SESSION_TIMEOUTS.end());
    if clamped != timeout.value {
        let text = format!("session timeout {}: Matapa takes 1 to 43200 seconds", timeout.value);
        notes.push(note(timeout.place, text));
    }
    clamped
}

/// A duration as the loader takes it; nothing shorter than its shortest.
fn seconds(seconds: u64) -> String {
    match seconds {
        0 => "\"100ms\"".to_owned(),
        s if s % 3600 == 0 => format!("\"{}h\"", s / 3600),
        s if s % 60 == 0 => format!("\"{}m\"", s / 60),
        s => format!("\"{s}s\""),
    }
}

/// A key, in quotes if it must be.
fn key(name: &str) -> String {
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn note(place: Place, text: impl Into<String>) -> Note {
    Note { place, text: text.into() }
}
