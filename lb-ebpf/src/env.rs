//! `lb_common::env::Env` over maps and helpers.

use core::arch::asm;
use core::intrinsics::{AtomicOrdering, atomic_cxchg};
use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_get_prandom_u32, bpf_jiffies64};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::flow::{FlowLine, FlowTuple, FlowWord, WAYS};
use lb_common::abi::net::{Be16, Protocol};
use lb_common::abi::{self, Backend, Endpoint4, Endpoint6, Listener, Side, TableRef};
use lb_common::env::{Env, Line, Reach, Route, Step};
use lb_common::flow;
use lb_common::hash::Key;
use lb_common::maglev;
use lb_common::packet::eth::Macs;
use lb_common::packet::ip4::Ipv4;
use lb_common::packet::ip6::Ipv6;
use lb_common::verdict::Reason;

use crate::{maps, trace};

/// Linux's numbers of the address families.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

pub struct Kernel<'c>(pub &'c XdpContext);

/// A line of `FLOWS`. Never null: made from a lookup that found it.
#[derive(Clone, Copy)]
pub struct KernelLine {
    words: *mut u64,
    index: u32,
}

/// `flow::find` as a global function: verified once, for any line, instead of in each of its callers.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_find(line: u32, fingerprint: u32) -> u32 {
    match line_at(line) {
        Some(line) => flow::find(line, fingerprint) as u32,
        None => WAYS as u32,
    }
}

/// `flow::victim` likewise. `now` has 16 bits.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_victim(line: u32, now: u32) -> u32 {
    match line_at(line) {
        Some(line) => flow::victim(line, now as u16) as u32,
        None => 0,
    }
}

/// `maglev::next` likewise, on the table at `offset`.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_next(offset: u32, size: u32, slot: u32, current: u32) -> u32 {
    maglev::next(|i| table_slot(offset.wrapping_add(i)), size, slot, current)
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
    const _: () = assert!(WAYS == 8);
    // SAFETY: one arithmetic instruction on one register.
    unsafe { asm!("{way} &= 7", way = inout(reg) way, options(pure, nomem, nostack)) };
    way
}

#[inline(always)]
fn line_at(index: u32) -> Option<KernelLine> {
    maps::FLOWS.get_ptr_mut(index).map(|line: *mut FlowLine| KernelLine { words: line.cast(), index })
}

impl Line for KernelLine {
    #[inline(always)]
    fn load(&self, way: usize) -> FlowWord {
        // SAFETY: the map's value has WAYS words; the read is one instruction.
        FlowWord(unsafe { read_volatile(self.words.add(within(way))) })
    }

    #[inline(always)]
    fn replace(&self, way: usize, old: FlowWord, new: FlowWord) -> bool {
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
    fn find(&self, fingerprint: u32) -> usize {
        matapa_find(self.index, fingerprint) as usize
    }

    #[inline(always)]
    fn victim(&self, now: u16) -> usize {
        matapa_victim(self.index, u32::from(now)) as usize
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

impl Kernel<'_> {
    /// Asks the kernel's routing table and neighbours (bpf-helpers(7)).
    #[inline(always)]
    fn lookup(&self, ask: impl FnOnce(&mut bpf_fib_lookup)) -> Route {
        let Some(params) = maps::ROUTE_QUERY.get_ptr_mut(0) else {
            return Route::none(Reach::Unsupported);
        };
        // SAFETY: this CPU's own value; XDP programs do not interrupt each other on a CPU.
        let params = unsafe { &mut *params };
        params.ifindex = self.ingress();
        params.sport = 0;
        params.dport = 0;
        ask(params);
        // SAFETY: the context is this program's; `params` is as long as said.
        let found = unsafe { fib_lookup(self.0.ctx.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
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
        let macs = Macs { destination: params.dmac, source: params.smac };
        Route { reach, ifindex: params.ifindex, macs }
    }
}

impl Env for Kernel<'_> {
    type Line = KernelLine;
    type Key = maps::HashKeyConstant;

    #[inline(always)]
    fn endpoint4(&self, side: Side, addr: &[u8; 4], port: Be16, protocol: Protocol) -> Option<u32> {
        let key = Endpoint4::new(side, *addr, port, protocol);
        // SAFETY: the value is four aligned bytes, copied out at once.
        unsafe { maps::ENDPOINTS4.get(key) }.copied()
    }

    #[inline(always)]
    fn endpoint6(&self, side: Side, addr: &[u8; 16], port: Be16, protocol: Protocol) -> Option<u32> {
        let key = Endpoint6::new(side, *addr, port, protocol);
        // SAFETY: as above.
        unsafe { maps::ENDPOINTS6.get(key) }.copied()
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
        if let Some(place) = maps::FLOW_TUPLES.get_ptr_mut(index) {
            // SAFETY: a pointer to a map's value. Whoever reads it compares its hash with the flow's.
            unsafe { *place = *tuple };
        }
    }

    #[inline(always)]
    fn now(&self) -> u16 {
        // SAFETY: a helper call without arguments.
        (unsafe { bpf_jiffies64() } >> (maps::TICK_SHIFT.load() & 31)) as u16
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn is_port(&self, ifindex: u32) -> bool {
        maps::PORTS.get(ifindex % abi::PORTS) == Some(&ifindex)
    }

    #[inline(always)]
    fn route4(&self, ip: &Ipv4, protocol: Protocol) -> Route {
        self.lookup(|params| {
            params.family = AF_INET;
            params.l4_protocol = protocol.number();
            params.__bindgen_anon_1.tot_len = ip.total_len.get();
            params.__bindgen_anon_2.tos = ip.tos;
            params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(ip.source);
            params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(ip.destination);
        })
    }

    #[inline(always)]
    fn route6(&self, ip: &Ipv6, protocol: Protocol) -> Route {
        self.lookup(|params| {
            params.family = AF_INET6;
            params.l4_protocol = protocol.number();
            params.__bindgen_anon_1.tot_len = ip.payload_len.get().saturating_add(40);
            params.__bindgen_anon_2.flowinfo = u32::from_ne_bytes(ip.flow_info());
            params.__bindgen_anon_3.ipv6_src = words(&ip.source);
            params.__bindgen_anon_4.ipv6_dst = words(&ip.destination);
        })
    }

    #[inline(always)]
    fn turn(&self, listener: u32) -> u32 {
        match maps::TURNS.get_ptr_mut(listener) {
            // SAFETY: this CPU's own value, and XDP programs do not interrupt each other on a CPU.
            Some(turn) => unsafe {
                *turn = (*turn).wrapping_add(1);
                *turn
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
        if let Some(counter) = maps::COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's own value, and XDP programs do not interrupt each other on a CPU.
            unsafe { *counter += 1 };
        }
    }

    #[inline(always)]
    fn count_to_backend(&self, id: u32, bytes: u32) {
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
        if let Some(stats) = maps::BACKEND_STATS.get_ptr_mut(id) {
            // SAFETY: as in `count`.
            unsafe { (*stats).moved_away += 1 };
        }
    }

    #[inline(always)]
    fn trace(&self, step: Step, first: u32, second: u32) {
        if maps::TRACE.load() != 0 {
            trace::note(step, first, second);
        }
    }
}

/// An IPv6 address as the helper takes it: four words in network byte order.
#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    bytemuck::must_cast(*addr)
}
