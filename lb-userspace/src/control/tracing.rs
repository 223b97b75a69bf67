//! Traces of packets: who wants which, and what the interfaces run meanwhile. `way` has what is told of one.
//!
//! While there is at least one trace, the interfaces run the program that tells of packets; with the end of the last one
//! the plain program is put back. What is told is read and handed out by a task of its own, as packets may come faster
//! than checks and requests may wait.

mod way;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lb_common::abi::trace::{FILTERS, TraceEvent};
use log::{info, warn};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::explain::interface_name;
use super::request::{Refusal, Reply};
use super::status;
use super::task::Control;
use crate::api::trace::{Filter, TraceLine};
use crate::dataplane::kernel::tracer::{Events, Tracer};
use way::{Names, Way};

/// Lines that a reader may be behind.
const BACKLOG: usize = 4096;
/// Packets that are handed out before other tasks have their turn.
const BATCH: usize = 256;

/// What is told to one who asked. The trace ends when this is dropped.
#[derive(Debug)]
pub struct Trace {
    pub lines: mpsc::Receiver<TraceLine>,
    _end: Option<End>,
}

impl Trace {
    /// One whose end nobody needs to know.
    pub fn of(lines: mpsc::Receiver<TraceLine>) -> Self {
        Self { lines, _end: None }
    }
}

/// Says that a trace has ended.
#[derive(Debug)]
struct End {
    slot: usize,
    to: mpsc::UnboundedSender<usize>,
}

impl Drop for End {
    fn drop(&mut self) {
        // Nobody to tell when the daemon ends.
        let _ = self.to.send(self.slot);
    }
}

/// What has happened to traces.
#[derive(Debug)]
pub enum Change {
    Loaded(anyhow::Result<Box<(Tracer, Events)>>),
    /// The one in this slot has ended.
    Ended(usize),
}

/// The traces that there are.
#[derive(Debug)]
pub struct Tracing {
    running: Option<Running>,
    /// Those who asked while it is being loaded. Empty while it is not.
    waiting: Vec<Waiting>,
    shared: Arc<Mutex<Shared>>,
    loaded_to: mpsc::Sender<anyhow::Result<(Tracer, Events)>>,
    loaded: mpsc::Receiver<anyhow::Result<(Tracer, Events)>>,
    ended_to: mpsc::UnboundedSender<usize>,
    ended: mpsc::UnboundedReceiver<usize>,
}

#[derive(Debug)]
struct Running {
    tracer: Tracer,
    reader: JoinHandle<()>,
}

#[derive(Debug)]
struct Waiting {
    filter: Filter,
    rate: u32,
    reply: Reply<Result<Trace, Refusal>>,
}

/// What the task that hands out goes by.
#[derive(Debug, Default)]
struct Shared {
    names: Names,
    /// By slot.
    readers: BTreeMap<usize, Reader>,
}

#[derive(Debug)]
struct Reader {
    filter: Filter,
    pace: Pace,
    to: mpsc::Sender<TraceLine>,
    missed: u64,
}

impl Default for Tracing {
    fn default() -> Self {
        let (loaded_to, loaded) = mpsc::channel(1);
        let (ended_to, ended) = mpsc::unbounded_channel();
        Self {
            running: None,
            waiting: Vec::new(),
            shared: Arc::default(),
            loaded_to,
            loaded,
            ended_to,
            ended,
        }
    }
}

