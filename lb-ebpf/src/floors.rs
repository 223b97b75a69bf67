//! What `cargo xtask bench datapath` measures the packet path against: a wrapper that makes each frame anew, and
//! programs that do one thing each. Never part of the product.
//!
//! The kernel's test runner hands the same frame to each repeat, as the last one left it. So the wrapper runs first:
//! it restores length and bytes from a template, writes the next flow's address and ports over them, and calls on to
//! the program under test. In front of a program that only returns, it is the floor that everything else is compared
//! with.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "volatile writes to any address exist as an intrinsic only")]
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

mod frame;
#[path = "../../lb-bench/src/layout.rs"]
#[expect(dead_code, reason = "some of it is for the bench")]
mod layout;

use core::ptr::read_volatile;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_REDIRECT, XDP_TX};
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_head,
    bpf_xdp_adjust_tail,
};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::flow::{FlowLine, FlowState, FlowWord, WAYS};
use lb_common::abi::{Be16, Protocol, Side};
use lb_common::hash::{self, FlowHash, HashKey};
use lb_common::packet::Packet;
use lb_common::packet::eth::{self, EtherType, Macs};
use lb_common::packet::ip4::{self, Ipv4};
use lb_common::packet::ip6::{self, Ipv6};

use frame::Frame;
use layout::{FRAME, Run, Setup};

#[path = "../../lb-bench/src/endpoint.rs"]
mod endpoint;

use endpoint::{Endpoint4, Endpoint6};

#[map]
static SETUP: Array<Setup> = Array::with_max_entries(1, 0);
#[map]
static RUN: Array<Run> = Array::with_max_entries(1, 0);
/// The program under test.
#[map]
static TARGETS: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[map]
static FLOOR_HASH: HashMap<Endpoint4, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
static FLOOR_HASH6: HashMap<Endpoint6, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
static FLOOR_LRU: LruHashMap<[u32; 4], u64> = LruHashMap::with_max_entries(1 << 17, 0);
/// Apart from the one that is only read, so that its evictions do not disturb that.
#[map]
static FLOOR_LRU_INSERT: LruHashMap<[u32; 4], u64> = LruHashMap::with_max_entries(1 << 17, 0);
#[map]
static FLOOR_LINES: Array<FlowLine> = Array::with_max_entries(1 << 10, 0);
#[map]
static FLOOR_COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(64, 0);
#[map]
static FLOOR_QUERY: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(1, 0);

/// Any numbers do.
const KEY: HashKey = HashKey {
    words: [
        0x9e37_79b9,
        0x7f4a_7c15,
        0xf39c_c060,
        0x5ced_c834,
        0x1082_276b,
        0xf3a2_7251,
        0xf86c_6a11,
        0xd0c1_8e95,
        0x2767_f0b1,
        0x53d2_7ad3,
    ],
    seed: 0x0123_4567_89ab_cdef,
};

/// Makes the next frame and calls the program under test.
#[xdp(frags)]
pub fn wrapper(ctx: XdpContext) -> u32 {
    if next(&ctx).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { TARGETS.tail_call(&ctx, 0) };
    }
    failed()
}

#[inline(always)]
fn next(ctx: &XdpContext) -> Option<()> {
    let setup = SETUP.get(0)?;
    let run = RUN.get_ptr_mut(0)?;
    // SAFETY: a pointer to a map's value; one CPU runs this.
    let sequence = unsafe { (*run).sequence };
    // SAFETY: likewise.
    unsafe { (*run).sequence = sequence + 1 };
    let flow = (sequence as u32).wrapping_mul(setup.stride) & setup.mask;

    // What is longer has had a header put in front of it, and what is shorter its end cut off, or its VLAN tag.
    let longer = (ctx.data_end() - ctx.data()) as i32 - FRAME as i32;
    if longer > 0 || longer < 0 && longer == -(setup.taken as i32) {
        // SAFETY: the context is this program's; no packet pointer outlives the call.
        unsafe { bpf_xdp_adjust_head(ctx.ctx, longer) };
    } else if longer < 0 {
        // SAFETY: likewise.
        unsafe { bpf_xdp_adjust_tail(ctx.ctx, -longer) };
    }
    let mut frame = Frame(ctx);
    // A word at a time: copied as a whole it would be a call that copies bytes.
    let words: &[u64; FRAME / 8] = &setup.frame;
    for (i, word) in words.iter().enumerate() {
        frame.write(i * 8, word)?;
    }
    let address = setup.address.wrapping_add(flow >> 14);
    frame.write((setup.address_at & 0x7f) as usize, &address.to_be_bytes())?;
    let port = setup.port.wrapping_add(flow & 0x3fff) as u16;
    frame.write((setup.port_at & 0x7f) as usize, &port.to_be_bytes())?;
    let service = setup.service.wrapping_add(flow & setup.service_mask) as u16;
    frame.write((setup.service_at & 0x7f) as usize, &service.to_be_bytes())
}

