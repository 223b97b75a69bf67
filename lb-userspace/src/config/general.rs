//! Reading what is neither pool nor service: interfaces, attachment, control, the flow table, tunnels.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::diagnostics::{At, Errors, Span};
use super::document::{self, Entry, Known};
use super::known_keys::Place;
use super::values::{self, quote};
use super::{Control, Flows, Prefix, Tunnel, XdpMode};

const DEFAULT_SOCKET: &str = "/run/matapa/control.sock";
/// Where the command line looks for it. Nothing listens there unless the file says so.
const DEFAULT_READ_ONLY_SOCKET: &str = "/run/matapa/read-only.sock";
/// `LOGIN_NAME_MAX`, which useradd and its like keep to.
const LONGEST_GROUP: usize = 256;
/// `sun_path` without its final NUL.
const LONGEST_SOCKET: usize = 107;
/// `IFNAMSIZ` without its final NUL.
const LONGEST_INTERFACE: usize = 15;
/// Flows. The most take 2.5 GiB.
const FLOW_CAPACITIES: RangeInclusive<u32> = 1024..=64 << 20;
/// The table's clock has ticks of about a second, and wraps after 18 hours.
const FLOW_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(12 * 3600);
/// The daemon says once a second that it is alive, and may be busy for a while; a restart takes a second or two.
const WITHOUT_DAEMON: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(7 * 24 * 3600);
/// Instead of a duration.
pub(super) const FOREVER: &str = "forever";
/// Shorter prefixes would take in addresses that are somebody else's.
const SOURCE4_LENGTHS: RangeInclusive<u8> = 8..=32;
const SOURCE6_LENGTHS: RangeInclusive<u8> = 16..=128;

/// `interfaces`
pub(super) fn read_interfaces(errors: &mut Errors, entry: Entry<'_>) -> Vec<String> {
    let help = "write a list of interface names, as in [\"eth0\", \"eth1\"]";
    let expected = "a list of interface names";
    let mut interfaces: Vec<At<&str>> = Vec::new();
    for item in document::list(errors, entry, expected, help) {
        let Some(name) = document::text(errors, "interfaces", item, expected, help) else { continue };
        if let Some(first) = interfaces.iter().find(|first| first.value == name.value) {
            let error = errors.at(name.span, format!("interface {} is listed twice", quote(name.value)));
            error.related(first.span, "first here").help("remove one of the two");
        } else if let Some(wrong) = wrong_interface(name.value) {
            errors.at(name.span, wrong).help("`ip link` lists the interfaces of this machine");
        }
        interfaces.push(name);
    }
    interfaces.into_iter().map(|name| name.value.to_owned()).collect()
}

/// The kernel's own rules (`dev_valid_name`).
pub(super) fn wrong_interface(name: &str) -> Option<String> {
    let shown = quote(name);
    if name.is_empty() {
        Some("an interface name is empty".to_owned())
    } else if name.len() > LONGEST_INTERFACE {
        Some(format!("interface name {shown} is longer than {LONGEST_INTERFACE} characters"))
    } else if name == "." || name == ".." {
        Some(format!("interface name {shown} is no name"))
    } else {
        let wrong = |c: &char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
        let c = name.chars().find(wrong)?;
        Some(format!("interface name {shown} contains \"{}\"", c.escape_debug()))
    }
}

/// `xdp_mode`
pub(super) fn read_xdp_mode(errors: &mut Errors, entry: Entry<'_>) -> XdpMode {
    match document::word(errors, Place::XdpMode, entry, "write \"auto\", \"native\" or \"generic\"") {
        Some("native") => XdpMode::Native,
        Some("generic") => XdpMode::Generic,
        _ => XdpMode::Auto,
    }
}

/// `forward_without_daemon`
pub(super) fn read_forward_without_daemon(errors: &mut Errors, entry: Entry<'_>) -> Option<Duration> {
    let is_forever = entry.value.get_ref().as_str() == Some(FOREVER);
    if is_forever { None } else { Some(values::duration(errors, entry, &WITHOUT_DAEMON)?.value) }
}

/// `[control]`, which may be absent.
pub(super) fn read_control(errors: &mut Errors, entry: Option<Entry<'_>>) -> Control {
    let mut control = Control {
        socket: PathBuf::from(DEFAULT_SOCKET),
        group: None,
        read_only_socket: None,
        read_only_group: None,
        metrics: None,
    };
    let Some(entry) = entry else { return control };
    let Some(table) = entry.value.get_ref().as_table() else {
        let help = format!("write `[control]` and below it `socket = \"{DEFAULT_SOCKET}\"`");
        document::mismatch(errors, "control", "a table", entry.value, &help);
        return control;
    };
    let known = Known::read(errors, Place::Control, table);
    if let Some(socket) = known.get("socket").and_then(|entry| read_socket(errors, entry, DEFAULT_SOCKET)) {
        control.socket = socket;
    }
    control.group = known.get("group").and_then(|entry| read_group(errors, entry));
    let read_only = known.get("read_only_socket");
    control.read_only_socket =
        read_only.and_then(|entry| read_socket(errors, entry, DEFAULT_READ_ONLY_SOCKET));
    if let Some(entry) = read_only.filter(|_| control.read_only_socket.as_ref() == Some(&control.socket)) {
        let error = errors.at(entry.span(), "`read_only_socket` is the path of `socket`");
        error.help(format!("give it a path of its own, such as \"{DEFAULT_READ_ONLY_SOCKET}\""));
    }
    if let Some(entry) = known.get("read_only_group") {
        control.read_only_group = read_group(errors, entry);
        if known.lacks("read_only_socket") {
            let error = errors.at(entry.key.span, "`read_only_group` has no socket to be for");
            error.help(format!("add `read_only_socket = \"{DEFAULT_READ_ONLY_SOCKET}\"`, or remove it"));
        }
    }
    control.metrics = known.get("metrics").and_then(|entry| read_metrics(errors, entry));
    control
}

