//! Transfers of known bytes, in both directions and at a set speed: a byte that is lost, doubled or wrong is known, and
//! so is how long they stood still.
//!
//! The client asks in one line, `GET NUMBER BYTES SPEED` or `PUT NUMBER BYTES`, and the server answers with its name in
//! one line. Then come the bytes; after those of a client, the server says how many there were. Whoever has said
//! everything closes.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::process::wait_until;
use crate::topology::Host;

/// Bytes after which a transfer's text begins again; a prime, so that no loss of a usual size goes unnoticed.
const PERIOD: usize = 65_521;
/// Bytes that are written at once.
const PIECE: usize = 16 << 10;
/// A connection on which nothing moves for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The text of a transfer, two periods of it: from any place on there is one.
fn text(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let period: Vec<u8> = (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    [&period[..], &period[..]].concat()
}

/// The next piece of at most `most` bytes, after `done` of them.
fn piece(text: &[u8], done: u64, most: u64) -> &[u8] {
    let from = (done % PERIOD as u64) as usize;
    let len = most.min(PIECE as u64) as usize;
    &text[from..from + len]
}

/// Writes all of a transfer, no faster than `speed` bytes a second, and tells `moved` of every piece.
fn write_all(
    stream: &mut TcpStream,
    number: u64,
    bytes: u64,
    speed: u64,
    mut moved: impl FnMut(u64),
) -> std::io::Result<()> {
    let text = text(number);
    let start = Instant::now();
    let mut done = 0;
    while done < bytes {
        let due = Duration::from_secs_f64(done as f64 / speed.max(1) as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        let piece = piece(&text, done, bytes - done);
        stream.write_all(piece)?;
        done += piece.len() as u64;
        moved(done);
    }
    Ok(())
}

/// Reads all of a transfer and compares. `Err` with a text when it is another.
fn read_all(
    stream: &mut impl Read,
    number: u64,
    bytes: u64,
    mut moved: impl FnMut(u64),
) -> Result<(), String> {
    let text = text(number);
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    while done < bytes {
        let most = (bytes - done).min(PIECE as u64) as usize;
        let count =
            stream.read(&mut buffer[..most]).map_err(|error| format!("after {done} bytes: {error}"))?;
        if count == 0 {
            return Err(format!("closed after {done} of {bytes} bytes"));
        }
        if buffer[..count] != *piece(&text, done, count as u64) {
            return Err(format!("wrong bytes after {done}"));
        }
        done += count as u64;
        moved(done);
    }
    Ok(())
}

/// Sends and takes transfers until dropped.
#[derive(Debug)]
pub struct TransferServer {
    stop: Arc<AtomicBool>,
}

impl TransferServer {
    /// Listens on `port` of all addresses of `host`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let server = Self { stop: Arc::default() };
        for address in host.addresses() {
            server.listen(host, address, port)?;
        }
        Ok(server)
    }

    fn listen(&self, host: &Host, address: IpAddr, port: u16) -> Result<()> {
        let target = SocketAddr::new(address, port);
        let listener = host
            .netns
            .run(|| TcpListener::bind(target))?
            .with_context(|| format!("cannot listen on {target}"))?;
        listener.set_nonblocking(true)?;
        let (stop, name) = (Arc::clone(&self.stop), host.name.clone());
        std::thread::Builder::new().name(format!("transfers-{name}")).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let name = name.clone();
                let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
                    // What went wrong is noticed at the other end.
                    let _ = serve(stream, &name);
                });
            }
        })?;
        Ok(())
    }
}

impl Drop for TransferServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn patient(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn serve(mut stream: TcpStream, name: &str) -> Result<()> {
    patient(&stream)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let kind = words.next().unwrap_or("").to_owned();
    let numbers: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().context("no number")?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    match (kind.as_str(), &numbers[..]) {
        ("GET", &[number, bytes, speed]) => write_all(&mut stream, number, bytes, speed, |_| {})?,
        ("PUT", &[number, bytes]) => {
            let told = match read_all(&mut reader, number, bytes, |_| {}) {
                Ok(()) => format!("{bytes}\n"),
                Err(wrong) => format!("{wrong}\n"),
            };
            stream.write_all(told.as_bytes())?;
        }
        _ => bail!("not a request: {line}"),
    }
    Ok(())
}

/// One transfer so far.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub target: SocketAddr,
    /// To the server, not from it.
    pub upload: bool,
    /// Which server answered.
    pub server: Option<String>,
    pub bytes: u64,
    /// The longest time in which no byte moved.
    pub longest_pause: Duration,
    moved: Instant,
    /// `Err` says what went wrong; `None` while it is under way.
    pub end: Option<Result<(), String>>,
}

/// Transfers under way, every second one to the server.
#[derive(Debug)]
pub struct Transfers {
    all: Arc<Mutex<Vec<Transfer>>>,
    bytes: u64,
}

