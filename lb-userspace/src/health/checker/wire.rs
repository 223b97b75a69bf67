//! What the daemon and the process that checks tell each other: messages of a length and so many bytes.

use std::io;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

use crate::health::probe::trust::{Authorities, Trust};
use crate::health::{CheckError, Health, Target};

/// Of a message to the process that checks, in bytes: a file of authorities, and more.
pub(super) const LONGEST_ORDER: usize = 32 << 20;
/// Of a message to the daemon: what a server said is cut long before.
pub(super) const LONGEST_ANSWER: usize = 64 << 10;

/// A target's name on the wire. Never used again.
pub(super) type Number = u64;

/// What the daemon says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// A part of a change of targets.
    Add(Vec<(Number, Target, Health)>),
    Remove(Vec<Number>),
    /// The change is told; it holds from now on.
    Commit,
    /// Say that you are there, with [`Answer::Here`].
    Call,
    /// Check all now, and answer with [`Answer::Polled`].
    Poll(u64),
    /// Instead of what was told before.
    Trust(Trust, Authorities),
}

/// What the process that checks says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Report(Finding),
    Here,
    /// Everything has been reported that this poll asked for.
    Polled(u64),
}

/// A [`crate::health::Report`] whose target has a number.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Finding {
    pub number: Number,
    pub at: SystemTime,
    pub latency: Duration,
    pub result: Result<(), CheckError>,
    pub health: Health,
    pub previous: Health,
    pub certificate_expires: Option<SystemTime>,
}

/// The length of each message comes first.
pub(super) fn codec(longest: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(longest).new_codec()
}

/// # Errors
/// When it cannot be expressed.
pub(super) fn encode(message: &impl Serialize) -> io::Result<Bytes> {
    postcard::to_stdvec(message)
        .map(Bytes::from)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// # Errors
/// When the bytes are no such message, or more than one.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let (message, rest) =
        postcard::take_from_bytes(bytes).map_err(|error| invalid(format!("not a message: {error}")))?;
    if rest.is_empty() { Ok(message) } else { Err(invalid(format!("{} bytes follow a message", rest.len()))) }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Check, Probe};
    use crate::health::Stage;

    #[test]
    fn messages_arrive_as_they_were() {
        let target = Target::new(Ipv4Addr::LOCALHOST.into(), 25, &Check::of(Probe::Tcp));
        let order = Order::Add(vec![(7, target, Health::Up)]);
        let arrived: Order = decode(&encode(&order).unwrap()).unwrap();
        assert_eq!(format!("{arrived:?}"), format!("{order:?}"));
        let answer = Answer::Report(Finding {
            number: 7,
            at: SystemTime::now(),
            latency: Duration::from_micros(30),
            result: Err(CheckError::WrongReply {
                stage: Stage::Greeting,
                code: 421,
                text: "busy".to_owned(),
            }),
            health: Health::Down,
            previous: Health::Up,
            certificate_expires: None,
        });
        let arrived: Answer = decode(&encode(&answer).unwrap()).unwrap();
        assert_eq!(format!("{arrived:?}"), format!("{answer:?}"));
    }

    #[test]
    fn what_follows_a_message_is_an_error() {
        let bytes = [&encode(&Answer::Polled(1)).unwrap()[..], &[0]].concat();
        assert!(decode::<Answer>(&bytes).is_err());
    }

    proptest! {
        /// Whoever tricks the process that checks can say anything to the daemon.
        #[test]
        fn no_bytes_break_the_daemon(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Answer>(&bytes);
        }
    }
}
