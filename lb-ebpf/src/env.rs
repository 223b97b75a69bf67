//! `lb_common::env::Env` over maps and helpers.

use core::arch::asm;
use core::cell::Cell;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns, bpf_xdp_get_buff_len,
    bpf_xdp_load_bytes,
};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::endpoint::{ENDPOINT_WAYS, EndpointLine, EndpointWord};
use lb_common::abi::flow::{FlowLine, FlowTuple, FlowWord, WAYS};
use lb_common::abi::memo::HELD_BYTES;
use lb_common::abi::{
    self, Backend, ClientHop, Features, Fragment, FragmentKey, Held, Listener, Live, NextHop, Port, Settings,
    SiblingKey, Sticky, StickyKey, TableRef, VlanKey,
};
use lb_common::env::{Env, Line, Query, Reach, Route, Step};
use lb_common::hash::{EndpointHash, Key};
use lb_common::packet::eth::{self, Macs};
use lb_common::pipeline::{Work, reverse, select};
use lb_common::verdict::Reason;
use lb_common::{flow, maglev};

use crate::{maps, trace};

/// Linux's numbers of the address families.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The surroundings of a packet with its context, or without one: what is a function of its own to the verifier does
/// not get it.
pub struct Kernel<C>(pub C);

/// The packet's context, or none.
pub trait Context {
    /// As [`Env::DRY`].
    const DRY: bool = false;

    /// The interface the packet came in on.
    fn ingress(&self) -> u32;
    fn route(&self, query: &Query) -> Route;
    /// Whether [`Self::hold`] has room for the frame, if nobody else takes it.
    fn fits(&self) -> bool;
    fn hold(&self) -> bool;
}

/// A line of `FLOWS`. Never null: made from a lookup that found it.
#[derive(Clone, Copy)]
pub struct KernelLine {
    words: *mut u64,
    index: u32,
}

/// `flow::victim` as a global function: verified once, for any line, instead of in each of its callers. `now` has 16
/// bits.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_victim(line: u32, fingerprint: u32, now: u32) -> u32 {
    match line_at(line) {
        Some(line) => flow::victim(line, fingerprint, now as u16) as u32,
        None => 0,
    }
}

/// `maglev::next` likewise, on the table at `offset`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_next(offset: u32, size: u32, slot: u32, current: u32) -> u32 {
    maglev::next(|i| table_slot(offset.wrapping_add(i)), size, slot, current)
}

/// `select::less_loaded` likewise.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_less(offset: u32, size: u32, start: u32, best: u32, from: u32) -> u32 {
    select::less_loaded(&Kernel(()), TableRef::new(offset, size, 0), start, best, from)
}

/// `select::room_among` likewise.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_room(offset: u32, size: u32, start: u32, from: u32) -> u32 {
    select::room_among(&Kernel(()), TableRef::new(offset, size, 0), start, from)
}

/// `select::choose` likewise, for the packet in `WORK`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_choose() -> u32 {
    work().map_or(0, |work| select::choose(&Kernel(()), work))
}

/// `select::commit` likewise.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_commit() -> u32 {
    work().map_or(select::NO_PLACE, |work| select::commit(&Kernel(()), work))
}

/// `reverse::record` likewise.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_record_reverse() -> u32 {
    work().map_or(reverse::NOWHERE, |work| reverse::record(&Kernel(()), work))
}

/// `reverse::attempt` likewise. Whether it is the first one is asked for only where nothing is written.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_attempt_reverse(port: u32, index: u32) -> u32 {
    work().map_or(reverse::NOWHERE, |work| reverse::attempt(&Kernel(()), work, port, index, false))
}

/// `reverse::forget` likewise. What it returns means nothing: functions of this kind return a number.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_forget_reverse(place: u32) -> u32 {
    reverse::forget(&Kernel(()), place);
    0
}

/// `reverse::record` where nothing is written.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_dry_record_reverse() -> u32 {
    work().map_or(reverse::NOWHERE, |work| reverse::record(&Kernel(Dry(())), work))
}

/// `reverse::attempt` where nothing is written.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_dry_attempt_reverse(port: u32, index: u32, first: u32) -> u32 {
    work().map_or(reverse::NOWHERE, |work| reverse::attempt(&Kernel(Dry(())), work, port, index, first != 0))
}

