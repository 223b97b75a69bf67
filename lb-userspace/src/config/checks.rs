//! Reading `check`.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{At, Errors, Span};
use super::document::{self, Entry, Known};
use super::known_keys::{self, Place};
use super::values::{self, show_duration};
use super::{Check, CheckKind};

const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_RISE: u32 = 1;
const DEFAULT_FALL: u32 = 2;

/// Below the least, checking costs a server more than its clients do.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// A check as a word (`check = "smtp"`) or a table.
pub(super) fn read(errors: &mut Errors, entry: Entry<'_>) -> Option<At<Check>> {
    let span = entry.span();
    match entry.value.get_ref() {
        DeValue::String(word) => {
            let kind = read_kind(errors, word, span)?;
            let check = Check {
                kind,
                interval: DEFAULT_INTERVAL,
                timeout: DEFAULT_TIMEOUT,
                rise: DEFAULT_RISE,
                fall: DEFAULT_FALL,
                port: None,
            };
            Some(At { value: check, span })
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

fn read_kind(errors: &mut Errors, word: &str, span: Span) -> Option<CheckKind> {
    match known_keys::known(errors, Place::CheckType, word, span)? {
        "smtp" => Some(CheckKind::Smtp),
        _ => Some(CheckKind::Tcp),
    }
}

fn read_table(errors: &mut Errors, key: Span, table: &DeTable<'_>) -> Option<Check> {
    let known = Known::read(errors, Place::Check, table);
    let kind = match known.get("type") {
        Some(entry) => {
            document::text(errors, "type", entry.value, "a word in quotes", "write \"tcp\" or \"smtp\"")
                .and_then(|word| read_kind(errors, word.value, word.span))
        }
        None => {
            if known.lacks("type") {
                errors
                    .absent(key, "the check has no `type`")
                    .help("add `type = \"tcp\"` or `type = \"smtp\"`");
            }
            None
        }
    };
    let (interval, timeout) = read_times(errors, &known, key);
    let count = |errors: &mut Errors, name: &str, default: u32| match known.get(name) {
        Some(entry) => document::integer(errors, entry, 1..=1000),
        None => Some(default),
    };
    let rise = count(errors, "rise", DEFAULT_RISE);
    let fall = count(errors, "fall", DEFAULT_FALL);
    let port = match known.get("port") {
        Some(entry) => document::integer(errors, entry, 1..=65535).map(|port| u16::try_from(port).ok()),
        None => Some(None),
    };
    let starttls = known.get("starttls").is_none_or(|entry| read_starttls(errors, entry, kind));
    if !starttls {
        return None;
    }
    Some(Check { kind: kind?, interval: interval?, timeout: timeout?, rise: rise?, fall: fall?, port: port? })
}

fn read_times(errors: &mut Errors, known: &Known<'_>, key: Span) -> (Option<Duration>, Option<Duration>) {
    let mut read = |name: &str, range, default| match known.get(name) {
        Some(entry) => values::duration(errors, entry, range),
        None => Some(At { value: default, span: key }),
    };
    let interval = read("interval", &INTERVALS, DEFAULT_INTERVAL);
    let timeout = read("timeout", &TIMEOUTS, DEFAULT_TIMEOUT);
    if let (Some(interval), Some(timeout)) = (&interval, &timeout)
        && timeout.value >= interval.value
    {
        let (given, limit) = (show_duration(timeout.value), show_duration(interval.value));
        let half = show_duration(interval.value / 2);
        if known.get("timeout").is_none() {
            let message = format!(
                "the check's timeout, {given} unless given, must be shorter than its interval {limit}"
            );
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
    (interval.map(|at| at.value), timeout.map(|at| at.value))
}

/// Whether the check can be used.
fn read_starttls(errors: &mut Errors, entry: Entry<'_>, kind: Option<CheckKind>) -> bool {
    let Some(starttls) = document::boolean(errors, entry) else { return false };
    if kind == Some(CheckKind::Tcp) {
        errors.at(entry.key.span, "`starttls` belongs to smtp checks, and this one is tcp").help("remove it");
        return false;
    }
    if starttls {
        let help = "write `starttls = false`, or leave it out; the check then ends after EHLO";
        errors.at(entry.span(), "`starttls = true` is not yet supported").help(help);
    }
    !starttls
}
