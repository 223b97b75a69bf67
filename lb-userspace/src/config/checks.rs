//! Reading `check`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{At, Errors, Span};
use super::document::{self, Entry, Known, Value};
use super::known_keys::{self, Place};
use super::values::{self, quote, show_duration};
use super::{Check, CheckKind, Dns, Http, Method, Probe, Smtp, Tls};

mod dialogue;
mod exec;
mod names;
mod tls;
mod web;

/// Below the least, checking costs a server more than its clients do.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// Percent. With more, two checks could start at the same time.
const MOST_JITTER: u8 = 25;
/// A path, a name, a text to be found.
const LONGEST_TEXT: usize = 1024;

const TYPES: &str = "write \"tcp\", \"tls\", \"http\", \"https\", \"smtp\", \"send-expect\", \"icmp\", \"dns\" or \
                     \"exec\"";

/// The kinds that a key belongs to; of the others, every kind takes it.
const BELONGS: &[(&str, &[CheckKind])] = {
    use CheckKind::{Dns, Exec, Http, Https, SendExpect, Smtp, Tcp, Tls};
    const WEB: &[CheckKind] = &[Http, Https];
    const SECURE: &[CheckKind] = &[Tls, Https, Smtp, SendExpect];
    &[
        ("port", &[Tcp, Tls, Http, Https, Smtp, SendExpect, Dns, Exec]),
        ("source", &[Tcp, Tls, Http, Https, Smtp, SendExpect, CheckKind::Icmp, Dns]),
        ("server_name", SECURE),
        ("verify", SECURE),
        ("ca_file", SECURE),
        ("expiry_warning_days", SECURE),
        ("starttls", &[Smtp]),
        ("tls", &[Smtp, SendExpect]),
        ("path", WEB),
        ("host", WEB),
        ("method", WEB),
        ("status", WEB),
        ("body", WEB),
        ("steps", &[SendExpect]),
        ("send", &[SendExpect]),
        ("send_hex", &[SendExpect]),
        ("expect", &[SendExpect]),
        ("expect_hex", &[SendExpect]),
        ("expect_glob", &[SendExpect]),
        ("query", &[Dns]),
        ("record", &[Dns]),
        ("rcode", &[Dns]),
        ("answer", &[Dns]),
        ("transport", &[Dns]),
        ("command", &[Exec]),
        ("user", &[Exec]),
    ]
};

/// A check as a word (`check = "smtp"`) or a table.
pub(super) fn read(errors: &mut Errors, entry: Entry<'_>) -> Option<At<Check>> {
    let span = entry.span();
    match entry.value.get_ref() {
        DeValue::String(word) => {
            let kind = read_kind(errors, word, span)?;
            let Some(probe) = plain(kind) else {
                let (what, example) = match kind {
                    CheckKind::Exec => {
                        ("command", "command = [\"/usr/local/bin/check-mail\", \"{address}\"]")
                    }
                    _ => ("dialogue", "expect = \"220\""),
                };
                let message = format!("the check \"{kind}\" needs its {what}");
                let help = format!("write a table: {{ type = \"{kind}\", {example} }}");
                errors.at(span, message).help(help);
                return None;
            };
            Some(At { value: Check::of(probe), span })
        }
        // A table may span many lines, or be a header of its own: the key is the better place to point at.
        DeValue::Table(table) => {
            let value = read_table(errors, entry.key.span, table)?;
            Some(At { value, span: entry.key.span })
        }
        _ => {
            let help = "write \"tcp\" or \"smtp\", \
                        or a table: { type = \"smtp\", interval = \"10s\", timeout = \"2s\" }";
            document::mismatch(errors, entry.key.value, "a word or a table", entry.value, help);
            None
        }
    }
}

