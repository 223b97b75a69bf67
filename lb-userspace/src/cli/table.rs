//! Text tables: columns without borders, as wide as the terminal, plain when piped.

use std::borrow::Cow;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width, presets,
};

use crate::api::types::AdminState;
use crate::health::Health;

/// A column's heading, and what it holds.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// A name or a word, never broken.
    Text(&'static str),
    /// To the right, never broken.
    Number(&'static str),
    /// Broken into lines where the terminal is narrow.
    Prose(&'static str),
}

/// Narrower prose would be a column of syllables; the terminal may rather break the row.
const NARROWEST_PROSE: u16 = 24;

/// A table with these headings and no rows.
pub fn table(columns: &[Column]) -> Table {
    let mut table = Table::new();
    // Colours are always written; the output stream removes them where nobody sees them.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).enforce_styling();
    table.set_header(columns.iter().map(|column| {
        let (Column::Text(name) | Column::Number(name) | Column::Prose(name)) = *column;
        Cell::new(name).add_attribute(Attribute::Bold)
    }));
    for (column, kind) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        column.set_constraint(match kind {
            Column::Text(_) | Column::Number(_) => ColumnConstraint::ContentWidth,
            Column::Prose(_) => ColumnConstraint::LowerBoundary(Width::Fixed(NARROWEST_PROSE)),
        });
        if let Column::Number(_) = kind {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table as lines without trailing blanks.
pub fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        push_trimmed(&mut text, &line);
        text.push('\n');
    }
    text
}

/// Adds the line without the blanks at its end, but with the escape sequences among them, which end a colour.
fn push_trimmed(text: &mut String, line: &str) {
    let line = line.trim_end();
    let sequence = line.strip_suffix('m').and_then(|rest| {
        let start = rest.rfind("\x1b[")?;
        rest[start + 2..].bytes().all(|byte| byte.is_ascii_digit() || byte == b';').then_some(start)
    });
    let Some(start) = sequence else { return text.push_str(line) };
    push_trimmed(text, &line[..start]);
    text.push_str(&line[start..]);
}

/// A cell of text that came from elsewhere.
pub fn text(content: &str) -> Cell {
    Cell::new(clean(content))
}

/// A word in the colour of what it means.
pub fn status(word: &str, meaning: Meaning) -> Cell {
    match meaning {
        Meaning::Good => Cell::new(word).fg(Color::DarkGreen),
        Meaning::Bad => Cell::new(word).fg(Color::DarkRed),
        Meaning::Notice => Cell::new(word).fg(Color::DarkYellow),
    }
}

/// What an operator should feel when reading a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    Good,
    Bad,
    Notice,
}

/// The word for what the checks say.
pub fn health(health: Health) -> (&'static str, Meaning) {
    match health {
        Health::Unknown => ("unknown", Meaning::Notice),
        Health::Up => ("up", Meaning::Good),
        Health::Down => ("down", Meaning::Bad),
    }
}

/// The word for what an operator decided.
pub fn admin(state: AdminState) -> (&'static str, Meaning) {
    match state {
        AdminState::Enabled => ("enabled", Meaning::Good),
        AdminState::Draining => ("draining", Meaning::Notice),
        AdminState::Disabled => ("disabled", Meaning::Notice),
    }
}

/// The text with everything that could move a terminal's cursor, or reorder its letters, written as an escape.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if harmful(character) {
            cleaned.extend(character.escape_default());
        } else {
            cleaned.push(character);
        }
    }
    Cow::Owned(cleaned)
}

fn harmful(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `1536` as `1.5 KiB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the next smaller unit, so that whole numbers are enough.
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::{clean, human_bytes, push_trimmed};

    #[test]
    fn colours_do_not_keep_blanks_alive() {
        let mut text = String::new();
        push_trimmed(&mut text, "\x1b[32mup\x1b[39m  \x1b[1mName    \x1b[22m \x1b[0m  ");
        assert_eq!(text, "\x1b[32mup\x1b[39m  \x1b[1mName\x1b[22m\x1b[0m");
        text.clear();
        push_trimmed(&mut text, "room");
        assert_eq!(text, "room");
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1024), "1.0 KiB");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(1024 * 1024 - 1), "1023.9 KiB");
        assert_eq!(human_bytes(5 << 30), "5.0 GiB");
        assert_eq!(human_bytes(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn terminals_are_safe() {
        assert_eq!(clean("220 mäil ok"), "220 mäil ok");
        assert_eq!(clean("a\x1b[31m\r\nb\u{202e}"), "a\\u{1b}[31m\\r\\nb\\u{202e}");
    }
}