/// A context in which nothing is written.
pub struct Dry<C>(pub C);

/// The surroundings of a packet, for a stage that only explains.
#[inline(always)]
pub const fn dry(ctx: &XdpContext) -> Kernel<Dry<&XdpContext>> {
    Kernel(Dry(ctx))
}

/// The packet in hand.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    // SAFETY: this CPU's own value; XDP programs do not interrupt each other on a CPU, and whoever has called this goes
    // through the pointer again after the call.
    maps::WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

#[inline(always)]
fn table_slot(index: u32) -> Option<u32> {
    // SAFETY: a pointer to a map's value stays valid; the read is one instruction.
    maps::TABLES
        .get_ptr(index >> 1)
        .map(|pair| unsafe { read_volatile(pair.cast::<u32>().add((index & 1) as usize)) })
}

/// A way that the verifier believes in. The compiler would leave out an `&` that it can prove to be superfluous, by a
/// comparison of which the verifier has lost track.
#[inline(always)]
fn within(mut way: usize) -> usize {
    const _: () = assert!(WAYS == 8 && ENDPOINT_WAYS == 8);
    // SAFETY: one arithmetic instruction on one register.
    unsafe { asm!("{way} &= 7", way = inout(reg) way, options(pure, nomem, nostack)) };
    way
}

#[inline(always)]
fn line_at(index: u32) -> Option<KernelLine> {
    maps::FLOWS.get_ptr_mut(index).map(|line: *mut FlowLine| KernelLine { words: line.cast(), index })
}

/// Whether what happens is to leave no trace.
#[inline(always)]
fn is_dry() -> bool {
    maps::TRACE.load() == abi::trace::EXPLAIN
}

impl Line for KernelLine {
    #[inline(always)]
    fn load(&self, way: usize) -> FlowWord {
        // SAFETY: the map's value has WAYS words; the read is one instruction.
        FlowWord(unsafe { read_volatile(self.words.add(within(way))) })
    }

    #[inline(always)]
    fn replace(&self, way: usize, old: FlowWord, new: FlowWord) -> bool {
        if is_dry() {
            return true;
        }
        // SAFETY: as in `load`.
        let (_, done) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                self.words.add(within(way)),
                old.0,
                new.0,
            )
        };
        done
    }

    #[inline(always)]
    fn victim(&self, fingerprint: u32, now: u16) -> usize {
        matapa_victim(self.index, fingerprint, u32::from(now)) as usize
    }
}

impl Key for maps::HashKeyConstant {
    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        maps::HASH_KEY.words[at].load()
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        maps::HASH_KEY.seed.load()
    }
}

impl Context for () {
    fn ingress(&self) -> u32 {
        0
    }

    fn route(&self, _query: &Query) -> Route {
        Route::none(Reach::Unsupported)
    }

    fn fits(&self) -> bool {
        false
    }

    fn hold(&self) -> bool {
        false
    }
}

impl<C: Context> Context for Dry<C> {
    const DRY: bool = true;

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress()
    }

    #[inline(always)]
    fn route(&self, query: &Query) -> Route {
        self.0.route(query)
    }

    #[inline(always)]
    fn fits(&self) -> bool {
        self.0.fits()
    }

    #[inline(always)]
    fn hold(&self) -> bool {
        false
    }
}

impl Context for &XdpContext {
    #[inline(always)]
    fn ingress(&self) -> u32 {
        crate::frame::field::<12>(self) as u32
    }

