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
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Be16;
use lb_common::packet::Packet;
use lb_common::packet::checksum::{Sum, updated};
use lb_common::packet::eth::{self, EtherType, Macs};
use lb_common::packet::ip4::{self, Ipv4};

use frame::Frame;
use layout::{BUCKETS, Counted, FRAME, PORT, Sent, Source, bucket, sink};

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

const UDP: u8 = 17;
/// IPv4 in IPv4 (RFC 2003).
const TUNNEL: u8 = 4;
const UDP_AT: usize = eth::LEN + ip4::LEN;
const CHECKSUM_AT: usize = UDP_AT + 6;
/// In the payload, on an even offset.
const TIME_AT: usize = UDP_AT + 8 + 2;
/// As many packets are sent at once, at most, when the sender comes late.
const BURST: u64 = 16;

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
        if now < due {
            return Some(XDP_DROP);
        }
        let next = due + source.interval;
        let earliest = now.saturating_sub(source.interval * BURST);
        // SAFETY: as above.
        unsafe { (*sent).due = if next < earliest { earliest } else { next } };
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

/// Unwraps what comes out of a tunnel, counts what is for it, and lets all else pass.
#[xdp(frags)]
pub fn receiver(ctx: XdpContext) -> u32 {
    try_receive(&ctx).unwrap_or(XDP_PASS)
}

#[inline(always)]
fn try_receive(ctx: &XdpContext) -> Option<u32> {
    let counted = COUNTED.get_ptr_mut(0)?;
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
    if *SINK.get(0)? == sink::DROP {
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
