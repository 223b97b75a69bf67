//! Single values: durations, addresses, names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::Prefix;
use super::diagnostics::{At, Errors, Span};
use super::document::{Entry, mismatch};

/// A text for a message: in quotes, on one line, and not longer than a message can bear.
pub(super) fn quote(text: &str) -> String {
    format!("\"{}\"", clip(text))
}

/// As [`quote`], without the quotes.
pub(super) fn clip(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// A duration as the file writes it, in the largest unit that divides it.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis: u128 = duration.as_millis();
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let whole = units.iter().find(|(_, size)| millis > 0 && millis.is_multiple_of(*size));
    match whole {
        Some((unit, size)) => format!("{}{unit}", millis / size),
        None => format!("{millis}ms"),
    }
}

const UNITS: &str = "ms, s, m or h";

/// A duration within `range`, such as `"10s"`.
pub(super) fn duration(
    errors: &mut Errors,
    entry: Entry<'_>,
    range: &RangeInclusive<Duration>,
) -> Option<At<Duration>> {
    let key = entry.key.value;
    let span = entry.span();
    let text = match entry.value.get_ref() {
        DeValue::String(text) => text,
        DeValue::Integer(number) => {
            let number = clip(&number.to_string());
            let message = format!("`{key}` has no unit: {number}");
            errors
                .at(span, message)
                .help(format!("write \"{number}s\" if seconds are meant; units are {UNITS}"));
            return None;
        }
        _ => {
            let help = format!("write a number and its unit in quotes, as in \"10s\"; units are {UNITS}");
            mismatch(errors, key, "a duration", entry.value, &help);
            return None;
        }
    };
    let value = match parse_duration(text) {
        Ok(value) => value,
        Err(help) => {
            errors.at(span, format!("`{key}` is no duration: {}", quote(text))).help(help);
            return None;
        }
    };
    if !range.contains(&value) {
        let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
        let help = format!("write a duration from \"{least}\" to \"{most}\"");
        errors.at(span, format!("`{key}` is out of range: {}", quote(text))).help(help);
        return None;
    }
    Some(At { value, span })
}

/// `Err` says what to write instead.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let hint = || format!("write a whole number and its unit, as in \"10s\"; units are {UNITS}");
    if number.is_empty() {
        return Err(hint());
    }
    let number: u64 = number.parse().map_err(|_| "it is longer than any duration here may be".to_owned())?;
    let suggest = |unit: &str| Err(format!("write \"{number}{unit}\""));
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err(format!("write \"{number}s\" if seconds are meant; units are {UNITS}")),
        _ => match unit.trim().to_ascii_lowercase().as_str() {
            "ms" | "msec" | "msecs" | "millis" | "milliseconds" => return suggest("ms"),
            "s" | "sec" | "secs" | "second" | "seconds" => return suggest("s"),
            "m" | "min" | "mins" | "minute" | "minutes" => return suggest("m"),
            "h" | "hr" | "hrs" | "hour" | "hours" => return suggest("h"),
            _ => return Err(hint()),
        },
    };
    number
        .checked_mul(millis)
        .map(Duration::from_millis)
        .ok_or_else(|| "it is longer than any duration here may be".to_owned())
}

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Vip,
    Backend,
    /// A source that clients' addresses are replaced with.
    Snat,
}

impl Role {
    const fn describe(self) -> &'static str {
        match self {
            Self::Vip => "service address",
            Self::Backend => "backend",
            Self::Snat => "snat address",
        }
    }

    const fn example(self) -> &'static str {
        match self {
            Self::Vip => "203.0.113.10",
            Self::Backend => "198.51.100.11",
            Self::Snat => "198.51.100.1",
        }
    }
}

/// An address that packets can be sent to through a router; `text` is without port and brackets.
pub(super) fn address(errors: &mut Errors, span: Span, text: &str, role: Role) -> Option<IpAddr> {
    let what = role.describe();
    match text.parse::<IpAddr>() {
        Ok(address) => {
            let Some((reason, help)) = unusable(address, role) else { return Some(address) };
            errors.at(span, format!("{what} {address} is {reason}")).help(help);
        }
        Err(_) => {
            let (message, help) = no_address(text, role);
            errors.at(span, message).help(help);
        }
    }
    None
}