    /// Asks the kernel's routing table and neighbours (bpf-helpers(7)).
    #[inline(always)]
    fn route(&self, query: &Query) -> Route {
        let Some(params) = maps::ROUTE_QUERY.get_ptr_mut(0) else {
            return Route::none(Reach::Unsupported);
        };
        // SAFETY: this CPU's own value; XDP programs do not interrupt each other on a CPU.
        let params = unsafe { &mut *params };
        params.ifindex = query.ingress;
        params.sport = 0;
        params.dport = 0;
        params.l4_protocol = query.protocol;
        params.__bindgen_anon_1.tot_len = query.len;
        let (source, destination) = (words(&query.source), words(&query.destination));
        if query.v6 {
            params.family = AF_INET6;
            params.__bindgen_anon_2.flowinfo = u32::from_ne_bytes(query.flow_info);
            params.__bindgen_anon_3.ipv6_src = source;
            params.__bindgen_anon_4.ipv6_dst = destination;
        } else {
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = query.class;
            params.__bindgen_anon_3.ipv4_src = source[3];
            params.__bindgen_anon_4.ipv4_dst = destination[3];
        }
        // SAFETY: the context is this program's; `params` is as long as said.
        let found = unsafe { fib_lookup(self.ctx.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
        let reach = match found as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => Reach::Known,
            BPF_FIB_LKUP_RET_NO_NEIGH => Reach::NeighbourUnknown,
            BPF_FIB_LKUP_RET_FRAG_NEEDED => Reach::TooBig,
            BPF_FIB_LKUP_RET_NOT_FWDED => Reach::NotForwarded,
            BPF_FIB_LKUP_RET_FWD_DISABLED => Reach::ForwardingDisabled,
            BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT => {
                Reach::Refused
            }
            // Lightweight tunnels, and errors for arguments that are never wrong here.
            _ => Reach::Unsupported,
        };
        // SAFETY: the helper has written the MTU in the place of the length (Linux 5.12).
        let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
        let macs = Macs { destination: params.dmac, source: params.smac };
        Route { reach, mtu, ifindex: params.ifindex, macs }
    }

    #[inline(always)]
    fn fits(&self) -> bool {
        // SAFETY: the context is this program's.
        (unsafe { bpf_xdp_get_buff_len(self.ctx) }) <= HELD_BYTES as u64
    }

    #[inline(always)]
    fn hold(&self) -> bool {
        // SAFETY: the context is this program's.
        let mut len = unsafe { bpf_xdp_get_buff_len(self.ctx) };
        if len > HELD_BYTES as u64 {
            return false;
        }
        // Nothing happens to it, but the compiler does not know: joined to one comparison, the two do not tell Linux 6.1
        // that there is a least length.
        // SAFETY: one arithmetic instruction on one register.
        unsafe { asm!("{len} += 0", len = inout(reg) len, options(pure, nomem, nostack)) };
        if len < eth::LEN as u64 {
            return false;
        }
        let Some(mut entry) = maps::HELD.reserve::<Held>(0) else { return false };
        let held = entry.as_mut_ptr();
        // SAFETY: the entry is as large as its type, and `len` bytes fit into its frame.
        let copied = unsafe {
            (&raw mut (*held).ingress).write(self.ingress());
            (&raw mut (*held).len).write(len as u32);
            bpf_xdp_load_bytes(self.ctx, 0, (&raw mut (*held).frame).cast(), len as u32)
        };
        if copied < 0 {
            entry.discard(0);
            return false;
        }
        entry.submit(0);
        true
    }
}

impl<C: Context> Env for Kernel<C> {
    type Line = KernelLine;
    type Key = maps::HashKeyConstant;

    const DRY: bool = C::DRY;

    #[inline(always)]
    fn find_endpoint(&self, hash: EndpointHash) -> u32 {
        let line = hash.line(maps::ENDPOINT_LINES.load());
        let Some(line) = maps::ENDPOINTS.get_ptr(line) else { return 0 };
        let words: *const u64 = <*const EndpointLine>::cast(line);
        // SAFETY: the map's value has as many words; the reads are one instruction each.
        let word = |way: usize| EndpointWord(unsafe { read_volatile(words.add(way)) });
        let fingerprint = hash.fingerprint();
        let likely = word(within(hash.way()));
        if likely.fingerprint() == fingerprint {
            return likely.id();
        }
        // Whatever way it is, what follows is the same to the verifier: a number.
        for way in 0..ENDPOINT_WAYS {
            let word = word(way);
            if word.fingerprint() == fingerprint {
                return word.id();
            }
        }
        0
    }

    #[inline(always)]
    fn features(&self) -> Features {
        // SAFETY: a pointer to a map's value; the read is one instruction.
        maps::SETTINGS.get_ptr(0).map_or(Features(0), |s| unsafe { read_volatile(&raw const (*s).features) })
    }

    #[inline(always)]
    fn route_epoch(&self) -> u32 {
        // SAFETY: as above.
        maps::SETTINGS.get_ptr(0).map_or(0, |s| unsafe { read_volatile(&raw const (*s).route_epoch) })
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        maps::SETTINGS.get(0)
    }

    #[inline(always)]
    fn listener(&self, id: u32) -> Option<&Listener> {
        maps::LISTENERS.get(id)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        maps::BACKENDS.get(id)
    }

