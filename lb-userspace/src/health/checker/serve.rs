//! The process that checks.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::CStr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdStream;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt as _};
use nix::sys::signal::{SigHandler, Signal, signal};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{FramedRead, FramedWrite};

use super::sandbox;
use super::wire::{Answer, Finding, LONGEST_ANSWER, LONGEST_ORDER, Number, Order, codec, decode, encode};
use crate::health::probe::trust;
use crate::health::{Health, Report, Runner, Target, raise_descriptor_limit, runner};

/// What top(1) calls it: 15 bytes at most.
const NAME: &CStr = c"matapa-checker";

/// Checks what the daemon at the other end of standard input orders, until that end is closed.
///
/// # Errors
/// When standard input is no socket, the sandbox cannot be entered, or the daemon says what cannot be understood.
pub fn serve() -> anyhow::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let socket = StdStream::from(socket);
    socket.local_addr().context("standard input is no socket: `matapa run` starts this by itself")?;
    socket.set_nonblocking(true)?;
    ignore_signals()?;
    // Started from a file in /proc, it would be called after that.
    nix::sys::prctl::set_name(NAME)?;
    raise_descriptor_limit();
    sandbox::enter().context("cannot enter the sandbox of checks")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(async { converse(UnixStream::from_std(socket)?).await });
    // Without waiting for checks under way.
    runtime.shutdown_background();
    done
}

/// What is meant for the daemon also comes here, from a terminal or a service manager. The daemon's end is this one's.
fn ignore_signals() -> anyhow::Result<()> {
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: no handler is called.
        unsafe { signal(number, SigHandler::SigIgn) }?;
    }
    Ok(())
}

async fn converse(socket: UnixStream) -> anyhow::Result<()> {
    let (orders, answers) = socket.into_split();
    let (queue, queued) = mpsc::channel(256);
    let (reports_to, reports) = mpsc::channel(1024);
    let (polled_to, polled) = mpsc::unbounded_channel();
    let conversation = Conversation {
        runner: runner::spawn(reports_to),
        targets: BTreeMap::new(),
        numbers: HashMap::new(),
        polled_to,
        outbox: VecDeque::new(),
    };
    tokio::select! {
        done = conversation.run(orders, reports, polled, queue) => done,
        // The daemon listens no more.
        done = write(answers, queued) => done,
    }
}

struct Conversation {
    runner: Runner,
    targets: BTreeMap<Number, (Target, Health)>,
    numbers: HashMap<Target, Number>,
    polled_to: mpsc::UnboundedSender<u64>,
    /// Answers that the queue has no room for yet. Orders are heard all the same, so that neither side waits for the other.
    outbox: VecDeque<Answer>,
}

impl Conversation {
    async fn run(
        mut self,
        orders: OwnedReadHalf,
        mut reports: mpsc::Receiver<Report>,
        mut polled: mpsc::UnboundedReceiver<u64>,
        queue: mpsc::Sender<Answer>,
    ) -> anyhow::Result<()> {
        let mut orders = FramedRead::new(orders, codec(LONGEST_ORDER));
        loop {
            tokio::select! {
                order = orders.next() => match order {
                    Some(order) => self.obey(decode(&order?)?),
                    None => return Ok(()),
                },
                permit = queue.reserve(), if !self.outbox.is_empty() => {
                    if let Some(answer) = self.outbox.pop_front() {
                        permit?.send(answer);
                    }
                }
                Some(report) = reports.recv(), if self.outbox.is_empty() => self.report(report),
                Some(poll) = polled.recv(), if self.outbox.is_empty() => {
                    // They were there before the poll was over.
                    while let Ok(report) = reports.try_recv() {
                        self.report(report);
                    }
                    self.outbox.push_back(Answer::Polled(poll));
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Add(targets) => {
                for (number, target, health) in targets {
                    self.numbers.insert(target.clone(), number);
                    self.targets.insert(number, (target, health));
                }
            }
            Order::Remove(numbers) => {
                for number in numbers {
                    if let Some((target, _)) = self.targets.remove(&number) {
                        self.numbers.remove(&target);
                    }
                }
            }
            Order::Commit => self.runner.set_targets(self.targets.values().cloned().collect()),
            Order::Call => self.outbox.push_back(Answer::Here),
            Order::Poll(poll) => {
                let (done, polled) = oneshot::channel();
                self.runner.poll(done);
                let to = self.polled_to.clone();
                tokio::spawn(async move {
                    // If checking ends, so does all of this.
                    if polled.await.is_ok() {
                        let _ = to.send(poll);
                    }
                });
            }
            Order::Trust(trust, authorities) => trust::tell(trust, authorities),
        }
    }

    fn report(&mut self, report: Report) {
        let Report { target, at, latency, result, health, previous, certificate_expires } = report;
        // It may have been removed meanwhile.
        let Some(&number) = self.numbers.get(&target) else { return };
        let finding = Finding { number, at, latency, result, health, previous, certificate_expires };
        self.outbox.push_back(Answer::Report(finding));
    }
}

/// Sends what is queued, as much as there is in one go.
async fn write(answers: OwnedWriteHalf, mut queued: mpsc::Receiver<Answer>) -> anyhow::Result<()> {
    let mut answers = FramedWrite::new(answers, codec(LONGEST_ANSWER));
    while let Some(answer) = queued.recv().await {
        answers.feed(encode(&answer)?).await?;
        while let Ok(answer) = queued.try_recv() {
            answers.feed(encode(&answer)?).await?;
        }
        SinkExt::<Bytes>::flush(&mut answers).await?;
    }
    Ok(())
}
