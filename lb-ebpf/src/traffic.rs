//! What sends and counts packets for `cargo xtask bench peers`: at a client, and at servers. Never part of the product.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "volatile writes to any address exist as an intrinsic only")]
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

mod frame;
#[path = "../../lb-bench/src/peers/layout.rs"]
#[expect(dead_code, reason = "some of it is for the bench")]
mod layout;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Be16;
use lb_common::packet::Packet;
use lb_common::packet::checksum::{Sum, updated};
use lb_common::packet::eth::{self, EtherType, Macs};
use lb_common::packet::ip4::{self, Ipv4};

use frame::Frame;
use layout::{BUCKETS, BURST, Counted, FRAME, PORT, Sent, Source, bucket, sink};

#[map]
static SOURCE: Array<Source> = Array::with_max_entries(1, 0);
#[map]
static SENT: Array<Sent> = Array::with_max_entries(1, 0);
#[map]
static SINK: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static COUNTED: PerCpuArray<Counted> = PerCpuArray::with_max_entries(1, 0);
#[map]
static LATENCIES: PerCpuArray<u64> = PerCpuArray::with_max_entries(BUCKETS, 0);
#[map]
static ROUTE: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(1, 0);

const UDP: u8 = 17;
/// IPv4 in IPv4 (RFC 2003).
const TUNNEL: u8 = 4;
const UDP_AT: usize = eth::LEN + ip4::LEN;
const CHECKSUM_AT: usize = UDP_AT + 6;
/// In the payload, on an even offset.
const TIME_AT: usize = UDP_AT + 8 + 2;

