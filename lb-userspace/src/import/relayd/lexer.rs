//! Words of relayd.conf(5). What it takes for a word, a number or a string is what relayd's own lexer does: macros are
//! replaced before words are cut, a backslash at the end of a line joins it with the next, also in a comment.

use std::collections::HashMap;

use super::source::{Place, Sources};
use crate::config::Span;

/// Bytes of a word or string, as in relayd.
const LONGEST_TOKEN: usize = 8095;
/// Of all files together; macros make many of few.
const MOST_TOKENS: usize = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Without quotes: a keyword where one is expected.
    Word(String),
    Quoted(String),
    Number(i64),
    Sign(char),
    Newline,
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) place: Place,
}

/// Cuts texts into tokens. An included text is continued with the one that includes it.
#[derive(Debug)]
pub(super) struct Lexer {
    pub(super) sources: Sources,
    /// Open files with the next byte of each, the innermost last.
    open: Vec<(usize, usize)>,
    /// The rest of a macro's value.
    expansion: Option<(Vec<u8>, usize)>,
    macros: HashMap<String, String>,
    /// Names that no definition of the file replaces.
    fixed: Vec<String>,
    count: usize,
    /// Undefined macros are no error: what is read is skipped.
    pub(super) lenient: bool,
}

impl Lexer {
    pub(super) fn new(name: &str, content: String, defined: &[(String, String)]) -> Self {
        let mut sources = Sources::default();
        let file = sources.add(name, content);
        Self {
            sources,
            open: vec![(file, 0)],
            expansion: None,
            macros: defined.iter().cloned().collect(),
            fixed: defined.iter().map(|(name, _)| name.clone()).collect(),
            count: 0,
            lenient: false,
        }
    }

    pub(super) fn define(&mut self, name: &str, value: String) {
        if !self.fixed.iter().any(|fixed| fixed == name) {
            self.macros.insert(name.to_owned(), value);
        }
    }

    /// Goes on with an included text.
    pub(super) fn include(&mut self, name: &str, content: String) {
        let file = self.sources.add(name, content);
        self.open.push((file, 0));
    }

    /// Whether this file is being read, here or further out.
    pub(super) fn is_open(&self, name: &str) -> bool {
        self.open.iter().any(|(file, _)| self.sources.name(*file) == name)
    }

    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    fn file(&self) -> (usize, usize) {
        self.open.last().copied().unwrap_or_default()
    }

    /// The bytes that are being read, and the next one's place.
    fn current(&mut self) -> (&[u8], usize) {
        if self.expansion.as_ref().is_some_and(|(bytes, at)| *at >= bytes.len()) {
            self.expansion = None;
        }
        match &self.expansion {
            Some((bytes, at)) => (bytes, *at),
            None => {
                let (file, at) = self.open.last().copied().unwrap_or_default();
                (self.sources.bytes(file), at)
            }
        }
    }

    fn advance(&mut self, count: usize) {
        if let Some((_, at)) = &mut self.expansion {
            *at += count;
        } else if let Some((_, at)) = self.open.last_mut() {
            *at += count;
        }
    }

    /// The next byte, of joined lines, without the backslash that may stand before it.
    fn peek(&mut self) -> Option<u8> {
        loop {
            let (bytes, at) = self.current();
            let rest = bytes.get(at..).unwrap_or_default();
            match rest {
                [b'\\', b'\n', ..] => self.advance(2),
                [b'\\', b'\r', b'\n', ..] => self.advance(3),
                [b'\\'] => self.advance(1),
                [b'\\', byte, ..] | [byte, ..] => return Some(*byte),
                [] => return None,
            }
        }
    }

    /// Takes what [`Self::peek`] has shown.
    fn bump(&mut self) {
        let (bytes, at) = self.current();
        let escaped = bytes.get(at) == Some(&b'\\');
        self.advance(if escaped { 2 } else { 1 });
    }

    fn raw(&mut self) -> Option<u8> {
        let (bytes, at) = self.current();
        let byte = bytes.get(at).copied()?;
        self.advance(1);
        Some(byte)
    }

