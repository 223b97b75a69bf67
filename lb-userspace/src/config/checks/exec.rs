//! Reading an exec check.

use toml::de::DeValue;

use super::super::Exec;
use super::super::diagnostics::{Errors, Span};
use super::super::document::{self, Entry, Known};
use super::super::values::quote;
use super::{line, optional};

/// Whom programs run as. The kernel's overflow user, to whom no file belongs.
const NOBODY: &str = "nobody";

const HELP: &str = "write the program and its arguments: \
                    `command = [\"/usr/local/bin/check-mail\", \"{address}\"]`";

pub(super) fn read(errors: &mut Errors, known: &Known<'_>, key: Span) -> Option<Exec> {
    let command = match known.get("command") {
        Some(entry) => read_command(errors, entry),
        None => {
            if known.lacks("command") {
                errors.absent(key, "the check has no `command`").help(HELP);
            }
            None
        }
    };
    let user = optional(errors, known, "user", |errors, entry| line(errors, entry, NOBODY))?;
    Some(Exec { command: command?, user: user.or_else(|| Some(NOBODY.to_owned())) })
}

/// A text is split at blanks; a list is taken as it is.
fn read_command(errors: &mut Errors, entry: Entry<'_>) -> Option<Vec<String>> {
    let words: Vec<String> = match entry.value.get_ref() {
        DeValue::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        _ => document::list(errors, entry, "a command, or a list of its words", HELP)
            .iter()
            .map(|item| document::text(errors, "command", item, "a list of texts", HELP))
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .map(|text| text.value.to_owned())
            .collect(),
    };
    if let Some(word) = words.iter().find(|word| word.contains('\0')) {
        errors.at(entry.span(), format!("`command` contains a NUL byte: {}", quote(word))).help(HELP);
        return None;
    }
    let absolute = words.first().is_some_and(|program| program.starts_with('/'));
    if !absolute && !matches!(entry.value.get_ref().as_array(), Some(array) if array.is_empty()) {
        errors.at(entry.span(), "`command` does not begin with the absolute path of a program").help(HELP);
    }
    absolute.then_some(words)
}
