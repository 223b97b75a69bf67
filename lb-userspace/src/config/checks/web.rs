//! Reading an HTTP check.

use toml::de::DeValue;

use super::super::diagnostics::{At, Errors, Span};
use super::super::document::{self, Entry, Known, Value};
use super::super::known_keys::Place;
use super::super::values::quote;
use super::super::{Http, Method};
use super::{line, optional, tls};

/// As nearly every health page answers.
pub(super) const DEFAULT_STATUS: [(u16, u16); 1] = [(200, 299)];

pub(super) fn read(errors: &mut Errors, known: &Known<'_>, secure: bool) -> Option<Http> {
    let path = optional(errors, known, "path", read_path);
    let host = optional(errors, known, "host", read_host);
    let body = optional(errors, known, "body", |errors, entry| line(errors, entry, "all is well"));
    let status = match known.get("status") {
        Some(entry) => read_status(errors, entry),
        None => Some(DEFAULT_STATUS.into()),
    };
    let method = optional(errors, known, "method", |errors, entry| {
        let word = document::word(errors, Place::Method, entry, "write \"GET\" or \"HEAD\"")?;
        Some(if word == "HEAD" { Method::Head } else { Method::Get })
    });
    let tls = if secure { tls::read(errors, known).map(Some) } else { Some(None) };
    if let (Some(Some(Method::Head)), Some(entry)) = (method, known.get("body")) {
        let message = "an answer to HEAD has no body";
        errors.at(entry.key.span, message).help("remove `body`, or write `method = \"GET\"`");
        return None;
    }
    Some(Http {
        method: method?.unwrap_or_default(),
        path: path?.unwrap_or_else(|| "/".to_owned()),
        host: host?,
        status: status?,
        body: body?,
        tls: tls?,
    })
}

fn read_path(errors: &mut Errors, entry: Entry<'_>) -> Option<String> {
    let path = line(errors, entry, "/health")?;
    let wrong = if !path.starts_with('/') {
        "does not begin with a slash".to_owned()
    } else if let Some(c) = path.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        format!("contains \"{}\"", c.escape_debug())
    } else if let Err(error) = path.parse::<axum::http::uri::PathAndQuery>() {
        format!("cannot be requested ({error})")
    } else {
        return Some(path);
    };
    let help = "write the path as in a URL, its other characters as %XX: `path = \"/health\"`";
    errors.at(entry.span(), format!("`path` {wrong}: {}", quote(&path))).help(help);
    None
}

/// What a Host field may have (RFC 9110 section 7.2), with a port or without.
fn read_host(errors: &mut Errors, entry: Entry<'_>) -> Option<String> {
    let host = line(errors, entry, "www.example.com")?;
    let authority = host.parse::<axum::http::uri::Authority>();
    if authority.is_err() || host.contains('@') {
        let help = "write a name, with a port if it is not the usual one: `host = \"www.example.com\"`";
        errors.at(entry.span(), format!("`host` is no host: {}", quote(&host))).help(help);
        return None;
    }
    Some(host)
}

const STATUS_HELP: &str = "write a code from 100 to 599, a range such as \"200-399\", or a list of them";

fn read_status(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<(u16, u16)>> {
    let items: &[Value<'_>] = match entry.value.get_ref() {
        DeValue::String(_) | DeValue::Integer(_) => std::slice::from_ref(entry.value),
        _ => document::list(errors, entry, "a status code, or a list of them", STATUS_HELP),
    };
    let mut ranges = Vec::new();
    let mut good = !items.is_empty();
    for item in items {
        let range = read_range(errors, item);
        good &= range.is_some();
        ranges.extend(range);
    }
    ranges.sort_unstable();
    ranges.dedup();
    good.then_some(ranges)
}

fn read_range(errors: &mut Errors, item: &Value<'_>) -> Option<(u16, u16)> {
    let span = Span::from(item.span());
    let written = match item.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        _ => {
            document::mismatch(errors, "status", "a status code, or a list of them", item, STATUS_HELP);
            return None;
        }
    };
    let code = |text: &str| text.parse::<u16>().ok().filter(|code| (100..=599).contains(code));
    let (first, last) = written.split_once('-').unwrap_or((&written, &written));
    let (Some(first), Some(last)) = (code(first), code(last)) else {
        errors.at(span, format!("{} is no HTTP status code", quote(&written))).help(STATUS_HELP);
        return None;
    };
    if first > last {
        let At { value, span } = At { value: quote(&written), span };
        errors
            .at(span, format!("status range {value} runs backwards"))
            .help(format!("write \"{last}-{first}\""));
        return None;
    }
    Some((first, last))
}
