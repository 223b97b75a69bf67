//! Reading a dialogue.

use toml::de::{DeTable, DeValue};

use super::super::diagnostics::{Errors, Span};
use super::super::document::{self, Entry, Known};
use super::super::known_keys::Place;
use super::super::values::quote;
use super::super::{Pattern, Piece, SendExpect, Step};
use super::{optional, tls};

/// More is no health check.
const MOST_STEPS: usize = 20;
/// Of what is sent or expected in one step.
const MOST_BYTES: usize = 4096;

const KEYS: [&str; 5] = ["send", "send_hex", "expect", "expect_hex", "expect_glob"];
const STEPS_HELP: &str =
    "write a list such as [{ expect = \"220\" }, { send = \"QUIT\\r\\n\", expect = \"221\" }]";

pub(super) fn read(errors: &mut Errors, known: &Known<'_>, key: Span) -> Option<SendExpect> {
    let single = KEYS.iter().find_map(|name| known.get(name));
    let steps = match (known.get("steps"), single) {
        (Some(steps), Some(single)) => {
            let message = format!("both `steps` and `{}` are given", single.key.value);
            let error = errors.at(single.key.span, message);
            error.related(steps.key.span, "the steps").help("make it one of the steps");
            None
        }
        (Some(steps), None) => read_steps(errors, steps),
        (None, Some(_)) => read_step(errors, known).map(|step| vec![step]),
        (None, None) => {
            if KEYS.iter().chain(&["steps"]).all(|name| known.lacks(name)) {
                let help = "add `expect = \"220\"`, or `steps` with several of them";
                errors.absent(key, "the check neither sends nor expects anything").help(help);
            }
            None
        }
    };
    let secure = optional(errors, known, "tls", document::boolean);
    let tls = tls::read_if(errors, known, secure.flatten().unwrap_or_default(), "`tls = true`");
    secure?;
    Some(SendExpect { steps: steps?, tls: tls? })
}

