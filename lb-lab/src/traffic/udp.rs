//! Numbered datagrams to an echo server: every one that is lost, doubled or late is known.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::netns::Netns;
use crate::topology::Host;

/// How long an answer may take after the last datagram was sent.
const GRACE: Duration = Duration::from_secs(1);

/// Answers every datagram with its own text and the server's name.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
}

impl UdpEcho {
    /// Listens on `port` of all addresses of `host`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let echo = Self { stop: Arc::default() };
        for address in host.addresses() {
            let socket = bind(&host.netns, SocketAddr::new(address, port))?;
            let (stop, name) = (Arc::clone(&echo.stop), host.name.clone());
            std::thread::Builder::new().name(format!("udp-echo-{name}")).spawn(move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((count, from)) = socket.recv_from(&mut buffer) {
                        let mut answer = buffer[..count].to_vec();
                        answer.extend_from_slice(format!(" {name}").as_bytes());
                        let _ = socket.send_to(&answer, from);
                    }
                }
            })?;
        }
        Ok(echo)
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn bind(netns: &Netns, address: SocketAddr) -> Result<UdpSocket> {
    let socket =
        netns.run(|| UdpSocket::bind(address))?.with_context(|| format!("cannot listen on {address}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(socket)
}

/// Sends `text` to `target` as one datagram, in fragments if it must be, and returns which server sent the
/// same back; `None` when none does in a second.
///
/// # Errors
/// When no socket can be had or the kernel refuses to send.
pub fn ask(netns: &Netns, target: SocketAddr, text: &[u8]) -> Result<Option<String>> {
    let socket = bind(netns, SocketAddr::new(unspecified(target), 0))?;
    let mut buffer = vec![0; 65_536];
    socket.send_to(text, target).with_context(|| format!("cannot send to {target}"))?;
    let start = Instant::now();
    while start.elapsed() < GRACE {
        if let Ok((count, from)) = socket.recv_from(&mut buffer)
            && from == target
            && let Some(server) = buffer[..count].strip_prefix(text)
        {
            return Ok(Some(String::from_utf8_lossy(server).trim().to_owned()));
        }
    }
    Ok(None)
}

fn unspecified(target: SocketAddr) -> IpAddr {
    if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// What became of the datagrams.
#[derive(Clone, Debug, Default)]
pub struct Datagrams {
    pub sent: u64,
    pub answered: u64,
    pub doubled: u64,
    /// Which server answered how many.
    pub servers: BTreeMap<String, u64>,
    /// When the lost ones were sent, from the start.
    pub lost: Vec<Duration>,
    /// The longest time without an answer.
    pub silence: Duration,
}

/// A running sender.
#[derive(Debug)]
pub struct UdpStream {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Result<Datagrams>>>>,
}

impl UdpStream {
    /// Sends one numbered datagram to `target` every `every`, from one socket.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start(netns: &Netns, target: SocketAddr, every: Duration) -> Result<Self> {
        let socket = bind(netns, SocketAddr::new(unspecified(target), 0))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = netns.thread("udp-stream", move || exchange(&socket, target, every, &ended))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Sends no more, waits for the last answers, and tells.
    ///
    /// # Errors
    /// When sending failed.
    pub fn finish(mut self) -> Result<Datagrams> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished twice")?;
        thread.join().map_err(|_| anyhow!("the sender panicked"))??
    }
}

impl Drop for UdpStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn exchange(socket: &UdpSocket, target: SocketAddr, every: Duration, stop: &AtomicBool) -> Result<Datagrams> {
    let start = Instant::now();
    let mut result = Datagrams::default();
    // Per datagram: when it was sent, and how many answers it got.
    let mut sent: Vec<(Duration, u64)> = Vec::new();
    let mut stopped = None;
    let mut heard = Duration::ZERO;
    loop {
        if stopped.is_none() && stop.load(Ordering::Relaxed) {
            stopped = Some(Instant::now());
        }
        let missing = sent.iter().rev().take(4096).any(|(_, answers)| *answers == 0);
        if stopped.is_some_and(|at| !missing || at.elapsed() >= GRACE) {
            break;
        }
        let due = every * u32::try_from(sent.len()).context("too many datagrams")?;
        if stopped.is_none() && start.elapsed() >= due {
            // A pending ICMP error is reported once, in place of the sending.
            if socket.send_to(sent.len().to_string().as_bytes(), target).is_err() {
                socket.send_to(sent.len().to_string().as_bytes(), target)?;
            }
            sent.push((start.elapsed(), 0));
            continue;
        }
        let wait = due.saturating_sub(start.elapsed()).clamp(Duration::from_micros(200), GRACE / 20);
        socket.set_read_timeout(Some(wait))?;
        let mut buffer = [0; 256];
        let Ok((count, _)) = socket.recv_from(&mut buffer) else { continue };
        let answer = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if let Some((number, server)) = answer.split_once(' ')
            && let Some(slot) = number.parse().ok().and_then(|number: usize| sent.get_mut(number))
        {
            slot.1 += 1;
            let now = start.elapsed();
            result.silence = result.silence.max(now - heard);
            heard = now;
            *result.servers.entry(server.to_owned()).or_default() += 1;
        }
    }
    result.sent = sent.len() as u64;
    // One that was not over at the end.
    let last = sent.last().map_or(Duration::ZERO, |(at, _)| *at);
    result.silence = result.silence.max(last.saturating_sub(heard));
    for (at, answers) in sent {
        match answers {
            0 => result.lost.push(at),
            1 => result.answered += 1,
            _ => {
                result.answered += 1;
                result.doubled += answers - 1;
            }
        }
    }
    Ok(result)
}
