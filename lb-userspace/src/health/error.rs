//! Why a check failed.

use std::fmt;
use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::probe::handshake_error;
use super::probe::reply::MAX_TEXT;

/// How far a check had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// The TCP handshake.
    Connect,
    /// Connected; the server speaks first (RFC 5321 section 3.1).
    Greeting,
    /// Greeted; EHLO is being sent or its reply awaited.
    Ehlo,
    /// QUIT is being sent or its reply awaited.
    Quit,
    /// STARTTLS is being sent or its reply awaited (RFC 3207).
    StartTls,
    /// The TLS handshake.
    Handshake,
    /// The HTTP request is being sent, or the status line and header fields are awaited.
    Response,
    /// The HTTP body is being read.
    Body,
    /// The answer to a DNS query or an echo request is awaited.
    Answer,
    /// A step of a dialogue, counted from 1.
    Step(u8),
    /// A program runs.
    Command,
}

impl Stage {
    /// Every stage, in the order of a check; of the steps, the first.
    pub const ALL: [Self; 11] = [
        Self::Connect,
        Self::Greeting,
        Self::Ehlo,
        Self::Quit,
        Self::StartTls,
        Self::Handshake,
        Self::Response,
        Self::Body,
        Self::Answer,
        Self::Step(1),
        Self::Command,
    ];

    /// Units, and hundreds where the units are used up: tens belong to the kind of error.
    const fn number(self) -> u16 {
        match self {
            Self::Connect => 0,
            Self::Greeting => 1,
            Self::Ehlo => 2,
            Self::Quit => 3,
            Self::StartTls => 4,
            Self::Handshake => 5,
            Self::Response => 6,
            Self::Body => 7,
            Self::Answer => 8,
            Self::Step(_) => 9,
            Self::Command => 100,
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
            Self::StartTls => "waiting for the reply to STARTTLS",
            Self::Handshake => "shaking hands for TLS",
            Self::Response => "waiting for the HTTP response",
            Self::Body => "reading the HTTP body",
            Self::Answer => "waiting for the answer",
            Self::Step(step) => return write!(f, "waiting for what step {step} expects"),
            Self::Command => "running the command",
        })
    }
}

