//! The daemon's side: starts the process that checks, tells it what to check, and hands on what it finds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command as Process};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::WORD;
use super::authorities::Told;
use super::wire::{Answer, Finding, LONGEST_ANSWER, LONGEST_ORDER, Number, Order, codec, decode, encode};
use crate::config::Probe;
use crate::health::probe::trust::Trust;
use crate::health::runner::{self, Command, Runner};
use crate::health::{Health, Report, Target};

/// Between an end of the process that checks and its next start.
const PAUSE: Duration = Duration::from_secs(1);
/// Between looks at files of authorities, and at whether the process that checks is still there.
const LOOK: Duration = Duration::from_secs(1);
/// A process that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(10);
/// Targets in one message.
const AT_ONCE: usize = 1000;

/// Starts checking nothing, until [`Runner::set_targets`]; as [`runner::spawn`], but in another process. `program` is this
/// one's file. The process is started with the first target, and ends with the runner.
///
/// # Panics
/// Outside a tokio runtime with I/O and time.
#[must_use]
pub fn spawn(reports: mpsc::Sender<Report>, program: PathBuf) -> Runner {
    let (runner, commands) = Runner::commanding();
    let supervisor = Supervisor {
        program,
        programs: runner::spawn(reports.clone()),
        reports,
        watched: BTreeMap::new(),
        numbers: HashMap::new(),
        next_number: 0,
        told: Told::default(),
        polls: BTreeMap::new(),
        poll_number: 0,
        outbox: VecDeque::new(),
        checker: None,
        start_at: Instant::now(),
    };
    tokio::spawn(supervisor.run(commands));
    runner
}

#[derive(Debug)]
struct Watched {
    target: Target,
    /// By the last report.
    health: Health,
}

struct Supervisor {
    program: PathBuf,
    /// `exec` checks.
    programs: Runner,
    reports: mpsc::Sender<Report>,
    watched: BTreeMap<Number, Watched>,
    numbers: HashMap<Target, Number>,
    next_number: Number,
    told: Told,
    polls: BTreeMap<u64, oneshot::Sender<()>>,
    poll_number: u64,
    /// Reports that the channel has no room for yet.
    outbox: VecDeque<Report>,
    checker: Option<Checker>,
    /// Not before.
    start_at: Instant,
}

