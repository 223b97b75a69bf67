//! A configuration in words, for `matapa check`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use super::forwarding::rewrites;
use super::services::DEFAULT_NEW_FLOW_LIMIT;
use super::values::{clip, quote, show_duration};
use super::{
    Backend, Check, Config, Control, Flows, Forward, Host, OnDown, Pool, Probe, Quorum, RCODES, Resolver,
    Service, Smtp, WhenEmpty,
};

/// Says in a few lines what a configuration does: equal configurations give equal text.
pub fn explain(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_config(&mut text, config);
    text
}

fn write_config(out: &mut String, config: &Config) -> std::fmt::Result {
    let listeners: usize = config.services.iter().map(|service| service.listen.len()).sum();
    let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    let hosts: usize = config.pools.iter().map(|pool| pool.hosts.len()).sum();
    writeln!(
        out,
        "{} with {} and {}, on {} {} (XDP mode {})",
        count(config.services.len(), "service"),
        count(listeners, "listener"),
        servers(backends, hosts),
        if config.interfaces.len() == 1 { "interface" } else { "interfaces" },
        config.interfaces.join(", "),
        config.xdp_mode
    )?;
    if let Some(time) = config.forward_without_daemon {
        writeln!(out, "without a daemon, packets are forwarded for {}", show_duration(time))?;
    }
    let metrics = match config.control.metrics {
        Some(address) => format!("metrics on http://{address}/metrics"),
        None => "no metrics".to_owned(),
    };
    let of =
        |group: &Option<String>| group.as_ref().map(|name| format!(" (group {name})")).unwrap_or_default();
    let Control { socket, group, read_only_socket, read_only_group, metrics: _ } = &config.control;
    writeln!(out, "control socket {}{}, {metrics}", socket.display(), of(group))?;
    if let Some(socket) = read_only_socket {
        writeln!(out, "read-only socket {}{}", socket.display(), of(read_only_group))?;
    }
    for carp in &config.carp {
        super::carp::write(out, carp)?;
    }
    super::cluster::write(out, &config.cluster)?;
    write_flows(out, &config.flows)?;
    if config.services.iter().any(|service| matches!(service.forward, Forward::Ipip | Forward::Gue)) {
        let tunnel = &config.tunnel;
        writeln!(out, "tunnels have their sources in {} and {}", tunnel.source4, tunnel.source6)?;
    }
    if hosts > 0 {
        write_resolver(out, &config.resolver)?;
    }
    for service in &config.services {
        let Some(pool) = config.pools.get(service.pool) else { continue };
        write_service(out, service, pool, service.backup.and_then(|index| config.pools.get(index)))?;
    }
    Ok(())
}

/// Bytes of a flow: its word, and its tuple for those who list it.
const FLOW_BYTES: u64 = 8 + 32;

pub(super) fn write_flows(out: &mut String, flows: &Flows) -> std::fmt::Result {
    let places = flows.capacity.next_power_of_two();
    let kib = u64::from(places) * FLOW_BYTES / 1024;
    let size = if kib.is_multiple_of(1024) { format!("{} MiB", kib / 1024) } else { format!("{kib} KiB") };
    let rounded = if places == flows.capacity {
        String::new()
    } else {
        format!(" (capacity {}, rounded up to a power of two)", flows.capacity)
    };
    writeln!(
        out,
        "flow table of {size} for {places} flows{rounded}; idle ones are forgotten: \
         opening {}, closing {}, closed {}, udp {}",
        show_duration(flows.opening),
        show_duration(flows.closing),
        show_duration(flows.closed),
        show_duration(flows.datagram)
    )
}

