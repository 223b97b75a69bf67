//! Asks one server once.
//!
//! Every kind of check has one deadline, the timeout of the check, for everything up to its verdict. The
//! verdict is reported before the connection is taken down in an orderly way, which may take
//! [`FAREWELL`] longer: nobody waits for a server's goodbye, and the server logs no error.
//!
//! What a server sends is read in bounded amounts, see [`reply`].

use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::{CheckError, Stage, Target};
use crate::config::Probe;

mod dns;
mod exec;
mod find;
mod http;
mod icmp;
mod pattern;
pub mod reply;
mod send_expect;
mod smtp;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
pub(super) mod trust;
mod vip;

pub(crate) use tls::handshake_error;

/// How long a connection may live on after the verdict, to be closed in an orderly way.
pub const FAREWELL: Duration = Duration::from_secs(1);

/// The most that is read and thrown away, in bytes, while waiting for the server's close.
const FAREWELL_BYTES: usize = 64 * 1024;

/// Checks `target` once and closes the connection. Takes the timeout of the check and [`FAREWELL`] at most.
///
/// # Errors
/// Why the check failed.
pub async fn probe(target: &Target) -> Result<(), CheckError> {
    let Examined { result, farewell, .. } = examine(target).await;
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
    /// When the first of the certificates ends that the server sent.
    pub(crate) certificate_expires: Option<SystemTime>,
}

impl Examined {
    /// Nothing is left to do.
    pub(crate) const fn verdict(result: Result<(), CheckError>) -> Self {
        Self { result, farewell: None, certificate_expires: None }
    }

    fn with_farewell(mut self, farewell: impl Future<Output = ()> + Send + 'static) -> Self {
        self.farewell = Some(Farewell(Box::pin(farewell)));
        self
    }

    fn with_certificate(mut self, expires: Option<SystemTime>) -> Self {
        self.certificate_expires = expires;
        self
    }
}

impl From<CheckError> for Examined {
    fn from(error: CheckError) -> Self {
        Self::verdict(Err(error))
    }
}

/// What is done to close a connection politely.
pub(crate) struct Farewell(Pin<Box<dyn Future<Output = ()> + Send>>);

impl fmt::Debug for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Farewell")
    }
}

impl Farewell {
    /// Closes the connection, within [`FAREWELL`].
    pub(crate) async fn finish(self) {
        // After this time the connection is dropped as it is; the verdict is out already.
        let _ = timeout(FAREWELL, self.0).await;
    }
}

/// Checks `target` once, up to the verdict. Takes the timeout of the check at most.
pub(crate) async fn examine(target: &Target) -> Examined {
    let deadline = deadline(target.check.timeout);
    let address = target.probe_address();
    let path = Path { address, source: target.check.source(address.ip()), deadline };
    if let Some(via) = target.via {
        let source = target.check.source(via.vip.ip());
        let result = Box::pin(vip::examine(path, via, source)).await;
        // It is a connection already, as far as `tcp` asks for one.
        if result.is_err() || target.check.probe == Probe::Tcp {
            return Examined::verdict(result);
        }
    }
    // Those that hold much are boxed, so that thousands of plain ones stay small.
    match &target.check.probe {
        Probe::Tcp => tcp::examine(path).await,
        Probe::Tls(tls) => Box::pin(tls::examine(path, tls)).await,
        Probe::Http(http) => Box::pin(http::examine(path, http)).await,
        Probe::Smtp(smtp) => Box::pin(smtp::examine(path, smtp)).await,
        Probe::SendExpect(dialogue) => Box::pin(send_expect::examine(path, dialogue)).await,
        Probe::Icmp => Examined::verdict(Box::pin(icmp::examine(path)).await),
        Probe::Dns(dns) => Examined::verdict(Box::pin(dns::examine(path, dns)).await),
        Probe::Exec(exec) => Box::pin(exec::examine(path, exec)).await,
    }
}

/// Where a check goes, and by when it must be done.
#[derive(Clone, Copy, Debug)]
struct Path {
    address: std::net::SocketAddr,
    /// `None`: the kernel picks.
    source: Option<IpAddr>,
    deadline: Instant,
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
