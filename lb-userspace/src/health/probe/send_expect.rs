//! A dialogue of texts or bytes: the check for protocols that have none of their own.

use std::ops::Range;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::pattern::Matcher;
use super::{Examined, Path, step, tcp, tls};
use crate::config::{Pattern, SendExpect, Step};
use crate::health::error::excerpt;
use crate::health::{CheckError, Stage};

/// The most that a server may answer in one step, in bytes.
pub(super) const MAX_ANSWER: usize = 64 * 1024;
/// How much of it is kept for the error.
const KEPT: usize = 256;

/// Holds the dialogue, and leaves.
pub(super) async fn examine(path: Path, dialogue: &SendExpect) -> Examined {
    match &dialogue.tls {
        None => match tcp::connect(path).await {
            Ok(stream) => converse(stream, &dialogue.steps, path.deadline).await,
            Err(error) => error.into(),
        },
        Some(tls) => match tls::connect(path, tls, None).await {
            Ok(secured) => converse(secured.stream, &dialogue.steps, path.deadline)
                .await
                .with_certificate(secured.certificate_expires),
            Err(error) => error.into(),
        },
    }
}

async fn converse<S>(stream: S, steps: &[Step], deadline: Instant) -> Examined
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut dialogue = Dialogue { stream, buffer: [0; 1024], unread: 0..0 };
    for (index, action) in steps.iter().enumerate() {
        let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
        if let Err(error) = dialogue.take(action, number, deadline).await {
            // A client that gives up still closes in order.
            return Examined::from(error).with_farewell(tcp::leave(dialogue.stream));
        }
    }
    Examined::verdict(Ok(())).with_farewell(tcp::leave(dialogue.stream))
}

struct Dialogue<S> {
    stream: S,
    buffer: [u8; 1024],
    /// The part of `buffer` that was received but not looked at.
    unread: Range<usize>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Dialogue<S> {
    async fn take(&mut self, action: &Step, number: u8, deadline: Instant) -> Result<(), CheckError> {
        let stage = Stage::Step(number);
        if !action.send.is_empty() {
            // What came before is no answer to this.
            self.unread = 0..0;
            step(stage, deadline, async {
                self.stream.write_all(&action.send).await?;
                self.stream.flush().await
            })
            .await?;
        }
        match &action.expect {
            Some(pattern) => self.expect(pattern, number, deadline).await,
            None => Ok(()),
        }
    }

    async fn expect(&mut self, pattern: &Pattern, number: u8, deadline: Instant) -> Result<(), CheckError> {
        let stage = Stage::Step(number);
        let mut matcher = Matcher::new(pattern);
        let mut kept = Vec::new();
        let mut length = 0;
        loop {
            for &byte in &self.buffer[self.unread.clone()] {
                self.unread.start += 1;
                length += 1;
                if kept.len() < KEPT {
                    kept.push(byte);
                }
                if matcher.push(byte) {
                    return Ok(());
                }
                if length > MAX_ANSWER {
                    return Err(CheckError::TooLong(stage));
                }
            }
            let unexpected = || CheckError::Unexpected { step: number, answer: excerpt(&kept) };
            if matcher.is_hopeless() {
                return Err(unexpected());
            }
            match step(stage, deadline, self.stream.read(&mut self.buffer)).await? {
                0 if kept.is_empty() => return Err(CheckError::Closed(stage)),
                0 => return Err(unexpected()),
                count => self.unread = 0..count,
            }
        }
    }
}