/// `backup`: the pool of that name, if the service has one.
pub(super) fn write_service(
    out: &mut String,
    service: &Service,
    pool: &Pool,
    backup: Option<&Pool>,
) -> std::fmt::Result {
    let disabled = if service.enabled { "" } else { ", disabled: it takes no new connections" };
    writeln!(out, "\nservice {}{disabled}", service.name)?;
    let listen: Vec<String> = service.listen.iter().map(ToString::to_string).collect();
    writeln!(out, "  listens on  {}", listen.join(", "))?;
    writeln!(
        out,
        "  forwards    by {}, {} picks the backend, idle connections are forgotten after {}",
        service.forward,
        service.scheduler,
        show_duration(service.session_timeout)
    )?;
    write_forward(out, service)?;
    // With the other modes there never is one.
    if !service.second_chance && rewrites(service.forward) {
        writeln!(
            out,
            "  a repeated attempt to connect stays with its silent backend (second_chance = false)"
        )?;
    }
    if let Some(sticky) = service.sticky {
        let sticky = show_duration(sticky);
        writeln!(
            out,
            "  sticky      a client's new connections follow its earlier ones, until {sticky} without any"
        )?;
    }
    if service.new_flow_limit != DEFAULT_NEW_FLOW_LIMIT {
        let limit = service.new_flow_limit;
        writeln!(
            out,
            "  limit       {limit} new flows a second are recorded; the rest goes by the scheduler's table"
        )?;
    }
    match service.when_empty {
        WhenEmpty::Drop => {}
        WhenEmpty::Reset => writeln!(out, "  when empty  new connections are refused at once")?,
        WhenEmpty::Pass => writeln!(out, "  when empty  new connections are left to this machine")?,
    }
    write_pool(out, "pool  ", pool)?;
    let Some(backup) = backup else { return Ok(()) };
    let hold = match service.backup_hold {
        Duration::ZERO => String::new(),
        hold => format!(", and until it has been there again for {}", show_duration(hold)),
    };
    writeln!(out, "  while nothing of pool {} can be used{hold}:", pool.name)?;
    write_pool(out, "backup", backup)
}

pub(super) fn write_pool(out: &mut String, role: &str, pool: &Pool) -> std::fmt::Result {
    match &pool.check {
        Some(check) => write_check(out, check)?,
        None => writeln!(out, "  checks      nothing: backends are taken as up")?,
    }
    let on_down = match pool.on_down {
        OnDown::Reset => "its connections are reset",
        OnDown::Keep => "its connections are kept",
    };
    writeln!(out, "  on down     {on_down}")?;
    if pool.quorum != Quorum::default() {
        let Quorum { weight, hysteresis } = pool.quorum;
        let more = if hysteresis == 0 { String::new() } else { format!(", hysteresis {hysteresis}") };
        writeln!(out, "  quorum      used only while backends with weight {weight} in all are up{more}")?;
    }
    if pool.slow_start != Duration::ZERO {
        let time = show_duration(pool.slow_start);
        writeln!(out, "  slow start  a backend that comes up has its whole share after {time}")?;
    }
    writeln!(out, "  {role}      {}, {}", pool.name, servers(pool.backends.len(), pool.hosts.len()))?;
    let rows: Vec<Row<'_>> =
        pool.backends.iter().map(Row::of_backend).chain(pool.hosts.iter().map(Row::of_host)).collect();
    let names = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    let targets = rows.iter().map(|row| row.target.len()).max().unwrap_or_default();
    let gap = if targets == 0 { "" } else { "  " };
    let priorities = rows.iter().any(|row| row.priority != 0);
    for Row { name, target, weight, priority, max_connections, enabled } in rows {
        let weight = match weight {
            0 => "weight 0 (no new connections)".to_owned(),
            weight => format!("weight {weight}"),
        };
        let priority = if priorities { format!(", priority {priority}") } else { String::new() };
        let most = max_connections.map(|most| format!(", at most {most} connections")).unwrap_or_default();
        let disabled = if enabled { "" } else { ", disabled" };
        writeln!(out, "    {name:names$}{gap}{target:targets$}  {weight}{priority}{most}{disabled}")?;
    }
    Ok(())
}

