//! `[cluster]`: what this gateway has in common with the other one.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::diagnostics::Errors;
use super::document::{self, Entry, Known};
use super::known_keys::Place;
use super::values::{self, quote};
use super::{carp, general};

/// Not registered for anything else (IANA).
const DEFAULT_PORT: u32 = 9754;
const DEFAULT_INTERVAL: Duration = Duration::from_millis(50);
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);

/// Everything in it may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The seed of the flows' hash, so that all gateways choose the same backends.
    pub seed_file: Option<PathBuf>,
    pub sync: Option<Sync>,
}

/// Flow synchronisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    pub interface: String,
    /// The other gateway.
    pub peer: IpAddr,
    /// UDP, of both. Default 9754.
    pub port: u16,
    /// 32 bytes in hexadecimal.
    pub key_file: PathBuf,
    /// Between two looks at the flow table. Default 50 ms.
    pub interval: Duration,
}

/// For `matapa check`.
pub(super) fn write(out: &mut String, cluster: &Cluster) -> fmt::Result {
    if let Some(seed) = &cluster.seed_file {
        writeln!(out, "backends are chosen with the seed in {}", seed.display())?;
    }
    if let Some(sync) = &cluster.sync {
        writeln!(
            out,
            "flows are synchronised with {} (UDP port {}) by {}, every {}",
            sync.peer,
            sync.port,
            sync.interface,
            values::show_duration(sync.interval)
        )?;
    }
    Ok(())
}

/// `[cluster]`, which may be absent.
pub(super) fn read(errors: &mut Errors, entry: Option<Entry<'_>>) -> Cluster {
    let mut cluster = Cluster::default();
    let Some(entry) = entry else { return cluster };
    let Some(table) = entry.value.get_ref().as_table() else {
        let help = "write `[cluster]` and below it `seed_file = \"/etc/matapa/seed\"`";
        document::mismatch(errors, "cluster", "a table", entry.value, help);
        return cluster;
    };
    let known = Known::read(errors, Place::Cluster, table);
    cluster.seed_file = known.get("seed_file").and_then(|entry| read_path(errors, entry, "/etc/matapa/seed"));
    cluster.sync = known.get("sync").and_then(|entry| read_sync(errors, entry));
    cluster
}

fn read_sync(errors: &mut Errors, entry: Entry<'_>) -> Option<Sync> {
    let help =
        "write `sync = { interface = \"eth2\", peer = \"10.0.0.2\", key_file = \"/etc/matapa/sync.key\" }`";
    let Some(table) = entry.value.get_ref().as_table() else {
        document::mismatch(errors, "sync", "a table", entry.value, help);
        return None;
    };
    let known = Known::read(errors, Place::Sync, table);
    for key in ["interface", "peer", "key_file"] {
        if known.lacks(key) {
            errors.absent(entry.key.span, format!("`sync` has no `{key}`")).help(help);
        }
    }
    let interface = known.get("interface").and_then(|entry| {
        let text = document::text(errors, "interface", entry.value, "the name of an interface", help)?;
        if let Some(wrong) = general::wrong_interface(text.value) {
            errors.at(text.span, wrong).help("`ip link` lists the interfaces of this machine");
            return None;
        }
        Some(text.value.to_owned())
    });
    let peer = known.get("peer").and_then(|entry| {
        let text = document::text(errors, "peer", entry.value, "an address in quotes", help)?;
        let peer = text.value.parse().ok().filter(|peer| carp::unusable(*peer).is_none());
        if peer.is_none() {
            let error = errors.at(text.span, format!("{} is no address of a gateway", quote(text.value)));
            error.help("write the other gateway's address on that interface, such as `peer = \"10.0.0.2\"`");
        }
        peer
    });
    let key_file = known.get("key_file").and_then(|entry| read_path(errors, entry, "/etc/matapa/sync.key"));
    let port = match known.get("port") {
        Some(entry) => document::integer(errors, entry, 1..=65_535),
        None => Some(DEFAULT_PORT),
    };
    let interval = match known.get("interval") {
        Some(entry) => values::duration(errors, entry, &INTERVALS).map(|interval| interval.value),
        None => Some(DEFAULT_INTERVAL),
    };
    Some(Sync {
        interface: interface?,
        peer: peer?,
        port: u16::try_from(port?).ok()?,
        key_file: key_file?,
        interval: interval?,
    })
}

fn read_path(errors: &mut Errors, entry: Entry<'_>, example: &str) -> Option<PathBuf> {
    let key = entry.key.value;
    let help = format!("write `{key} = \"{example}\"`");
    let text = document::text(errors, key, entry.value, "a path in quotes", &help)?;
    if !text.value.starts_with('/') || text.value.contains('\0') {
        errors.at(text.span, format!("`{key}` is no absolute path: {}", quote(text.value))).help(help);
        return None;
    }
    Some(PathBuf::from(text.value))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;

    const GOOD: &str = r#"
[cluster]
seed_file = "/etc/matapa/seed"
sync = { interface = "eth2", peer = "10.0.0.2", key_file = "/etc/matapa/sync.key" }
[carp.mail]
interface = "eth0"
vhid = 10
addresses = ["203.0.113.10/24"]
password = "love"
"#;

    #[test]
    fn a_pair_of_gateways() {
        let cluster = parse(GOOD, Path::new("m.toml")).unwrap().cluster;
        let sync = cluster.sync.unwrap();
        assert_eq!(cluster.seed_file, Some(PathBuf::from("/etc/matapa/seed")));
        assert_eq!((sync.port, sync.interval), (9754, Duration::from_millis(50)));
        assert_eq!((sync.interface.as_str(), sync.peer), ("eth2", [10, 0, 0, 2].into()));
    }

    #[test]
    fn each_mistake_is_told() {
        for (from, to, expected) in [
            ("interface = \"eth2\", ", "", "`sync` has no `interface`"),
            ("peer = \"10.0.0.2\", ", "", "`sync` has no `peer`"),
            (", key_file = \"/etc/matapa/sync.key\"", "", "`sync` has no `key_file`"),
            ("\"10.0.0.2\"", "\"224.0.0.1\"", "no address of a gateway"),
            ("\"/etc/matapa/sync.key\"", "\"sync.key\"", "no absolute path"),
            ("\"/etc/matapa/seed\"", "\"seed\"", "no absolute path"),
            ("peer =", "interval = \"0ms\", peer =", "`interval` is out of range"),
            ("peer =", "port = 0, peer =", "`port` is out of range"),
            ("peer =", "pear = 1, peer =", "did you mean `peer`?"),
        ] {
            let lines =
                parse(&GOOD.replacen(from, to, 1), Path::new("m.toml")).unwrap_err().lines().join("\n");
            assert!(lines.contains(expected), "{to}: {lines}");
        }
    }
}
