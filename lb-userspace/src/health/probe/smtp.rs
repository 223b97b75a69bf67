//! The SMTP check: greeting, EHLO, QUIT (RFC 5321 sections 3.1, 3.2, 3.8), as a well-behaved client does it,
//! so that the server has nothing to log but a connection. With STARTTLS (RFC 3207) the session begins anew after the
//! handshake.

use std::ops::Range;
use std::sync::OnceLock;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::reply::{Reply, ReplyError, ReplyParser};
use super::{Examined, Path, drain, step, tcp, tls};
use crate::config::{Smtp, Tls};
use crate::health::{CheckError, Stage};

/// The codes that mean yes (RFC 5321 section 4.3.2).
const READY: u16 = 220;
const OK: u16 = 250;
const CLOSING: u16 = 221;

const QUIT: &[u8] = b"QUIT\r\n";

/// The name to greet with where the machine has none (RFC 2606 section 2: never a real one).
const FALLBACK_NAME: &str = "matapa.invalid";

/// Holds a session, and leaves it as the server may expect.
pub(super) async fn examine(path: Path, smtp: &Smtp) -> Examined {
    match smtp {
        Smtp::Plain => match tcp::connect(path).await {
            Ok(stream) => whole(stream, path).await,
            Err(error) => error.into(),
        },
        Smtp::Tls(tls) => match tls::connect(path, tls, None).await {
            Ok(secured) => whole(secured.stream, path).await.with_certificate(secured.certificate_expires),
            Err(error) => error.into(),
        },
        Smtp::StartTls(tls) => match tcp::connect(path).await {
            Ok(stream) => upgraded(stream, path, tls).await,
            Err(error) => error.into(),
        },
    }
}

async fn whole<S>(stream: S, path: Path) -> Examined
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut dialogue = Dialogue::new(stream);
    let result = dialogue.converse(helo_name(), path.deadline).await;
    Examined::verdict(result).with_farewell(dialogue.leave())
}

async fn upgraded(stream: tokio::net::TcpStream, path: Path, tls: &Tls) -> Examined {
    let mut dialogue = Dialogue::new(stream);
    if let Err(error) = dialogue.start_tls(helo_name(), path.deadline).await {
        return Examined::from(error).with_farewell(dialogue.leave());
    }
    let secured = match tls::secure(dialogue.stream, path, tls, None).await {
        Ok(secured) => secured,
        Err(error) => return error.into(),
    };
    let mut dialogue = Dialogue::new(secured.stream);
    let result = dialogue.hello_and_quit(helo_name(), path.deadline).await;
    Examined::verdict(result).with_certificate(secured.certificate_expires).with_farewell(dialogue.leave())
}

/// An SMTP session over `S`.
#[derive(Debug)]
pub(crate) struct Dialogue<S> {
    stream: S,
    buffer: [u8; 2048],
    /// The part of `buffer` that was received but not looked at.
    unread: Range<usize>,
    leave: Leave,
}