/// Why packets cannot be forwarded to an address, and what to write instead.
pub(super) fn unusable(address: IpAddr, role: Role) -> Option<(&'static str, String)> {
    let plain = |instead: &str| format!("write {instead}, such as \"{}\"", role.example());
    let reachable = match role {
        Role::Vip => plain("the address that clients connect to"),
        Role::Backend => plain("the server's own address"),
        Role::Snat => plain("an address that servers reach this gateway by"),
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Some(("an IPv4 address in IPv6 form", format!("write \"{v4}\"")));
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => is_link_local(v6),
    };
    let this_network = matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0);
    if address.is_unspecified() || this_network {
        Some(("unspecified, which is no single host", reachable))
    } else if address.is_loopback() {
        Some((
            "a loopback address, which never leaves the machine",
            match role {
                Role::Vip | Role::Snat => reachable,
                Role::Backend => format!("{reachable}; a server on the gateway itself cannot be a backend"),
            },
        ))
    } else if address.is_multicast() {
        Some(("a multicast address, which is no single host", reachable))
    } else if matches!(address, IpAddr::V4(v4) if v4.is_broadcast()) {
        Some(("the broadcast address, which is no single host", reachable))
    } else if link_local {
        Some(("a link-local address, which is not routed and not supported", plain("a routable address")))
    } else {
        None
    }
}

const fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// What a text that is no address may have been meant to be.
fn no_address(text: &str, role: Role) -> (String, String) {
    let what = role.describe();
    let shown = quote(text);
    let example = role.example();
    if let Some((address, zone)) = text.split_once('%')
        && address.parse::<IpAddr>().is_ok()
    {
        return (
            format!("{what} {shown} has a zone (%{})", zone.escape_debug()),
            format!(
                "write a routable address, such as \"{example}\"; link-local addresses are not supported"
            ),
        );
    }
    if let Some((address, length)) = text.split_once('/')
        && address.parse::<IpAddr>().is_ok()
    {
        return (
            format!("{what} {shown} has a prefix length (/{})", length.escape_debug()),
            format!("write {address} without it"),
        );
    }
    let host_name = text.contains(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if host_name {
        return (
            format!("{what} {shown} is a host name, and must be an address"),
            format!("write an IP address, such as \"{example}\""),
        );
    }
    (
        format!("{what} {shown} is no IP address"),
        format!("write an address such as \"{example}\" or \"2001:db8::11\""),
    )
}

/// A port, from its digits.
pub(super) fn port(errors: &mut Errors, span: Span, text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value = if digits { text.parse::<u16>().ok() } else { None };
    if let Some(value) = value.filter(|value| *value != 0) {
        return Some(value);
    }
    let (message, help) = if text.is_empty() {
        ("the port is missing after the colon".to_owned(), "write it as a number, as in \":25\"")
    } else if digits {
        (format!("port {} does not exist", text.escape_debug()), "write a port from 1 to 65535")
    } else if text.split(['-', ':']).all(|part| part.parse::<u16>().is_ok()) {
        (
            format!("a range of ports is for `listen` only: {}", quote(text)),
            "write one port, or none to keep the one that the client connected to",
        )
    } else {
        (format!("port {} is no number", quote(text)), "write a port from 1 to 65535")
    };
    errors.at(span, message).help(help);
    None
}

/// A range of ports such as `8000-8100`, or one port, as its first and last one.
pub(super) fn port_range(errors: &mut Errors, span: Span, text: &str) -> Option<(u16, u16)> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let Some((first, last)) = text.split_once('-') else {
        if let Some((first, last)) = text.split_once(':')
            && digits(first)
            && (digits(last) || last == "*")
        {
            let last = if last == "*" { "65535" } else { last };
            let message = format!("port range {} is written with a colon", quote(text));
            errors.at(span, message).help(format!("write \"{}-{}\"", clip(first), clip(last)));
            return None;
        }
        return port(errors, span, text).map(|port| (port, port));
    };
    if let Some((second, _)) = last.split_once('-') {
        let message = format!("port range {} has more than two ends", quote(text));
        let help = if digits(first) && digits(second) {
            format!("write \"{}-{}\"", clip(first), clip(second))
        } else {
            "write \"8000-8100\"".to_owned()
        };
        errors.at(span, message).help(help);
        return None;
    }
    if first.is_empty() || last.is_empty() {
        let message = format!("port range {} has not both its ends", quote(text));
        let help = match (digits(first), digits(last)) {
            (true, false) => format!("write both, as in \"{}-65535\"", clip(first)),
            (false, true) => format!("write both, as in \"1-{}\"", clip(last)),
            _ => "write both, as in \"8000-8100\"".to_owned(),
        };
        errors.at(span, message).help(help);
        return None;
    }
    // Both are looked at, so that both are reported.
    let (first, last) = (port(errors, span, first), port(errors, span, last));
    let (first, last) = (first?, last?);
    if first > last {
        let message = format!("port range {} runs backwards", quote(text));
        errors.at(span, message).help(format!("write \"{last}-{first}\""));
        return None;
    }
    Some((first, last))
}

