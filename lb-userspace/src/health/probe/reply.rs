//! SMTP replies (RFC 5321 section 4.2), one byte at a time. Pure.

/// The longest line, its end included. RFC 5321 section 4.5.3.1.5 says 512; servers exceed it.
pub const MAX_LINE: usize = 2048;
/// The most lines of one reply.
pub const MAX_LINES: usize = 100;
/// The longest reply in bytes.
pub const MAX_REPLY: usize = 64 * 1024;
/// How many characters of a reply's text are kept.
pub const MAX_TEXT: usize = 80;

const STARTTLS: &str = "STARTTLS";

/// A whole reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// The text of the first line: at most [`MAX_TEXT`] printable ASCII characters, fit for a log.
    pub text: String,
    /// Whether a line but the first is the keyword STARTTLS (RFC 3207 section 4.1).
    pub offers_starttls: bool,
}

/// Why bytes are not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    Malformed,
    TooLong,
}

/// Collects one reply. Keeps a bounded part of it, however much a server sends.
///
/// More lenient than the RFC where servers are: a line may end in a bare LF, and the code needs no text, nor
/// a space, behind it.
#[derive(Debug, Default)]
pub struct ReplyParser {
    position: Position,
    /// Of the line being read.
    line_code: u16,
    /// Bytes of the line being read.
    line_length: usize,
    /// Whole lines read.
    lines: usize,
    /// Bytes read.
    length: usize,
    /// Of the first line; the others must repeat it.
    code: Option<u16>,
    text: String,
    /// The first characters of the line's text, if it is not the first line.
    keyword: String,
    offers_starttls: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    /// Before the first, second, third digit.
    #[default]
    First,
    Second,
    Third,
    /// Behind the code.
    Separator,
    /// Behind "250-" or "250 ".
    Text {
        last: bool,
    },
    /// Behind a CR that directly follows the code.
    LineFeed,
}

impl ReplyParser {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one byte. Returns the reply when it is whole; the parser is then ready for the next one.
    ///
    /// # Errors
    /// As soon as no continuation can be a reply within the limits. The parser is of no use then.
    pub fn push(&mut self, byte: u8) -> Result<Option<Reply>, ReplyError> {
        self.line_length += 1;
        self.length += 1;
        if self.line_length > MAX_LINE || self.length > MAX_REPLY {
            return Err(ReplyError::TooLong);
        }
        self.position = match (self.position, byte) {
            (Position::First, b'2'..=b'5') => {
                self.line_code = u16::from(byte - b'0');
                Position::Second
            }
            (Position::Second, b'0'..=b'9') => {
                self.line_code = self.line_code * 10 + u16::from(byte - b'0');
                Position::Third
            }
            (Position::Third, b'0'..=b'9') => {
                self.line_code = self.line_code * 10 + u16::from(byte - b'0');
                if self.code.is_some_and(|code| code != self.line_code) {
                    return Err(ReplyError::Malformed);
                }
                self.code = Some(self.line_code);
                Position::Separator
            }
            (Position::Separator, b' ') => Position::Text { last: true },
            (Position::Separator, b'-') => Position::Text { last: false },
            (Position::Separator, b'\r') => Position::LineFeed,
            (Position::Separator | Position::LineFeed, b'\n') => return self.end_of_line(true),
            (Position::Text { last }, b'\n') => return self.end_of_line(last),
            (Position::Text { last }, _) => {
                // The CR of the line's end is the last byte and so never shows: see `end_of_line`.
                if self.lines == 0 && self.text.len() <= MAX_TEXT {
                    let printable = matches!(byte, b' '..=b'~' | b'\r');
                    self.text.push(if printable { char::from(byte) } else { '?' });
                } else if self.lines > 0 && self.keyword.len() <= STARTTLS.len() {
                    self.keyword.push(char::from(byte));
                }
                Position::Text { last }
            }
            _ => return Err(ReplyError::Malformed),
        };
        Ok(None)
    }

