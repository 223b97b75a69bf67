//! Asks one server once.
//!
//! Every kind of check has one deadline, the timeout of the check, for everything up to its verdict. The
//! verdict is reported before the connection is taken down in an orderly way, which may take
//! [`FAREWELL`] longer: nobody waits for a server's goodbye, and the server logs no error.
//!
//! What a server sends is read in bounded amounts, see [`reply`].

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::{CheckError, Stage, Target};
use crate::config::CheckKind;

pub mod reply;
mod smtp;
mod tcp;
#[cfg(test)]
mod tests;

/// How long a connection may live on after the verdict, to be closed in an orderly way.
pub const FAREWELL: Duration = Duration::from_secs(1);

/// The most that is read and thrown away, in bytes, while waiting for the server's close.
const FAREWELL_BYTES: usize = 64 * 1024;

/// Checks `target` once and closes the connection. Takes the timeout of the check and [`FAREWELL`] at most.
///
/// # Errors
/// Why the check failed.
pub async fn probe(target: &Target) -> Result<(), CheckError> {
    let Examined { result, farewell } = examine(target).await;
    if let Some(farewell) = farewell {
        farewell.finish().await;
    }
    result
}

/// A verdict, and what is left to do after it.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) result: Result<(), CheckError>,
    pub(crate) farewell: Option<Farewell>,
}

/// A connection to be closed politely.
#[derive(Debug)]
pub(crate) enum Farewell {
    Tcp(TcpStream),
    Smtp(Box<smtp::Dialogue<TcpStream>>),
}

impl Farewell {
    /// Closes the connection, within [`FAREWELL`].
    pub(crate) async fn finish(self) {
        // After this time the connection is dropped as it is; the verdict is out already.
        let _ = timeout(FAREWELL, async {
            match self {
                Self::Tcp(stream) => tcp::leave(stream).await,
                Self::Smtp(dialogue) => dialogue.leave().await,
            }
        })
        .await;
    }
}

/// Checks `target` once, up to the verdict. Takes the timeout of the check at most.
pub(crate) async fn examine(target: &Target) -> Examined {
    let deadline = deadline(target.check.timeout);
    let stream = match tcp::connect(target.probe_address(), deadline).await {
        Ok(stream) => stream,
        Err(error) => return Examined { result: Err(error), farewell: None },
    };
    match target.check.kind {
        CheckKind::Tcp => Examined { result: Ok(()), farewell: Some(Farewell::Tcp(stream)) },
        CheckKind::Smtp => {
            let mut dialogue = Box::new(smtp::Dialogue::new(stream));
            let result = dialogue.converse(smtp::helo_name(), deadline).await;
            Examined { result, farewell: Some(Farewell::Smtp(dialogue)) }
        }
    }
}

fn deadline(timeout: Duration) -> Instant {
    /// For timeouts that the clock cannot express.
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + FOREVER)
}

/// Does one step of a check by the deadline.
async fn step<T>(
    stage: Stage,
    deadline: Instant,
    action: impl Future<Output = io::Result<T>>,
) -> Result<T, CheckError> {
    match timeout_at(deadline, action).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(CheckError::from_io(&error, stage)),
        Err(_elapsed) => Err(CheckError::Timeout(stage)),
    }
}

/// Reads until the server closes. Closing before that, with data unread, would send it a RST.
async fn drain(stream: &mut (impl AsyncRead + Unpin)) {
    let mut sink = [0; 1024];
    let mut total = 0;
    while total < FAREWELL_BYTES {
        match stream.read(&mut sink).await {
            Ok(0) | Err(_) => return,
            Ok(length) => total += length,
        }
    }
}
