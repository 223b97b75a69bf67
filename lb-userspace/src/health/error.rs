//! Why a check failed.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// How far a check had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The TCP handshake.
    Connect,
    /// Connected; the server speaks first (RFC 5321 section 3.1).
    Greeting,
    /// Greeted; EHLO is being sent or its reply awaited.
    Ehlo,
    /// QUIT is being sent or its reply awaited.
    Quit,
}

impl Stage {
    /// Every stage, in the order of a check.
    pub const ALL: [Self; 4] = [Self::Connect, Self::Greeting, Self::Ehlo, Self::Quit];

    const fn number(self) -> u16 {
        match self {
            Self::Connect => 0,
            Self::Greeting => 1,
            Self::Ehlo => 2,
            Self::Quit => 3,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Greeting => "waiting for the greeting",
            Self::Ehlo => "waiting for the reply to EHLO",
            Self::Quit => "waiting for the reply to QUIT",
        })
    }
}

/// Why a check failed.
///
/// Texts and [numbers](CheckError::number) are stable: logs are searched and alerts filtered by them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CheckError {
    /// Nothing listens: the server answered the SYN with a RST.
    #[error("connection refused")]
    Refused,
    /// No route, or a router said so.
    #[error("network unreachable")]
    NetworkUnreachable,
    /// The server's neighbour entry did not resolve, or a router said so.
    #[error("host unreachable")]
    HostUnreachable,
    /// A packet filter or a `prohibit` route answered (ICMPv6 type 1 code 1, 5 or 6).
    #[error("administratively prohibited")]
    Prohibited,
    /// The timeout of the whole check ran out.
    #[error("timed out while {0}")]
    Timeout(Stage),
    /// The server closed or reset the connection before the check was done with it.
    #[error("connection closed by the server while {0}")]
    Closed(Stage),
    /// A well-formed reply with another code than the one that means yes.
    #[error("wrong reply while {stage}: {code:03}{}{text}", if text.is_empty() { "" } else { " " })]
    WrongReply {
        stage: Stage,
        /// 200 to 599.
        code: u16,
        /// The first 80 characters of the reply's first line; what is not printable ASCII became `?`.
        text: String,
    },
    /// Not a reply as in RFC 5321 section 4.2.
    #[error("malformed reply while {0}")]
    Malformed(Stage),
    /// The reply exceeds a limit of [`crate::health::probe`].
    #[error("reply too long while {0}")]
    TooLong(Stage),
    /// This machine could not even ask, so nothing is known of the server:
    /// see [`CheckError::is_inconclusive`].
    #[error("local error while {stage}: {}", Errno::from_raw(*errno).desc())]
    Local {
        stage: Stage,
        /// As in errno(3); 0 where the system gave none.
        errno: i32,
    },
}

impl CheckError {
    /// A stable number: tens say what went wrong, units at which [`Stage`].
    #[must_use]
    pub const fn number(&self) -> u16 {
        match self {
            Self::Refused => 1,
            Self::NetworkUnreachable => 2,
            Self::HostUnreachable => 3,
            Self::Prohibited => 4,
            Self::Timeout(stage) => 10 + stage.number(),
            Self::Closed(stage) => 20 + stage.number(),
            Self::WrongReply { stage, .. } => 30 + stage.number(),
            Self::Malformed(stage) => 40 + stage.number(),
            Self::TooLong(stage) => 50 + stage.number(),
            Self::Local { stage, .. } => 90 + stage.number(),
        }
    }

    /// Whether the check says nothing about the server. Running out of file descriptors on the gateway must
    /// not take every server down.
    #[must_use]
    pub const fn is_inconclusive(&self) -> bool {
        matches!(self, Self::Local { .. })
    }

