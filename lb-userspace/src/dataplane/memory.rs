//! Maps in plain memory, and the packet code over them: what the tests compare the kernel with.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::flow::{FlowTuple, FlowWord, WAYS};
use lb_common::abi::net::{Be16, Protocol as Wire};
use lb_common::abi::{Backend, BackendStats, Endpoint4, Endpoint6, Listener, Side, TableRef};
use lb_common::env::{Env, Line, Reach, Route, Step};
use lb_common::hash::HashKey;
use lb_common::packet::ip4::Ipv4;
use lb_common::packet::ip6::Ipv6;
use lb_common::pipeline::Work;
use lb_common::verdict::{Reason, Verdict};

use super::flows::FlowTable;
use super::image::Id;
use super::{ApplyError, Capacity, Maps};
use crate::config::Protocol;

/// What the routing table says of a destination.
pub type Routes = Box<dyn Fn(IpAddr, u16) -> Route>;

/// The maps.
pub struct Memory {
    capacity: Capacity,
    key: HashKey,
    endpoints4: BTreeMap<Endpoint4, Id>,
    endpoints6: BTreeMap<Endpoint6, Id>,
    listeners: Vec<Listener>,
    backends: Vec<Backend>,
    tables: Vec<Id>,
    words: Vec<AtomicU64>,
    tuples: Vec<AtomicU64>,
    counters: RefCell<BTreeMap<Reason, u64>>,
    stats: RefCell<BTreeMap<Id, BackendStats>>,
    turns: RefCell<BTreeMap<Id, u32>>,
    routes: Routes,
    /// The flow table's clock.
    pub now: u16,
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
            endpoints4: BTreeMap::new(),
            endpoints6: BTreeMap::new(),
            listeners: vec![Listener::default(); capacity.listeners as usize],
            backends: vec![Backend::default(); capacity.backends as usize],
            tables: vec![0; capacity.table_slots as usize],
            words: zeros(flow_lines * WAYS),
            tuples: zeros(flow_lines * WAYS * size_of::<FlowTuple>() / 8),
            counters: RefCell::default(),
            stats: RefCell::default(),
            turns: RefCell::default(),
            routes,
            now: 0,
            ingress: 1,
            elsewhere: BTreeSet::new(),
        }
    }

    /// Runs the packet code on a frame.
    pub fn run(&self, frame: &mut Vec<u8>) -> Verdict {
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
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn hash_key(&self) -> HashKey {
        self.key
    }

    fn put_endpoint(
        &mut self,
        side: Side,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        value: Id,
    ) -> Result<(), ApplyError> {
        let port = Be16::new(port);
        match address {
            IpAddr::V4(v4) => {
                self.endpoints4.insert(Endpoint4::new(side, v4.octets(), port, protocol.wire()), value);
            }
            IpAddr::V6(v6) => {
                self.endpoints6.insert(Endpoint6::new(side, v6.octets(), port, protocol.wire()), value);
            }
        }
        Ok(())
    }

    fn remove_endpoint(
        &mut self,
        side: Side,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Result<(), ApplyError> {
        let port = Be16::new(port);
        match address {
            IpAddr::V4(v4) => {
                self.endpoints4.remove(&Endpoint4::new(side, v4.octets(), port, protocol.wire()));
            }
            IpAddr::V6(v6) => {
                self.endpoints6.remove(&Endpoint6::new(side, v6.octets(), port, protocol.wire()));
            }
        }
        Ok(())
    }

    fn write_listener(&mut self, id: Id, record: &Listener, _service: &str) {
        self.listeners[id as usize] = *record;
    }

    fn write_table_ref(&mut self, id: Id, table: TableRef) {
        self.listeners[id as usize].table = table;
    }

    fn table_ref(&self, id: Id) -> TableRef {
        self.listeners[id as usize].table
    }

    fn write_backend(&mut self, id: Id, record: &Backend, _name: &str) {
        self.backends[id as usize] = *record;
    }

    fn write_slots(&mut self, offset: u32, slots: &[Id]) {
        self.tables[offset as usize..][..slots.len()].copy_from_slice(slots);
    }

    fn flows(&self) -> FlowTable<'_> {
        FlowTable::new(&self.words, &self.tuples)
    }
}