/// Counted: the bench refuses a row in which this happened.
#[inline(always)]
fn failed() -> u32 {
    if let Some(run) = RUN.get_ptr_mut(0) {
        // SAFETY: a pointer to a map's value; one CPU runs this.
        unsafe { (*run).failed += 1 };
    }
    XDP_ABORTED
}

#[inline(always)]
fn tx_if(found: Option<()>) -> u32 {
    match found {
        Some(()) => XDP_TX,
        None => failed(),
    }
}

/// What a program must read before it can look anything up.
#[derive(Clone, Copy)]
struct Headers {
    ip: Ipv4,
    ports: [Be16; 2],
}

#[inline(always)]
fn parse(ctx: &XdpContext) -> Option<Headers> {
    let frame = Frame(ctx);
    let ether_type = EtherType(frame.read(eth::TYPE_AT)?);
    if ether_type != EtherType::IPV4 {
        return None;
    }
    let ip: Ipv4 = frame.read(eth::LEN)?;
    if ip.version() != 4
        || ip.header_len() != ip4::LEN
        || ip.is_fragment()
        || ip.protocol != Protocol::Tcp as u8
    {
        return None;
    }
    Some(Headers { ip, ports: frame.read(eth::LEN + ip4::LEN)? })
}

impl Headers {
    #[inline(always)]
    fn destination(&self) -> Endpoint4 {
        Endpoint4::new(Side::Vip, self.ip.destination, self.ports[1], Protocol::Tcp)
    }

    #[inline(always)]
    fn source(&self) -> Endpoint4 {
        Endpoint4::new(Side::Backend, self.ip.source, self.ports[0], Protocol::Tcp)
    }

    #[inline(always)]
    fn tuple(&self) -> [u32; 4] {
        let ports = hash::ports(self.ports[0].get(), self.ports[1].get());
        [
            u32::from_ne_bytes(self.ip.source),
            u32::from_ne_bytes(self.ip.destination),
            ports,
            Protocol::Tcp as u32,
        ]
    }

    #[inline(always)]
    fn hash(&self) -> FlowHash {
        let ports = hash::ports(self.ports[0].get(), self.ports[1].get());
        hash::flow4(&KEY, &self.ip.source, &self.ip.destination, ports, Protocol::Tcp as u8)
    }
}

#[inline(always)]
fn in_hash(key: Endpoint4) -> Option<()> {
    // SAFETY: the value is not read.
    unsafe { FLOOR_HASH.get(key) }.map(|_| ())
}

#[inline(always)]
fn in_lru(key: [u32; 4]) -> Option<()> {
    // SAFETY: the value is not read.
    unsafe { FLOOR_LRU.get(key) }.map(|_| ())
}

/// Puts the frame's flow and service where the floors look for them.
#[xdp(frags)]
pub fn fill(ctx: XdpContext) -> u32 {
    tx_if(try_fill(&ctx))
}

#[inline(always)]
fn try_fill(ctx: &XdpContext) -> Option<()> {
    let frame = Frame(ctx);
    if frame.read::<Be16>(eth::TYPE_AT).map(EtherType)? == EtherType::IPV6 {
        let key = endpoint6(&frame)?;
        return FLOOR_HASH6.insert(key, 1, 0).ok();
    }
    let headers = parse(ctx)?;
    FLOOR_HASH.insert(headers.destination(), 1, 0).ok()?;
    FLOOR_LRU.insert(headers.tuple(), 1, 0).ok()?;
    FLOOR_LRU_INSERT.insert(headers.tuple(), 1, 0).ok()?;
    let hash = headers.hash();
    let line: *mut FlowLine = FLOOR_LINES.get_ptr_mut(hash.line(SETUP.get(0)?.lines))?;
    let word = FlowWord::new(hash.fingerprint(), 1, FlowState::Established, 0);
    for way in 0..WAYS {
        // SAFETY: the map's value has WAYS words.
        let place = unsafe { line.cast::<u64>().add(way) };
        // SAFETY: as above; one CPU runs this.
        if unsafe { read_volatile(place) } == 0 {
            // SAFETY: as above.
            unsafe { place.write_volatile(word.0) };
            break;
        }
    }
    Some(())
}

