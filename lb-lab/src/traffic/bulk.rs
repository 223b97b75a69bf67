//! A bulk transfer that lasts as long as it is wanted, with every byte accounted for at the other end.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest, Sha256};

use super::paced::{self, Paced, Progress, Shared};
use super::tcp_server::TcpServer;
use crate::netns::Netns;
use crate::topology::Host;

/// Greets with its name, takes what comes, and tells at its end how many bytes that was and their SHA-256.
#[derive(Debug)]
pub struct BulkServer {
    _server: TcpServer,
}

impl BulkServer {
    /// Listens on `port` of `host`, under the host's name.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Ok(Self { _server: TcpServer::start(host, port, serve)? })
    }
}

fn serve(mut stream: TcpStream, name: &str) -> Option<()> {
    stream.write_all(format!("{name}\n").as_bytes()).ok()?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer).ok()? {
            0 => break,
            count => {
                digest.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    stream.write_all(format!("{}\n", account(bytes, digest)).as_bytes()).ok()
}

/// `BYTES SHA-256`
fn account(bytes: u64, digest: Sha256) -> String {
    let mut text = format!("{bytes} ");
    for byte in digest.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What became of a transfer.
#[derive(Clone, Debug)]
pub struct Transferred {
    pub server: String,
    pub bytes: u64,
    /// `BYTES SHA-256`, as each side has it.
    pub sent: String,
    pub received: String,
}

impl Transferred {
    /// Whether the server has what was sent, no more and no less.
    pub fn whole(&self) -> bool {
        self.sent == self.received
    }
}

/// A running sender.
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    progress: Shared,
    thread: Option<JoinHandle<Result<Result<Transferred>>>>,
}

impl Transfer {
    /// Sends to a [`BulkServer`] behind `target`, `rate` bytes per second, until [`Transfer::finish`].
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(netns: &Netns, target: SocketAddr, rate: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Shared::default();
        let (ended, shared) = (Arc::clone(&stop), Arc::clone(&progress));
        let thread = netns.thread("transfer", move || transfer(target, rate, shared, &ended))?;
        Ok(Self { stop, progress, thread: Some(thread) })
    }

    pub fn progress(&self) -> Progress {
        paced::look(&self.progress)
    }

    /// Sends no more and waits for what the server says.
    ///
    /// # Errors
    /// When the connection broke, or did not move any more.
    pub fn finish(mut self) -> Result<Transferred> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished twice")?;
        thread.join().map_err(|_| anyhow!("the transfer panicked"))??
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn transfer(target: SocketAddr, rate: u32, progress: Shared, stop: &AtomicBool) -> Result<Transferred> {
    let mut connection = Paced::connect(target, rate, progress)?;
    let server = connection.answer()?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut portion = Vec::with_capacity(connection.portion());
    while !stop.load(Ordering::Relaxed) {
        portion.clear();
        while portion.len() < connection.portion() {
            // Nothing repeats, so nothing can be lost, doubled or put elsewhere unnoticed.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            portion.extend(state.to_le_bytes());
        }
        digest.update(&portion);
        bytes += portion.len() as u64;
        connection.send(&portion)?;
    }
    connection.end()?;
    let received = connection.answer()?;
    ensure!(!received.is_empty(), "the server tells nothing");
    Ok(Transferred { server, bytes, sent: account(bytes, digest), received })
}
