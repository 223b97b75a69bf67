//! Connections that stay open and exchange numbered lines, so that any reset, gap or stall is noticed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::line::{Failure, Line, Step, server_name, wait};
use crate::netns::Netns;
use crate::process::wait_until;

/// What the server at the other end understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// [`super::EchoServer`]: a line comes back as it was sent.
    Echo,
    /// NOOP, answered with 250.
    Smtp,
}

/// One connection's history so far.
#[derive(Clone, Debug)]
pub struct Flow {
    pub target: SocketAddr,
    /// Which server greeted it; `None` before.
    pub server: Option<String>,
    /// Lines sent and answered.
    pub exchanges: u64,
    /// The longest time from a line to its answer, counting one still unanswered.
    pub longest_wait: Duration,
    /// When and why it ended; `None` while it is fine.
    pub end: Option<(Instant, Failure)>,
}

impl Flow {
    pub fn alive(&self) -> bool {
        self.server.is_some() && self.end.is_none()
    }
}

/// A set of open connections.
#[derive(Debug)]
pub struct Flows {
    flows: Arc<Mutex<Vec<Flow>>>,
    stop: Arc<AtomicBool>,
    _thread: JoinHandle<Result<()>>,
}

impl Flows {
    /// Opens `count` connections, spread over `targets`, each sending a line every `pause`, and returns when
    /// all have been greeted.
    ///
    /// # Errors
    /// When one of them cannot be opened within ten seconds.
    pub fn open(
        netns: &Netns,
        targets: Vec<SocketAddr>,
        count: usize,
        dialect: Dialect,
        pause: Duration,
    ) -> Result<Self> {
        let flows: Arc<Mutex<Vec<Flow>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (record, ended) = (Arc::clone(&flows), Arc::clone(&stop));
        let thread = netns.thread("flows", move || hold(&targets, count, dialect, pause, &record, &ended))?;
        let this = Self { flows, stop, _thread: thread };
        wait_until("the connections to be greeted", Duration::from_secs(10), || {
            let flows = this.snapshot();
            if let Some((target, (_, failure))) =
                flows.iter().find_map(|flow| Some((flow.target, flow.end.clone()?)))
            {
                bail!("a connection to {target} failed: {failure:?}");
            }
            Ok((flows.len() == count && flows.iter().all(Flow::alive)).then_some(()))
        })?;
        Ok(this)
    }

    /// How each one stands.
    pub fn snapshot(&self) -> Vec<Flow> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Held {
    line: Line,
    /// The line that waits for its answer, and since when.
    asked: Option<(String, Instant)>,
    next: Instant,
}

fn hold(
    targets: &[SocketAddr],
    count: usize,
    dialect: Dialect,
    pause: Duration,
    record: &Mutex<Vec<Flow>>,
    stop: &AtomicBool,
) {
    let mut held: Vec<Option<Held>> = Vec::new();
    for target in targets.iter().copied().cycle().take(count) {
        let mut flow = Flow { target, server: None, exchanges: 0, longest_wait: Duration::ZERO, end: None };
        let opened = Line::connect(target);
        if let Err(failure) = &opened {
            flow.end = Some((Instant::now(), failure.clone()));
        }
        // Spread over the pause, so that they do not all speak at once.
        let share = pause.mul_f64(held.len() as f64 / count.max(1) as f64);
        held.push(opened.ok().map(|line| Held { line, asked: None, next: Instant::now() + share }));
        record.lock().unwrap_or_else(PoisonError::into_inner).push(flow);
    }
    while !stop.load(Ordering::Relaxed) {
        let mut polls: Vec<_> = held
            .iter()
            .map(|one| {
                let idle = libc::pollfd { fd: -1, events: 0, revents: 0 };
                one.as_ref().map_or(idle, |one| one.line.poll())
            })
            .collect();
        wait(&mut polls, Duration::from_millis(10));
        let mut flows = record.lock().unwrap_or_else(PoisonError::into_inner);
        for ((slot, flow), poll) in held.iter_mut().zip(flows.iter_mut()).zip(&polls) {
            if let Some(one) = slot
                && let Err(failure) = drive(one, flow, poll.revents != 0, dialect, pause)
            {
                flow.end = Some((Instant::now(), failure));
                *slot = None;
            }
        }
    }
}

/// One turn of one connection.
fn drive(
    one: &mut Held,
    flow: &mut Flow,
    ready: bool,
    dialect: Dialect,
    pause: Duration,
) -> Result<(), Failure> {
    match if ready { one.line.step() } else { Step::Nothing } {
        Step::Line(greeting) if flow.server.is_none() => flow.server = Some(server_name(&greeting)),
        Step::Line(answer) => {
            let Some((question, since)) = one.asked.take() else { return Err(Failure::Wrong(answer)) };
            let right = match dialect {
                Dialect::Echo => answer == question.trim_end(),
                Dialect::Smtp => answer.starts_with("250"),
            };
            if !right {
                return Err(Failure::Wrong(answer));
            }
            flow.exchanges += 1;
            flow.longest_wait = flow.longest_wait.max(since.elapsed());
        }
        Step::Failed(failure) => return Err(failure),
        Step::Connected | Step::Nothing => {}
    }
    let now = Instant::now();
    if let Some((_, since)) = &one.asked {
        flow.longest_wait = flow.longest_wait.max(since.elapsed());
    } else if flow.server.is_some() && now >= one.next {
        let question = match dialect {
            Dialect::Echo => format!("{}\n", flow.exchanges),
            Dialect::Smtp => "NOOP\r\n".to_owned(),
        };
        one.line.send(&question)?;
        one.asked = Some((question, now));
        one.next = now + pause;
    }
    Ok(())
}