#[xdp(frags)]
pub fn floor_tx(_ctx: XdpContext) -> u32 {
    XDP_TX
}

#[xdp(frags)]
pub fn floor_swap(ctx: XdpContext) -> u32 {
    tx_if(try_swap(&ctx))
}

#[inline(always)]
fn try_swap(ctx: &XdpContext) -> Option<()> {
    let mut frame = Frame(ctx);
    let macs: Macs = frame.read(0)?;
    frame.write(0, &Macs { destination: macs.source, source: macs.destination })
}

#[xdp(frags)]
pub fn floor_parse(ctx: XdpContext) -> u32 {
    match parse(&ctx) {
        Some(headers) if headers.ports[1].get() != 0 && headers.ip.destination != [0; 4] => XDP_TX,
        _ => failed(),
    }
}

#[xdp(frags)]
pub fn floor_hash8(ctx: XdpContext) -> u32 {
    tx_if(parse(&ctx).and_then(|headers| in_hash(headers.destination())))
}

/// A lookup that finds nothing, then one that does: what the way back does.
#[xdp(frags)]
pub fn floor_hash8_twice(ctx: XdpContext) -> u32 {
    let Some(headers) = parse(&ctx) else { return failed() };
    match in_hash(headers.source()) {
        None => tx_if(in_hash(headers.destination())),
        Some(()) => failed(),
    }
}

#[inline(always)]
fn endpoint6(frame: &Frame<'_>) -> Option<Endpoint6> {
    let ip: Ipv6 = frame.read(eth::LEN)?;
    let ports: [Be16; 2] = frame.read(eth::LEN + ip6::LEN)?;
    Some(Endpoint6::new(Side::Vip, ip.destination, ports[1], Protocol::Tcp))
}

#[xdp(frags)]
pub fn floor_hash20(ctx: XdpContext) -> u32 {
    let Some(key) = endpoint6(&Frame(&ctx)) else { return failed() };
    // SAFETY: the value is not read.
    tx_if(unsafe { FLOOR_HASH6.get(key) }.map(|_| ()))
}

#[xdp(frags)]
pub fn floor_lru16(ctx: XdpContext) -> u32 {
    tx_if(parse(&ctx).and_then(|headers| in_lru(headers.tuple())))
}

#[xdp(frags)]
pub fn floor_hash8_lru16(ctx: XdpContext) -> u32 {
    tx_if(try_hash8_lru16(&ctx))
}

#[inline(always)]
fn try_hash8_lru16(ctx: &XdpContext) -> Option<()> {
    let headers = parse(ctx)?;
    in_hash(headers.destination())?;
    in_lru(headers.tuple())
}

#[xdp(frags)]
pub fn floor_lru_insert(ctx: XdpContext) -> u32 {
    tx_if(parse(&ctx).and_then(|headers| FLOOR_LRU_INSERT.insert(headers.tuple(), 1, 0).ok()))
}

/// The flow's keyed hash, its line in an array, and the way that has its fingerprint.
#[xdp(frags)]
pub fn floor_line(ctx: XdpContext) -> u32 {
    tx_if(try_line(&ctx))
}

#[inline(always)]
fn try_line(ctx: &XdpContext) -> Option<()> {
    let hash = parse(ctx)?.hash();
    let line: *mut FlowLine = FLOOR_LINES.get_ptr_mut(hash.line(SETUP.get(0)?.lines))?;
    for way in 0..WAYS {
        // SAFETY: the map's value has WAYS words; the read is one instruction.
        let word = FlowWord(unsafe { read_volatile(line.cast::<u64>().add(way)) });
        if word.fingerprint() == hash.fingerprint() && !word.is_free() {
            return Some(());
        }
    }
    None
}

/// Two per-CPU counters, one of them of packets and bytes, as each forwarded packet has them.
#[xdp(frags)]
pub fn floor_counters(ctx: XdpContext) -> u32 {
    tx_if(try_counters(&ctx))
}

