//! What is not TOML, said so that an operator sees what to type.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Errors, Span};
use super::document;
use super::values::{clip, quote};

/// Repairs of one file; each costs another pass over it.
const MOST_REPAIRS: usize = 32;

/// Reports each list and each table header that is never closed, and overwrites it so that what follows can be
/// read: to the parser, it swallows the rest of the file. All positions stay what they were.
pub(super) fn repair<'a>(errors: &mut Errors, source: &'a str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(source);
    for _ in 0..MOST_REPAIRS {
        let (document, found) = DeTable::parse_recoverable(&text);
        let (range, instead) = if let Some(unclosed) = unclosed_list(&text, document.get_ref(), &found) {
            report_list(errors, &text, unclosed, &found);
            let start = line_start(&text, unclosed.start);
            (start..unclosed.end, blank(&text[start..unclosed.end]))
        } else if let Some(last) = unclosed_header(&text, &found) {
            let help =
                format!("write `{}]`", clip(text[line_start(&text, last.start)..last.end].trim_start()));
            errors.syntax(last, "not TOML: this header is not closed").help(help);
            // Its name loses a letter, which nothing depends on: there is an error already.
            let width = last.end - last.start;
            (last.start..last.end, format!("{}]", " ".repeat(width - 1)))
        } else {
            break;
        };
        drop(document);
        text.to_mut().replace_range(range, &instead);
    }
    text
}

fn line_start(text: &str, offset: usize) -> usize {
    text[..offset].rfind('\n').map_or(0, |at| at + 1)
}

/// Spaces of the same length in the same lines.
fn blank(text: &str) -> String {
    text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
}

/// The last character of a header without its closing bracket.
fn unclosed_header(text: &str, found: &[toml::de::Error]) -> Option<Span> {
    let end =
        found.iter().find(|error| error.message().starts_with("unclosed table, expected `]`"))?.span()?.start;
    let line = text.get(line_start(text, end)..end)?;
    // Only `[name`: of anything else it is not known what to make.
    let name = line.trim_start().trim_start_matches('[');
    if name.len() == line.trim_start().len() || name.trim().is_empty() || name.contains(['[', ']', '=']) {
        return None;
    }
    let end = line_start(text, end) + line.trim_end().len();
    let last = text[..end].chars().next_back()?;
    Some(Span { start: end - last.len_utf8(), end })
}

/// From the bracket of a list that is never closed to where the next statement begins.
fn unclosed_list(text: &str, document: &DeTable<'_>, found: &[toml::de::Error]) -> Option<Span> {
    let swallowed = found
        .iter()
        .filter(|error| error.message().contains("in array") || error.message().starts_with("unclosed array"))
        .find_map(toml::de::Error::span)?
        .start;
    let list = list_around(document, swallowed)?;
    let mut start = list;
    while let Some(end) = text[start..].find('\n') {
        start += end + 1;
        let line = text[start..].lines().next().unwrap_or_default();
        if begins_statement(line) {
            return Some(Span { start: list, end: start });
        }
    }
    None
}

fn report_list(errors: &mut Errors, text: &str, unclosed: Span, found: &[toml::de::Error]) {
    // A text without its closing quote swallows the bracket.
    let quote = found
        .iter()
        .filter(|error| is_open_text(error.message()))
        .filter_map(toml::de::Error::span)
        .find(|span| unclosed.start <= span.start && span.start < unclosed.end);
    if let Some(span) = quote {
        errors.syntax(span.into(), OPEN_TEXT).help(OPEN_TEXT_HELP);
        return;
    }
    let bracket = Span { start: unclosed.start, end: unclosed.start + 1 };
    let line = text[..unclosed.end].matches('\n').count() + 1;
    errors.syntax(bracket, "not TOML: this list is not closed").help(format!("add `]` before line {line}"));
}

const OPEN_TEXT: &str = "not TOML: the text has no closing quote";
const OPEN_TEXT_HELP: &str = "end it with the quote it begins with";

fn is_open_text(message: &str) -> bool {
    message.starts_with("invalid basic string, expected `\"`")
        || message.starts_with("invalid literal string, expected")
}

fn list_around(table: &DeTable<'_>, offset: usize) -> Option<usize> {
    let contains = |value: &Spanned<DeValue<'_>>| value.span().start <= offset && offset <= value.span().end;
    document::entries(table).into_iter().find_map(|entry| match entry.value.get_ref() {
        DeValue::Array(_) if contains(entry.value) => Some(entry.value.span().start),
        // A table's own span may be its header alone.
        DeValue::Table(table) => list_around(table, offset),
        _ => None,
    })
}

