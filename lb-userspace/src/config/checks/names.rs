//! Reading a DNS check.

use std::str::FromStr as _;

use hickory_proto::rr::{Name, RecordType};
use toml::de::DeValue;

use super::super::diagnostics::Errors;
use super::super::document::{self, Entry, Known, Value};
use super::super::known_keys::{Place, nearest};
use super::super::values::quote;
use super::super::{Dns, RCODES};
use super::{line, optional};

/// With the root, what every resolver can answer.
pub(super) const DEFAULT_RECORD: &str = "SOA";

/// What can be asked for, and compared with `answer`.
const RECORDS: [&str; 13] =
    ["A", "AAAA", "CAA", "CNAME", "DNSKEY", "DS", "MX", "NS", "PTR", "SOA", "SRV", "TLSA", "TXT"];

pub(super) fn read(errors: &mut Errors, known: &Known<'_>) -> Option<Dns> {
    let query = optional(errors, known, "query", read_query);
    let record = optional(errors, known, "record", read_record);
    let answer = optional(errors, known, "answer", |errors, entry| line(errors, entry, "192.0.2.10"));
    let rcodes = match known.get("rcode") {
        Some(entry) => read_rcodes(errors, entry),
        None => Some(vec![0]),
    };
    let tcp = optional(errors, known, "transport", |errors, entry| {
        document::word(errors, Place::Transport, entry, "write \"udp\" or \"tcp\"").map(|word| word == "tcp")
    });
    let rcodes = rcodes?;
    if let Some(entry) = known.get("answer").filter(|_| !rcodes.contains(&0)) {
        let message = "`answer` is expected of answers with the rcode NOERROR only";
        errors.at(entry.key.span, message).help("remove it, or add \"NOERROR\" to `rcode`");
        return None;
    }
    Some(Dns {
        query: query?.unwrap_or_else(|| ".".to_owned()),
        record: record?.unwrap_or_else(|| DEFAULT_RECORD.to_owned()),
        rcodes,
        answer: answer?,
        tcp: tcp?.unwrap_or_default(),
    })
}

/// With a dot at the end, as there is no search list.
fn read_query(errors: &mut Errors, entry: Entry<'_>) -> Option<String> {
    let query = line(errors, entry, "www.example.com")?;
    let Ok(mut name) = Name::from_ascii(&query) else {
        let help = "write a name such as \"www.example.com\", or \".\" for the root";
        errors.at(entry.span(), format!("`query` is no domain name: {}", quote(&query))).help(help);
        return None;
    };
    name.set_fqdn(true);
    Some(name.to_ascii())
}

fn read_record(errors: &mut Errors, entry: Entry<'_>) -> Option<String> {
    let record = line(errors, entry, "A")?;
    let upper = record.to_ascii_uppercase();
    if !RECORDS.contains(&upper.as_str()) || RecordType::from_str(&upper).is_err() {
        let error = errors.at(entry.span(), format!("unknown record type {}", quote(&record)));
        error.help(format!("write one of {}", RECORDS.join(", ")));
        return None;
    }
    Some(upper)
}

fn read_rcodes(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<u16>> {
    let help = "write \"NOERROR\", \"NXDOMAIN\", or a list of such";
    let items: &[Value<'_>] = match entry.value.get_ref() {
        DeValue::String(_) => std::slice::from_ref(entry.value),
        _ => document::list(errors, entry, "a word, or a list of them", help),
    };
    let mut rcodes = Vec::new();
    let mut good = !items.is_empty();
    for item in items {
        let word = document::text(errors, "rcode", item, "a word in quotes", help);
        let code = word.and_then(|word| {
            let code = RCODES.iter().position(|name| name.eq_ignore_ascii_case(word.value));
            if code.is_none() {
                let help = nearest(word.value, RCODES).map(|near| format!("did you mean \"{near}\"?"));
                let all = || format!("write one of {}", RCODES.join(", "));
                errors
                    .at(word.span, format!("unknown rcode {}", quote(word.value)))
                    .help(help.unwrap_or_else(all));
            }
            code.and_then(|code| u16::try_from(code).ok())
        });
        good &= code.is_some();
        rcodes.extend(code);
    }
    rcodes.sort_unstable();
    rcodes.dedup();
    good.then_some(rcodes)
}