#[inline(always)]
fn try_counters(ctx: &XdpContext) -> Option<()> {
    let headers = parse(ctx)?;
    let first = FLOOR_COUNTERS.get_ptr_mut(u32::from(headers.ports[1].get()) & 31)?;
    // SAFETY: this CPU's own value.
    unsafe { (*first)[0] += 1 };
    let second = FLOOR_COUNTERS.get_ptr_mut(32 + (u32::from(headers.ip.ttl) & 31))?;
    // SAFETY: this CPU's own value.
    unsafe {
        (*second)[0] += 1;
        (*second)[1] += u64::from(headers.ip.total_len.get());
    }
    Some(())
}

#[xdp(frags)]
pub fn floor_jiffies(_ctx: XdpContext) -> u32 {
    // SAFETY: a helper call without arguments.
    if unsafe { bpf_jiffies64() } == 0 { failed() } else { XDP_TX }
}

#[xdp(frags)]
pub fn floor_ktime(_ctx: XdpContext) -> u32 {
    // SAFETY: a helper call without arguments.
    if unsafe { bpf_ktime_get_ns() } == 0 { failed() } else { XDP_TX }
}

#[xdp(frags)]
pub fn floor_redirect(ctx: XdpContext) -> u32 {
    // SAFETY: a helper call without pointers.
    match unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) } as u32 {
        XDP_REDIRECT => XDP_REDIRECT,
        _ => failed(),
    }
}

/// Cuts the frame as an answered RST does; the wrapper makes it whole again.
#[xdp(frags)]
pub fn floor_truncate(ctx: XdpContext) -> u32 {
    // SAFETY: the context is this program's; no packet pointer outlives the call.
    match unsafe { bpf_xdp_adjust_tail(ctx.ctx, 54 - FRAME as i32) } {
        0 => XDP_TX,
        _ => failed(),
    }
}

/// Puts a header in front of the frame; the wrapper takes it off again.
#[xdp(frags)]
pub fn floor_prepend(ctx: XdpContext) -> u32 {
    // SAFETY: the context is this program's; no packet pointer outlives the call.
    match unsafe { bpf_xdp_adjust_head(ctx.ctx, -20) } {
        0 => XDP_TX,
        _ => failed(),
    }
}

#[inline(always)]
fn found(ctx: &XdpContext, ask: impl FnOnce(&Frame<'_>, &mut bpf_fib_lookup) -> Option<()>) -> Option<()> {
    let params = FLOOR_QUERY.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value.
    let params = unsafe { &mut *params };
    params.ifindex = ctx.ingress_ifindex() as u32;
    params.sport = 0;
    params.dport = 0;
    ask(&Frame(ctx), params)?;
    // SAFETY: the context is this program's; `params` is as long as said.
    let found = unsafe { fib_lookup(ctx.ctx.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
    (found as u32 == BPF_FIB_LKUP_RET_SUCCESS).then_some(())
}

/// The way to the frame's destination.
#[xdp(frags)]
pub fn floor_fib4(ctx: XdpContext) -> u32 {
    tx_if(found(&ctx, |frame, params| {
        let ip: Ipv4 = frame.read(eth::LEN)?;
        params.family = 2;
        params.l4_protocol = ip.protocol;
        params.__bindgen_anon_1.tot_len = ip.total_len.get();
        params.__bindgen_anon_2.tos = ip.tos;
        params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(ip.source);
        params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(ip.destination);
        Some(())
    }))
}

#[xdp(frags)]
pub fn floor_fib6(ctx: XdpContext) -> u32 {
    tx_if(found(&ctx, |frame, params| {
        let ip: Ipv6 = frame.read(eth::LEN)?;
        params.family = 10;
        params.l4_protocol = ip.next_header;
        params.__bindgen_anon_1.tot_len = ip.payload_len.get().saturating_add(40);
        params.__bindgen_anon_2.flowinfo = u32::from_ne_bytes(ip.flow_info());
        params.__bindgen_anon_3.ipv6_src = bytemuck::must_cast(ip.source);
        params.__bindgen_anon_4.ipv6_dst = bytemuck::must_cast(ip.destination);
        Some(())
    }))
}

/// Never linked into an object that loads: the build refuses one that contains it.
#[panic_handler]
#[inline(never)]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
