//! Which packets are traced, by what they come in with.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use lb_common::abi::Be16;
use lb_common::abi::trace::{FILTERS, TraceEvent, TraceFilter};
use lb_common::packet::Packet as _;
use lb_common::packet::eth::{self, EtherType};
use lb_common::packet::ip6::next_header;

use crate::frame::{Frame, field};
use crate::maps;

/// IANA's numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Extension headers that are followed.
const MAX_HEADERS: usize = 6;
/// Transport headers begin before this, so that an offset has a bound that the verifier sees.
const MAX_L4: usize = 255;

/// Whether a filter fits; then the packet is noted as it is now.
#[inline(always)]
pub fn wants(ctx: &XdpContext) -> bool {
    let Some(event) = maps::TRACE_PACKET.get_ptr_mut(0) else { return false };
    let Some(noted) = maps::TRACE_STEPS.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own values; XDP programs do not interrupt each other on a CPU.
    let (event, noted) = unsafe { (&mut *event, &mut *noted) };
    read(ctx, event);
    if matapa_fits() == 0 {
        return false;
    }
    // SAFETY: helper calls, the second with this program's context.
    unsafe {
        event.time = bpf_ktime_get_ns();
        event.len = bpf_xdp_get_buff_len(ctx.ctx) as u32;
    }
    event.ingress = field::<12>(ctx) as u32;
    noted[0] = 0;
    true
}

/// What the filters go by.
#[inline(always)]
fn read(ctx: &XdpContext, event: &mut TraceEvent) {
    let frame = Frame(ctx);
    event.source = [0; 16];
    event.destination = [0; 16];
    event.source_port = Be16::new(0);
    event.destination_port = Be16::new(0);
    event.vlan = Be16::new(0);
    event.protocol = 0;
    event.flags = 0;
    event.fragment = 0;
    event.ether_type = Be16::new(0);
    let mut at = eth::TYPE_AT;
    let Some(mut ether_type) = frame.read::<Be16>(at) else { return };
    for tag in 0..2 {
        if !EtherType(ether_type).is_vlan() {
            break;
        }
        let Some([control, under]) = frame.read::<[Be16; 2]>(at + 2) else { return };
        if tag == 0 {
            event.vlan = control;
        }
        ether_type = under;
        at += 4;
    }
    event.ether_type = ether_type;
    at += 2;
    match EtherType(ether_type) {
        EtherType::IPV4 => read4(&frame, at, event),
        EtherType::IPV6 => read6(&frame, at, event),
        _ => {}
    }
}

#[inline(always)]
fn read4(frame: &Frame<'_>, at: usize, event: &mut TraceEvent) {
    let Some([first, second, third, source, destination]) = frame.read::<[u32; 5]>(at) else { return };
    let [version, ..] = first.to_ne_bytes();
    let [_, _, high, low] = second.to_ne_bytes();
    let [_, protocol, ..] = third.to_ne_bytes();
    event.source = mapped(source);
    event.destination = mapped(destination);
    event.protocol = protocol;
    if u16::from_be_bytes([high, low]) & 0x1fff != 0 {
        event.fragment = 1;
        return;
    }
    read_ports(frame, at + ((version & 0xf) as usize) * 4, event);
}

#[inline(always)]
fn read6(frame: &Frame<'_>, at: usize, event: &mut TraceEvent) {
    let Some([_, second]) = frame.read::<[u32; 2]>(at) else { return };
    let (Some(source), Some(destination)) = (frame.read::<[u8; 16]>(at + 8), frame.read::<[u8; 16]>(at + 24))
    else {
        return;
    };
    event.source = source;
    event.destination = destination;
    let [_, _, mut next, _] = second.to_ne_bytes();
    let mut l4 = at + 40;
    for _ in 0..MAX_HEADERS {
        let fragment = next == next_header::FRAGMENT;
        if !fragment
            && next != next_header::HOP_BY_HOP
            && next != next_header::ROUTING
            && next != next_header::DESTINATION
        {
            break;
        }
        let Some([following, len, high, low]) = frame.read::<[u8; 4]>(l4) else { return };
        next = following;
        if fragment {
            if u16::from_be_bytes([high, low]) & !7 != 0 {
                event.protocol = next;
                event.fragment = 1;
                return;
            }
            l4 += 8;
        } else {
            l4 += (len as usize + 1) * 8;
        }
        if l4 > MAX_L4 {
            return;
        }
    }
    event.protocol = next;
    read_ports(frame, l4, event);
}

#[inline(always)]
fn read_ports(frame: &Frame<'_>, l4: usize, event: &mut TraceEvent) {
    if event.protocol != TCP && event.protocol != UDP {
        return;
    }
    let Some([source, destination]) = frame.read::<[Be16; 2]>(l4 & MAX_L4) else { return };
    event.source_port = source;
    event.destination_port = destination;
    if event.protocol == TCP
        && let Some([_, flags]) = frame.read::<[u8; 2]>((l4 & MAX_L4) + 12)
    {
        event.flags = flags;
    }
}

/// An IPv4 address, as it stands in memory, in 16 bytes.
#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Whether a filter fits the packet in `TRACE_PACKET`. A global function: verified once.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_fits() -> u32 {
    let Some(event) = maps::TRACE_PACKET.get(0) else { return 0 };
    for index in 0..FILTERS {
        if let Some(filter) = maps::TRACE_FILTER.get(index)
            && fits(filter, event)
        {
            return 1;
        }
    }
    0
}

#[inline(always)]
fn fits(filter: &TraceFilter, event: &TraceEvent) -> bool {
    let (source, destination) = (words(&event.source), words(&event.destination));
    filter.used != 0
        && (filter.protocol == 0 || filter.protocol == u32::from(event.protocol))
        && (filter.port.raw() == 0
            || filter.port == event.source_port
            || filter.port == event.destination_port)
        && is_in(source, filter.source, filter.source_mask)
        && is_in(destination, filter.destination, filter.destination_mask)
        && (is_in(source, filter.host, filter.host_mask) || is_in(destination, filter.host, filter.host_mask))
}

#[inline(always)]
const fn is_in(address: [u64; 2], network: [u64; 2], mask: [u64; 2]) -> bool {
    ((address[0] & mask[0]) ^ network[0]) | ((address[1] & mask[1]) ^ network[1]) == 0
}

/// An address as two words, as they stand in memory.
#[inline(always)]
fn words(address: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}
