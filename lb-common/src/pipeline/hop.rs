//! Where a packet leaves: what the routing table said a moment ago, or what it says now.

use super::work::{self, Work};
use crate::abi::hop::CLIENT_HOPS;
use crate::abi::{ClientHop, NextHop};
use crate::env::{Env, Query, Reach, Route, Step};
use crate::packet::head::{Address, Head};
use crate::verdict::{Reason, Verdict};

/// A next hop, and whether it is one.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub reach: Reach,
    pub hop: NextHop,
}

/// The next hop of a packet of `len` bytes to a backend. `ask` is called when the routing table has to be asked.
#[inline(always)]
pub(super) fn to_backend<E: Env>(
    env: &E,
    work: &mut Work,
    id: u32,
    len: u32,
    ask: impl FnOnce(&mut Query),
) -> Found {
    let now = env.now();
    let cell = env.backend_hop(id);
    if let Some(cell) = cell {
        let hop = cell.get();
        if is_fresh(env, work, &hop, now) && len <= u32::from(hop.mtu) {
            return Found { reach: Reach::Known, hop };
        }
    }
    ask(&mut work.query);
    let reach = look_up(env, work);
    if reach == Reach::Known
        && let Some(cell) = cell
    {
        cell.set(work.hop);
    }
    Found { reach, hop: work.hop }
}

/// The next hop of a packet of `len` bytes to a client.
#[inline(always)]
pub(super) fn to_client<I: Head, E: Env>(
    env: &E,
    work: &mut Work,
    client: I::Addr,
    len: u32,
    ask: impl FnOnce(&mut Query),
) -> Found {
    let now = env.now();
    const SHIFT: u32 = 32 - CLIENT_HOPS.trailing_zeros();
    let cell = env.client_hop(client.spread() >> SHIFT);
    if let Some(cell) = cell {
        let ClientHop { addr, hop } = cell.get();
        // An IPv4 address and the last bytes of an IPv6 one may be equal; the rest is not.
        if addr == client.to_mapped() && is_fresh(env, work, &hop, now) && len <= u32::from(hop.mtu) {
            return Found { reach: Reach::Known, hop };
        }
    }
    ask(&mut work.query);
    let reach = look_up(env, work);
    if reach == Reach::Known
        && let Some(cell) = cell
    {
        cell.set(ClientHop { addr: client.to_mapped(), hop: work.hop });
    }
    Found { reach, hop: work.hop }
}

#[inline(always)]
fn is_fresh<E: Env>(env: &E, work: &Work, hop: &NextHop, now: u16) -> bool {
    let epoch = env.route_epoch();
    epoch != 0 && hop.epoch == epoch && hop.tick == now && hop.ingress == ingress(env, work)
}

/// The interface that the packet came in on, a VLAN's own if that is known.
#[inline(always)]
pub(super) fn ingress<E: Env>(env: &E, work: &Work) -> u32 {
    if work.pending & work::TAGS != 0 { work.ingress } else { env.ingress() }
}

/// Asks the routing table what `work.query` says, unless no daemon has been alive for too long. That nothing is forwarded
/// then costs packets nothing before: what is remembered of next hops is good for a tick at most, and then they come here.
/// The answer is in `work.hop`, or its MTU in `work.mtu`.
#[inline(never)]
fn look_up<E: Env>(env: &E, work: &mut Work) -> Reach {
    // Before the question: what changes meanwhile makes the answer stale.
    let epoch = env.route_epoch();
    work.query.ingress = ingress(env, work);
    let route = if env.is_abandoned() { Route::none(Reach::Abandoned) } else { env.route(&work.query) };
    work.mtu = u32::from(route.mtu);
    let mut reach = route.reach;
    let mut device = route.ifindex;
    if reach == Reach::Known {
        match env.port(route.ifindex) {
            Some(port) => device = port.device,
            None if route.ifindex == env.ingress() => {}
            None => reach = Reach::Elsewhere,
        }
    }
    work.hop = NextHop {
        epoch,
        ingress: work.query.ingress,
        ifindex: route.ifindex,
        device,
        tick: env.now(),
        mtu: route.mtu,
        macs: route.macs,
    };
    env.trace(Step::Routed, reach as u32, route.ifindex);
    reach
}

/// The question about a packet with this header from `source` to `destination`.
#[inline(always)]
pub(super) fn query<I: Head>(query: &mut Query, ip: &I, source: I::Addr, destination: I::Addr, protocol: u8) {
    query.source = source.to_mapped();
    query.destination = destination.to_mapped();
    query.len = if ip.packet_len() > 0xffff { 0xffff } else { ip.packet_len() as u16 };
    query.protocol = protocol;
    query.class = ip.class();
    query.flow_info = ip.flow_info();
    query.v6 = matches!(I::FAMILY, crate::abi::Family::V6);
}

/// Sends the packet by a next hop.
#[inline(always)]
pub(super) fn send<E: Env>(env: &E, work: &mut Work, reason: Reason, hop: &NextHop) -> Verdict {
    if hop.device != hop.ifindex || work.pending & work::TAGS != 0 {
        work.pending |= work::VLAN;
        work.egress = hop.ifindex;
    }
    reason.send(hop.device, env.ingress())
}
