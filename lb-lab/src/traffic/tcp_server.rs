//! A TCP server in threads: one for each listener, one for each connection.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use crate::netns::Netns;
use crate::topology::Host;

/// Connections that may wait for being accepted.
const QUEUE: i32 = 4096;

/// Serves one connection; it is given the host's name. `None` when the connection broke.
pub(super) type Serve = fn(TcpStream, &str) -> Option<()>;

/// Listens on IPv4 and IPv6 until dropped; dropping it ends its connections.
#[derive(Debug)]
pub(super) struct TcpServer {
    stop: Arc<AtomicBool>,
    connections: Connections,
    /// Of connections, over all listeners.
    numbers: Arc<AtomicU64>,
}

/// The open ones by number, to be cut when the server goes away.
type Connections = Arc<Mutex<BTreeMap<u64, TcpStream>>>;

impl TcpServer {
    /// Listens on `port` of `host`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(host: &Host, port: u16, serve: Serve) -> Result<Self> {
        let server = Self { stop: Arc::default(), connections: Arc::default(), numbers: Arc::default() };
        for address in host.addresses() {
            server.listen(&host.netns, &host.name, address, port, serve)?;
        }
        Ok(server)
    }

    fn listen(&self, netns: &Netns, name: &str, address: IpAddr, port: u16, serve: Serve) -> Result<()> {
        let target = SocketAddr::new(address, port);
        let listener = netns.run(|| open(target))?.with_context(|| format!("cannot listen on {target}"))?;
        let (stop, connections, numbers) =
            (Arc::clone(&self.stop), Arc::clone(&self.connections), Arc::clone(&self.numbers));
        let host = name.to_owned();
        // Sockets stay in the namespace they were made in; their threads may be anywhere.
        std::thread::Builder::new().name(format!("tcp-{name}")).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let own = numbers.fetch_add(1, Ordering::Relaxed);
                let (host, open) = (host.clone(), Arc::clone(&connections));
                let _ = std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
                    if let Ok(copy) = stream.try_clone() {
                        open.lock().unwrap_or_else(PoisonError::into_inner).insert(own, copy);
                    }
                    if stream.set_nonblocking(false).is_ok() {
                        serve(stream, &host);
                    }
                    open.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
                });
            }
        })?;
        Ok(())
    }
}

/// A listener with as much room as real servers ask for: the standard library's 128 connections are full after half a
/// second in which this machine did something else, and then SYNs are lost for no fault of the gateway.
fn open(target: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&target.into())?;
    socket.listen(QUEUE)?;
    Ok(socket.into())
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in connections.values() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}