/// A line of a pool.
struct Row<'a> {
    name: &'a str,
    target: String,
    weight: u16,
    priority: u8,
    max_connections: Option<u32>,
    enabled: bool,
}

impl<'a> Row<'a> {
    fn of_backend(backend: &'a Backend) -> Self {
        let Backend { name, weight, priority, max_connections, enabled, .. } = backend;
        // An unnamed backend's name is where it is.
        let target = Some(show_target(backend)).filter(|target| target != name).unwrap_or_default();
        let (weight, priority, max_connections, enabled) = (*weight, *priority, *max_connections, *enabled);
        Self { name, target, weight, priority, max_connections, enabled }
    }

    fn of_host(host: &'a Host) -> Self {
        let Host { name, weight, priority, max_connections, enabled, .. } = host;
        let (weight, priority, max_connections, enabled) = (*weight, *priority, *max_connections, *enabled);
        Self { name, target: show_host(host), weight, priority, max_connections, enabled }
    }
}

fn servers(backends: usize, hosts: usize) -> String {
    match (backends, hosts) {
        (_, 0) => count(backends, "backend"),
        (0, _) => count(hosts, "host name"),
        _ => format!("{} and {}", count(backends, "backend"), count(hosts, "host name")),
    }
}

pub(super) fn write_resolver(out: &mut String, resolver: &Resolver) -> std::fmt::Result {
    let servers: Vec<String> = resolver.servers.iter().map(ToString::to_string).collect();
    let servers =
        if servers.is_empty() { "those of /etc/resolv.conf".to_owned() } else { servers.join(", ") };
    let [least, most] = [resolver.min_ttl, resolver.max_ttl].map(show_duration);
    writeln!(out, "host names are resolved by {servers}, again when their TTL is over ({least} to {most})")
}

pub(super) fn show_host(host: &Host) -> String {
    let port = host.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let families = match (host.families.v4, host.families.v6) {
        (true, true) => "all addresses",
        (true, false) => "IPv4 addresses",
        (false, true) => "IPv6 addresses",
        (false, false) => "no addresses, as no listener uses them,",
    };
    format!("{families} of {}{port}", host.host)
}

/// What is particular to the mode.
fn write_forward(out: &mut String, service: &Service) -> std::fmt::Result {
    const STRAIGHT: &str = "answers go straight from the backend to the client";
    match service.forward {
        Forward::Nat => Ok(()),
        Forward::Snat => {
            let Some(snat) = &service.snat else { return Ok(()) };
            let addresses: Vec<String> = snat.addresses.iter().map(ToString::to_string).collect();
            let addresses = addresses.join(", ");
            writeln!(out, "  sources     {addresses}, ports {}-{}", snat.first_port, snat.last_port)
        }
        Forward::Dsr => writeln!(out, "  unchanged   the backend has the service's address; {STRAIGHT}"),
        Forward::Ipip => writeln!(out, "  in tunnels  of IP in IP; {STRAIGHT}"),
        Forward::Gue => writeln!(out, "  in tunnels  to UDP port {}; {STRAIGHT}", service.gue_port),
    }
}

fn write_check(out: &mut String, check: &Check) -> std::fmt::Result {
    let port = check.port.map(|port| format!(" port {port}")).unwrap_or_default();
    writeln!(
        out,
        "  checks      {}{port} every {}, timeout {}; up after {}, down after {}",
        check.kind(),
        show_duration(check.interval),
        show_duration(check.timeout),
        count(check.rise as usize, "success"),
        count(check.fall as usize, "failure"),
    )?;
    if let Some(fast) = check.fast_interval {
        writeln!(out, "              every {} while a change is in sight", show_duration(fast))?;
    }
    if let Some(down) = check.down_interval {
        writeln!(out, "              every {} while down", show_duration(down))?;
    }
    let sources: Vec<String> = check
        .source4
        .iter()
        .map(ToString::to_string)
        .chain(check.source6.iter().map(ToString::to_string))
        .collect();
    if !sources.is_empty() {
        writeln!(out, "              from {}", sources.join(" and "))?;
    }
    if check.via_vip {
        writeln!(
            out,
            "              and the VIP must answer on each server, by the way of clients' packets"
        )?;
    }
    if check.jitter != Check::of(Probe::Tcp).jitter {
        writeln!(out, "              {} % earlier or later, by chance", check.jitter)?;
    }
    write_probe(out, &check.probe)
}

