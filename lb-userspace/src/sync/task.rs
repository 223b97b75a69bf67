//! The thread that synchronises flows: a socket, a clock, and the flow table in shared memory.
//!
//! It has a thread of its own and never holds up a packet, a check or an advertisement: the packet path does not know of
//! it, and everybody else sends it messages.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_common::abi::flow::{FlowTuple, FlowWord, WAYS};
use log::{info, warn};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, oneshot};

use super::directory::Directory;
use super::enter::Entered;
use super::key::{self, Key};
use super::node::{Happened, Node};
use super::wire::{LONGEST, Refused};
use crate::api::sync::{PeerState, SyncStatus};
use crate::api::types::CounterValue;
use crate::config::Sync as Configured;
use crate::dataplane::flows::{Clock, FlowTable};

/// A gateway that nobody answers is alone: it need not wait for flows.
const ALONE: Duration = Duration::from_secs(5);
/// Looking at the table may take this part of the time.
const SHARE: u32 = 10;
/// Datagrams that are taken before something else is done.
const BURST: usize = 256;
/// Bytes that the kernel may hold for us.
const SOCKET_BUFFER: usize = 8 << 20;
/// While nothing is to be done.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// The flow table, wherever it is.
pub trait SharedFlows: Send + 'static {
    fn table(&self) -> FlowTable<'_>;
}

/// What the maps hold, for the thread. Whoever removes a server from the maps takes it from here first, so that no flow
/// is entered for a number that means another server soon.
#[derive(Clone, Debug, Default)]
pub struct SharedDirectory(Arc<Mutex<Arc<Directory>>>);

impl SharedDirectory {
    fn lock(&self) -> MutexGuard<'_, Arc<Directory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a flow that is being entered.
    pub fn publish(&self, directory: Directory) {
        *self.lock() = Arc::new(directory);
    }
}

/// The flow table's clock, told once a second and continued by our own.
#[derive(Clone, Debug, Default)]
pub struct SharedClock(Arc<Mutex<Option<(Clock, Instant)>>>);

impl SharedClock {
    pub fn tell(&self, clock: Clock) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((clock, Instant::now()));
    }

    fn now(&self) -> Option<Clock> {
        let (clock, told) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let ticks = told.elapsed().as_secs_f64() / clock.seconds_per_tick;
        Some(Clock { now: clock.now.wrapping_add(ticks as u16), ..clock })
    }
}

/// What the rest of the daemon hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A session of the peer has begun.
    PeerUp { peer: IpAddr },
    /// It has been silent for some seconds.
    PeerDown { peer: IpAddr },
    /// All its flows are here, after so many milliseconds.
    Received { flows: u64, millis: u64 },
    /// Nobody has answered: this gateway goes on with the flows that it has.
    Alone,
}

/// The running thread.
#[derive(Debug)]
pub struct Sync {
    commands: Sender<Command>,
    pub config: Configured,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Status(oneshot::Sender<SyncStatus>),
}

/// What a start needs, read before anything is changed.
#[derive(Debug)]
pub struct Plan {
    pub config: Configured,
    key: Key,
}

/// Reads the key.
///
/// # Errors
/// When it cannot be read or used.
pub fn prepare(config: &Configured) -> Result<Plan> {
    let key = key::read("cluster.sync.key_file", &config.key_file)?;
    Ok(Plan { config: config.clone(), key })
}

/// Starts the thread.
///
/// # Errors
/// When the system refuses the socket.
pub fn start(
    plan: Plan,
    flows: impl SharedFlows,
    directory: SharedDirectory,
    clock: SharedClock,
    tell: mpsc::UnboundedSender<Change>,
) -> Result<Sync> {
    let Plan { config, key } = plan;
    let socket = open(&config)?;
    let (commands, to_do) = channel();
    let engine = Engine {
        node: Node::new(key, flows.table().words().len(), rand::random),
        config: config.clone(),
        socket,
        directory,
        clock,
        tell,
        started: Instant::now(),
        alive: false,
        settled: false,
        told_version: false,
        scan_time: Duration::ZERO,
        send_errors: 0,
    };
    let thread = std::thread::Builder::new()
        .name("sync".to_owned())
        .spawn(move || engine.run(&flows, &to_do))
        .context("cannot start a thread for flow synchronisation")?;
    Ok(Sync { commands, config, thread: Some(thread) })
}

/// A socket that sends and hears by one interface only.
fn open(config: &Configured) -> Result<UdpSocket> {
    let about = || format!("cannot open the socket of cluster.sync on {}", config.interface);
    let (domain, any) = match config.peer {
        IpAddr::V4(_) => (Domain::IPV4, IpAddr::from([0; 4])),
        IpAddr::V6(_) => (Domain::IPV6, IpAddr::from([0; 16])),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).with_context(about)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true).with_context(about)?;
    }
    socket.bind_device(Some(config.interface.as_bytes())).with_context(about)?;
    socket.bind(&SocketAddr::new(any, config.port).into()).with_context(about)?;
    enlarge(&socket);
    socket.set_nonblocking(true).with_context(about)?;
    Ok(socket.into())
}

