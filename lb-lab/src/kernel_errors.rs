//! What the kernel of a machine found wrong with the packets it got: `nstat`'s figures, from their source.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// Counts of wrong checksums and broken headers in `netns` that are not zero, by name.
///
/// # Errors
/// When /proc cannot be read.
pub fn of(netns: &Netns) -> Result<BTreeMap<String, u64>> {
    // The thread that looks must be the one that entered: /proc/net follows the main thread.
    let read = |name: &'static str| {
        let path = format!("/proc/thread-self/net/{name}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let (snmp, snmp6) = netns.run(|| Ok::<_, anyhow::Error>((read("snmp")?, read("snmp6")?)))??;
    let counts = tables(&snmp).chain(pairs(&snmp6));
    Ok(counts.filter(|(name, count)| *count > 0 && is_error(name)).collect())
}

fn is_error(name: &str) -> bool {
    name.ends_with("InCsumErrors") || name.ends_with("InHdrErrors")
}

/// Lines come in twos: `Tcp: NAME NAME`, `Tcp: NUMBER NUMBER`.
fn tables(text: &str) -> impl Iterator<Item = (String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let rows = lines.chunks_exact(2).flat_map(|two| {
        let (table, names) = two[0].split_once(": ").unwrap_or_default();
        let numbers = two[1].split_whitespace().skip(1);
        names
            .split_whitespace()
            .zip(numbers)
            .map(|(name, number)| (format!("{table}{name}"), number))
            .collect::<Vec<_>>()
    });
    // Some numbers are signed; none of those is an error's.
    rows.filter_map(|(name, number)| Some((name, number.parse().ok()?))).collect::<Vec<_>>().into_iter()
}

/// `NAME NUMBER`
fn pairs(text: &str) -> impl Iterator<Item = (String, u64)> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations() {
        let snmp = "Ip: Forwarding InHdrErrors\nIp: -1 3\nTcp: MaxConn InCsumErrors\nTcp: -1 5\n";
        assert_eq!(
            tables(snmp).collect::<Vec<_>>(),
            [("IpInHdrErrors".to_owned(), 3), ("TcpInCsumErrors".to_owned(), 5)]
        );
        assert_eq!(
            pairs("Udp6InCsumErrors   \t7\n").collect::<Vec<_>>(),
            [("Udp6InCsumErrors".to_owned(), 7)]
        );
        assert!(is_error("Icmp6InCsumErrors") && !is_error("TcpInErrs"));
    }
}
