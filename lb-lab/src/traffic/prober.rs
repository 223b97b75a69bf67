//! Opens a connection every few milliseconds and notes how each one fared and which server answered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

pub use super::line::Failure;
use super::line::{Line, Step, server_name, wait};
use crate::netns::Netns;

/// One connection from SYN to greeting.
#[derive(Clone, Debug)]
pub struct Attempt {
    pub started: Instant,
    pub target: SocketAddr,
    pub result: Result<Answer, Failure>,
}

/// The server that answered, and how long it took.
#[derive(Clone, Debug)]
pub struct Answer {
    pub server: String,
    pub connect: Duration,
    pub greeting: Duration,
}

impl Attempt {
    /// Whether it was greeted within `limit`.
    pub fn prompt(&self, limit: Duration) -> bool {
        self.result.as_ref().is_ok_and(|answer| answer.greeting <= limit)
    }

    pub fn server(&self) -> Option<&str> {
        self.result.as_ref().ok().map(|answer| answer.server.as_str())
    }
}

/// A running prober.
#[derive(Debug)]
pub struct Prober {
    done: Arc<Mutex<Vec<Attempt>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Pending {
    line: Line,
    target: SocketAddr,
    connect: Option<Duration>,
}

impl Prober {
    /// Probes `targets` in turn, one every `every`; each attempt may take `limit`.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(netns: &Netns, targets: Vec<SocketAddr>, every: Duration, limit: Duration) -> Result<Self> {
        let done = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (record, ended) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = netns.thread("prober", move || probe(&targets, every, limit, &record, &ended))?;
        Ok(Self { done, stop, thread: Some(thread) })
    }

    /// The attempts that have ended, in the order of their end.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts no more, waits for those under way, and returns all in the order of their start.
    ///
    /// # Errors
    /// When the thread failed.
    pub fn finish(mut self) -> Result<Vec<Attempt>> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the prober panicked"))??;
        }
        let mut attempts = self.attempts();
        attempts.sort_by_key(|attempt| attempt.started);
        Ok(attempts)
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The longest time in which no greeting came from one of the targets.
pub fn silence(attempts: &[Attempt]) -> Duration {
    let mut targets: Vec<SocketAddr> = attempts.iter().map(|one| one.target).collect();
    targets.sort_unstable();
    targets.dedup();
    let silence = |target: &SocketAddr| {
        let of_target = |one: &&Attempt| one.target == *target;
        silence_of_one(&attempts.iter().filter(of_target).cloned().collect::<Vec<_>>())
    };
    targets.iter().map(silence).max().unwrap_or_default()
}

fn silence_of_one(attempts: &[Attempt]) -> Duration {
    let greeted = |one: &Attempt| one.result.as_ref().ok().map(|answer| one.started + answer.greeting);
    let mut heard: Vec<Instant> = attempts.iter().filter_map(greeted).collect();
    // One that was not over before the first or after the last.
    heard.extend(attempts.iter().map(|one| one.started).min());
    heard.extend(attempts.iter().map(|one| one.started).max());
    heard.sort_unstable();
    heard.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// How many of `attempts` each server answered; failures are counted under `None`.
pub fn shares(attempts: &[Attempt]) -> BTreeMap<Option<String>, usize> {
    let mut shares = BTreeMap::new();
    for attempt in attempts {
        *shares.entry(attempt.server().map(str::to_owned)).or_default() += 1;
    }
    shares
}

fn probe(
    targets: &[SocketAddr],
    every: Duration,
    limit: Duration,
    record: &Mutex<Vec<Attempt>>,
    stop: &AtomicBool,
) {
    let note = |started, target, result| {
        let attempt = Attempt { started, target, result };
        record.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
    };
    let mut pending: Vec<Pending> = Vec::new();
    let mut next = Instant::now();
    let mut turn = targets.iter().copied().cycle();
    while !(stop.load(Ordering::Relaxed) && pending.is_empty()) {
        let now = Instant::now();
        if now >= next && !stop.load(Ordering::Relaxed) {
            // After a pause of the whole machine the missed ones are not made up for.
            next = if now > next + every * 5 { now } else { next + every };
            if let Some(target) = turn.next() {
                match Line::connect(target) {
                    Ok(line) => pending.push(Pending { line, target, connect: None }),
                    Err(failure) => note(now, target, Err(failure)),
                }
            }
        }
        let mut polls: Vec<_> = pending.iter().map(|one| one.line.poll()).collect();
        wait(&mut polls, next.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)));
        let mut ready = polls.iter().map(|poll| poll.revents != 0);
        pending.retain_mut(|one| {
            let age = one.line.started.elapsed();
            let result = match ready.next().unwrap_or(false).then(|| one.line.step()) {
                Some(Step::Connected) => {
                    one.connect = Some(age);
                    return true;
                }
                Some(Step::Line(greeting)) => {
                    let _ = one.line.send("QUIT\r\n");
                    let connect = one.connect.unwrap_or(age);
                    Ok(Answer { server: server_name(&greeting), connect, greeting: age })
                }
                Some(Step::Failed(failure)) => Err(failure),
                Some(Step::Nothing) | None if age >= limit => Err(Failure::TimedOut),
                Some(Step::Nothing) | None => return true,
            };
            note(one.line.started, one.target, result);
            false
        });
    }
}
