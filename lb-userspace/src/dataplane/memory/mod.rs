//! Maps in plain memory, and the packet code over them: what the tests compare the kernel with.

mod env;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use bytemuck::Zeroable;
use lb_common::abi::endpoint::ENDPOINT_WAYS;
use lb_common::abi::flow::{FlowTuple, WAYS};
use lb_common::abi::hop::CLIENT_HOPS;
use lb_common::abi::{
    self, Backend, BackendStats, ClientHop, Features, Fragment, FragmentKey, Held, Listener, NextHop, Port,
    Settings, SiblingKey, Sticky, StickyKey, TableRef, VlanKey,
};
use lb_common::env::Route;
use lb_common::hash::HashKey;
use lb_common::pipeline::Work;
use lb_common::verdict::{Reason, Verdict};

pub use env::MemoryLine;

use super::endpoints::EndpointTable;
use super::flows::FlowTable;
use super::image::{Id, Pace, TunnelSources};
use super::snapshot::Readable;
use super::{ApplyError, Capacity, Maps};

/// What the routing table says of a destination.
pub type Routes = Box<dyn Fn(IpAddr, u16) -> Route>;

/// The maps.
pub struct Memory {
    capacity: Capacity,
    key: HashKey,
    pub settings: Settings,
    /// Eight words a line.
    pub endpoints: Vec<AtomicU64>,
    pub listeners: Vec<Listener>,
    pub backends: Vec<Backend>,
    service_names: BTreeMap<Id, String>,
    backend_names: BTreeMap<Id, String>,
    pub tables: Vec<Id>,
    /// Of the flow table, eight a line.
    pub words: Vec<AtomicU64>,
    /// The words of the flows' tuples.
    pub tuples: Vec<AtomicU64>,
    /// Live flows of each backend.
    pub live: Vec<AtomicU64>,
    /// IPv4 as mapped address.
    pub snat_addresses: Vec<[u8; 16]>,
    pub sticky: RefCell<BTreeMap<StickyKey, Sticky>>,
    pub siblings: BTreeMap<SiblingKey, Id>,
    pub fragments: RefCell<BTreeMap<FragmentKey, Fragment>>,
    /// Each at its place by its index.
    pub ports: Vec<Port>,
    pub vlans: BTreeMap<VlanKey, u32>,
    pub counters: RefCell<BTreeMap<Reason, u64>>,
    pub stats: RefCell<BTreeMap<Id, BackendStats>>,
    pub turns: RefCell<BTreeMap<Id, u32>>,
    /// By listener: the tick, and the new flows in it.
    pub flood: RefCell<BTreeMap<Id, (u16, u32)>>,
    pub backend_hops: Vec<Cell<NextHop>>,
    pub client_hops: Vec<Cell<ClientHop>>,
    /// Fragments that wait for the first of their datagram.
    pub held: RefCell<Vec<Held>>,
    routes: Routes,
    /// The frame in hand, as it came.
    frame: RefCell<Vec<u8>>,
    /// Whether packets may take the short way: for comparing it with the long one.
    pub short_way: bool,
    /// How many did.
    pub short_ways: Cell<u64>,
    /// The flow table's clock.
    pub now: u16,
    /// No daemon has been alive for longer than packets are forwarded without one.
    pub abandoned: bool,
    /// The interface that packets come in on.
    pub ingress: u32,
    /// The interfaces that do not carry the program.
    pub elsewhere: BTreeSet<u32>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl Memory {
    /// Empty maps, with a flow table of `flow_lines` lines. `routes` gets a destination and a packet's length.
    pub fn new(capacity: Capacity, key: HashKey, flow_lines: usize, routes: Routes) -> Self {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            capacity,
            key,
            settings: Settings::default(),
            endpoints: zeros(capacity.endpoint_lines() as usize * ENDPOINT_WAYS),
            listeners: vec![Listener::default(); capacity.listeners as usize],
            backends: vec![Backend::default(); capacity.backends as usize],
            service_names: BTreeMap::new(),
            backend_names: BTreeMap::new(),
            tables: vec![0; capacity.table_slots as usize],
            words: zeros(flow_lines * WAYS),
            tuples: zeros(flow_lines * WAYS * size_of::<FlowTuple>() / 8),
            live: zeros(capacity.backends as usize),
            snat_addresses: vec![[0; 16]; abi::SNAT_ADDRESSES as usize],
            sticky: RefCell::default(),
            siblings: BTreeMap::new(),
            fragments: RefCell::default(),
            ports: vec![Port::default(); abi::PORTS as usize],
            vlans: BTreeMap::new(),
            counters: RefCell::default(),
            stats: RefCell::default(),
            turns: RefCell::default(),
            flood: RefCell::default(),
            backend_hops: vec![Cell::new(Zeroable::zeroed()); capacity.backends as usize],
            client_hops: vec![Cell::new(Zeroable::zeroed()); CLIENT_HOPS as usize],
            held: RefCell::default(),
            routes,
            frame: RefCell::default(),
            short_way: true,
            short_ways: Cell::new(0),
            now: 0,
            abandoned: false,
            ingress: 1,
            elsewhere: BTreeSet::new(),
        }
    }