fn read_steps(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<Step>> {
    let items = document::list(errors, entry, "a list of steps", STEPS_HELP);
    if items.len() > MOST_STEPS {
        let message = format!("`steps` has {} steps", items.len());
        errors.at(entry.span(), message).help(format!("write at most {MOST_STEPS}"));
        return None;
    }
    let mut steps = Vec::new();
    let mut good = !items.is_empty();
    for item in items {
        let step = match item.get_ref() {
            DeValue::Table(table) => read_step_table(errors, item.span().into(), table),
            _ => {
                document::mismatch(errors, "steps", "a list of tables", item, STEPS_HELP);
                None
            }
        };
        good &= step.is_some();
        steps.extend(step);
    }
    good.then_some(steps)
}

fn read_step_table(errors: &mut Errors, span: Span, table: &DeTable<'_>) -> Option<Step> {
    let known = Known::read(errors, Place::Step, table);
    if KEYS.iter().all(|name| known.lacks(name)) {
        let help = "write { send = \"QUIT\\r\\n\", expect = \"221\" }, or one of the two";
        errors.absent(span, "the step neither sends nor expects anything").help(help);
        return None;
    }
    read_step(errors, &known)
}

fn read_step(errors: &mut Errors, known: &Known<'_>) -> Option<Step> {
    let mut good = one_of(errors, known, &["send", "send_hex"]);
    good &= one_of(errors, known, &["expect", "expect_hex", "expect_glob"]);
    if !good {
        return None;
    }
    let send = match (known.get("send"), known.get("send_hex")) {
        (Some(entry), _) => read_text(errors, entry, "QUIT\\r\\n").map(String::into_bytes),
        (None, Some(entry)) => read_hex(errors, entry),
        (None, None) => Some(Vec::new()),
    };
    let somewhere = |bytes: &[u8]| {
        let inner = bytes.iter().copied().map(Piece::Byte);
        std::iter::once(Piece::Many).chain(inner).chain([Piece::Many]).collect()
    };
    let written = |entry: Entry<'_>| entry.value.get_ref().as_str().unwrap_or_default().to_owned();
    let expect = if let Some(entry) = known.get("expect") {
        read_text(errors, entry, "220")
            .map(|text| Some(Pattern { pieces: somewhere(text.as_bytes()), written: text }))
    } else if let Some(entry) = known.get("expect_hex") {
        read_hex(errors, entry)
            .map(|bytes| Some(Pattern { pieces: somewhere(&bytes), written: written(entry) }))
    } else if let Some(entry) = known.get("expect_glob") {
        read_text(errors, entry, "220 *")
            .and_then(|text| read_glob(errors, entry, &text))
            .map(|pieces| Some(Pattern { pieces, written: written(entry) }))
    } else {
        Some(None)
    };
    let (send, expect) = (send?, expect?);
    // A misspelt key has been reported.
    if send.is_empty() && expect.is_none() {
        return None;
    }
    Some(Step { send, expect })
}

/// Reports a second key where one is meant.
fn one_of(errors: &mut Errors, known: &Known<'_>, names: &[&str]) -> bool {
    let given: Vec<Entry<'_>> = names.iter().filter_map(|name| known.get(name)).collect();
    let [first, second, ..] = given.as_slice() else { return true };
    let message = format!("both `{}` and `{}` are given", first.key.value, second.key.value);
    let error = errors.at(second.key.span, message);
    error.related(first.key.span, "the other one").help("remove one of the two");
    false
}

fn read_text(errors: &mut Errors, entry: Entry<'_>, example: &str) -> Option<String> {
    let key = entry.key.value;
    let help = format!("write `{key} = \"{example}\"`");
    let text = document::text(errors, key, entry.value, "a text in quotes", &help)?;
    bounded(errors, entry, text.value.len(), &help)?;
    Some(text.value.to_owned())
}

fn bounded(errors: &mut Errors, entry: Entry<'_>, bytes: usize, help: &str) -> Option<()> {
    let wrong = match bytes {
        0 => "is empty".to_owned(),
        1..=MOST_BYTES => return Some(()),
        _ => format!("has {bytes} bytes, and {MOST_BYTES} are the most"),
    };
    errors.at(entry.span(), format!("`{}` {wrong}", entry.key.value)).help(help);
    None
}

/// Pairs of hexadecimal digits, with blanks between them as one likes.
fn read_hex(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<u8>> {
    let key = entry.key.value;
    let help = format!("write two hexadecimal digits for each byte: `{key} = \"50 49 4e 47 0d 0a\"`");
    let text = document::text(errors, key, entry.value, "hexadecimal digits in quotes", &help)?;
    let digits: Option<Vec<u8>> = text
        .value
        .chars()
        .filter(|c| !c.is_ascii_whitespace())
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let Some(digits) = digits.filter(|digits| digits.len().is_multiple_of(2)) else {
        errors.at(text.span, format!("`{key}` is not hexadecimal: {}", quote(text.value))).help(help);
        return None;
    };
    bounded(errors, entry, digits.len() / 2, &help)?;
    let (pairs, _) = digits.as_chunks::<2>();
    Some(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// `*` and `?` as in a shell; a backslash takes the meaning of the next character.
fn read_glob(errors: &mut Errors, entry: Entry<'_>, text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let piece = match byte {
            b'*' if pieces.last() == Some(&Piece::Many) => continue,
            b'*' => Piece::Many,
            b'?' => Piece::One,
            b'\\' => match bytes.next() {
                Some(byte) => Piece::Byte(byte),
                None => {
                    let message = "`expect_glob` ends with a backslash that escapes nothing";
                    errors.at(entry.span(), message).help("write it twice, or remove it");
                    return None;
                }
            },
            _ => Piece::Byte(byte),
        };
        pieces.push(piece);
    }
    Some(pieces)
}