    fn end_of_line(&mut self, last: bool) -> Result<Option<Reply>, ReplyError> {
        self.lines += 1;
        self.line_length = 0;
        self.position = Position::First;
        self.offers_starttls |= self.keyword.trim_end().eq_ignore_ascii_case(STARTTLS);
        self.keyword.clear();
        if last {
            let Self { code, mut text, offers_starttls, .. } = std::mem::take(self);
            if text.ends_with('\r') {
                text.pop();
            }
            text.truncate(MAX_TEXT);
            let text = text.replace('\r', "?").trim().to_owned();
            return Ok(Some(Reply { code: code.unwrap_or_default(), text, offers_starttls }));
        }
        if self.lines == MAX_LINES { Err(ReplyError::TooLong) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The replies in `bytes`, up to the first error.
    fn parse(bytes: &[u8]) -> Result<Vec<Reply>, ReplyError> {
        let mut parser = ReplyParser::new();
        let mut replies = Vec::new();
        for &byte in bytes {
            replies.extend(parser.push(byte)?);
        }
        Ok(replies)
    }

    fn one(bytes: &[u8]) -> Reply {
        let replies = parse(bytes).unwrap();
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies.into_iter().next().unwrap()
    }

    fn reply(code: u16, text: &str) -> Reply {
        Reply { code, text: text.into(), offers_starttls: false }
    }

    #[test]
    fn all_forms_of_a_line() {
        assert_eq!(one(b"220 mx.example ESMTP\r\n"), reply(220, "mx.example ESMTP"));
        assert_eq!(one(b"220 mx.example ESMTP\n"), reply(220, "mx.example ESMTP"));
        assert_eq!(one(b"220 \r\n"), reply(220, ""));
        assert_eq!(one(b"220\r\n"), reply(220, ""));
        assert_eq!(one(b"220\n"), reply(220, ""));
    }

    #[test]
    fn many_lines() {
        assert_eq!(one(b"220-mx.example\r\n220-no spam\r\n220 ESMTP\r\n"), reply(220, "mx.example"));
        assert_eq!(one(b"220-\r\n220\r\n"), reply(220, ""));
        assert_eq!(one(b"250-a\n250-b\n250 c\n"), reply(250, "a"));
    }

    #[test]
    fn the_keyword_starttls() {
        let offers = |text: &[u8]| one(text).offers_starttls;
        assert!(offers(b"250-mx.example\r\n250-SIZE 1000\r\n250-STARTTLS\r\n250 HELP\r\n"));
        assert!(offers(b"250-mx.example\n250 starttls\n"));
        assert!(!offers(b"250-mx.example\r\n250 STARTTLSX\r\n"));
        assert!(!offers(b"250-STARTTLS\r\n250 HELP\r\n"), "the first line is the server's name");
        assert!(!offers(b"250 STARTTLS\r\n"));
        let replies = parse(b"250-a\r\n250 STARTTLS\r\n250-a\r\n250 HELP\r\n").unwrap();
        assert_eq!(replies.iter().map(|reply| reply.offers_starttls).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn one_reply_after_the_other() {
        assert_eq!(parse(b"220-a\r\n220 b\r\n250 c\r\n221").unwrap(), [reply(220, "a"), reply(250, "c")]);
    }

    #[test]
    fn what_is_not_a_reply() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9.2p1\r\n"[..],
            b"\r\n",
            b"\n",
            b"\0",
            b"22",
            b"120 too low\r\n",
            b"620 too high\r\n",
            b"2 0 hole\r\n",
            b"22x \r\n",
            b"220x\r\n",
            b"2200 \r\n",
            b"220\rx\r\n",
            b"220-a\r\n250 b\r\n",
            b"220-a\r\n\r\n",
            b"+OK pop3\r\n",
            b"* OK imap\r\n",
            b"\xff\xfd\x18",
        ] {
            let result = parse(bytes);
            if bytes == b"22" {
                assert_eq!(result, Ok(vec![]));
            } else {
                assert_eq!(result, Err(ReplyError::Malformed), "{:?}", String::from_utf8_lossy(bytes));
            }
        }
    }

    #[test]
    fn text_is_cut_and_made_harmless() {
        assert_eq!(one(b"554 \x1b[31mred\x07\r\n").text, "?[31mred?");
        assert_eq!(one(b"554 a\rb\r\r\n").text, "a?b?");
        assert_eq!(one("554 d\u{e9}sol\u{e9}\r\n".as_bytes()).text, "d??sol??");
        for (length, kept) in [(79, 79), (80, 80), (81, 80), (1000, 80)] {
            assert_eq!(one(format!("554 {}\r\n", "x".repeat(length)).as_bytes()).text.len(), kept);
        }
    }

    #[test]
    fn limits_are_exact() {
        let line = |length: usize| format!("220 {}\r\n", "x".repeat(length - 6));
        assert!(parse(line(MAX_LINE).as_bytes()).is_ok());
        assert_eq!(parse(line(MAX_LINE + 1).as_bytes()), Err(ReplyError::TooLong));

        let lines = |count: usize| "220-x\r\n".repeat(count - 1) + "220 x\r\n";
        assert_eq!(one(lines(MAX_LINES).as_bytes()).code, 220);
        assert_eq!(parse(lines(MAX_LINES + 1).as_bytes()), Err(ReplyError::TooLong));

        let full = format!("220-{}\r\n", "x".repeat(1024 - 6));
        assert_eq!(one((full.repeat(63) + &line(1024)).as_bytes()).code, 220);
        assert_eq!(parse((full.repeat(63) + &line(1025)).as_bytes()), Err(ReplyError::TooLong));
    }

    #[test]
    fn an_endless_line_takes_no_memory() {
        let mut parser = ReplyParser::new();
        for byte in b"220 ".iter().copied().chain(std::iter::repeat_n(b'x', MAX_LINE - 4)) {
            assert_eq!(parser.push(byte), Ok(None));
        }
        assert_eq!(parser.push(b'x'), Err(ReplyError::TooLong));
        assert!(parser.text.capacity() < 2 * MAX_TEXT);
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_bounds(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            if let Ok(replies) = parse(&bytes) {
                for reply in replies {
                    prop_assert!((200..600).contains(&reply.code));
                    prop_assert!(reply.text.len() <= MAX_TEXT);
                    prop_assert!(reply.text.bytes().all(|byte| matches!(byte, b' '..=b'~')));
                }
            }
        }

        #[test]
        fn well_formed_replies_are_understood(
            code in 200_u16..600,
            texts in prop::collection::vec("[ -~]{0,120}", 1..MAX_LINES),
            end in prop::sample::select(vec!["\r\n", "\n"]),
        ) {
            let mut wire = String::new();
            for (index, text) in texts.iter().enumerate() {
                let separator = if index + 1 == texts.len() { ' ' } else { '-' };
                wire += &format!("{code}{separator}{text}{end}");
            }
            let cut = texts[0][..texts[0].len().min(MAX_TEXT)].trim();
            let Reply { code: seen, text, .. } = one(wire.as_bytes());
            prop_assert_eq!((seen, text.as_str()), (code, cut));
        }
    }
}
