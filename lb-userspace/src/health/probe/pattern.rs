//! Whether an answer is like a [`Pattern`], one byte at a time. Pure.

use crate::config::{Pattern, Piece};

/// Follows all ways in which the bytes so far can match; a byte costs time in proportion to the pattern's length.
#[derive(Clone, Debug)]
pub struct Matcher<'p> {
    pieces: &'p [Piece],
    /// Bit N: the first N pieces match everything so far.
    states: Vec<u64>,
}

impl<'p> Matcher<'p> {
    /// Nothing has come so far.
    #[must_use]
    pub fn new(pattern: &'p Pattern) -> Self {
        let pieces = &pattern.pieces[..];
        let mut matcher = Self { pieces, states: vec![0; pieces.len() / 64 + 1] };
        set(&mut matcher.states, 0);
        matcher.skip_many();
        matcher
    }

    /// Takes in one byte. True when everything so far matches.
    pub fn push(&mut self, byte: u8) -> bool {
        let mut next = vec![0; self.states.len()];
        for (index, piece) in self.pieces.iter().enumerate() {
            if !has(&self.states, index) {
                continue;
            }
            match *piece {
                Piece::Many => set(&mut next, index),
                Piece::One => set(&mut next, index + 1),
                Piece::Byte(wanted) if wanted == byte => set(&mut next, index + 1),
                Piece::Byte(_) => {}
            }
        }
        self.states = next;
        self.skip_many();
        has(&self.states, self.pieces.len())
    }

    /// Whether no continuation can match.
    #[must_use]
    pub fn is_hopeless(&self) -> bool {
        self.states.iter().all(|word| *word == 0)
    }

    /// [`Piece::Many`] may stand for nothing.
    fn skip_many(&mut self) {
        for (index, piece) in self.pieces.iter().enumerate() {
            if *piece == Piece::Many && has(&self.states, index) {
                set(&mut self.states, index + 1);
            }
        }
    }
}

fn has(states: &[u64], index: usize) -> bool {
    states[index / 64] >> (index % 64) & 1 == 1
}

fn set(states: &mut [u64], index: usize) {
    states[index / 64] |= 1 << (index % 64);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(glob: &str) -> Pattern {
        let pieces = glob
            .bytes()
            .map(|byte| match byte {
                b'*' => Piece::Many,
                b'?' => Piece::One,
                other => Piece::Byte(other),
            })
            .collect();
        Pattern { written: glob.to_owned(), pieces }
    }

    /// After how many bytes it matched first.
    fn first_match(glob: &str, bytes: &[u8]) -> Option<usize> {
        let pattern = pattern(glob);
        let mut matcher = Matcher::new(&pattern);
        (1..=bytes.len()).find(|&length| matcher.push(bytes[length - 1]))
    }

    #[test]
    fn globs() {
        assert_eq!(first_match("220 *", b"220 mx.example"), Some(4));
        assert_eq!(first_match("220 *", b"220-mx.example"), None);
        assert_eq!(first_match("*250 *", b"250-a\r\n250 b\r\n"), Some(11));
        assert_eq!(first_match("+OK*\r\n", b"+OK ready\r\n"), Some(11));
        assert_eq!(first_match("?K", b"OK"), Some(2));
        assert_eq!(first_match("*", b"x"), Some(1));
        assert_eq!(first_match("", b"x"), None);
        let long = format!("*{}*", "x".repeat(300));
        assert_eq!(first_match(&long, format!("y{}", "x".repeat(400)).as_bytes()), Some(301));
    }

    #[test]
    fn what_cannot_match_any_more_is_known_at_once() {
        let pattern = pattern("220*");
        let mut matcher = Matcher::new(&pattern);
        assert!(!matcher.push(b'2') && !matcher.is_hopeless());
        assert!(!matcher.push(b'5') && matcher.is_hopeless());
    }

    /// Said in another way.
    fn reference(pieces: &[Piece], bytes: &[u8]) -> bool {
        match (pieces.split_first(), bytes.split_first()) {
            (None, None) => true,
            (Some((Piece::Many, rest)), None) => reference(rest, bytes),
            (Some((Piece::Many, rest)), Some((_, fewer))) => {
                reference(rest, bytes) || reference(pieces, fewer)
            }
            (Some((Piece::One, rest)), Some((_, fewer))) => reference(rest, fewer),
            (Some((Piece::Byte(wanted), rest)), Some((byte, fewer))) => {
                wanted == byte && reference(rest, fewer)
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(glob in "[ab*?]{0,8}", bytes in "[ab]{0,10}") {
            let pattern = pattern(&glob);
            let mut matcher = Matcher::new(&pattern);
            for (index, byte) in bytes.bytes().enumerate() {
                let so_far = &bytes.as_bytes()[..=index];
                prop_assert_eq!(matcher.push(byte), reference(&pattern.pieces, so_far));
            }
        }
    }
}