/// The probe of a kind that needs no more said.
fn plain(kind: CheckKind) -> Option<Probe> {
    let web = |tls| {
        let status = web::DEFAULT_STATUS.into();
        Http { method: Method::Get, path: "/".to_owned(), host: None, status, body: None, tls }
    };
    match kind {
        CheckKind::Tcp => Some(Probe::Tcp),
        CheckKind::Tls => Some(Probe::Tls(Arc::new(Tls::default()))),
        CheckKind::Http => Some(Probe::Http(Arc::new(web(None)))),
        CheckKind::Https => Some(Probe::Http(Arc::new(web(Some(Tls::default()))))),
        CheckKind::Smtp => Some(Probe::Smtp(Smtp::Plain)),
        CheckKind::Icmp => Some(Probe::Icmp),
        CheckKind::Dns => Some(Probe::Dns(Arc::new(Dns {
            query: ".".to_owned(),
            record: names::DEFAULT_RECORD.to_owned(),
            rcodes: vec![0],
            answer: None,
            tcp: false,
        }))),
        CheckKind::SendExpect | CheckKind::Exec => None,
    }
}

fn read_kind(errors: &mut Errors, word: &str, span: Span) -> Option<CheckKind> {
    let word = known_keys::known(errors, Place::CheckType, word, span)?;
    let all = [
        CheckKind::Tcp,
        CheckKind::Tls,
        CheckKind::Http,
        CheckKind::Https,
        CheckKind::Smtp,
        CheckKind::SendExpect,
        CheckKind::Icmp,
        CheckKind::Dns,
        CheckKind::Exec,
    ];
    all.into_iter().find(|kind| kind.as_str() == word)
}

fn read_table(errors: &mut Errors, key: Span, table: &DeTable<'_>) -> Option<Check> {
    let known = Known::read(errors, Place::Check, table);
    let kind = match known.get("type") {
        Some(entry) => document::text(errors, "type", entry.value, "a word in quotes", TYPES)
            .and_then(|word| read_kind(errors, word.value, word.span)),
        None => {
            if known.lacks("type") {
                errors
                    .absent(key, "the check has no `type`")
                    .help("add `type = \"tcp\"` or `type = \"smtp\"`");
            }
            None
        }
    };
    let times = read_times(errors, &known, key);
    let count = |errors: &mut Errors, name: &str, default: u32| match known.get(name) {
        Some(entry) => document::integer(errors, entry, 1..=1000),
        None => Some(default),
    };
    let defaults = Check::of(Probe::Tcp);
    let rise = count(errors, "rise", defaults.rise);
    let fall = count(errors, "fall", defaults.fall);
    let port = optional(errors, &known, "port", |errors, entry| {
        document::integer(errors, entry, 1..=65535).and_then(|port| u16::try_from(port).ok())
    });
    let jitter = match known.get("jitter") {
        Some(entry) => read_jitter(errors, entry),
        None => Some(defaults.jitter),
    };
    let source = match known.get("source") {
        Some(entry) => read_source(errors, entry),
        None => Some((None, None)),
    };
    let via = match known.get("via") {
        Some(entry) => document::word(errors, Place::Via, entry, "write \"vip\" or \"server\""),
        None => Some("server"),
    };
    let belong = kind.is_none_or(|kind| check_keys(errors, &known, kind));
    let probe = kind.and_then(|kind| read_probe(errors, &known, key, kind));
    let (times, (source4, source6)) = (times?, source?);
    if !belong {
        return None;
    }
    Some(Check {
        probe: probe?,
        interval: times.interval,
        fast_interval: times.fast,
        down_interval: times.down,
        timeout: times.timeout,
        rise: rise?,
        fall: fall?,
        jitter: jitter?,
        port: port?,
        source4,
        source6,
        via_vip: via? == "vip",
    })
}

/// Whether every key is one of this kind.
fn check_keys(errors: &mut Errors, known: &Known<'_>, kind: CheckKind) -> bool {
    let mut good = true;
    for (name, kinds) in BELONGS {
        let Some(entry) = known.get(name).filter(|_| !kinds.contains(&kind)) else { continue };
        good = false;
        let words: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
        let message = match words.split_last() {
            _ if *name == "port" => format!("`port` means nothing to {kind} checks"),
            _ if *name == "source" => format!("`source` means nothing to {kind} checks"),
            Some((last, [])) => format!("`{name}` belongs to {last} checks, and this one is {kind}"),
            Some((last, rest)) => {
                let rest = rest.join(", ");
                format!("`{name}` belongs to {rest} and {last} checks, and this one is {kind}")
            }
            None => continue,
        };
        errors.at(entry.key.span, message).help("remove it");
    }
    good
}

