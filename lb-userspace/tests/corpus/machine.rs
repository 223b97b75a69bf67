//! What runs a frame: the packet code over maps with a world's configuration in them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use lb_common::abi::{BackendStats, FlowTuple, FlowWord, PORTS};
use lb_common::verdict::{Action, Reason};
use lb_userspace::config::{Protocol, Scheduler};
use lb_userspace::dataplane::desired::desired;
use lb_userspace::dataplane::image::{Id, Image};
use lb_userspace::dataplane::memory::Memory;
use lb_userspace::dataplane::plan::plan;
use lb_userspace::dataplane::snapshot::Readable as _;
use lb_userspace::dataplane::{Dataplane, Maps};

use super::frame;
use super::world::{CAPACITY, KEY, Known, States, World};

/// The fate of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub action: Action,
    /// Where a redirected frame leaves. The kernel's test run does not tell; the frame's source MAC address does.
    pub ifindex: Option<u32>,
    pub frame: Vec<u8>,
}

/// What runs the packet code over maps.
pub trait Engine {
    type Maps: Maps;

    /// Runs the packet code on a frame that came in on the interface of this number.
    fn run(&self, maps: &mut Self::Maps, ingress: u32, frame: &[u8]) -> Ran;
    fn counters(maps: &Self::Maps) -> BTreeMap<Reason, u64>;
    fn stats(maps: &Self::Maps, backend: Id) -> BackendStats;
}

/// The host, and the interface that the routing table is asked about.
#[derive(Debug)]
pub struct Host {
    ingress: Rc<Cell<u32>>,
}

impl Engine for Host {
    type Maps = Memory;

    fn run(&self, memory: &mut Memory, ingress: u32, frame: &[u8]) -> Ran {
        self.ingress.set(ingress);
        memory.ingress = ingress;
        let mut frame = frame.to_vec();
        let verdict = memory.run(&mut frame);
        let ifindex = (verdict.action == Action::Redirect).then_some(verdict.ifindex);
        Ran { action: verdict.action, ifindex, frame }
    }

    fn counters(memory: &Memory) -> BTreeMap<Reason, u64> {
        memory.counters()
    }

    fn stats(memory: &Memory, backend: Id) -> BackendStats {
        memory.stats(backend)
    }
}

impl Machine<Host> {
    /// A gateway in plain memory, which remembers the way of the packets before.
    pub fn host(world: &World) -> Self {
        Self::host_in_epoch(world, 1)
    }

    /// With this route epoch; 0: the routing table is asked for every packet.
    pub fn host_in_epoch(world: &World, route_epoch: u32) -> Self {
        let (ingress, routes) = world.routes();
        let mut memory = Memory::new(CAPACITY, KEY, world.flow_lines as usize, routes);
        memory.elsewhere = world.interfaces.iter().filter(|i| !i.program).map(|i| i.index).collect();
        memory.settings.route_epoch = route_epoch;
        let (ports, vlans) = world.ports();
        for port in ports {
            memory.ports[(port.ifindex % PORTS) as usize] = port;
        }
        memory.vlans = vlans;
        Self::new(Host { ingress }, memory)
    }
}

/// A place of the flow table: its number, its word without the time, and the tuple beside it.
pub type Place = (usize, u64, FlowTuple);

/// Everything a packet may change but its frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub counters: BTreeMap<Reason, u64>,
    pub stats: BTreeMap<Id, BackendStats>,
    pub flows: Vec<Place>,
    /// Live flows of the backends that have any.
    pub live: BTreeMap<Id, u64>,
}

/// What a packet changed, and what it left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub ran: Ran,
    /// Those that moved, and by how much.
    pub counters: BTreeMap<Reason, u64>,
    /// Of the backends whose statistics moved.
    pub stats: BTreeMap<Id, BackendStats>,
    pub flows_before: Vec<Place>,
    pub flows: Vec<Place>,
    /// Live flows of the backends that have any.
    pub live: BTreeMap<Id, u64>,
}

impl Outcome {
    /// The backends whose number of live flows is not what the flow table has of them: it, and what should be.
    pub fn miscounted(&self) -> Vec<(Id, u64, u64)> {
        let mut found = BTreeMap::<Id, u64>::new();
        for (_, word, _) in &self.flows {
            let word = FlowWord(*word);
            *found.entry(word.backend()).or_default() += u64::from(word.state().is_live());
        }
        let ids: BTreeSet<Id> = self.live.keys().chain(found.keys()).copied().collect();
        let count = |counts: &BTreeMap<Id, u64>, id| counts.get(id).copied().unwrap_or(0);
        let all = ids.iter().map(|id| (*id, count(&self.live, id), count(&found, id)));
        all.filter(|(_, live, found)| live != found).collect()
    }
}

/// A gateway in a world.
#[derive(Debug)]
pub struct Machine<E: Engine> {
    engine: E,
    pub dataplane: Dataplane<E::Maps>,
    /// What the last frame left behind, while nothing else has happened.
    last: Option<Snapshot>,
}

