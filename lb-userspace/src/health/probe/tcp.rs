//! Connections, and the check that only opens one.
//!
//! A mail server that is checked so logs "lost connection after CONNECT" each time: `smtp` is its check.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{drain, step};
use crate::health::{CheckError, Stage};

/// Opens a connection from whatever address the kernel picks.
///
/// # Errors
/// Every way in which a TCP connection does not come about by the deadline.
pub(super) async fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream, CheckError> {
    let stream = step(Stage::Connect, deadline, TcpStream::connect(address)).await?;
    let socket = |error| CheckError::from_io(&error, Stage::Connect);
    // A port of this machine in the range that the kernel picks source ports from, where nothing listens,
    // can be connected to itself (simultaneous open, RFC 9293 section 3.5). Nothing listens all the same.
    if stream.local_addr().map_err(socket)? == address {
        return Err(CheckError::Refused);
    }
    // The steps are small and each is waited for; Nagle's algorithm could only delay them.
    stream.set_nodelay(true).map_err(socket)?;
    Ok(stream)
}

/// Says that nothing will come, and waits for the server to say the same.
pub(super) async fn leave(mut stream: TcpStream) {
    if stream.shutdown().await.is_ok() {
        drain(&mut stream).await;
    }
}