    #[inline(always)]
    fn table_slot(&self, index: u32) -> Option<u32> {
        table_slot(index)
    }

    #[inline(always)]
    fn next_candidate(&self, table: TableRef, slot: u32, current: u32) -> u32 {
        matapa_next(table.offset(), table.size(), slot, current)
    }

    #[inline(always)]
    fn less_loaded(&self, table: TableRef, start: u32, best: u32, from: u32) -> u32 {
        matapa_less(table.offset(), table.size(), start, best, from)
    }

    #[inline(always)]
    fn room_among(&self, table: TableRef, start: u32, from: u32) -> u32 {
        matapa_room(table.offset(), table.size(), start, from)
    }

    #[inline(always)]
    fn choose(&self, _work: &mut Work) -> u32 {
        matapa_choose()
    }

    #[inline(always)]
    fn commit(&self, _work: &mut Work) -> u32 {
        matapa_commit()
    }

    #[inline(always)]
    fn record_reverse(&self, _work: &mut Work) -> u32 {
        if C::DRY { matapa_dry_record_reverse() } else { matapa_record_reverse() }
    }

    #[inline(always)]
    fn attempt_reverse(&self, _work: &mut Work, port: u32, index: u32, first: bool) -> u32 {
        if C::DRY {
            matapa_dry_attempt_reverse(port, index, u32::from(first))
        } else {
            matapa_attempt_reverse(port, index)
        }
    }

    #[inline(always)]
    fn forget_reverse(&self, place: u32) {
        matapa_forget_reverse(place);
    }

    #[inline(always)]
    fn hash_key(&self) -> &maps::HashKeyConstant {
        &maps::HashKeyConstant
    }

    #[inline(always)]
    fn flow_lines(&self) -> u32 {
        maps::FLOW_LINES.load()
    }

    #[inline(always)]
    fn flow_line(&self, line: u32) -> Option<KernelLine> {
        line_at(line)
    }

    #[inline(always)]
    fn record_tuple(&self, index: u32, tuple: &FlowTuple) {
        if is_dry() {
            return;
        }
        if let Some(place) = maps::FLOW_TUPLES.get_ptr_mut(index) {
            // SAFETY: a pointer to a map's value. Whoever reads it compares its hash with the flow's.
            unsafe { *place = *tuple };
        }
    }

    #[inline(always)]
    fn tuple(&self, index: u32) -> Option<FlowTuple> {
        maps::FLOW_TUPLES.get(index).copied()
    }

    #[inline(always)]
    fn add_live(&self, backend: u32, by: i64) {
        if is_dry() {
            return;
        }
        if let Some(count) = maps::LIVE.get_ptr_mut(backend) {
            // SAFETY: an aligned word of a map's value.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, by as u64) };
        }
    }

    #[inline(always)]
    fn live(&self, backend: u32) -> Live {
        // SAFETY: as above; the read is one instruction.
        Live(maps::LIVE.get_ptr(backend).map_or(0, |count| unsafe { read_volatile(count) }))
    }

    #[inline(always)]
    fn admit(&self, listener: u32, limit: u32) -> bool {
        let Some(place) = maps::FLOOD.get_ptr_mut(listener) else { return true };
        // SAFETY: this CPU's own value, and XDP programs do not interrupt each other on a CPU.
        let place = unsafe { &mut *place };
        let now = u32::from(self.now());
        if is_dry() {
            return place[0] != now || place[1] < limit;
        }
        if place[0] != now {
            *place = [now, 0];
        }
        if place[1] >= limit {
            return false;
        }
        place[1] += 1;
        true
    }

    #[inline(always)]
    fn sticky(&self, key: &StickyKey) -> Option<Sticky> {
        // SAFETY: eight bytes, copied out at once.
        unsafe { maps::STICKY.get(key) }.copied()
    }

    #[inline(always)]
    fn stick(&self, key: &StickyKey, value: &Sticky) {
        if !is_dry() {
            // A table without room forgets the oldest; failing that, the client is not remembered.
            let _ = maps::STICKY.insert(key, value, 0);
        }
    }