/// The name of a group, or its number. Whether there is one is seen when the socket is made: another machine may check
/// the file.
fn read_group(errors: &mut Errors, entry: Entry<'_>) -> Option<String> {
    let key = entry.key.value;
    let help = format!("write the name of a group, such as `{key} = \"adm\"`; `getent group` lists them");
    let text = document::text(errors, key, entry.value, "the name of a group in quotes", &help)?;
    let wrong = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | ',' | '/');
    if text.value.is_empty() || text.value.len() > LONGEST_GROUP || text.value.contains(wrong) {
        errors.at(text.span, format!("`{key}` is no name of a group: {}", quote(text.value))).help(help);
        return None;
    }
    Some(text.value.to_owned())
}

fn read_socket(errors: &mut Errors, entry: Entry<'_>, example: &str) -> Option<PathBuf> {
    let help = format!("write an absolute path, such as \"{example}\"");
    let text = document::text(errors, entry.key.value, entry.value, "a path in quotes", &help)?;
    if text.value.len() > LONGEST_SOCKET {
        let wrong = format!("the control socket's path has {} bytes", text.value.len());
        let help = format!("write a path of at most {LONGEST_SOCKET} bytes, such as \"{example}\"");
        errors.at(text.span, wrong).help(help);
        return None;
    }
    let wrong = if !text.value.starts_with('/') {
        format!("control socket {} is no absolute path", quote(text.value))
    } else if text.value.ends_with('/') || text.value.contains('\0') {
        format!("control socket {} is no file name", quote(text.value))
    } else {
        return Some(PathBuf::from(text.value));
    };
    errors.at(text.span, wrong).help(help);
    None
}

fn read_metrics(errors: &mut Errors, entry: Entry<'_>) -> Option<SocketAddr> {
    let help = "write an address of this machine and a port, such as \"127.0.0.1:9753\" or \"[::1]:9753\"";
    let text = document::text(errors, "metrics", entry.value, "an address and port in quotes", help)?;
    match text.value.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => return Some(address),
        Ok(_) => errors.at(text.span, "`metrics` needs a port other than 0"),
        Err(_) => errors.at(text.span, format!("`metrics` is no address and port: {}", quote(text.value))),
    }
    .help(help);
    None
}

/// `[flows]`, which may be absent.
pub(super) fn read_flows(errors: &mut Errors, entry: Option<Entry<'_>>) -> Flows {
    let mut flows = Flows::default();
    let Some(entry) = entry else { return flows };
    let Some(table) = entry.value.get_ref().as_table() else {
        let help = "write `[flows]` and below it `capacity = 1048576`";
        document::mismatch(errors, "flows", "a table", entry.value, help);
        return flows;
    };
    let known = Known::read(errors, Place::Flows, table);
    if let Some(entry) = known.get("capacity") {
        flows.capacity = document::integer(errors, entry, FLOW_CAPACITIES).unwrap_or(flows.capacity);
    }
    for (key, timeout) in [
        ("opening", &mut flows.opening),
        ("closing", &mut flows.closing),
        ("closed", &mut flows.closed),
        ("udp", &mut flows.datagram),
    ] {
        let given = known.get(key).and_then(|entry| values::duration(errors, entry, &FLOW_TIMEOUTS));
        *timeout = given.map_or(*timeout, |at| at.value);
    }
    flows
}

/// `[tunnel]`, which may be absent.
pub(super) fn read_tunnel(errors: &mut Errors, entry: Option<Entry<'_>>) -> Tunnel {
    let mut tunnel = Tunnel::default();
    let Some(entry) = entry else { return tunnel };
    let Some(table) = entry.value.get_ref().as_table() else {
        let help = format!("write `[tunnel]` and below it `source4 = \"{}\"`", tunnel.source4);
        document::mismatch(errors, "tunnel", "a table", entry.value, &help);
        return tunnel;
    };
    let known = Known::read(errors, Place::Tunnel, table);
    if let Some(entry) = known.get("source4") {
        tunnel.source4 = read_source(errors, entry, tunnel.source4, &SOURCE4_LENGTHS);
    }
    if let Some(entry) = known.get("source6") {
        tunnel.source6 = read_source(errors, entry, tunnel.source6, &SOURCE6_LENGTHS);
    }
    tunnel
}

/// A network of the same family as `default`.
fn read_source(
    errors: &mut Errors,
    entry: Entry<'_>,
    default: Prefix,
    lengths: &RangeInclusive<u8>,
) -> Prefix {
    let key = entry.key.value;
    let example = default.to_string();
    let help = format!("write `{key} = \"{example}\"`");
    document::text(errors, key, entry.value, "a network in quotes", &help)
        .and_then(|text| values::prefix(errors, text, default.address.is_ipv6(), lengths, &example))
        .unwrap_or(default)
}

/// Reports that `interfaces` is absent. There is no place for what is not there: the file's beginning stands for it.
pub(super) fn no_interfaces(errors: &mut Errors) {
    let error = errors.absent(Span::default(), "`interfaces` is missing");
    error.help(
        "add `interfaces = [\"eth0\"]` as the first line, \
         with the interfaces that clients and servers are behind",
    );
}

/// Reports that there are no services.
pub(super) fn no_services(errors: &mut Errors, span: Span) {
    let error = errors.absent(span, "there are no services: nothing to do");
    error.help(
        "add `[services.NAME]` with `listen = \"203.0.113.10:25\"` and `backends = [\"198.51.100.11\"]`",
    );
}
