//! A connection that speaks in lines, driven without blocking: what [`super::prober`] and
//! [`super::flows`] have in common.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

/// Why a connection ended or never came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    Refused,
    Reset,
    /// The server closed it in good order, but too early.
    Closed,
    TimedOut,
    /// A reply was not the expected one.
    Wrong(String),
    Other(String),
}

impl From<&std::io::Error> for Failure {
    fn from(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// What a step of the connection brought.
pub(super) enum Step {
    Nothing,
    /// The handshake is done.
    Connected,
    /// One line, without its end.
    Line(String),
    Failed(Failure),
}

/// One nonblocking TCP connection.
#[derive(Debug)]
pub(super) struct Line {
    stream: TcpStream,
    connected: bool,
    received: Vec<u8>,
    pub started: Instant,
}

impl Line {
    /// Sends the SYN, from the namespace of the calling thread.
    pub fn connect(target: SocketAddr) -> Result<Self, Failure> {
        let open = || {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            socket.set_tcp_nodelay(true)?;
            let started = Instant::now();
            match socket.connect(&target.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
                _ => {}
            }
            Ok(Self { stream: socket.into(), connected: false, received: Vec::new(), started })
        };
        open().map_err(|error: std::io::Error| Failure::from(&error))
    }

    /// What the kernel is to watch.
    pub fn poll(&self) -> libc::pollfd {
        let events = if self.connected { libc::POLLIN } else { libc::POLLOUT };
        libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 }
    }

    /// Takes one step after the kernel reported something.
    pub fn step(&mut self) -> Step {
        if !self.connected {
            return match self.stream.take_error() {
                Ok(None) => {
                    self.connected = true;
                    Step::Connected
                }
                Ok(Some(error)) | Err(error) => Step::Failed(Failure::from(&error)),
            };
        }
        if let Some(line) = self.next_line() {
            return Step::Line(line);
        }
        let mut buffer = [0; 2048];
        match self.stream.read(&mut buffer) {
            Ok(0) => Step::Failed(Failure::Closed),
            Ok(count) => {
                self.received.extend_from_slice(&buffer[..count]);
                self.next_line().map_or(Step::Nothing, Step::Line)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Nothing,
            Err(error) => Step::Failed(Failure::from(&error)),
        }
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.received.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.received.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Lines are short; one that does not fit the socket's buffer means that nobody reads.
    pub fn send(&mut self, text: &str) -> Result<(), Failure> {
        self.stream.write_all(text.as_bytes()).map_err(|error| Failure::from(&error))
    }
}

/// Waits for any of `polls`, at most `limit`.
pub(super) fn wait(polls: &mut [libc::pollfd], limit: Duration) {
    let millis = i32::try_from(limit.as_millis().max(1)).unwrap_or(100);
    let count = libc::nfds_t::try_from(polls.len()).unwrap_or(0);
    // SAFETY: a valid array of `count` elements.
    unsafe { libc::poll(polls.as_mut_ptr(), count, millis) };
}

/// Which server a greeting names: `220 mx1.example ESMTP` or `mx1`.
pub(super) fn server_name(greeting: &str) -> String {
    let name = greeting.strip_prefix("220 ").unwrap_or(greeting);
    let word = name.split_whitespace().next().unwrap_or("");
    word.split('.').next().unwrap_or(word).to_owned()
}
