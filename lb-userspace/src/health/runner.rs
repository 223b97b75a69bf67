//! The task that checks all targets.
//!
//! It owns the schedule and the state of every target, so there are no locks. Checks run in tasks of their
//! own and hand back a verdict; the report of a verdict goes out in the same turn. A receiver that falls
//! behind delays the start of further checks, never their verdicts, and never what [`Runner`] is told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::fsm::{Fsm, Outcome};
use super::probe::{self, Examined};
use super::schedule::{Pace, Schedule, TargetId};
use super::{CheckError, Health, Report, Target};
use crate::config::{Check, Probe};

/// The most checks that run at a time, besides programs. Each holds a file descriptor.
const MAX_CONCURRENT: usize = 4096;
/// The most programs of `exec` checks that run at a time.
const MAX_PROGRAMS: usize = 32;

/// Checks targets until it is dropped; a check under way is then given up.
#[derive(Debug)]
pub struct Runner {
    commands: mpsc::UnboundedSender<Command>,
}

/// What a [`Runner`] is told.
#[derive(Debug)]
pub(super) enum Command {
    SetTargets(Vec<(Target, Health)>),
    Poll(oneshot::Sender<()>),
}

/// Starts checking nothing, until [`Runner::set_targets`].
///
/// One report is sent for every finished check, as soon as its verdict is known. Checking ends when the
/// receiver of `reports` is closed or the runner is dropped.
///
/// # Panics
/// Outside a tokio runtime with I/O and time.
#[must_use]
pub fn spawn(reports: mpsc::Sender<Report>) -> Runner {
    spawn_with(reports, concurrency(), rand::random(), |target: Arc<Target>| async move {
        probe::examine(&target).await
    })
}

impl Runner {
    /// One whose commands are carried out by whoever receives them.
    pub(super) fn commanding() -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        (Self { commands }, inbox)
    }

    /// Replaces the targets. Those that stay keep their state and their schedule, new ones are checked at
    /// once, and results of those that go are discarded.
    ///
    /// The health that comes with a target is where it starts if it is new: [`Health::Unknown`], or what was
    /// last known of it. Of equal targets the first counts.
    pub fn set_targets(&self, targets: Vec<(Target, Health)>) {
        self.send(Command::SetTargets(targets));
    }

    /// Checks every target now, and answers when each of them has reported once. Where a check is running
    /// already, its report is the one waited for. Regular checks stay at their times.
    ///
    /// Targets that are removed meanwhile are not waited for. If checking ends, `done` is dropped.
    pub fn poll(&self, done: oneshot::Sender<()>) {
        self.send(Command::Poll(done));
    }

    fn send(&self, command: Command) {
        // The task ends before the runner only when nobody receives reports; then there is nothing to do.
        let _ = self.commands.send(command);
    }
}

/// Lets this process open as many files as it may: each check under way needs one.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        log::debug!("the limit of open files stays as it is: {errno}");
    }
}

/// How many checks may run at a time, so that at least half of the file descriptors are left to others.
fn concurrency() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let half = getrlimit(Resource::RLIMIT_NOFILE).map_or(MAX_CONCURRENT as u64, |(soft, _hard)| soft / 2);
    usize::try_from(half).unwrap_or(MAX_CONCURRENT).clamp(1, MAX_CONCURRENT)
}

/// [`spawn`] with another way to examine a target, at most `limit` checks at a time, and a schedule by `seed`.
fn spawn_with<P, F>(reports: mpsc::Sender<Report>, limit: usize, seed: u64, probe: P) -> Runner
where
    P: Fn(Arc<Target>) -> F + Send + 'static,
    F: Future<Output = Examined> + Send + 'static,
{
    let (runner, inbox) = Runner::commanding();
    let (events_in, events) = mpsc::unbounded_channel();
    let worker = Worker {
        reports,
        probe,
        schedule: Schedule::new(seed),
        ids: HashMap::new(),
        watched: HashMap::new(),
        next_id: 0,
        lanes: [Lane::new(limit), Lane::new(limit.min(MAX_PROGRAMS))],
        outbox: VecDeque::new(),
        polls: Vec::new(),
        poll_number: 0,
        tasks: JoinSet::new(),
        events_in,
    };
    tokio::spawn(worker.run(inbox, events));
    runner
}