/// Sends the next packet, or nothing when none is due. The frames of a live run keep what was written into them, so all
/// of it is written anew.
#[xdp(frags)]
pub fn source(ctx: XdpContext) -> u32 {
    try_source(&ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn try_source(ctx: &XdpContext) -> Option<u32> {
    let source = SOURCE.get(0)?;
    let sent = SENT.get_ptr_mut(0)?;
    // SAFETY: a pointer to a map's value; one CPU runs this.
    let Sent { packets, due } = unsafe { *sent };
    let mut now = 0;
    if source.interval != 0 {
        // SAFETY: a helper call without arguments.
        now = unsafe { bpf_ktime_get_ns() };
        if packets % BURST == 0 {
            if now < due {
                return Some(XDP_DROP);
            }
            // One that is late is made up for by one burst, not by all that were missed.
            let burst = source.interval * BURST;
            let (next, earliest) = (due + burst, now.saturating_sub(burst));
            // SAFETY: as above.
            unsafe { (*sent).due = if next < earliest { earliest } else { next } };
        }
    }
    let mut frame = Frame(ctx);
    let words: &[u64; 8] = &source.frame;
    for (i, word) in words.iter().enumerate().take(FRAME / 8) {
        frame.write(i * 8, word)?;
    }
    frame.write(FRAME - 4, &(words[7] as u32))?;
    let port = (source.port + (packets as u32 & source.mask)) as u16;
    frame.write(UDP_AT, &Be16::new(port))?;
    frame.write(TIME_AT, &now)?;
    // The template's is that of the first flow at the time 0.
    let mut sum = Sum::ZERO.sub16((source.port as u16).to_be_bytes()).add16(port.to_be_bytes());
    let time = now.to_ne_bytes();
    sum = sum.add16([time[0], time[1]]).add16([time[2], time[3]]);
    sum = sum.add16([time[4], time[5]]).add16([time[6], time[7]]);
    let checksum: [u8; 2] = frame.read(CHECKSUM_AT)?;
    frame.write(CHECKSUM_AT, &updated(checksum, sum))?;
    // SAFETY: as above.
    unsafe { (*sent).packets = packets + 1 };
    Some(XDP_TX)
}

/// A router and nothing else: the least that forwarding by XDP can be on these interfaces.
#[inline(always)]
fn route(ctx: &XdpContext) -> Option<u32> {
    let mut frame = Frame(ctx);
    if EtherType(frame.read(eth::TYPE_AT)?) != EtherType::IPV4 {
        return None;
    }
    let mut ip: Ipv4 = frame.read(eth::LEN)?;
    if ip.header_len() != ip4::LEN || ip.is_fragment() || ip.ttl <= 1 {
        return None;
    }
    let ports: [Be16; 2] = frame.read(UDP_AT)?;
    let params = ROUTE.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value.
    let params = unsafe { &mut *params };
    // AF_INET
    params.family = 2;
    params.l4_protocol = ip.protocol;
    params.sport = ports[0].get().to_be();
    params.dport = ports[1].get().to_be();
    params.ifindex = ctx.ingress_ifindex() as u32;
    params.__bindgen_anon_1.tot_len = ip.total_len.get();
    params.__bindgen_anon_2.tos = ip.tos;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(ip.source);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(ip.destination);
    // SAFETY: the context is this program's; `params` is as long as said.
    let found = unsafe { fib_lookup(ctx.ctx.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
    if found as u32 != BPF_FIB_LKUP_RET_SUCCESS {
        return None;
    }
    ip.decrement_ttl();
    frame.write(eth::LEN, &ip)?;
    frame.write(0, &Macs { destination: params.dmac, source: params.smac })?;
    // SAFETY: a helper call without pointers.
    Some(unsafe { bpf_redirect(params.ifindex, 0) } as u32)
}

/// Unwraps what comes out of a tunnel, counts what is for it, and lets all else pass.
#[xdp(frags)]
pub fn receiver(ctx: XdpContext) -> u32 {
    try_receive(&ctx).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn try_receive(ctx: &XdpContext) -> Option<u32> {
    let counted = COUNTED.get_ptr_mut(0)?;
    let mode = *SINK.get(0)?;
    if mode == sink::ROUTE {
        let verdict = route(ctx)?;
        // SAFETY: this CPU's own value.
        unsafe { (*counted).routed += 1 };
        return Some(verdict);
    }
    let mut frame = Frame(ctx);
    if EtherType(frame.read(eth::TYPE_AT)?) != EtherType::IPV4 {
        return None;
    }
    let mut ip: Ipv4 = frame.read(eth::LEN)?;
    if ip.protocol == TUNNEL && ip.header_len() == ip4::LEN {
        let macs: Macs = frame.read(0)?;
        frame.shrink(ip4::LEN)?;
        frame.write(0, &macs)?;
        frame.write(eth::TYPE_AT, &EtherType::IPV4.0)?;
        // SAFETY: this CPU's own value.
        unsafe { (*counted).unwrapped += 1 };
        ip = frame.read(eth::LEN)?;
    }
    if ip.protocol != UDP || ip.header_len() != ip4::LEN {
        return None;
    }
    let ports: [Be16; 2] = frame.read(UDP_AT)?;
    if ports[0].get() == PORT {
        // SAFETY: as above.
        unsafe { (*counted).answers += 1 };
        return Some(XDP_DROP);
    }
    if ports[1].get() != PORT {
        return None;
    }
    // SAFETY: as above.
    unsafe { (*counted).packets += 1 };
    let sent: u64 = frame.read(TIME_AT)?;
    if sent != 0 {
        // SAFETY: a helper call without arguments.
        let took = unsafe { bpf_ktime_get_ns() }.saturating_sub(sent);
        let latencies = LATENCIES.get_ptr_mut(bucket(took))?;
        // SAFETY: as above.
        unsafe { *latencies += 1 };
    }
    if mode == sink::DROP {
        return Some(XDP_DROP);
    }
    let macs: Macs = frame.read(0)?;
    frame.write(0, &macs.swapped())?;
    // Addresses and ports change places: the checksums stay.
    (ip.source, ip.destination) = (ip.destination, ip.source);
    frame.write(eth::LEN, &ip)?;
    frame.write(UDP_AT, &[ports[1], ports[0]])?;
    // What a virtual cable sends by XDP_TX waits until the other end polls; what it is handed from elsewhere does not.
    // SAFETY: a helper call without pointers.
    Some(unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) } as u32)
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