/// What is asked, and what is a good answer.
fn write_probe(out: &mut String, probe: &Probe) -> std::fmt::Result {
    match probe {
        Probe::Tcp | Probe::Tls(_) | Probe::Icmp | Probe::Smtp(Smtp::Plain) => {}
        Probe::Smtp(Smtp::StartTls(_)) => writeln!(out, "              with STARTTLS")?,
        Probe::Smtp(Smtp::Tls(_)) => writeln!(out, "              over TLS")?,
        Probe::Http(http) => {
            let host = http.host.as_ref().map(|host| format!(" of {host}")).unwrap_or_default();
            let status: Vec<String> = http.status.iter().map(|range| show_range(*range)).collect();
            let body =
                http.body.as_ref().map(|text| format!(", {} in the body", quote(text))).unwrap_or_default();
            let (method, path, status) = (http.method, clip(&http.path), status.join(", "));
            writeln!(out, "              {method} {path}{host}: status {status}{body}")?;
        }
        Probe::SendExpect(dialogue) => {
            for step in &dialogue.steps {
                let sends = (!step.send.is_empty())
                    .then(|| format!("send {}", quote(&String::from_utf8_lossy(&step.send))));
                let expects =
                    step.expect.as_ref().map(|pattern| format!("expect {}", quote(&pattern.written)));
                let both: Vec<String> = sends.into_iter().chain(expects).collect();
                writeln!(out, "              {}", both.join(", "))?;
            }
        }
        Probe::Dns(dns) => {
            let rcodes: Vec<&str> =
                dns.rcodes.iter().filter_map(|code| RCODES.get(usize::from(*code)).copied()).collect();
            let answer = dns.answer.as_ref().map(|text| format!(" with {}", quote(text))).unwrap_or_default();
            let transport = if dns.tcp { "TCP" } else { "UDP" };
            let (query, record, rcodes) = (clip(&dns.query), &dns.record, rcodes.join(" or "));
            writeln!(out, "              {query} {record} over {transport}: {rcodes}{answer}")?;
        }
        Probe::Exec(exec) => {
            let user = exec.user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
            writeln!(out, "              runs {}{user}", clip(&exec.command.join(" ")))?;
        }
    }
    let Some(tls) = probe.tls() else { return Ok(()) };
    let host = match probe {
        Probe::Http(http) => http.host.as_deref(),
        _ => None,
    };
    let name = tls.server_name.as_deref().or(host).map_or_else(|| "the server's address".to_owned(), clip);
    let verified = if tls.verify {
        let authority = match &tls.ca_file {
            Some(file) => format!("authorities in {}", file.display()),
            None => "the system's authorities".to_owned(),
        };
        format!("certificate must be for {name}, by {authority}")
    } else {
        "any certificate will do".to_owned()
    };
    let warning = match tls.expiry_warning_days {
        0 => "no warning of its end".to_owned(),
        days => format!("warning {} before its end", count(days as usize, "day")),
    };
    writeln!(out, "              {verified}; {warning}")
}

fn show_range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

pub(super) fn show_target(backend: &Backend) -> String {
    match backend.port {
        Some(port) => SocketAddr::new(backend.address, port).to_string(),
        None => backend.address.to_string(),
    }
}

fn count(number: usize, noun: &str) -> String {
    let plural = match noun {
        _ if number == 1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {noun}{plural}")
}
