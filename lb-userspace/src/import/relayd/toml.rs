//! A TOML document that is written by the line, so that lines can be taken back as comments.

use std::collections::BTreeSet;
use std::path::Path;

use super::syntax::Note;
use crate::config;

/// Rounds in which what the loader refuses is taken back; what is left after them goes altogether.
const ROUNDS: usize = 64;

/// A text in TOML's quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A line of a table.
#[derive(Debug)]
pub(super) struct Line {
    text: String,
    /// One of a list, which can do without it.
    item: bool,
    /// The pool without which it means nothing.
    pool: Option<String>,
    taken_back: bool,
}

impl Line {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), item: false, pool: None, taken_back: false }
    }

    pub(super) fn item(text: impl Into<String>) -> Self {
        Self { text: text.into(), item: true, pool: None, taken_back: false }
    }

    /// One that names another pool, and that its table can do without.
    pub(super) fn of_pool(text: impl Into<String>, pool: String) -> Self {
        Self { pool: Some(pool), ..Self::item(text) }
    }
}

/// A table with what is to be known of it.
#[derive(Debug)]
pub(super) struct Block {
    /// Its place is what notes about the whole are given.
    pub(super) about: Note,
    /// Stand above it.
    pub(super) notes: Vec<Note>,
    pub(super) lines: Vec<Line>,
    /// Of a pool: its own name. Of a service: those that it cannot do without.
    pub(super) pools: Vec<String>,
    pub(super) is_pool: bool,
    /// All of it is a comment.
    pub(super) taken_back: bool,
}

#[derive(Debug)]
pub(super) struct Document {
    /// Comments at the top.
    pub(super) title: Vec<String>,
    /// What stands before the first table.
    pub(super) head: Vec<String>,
    pub(super) blocks: Vec<Block>,
}

/// How a note names its place: `FILE:LINE`.
pub(super) type Locate<'a> = &'a dyn Fn(&Note) -> String;

impl Document {
    /// The whole text, and which block and line of it each line belongs to.
    fn write(&self, locate: Locate<'_>) -> (String, Vec<Option<(usize, usize)>>) {
        let mut out = Out::default();
        for line in &self.title {
            out.comment(line);
        }
        out.line("", None);
        for line in &self.head {
            out.line(line, None);
        }
        for (number, block) in self.blocks.iter().enumerate() {
            out.line("", None);
            out.comment(&format!("{}: {}", locate(&block.about), block.about.text));
            for note in &block.notes {
                out.comment(&format!("{}: {}", locate(note), note.text));
            }
            for (index, line) in block.lines.iter().enumerate() {
                if block.taken_back || line.taken_back {
                    out.comment(&line.text);
                } else {
                    out.line(&line.text, Some((number, index)));
                }
            }
        }
        (out.text, out.owners)
    }

    /// The text, as the loader takes it: what it refuses is a comment, with the reason. The flag says whether any
    /// service is left.
    pub(super) fn finish(&mut self, locate: Locate<'_>, interfaces: &str) -> (String, bool) {
        for round in 0..ROUNDS {
            self.settle();
            if !self.blocks.iter().any(|block| !block.is_pool && !block.taken_back) {
                break;
            }
            let (text, owners) = self.write(locate);
            let Err(errors) = config::parse(&text, Path::new("import")) else { return (text, true) };
            let mut changed = false;
            for error in &errors {
                let owner = owners.get(error.line.saturating_sub(1)).copied().flatten();
                let Some((block, line)) = owner else { continue };
                let Some(block) = self.blocks.get_mut(block) else { continue };
                changed |= block.take_back(line, &error.message);
            }
            if !changed {
                // Something that concerns all, such as a name of an interface that no interface can have.
                if round > 0 && self.head.iter().any(|line| line == interfaces) {
                    break;
                }
                self.head = vec![interfaces.to_owned()];
            }
        }
        for block in &mut self.blocks {
            block.taken_back = true;
        }
        (self.write(locate).0, false)
    }

    /// Takes back services without their pools, and pools without a service.
    fn settle(&mut self) {
        let gone = |block: &&Block| block.is_pool && block.taken_back;
        let gone: BTreeSet<String> =
            self.blocks.iter().filter(gone).flat_map(|block| block.pools.clone()).collect();
        for block in &mut self.blocks {
            block.taken_back |= block.pools.iter().any(|pool| gone.contains(pool));
            let of_gone = |line: &&mut Line| line.pool.as_ref().is_some_and(|pool| gone.contains(pool));
            for line in block.lines.iter_mut().filter(of_gone) {
                line.taken_back = true;
            }
        }
        let services = self.blocks.iter().filter(|block| !block.is_pool && !block.taken_back);
        let of_lines = |block: &Block| {
            let there = block.lines.iter().filter(|line| !line.taken_back);
            there.filter_map(|line| line.pool.clone()).collect::<Vec<_>>()
        };
        let used: BTreeSet<String> =
            services.flat_map(|block| block.pools.iter().cloned().chain(of_lines(block))).collect();
        for block in &mut self.blocks {
            block.taken_back |= block.is_pool && !block.pools.iter().any(|pool| used.contains(pool));
        }
    }

    /// All notes.
    pub(super) fn notes(&self) -> impl Iterator<Item = &Note> {
        self.blocks.iter().flat_map(|block| &block.notes)
    }
}

impl Block {
    /// Makes a comment of a line, or of all where it cannot be missing. Says whether anything was left to take.
    fn take_back(&mut self, line: usize, reason: &str) -> bool {
        let Some(line) = self.lines.get_mut(line) else { return false };
        if self.taken_back || line.taken_back {
            return false;
        }
        let what = if line.item {
            line.taken_back = true;
            format!("left out {}", line.text.trim().trim_end_matches(','))
        } else {
            self.taken_back = true;
            "left out".to_owned()
        };
        self.notes.push(Note { place: self.about.place, text: format!("{what}: {reason}") });
        true
    }
}

#[derive(Default)]
struct Out {
    text: String,
    owners: Vec<Option<(usize, usize)>>,
}

impl Out {
    /// Control characters have no place in a document, nor in a terminal.
    fn line(&mut self, text: &str, owner: Option<(usize, usize)>) {
        self.text.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
        self.text.push('\n');
        self.owners.push(owner);
    }

    fn comment(&mut self, text: &str) {
        self.line(format!("# {text}").trim_end(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_anything() {
        for text in ["", "a\"b\\c", "\r\n\t\u{0}\u{7f}\u{85}", "\u{e9}\u{2028}"] {
            let table: toml::Table = format!("a = {}", quoted(text)).parse().expect("TOML");
            assert_eq!(table["a"].as_str(), Some(text));
        }
    }
}