/// Why a check failed.
///
/// Texts and [numbers](CheckError::number) are stable: logs are searched and alerts filtered by them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
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
    /// `via = "vip"`: nothing came back from the VIP on the server.
    #[error("the VIP does not answer on the server")]
    VipSilent,
    /// `via = "vip"`: the server has the VIP, and nothing listens there.
    #[error("connections to the VIP are refused by the server")]
    VipRefused,
    /// The timeout of the whole check ran out.
    #[error("timed out while {0}")]
    Timeout(Stage),
    /// The server closed or reset the connection before the check was done with it.
    #[error("connection closed by the server while {0}")]
    Closed(Stage),
    /// A well-formed reply with another code than one that means yes, of SMTP or HTTP.
    #[error("wrong reply while {stage}: {code:03}{}{text}", if text.is_empty() { "" } else { " " })]
    WrongReply {
        stage: Stage,
        /// 100 to 999.
        code: u16,
        /// The first 80 characters of the reply's first line; what is not printable ASCII became `?`.
        text: String,
    },
    /// Not what the protocol has in this place.
    #[error("malformed reply while {0}")]
    Malformed(Stage),
    /// The reply exceeds a limit of [`crate::health::probe`].
    #[error("reply too long while {0}")]
    TooLong(Stage),
    /// The server broke the handshake off with an alert (RFC 8446 section 6); the text is its name.
    #[error("TLS refused by the server: {0}")]
    TlsAlert(String),
    /// The server answered the handshake with something else.
    #[error("the server does not speak TLS")]
    NotTls,
    /// Server and check have no version or algorithm in common, or the server broke the rules.
    #[error("no agreement on TLS: {0}")]
    TlsDisagreement(String),
    #[error("the server's certificate has expired")]
    CertificateExpired,
    #[error("the server's certificate is not valid yet")]
    CertificateNotYetValid,
    #[error("the server's certificate is not for {0}")]
    CertificateName(String),
    #[error("the server's certificate is not by a trusted authority")]
    CertificateIssuer,
    /// Bad encoding or signature, wrong purpose, and so on.
    #[error("the server's certificate is not valid: {0}")]
    CertificateInvalid(String),
    /// The gateway has nothing to check certificates by. Says nothing about the server.
    #[error("trusted authorities cannot be read: {0}")]
    Authorities(String),
    /// EHLO was answered without it.
    #[error("the server does not offer STARTTLS")]
    NoStartTls,
    /// An answer with another response code than one that means yes.
    #[error("wrong answer to the DNS query: {}", crate::config::RCODES.get(usize::from(*rcode)).copied().unwrap_or("unassigned rcode"))]
    WrongRcode {
        /// RFC 1035 section 4.1.1, and RFC 6891 section 6.1.3.
        rcode: u16,
    },
    #[error("the DNS answer has not the record that is expected")]
    NoSuchRecord,
    #[error("the HTTP body has not the text that is expected")]
    NoSuchText,
    /// The server answered, and then stopped, without what the step expects.
    #[error("not what step {step} expects: {answer}")]
    Unexpected {
        /// Counted from 1.
        step: u8,
        /// The first 80 characters; what is not printable ASCII became `?`.
        answer: String,
    },
    /// The program ended with another exit code than 0.
    #[error("the command ended with exit code {code}{}{text}", if text.is_empty() { "" } else { ": " })]
    ExitCode {
        code: i32,
        /// The first 80 characters of its first line; what is not printable ASCII became `?`.
        text: String,
    },
    /// The program was ended by a signal, not this program's.
    #[error("the command was ended by signal {0}")]
    Signal(i32),
    /// The user that a program is to run as does not exist here. Says nothing about the server either.
    #[error("there is no user {0}, whom the command is to run as")]
    NoUser(String),
    /// The daemon may not become that user. Says nothing about the server either.
    #[error(
        "the daemon may not run the command as {0}: it needs CAP_SETUID and CAP_SETGID (packaging/exec-checks.conf)"
    )]
    MayNotBecome(String),
    /// This machine could not even ask, so nothing is known of the server:
    /// see [`CheckError::is_inconclusive`].
    #[error("local error while {stage}: {}", Errno::from_raw(*errno).desc())]
    Local {
        stage: Stage,
        /// As in errno(3); 0 where the system gave none.
        errno: i32,
    },
}

/// What a server said, fit for a log: [`MAX_TEXT`] characters at most, of the first line; what is not printable ASCII
/// became `?`.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let printable = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
    let line =
        bytes.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    line.trim_ascii().iter().take(MAX_TEXT).map(printable).collect::<String>().trim_end().to_owned()
}

impl CheckError {
    /// A stable number. Of errors that have a [`Stage`], tens say what went wrong, units and hundreds at which one;
    /// 60 to 69 are TLS, 70 to 79 answers, 80 to 89 programs.
    #[must_use]
    pub const fn number(&self) -> u16 {
        match self {
            Self::Refused => 1,
            Self::NetworkUnreachable => 2,
            Self::HostUnreachable => 3,
            Self::Prohibited => 4,
            Self::VipSilent => 5,
            Self::VipRefused => 6,
            Self::Timeout(stage) => 10 + stage.number(),
            Self::Closed(stage) => 20 + stage.number(),
            Self::WrongReply { stage, .. } => 30 + stage.number(),
            Self::Malformed(stage) => 40 + stage.number(),
            Self::TooLong(stage) => 50 + stage.number(),
            Self::TlsAlert(_) => 60,
            Self::NotTls => 61,
            Self::TlsDisagreement(_) => 62,
            Self::CertificateExpired => 63,
            Self::CertificateNotYetValid => 64,
            Self::CertificateName(_) => 65,
            Self::CertificateIssuer => 66,
            Self::CertificateInvalid(_) => 67,
            Self::Authorities(_) => 68,
            Self::NoStartTls => 70,
            Self::WrongRcode { .. } => 71,
            Self::NoSuchRecord => 72,
            Self::NoSuchText => 73,
            Self::Unexpected { .. } => 74,
            Self::ExitCode { .. } => 80,
            Self::Signal(_) => 81,
            Self::NoUser(_) => 82,
            Self::MayNotBecome(_) => 83,
            Self::Local { stage, .. } => 90 + stage.number(),
        }
    }

