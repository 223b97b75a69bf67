//! Finding a text in a stream, with a bounded part of it in memory. Pure.

/// Looks for one text (Knuth, Morris, Pratt: Fast pattern matching in strings, SIAM J. Comput. 6, 1977): each byte of
/// the stream costs the same on average, whatever it is.
#[derive(Clone, Debug)]
pub struct Finder {
    needle: Vec<u8>,
    /// For each position, how many bytes are still good when the next one is wrong.
    fallback: Vec<usize>,
    matched: usize,
}

impl Finder {
    #[must_use]
    pub fn new(needle: &[u8]) -> Self {
        let mut fallback = vec![0; needle.len()];
        let mut length = 0;
        for index in 1..needle.len() {
            while length > 0 && needle[index] != needle[length] {
                length = fallback[length - 1];
            }
            length += usize::from(needle[index] == needle[length]);
            fallback[index] = length;
        }
        Self { needle: needle.to_vec(), fallback, matched: 0 }
    }

    /// Takes in more of the stream. True when the text has been found.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            if self.matched == self.needle.len() {
                return true;
            }
            while self.matched > 0 && self.needle[self.matched] != byte {
                self.matched = self.fallback[self.matched - 1];
            }
            self.matched += usize::from(self.needle[self.matched] == byte);
        }
        self.matched == self.needle.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_across_pieces() {
        let mut finder = Finder::new(b"all is well");
        assert!(!finder.push(b"<p>all is "));
        assert!(!finder.push(b"all is we"));
        assert!(finder.push(b"ll</p>"));
        assert!(finder.push(b"more"), "once found, it stays found");
        assert!(Finder::new(b"").push(b""));
        assert!(!Finder::new(b"a").push(b""));
        assert!(Finder::new(b"aab").push(b"aaab"));
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_of_the_whole(
            needle in "[ab]{1,6}",
            pieces in prop::collection::vec("[ab]{0,8}", 0..8),
        ) {
            let mut finder = Finder::new(needle.as_bytes());
            let mut whole = String::new();
            for piece in &pieces {
                whole.push_str(piece);
                prop_assert_eq!(finder.push(piece.as_bytes()), whole.contains(&needle));
            }
        }
    }
}