/// A network such as `172.16.0.0/16`, with a length in `lengths`. `example` is one that can be written.
pub(super) fn prefix(
    errors: &mut Errors,
    text: At<&str>,
    v6: bool,
    lengths: &RangeInclusive<u8>,
    example: &str,
) -> Option<Prefix> {
    let (span, shown) = (text.span, quote(text.value));
    let (least, most) = (lengths.start(), lengths.end());
    let family = if v6 { "IPv6" } else { "IPv4" };
    let (address, length) = match text.value.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text.value, None),
    };
    let Some(address) = address.parse::<IpAddr>().ok().filter(|address| address.is_ipv6() == v6) else {
        let help = format!("write an {family} address and a prefix length, such as \"{example}\"");
        errors.at(span, format!("{shown} is no {family} network")).help(help);
        return None;
    };
    let Some(length) = length else {
        let message = format!("network {shown} has no prefix length");
        errors.at(span, message).help(format!("write it after a slash, such as \"{example}\""));
        return None;
    };
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let Some(len) = length.parse::<u8>().ok().filter(|len| digits && lengths.contains(len)) else {
        let message = format!("network {shown} has no usable prefix length");
        errors
            .at(span, message)
            .help(format!("write a length from {least} to {most}, such as \"{example}\""));
        return None;
    };
    let network = network_of(address, len);
    if network != address {
        let message = format!("network {shown} has bits set after the first {len}");
        errors.at(span, message).help(format!("write \"{network}/{len}\""));
        return None;
    }
    let this_network = matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0);
    let link_local = matches!(address, IpAddr::V6(v6) if is_link_local(v6));
    if this_network
        || link_local
        || address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
    {
        let message = format!("packets from network {shown} are not routed");
        errors.at(span, message).help(format!("write a unicast network, such as \"{example}\""));
        return None;
    }
    Some(Prefix { address, len })
}

/// The address with all bits after the first `len` cleared.
fn network_of(address: IpAddr, len: u8) -> IpAddr {
    let len = u32::from(len);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - len.min(32)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - len.min(128)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

/// Names of services, pools and backends go into URLs, metrics and commands.
pub(super) fn check_name(errors: &mut Errors, what: &str, name: At<&str>) -> bool {
    let text = name.value;
    let wrong = if text.is_empty() {
        format!("the {what} has an empty name")
    } else if let Some(c) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !"_.-:".contains(*c)) {
        format!("{what} name {} contains \"{}\"", quote(text), c.escape_debug())
    } else if text.len() > 63 {
        format!("{what} name {} has {} characters", quote(text), text.len())
    } else {
        return true;
    };
    errors.at(name.span, wrong).help("a name has 1 to 63 letters, digits, or the characters _ . - :");
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse_duration("10 seconds"), Err("write \"10s\"".to_owned()));
        for wrong in ["", "s", "10", "1.5s", "-1s", "1h30m", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_shown_as_written() {
        for text in ["500ms", "1s", "90s", "10m", "1h", "1500ms"] {
            assert_eq!(parse_duration(text).map(show_duration), Ok(text.to_owned()));
        }
    }

    #[test]
    fn networks_of_addresses() {
        let network = |text: &str, len| network_of(text.parse().unwrap(), len).to_string();
        assert_eq!(network("172.16.3.4", 16), "172.16.0.0");
        assert_eq!(network("172.16.3.4", 32), "172.16.3.4");
        assert_eq!(network("172.16.3.4", 0), "0.0.0.0");
        assert_eq!(network("2001:db8::1:2", 64), "2001:db8::");
        assert_eq!(network("2001:db8::1:2", 128), "2001:db8::1:2");
        assert_eq!(network("2001:db8::1:2", 0), "::");
    }

    #[test]
    fn unusable_addresses() {
        let all = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "169.254.1.1",
            "::",
            "::1",
            "ff02::1",
            "fe80::1",
            "::ffff:198.51.100.1",
        ];
        for text in all {
            let address: IpAddr = text.parse().unwrap();
            assert!(unusable(address, Role::Vip).is_some(), "{text}");
            assert!(unusable(address, Role::Backend).is_some(), "{text}");
        }
        for text in ["10.0.0.1", "198.51.100.1", "2001:db8::1", "fd00::1"] {
            assert!(unusable(text.parse().unwrap(), Role::Vip).is_none(), "{text}");
        }
    }
}