/// What the task of a check tells the worker.
#[derive(Debug)]
enum Event {
    /// The check is decided. Its connection may still be open.
    Verdict {
        id: TargetId,
        at: SystemTime,
        latency: Duration,
        result: Result<(), CheckError>,
        certificate_expires: Option<SystemTime>,
    },
    /// The task ends; `undecided` if it panicked before its verdict.
    Ended { id: TargetId, lane: LaneId, undecided: bool },
}

/// Reports the end of a task, also of one that panics: else its target would count as running for ever.
#[derive(Debug)]
struct Ending {
    id: TargetId,
    lane: LaneId,
    events: mpsc::UnboundedSender<Event>,
    undecided: bool,
}

impl Ending {
    fn decided(&mut self, verdict: Event) {
        self.undecided = self.events.send(verdict).is_err();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Fails when the worker has ended, and all is over.
        let _ = self.events.send(Event::Ended { id: self.id, lane: self.lane, undecided: self.undecided });
    }
}

/// Checks wait in two lanes, so that programs, which may all hang, hold up none but each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneId {
    Network,
    Programs,
}

impl LaneId {
    const ALL: [Self; 2] = [Self::Network, Self::Programs];

    fn of(target: &Target) -> Self {
        match target.check.probe {
            Probe::Exec(_) => Self::Programs,
            _ => Self::Network,
        }
    }
}

#[derive(Debug)]
struct Lane {
    /// The most checks that run at a time.
    limit: usize,
    /// Running for the schedule, but not started because of the limit.
    ready: VecDeque<TargetId>,
    /// Tasks that have not ended.
    open: usize,
}

impl Lane {
    fn new(limit: usize) -> Self {
        Self { limit, ready: VecDeque::new(), open: 0 }
    }
}

#[derive(Debug)]
struct Watched {
    target: Arc<Target>,
    fsm: Fsm,
}

#[derive(Debug)]
struct Poll {
    number: u64,
    waiting: HashSet<TargetId>,
    done: oneshot::Sender<()>,
}

/// A report to be sent.
#[derive(Debug)]
struct Outgoing {
    id: TargetId,
    report: Report,
    /// The latest poll when the verdict fell: later ones do not ask for this report.
    poll_number: u64,
}

struct Worker<P> {
    reports: mpsc::Sender<Report>,
    probe: P,
    schedule: Schedule,
    ids: HashMap<Arc<Target>, TargetId>,
    watched: HashMap<TargetId, Watched>,
    /// Ids are never used again: so the verdict on a removed target finds nobody.
    next_id: u64,
    /// By [`LaneId`].
    lanes: [Lane; 2],
    /// Reports that the channel has no room for yet.
    outbox: VecDeque<Outgoing>,
    polls: Vec<Poll>,
    /// Of the latest poll.
    poll_number: u64,
    tasks: JoinSet<()>,
    events_in: mpsc::UnboundedSender<Event>,
}