/// A line of the flow table in memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLine<'m>(&'m [AtomicU64]);

impl Line for MemoryLine<'_> {
    fn load(&self, way: usize) -> FlowWord {
        FlowWord(self.0[way].load(Ordering::Relaxed))
    }

    fn replace(&self, way: usize, old: FlowWord, new: FlowWord) -> bool {
        self.0[way].compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

impl<'m> Env for &'m Memory {
    type Line = MemoryLine<'m>;
    type Key = HashKey;

    fn endpoint4(&self, side: Side, addr: &[u8; 4], port: Be16, protocol: Wire) -> Option<u32> {
        self.endpoints4.get(&Endpoint4::new(side, *addr, port, protocol)).copied()
    }

    fn endpoint6(&self, side: Side, addr: &[u8; 16], port: Be16, protocol: Wire) -> Option<u32> {
        self.endpoints6.get(&Endpoint6::new(side, *addr, port, protocol)).copied()
    }

    fn listener(&self, id: u32) -> Option<&Listener> {
        self.listeners.get(id as usize)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }

    fn table_slot(&self, index: u32) -> Option<u32> {
        self.tables.get(index as usize).copied()
    }

    fn hash_key(&self) -> &HashKey {
        &self.key
    }

    fn flow_lines(&self) -> u32 {
        (self.words.len() / WAYS) as u32
    }

    fn flow_line(&self, line: u32) -> Option<MemoryLine<'m>> {
        let memory: &'m Memory = self;
        memory.words.chunks_exact(WAYS).nth(line as usize).map(MemoryLine)
    }

    fn record_tuple(&self, index: u32, tuple: &FlowTuple) {
        let words: [u64; 3] = bytemuck::must_cast(*tuple);
        for (place, word) in self.tuples[index as usize * 3..].iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    fn now(&self) -> u16 {
        self.now
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn is_port(&self, ifindex: u32) -> bool {
        !self.elsewhere.contains(&ifindex)
    }

    fn route4(&self, ip: &Ipv4, _protocol: Wire) -> Route {
        (self.routes)(ip.destination.into(), ip.total_len.get())
    }

    fn route6(&self, ip: &Ipv6, _protocol: Wire) -> Route {
        // As bpf_fib_lookup: these are never forwarded, whichever way they stand.
        let stays = |address: [u8; 16]| {
            let address = std::net::Ipv6Addr::from(address);
            address.is_multicast() || address.is_unicast_link_local() || address.is_loopback()
        };
        if stays(ip.source) || stays(ip.destination) {
            return Route::none(Reach::NotForwarded);
        }
        (self.routes)(ip.destination.into(), ip.payload_len.get().saturating_add(40))
    }

    fn turn(&self, listener: u32) -> u32 {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.entry(listener).or_default();
        *turn += 1;
        *turn
    }

    fn random(&self) -> u32 {
        rand::random()
    }

    fn count(&self, reason: Reason) {
        *self.counters.borrow_mut().entry(reason).or_default() += 1;
    }

    fn count_to_backend(&self, id: u32, bytes: u32) {
        let mut stats = self.stats.borrow_mut();
        let stats = stats.entry(id).or_default();
        stats.to_packets += 1;
        stats.to_bytes += u64::from(bytes);
    }

    fn count_from_backend(&self, id: u32, bytes: u32) {
        let mut stats = self.stats.borrow_mut();
        let stats = stats.entry(id).or_default();
        stats.from_packets += 1;
        stats.from_bytes += u64::from(bytes);
    }

    fn count_moved_away(&self, id: u32) {
        self.stats.borrow_mut().entry(id).or_default().moved_away += 1;
    }

    fn trace(&self, _step: Step, _first: u32, _second: u32) {}
}