fn read_probe(errors: &mut Errors, known: &Known<'_>, key: Span, kind: CheckKind) -> Option<Probe> {
    match kind {
        CheckKind::Tcp => Some(Probe::Tcp),
        CheckKind::Icmp => Some(Probe::Icmp),
        CheckKind::Tls => Some(Probe::Tls(Arc::new(tls::read(errors, known)?))),
        CheckKind::Http => Some(Probe::Http(Arc::new(web::read(errors, known, false)?))),
        CheckKind::Https => Some(Probe::Http(Arc::new(web::read(errors, known, true)?))),
        CheckKind::Smtp => Some(Probe::Smtp(tls::read_smtp(errors, known)?)),
        CheckKind::SendExpect => Some(Probe::SendExpect(Arc::new(dialogue::read(errors, known, key)?))),
        CheckKind::Dns => Some(Probe::Dns(Arc::new(names::read(errors, known)?))),
        CheckKind::Exec => Some(Probe::Exec(Arc::new(exec::read(errors, known, key)?))),
    }
}

/// `Some(None)` for a key that is not there, `None` for one that is wrong.
#[expect(clippy::option_option, reason = "absent and wrong are two things")]
fn optional<'k, T>(
    errors: &mut Errors,
    known: &Known<'k>,
    name: &str,
    read: impl FnOnce(&mut Errors, Entry<'k>) -> Option<T>,
) -> Option<Option<T>> {
    match known.get(name) {
        Some(entry) => read(errors, entry).map(Some),
        None => Some(None),
    }
}

/// A text of one line that is neither empty nor longer than anybody needs.
fn line(errors: &mut Errors, entry: Entry<'_>, example: &str) -> Option<String> {
    let key = entry.key.value;
    let help = format!("write `{key} = \"{example}\"`");
    let text = document::text(errors, key, entry.value, "a text in quotes", &help)?;
    let wrong = if text.value.is_empty() {
        "is empty".to_owned()
    } else if text.value.len() > LONGEST_TEXT {
        format!("is longer than {LONGEST_TEXT} bytes")
    } else if let Some(c) = text.value.chars().find(|c| c.is_control()) {
        format!("contains \"{}\"", c.escape_debug())
    } else {
        return Some(text.value.to_owned());
    };
    errors.at(text.span, format!("`{key}` {wrong}")).help(help);
    None
}

/// The times of a check.
struct Times {
    interval: Duration,
    fast: Option<Duration>,
    down: Option<Duration>,
    timeout: Duration,
}

fn read_times(errors: &mut Errors, known: &Known<'_>, key: Span) -> Option<Times> {
    let defaults = Check::of(Probe::Tcp);
    let mut read = |name: &str, range, default| match known.get(name) {
        Some(entry) => values::duration(errors, entry, range),
        None => Some(At { value: default, span: key }),
    };
    let interval = read("interval", &INTERVALS, defaults.interval);
    let timeout = read("timeout", &TIMEOUTS, defaults.timeout);
    let mut others = [("fast_interval", None), ("down_interval", None)];
    for (name, value) in &mut others {
        *value = optional(errors, known, name, |errors, entry| values::duration(errors, entry, &INTERVALS));
    }
    if let (Some(interval), Some(timeout)) = (&interval, &timeout)
        && timeout.value >= interval.value
    {
        timeout_too_long(errors, known, interval, timeout);
    } else if let Some(timeout) = &timeout {
        for (name, value) in &others {
            let Some(Some(other)) = value else { continue };
            if timeout.value >= other.value {
                let (given, limit) = (show_duration(timeout.value), show_duration(other.value));
                let half = show_duration(other.value / 2);
                let message = format!("`{name}` {limit} is not longer than the timeout, which is {given}");
                let help = format!("lengthen it, or write `timeout = \"{half}\"`");
                errors.at(other.span, message).help(help);
            }
        }
    }
    let [(_, fast), (_, down)] = others;
    Some(Times {
        interval: interval?.value,
        fast: fast?.map(|at| at.value),
        down: down?.map(|at| at.value),
        timeout: timeout?.value,
    })
}

