//! What connections are measured with: wrk, iperf3, smtp-source, and exchanges at a given rate.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::histogram::Histogram;
use super::network::{Cpus, Network, SINGLE, VIP};
use super::servers::{BULK, ECHO, MAIL, MESSAGE, WEB};

/// Connections that exchange at a time.
const CONNECTIONS: usize = 32;
/// Mail sessions at a time.
const SESSIONS: u32 = 32;
/// Bytes of a mail.
const MAIL_SIZE: u32 = 4096;
/// After its time is over, a program may take so long to end.
const GRACE: Duration = Duration::from_secs(15);

/// So many of something were done in a time.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub count: u64,
    pub time: Duration,
}

impl Done {
    pub fn per_second(self) -> f64 {
        self.count as f64 / self.time.as_secs_f64()
    }
}

/// Runs a program of the client's and returns what it printed.
fn client(network: &Network, program: &str, arguments: &[String], limit: Duration) -> Result<String> {
    // What is started inherits the CPU.
    Cpus::keep(0, network.cpus.ends)?;
    let mut command: Command = network.lab.command(program)?;
    command.args(arguments);
    network.lab.finish(&network.client, command, limit)?.expect(program)
}

/// wrk's last words, as this script has it print them: answers, errors, microseconds.
const SCRIPT: &str = "done = function(summary, latency, requests)\n\
    local e = summary.errors\n\
    print('counted', summary.requests, e.connect + e.read + e.write + e.timeout + e.status, summary.duration)\n\
    end\n";

/// HTTP requests, all on the same connections or each on its own.
///
/// # Errors
/// When a request fails, or wrk does.
pub fn requests(network: &Network, time: Duration, keep_alive: bool) -> Result<Done> {
    let script = network.lab.directory().join("wrk.lua");
    let text =
        if keep_alive { SCRIPT.to_owned() } else { format!("wrk.headers['Connection'] = 'close'\n{SCRIPT}") };
    std::fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
    let seconds = time.as_secs().max(1);
    let arguments = wrk(seconds, &script);
    let printed = client(network, "wrk", &arguments, time + GRACE)?;
    let done = counted(&printed)?;
    if done.count == 0 {
        bail!("no request was answered: {printed}");
    }
    Ok(done)
}

fn wrk(seconds: u64, script: &Path) -> Vec<String> {
    let script = script.display().to_string();
    let connections = CONNECTIONS.to_string();
    let time = format!("{seconds}s");
    ["-t", "1", "-c", &connections, "-d", &time, "-s", &script, &format!("http://{VIP}:{WEB}/")]
        .map(str::to_owned)
        .into()
}

/// What the script printed.
fn counted(printed: &str) -> Result<Done> {
    let line = printed.lines().find_map(|line| line.strip_prefix("counted"));
    let line = line.with_context(|| format!("wrk has counted nothing: {printed}"))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [count, errors, microseconds] = numbers[..] else { bail!("wrk has counted something else: {line}") };
    if errors > 0 {
        bail!("{errors} of {count} requests failed");
    }
    Ok(Done { count, time: Duration::from_micros(microseconds) })
}

/// One transfer to the first server; counts bytes that have arrived.
///
/// # Errors
/// With iperf3's own words.
pub fn bulk(network: &Network, time: Duration) -> Result<Done> {
    let (target, port, seconds) = (SINGLE.to_string(), BULK.to_string(), time.as_secs().max(1).to_string());
    let arguments = ["-J", "-c", &target, "-p", &port, "-t", &seconds].map(str::to_owned);
    let printed = client(network, "iperf3", &arguments, time + GRACE)?;
    received(&printed)
}

fn received(printed: &str) -> Result<Done> {
    let report: serde_json::Value = serde_json::from_str(printed).context("iperf3 printed no JSON")?;
    let sum = &report["end"]["sum_received"];
    match (sum["bytes"].as_u64(), sum["seconds"].as_f64()) {
        (Some(count), Some(seconds)) if seconds > 0.0 => {
            Ok(Done { count, time: Duration::from_secs_f64(seconds) })
        }
        _ => bail!("iperf3 gave no result: {}", report["error"]),
    }
}

