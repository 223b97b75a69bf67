//! Connections, and the check that only opens one.
//!
//! A mail server that is checked so logs "lost connection after CONNECT" each time: `smtp` is its check.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{Examined, Path, drain, step};
use crate::health::{CheckError, Stage};

/// Opens a connection, and leaves it again.
pub(super) async fn examine(path: Path) -> Examined {
    match connect(path).await {
        Ok(stream) => Examined::verdict(Ok(())).with_farewell(leave(stream)),
        Err(error) => error.into(),
    }
}

/// Opens a connection.
///
/// # Errors
/// Every way in which a TCP connection does not come about by the deadline.
pub(super) async fn connect(path: Path) -> Result<TcpStream, CheckError> {
    let Path { address, source, deadline } = path;
    let stream = step(Stage::Connect, deadline, open(address, source)).await?;
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

async fn open(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        // The port is picked with the destination in view (ip(7)), else there would be one for each check of all servers.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

/// Says that nothing will come, and waits for the server to say the same.
pub(super) async fn leave(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_ok() {
        drain(&mut stream).await;
    }
}