fn timeout_too_long(errors: &mut Errors, known: &Known<'_>, interval: &At<Duration>, timeout: &At<Duration>) {
    let (given, limit) = (show_duration(timeout.value), show_duration(interval.value));
    let half = show_duration(interval.value / 2);
    if known.get("timeout").is_none() {
        let message =
            format!("the check's timeout, {given} unless given, must be shorter than its interval {limit}");
        errors
            .at(interval.span, message)
            .help(format!("add `timeout = \"{half}\"`, or lengthen the interval"));
    } else if known.get("interval").is_none() {
        let message =
            format!("timeout {given} must be shorter than the interval, which is {limit} unless given");
        let double = show_duration(timeout.value * 2);
        errors.at(timeout.span, message).help(format!("shorten it, or add `interval = \"{double}\"`"));
    } else {
        let message = format!("timeout {given} must be shorter than interval {limit}");
        let error = errors.at(timeout.span, message);
        error
            .related(interval.span, "the interval")
            .help(format!("write `timeout = \"{half}\"`, or lengthen the interval"));
    }
}

/// A part of the interval, as in `"5%"`.
fn read_jitter(errors: &mut Errors, entry: Entry<'_>) -> Option<u8> {
    let help = format!("write a part of the interval from \"0%\" to \"{MOST_JITTER}%\"");
    let text = document::text(errors, "jitter", entry.value, "a percentage in quotes", &help)?;
    let percent = text.value.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let value = percent.and_then(|digits| digits.parse().ok()).filter(|value| *value <= MOST_JITTER);
    if value.is_none() {
        let wrong = if percent.is_some_and(|digits| !digits.is_empty()) {
            "is out of range"
        } else {
            "is no percentage"
        };
        errors.at(text.span, format!("`jitter` {wrong}: {}", quote(text.value))).help(help);
    }
    value
}

/// An address, or one of each family.
fn read_source(errors: &mut Errors, entry: Entry<'_>) -> Option<(Option<Ipv4Addr>, Option<Ipv6Addr>)> {
    let help = "write an address of this gateway, or one of each family: \
                [\"198.51.100.1\", \"2001:db8:64::1\"]";
    let items: &[Value<'_>] = match entry.value.get_ref() {
        DeValue::String(_) => std::slice::from_ref(entry.value),
        _ => document::list(errors, entry, "an address, or a list of them", help),
    };
    let (mut source4, mut source6) = (None, None);
    let mut good = !items.is_empty();
    for item in items {
        let text = document::text(errors, "source", item, "an address in quotes", help);
        let address = text.and_then(|text| {
            let address =
                text.value.parse::<IpAddr>().ok().filter(|a| !a.is_unspecified() && !a.is_multicast());
            if address.is_none() {
                let message = format!("{} is no address that checks can come from", quote(text.value));
                errors.at(text.span, message).help(help);
            }
            address.map(|value| At { value, span: text.span })
        });
        let twice = match address.map(|at| at.value) {
            Some(IpAddr::V4(v4)) => source4.replace(v4).is_some(),
            Some(IpAddr::V6(v6)) => source6.replace(v6).is_some(),
            None => false,
        };
        good &= address.is_some() && !twice;
        if let Some(At { value, span }) = address.filter(|_| twice) {
            let family = if value.is_ipv4() { "IPv4" } else { "IPv6" };
            errors.at(span, format!("`source` has two {family} addresses")).help("remove one of the two");
        }
    }
    good.then_some((source4, source6))
}