impl Transfers {
    /// Begins `count` transfers of `bytes` each, spread over `targets`, that would take `time` if nothing happened, and
    /// returns when every one has its server.
    ///
    /// # Errors
    /// When one of them does not begin within ten seconds.
    pub fn start(
        netns: &Netns,
        targets: &[SocketAddr],
        count: usize,
        bytes: u64,
        time: Duration,
    ) -> Result<Self> {
        let this = Self { all: Arc::default(), bytes };
        let speed = (bytes as f64 / time.as_secs_f64()) as u64;
        for (number, target) in targets.iter().copied().cycle().take(count).enumerate() {
            // Both directions to each target.
            let upload = number / targets.len() % 2 == 1;
            let one = Transfer {
                target,
                upload,
                server: None,
                bytes: 0,
                longest_pause: Duration::ZERO,
                moved: Instant::now(),
                end: None,
            };
            this.lock().push(one);
            let all = Arc::clone(&this.all);
            netns.thread("transfer", move || {
                let change = |change: &mut dyn FnMut(&mut Transfer)| {
                    if let Some(one) = all.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number) {
                        change(one);
                    }
                };
                let end = transfer(target, upload, number as u64, bytes, speed, &change);
                change(&mut |one| one.end = Some(end.clone()));
            })?;
        }
        wait_until("the transfers to begin", Duration::from_secs(10), || {
            let all = this.snapshot();
            if let Some(failed) = all.iter().find(|one| matches!(one.end, Some(Err(_)))) {
                bail!("a transfer failed: {failed:?}");
            }
            Ok(all.iter().all(|one| one.server.is_some()).then_some(()))
        })?;
        Ok(this)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Transfer>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How each one stands.
    pub fn snapshot(&self) -> Vec<Transfer> {
        self.lock().clone()
    }

    /// Waits until each has moved this part of its bytes.
    ///
    /// # Errors
    /// When one has not after `limit`.
    pub fn wait_part(&self, part: f64, limit: Duration) -> Result<()> {
        let bytes = (self.bytes as f64 * part) as u64;
        wait_until("the transfers to get on", limit, || {
            Ok(self.snapshot().iter().all(|one| one.bytes >= bytes).then_some(()))
        })
    }

    /// Waits until all have ended, well or not.
    ///
    /// # Errors
    /// When one has not after `limit`.
    pub fn wait_end(&self, limit: Duration) -> Result<Vec<Transfer>> {
        wait_until("the transfers to end", limit, || {
            let all = self.snapshot();
            Ok(all.iter().all(|one| one.end.is_some()).then_some(all))
        })
        .with_context(|| format!("they stand so: {:?}", self.snapshot()))
    }
}

/// Gives the note of a transfer to whoever has news of it.
type Change<'a> = &'a dyn Fn(&mut dyn FnMut(&mut Transfer));

/// One transfer from its beginning to its end.
fn transfer(
    target: SocketAddr,
    upload: bool,
    number: u64,
    bytes: u64,
    speed: u64,
    change: Change<'_>,
) -> Result<(), String> {
    let told = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("nothing moved for {PATIENCE:?}"),
        _ => error.to_string(),
    };
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10)).map_err(told)?;
    patient(&stream).map_err(told)?;
    let mut reader = BufReader::new(stream.try_clone().map_err(told)?);
    let request =
        if upload { format!("PUT {number} {bytes}\n") } else { format!("GET {number} {bytes} {speed}\n") };
    stream.write_all(request.as_bytes()).map_err(told)?;
    let mut server = String::new();
    reader.read_line(&mut server).map_err(told)?;
    change(&mut |one| one.server = Some(server.trim().to_owned()));
    let moved = |done: u64| {
        change(&mut |one| {
            one.bytes = done;
            one.longest_pause = one.longest_pause.max(one.moved.elapsed());
            one.moved = Instant::now();
        });
    };
    if upload {
        write_all(&mut stream, number, bytes, speed, moved).map_err(told)?;
        let mut answer = String::new();
        reader.read_line(&mut answer).map_err(told)?;
        if answer.trim() != bytes.to_string() {
            return Err(format!("the server says: {}", answer.trim()));
        }
    } else {
        read_all(&mut reader, number, bytes, moved)?;
    }
    match reader.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err("more bytes than there should be".to_owned()),
        Err(error) => Err(told(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                serve(listener.accept().unwrap().0, "mx1").unwrap();
            }
        });
        for upload in [false, true] {
            let end = transfer(target, upload, 7, 200_000, 10_000_000, &|_| {});
            assert_eq!(end, Ok(()), "upload: {upload}");
        }
        server.join().unwrap();
    }

    #[test]
    fn a_lost_byte_is_noticed() {
        let whole = text(3);
        assert_eq!(read_all(&mut &whole[..1000], 3, 1000, |_| {}), Ok(()));
        let lost = [&whole[..500], &whole[501..]].concat();
        assert!(read_all(&mut &lost[..1000], 3, 1000, |_| {}).is_err());
        assert!(read_all(&mut &whole[..999], 3, 1000, |_| {}).is_err());
        assert!(read_all(&mut &text(4)[..1000], 3, 1000, |_| {}).is_err());
    }
}
