//! A connection that is written at a steady pace for as long as its owner likes, and how long it stood still.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two looks at what the other side has acknowledged: stalls are known as exactly as this.
const TICK: Duration = Duration::from_millis(5);
/// A connection that does not move for so long is given up, as is an answer that takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// How far a sender has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Acknowledged by the other side's kernel.
    pub bytes: u64,
    /// The longest time in which nothing of what was sent was acknowledged, counting one that still lasts.
    pub longest_stall: Duration,
}

/// What others may look at while it is written.
pub(super) type Shared = Arc<Mutex<Progress>>;

/// How far it has come.
pub(super) fn look(progress: &Shared) -> Progress {
    *progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open connection.
pub(super) struct Paced {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    /// Bytes in a tick.
    portion: usize,
    next: Instant,
    written: u64,
    moved: Instant,
    progress: Shared,
}

impl Paced {
    /// Connects from the namespace of the calling thread; `rate` is in bytes per second.
    ///
    /// # Errors
    /// When the connection cannot be had.
    pub fn connect(target: SocketAddr, rate: u32, progress: Shared) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&target, PATIENCE)
            .with_context(|| format!("cannot connect to {target}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answers = BufReader::new(stream.try_clone()?);
        let portion = usize::try_from(u128::from(rate) * TICK.as_millis() / 1000)?.max(1);
        let now = Instant::now();
        Ok(Self { stream, answers, portion, next: now, written: 0, moved: now, progress })
    }

    /// Bytes that fit into a tick.
    pub fn portion(&self) -> usize {
        self.portion
    }

    /// The next line from the other side, without its end.
    ///
    /// # Errors
    /// When it ends or says nothing.
    pub fn answer(&mut self) -> Result<String> {
        self.stream.set_nonblocking(false)?;
        let mut line = String::new();
        let count = self.answers.read_line(&mut line).context("there is no answer")?;
        if count == 0 {
            bail!("the server closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Sends something short at once.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn say(&mut self, text: &str) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.write_all(text.as_bytes())?;
        self.written += text.len() as u64;
        Ok(())
    }

    /// Writes `bytes` at the pace: at most a portion in a tick. What a stall has delayed is not made up for.
    ///
    /// # Errors
    /// When the connection is broken, or does not move any more.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.set_nonblocking(true)?;
        for portion in bytes.chunks(self.portion) {
            let mut rest = portion;
            self.wait()?;
            while !rest.is_empty() {
                match self.stream.write(rest) {
                    Ok(count) => {
                        rest = &rest[count..];
                        self.written += count as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait()?,
                    Err(error) => return Err(error).context("the connection broke"),
                }
            }
        }
        Ok(())
    }

    /// Nothing more will be sent; answers still come.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn end(&self) -> Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write).context("the connection broke")
    }

    /// Until the next tick.
    fn wait(&mut self) -> Result<()> {
        std::thread::sleep(self.next.saturating_duration_since(Instant::now()));
        self.next = Instant::now() + TICK;
        self.note()
    }

    /// Whether it moves.
    fn note(&mut self) -> Result<()> {
        let mut waiting: libc::c_int = 0;
        // SAFETY: the request writes one int, and the descriptor is open.
        if unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) } != 0 {
            return Err(std::io::Error::last_os_error()).context("cannot ask what is acknowledged");
        }
        let now = Instant::now();
        let acknowledged = self.written.saturating_sub(u64::try_from(waiting)?);
        let stall = now - self.moved;
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting == 0 || acknowledged > progress.bytes {
            self.moved = now;
        }
        progress.bytes = acknowledged;
        progress.longest_stall = progress.longest_stall.max(stall);
        drop(progress);
        if stall > PATIENCE {
            bail!("nothing was acknowledged for {PATIENCE:?}");
        }
        Ok(())
    }
}
