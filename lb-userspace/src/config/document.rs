//! Walking a TOML document: each function reads one shape and reports what is not of it.

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{At, Errors, Span};
use super::known_keys::{self, Place};
use super::values::{clip, quote};

pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// A key and its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) key: At<&'a str>,
    pub(super) value: &'a Value<'a>,
}

impl Entry<'_> {
    pub(super) fn span(&self) -> Span {
        self.value.span().into()
    }
}

/// The entries of a table in the order of the file.
pub(super) fn entries<'a>(table: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> = table
        .iter()
        .map(|(key, value)| Entry { key: At { value: key.get_ref(), span: key.span().into() }, value })
        .collect();
    entries.sort_by_key(|entry| entry.key.span);
    entries
}

/// The entries of a table that mean something; the others have been reported.
#[derive(Debug)]
pub(super) struct Known<'a> {
    entries: Vec<Entry<'a>>,
    /// What the reported keys were probably meant to be.
    meant: Vec<&'static str>,
}

impl<'a> Known<'a> {
    pub(super) fn read(errors: &mut Errors, place: Place, table: &'a DeTable<'a>) -> Self {
        let mut entries = entries(table);
        let mut meant = Vec::new();
        entries.retain(|entry| {
            let known = known_keys::known(errors, place, entry.key.value, entry.key.span).is_some();
            if !known {
                meant.extend(known_keys::meant(place, entry.key.value));
            }
            known
        });
        Self { entries, meant }
    }

    pub(super) fn get(&self, key: &str) -> Option<Entry<'a>> {
        self.entries.iter().find(|entry| entry.key.value == key).copied()
    }

    /// Whether the key is not there under any spelling: one error for a misspelt key is enough.
    pub(super) fn lacks(&self, key: &str) -> bool {
        self.get(key).is_none() && !self.meant.contains(&key)
    }
}

/// What a value is, for "must be ..., not ...".
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {}", quote(text)),
        DeValue::Integer(number) => format!("the number {}", clip(&number.to_string())),
        DeValue::Float(number) => format!("the number {}", clip(number.as_str())),
        DeValue::Boolean(value) => format!("{value}"),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Reports that the value is no `expected`, such as `a list of names`.
pub(super) fn mismatch(errors: &mut Errors, key: &str, expected: &str, value: &Value<'_>, help: &str) {
    let message = format!("`{key}` must be {expected}, not {}", describe(value.get_ref()));
    errors.at(value.span().into(), message).help(help);
}

/// A text value. `expected` and `help` are for the error: `` `key` must be {expected} ``, and what to write.
pub(super) fn text<'a>(
    errors: &mut Errors,
    key: &str,
    value: &'a Value<'a>,
    expected: &str,
    help: &str,
) -> Option<At<&'a str>> {
    let Some(text) = value.get_ref().as_str() else {
        mismatch(errors, key, expected, value, help);
        return None;
    };
    Some(At { value: text, span: value.span().into() })
}

/// A whole number in a range.
pub(super) fn integer(errors: &mut Errors, entry: Entry<'_>, range: RangeInclusive<u32>) -> Option<u32> {
    let key = entry.key.value;
    let help = format!("write `{key} = N` with N from {} to {}", range.start(), range.end());
    let Some(number) = entry.value.get_ref().as_integer() else {
        // "25" in quotes is the likeliest slip.
        let number = entry.value.get_ref().as_str().and_then(|text| text.trim().parse().ok());
        let help = match number {
            Some(number) if range.contains(&number) => format!("write `{key} = {number}`, without quotes"),
            _ => help,
        };
        mismatch(errors, key, "a whole number", entry.value, &help);
        return None;
    };
    let value =
        u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|value| range.contains(value));
    if value.is_none() {
        errors.at(entry.span(), format!("`{key}` is out of range: {}", clip(&number.to_string()))).help(help);
    }
    value
}

/// `true` or `false`.
pub(super) fn boolean(errors: &mut Errors, entry: Entry<'_>) -> Option<bool> {
    let value = entry.value.get_ref().as_bool();
    if value.is_none() {
        let key = entry.key.value;
        mismatch(errors, key, "true or false", entry.value, &format!("write `{key} = false`"));
    }
    value
}

/// One of the words known at `place`.
pub(super) fn word(errors: &mut Errors, place: Place, entry: Entry<'_>, help: &str) -> Option<&'static str> {
    let text = text(errors, entry.key.value, entry.value, "a word in quotes", help)?;
    known_keys::known(errors, place, text.value, text.span)
}

/// A list's items, or none after reporting; an empty list is reported too.
pub(super) fn list<'a>(errors: &mut Errors, entry: Entry<'a>, expected: &str, help: &str) -> &'a [Value<'a>] {
    let key = entry.key.value;
    let Some(array) = entry.value.get_ref().as_array() else {
        mismatch(errors, key, expected, entry.value, help);
        return &[];
    };
    if array.is_empty() {
        errors.absent(entry.span(), format!("`{key}` is empty")).help(help);
    }
    array
}

/// The named tables below `[services]` or `[pools]`; what is no table or has no valid name is reported.
pub(super) fn named_tables<'a>(
    errors: &mut Errors,
    entry: Entry<'a>,
    member: Place,
) -> Vec<(At<&'a str>, &'a DeTable<'a>)> {
    let section = entry.key.value;
    let singular = section.trim_end_matches('s');
    let Some(table) = entry.value.get_ref().as_table() else {
        let help = format!("write a table for each {singular}: `[{section}.NAME]`");
        mismatch(errors, section, "a table", entry.value, &help);
        return Vec::new();
    };
    let mut tables = Vec::new();
    for Entry { key, value } in entries(table) {
        let Some(table) = value.get_ref().as_table() else {
            let what = if member_has(member, key.value) {
                format!("`{}` stands outside of any {singular}", clip(key.value))
            } else {
                format!("`{section}.{}` must be a table, not {}", clip(key.value), describe(value.get_ref()))
            };
            errors
                .at(key.span, what)
                .help(format!("each {singular} has a name: write `[{section}.NAME]` above its keys"));
            continue;
        };
        super::values::check_name(errors, singular, key);
        tables.push((key, table));
    }
    tables
}

fn member_has(member: Place, key: &str) -> bool {
    // Asked of the table of words without leaving an error behind.
    known_keys::known(&mut Errors::default(), member, key, Span::default()).is_some()
}