    /// Whether the check says nothing about the server. Running out of file descriptors on the gateway must
    /// not take every server down.
    #[must_use]
    pub const fn is_inconclusive(&self) -> bool {
        matches!(self, Self::Local { .. } | Self::NoUser(_) | Self::MayNotBecome(_) | Self::Authorities(_))
    }

    /// What an error of a socket call means.
    pub(crate) fn from_io(error: &io::Error, stage: Stage) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return handshake_error(tls);
        }
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
            CheckError::TlsAlert("handshake failure".into()),
            CheckError::NotTls,
            CheckError::TlsDisagreement("no common version".into()),
            CheckError::CertificateExpired,
            CheckError::CertificateNotYetValid,
            CheckError::CertificateName("mx.example".into()),
            CheckError::CertificateIssuer,
            CheckError::CertificateInvalid("bad signature".into()),
            CheckError::Authorities("no such file".into()),
            CheckError::NoStartTls,
            CheckError::WrongRcode { rcode: 2 },
            CheckError::NoSuchRecord,
            CheckError::NoSuchText,
            CheckError::Unexpected { step: 1, answer: "421 busy".into() },
            CheckError::ExitCode { code: 1, text: String::new() },
            CheckError::Signal(libc::SIGSEGV),
            CheckError::NoUser("checker".into()),
            CheckError::MayNotBecome("checker".into()),
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
            (CheckError::Timeout(Stage::StartTls), 14, "timed out while waiting for the reply to STARTTLS"),
            (CheckError::Timeout(Stage::Handshake), 15, "timed out while shaking hands for TLS"),
            (CheckError::Timeout(Stage::Response), 16, "timed out while waiting for the HTTP response"),
            (CheckError::TooLong(Stage::Body), 57, "reply too long while reading the HTTP body"),
            (CheckError::Timeout(Stage::Answer), 18, "timed out while waiting for the answer"),
            (CheckError::Timeout(Stage::Step(3)), 19, "timed out while waiting for what step 3 expects"),
            (CheckError::Timeout(Stage::Command), 110, "timed out while running the command"),
            (
                CheckError::WrongReply {
                    stage: Stage::Response,
                    code: 503,
                    text: "Service Unavailable".into(),
                },
                36,
                "wrong reply while waiting for the HTTP response: 503 Service Unavailable",
            ),
            (
                CheckError::TlsAlert("HandshakeFailure".into()),
                60,
                "TLS refused by the server: HandshakeFailure",
            ),
            (CheckError::NotTls, 61, "the server does not speak TLS"),
            (CheckError::CertificateExpired, 63, "the server's certificate has expired"),
            (CheckError::CertificateNotYetValid, 64, "the server's certificate is not valid yet"),
            (
                CheckError::CertificateName("mx.example".into()),
                65,
                "the server's certificate is not for mx.example",
            ),
            (CheckError::CertificateIssuer, 66, "the server's certificate is not by a trusted authority"),
            (CheckError::NoStartTls, 70, "the server does not offer STARTTLS"),
            (CheckError::WrongRcode { rcode: 2 }, 71, "wrong answer to the DNS query: SERVFAIL"),
            (CheckError::NoSuchRecord, 72, "the DNS answer has not the record that is expected"),
            (CheckError::NoSuchText, 73, "the HTTP body has not the text that is expected"),
            (CheckError::Unexpected { step: 2, answer: "-ERR".into() }, 74, "not what step 2 expects: -ERR"),
            (
                CheckError::ExitCode { code: 3, text: "queue full".into() },
                80,
                "the command ended with exit code 3: queue full",
            ),
            (CheckError::Signal(11), 81, "the command was ended by signal 11"),
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