    /// Runs the packet code on a frame.
    pub fn run(&self, frame: &mut Vec<u8>) -> Verdict {
        self.frame.replace(frame.clone());
        lb_common::pipeline::handle(frame, &self, &mut Work::new())
    }

    /// The counters that are not zero.
    pub fn counters(&self) -> BTreeMap<Reason, u64> {
        self.counters.borrow().clone()
    }

    pub fn stats(&self, backend: Id) -> BackendStats {
        self.stats.borrow().get(&backend).copied().unwrap_or_default()
    }
}

impl Maps for Memory {
    fn write_features(&mut self, features: Features) {
        self.settings.features = features;
    }

    fn write_tunnel(&mut self, tunnel: &TunnelSources) {
        tunnel.write_to(&mut self.settings);
    }

    fn write_snat_address(&mut self, index: u8, address: [u8; 16]) {
        self.snat_addresses[usize::from(index)] = address;
    }

    fn write_listener(&mut self, id: Id, record: &Listener, service: &str) {
        self.service_names.insert(id, service.to_owned());
        self.listeners[id as usize] = *record;
    }

    fn write_table_ref(&mut self, id: Id, table: TableRef) {
        self.listeners[id as usize].table = table;
    }

    fn write_backend(&mut self, id: Id, record: &Backend, name: &str) {
        self.backend_names.insert(id, name.to_owned());
        self.backends[id as usize] = *record;
    }

    fn put_sibling(&mut self, key: SiblingKey, backend: Id) -> Result<(), ApplyError> {
        self.siblings.insert(key, backend);
        Ok(())
    }

    fn remove_sibling(&mut self, key: SiblingKey) -> Result<(), ApplyError> {
        self.siblings.remove(&key);
        Ok(())
    }

    fn write_slots(&mut self, offset: u32, slots: &[Id]) {
        self.tables[offset as usize..][..slots.len()].copy_from_slice(slots);
    }
}

impl Readable for Memory {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn hash_key(&self) -> HashKey {
        self.key
    }

    fn endpoints(&self) -> EndpointTable<'_> {
        EndpointTable::new(&self.endpoints)
    }

    fn table_ref(&self, id: Id) -> TableRef {
        self.listeners[id as usize].table
    }

    fn flows(&self) -> FlowTable<'_> {
        FlowTable::new(&self.words, &self.tuples, &self.live)
    }

    fn pace(&self) -> Pace {
        Pace::default()
    }

    fn settings(&self) -> Settings {
        self.settings
    }

    fn snat_address(&self, index: u8) -> [u8; 16] {
        self.snat_addresses[usize::from(index)]
    }

    fn listener(&self, id: Id) -> Listener {
        self.listeners[id as usize]
    }

    fn service_name(&self, id: Id) -> String {
        self.service_names.get(&id).cloned().unwrap_or_default()
    }

    fn backend(&self, id: Id) -> Backend {
        self.backends[id as usize]
    }

    fn backend_name(&self, id: Id) -> String {
        self.backend_names.get(&id).cloned().unwrap_or_default()
    }

    fn slot(&self, index: u32) -> Id {
        self.tables[index as usize]
    }

    fn siblings(&self) -> Result<Vec<(SiblingKey, Id)>, ApplyError> {
        Ok(self.siblings.iter().map(|(key, id)| (*key, *id)).collect())
    }
}