impl Tracing {
    /// What happens next.
    pub async fn change(&mut self) -> Option<Change> {
        tokio::select! {
            loaded = self.loaded.recv() => loaded.map(|loaded| Change::Loaded(loaded.map(Box::new))),
            slot = self.ended.recv() => slot.map(Change::Ended),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more.
    fn free_slot(&self) -> Option<usize> {
        let shared = self.shared();
        (0..FILTERS as usize).find(|slot| !shared.readers.contains_key(slot))
    }
}

impl Control {
    /// Begins a trace; answers when packets are told of.
    pub(super) fn trace(&mut self, filter: Filter, rate: u32, reply: Reply<Result<Trace, Refusal>>) {
        // Nobody to answer is no error: the client has gone.
        if let Some(name) = &filter.service
            && !self.config.services.iter().any(|service| service.name == *name)
        {
            let text = status::no_such_backend(&self.config, "", Some(name));
            let _ = reply.send(Err(Refusal::NotFound(text)));
            return;
        }
        if self.tracing.shared().readers.len() + self.tracing.waiting.len() >= FILTERS as usize {
            let text = format!("there are {FILTERS} traces already; end one first");
            let _ = reply.send(Err(Refusal::Invalid(text)));
            return;
        }
        let waiting = Waiting { filter, rate, reply };
        if self.tracing.running.is_some() {
            self.admit(waiting);
            return;
        }
        if self.tracing.waiting.is_empty() {
            let recipe = match self.dataplane.maps().tracer(&self.pins) {
                Ok(recipe) => recipe,
                Err(error) => {
                    let _ = waiting.reply.send(Err(Refusal::Failed(format!("{error:#}"))));
                    return;
                }
            };
            let to = self.tracing.loaded_to.clone();
            tokio::task::spawn_blocking(move || {
                // Nobody to tell when the daemon ends.
                let _ = to.blocking_send(Tracer::load(recipe));
            });
        }
        self.tracing.waiting.push(waiting);
    }

    pub(super) fn tracing_changed(&mut self, change: Change) {
        match change {
            Change::Loaded(loaded) => {
                let waiting = std::mem::take(&mut self.tracing.waiting);
                let started = loaded.and_then(|loaded| self.start_tracing(loaded.0, loaded.1));
                for one in waiting {
                    match &started {
                        Ok(()) => self.admit(one),
                        Err(error) => {
                            let _ = one.reply.send(Err(Refusal::Failed(format!("{error:#}"))));
                        }
                    }
                }
            }
            Change::Ended(slot) => {
                self.tracing.shared().readers.remove(&slot);
                if let Some(running) = &self.tracing.running {
                    running.tracer.clear_filter(slot);
                }
            }
        }
        if self.tracing.shared().readers.is_empty() {
            self.stop_tracing();
        }
    }

    fn start_tracing(&mut self, mut tracer: Tracer, events: Events) -> anyhow::Result<()> {
        self.dataplane.maps_mut().trace(&self.pins, &mut tracer)?;
        let reader = tokio::spawn(hand_out(events, Arc::clone(&self.tracing.shared)));
        info!("packets are traced");
        self.tracing.running = Some(Running { tracer, reader });
        self.refresh_names();
        Ok(())
    }

    /// Puts the plain program back.
    pub(super) fn stop_tracing(&mut self) {
        let Some(Running { mut tracer, reader }) = self.tracing.running.take() else { return };
        self.dataplane.maps_mut().trace_no_more(&self.pins, &mut tracer);
        reader.abort();
        self.tracing.shared().readers.clear();
        info!("packets are no longer traced");
        // Some twenty programs.
        tokio::task::spawn_blocking(move || drop(tracer));
    }

    /// After the plain program was put on the interfaces.
    pub(super) fn trace_again(&mut self) {
        let Some(running) = &mut self.tracing.running else { return };
        if let Err(error) = self.dataplane.maps_mut().trace(&self.pins, &mut running.tracer) {
            warn!("packets are not traced any more: {error:#}");
            self.stop_tracing();
        }
    }

    fn admit(&mut self, Waiting { filter, rate, reply }: Waiting) {
        let (Some(running), Some(slot)) = (&self.tracing.running, self.tracing.free_slot()) else {
            let _ = reply.send(Err(Refusal::Failed("the trace has ended before it began".to_owned())));
            return;
        };
        let (to, lines) = mpsc::channel(BACKLOG);
        let early = filter.early();
        let reader = Reader { filter, pace: Pace::new(rate), to, missed: 0 };
        self.tracing.shared().readers.insert(slot, reader);
        running.tracer.set_filter(slot, &early);
        let end = End { slot, to: self.tracing.ended_to.clone() };
        // One that nobody takes ends at once.
        let _ = reply.send(Ok(Trace { lines, _end: Some(end) }));
    }

    /// Tells the task that hands out what services and backends are called.
    pub(super) fn refresh_names(&mut self) {
        if self.tracing.running.is_some() {
            self.tracing.shared().names = Names::of(self.dataplane.image());
        }
    }
}

/// So many in a second, and no more than that at once.
#[derive(Clone, Copy, Debug)]
struct Pace {
    rate: u32,
    left: f64,
    at: Instant,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { rate, left: rate.into(), at: Instant::now() }
    }

    fn allows(&mut self, now: Instant) -> bool {
        let rate = f64::from(self.rate);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = passed.mul_add(rate, self.left).min(rate);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

/// Reads events for as long as it is let, and hands them out.
async fn hand_out(events: Events, shared: Arc<Mutex<Shared>>) {
    // SAFETY: `events` owns its descriptor and closes it when it is dropped, after its registration.
    let mut events = match unsafe { tokio::io::unix::AsyncFd::register(events) } {
        Ok(events) => events,
        Err(error) => return warn!("what is told of packets cannot be read: {error}"),
    };
    let mut interfaces = BTreeMap::new();
    let mut lost = 0;
    loop {
        let Ok(mut ready) = events.readable_mut().await else { return };
        let mut read = 0;
        while read < BATCH
            && let Some(event) = ready.get_inner_mut().take()
        {
            read += 1;
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            let Shared { names, readers } = &mut *shared;
            tell(&event, Instant::now(), names, readers, &mut interfaces);
        }
        let now_lost = ready.get_inner_mut().lost();
        if now_lost != lost {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.readers.values_mut().for_each(|reader| reader.missed += now_lost - lost);
            lost = now_lost;
        }
        if read < BATCH {
            ready.clear_ready();
        }
        drop(ready);
        tokio::task::yield_now().await;
    }
}

/// Hands one out.
fn tell(
    event: &TraceEvent,
    now: Instant,
    names: &Names,
    readers: &mut BTreeMap<usize, Reader>,
    interfaces: &mut BTreeMap<u32, String>,
) {
    let way = Way::of(event, names);
    let mut line = None;
    for reader in readers.values_mut() {
        if !way::wants(&reader.filter, event, &way) {
            continue;
        }
        if !reader.pace.allows(now) {
            reader.missed += 1;
            continue;
        }
        let interface =
            interfaces.entry(event.ingress).or_insert_with(|| interface_name(event.ingress)).clone();
        let line = line.get_or_insert_with(|| way::line_of(event, &way, names, interface));
        let told = TraceLine { missed: reader.missed, ..line.clone() };
        match reader.to.try_send(told) {
            Ok(()) => reader.missed = 0,
            Err(_) => reader.missed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_common::env::Step;
    use lb_common::verdict::{Action, Reason};

    use super::way::tests::{event, names};
    use super::*;

    #[test]
    fn what_comes_too_fast_is_counted() {
        let (to, mut lines) = mpsc::channel(BACKLOG);
        let reader = Reader { filter: Filter::default(), pace: Pace::new(3), to, missed: 0 };
        let mut readers = BTreeMap::from([(0, reader)]);
        let event = event(&[(Step::Done, Reason::NotIp as u32, Action::Pass as u32)]);
        let start = Instant::now();
        let mut come = |times, now| {
            for _ in 0..times {
                tell(&event, now, &names(), &mut readers, &mut BTreeMap::new());
            }
        };
        come(10, start);
        let mut told: Vec<u64> =
            std::iter::from_fn(|| lines.try_recv().ok()).map(|line| line.missed).collect();
        assert_eq!(told, [0, 0, 0]);
        come(1, start + Duration::from_millis(400));
        told = std::iter::from_fn(|| lines.try_recv().ok()).map(|line| line.missed).collect();
        assert_eq!(told, [7]);
    }
}