/// A window of batches must fit into the kernel's buffers; where they stay small, more is sent twice.
fn enlarge(socket: &Socket) {
    use nix::sys::socket::{setsockopt, sockopt};

    if setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    }
}

impl Sync {
    /// Asks for the state; a thread that has ended does not answer.
    pub fn status(&self, reply: oneshot::Sender<SyncStatus>) {
        let _ = self.commands.send(Command::Status(reply));
    }

    /// Ends the thread.
    pub fn stop(mut self) {
        let (none, _) = channel();
        drop(std::mem::replace(&mut self.commands, none));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread of flow synchronisation ended abruptly");
        }
    }
}

struct Engine {
    node: Node,
    config: Configured,
    socket: UdpSocket,
    directory: SharedDirectory,
    clock: SharedClock,
    tell: mpsc::UnboundedSender<Change>,
    started: Instant,
    alive: bool,
    /// It has been told that the flows are here, or that nobody has any.
    settled: bool,
    told_version: bool,
    scan_time: Duration,
    send_errors: u64,
}

impl Engine {
    fn run(mut self, flows: &impl SharedFlows, commands: &Receiver<Command>) {
        let mut next_scan = Instant::now();
        let mut buffer = [0; LONGEST + 1];
        loop {
            match commands.try_recv() {
                Ok(Command::Status(reply)) => {
                    let _ = reply.send(self.status(&flows.table()));
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {}
            }
            if let Some(clock) = self.clock.now() {
                self.drain(&flows.table(), clock, &mut buffer);
                if Instant::now() >= next_scan && self.node.session.has_room() {
                    let begun = Instant::now();
                    let directory = Arc::clone(&self.directory.lock());
                    let (complete, happened) =
                        self.node.scan(self.started.elapsed(), &flows.table(), &directory, clock);
                    happened.into_iter().for_each(|happened| self.happened(&happened));
                    self.scan_time += begun.elapsed();
                    if complete {
                        next_scan = Instant::now() + self.config.interval.max(self.scan_time * (SHARE - 1));
                        self.scan_time = Duration::ZERO;
                    }
                }
            }
            self.flush();
            self.watch();
            let scan = if self.node.session.has_room() {
                next_scan.saturating_duration_since(Instant::now())
            } else {
                LONGEST_WAIT
            };
            self.wait(scan.min(LONGEST_WAIT));
        }
    }

    /// Until a datagram comes, but no longer than this.
    fn wait(&self, most: Duration) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;

        let timeout = u16::try_from(most.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        // A signal ends it early, which does no harm.
        let _ = poll(&mut fds, PollTimeout::from(timeout));
    }

    fn drain(&mut self, table: &FlowTable<'_>, clock: Clock, buffer: &mut [u8]) {
        for _ in 0..BURST {
            match self.socket.recv_from(buffer) {
                Ok((_, from)) if from.ip().to_canonical() != self.config.peer => {
                    self.node.refuse(Refused::Stranger);
                }
                Ok((len, _)) => {
                    let now = self.started.elapsed();
                    // Held while flows are entered, see `SharedDirectory`.
                    let shared = self.directory.clone();
                    let directory = shared.lock();
                    let happened = self.node.receive(now, &buffer[..len], table, &directory, clock);
                    drop(directory);
                    happened.iter().for_each(|happened| self.happened(happened));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Such as ECONNREFUSED, while nobody listens there.
                Err(_) => {}
            }
        }
    }

    fn flush(&mut self) {
        let peer = SocketAddr::new(self.config.peer, self.config.port);
        let now = self.started.elapsed();
        while let Some(bytes) = self.node.transmit(now) {
            if self.socket.send_to(&bytes, peer).is_err() {
                // It is lost like any other datagram, and sent again.
                self.send_errors += 1;
                break;
            }
        }
    }

    fn happened(&mut self, happened: &Happened) {
        let peer = self.config.peer;
        match happened {
            Happened::Begun => {
                info!("sync: {peer} is there; all flows are exchanged");
                self.alive = true;
                self.tell(Change::PeerUp { peer });
            }
            Happened::Received => {
                let flows = self.node.counts.flows_received;
                let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
                info!("sync: all flows of {peer} are here");
                self.settled = true;
                self.tell(Change::Received { flows, millis });
            }
            Happened::Sent => info!("sync: {peer} has been told of all flows"),
        }
    }

    /// Notices a peer that comes or goes.
    fn watch(&mut self) {
        let now = self.started.elapsed();
        let peer = self.config.peer;
        let alive = self.node.session.is_alive(now);
        if self.alive && !alive {
            warn!("sync: nothing heard of {peer} for some seconds");
            self.tell(Change::PeerDown { peer });
        } else if alive && !self.alive {
            info!("sync: {peer} is heard again");
            self.tell(Change::PeerUp { peer });
        }
        self.alive = alive;
        let heard = self.node.session.heard().unwrap_or(Duration::ZERO);
        if !self.settled && now.saturating_sub(heard) > ALONE {
            warn!("sync: {peer} does not answer; going on with the flows that are here");
            self.settled = true;
            self.tell(Change::Alone);
        }
        if self.node.last_refused == Some(Refused::Version) && !self.told_version {
            self.told_version = true;
            warn!(
                "sync: {peer} speaks another version of flow synchronisation: run the same matapa on both gateways"
            );
        }
    }

    fn tell(&self, change: Change) {
        // Nobody listens any more while the daemon ends.
        let _ = self.tell.send(change);
    }

    fn status(&self, table: &FlowTable<'_>) -> SyncStatus {
        let now = self.started.elapsed();
        let session = &self.node.session;
        let counts = &self.node.counts;
        let state = if session.is_alive(now) {
            if self.node.received_all { PeerState::Synchronised } else { PeerState::Receiving }
        } else if self.node.last_refused == Some(Refused::Version) {
            PeerState::OtherVersion
        } else if session.peer().is_some() {
            PeerState::Silent
        } else {
            PeerState::Waiting
        };
        let counter = |value: u64, verdict: &str, help: &str| CounterValue {
            value,
            verdict: verdict.to_owned(),
            help: help.to_owned(),
        };
        let mut refused = std::collections::BTreeMap::new();
        for reason in Refused::ALL {
            let value = counts.refused.get(&reason).copied().unwrap_or(0);
            refused.insert(reason.name().to_owned(), counter(value, "drop", reason.help()));
        }
        let mut left_out = std::collections::BTreeMap::new();
        for (entered, name, help) in Entered::LEFT_OUT {
            let value = counts.entered.get(&entered).copied().unwrap_or(0);
            left_out.insert(name.to_owned(), counter(value, "note", help));
        }
        SyncStatus {
            configured: true,
            peer: Some(self.config.peer),
            interface: self.config.interface.clone(),
            state,
            session: format!("{:016x}", session.own()),
            peer_session: session.peer().map(|peer| format!("{peer:016x}")),
            sessions: counts.sessions,
            heard_seconds_ago: session.heard().map(|heard| now.saturating_sub(heard).as_secs_f64()),
            received_all: self.node.received_all,
            sent_all: self.node.sent_all,
            flows_sent: counts.flows_sent,
            removals_sent: counts.removals_sent,
            flows_received: counts.flows_received,
            removals_received: counts.removals_received,
            bytes_sent: counts.bytes_sent,
            bytes_received: counts.bytes_received,
            in_flight: session.in_flight() as u64,
            resent: session.resent,
            send_errors: self.send_errors,
            behind: self.node.behind(table),
            held_back: self.node.held_back,
            lag_millis: self.node.delay(now).as_secs_f64() * 1000.0,
            refused,
            left_out,
        }
    }
}

/// Flows in plain memory, for tests and benchmarks.
#[derive(Clone, Debug)]
pub struct PlainFlows(Arc<(Vec<AtomicU64>, Vec<AtomicU64>, Vec<AtomicU64>)>);

impl PlainFlows {
    /// Of so many lines, for numbers of backends below `backends`.
    #[must_use]
    pub fn new(lines: usize, backends: usize) -> Self {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new((
            zeros(lines * WAYS),
            zeros(lines * WAYS * size_of::<FlowTuple>() / 8),
            zeros(backends),
        )))
    }

    /// A flow at a free place, as the packet path writes it.
    pub fn put(&self, place: usize, word: FlowWord, tuple: &FlowTuple) {
        let table = self.table();
        // A place that is not free stays.
        if table.change(place, FlowWord::FREE, word).is_ok() {
            table.write_tuple(place, tuple);
        }
    }

    /// Lets all of its memory be there, as it is in a kernel's maps.
    pub fn touch(&self) {
        for word in self.0.0.iter().chain(&self.0.1) {
            word.fetch_or(0, Ordering::Relaxed);
        }
    }

    /// The word at a place.
    #[must_use]
    pub fn word(&self, place: usize) -> FlowWord {
        self.table().word(place)
    }

    /// Live flows of a backend.
    #[must_use]
    pub fn live(&self, backend: usize) -> u64 {
        self.0.2.get(backend).map_or(0, |live| live.load(Ordering::Relaxed))
    }
}

impl SharedFlows for PlainFlows {
    fn table(&self) -> FlowTable<'_> {
        FlowTable::new(&self.0.0, &self.0.1, &self.0.2)
    }
}
