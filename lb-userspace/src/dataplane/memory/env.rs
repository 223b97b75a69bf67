//! The packet code's questions, answered from plain memory.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::flow::{FlowTuple, FlowWord, WAYS};
use lb_common::abi::memo::HELD_BYTES;
use lb_common::abi::{
    self, Backend, ClientHop, Features, Fragment, FragmentKey, Held, Listener, Live, NextHop, Port, Settings,
    SiblingKey, Sticky, StickyKey, VlanKey,
};
use lb_common::env::{Env, Line, Query, Reach, Route, Step};
use lb_common::hash::{EndpointHash, HashKey};
use lb_common::verdict::Reason;

use super::Memory;
use crate::dataplane::image::address_from;
use crate::dataplane::snapshot::Readable as _;

/// Words of a [`FlowTuple`].
const TUPLE_WORDS: usize = size_of::<FlowTuple>() / 8;

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

    fn find_endpoint(&self, hash: EndpointHash) -> u32 {
        self.endpoints().find(hash).unwrap_or(0)
    }

    fn features(&self) -> Features {
        self.settings.features
    }

    fn route_epoch(&self) -> u32 {
        self.settings.route_epoch
    }

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
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
        let words: [u64; TUPLE_WORDS] = bytemuck::must_cast(*tuple);
        for (place, word) in self.tuples[index as usize * TUPLE_WORDS..].iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    fn tuple(&self, index: u32) -> Option<FlowTuple> {
        let places = self.tuples.get(index as usize * TUPLE_WORDS..)?.get(..TUPLE_WORDS)?;
        let words: [u64; TUPLE_WORDS] = std::array::from_fn(|i| places[i].load(Ordering::Relaxed));
        Some(bytemuck::must_cast(words))
    }

    fn add_live(&self, backend: u32, by: i64) {
        if let Some(count) = self.live.get(backend as usize) {
            count.fetch_add(by as u64, Ordering::Relaxed);
        }
    }

    fn live(&self, backend: u32) -> Live {
        Live(self.live.get(backend as usize).map_or(0, |count| count.load(Ordering::Relaxed)))
    }

    fn admit(&self, listener: u32, limit: u32) -> bool {
        let mut flood = self.flood.borrow_mut();
        let (tick, count) = flood.entry(listener).or_default();
        if *tick != self.now {
            (*tick, *count) = (self.now, 0);
        }
        *count = count.saturating_add(1);
        *count <= limit
    }

    fn sticky(&self, key: &StickyKey) -> Option<Sticky> {
        self.sticky.borrow().get(key).copied()
    }

    fn stick(&self, key: &StickyKey, value: &Sticky) {
        self.sticky.borrow_mut().insert(*key, *value);
    }

    fn sibling(&self, key: &SiblingKey) -> Option<u32> {
        self.siblings.get(key).copied()
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, value: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *value);
    }

    fn snat_address(&self, index: u32) -> Option<&[u8; 16]> {
        self.snat_addresses.get(index as usize)
    }

    fn now(&self) -> u16 {
        self.now
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn port(&self, ifindex: u32) -> Option<&Port> {
        self.ports.get((ifindex % abi::PORTS) as usize).filter(|port| port.ifindex == ifindex)
    }

    fn vlan(&self, key: &VlanKey) -> u32 {
        self.vlans.get(key).copied().unwrap_or(0)
    }

    fn backend_hop(&self, id: u32) -> Option<&Cell<NextHop>> {
        self.backend_hops.get(id as usize)
    }

    fn client_hop(&self, index: u32) -> Option<&Cell<ClientHop>> {
        self.client_hops.get(index as usize)
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    fn route(&self, query: &Query) -> Route {
        let (source, destination) = (address_from(query.source), address_from(query.destination));
        // As bpf_fib_lookup: these are never forwarded, whichever way they stand.
        let stays = |address: IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(v6) => v6.is_multicast() || v6.is_unicast_link_local() || v6.is_loopback(),
        };
        if stays(source) || stays(destination) {
            return Route::none(Reach::NotForwarded);
        }
        (self.routes)(destination, query.len)
    }

    fn hold(&self) -> bool {
        let frame = self.frame.borrow();
        if frame.len() > HELD_BYTES {
            return false;
        }
        let mut held = Held { ingress: self.ingress, len: frame.len() as u32, frame: [0; HELD_BYTES] };
        held.frame[..frame.len()].copy_from_slice(&frame);
        self.held.borrow_mut().push(held);
        true
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

    fn has_short_way(&self) -> bool {
        self.short_way
    }

    fn took_short_way(&self) {
        self.short_ways.set(self.short_ways.get() + 1);
    }

    fn trace(&self, _step: Step, _first: u32, _second: u32) {}
}