    #[inline(always)]
    fn sibling(&self, key: &SiblingKey) -> Option<u32> {
        // SAFETY: four aligned bytes, copied out at once.
        unsafe { maps::SIBLINGS.get(key) }.copied()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: copied out at once; a recycled entry would be another datagram's for one packet.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, value: &Fragment) {
        if !is_dry() {
            // As in `stick`.
            let _ = maps::FRAGMENTS.insert(key, value, 0);
        }
    }

    #[inline(always)]
    fn snat_address(&self, index: u32) -> Option<&[u8; 16]> {
        maps::SNAT_ADDRESSES.get(index)
    }

    #[inline(always)]
    fn now(&self) -> u16 {
        // SAFETY: a helper call without arguments.
        (unsafe { bpf_jiffies64() } >> (maps::TICK_SHIFT.load() & 31)) as u16
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress()
    }

    #[inline(always)]
    fn port(&self, ifindex: u32) -> Option<&Port> {
        maps::PORTS.get(ifindex % abi::PORTS).filter(|port| port.ifindex == ifindex)
    }

    #[inline(always)]
    fn vlan(&self, key: &VlanKey) -> u32 {
        // SAFETY: four aligned bytes, copied out at once.
        unsafe { maps::VLANS.get(key) }.copied().unwrap_or(0)
    }

    #[inline(always)]
    fn backend_hop(&self, id: u32) -> Option<&Cell<NextHop>> {
        // SAFETY: this CPU's own value; a cell is what it holds, and nobody else has a reference to it.
        maps::BACKEND_HOPS.get_ptr_mut(id).map(|hop| unsafe { &*hop.cast::<Cell<NextHop>>() })
    }

    #[inline(always)]
    fn client_hop(&self, index: u32) -> Option<&Cell<ClientHop>> {
        // SAFETY: as above.
        maps::CLIENT_HOPS.get_ptr_mut(index).map(|hop| unsafe { &*hop.cast::<Cell<ClientHop>>() })
    }

    #[inline(always)]
    fn is_abandoned(&self) -> bool {
        // SAFETY: the element is there as long as the program, and the daemon writes the word in one piece.
        let until = maps::CONTROL
            .get_ptr(0)
            .map_or(0, |control| unsafe { read_volatile(&raw const (*control).forward_until) });
        // SAFETY: a helper call without arguments.
        until != 0 && unsafe { bpf_ktime_get_ns() } > until
    }

    #[inline(always)]
    fn route(&self, query: &Query) -> Route {
        self.0.route(query)
    }

    #[inline(always)]
    fn hold(&self) -> bool {
        if is_dry() { self.0.fits() } else { self.0.hold() }
    }

    #[inline(always)]
    fn turn(&self, listener: u32) -> u32 {
        match maps::TURNS.get_ptr_mut(listener) {
            // SAFETY: this CPU's own value, and XDP programs do not interrupt each other on a CPU.
            Some(turn) => unsafe {
                let next = (*turn).wrapping_add(1);
                if !is_dry() {
                    *turn = next;
                }
                next
            },
            None => 0,
        }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper call without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if is_dry() {
            return;
        }
        if let Some(counter) = maps::COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own value, and XDP programs do not interrupt each other on a CPU.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_to_backend(&self, id: u32, bytes: u32) {
        if is_dry() {
            return;
        }
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(id) {
            // SAFETY: as in `count`.
            unsafe {
                (*stats).to_packets += 1;
                (*stats).to_bytes += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_from_backend(&self, id: u32, bytes: u32) {
        if is_dry() {
            return;
        }
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(id) {
            // SAFETY: as in `count`.
            unsafe {
                (*stats).from_packets += 1;
                (*stats).from_bytes += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn count_moved_away(&self, id: u32) {
        if is_dry() {
            return;
        }
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(id) {
            // SAFETY: as in `count`.
            unsafe { (*stats).moved_away += 1 };
        }
    }

    #[inline(always)]
    fn has_short_way(&self) -> bool {
        maps::TRACE.load() == 0
    }

    #[inline(always)]
    fn trace(&self, step: Step, first: u32, second: u32) {
        if maps::TRACE.load() != 0 {
            trace::note(step, first, second);
        }
    }
}

/// An address in a map's 16 bytes as the helper takes it: words in network byte order.
#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    let word = |i: usize| u32::from_ne_bytes([addr[i], addr[i + 1], addr[i + 2], addr[i + 3]]);
    [word(0), word(4), word(8), word(12)]
}