/// What the server may expect before the connection closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// It does not speak SMTP, has gone, or had its time.
    AtOnce,
    /// It refused; a client that gives up still says so (RFC 5321 sections 3.1 and 4.1.1.10).
    WithQuit,
    /// It answered QUIT and closes next.
    AfterClose,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Dialogue<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: [0; 2048], unread: 0..0, leave: Leave::AtOnce }
    }

    /// Holds the whole dialogue, under the name `name`.
    ///
    /// # Errors
    /// On the first answer that is not the expected one, or missing at the deadline.
    pub(super) async fn converse(&mut self, name: &str, deadline: Instant) -> Result<(), CheckError> {
        self.expect(READY, Stage::Greeting, deadline).await?;
        self.hello_and_quit(name, deadline).await
    }

    /// The dialogue from EHLO on.
    async fn hello_and_quit(&mut self, name: &str, deadline: Instant) -> Result<(), CheckError> {
        self.hello(name, deadline).await?;
        self.send(QUIT, Stage::Quit, deadline).await?;
        self.expect(CLOSING, Stage::Quit, deadline).await.map(drop)
    }

    /// Says EHLO. The reply says what the server can do.
    async fn hello(&mut self, name: &str, deadline: Instant) -> Result<Reply, CheckError> {
        self.send(format!("EHLO {name}\r\n").as_bytes(), Stage::Ehlo, deadline).await?;
        self.expect(OK, Stage::Ehlo, deadline).await
    }

    /// The dialogue up to the handshake.
    async fn start_tls(&mut self, name: &str, deadline: Instant) -> Result<(), CheckError> {
        self.expect(READY, Stage::Greeting, deadline).await?;
        if !self.hello(name, deadline).await?.offers_starttls {
            return Err(CheckError::NoStartTls);
        }
        self.send(b"STARTTLS\r\n", Stage::StartTls, deadline).await?;
        self.expect(READY, Stage::StartTls, deadline).await?;
        // Whatever came behind the reply was not secured, and must not be taken for what will be (CVE-2011-0411).
        if !self.unread.is_empty() {
            self.leave = Leave::AtOnce;
            return Err(CheckError::Malformed(Stage::StartTls));
        }
        Ok(())
    }

    /// Ends the session as the server may expect after [`Dialogue::converse`].
    pub(super) async fn leave(mut self) {
        match self.leave {
            Leave::AtOnce => {}
            Leave::WithQuit => {
                // After a 421 the server may be gone already; then there is nobody to say it to.
                if self.stream.write_all(QUIT).await.is_ok() && self.stream.flush().await.is_ok() {
                    drain(&mut self.stream).await;
                }
            }
            // Who closes first keeps the port for a minute (TIME-WAIT); that should not be the gateway,
            // which would run out of ports to thousands of servers.
            Leave::AfterClose => {
                drain(&mut self.stream).await;
                // Over TLS, so that the end is no truncation (RFC 8446 section 6.1).
                let _ = self.stream.shutdown().await;
            }
        }
    }

    async fn send(&mut self, line: &[u8], stage: Stage, deadline: Instant) -> Result<(), CheckError> {
        step(stage, deadline, async {
            self.stream.write_all(line).await?;
            self.stream.flush().await
        })
        .await
    }

    async fn expect(&mut self, expected: u16, stage: Stage, deadline: Instant) -> Result<Reply, CheckError> {
        self.leave = Leave::AtOnce;
        let reply = self.read_reply(stage, deadline).await?;
        self.leave = if stage == Stage::Quit { Leave::AfterClose } else { Leave::WithQuit };
        if reply.code == expected {
            return Ok(reply);
        }
        Err(CheckError::WrongReply { stage, code: reply.code, text: reply.text })
    }

    async fn read_reply(&mut self, stage: Stage, deadline: Instant) -> Result<Reply, CheckError> {
        let mut parser = ReplyParser::new();
        loop {
            for &byte in &self.buffer[self.unread.clone()] {
                self.unread.start += 1;
                match parser.push(byte) {
                    Ok(None) => {}
                    Ok(Some(reply)) => return Ok(reply),
                    Err(ReplyError::Malformed) => return Err(CheckError::Malformed(stage)),
                    Err(ReplyError::TooLong) => return Err(CheckError::TooLong(stage)),
                }
            }
            let length = step(stage, deadline, self.stream.read(&mut self.buffer)).await?;
            if length == 0 {
                return Err(CheckError::Closed(stage));
            }
            self.unread = 0..length;
        }
    }
}

/// The name that the checks say in EHLO: this machine's, so that the servers' logs tell the gateways apart.
pub(super) fn helo_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        qualified(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim())
    })
}

/// Makes a name with a domain out of a host name: servers may refuse others (RFC 5321 section 2.3.5).
fn qualified(hostname: &str) -> String {
    let name =
        if hostname.contains('.') { hostname.to_owned() } else { format!("{hostname}.{FALLBACK_NAME}") };
    if is_domain(&name) { name } else { FALLBACK_NAME.to_owned() }
}

/// `Domain` of RFC 5321 section 4.1.2, within the lengths of sections 4.5.3.1.2 and, for labels, RFC 1035
/// section 2.3.4.
fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.len() <= 255 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(qualified("gw1.example.net"), "gw1.example.net");
        assert_eq!(qualified("gw1"), "gw1.matapa.invalid");
        for bad in
            ["", "(none)", "a..b", ".", "gw_1", "-a.b", "a-.b", "g\u{e4}teway.example", "a b.c", "a.b\r\nX"]
        {
            assert_eq!(qualified(bad), FALLBACK_NAME, "{bad}");
        }
        assert_eq!(qualified(&"x".repeat(64)), FALLBACK_NAME);
        assert_eq!(qualified(&vec!["abc"; 65].join(".")), FALLBACK_NAME);
        assert_eq!(qualified(&vec!["abc"; 64].join(".")).len(), 255);
    }

    #[test]
    fn the_name_of_this_machine_is_valid() {
        assert!(is_domain(helo_name()));
    }
}