impl<E: Engine> Machine<E> {
    pub fn new(engine: E, maps: E::Maps) -> Self {
        Self { engine, dataplane: Dataplane::over(maps, Image::default()), last: None }
    }

    pub fn image(&self) -> &Image {
        self.dataplane.image()
    }

    /// Takes the steps to the configuration of the world with its backends in these states.
    pub fn configure(&mut self, world: &World, states: &States) {
        self.last = None;
        let capacity = self.dataplane.maps().capacity();
        let wanted = desired(&world.config, &Known(states), self.dataplane.image(), capacity)
            .unwrap_or_else(|e| panic!("{e}"));
        for op in plan(self.dataplane.image(), &wanted) {
            self.dataplane.apply(&op).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        }
    }

    /// Brings every round robin to the first of its turns, by new flows that nobody needs.
    pub fn align_turns(&mut self, world: &World) {
        let image = self.dataplane.image().clone();
        let ingress =
            world.interface(&world.ingress).unwrap_or_else(|| panic!("no interface {}", world.ingress));
        for listener in image.listeners.values().filter(|l| l.scheduler == Scheduler::RoundRobin) {
            let turns = image.fill(&listener.table, KEY.seed);
            let mut taken: Vec<Id> = Vec::new();
            while !taken.ends_with(&turns) {
                let port = 50_000 + taken.len();
                assert!(taken.len() <= 2 * turns.len(), "{}: no such turns: {taken:?}", listener.listen);
                let (vip, to) = (listener.listen.address, listener.listen.port);
                assert_ne!(
                    listener.listen.protocol,
                    Protocol::Any,
                    "{}: takes no turns here",
                    listener.listen
                );
                let ip = if vip.is_ipv4() { "ip4 192.0.2.100" } else { "ip6 2001:db8:c::100" };
                let transport = match listener.listen.protocol {
                    Protocol::Tcp => format!("tcp {port} > {to} S"),
                    Protocol::Udp | Protocol::Any => format!("udp {port} > {to}"),
                };
                let text = format!("eth / {ip} > {vip} / {transport}");
                let frame =
                    frame::build(&text, world.names(ingress)).unwrap_or_else(|e| panic!("{text}: {e}"));
                taken.extend(self.run(ingress.index, &frame).stats.keys());
            }
        }
    }

    pub fn forget_flows(&mut self) {
        self.last = None;
        let flows = self.dataplane.maps().flows();
        let backends = &self.dataplane.image().backends;
        let occupied: BTreeSet<Id> = flows.entries().map(|(_, word, _)| word.backend()).collect();
        for id in occupied.into_iter().filter(|id| backends.contains_key(id)) {
            flows.forget(id);
        }
        assert_eq!(flows.entries().count(), 0, "a flow of a backend that is not there");
    }

    pub fn snapshot(&self) -> Snapshot {
        let maps = self.dataplane.maps();
        let flows = maps.flows().entries().map(|(i, word, tuple)| (i, word.0 & !0xffff, tuple)).collect();
        let stats = self.dataplane.image().backends.keys().map(|id| (*id, E::stats(maps, *id))).collect();
        let live = (0..maps.capacity().backends)
            .map(|id| (id, maps.flows().live(id)))
            .filter(|(_, n)| *n != 0)
            .collect();
        Snapshot { counters: E::counters(maps), stats, flows, live }
    }

    /// Runs a frame without looking what changes.
    pub fn send(&mut self, ingress: u32, frame: &[u8]) -> Ran {
        self.last = None;
        self.engine.run(self.dataplane.maps_mut(), ingress, frame)
    }

    pub fn run(&mut self, ingress: u32, frame: &[u8]) -> Outcome {
        let before = self.last.take().unwrap_or_else(|| self.snapshot());
        let ran = self.engine.run(self.dataplane.maps_mut(), ingress, frame);
        let after = self.snapshot();
        let count = |snapshot: &Snapshot, reason| snapshot.counters.get(reason).copied().unwrap_or(0);
        let counters = after
            .counters
            .keys()
            .map(|reason| (*reason, count(&after, reason) - count(&before, reason)))
            .filter(|(_, moved)| *moved != 0)
            .collect();
        let stats = after
            .stats
            .iter()
            .map(|(id, new)| (*id, difference(new, &before.stats[id])))
            .filter(|(_, moved)| *moved != BackendStats::default())
            .collect();
        self.last = Some(after.clone());
        Outcome { ran, counters, stats, flows_before: before.flows, flows: after.flows, live: after.live }
    }
}

fn difference(new: &BackendStats, old: &BackendStats) -> BackendStats {
    BackendStats {
        to_packets: new.to_packets - old.to_packets,
        to_bytes: new.to_bytes - old.to_bytes,
        from_packets: new.from_packets - old.from_packets,
        from_bytes: new.from_bytes - old.from_bytes,
        moved_away: new.moved_away - old.moved_away,
    }
}