    /// What an error of a socket call means.
    pub(crate) fn from_io(error: &io::Error, stage: Stage) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        match Errno::from_raw(errno) {
            Errno::ECONNREFUSED => Self::Refused,
            Errno::ENETUNREACH | Errno::ENETDOWN => Self::NetworkUnreachable,
            // ENOPROTOOPT is how Linux hands on "protocol unreachable", ENONET "host isolated".
            Errno::EHOSTUNREACH | Errno::EHOSTDOWN | Errno::ENOPROTOOPT | Errno::ENONET => {
                Self::HostUnreachable
            }
            Errno::EACCES => Self::Prohibited,
            // The kernel gave up retransmitting before our own timeout.
            Errno::ETIMEDOUT => Self::Timeout(stage),
            Errno::ECONNRESET | Errno::ECONNABORTED | Errno::EPIPE | Errno::ENOTCONN => Self::Closed(stage),
            _ => match error.kind() {
                // Errors that tokio makes itself carry no errno.
                io::ErrorKind::BrokenPipe
                | io::ErrorKind::WriteZero
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset => Self::Closed(stage),
                _ => Self::Local { stage, errno },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn one_of_each() -> Vec<CheckError> {
        let mut errors = vec![
            CheckError::Refused,
            CheckError::NetworkUnreachable,
            CheckError::HostUnreachable,
            CheckError::Prohibited,
        ];
        for stage in Stage::ALL {
            errors.extend([
                CheckError::Timeout(stage),
                CheckError::Closed(stage),
                CheckError::WrongReply { stage, code: 554, text: "no".into() },
                CheckError::Malformed(stage),
                CheckError::TooLong(stage),
                CheckError::Local { stage, errno: libc::EMFILE },
            ]);
        }
        errors
    }

    #[test]
    fn numbers_and_texts_are_distinct() {
        let errors = one_of_each();
        assert_eq!(errors.iter().map(CheckError::number).collect::<HashSet<_>>().len(), errors.len());
        assert_eq!(errors.iter().map(ToString::to_string).collect::<HashSet<_>>().len(), errors.len());
    }

    #[test]
    fn numbers_and_texts_are_stable() {
        let pinned = [
            (CheckError::Refused, 1, "connection refused"),
            (CheckError::NetworkUnreachable, 2, "network unreachable"),
            (CheckError::HostUnreachable, 3, "host unreachable"),
            (CheckError::Prohibited, 4, "administratively prohibited"),
            (CheckError::Timeout(Stage::Connect), 10, "timed out while connecting"),
            (CheckError::Timeout(Stage::Greeting), 11, "timed out while waiting for the greeting"),
            (CheckError::Timeout(Stage::Ehlo), 12, "timed out while waiting for the reply to EHLO"),
            (CheckError::Timeout(Stage::Quit), 13, "timed out while waiting for the reply to QUIT"),
            (
                CheckError::Closed(Stage::Greeting),
                21,
                "connection closed by the server while waiting for the greeting",
            ),
            (
                CheckError::WrongReply { stage: Stage::Ehlo, code: 502, text: "no such command".into() },
                32,
                "wrong reply while waiting for the reply to EHLO: 502 no such command",
            ),
            (
                CheckError::WrongReply { stage: Stage::Greeting, code: 421, text: String::new() },
                31,
                "wrong reply while waiting for the greeting: 421",
            ),
            (CheckError::Malformed(Stage::Greeting), 41, "malformed reply while waiting for the greeting"),
            (CheckError::TooLong(Stage::Quit), 53, "reply too long while waiting for the reply to QUIT"),
            (
                CheckError::Local { stage: Stage::Connect, errno: libc::EMFILE },
                90,
                "local error while connecting: Too many open files",
            ),
        ];
        for (error, number, text) in pinned {
            assert_eq!((error.number(), error.to_string().as_str()), (number, text));
        }
    }

    #[test]
    fn socket_errors_are_told_apart() {
        let cases = [
            (libc::ECONNREFUSED, CheckError::Refused),
            (libc::ENETUNREACH, CheckError::NetworkUnreachable),
            (libc::EHOSTUNREACH, CheckError::HostUnreachable),
            (libc::EACCES, CheckError::Prohibited),
            (libc::ETIMEDOUT, CheckError::Timeout(Stage::Ehlo)),
            (libc::ECONNRESET, CheckError::Closed(Stage::Ehlo)),
            (libc::EPIPE, CheckError::Closed(Stage::Ehlo)),
            (libc::EMFILE, CheckError::Local { stage: Stage::Ehlo, errno: libc::EMFILE }),
            (libc::EADDRNOTAVAIL, CheckError::Local { stage: Stage::Ehlo, errno: libc::EADDRNOTAVAIL }),
        ];
        for (errno, expected) in cases {
            let error = CheckError::from_io(&io::Error::from_raw_os_error(errno), Stage::Ehlo);
            assert_eq!(error, expected);
            assert_eq!(error.is_inconclusive(), matches!(expected, CheckError::Local { .. }));
        }
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(CheckError::from_io(&broken, Stage::Quit), CheckError::Closed(Stage::Quit));
    }
}