impl Supervisor {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.flush();
            let missing = self.checker.is_none() && !self.watched.is_empty();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                answer = heard(&mut self.checker), if self.outbox.is_empty() => match answer {
                    Ok(answer) => self.note(answer),
                    Err(error) => self.bury(&error).await,
                },
                () = self.reports.closed() => return,
                // The place is freed at once, for `flush` to take.
                () = async { drop(self.reports.reserve().await) }, if !self.outbox.is_empty() => {}
                () = sleep_until(self.start_at), if missing => self.start(),
                _ = look.tick() => if let Err(error) = self.look() {
                    self.bury(&error).await;
                },
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::SetTargets(targets) => self.set_targets(targets),
            Command::Poll(done) => self.poll(done),
        }
    }

    fn set_targets(&mut self, targets: Vec<(Target, Health)>) {
        let (programs, targets): (Vec<_>, Vec<_>) =
            targets.into_iter().partition(|(target, _)| matches!(target.check.probe, Probe::Exec(_)));
        self.programs.set_targets(programs);
        let mut gone: HashSet<Number> = self.watched.keys().copied().collect();
        let mut new = Vec::new();
        for (target, health) in targets {
            if let Some(number) = self.numbers.get(&target) {
                gone.remove(number);
                continue;
            }
            let number = self.next_number;
            self.next_number += 1;
            self.numbers.insert(target.clone(), number);
            self.watched.insert(number, Watched { target, health });
            new.push(number);
        }
        for number in &gone {
            if let Some(watched) = self.watched.remove(number) {
                self.numbers.remove(&watched.target);
            }
        }
        self.outbox.retain(|report| self.numbers.contains_key(&report.target));
        if self.checker.is_none() {
            return self.answer_vain_polls();
        }
        // What it needs to judge by comes before what is judged.
        self.tell_authorities();
        if !gone.is_empty() {
            self.order(Order::Remove(gone.into_iter().collect()));
        }
        self.add(&new);
    }

    /// Orders checks of these, besides what was ordered before.
    fn add(&self, numbers: &[Number]) {
        for numbers in numbers.chunks(AT_ONCE) {
            let targets = numbers.iter().filter_map(|number| {
                let watched = self.watched.get(number)?;
                Some((*number, watched.target.clone(), watched.health))
            });
            self.order(Order::Add(targets.collect()));
        }
        self.order(Order::Commit);
    }

    fn tell_authorities(&mut self) {
        if self.checker.is_none() {
            return;
        }
        let wanted: BTreeSet<Trust> = self
            .watched
            .values()
            .filter_map(|watched| watched.target.check.probe.tls())
            .map(Trust::of)
            .collect();
        for order in self.told.refresh(wanted) {
            self.order(order);
        }
    }

    /// Calls the process that checks, once it has been told what is new.
    ///
    /// # Errors
    /// When it did not answer to many calls.
    fn look(&mut self) -> io::Result<()> {
        self.tell_authorities();
        let Some(checker) = &mut self.checker else { return Ok(()) };
        if !self.outbox.is_empty() {
            // Nobody listens to it meanwhile.
            checker.heard = Instant::now();
        }
        if checker.heard.elapsed() > SILENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer any more"));
        }
        self.order(Order::Call);
        Ok(())
    }

    fn poll(&mut self, done: oneshot::Sender<()>) {
        let (programs_done, programs) = oneshot::channel();
        self.programs.poll(programs_done);
        let (checker_done, checker) = oneshot::channel();
        self.poll_number += 1;
        self.polls.insert(self.poll_number, checker_done);
        self.order(Order::Poll(self.poll_number));
        self.answer_vain_polls();
        tokio::spawn(async move {
            if programs.await.is_ok() && checker.await.is_ok() {
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        });
    }

    /// Where nothing is checked, nothing answers.
    fn answer_vain_polls(&mut self) {
        if self.watched.is_empty() && self.checker.is_none() {
            for done in std::mem::take(&mut self.polls).into_values() {
                let _ = done.send(());
            }
        }
    }

    /// Tells the process that checks, if there is one; a new one is told everything.
    fn order(&self, order: Order) {
        if let Some(checker) = &self.checker {
            // One that has ended is noticed by its silence.
            let _ = checker.orders.send(order);
        }
    }

    fn start(&mut self) {
        self.start_at = Instant::now() + PAUSE;
        match Checker::start(&self.program) {
            Ok(checker) => self.checker = Some(checker),
            Err(error) => {
                return log::error!(
                    "checks cannot run, and are tried again: cannot start a process: {error}"
                );
            }
        }
        self.told = Told::default();
        self.tell_authorities();
        let all: Vec<Number> = self.watched.keys().copied().collect();
        self.add(&all);
        for poll in self.polls.keys() {
            self.order(Order::Poll(*poll));
        }
    }

    fn note(&mut self, answer: Answer) {
        match answer {
            Answer::Here => {}
            Answer::Polled(poll) => {
                if let Some(done) = self.polls.remove(&poll) {
                    let _ = done.send(());
                }
            }
            Answer::Report(finding) => {
                let Finding { number, at, latency, result, health, previous, certificate_expires } = finding;
                // It may have been removed meanwhile.
                let Some(watched) = self.watched.get_mut(&number) else { return };
                watched.health = health;
                let target = watched.target.clone();
                self.outbox.push_back(Report {
                    target,
                    at,
                    latency,
                    result,
                    health,
                    previous,
                    certificate_expires,
                });
            }
        }
    }

    /// Servers keep the health they had.
    async fn bury(&mut self, error: &io::Error) {
        let Some(checker) = self.checker.take() else { return };
        let how = match checker.end().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        log::error!("the process that checks servers has ended ({how}: {error}); it is started again");
    }

    /// Hands on what the channel has room for.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            // A closed channel is noticed in `run`.
            let Ok(permit) = self.reports.try_reserve() else { return };
            let Some(report) = self.outbox.pop_front() else { return };
            permit.send(report);
        }
    }
}

/// The process that checks.
struct Checker {
    process: Child,
    /// For a task that waits when the process is slow to read.
    orders: mpsc::UnboundedSender<Order>,
    answers: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    /// When it said something last.
    heard: Instant,
}

impl Checker {
    fn start(program: &std::path::Path) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Process::new(program);
        command
            // For ps(1): the file's name may be of /proc.
            .arg0("matapa")
            .arg(WORD)
            .arg(log::max_level().as_str())
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .kill_on_drop(true);
        for name in ["MATAPA_LOG", "JOURNAL_STREAM"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let process = command.spawn()?;
        let (answers, orders_to) = UnixStream::from_std(ours)?.into_split();
        let (orders, queued) = mpsc::unbounded_channel();
        tokio::spawn(write(orders_to, queued));
        let answers = FramedRead::new(answers, codec(LONGEST_ANSWER));
        Ok(Self { process, orders, answers, heard: Instant::now() })
    }

    /// It has gone, or says what is not understood.
    async fn end(mut self) -> io::Result<ExitStatus> {
        drop((self.orders, self.answers));
        if let Ok(status) = timeout(PAUSE, self.process.wait()).await {
            return status;
        }
        self.process.kill().await?;
        self.process.wait().await
    }
}

/// The next answer; never where there is no process.
async fn heard(checker: &mut Option<Checker>) -> io::Result<Answer> {
    let Some(checker) = checker else { return pending().await };
    let answer = checker.answers.next().await;
    checker.heard = Instant::now();
    match answer {
        Some(answer) => decode(&answer?),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Sends orders until there are no more, or nobody hears them.
async fn write(orders_to: OwnedWriteHalf, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut orders_to = FramedWrite::new(orders_to, codec(LONGEST_ORDER));
    while let Some(order) = orders.recv().await {
        let sent = match encode(&order) {
            Ok(bytes) => orders_to.send(bytes).await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            return log::debug!("the process that checks servers does not hear: {error}");
        }
    }
}