/// So many mails, each in a session of its own.
///
/// # Errors
/// When one is not accepted.
pub fn mail(network: &Network, count: u32) -> Result<Done> {
    let (sessions, size, count_text) = (SESSIONS.to_string(), MAIL_SIZE.to_string(), count.to_string());
    let target = format!("{VIP}:{MAIL}");
    let arguments = [
        "-s",
        &sessions,
        "-l",
        &size,
        "-m",
        &count_text,
        "-f",
        "a@client.example",
        "-t",
        "b@server.example",
        &target,
    ]
    .map(str::to_owned);
    let begun = Instant::now();
    // It ends with an error at the first mail that is refused.
    client(network, "smtp-source", &arguments, GRACE * 2)?;
    Ok(Done { count: count.into(), time: begun.elapsed() })
}

/// What came of exchanges at a rate.
#[derive(Clone, Debug)]
pub struct Exchanges {
    pub latencies: Histogram,
    pub sent: u64,
    /// Which servers answered, by their numbers.
    pub servers: std::collections::BTreeSet<u8>,
}

/// Sends a message every `interval`, on one connection of 32 after the other, without waiting for answers, and takes the time
/// of each until its answer is there.
///
/// # Errors
/// When a connection fails, or an answer is missing.
pub fn exchange(network: &Network, interval: Duration, time: Duration) -> Result<Exchanges> {
    network.client.run(|| {
        Cpus::keep(0, network.cpus.ends)?;
        // The kernel may be late by as much as it is told, to wake for several reasons at a time.
        // SAFETY: prctl takes integers.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect((VIP, ECHO)).context("cannot connect to the echo")?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        exchange_on(&mut streams, interval, time)
    })?
}

fn exchange_on(streams: &mut [TcpStream], interval: Duration, time: Duration) -> Result<Exchanges> {
    let mut found = Exchanges { latencies: Histogram::default(), sent: 0, servers: Default::default() };
    let begun = Instant::now();
    let mut message = [0; MESSAGE];
    let mut open = 0_u64;
    loop {
        let now = begun.elapsed();
        let due = interval.mul_f64(found.sent as f64);
        if due < time && due <= now {
            let number = (found.sent % streams.len() as u64) as usize;
            message[8..16].copy_from_slice(&nanoseconds(begun).to_ne_bytes());
            streams[number].write_all(&message).context("cannot send to the echo")?;
            (found.sent, open) = (found.sent + 1, open + 1);
            continue;
        }
        if due >= time && open == 0 {
            return Ok(found);
        }
        if now > time + Duration::from_secs(5) {
            bail!("{open} of {} messages were not answered", found.sent);
        }
        let wait = if due < time { due.saturating_sub(now) } else { Duration::from_millis(100) };
        open -= receive(streams, wait, begun, &mut found)?;
    }
}

/// Takes the answers that are there, or that come within `wait`; says how many.
fn receive(streams: &mut [TcpStream], wait: Duration, begun: Instant, found: &mut Exchanges) -> Result<u64> {
    let ready: Vec<usize> = {
        let mut polls: Vec<PollFd<'_>> =
            streams.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
        ppoll(&mut polls, Some(TimeSpec::from_duration(wait)), None).context("cannot wait for answers")?;
        polls
            .iter()
            .enumerate()
            .filter(|(_, poll)| poll.any() == Some(true))
            .map(|(number, _)| number)
            .collect()
    };
    let mut answers = 0;
    for number in ready {
        let mut message = [0; MESSAGE];
        streams[number].read_exact(&mut message).context("an answer is cut short")?;
        let sent = u64::from_ne_bytes(message[8..16].try_into().context("a message has a time")?);
        found.latencies.record(nanoseconds(begun).saturating_sub(sent));
        found.servers.insert(message[0]);
        answers += 1;
    }
    Ok(answers)
}

fn nanoseconds(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_request_is_no_figure() {
        let done = counted("Running\ncounted\t120\t0\t2000000\n").unwrap();
        assert_eq!((done.count, done.per_second()), (120, 60.0));
        counted("counted\t120\t1\t2000000\n").unwrap_err();
        counted("Requests/sec: 10\n").unwrap_err();
    }

    #[test]
    fn a_transfer_without_an_end_is_no_figure() {
        let done = received(r#"{"end": {"sum_received": {"bytes": 1000, "seconds": 2.0}}}"#).unwrap();
        assert_eq!(done.per_second(), 500.0);
        received(r#"{"error": "the server is busy", "end": {}}"#).unwrap_err();
    }
}
