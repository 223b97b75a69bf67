//! What is wrong with a configuration, and where.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl From<std::ops::Range<usize>> for Span {
    fn from(range: std::ops::Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// Something read from the file, with the place it was read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Span,
}

/// One error under construction.
#[derive(Debug)]
pub(crate) struct Error {
    span: Span,
    message: String,
    help: Option<String>,
    related: Vec<(Span, String)>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The text is not TOML.
    Syntax,
    /// What stands at the place is wrong, whatever the rest of the file says.
    Local,
    /// Something is absent. Beside a syntax error that proves nothing: it may be in the part that was not read.
    Absent,
}

impl Error {
    /// What to write instead.
    pub(crate) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    /// Another place that has to do with it.
    pub(crate) fn related(&mut self, span: Span, label: impl Into<String>) -> &mut Self {
        self.related.push((span, label.into()));
        self
    }
}

/// Collects errors while the document is walked.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    list: Vec<Error>,
}

impl Errors {
    /// Something at `span` is wrong: one sentence saying what, without a full stop.
    pub(crate) fn at(&mut self, span: Span, message: impl Into<String>) -> &mut Error {
        self.push(span, message.into(), Kind::Local)
    }

    /// The text at `span` is not TOML.
    pub(super) fn syntax(&mut self, span: Span, message: impl Into<String>) -> &mut Error {
        self.push(span, message.into(), Kind::Syntax)
    }

    /// Something that should be at or below `span` is not there.
    pub(super) fn absent(&mut self, span: Span, message: impl Into<String>) -> &mut Error {
        self.push(span, message.into(), Kind::Absent)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn has_syntax_errors(&self) -> bool {
        self.list.iter().any(|error| error.kind == Kind::Syntax)
    }

    fn push(&mut self, span: Span, message: String, kind: Kind) -> &mut Error {
        self.list.push(Error { span, message, help: None, related: Vec::new(), kind });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Orders the errors by position and drops what only follows from a syntax error.
    pub(crate) fn finish(self, source: &str, file: &Path) -> Diagnostics {
        let lines = Lines::new(source);
        let syntax: HashSet<usize> = self
            .list
            .iter()
            .filter(|error| error.kind == Kind::Syntax)
            .map(|error| lines.position(error.span.start).0)
            .collect();
        let mut list: Vec<Diagnostic> = self
            .list
            .into_iter()
            .filter(|error| match error.kind {
                Kind::Syntax => true,
                Kind::Local => !syntax.contains(&lines.position(error.span.start).0),
                Kind::Absent => syntax.is_empty(),
            })
            .map(|error| Diagnostic::new(error, &lines))
            .collect();
        list.sort_by(|a, b| (a.span, &a.message).cmp(&(b.span, &b.message)));
        list.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        Diagnostics { file: file.display().to_string(), source: source.to_owned(), list }
    }
}

/// One error of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    span: Span,
    related: Vec<Related>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Related {
    span: Span,
    line: usize,
    label: String,
}

impl Diagnostic {
    fn new(error: Error, lines: &Lines<'_>) -> Self {
        let span = lines.first_line(error.span);
        let (line, column) = lines.position(span.start);
        let related = error
            .related
            .into_iter()
            .map(|(span, label)| {
                let span = lines.first_line(span);
                Related { span, line: lines.position(span.start).0, label }
            })
            .collect();
        Self { line, column, message: error.message, help: error.help, span, related }
    }

    /// Everything about it in one line, without the position.
    fn text(&self) -> String {
        let mut text = self.message.clone();
        if !self.related.is_empty() {
            let places: Vec<String> = self
                .related
                .iter()
                .map(|related| format!("{} in line {}", related.label, related.line))
                .collect();
            text.push_str(&format!(" ({})", places.join(", ")));
        }
        if let Some(help) = &self.help {
            text.push_str(&format!("; {help}"));
        }
        text
    }
}

/// All errors of a configuration file, in the order of their positions. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    file: String,
    source: String,
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// The errors, in the order of their positions.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// One `file:line:column: text` for each error.
    pub fn lines(&self) -> Vec<String> {
        self.list
            .iter()
            .map(|error| format!("{}:{}:{}: {}", self.file, error.line, error.column, error.text()))
            .collect()
    }

    /// For a terminal: each error with its source line and what to write instead, and a line that counts them.
    /// With `color`, ANSI escape sequences are used.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let lines = Lines::new(&self.source);
        let mut text = String::new();
        for error in &self.list {
            text.push_str(&self.render_one(error, &lines, &renderer));
            text.push_str("\n\n");
        }
        let count = self.list.len();
        let plural = if count == 1 { "" } else { "s" };
        text.push_str(&format!("{}: {count} error{plural}\n", self.file));
        text
    }

    fn render_one(&self, error: &Diagnostic, lines: &Lines<'_>, renderer: &Renderer) -> String {
        // Only the lines between the places concerned: the renderer would index the whole file for each error.
        let spans = || std::iter::once(error.span).chain(error.related.iter().map(|related| related.span));
        let start = lines.line_start(spans().map(|span| span.start).min().unwrap_or_default());
        let end = lines.line_end(spans().map(|span| span.end).max().unwrap_or_default());
        let within = |span: Span| span.start - start..span.end - start;

        let mut snippet = Snippet::source(&self.source[start..end])
            .line_start(lines.position(start).0)
            .annotation(AnnotationKind::Primary.span(within(error.span)));
        for related in &error.related {
            let annotation = AnnotationKind::Context.span(within(related.span)).label(&related.label);
            snippet = snippet.annotation(annotation);
        }
        // The position comes first, as compilers write it, so that editors find the place.
        let title = format!("{}:{}:{}: error", self.file, error.line, error.column);
        let title = Level::ERROR.with_name(title).primary_title(&error.message);
        let mut group: Group<'_> = title.element(snippet);
        if let Some(help) = &error.help {
            group = group.element(Level::HELP.message(help));
        }
        renderer.render(&[group])
    }
}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

impl std::error::Error for Diagnostics {}

/// Where the lines of a text begin.
struct Lines<'a> {
    source: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(source: &'a str) -> Self {
        let starts = std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { source, starts }
    }

    fn index(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset) - 1
    }

    /// Line and column, from 1, the column in characters.
    fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.source.floor_char_boundary(offset);
        let index = self.index(offset);
        let before = &self.source[self.starts[index]..offset];
        // A byte order mark is not a character an editor shows.
        let column = before.chars().filter(|c| *c != '\u{feff}').count() + 1;
        (index + 1, column)
    }

    fn line_start(&self, offset: usize) -> usize {
        self.starts[self.index(offset)]
    }

    /// The end of the line's text, before its line break.
    fn line_end(&self, offset: usize) -> usize {
        let rest = &self.source[offset..];
        let length = rest.find('\n').unwrap_or(rest.len());
        offset + rest[..length].trim_end_matches('\r').len()
    }

    /// The part of a span in its first line, on character boundaries: a list over many lines is pointed at where
    /// it begins.
    fn first_line(&self, span: Span) -> Span {
        let start = self.source.floor_char_boundary(span.start);
        let end = self.source.ceil_char_boundary(span.end).max(start);
        Span { start, end: end.min(self.line_end(start)).max(start) }
    }
}