/// Whether a line looks like `[table]` or `key = value`, which no line within a list does.
fn begins_statement(line: &str) -> bool {
    let line = line.trim_start();
    if let Some(header) = line.strip_prefix('[') {
        return header.trim_start_matches('[').starts_with(|c: char| c.is_ascii_alphabetic());
    }
    let key = line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_-.".contains(c));
    key.len() < line.len() && key.trim_start().starts_with('=')
}

/// Reports what the parser found.
pub(super) fn report(errors: &mut Errors, source: &str, found: &[toml::de::Error]) {
    let mut last_line = None;
    let mut last_word = None;
    for error in found {
        let span = Span::from(error.span().unwrap_or(source.len()..source.len()));
        let line = line_start(source, source.floor_char_boundary(span.start));
        let message = error.message();
        if message == "duplicate key" {
            let key = source.get(span.start..span.end).unwrap_or_default();
            let message = format!("not TOML: {} is given twice", quote(key.trim_matches(['"', '\''])));
            errors.syntax(span, message).help("remove one, or put both together");
        } else if let Some(word) = bare_word(source, span).filter(|_| wants_quotes(message)) {
            // The parser may stumble over one word more than once.
            if last_word.replace(word) != Some(word) {
                report_bare_word(errors, &source[word.start..word.end], word);
            }
        } else if is_open_text(message) && last_line != Some(line) {
            errors.syntax(span, OPEN_TEXT).help(OPEN_TEXT_HELP);
        } else if last_line == Some(line) {
            // What follows an error in its line is mostly its consequence.
            continue;
        } else {
            let message = message.trim_end_matches(", expected nothing");
            errors.syntax(span, format!("not TOML: {message}"));
        }
        last_line = Some(line);
    }
}

fn wants_quotes(message: &str) -> bool {
    message.starts_with("string values must be quoted")
        || ["float", "integer", "boolean", "date", "time", "number"]
            .iter()
            .any(|kind| message.starts_with("invalid ") && message.contains(kind))
}

/// The word without quotes that a span lies in, if it is a value.
fn bare_word(source: &str, span: Span) -> Option<Span> {
    let delimiter = |c: char| c.is_whitespace() || "=,[]{}#\"'".contains(c);
    let at = source.floor_char_boundary(span.start);
    let start = source[..at].rfind(delimiter).map_or(0, |before| source.ceil_char_boundary(before + 1));
    let end = source[at..].find(delimiter).map_or(source.len(), |after| at + after);
    let before = source[..start].trim_end_matches([' ', '\t']);
    (start < end && before.ends_with(['=', ',', '[', '{', '\n'])).then_some(Span { start, end })
}

fn report_bare_word(errors: &mut Errors, word: &str, span: Span) {
    let lower = word.to_ascii_lowercase();
    let help = match lower.as_str() {
        "true" | "yes" | "on" => "write `true`".to_owned(),
        "false" | "no" | "off" => "write `false`".to_owned(),
        _ => format!("write {}", quote(word)),
    };
    let message = match help.strip_prefix("write `") {
        Some(_) => format!("not TOML: {} is neither true nor false", quote(word)),
        None => format!("not TOML: {} must be in quotes", quote(word)),
    };
    errors.syntax(span, message).help(help);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements() {
        for line in ["[services.mail]", "  listen = 1", "a.b-c=2", "[[services]]"] {
            assert!(begins_statement(line), "{line}");
        }
        for line in ["", "\"a\",", "[\"a\"],", "{ name = \"mx1\" },", "]", "= 1", "# a = b"] {
            assert!(!begins_statement(line), "{line}");
        }
    }

    #[test]
    fn repairs_keep_positions() {
        let source = "a = [\"\u{e9}\",\n[b]\nc = 1\n";
        let mut errors = Errors::default();
        let text = repair(&mut errors, source);
        assert_eq!(text.len(), source.len());
        assert!(text.ends_with("\n[b]\nc = 1\n"), "{text:?}");
        assert!(errors.has_syntax_errors());
        let whole = "a = [\n  1,\n]\n";
        assert_eq!(repair(&mut errors, whole), whole);
    }
}
