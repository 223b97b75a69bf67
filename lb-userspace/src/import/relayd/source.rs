//! The texts that a configuration is made of: the file itself and what it includes.

use std::path::Path;

use crate::config::{Diagnostics, Errors, Span};

/// How deep files may include each other.
pub(super) const DEEPEST: usize = 16;
/// How many includes there may be in all: each is a file to read.
pub(super) const MOST_INCLUDES: usize = 256;

/// Where something stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Index of the file, in the order in which they were opened.
    pub(super) file: usize,
    pub(super) span: Span,
}

/// Something that was read, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

#[derive(Debug)]
struct Text {
    name: String,
    content: String,
    errors: Errors,
}

/// All texts, with what is wrong in each.
#[derive(Debug, Default)]
pub(super) struct Sources {
    texts: Vec<Text>,
}

impl Sources {
    pub(super) fn add(&mut self, name: &str, content: String) -> usize {
        self.texts.push(Text { name: name.to_owned(), content, errors: Errors::default() });
        self.texts.len() - 1
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn name(&self, file: usize) -> &str {
        self.texts.get(file).map_or("", |text| &text.name)
    }

    pub(super) fn bytes(&self, file: usize) -> &[u8] {
        self.texts.get(file).map_or(&[], |text| text.content.as_bytes())
    }

    /// Something is wrong: one sentence without a full stop, and what to write instead.
    pub(super) fn error(&mut self, place: Place, message: impl Into<String>, help: &str) {
        if let Some(text) = self.texts.get_mut(place.file) {
            let error = text.errors.at(place.span, message);
            if !help.is_empty() {
                error.help(help);
            }
        }
    }

    /// `FILE:LINE`, from 1.
    pub(super) fn line(&self, place: Place) -> String {
        let before = self.bytes(place.file).iter().take(place.span.start);
        format!("{}:{}", self.name(place.file), before.filter(|byte| **byte == b'\n').count() + 1)
    }

    pub(super) fn has_errors(&self) -> bool {
        self.texts.iter().any(|text| !text.errors.is_empty())
    }

    /// The errors, one list for each text that has some.
    pub(super) fn into_errors(self) -> Vec<Diagnostics> {
        let wrong = self.texts.into_iter().filter(|text| !text.errors.is_empty());
        wrong.map(|text| text.errors.finish(&text.content, Path::new(&text.name))).collect()
    }
}