    /// The next token. After the end there is only the end.
    pub(super) fn next(&mut self) -> Token {
        self.count += 1;
        if self.count > MOST_TOKENS {
            if self.count == MOST_TOKENS + 1 {
                let place = self.place(self.file());
                let message = format!("more than {MOST_TOKENS} words, which no configuration has");
                self.sources.error(place, message, "");
            }
            self.open.truncate(1);
            self.expansion = None;
            return Token { kind: Kind::End, place: self.place(self.file()) };
        }
        loop {
            while matches!(self.peek(), Some(b' ' | b'\t' | b'\r')) {
                self.bump();
            }
            let start = self.file();
            let Some(byte) = self.peek() else {
                if self.open.len() > 1 {
                    // An included text ends as if with a line break.
                    self.open.pop();
                    return Token { kind: Kind::Newline, place: self.place(start) };
                }
                return Token { kind: Kind::End, place: self.place(start) };
            };
            let kind = match byte {
                b'#' => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.bump();
                    }
                    continue;
                }
                b'$' if self.expansion.is_none() => {
                    self.expand(start);
                    continue;
                }
                b'\n' => {
                    self.bump();
                    Kind::Newline
                }
                b'"' | b'\'' => {
                    self.bump();
                    let Some(text) = self.quoted(byte) else {
                        let place = Place { file: start.0, span: Span { start: start.1, end: start.1 + 1 } };
                        self.sources.error(place, "the text has no closing quote", "");
                        return Token { kind: Kind::End, place };
                    };
                    Kind::Quoted(text)
                }
                byte if byte == b'-' || byte.is_ascii_alphanumeric() || b":_".contains(&byte) => {
                    self.word(byte)
                }
                _ => self.sign(byte),
            };
            let place = self.place(start);
            if let Kind::Word(text) | Kind::Quoted(text) = &kind
                && text.len() > LONGEST_TOKEN
            {
                let message = format!("a word of {} bytes; relayd takes {LONGEST_TOKEN}", text.len());
                self.sources.error(place, message, "");
            }
            return Token { kind, place };
        }
    }

    /// From `start` to what comes next in the same file.
    fn place(&self, start: (usize, usize)) -> Place {
        let (file, at) = self.file();
        let end = if file == start.0 { at.max(start.1) } else { start.1 };
        Place { file: start.0, span: Span { start: start.1, end } }
    }

    fn expand(&mut self, start: (usize, usize)) {
        self.bump();
        let mut name = Vec::new();
        while let Some(byte) = self.peek().filter(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
            name.push(byte);
            self.bump();
        }
        let name = String::from_utf8_lossy(&name).into_owned();
        if let Some(value) = self.macros.get(&name) {
            self.expansion = Some((value.clone().into_bytes(), 0));
        } else if !self.lenient {
            let help = format!("define it above, `{name} = \"VALUE\"`, or with -D {name}=VALUE");
            let place = self.place(start);
            self.sources.error(place, format!("macro ${name} is not defined"), &help);
        }
    }

    /// After the opening quote. Line breaks vanish, and a backslash before the quote, a blank or a tab; other
    /// backslashes stay.
    fn quoted(&mut self, quote: u8) -> Option<String> {
        let inside = self.expansion.is_some();
        let mut text = Vec::new();
        loop {
            let byte = self.raw().filter(|_| !inside || self.expansion.is_some())?;
            match byte {
                b'\n' => {}
                b'\\' => {
                    let (bytes, at) = self.current();
                    match bytes.get(at).copied()? {
                        next if next == quote || next == b' ' || next == b'\t' => {
                            text.push(next);
                            self.advance(1);
                        }
                        b'\n' => self.advance(1),
                        _ => text.push(b'\\'),
                    }
                }
                byte if byte == quote => return Some(String::from_utf8_lossy(&text).into_owned()),
                byte => text.push(byte),
            }
        }
    }

    /// A word, or a number if nothing but digits stands before a blank or one of `),/}=`.
    fn word(&mut self, first: u8) -> Kind {
        let allowed = |byte: u8| {
            byte.is_ascii_alphanumeric() || (byte.is_ascii_punctuation() && !b"(){}<>!=#,/".contains(&byte))
        };
        let mut text = vec![first];
        self.bump();
        while let Some(byte) = self.peek().filter(|byte| allowed(*byte)) {
            // A quote ends a word; relayd would take it for a part, which nobody means.
            if byte == b'"' || byte == b'\'' {
                break;
            }
            text.push(byte);
            self.bump();
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let digits = text.strip_prefix('-').unwrap_or(&text);
        if digits.is_empty() {
            return Kind::Sign('-');
        }
        let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        number.map_or(Kind::Word(text), Kind::Number)
    }

    /// One character that means something by itself, whole also where it has several bytes.
    fn sign(&mut self, first: u8) -> Kind {
        let mut bytes = vec![first];
        self.bump();
        if !first.is_ascii() {
            while let Some(byte) = self.peek().filter(|byte| byte & 0xc0 == 0x80) {
                bytes.push(byte);
                self.bump();
            }
        }
        let sign = String::from_utf8_lossy(&bytes).chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
        Kind::Sign(sign)
    }

    /// All tokens that are left.
    #[cfg(test)]
    pub(super) fn rest(&mut self) -> Vec<Token> {
        let mut all = Vec::new();
        loop {
            let token = self.next();
            if token.kind == Kind::End {
                return all;
            }
            all.push(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lex(text: &str) -> Vec<Kind> {
        let mut lexer = Lexer::new("x", text.to_owned(), &[("net".to_owned(), "10.0.0".to_owned())]);
        let kinds = lexer.rest().into_iter().map(|token| token.kind).collect();
        assert!(!lexer.sources.has_errors(), "{text}: {:?}", lexer.sources.into_errors());
        kinds
    }

    fn word(text: &str) -> Kind {
        Kind::Word(text.to_owned())
    }

    #[test]
    fn words_numbers_and_signs() {
        assert_eq!(
            lex("table <a> { 10.0.0.1, 2001:db8::1 }"),
            [
                word("table"),
                Kind::Sign('<'),
                word("a"),
                Kind::Sign('>'),
                Kind::Sign('{'),
                word("10.0.0.1"),
                Kind::Sign(','),
                word("2001:db8::1"),
                Kind::Sign('}'),
            ]
        );
        assert_eq!(
            lex("80 8000:8010 -1 8x"),
            [Kind::Number(80), word("8000:8010"), Kind::Number(-1), word("8x")]
        );
        assert_eq!(lex("99999999999999999999"), [word("99999999999999999999")]);
        assert_eq!(lex("\u{e9}x"), [Kind::Sign('\u{e9}'), word("x")]);
    }

    #[test]
    fn backslashes_join_lines_and_comments() {
        assert_eq!(lex("a \\\n b"), [word("a"), word("b")]);
        assert_eq!(lex("a # b \\\n c\nd"), [word("a"), Kind::Newline, word("d")]);
        assert_eq!(lex("a\\b"), [word("ab")]);
        assert_eq!(lex("a\\"), [word("a")]);
        assert_eq!(lex("a \\\r\n b"), [word("a"), word("b")]);
    }

    #[test]
    fn strings_lose_line_breaks_and_few_backslashes() {
        let quoted = |text: &str| Kind::Quoted(text.to_owned());
        assert_eq!(lex("\"a b\""), [quoted("a b")]);
        assert_eq!(lex("'a \"b\"'"), [quoted("a \"b\"")]);
        assert_eq!(lex("\"a\\\"b\\r\\n\""), [quoted("a\"b\\r\\n")]);
        assert_eq!(lex("\"a\nb\\\nc\""), [quoted("abc")]);
        assert_eq!(lex("\"$net\""), [quoted("$net")]);
    }

    #[test]
    fn macros_are_replaced_before_words_are_cut() {
        assert_eq!(lex("$net.7 x"), [word("10.0.0.7"), word("x")]);
        let mut lexer = Lexer::new("x", "$a $b".to_owned(), &[]);
        lexer.define("a", "1 two $b".to_owned());
        lexer.define("b", "\"three\"".to_owned());
        let kinds: Vec<Kind> = lexer.rest().into_iter().map(|token| token.kind).collect();
        let expected =
            [Kind::Number(1), word("two"), Kind::Sign('$'), word("b"), Kind::Quoted("three".to_owned())];
        assert_eq!(kinds, expected, "none within another");
    }

    #[test]
    fn what_was_given_from_outside_stays() {
        let mut lexer = Lexer::new("x", "$net".to_owned(), &[("net".to_owned(), "a".to_owned())]);
        lexer.define("net", "b".to_owned());
        assert_eq!(lexer.rest()[0].kind, word("a"));
    }
}