impl<P, F> Worker<P>
where
    P: Fn(Arc<Target>) -> F,
    F: Future<Output = Examined> + Send + 'static,
{
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) {
        loop {
            self.flush();
            self.start_ready();
            // While reports pile up no check becomes due, so no more than the running ones can pile up.
            let deadline =
                self.schedule.next_deadline().filter(|_| self.outbox.is_empty()).map(Instant::from_std);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                // The worker holds a sender itself, so the channel does not close.
                Some(event) = events.recv() => self.note(event),
                () = self.reports.closed() => return,
                // The place is freed at once, for `flush` to take: nobody else sends.
                () = async { drop(self.reports.reserve().await) }, if !self.outbox.is_empty() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    let due = self.schedule.due(now());
                    self.line_up(due);
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::SetTargets(targets) => self.set_targets(targets),
            Command::Poll(done) => {
                let started = self.schedule.poll_all(now());
                self.line_up(started);
                self.poll_number += 1;
                let waiting = self.watched.keys().copied().collect();
                self.polls.push(Poll { number: self.poll_number, waiting, done });
                self.answer_polls();
            }
        }
    }

    fn set_targets(&mut self, targets: Vec<(Target, Health)>) {
        let mut gone: HashSet<TargetId> = self.watched.keys().copied().collect();
        for (target, initial) in targets {
            if let Some(id) = self.ids.get(&target) {
                gone.remove(id);
                continue;
            }
            let id = TargetId(self.next_id);
            self.next_id += 1;
            let target = Arc::new(target);
            let check = &target.check;
            let interval = if initial == Health::Down { check.down_interval } else { None };
            let pace = Pace { interval: interval.unwrap_or(check.interval), jitter: check.jitter };
            self.schedule.add(id, pace, now());
            let fsm = Fsm::new(initial, check.rise, check.fall);
            self.ids.insert(Arc::clone(&target), id);
            self.watched.insert(id, Watched { target, fsm });
        }
        if gone.is_empty() {
            return;
        }
        for id in &gone {
            self.schedule.remove(*id);
            if let Some(watched) = self.watched.remove(id) {
                self.ids.remove(&watched.target);
            }
        }
        for lane in &mut self.lanes {
            lane.ready.retain(|id| !gone.contains(id));
        }
        self.outbox.retain(|outgoing| !gone.contains(&outgoing.id));
        for poll in &mut self.polls {
            poll.waiting.retain(|id| !gone.contains(id));
        }
        self.answer_polls();
    }

    /// Puts those whose check is to start into their lanes.
    fn line_up(&mut self, due: Vec<TargetId>) {
        for id in due {
            if let Some(watched) = self.watched.get(&id) {
                self.lanes[LaneId::of(&watched.target) as usize].ready.push_back(id);
            }
        }
    }

    fn start_ready(&mut self) {
        for lane in LaneId::ALL {
            while self.lanes[lane as usize].open < self.lanes[lane as usize].limit {
                let Some(id) = self.lanes[lane as usize].ready.pop_front() else { break };
                self.start(lane, id);
            }
        }
    }

    fn start(&mut self, lane: LaneId, id: TargetId) {
        let Some(watched) = self.watched.get(&id) else { return };
        let mut ending = Ending { id, lane, events: self.events_in.clone(), undecided: true };
        let check = (self.probe)(Arc::clone(&watched.target));
        self.lanes[lane as usize].open += 1;
        self.tasks.spawn(async move {
            let start = Instant::now();
            let Examined { result, farewell, certificate_expires } = check.await;
            let (at, latency) = (SystemTime::now(), start.elapsed());
            ending.decided(Event::Verdict { id, at, latency, result, certificate_expires });
            if let Some(farewell) = farewell {
                farewell.finish().await;
            }
        });
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Verdict { id, at, latency, result, certificate_expires } => {
                // The target may have been removed meanwhile.
                let Some(watched) = self.watched.get_mut(&id) else { return };
                let previous = watched.fsm.health();
                let health = watched.fsm.observe(Outcome::from(&result));
                let target = Target::clone(&watched.target);
                let interval = interval(&target.check, &watched.fsm);
                let report = Report { target, at, latency, result, health, previous, certificate_expires };
                self.schedule.set_interval(id, interval, now());
                self.outbox.push_back(Outgoing { id, report, poll_number: self.poll_number });
                self.schedule.finished(id);
            }
            Event::Ended { id, lane, undecided } => {
                self.lanes[lane as usize].open -= 1;
                // The task has nothing left to do; its place is freed here.
                while self.tasks.try_join_next().is_some() {}
                if undecided && let Some(watched) = self.watched.get(&id) {
                    log::error!("the check of {} broke off; it is tried again", watched.target.address);
                    self.schedule.finished(id);
                    self.reported(id, self.poll_number);
                }
            }
        }
    }

    /// Sends what the channel has room for.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            // A closed channel is noticed in `run`.
            let Ok(permit) = self.reports.try_reserve() else { return };
            let Some(Outgoing { id, report, poll_number }) = self.outbox.pop_front() else { return };
            permit.send(report);
            self.reported(id, poll_number);
        }
    }

    /// Polls up to `poll_number` need not wait for `id` any more.
    fn reported(&mut self, id: TargetId, poll_number: u64) {
        for poll in self.polls.iter_mut().filter(|poll| poll.number <= poll_number) {
            poll.waiting.remove(&id);
        }
        self.answer_polls();
    }

    fn answer_polls(&mut self) {
        for poll in self.polls.extract_if(.., |poll| poll.waiting.is_empty()) {
            // Whoever asked may have gone.
            let _ = poll.done.send(());
        }
    }
}

/// How long after its last check a target is checked again.
fn interval(check: &Check, fsm: &Fsm) -> Duration {
    let other = match fsm.health() {
        _ if fsm.is_changing() => check.fast_interval,
        Health::Down => check.down_interval,
        Health::Up | Health::Unknown => None,
    };
    other.unwrap_or(check.interval)
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests;
