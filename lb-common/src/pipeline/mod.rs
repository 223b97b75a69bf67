//! A packet's way: parse, find its service or backend, choose, rewrite, send.
//!
//! Everything is read and decided before the first byte is written, so a packet is either rewritten completely or
//! untouched.
//!
//! The way is divided into [`Stage`]s. The first one does all for TCP and UDP by `nat`; what is rarer, or costs more,
//! goes on in a stage of its own, which the kernel runs as a program of its own: so its code costs other packets nothing,
//! neither in time nor in what the verifier can bear. [`Work`] is what one stage hands to the next.

mod any;
mod fragment;
mod hop;
mod icmp;
mod out;
mod parse;
mod refuse;
pub mod reverse;
pub mod select;
mod short;
mod tags;
mod to_backend;
mod to_client;
mod transport;
mod work;

use crate::env::{Env, Step};
use crate::packet::Packet;
use crate::packet::head::{Head4, Head6};
use crate::verdict::{Action, Reason, Verdict};

pub use work::Work;

macro_rules! stages {
    ($($name:ident = $program:literal, $help:literal;)*) => {
        /// A part of the way that is a program of its own in the kernel. The discriminant is its index there.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stage {
            $(#[doc = $help] $name,)*
        }

        impl Stage {
            /// All, in the order of their indexes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Names of the programs, in the order of their indexes.
            pub const PROGRAMS: &'static [&'static str] = &[$($program,)*];
        }
    };
}

stages! {
    Entry = "matapa_xdp", "From the Ethernet header on: known flows of TCP and UDP by `nat`, over IPv4.";
    V6 = "matapa_v6", "The same over IPv6.";
    Tagged = "matapa_tagged", "Takes VLAN tags off.";
    Fragment4 = "matapa_fragment4", "A fragment, the first or a later one.";
    Headers6 = "matapa_headers6", "IPv6 with extension headers, a fragment header among them.";
    Beyond6 = "matapa_beyond6", "TCP and UDP behind such headers.";
    Fragment6 = "matapa_fragment6", "A fragment over IPv6, the first or a later one.";
    Icmp4 = "matapa_icmp4", "Echo and errors.";
    Icmp6 = "matapa_icmp6", "Echo and errors of ICMPv6.";
    Any4 = "matapa_any4", "Neither TCP nor UDP.";
    Any6 = "matapa_any6", "Neither TCP nor UDP, over IPv6.";
    Out4 = "matapa_out4", "To a backend: new flows, other modes than `nat`, and with an entry for the way back.";
    Out6 = "matapa_out6", "The same over IPv6.";
    Send4 = "matapa_send4", "To a backend, rewritten.";
    Send6 = "matapa_send6", "The same over IPv6.";
    Record = "matapa_record", "Records the way back of a new flow.";
    Tunnel4 = "matapa_tunnel4", "To a backend, inside another packet.";
    Tunnel6 = "matapa_tunnel6", "The same for IPv6 inside.";
    Back4 = "matapa_back4", "From a backend whose way back is in the flow table.";
    Back6 = "matapa_back6", "The same over IPv6.";
    Refuse4 = "matapa_refuse4", "The packet becomes the gateway's answer to it: ICMP or RST.";
    Refuse6 = "matapa_refuse6", "The same over IPv6.";
}

impl Stage {
    /// Goes on there.
    #[inline(always)]
    pub const fn next(self) -> Verdict {
        // The reason is for when the stage is missing.
        Verdict { ifindex: self as u32, action: Action::Continue, reason: Reason::StaleRecord }
    }
}

/// Decides a packet's fate, rewrites it, and counts why, through as many stages as it takes.
pub fn handle<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let mut stage = Stage::Entry;
    loop {
        let verdict = run(stage, packet, env, work);
        if verdict.action != Action::Continue {
            return verdict;
        }
        match Stage::ALL.get(verdict.ifindex as usize) {
            Some(next) => stage = *next,
            None => return Reason::StaleRecord.drop(),
        }
    }
}

/// Runs one stage. With a constant `stage`, nothing is left of the others.
#[inline(always)]
pub fn run<P: Packet, E: Env>(stage: Stage, packet: &mut P, env: &E, work: &mut Work) -> Verdict {
    let verdict = match stage {
        Stage::Entry => parse::frame(packet, env, work),
        Stage::V6 => parse::v6(packet, env, work),
        Stage::Tagged => tags::take_off(packet, env, work),
        Stage::Fragment4 => fragment::v4(packet, env, work),
        Stage::Headers6 => parse::headers6(packet, env, work),
        Stage::Beyond6 => parse::beyond6(packet, env, work),
        Stage::Fragment6 => fragment::v6(packet, env, work),
        Stage::Icmp4 => icmp::handle::<Head4, P, E>(packet, env, work),
        Stage::Icmp6 => icmp::handle::<Head6, P, E>(packet, env, work),
        Stage::Any4 => any::v4(packet, env, work),
        Stage::Any6 => any::v6(packet, env, work),
        Stage::Out4 => out::forward::<Head4, P, E>(packet, env, work),
        Stage::Out6 => out::forward::<Head6, P, E>(packet, env, work),
        Stage::Send4 => out::send::<Head4, P, E>(packet, env, work),
        Stage::Send6 => out::send::<Head6, P, E>(packet, env, work),
        Stage::Record => out::record(env, work),
        Stage::Tunnel4 => out::encapsulate::<Head4, P, E>(packet, env, work),
        Stage::Tunnel6 => out::encapsulate::<Head6, P, E>(packet, env, work),
        Stage::Back4 => reverse::back::<Head4, P, E>(packet, env, work),
        Stage::Back6 => reverse::back::<Head6, P, E>(packet, env, work),
        Stage::Refuse4 => refuse::answer::<Head4, P, E>(packet, env, work),
        Stage::Refuse6 => refuse::answer::<Head6, P, E>(packet, env, work),
    };
    if verdict.action == Action::Continue {
        return verdict;
    }
    finish(packet, env, work, verdict)
}

/// Has the packet as it came in, for a stage that is not there, and forgets it. False when that fails, which is counted.
#[inline(always)]
pub fn leave<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work) -> bool {
    let tagged = work.pending & work::TAGS != 0;
    let done = !tagged || tags::put_on(packet, env, work, Reason::NoService.pass()).is_some();
    if !done {
        env.count(Reason::WriteFailed);
    }
    work.pending = 0;
    done
}

/// What is left to do when the way has ended.
#[inline(always)]
pub fn finish<P: Packet, E: Env>(packet: &mut P, env: &E, work: &mut Work, verdict: Verdict) -> Verdict {
    let mut verdict = verdict;
    if work.pending != 0 {
        if work.pending & work::FRAGMENT != 0 {
            fragment::remember(env, work, verdict);
        }
        if work.pending & (work::TAGS | work::VLAN) != 0 && tags::put_on(packet, env, work, verdict).is_none()
        {
            verdict = Reason::WriteFailed.drop();
        }
        work.pending = 0;
    }
    env.trace(Step::Done, verdict.reason as u32, verdict.action as u32);
    env.count(verdict.reason);
    verdict
}
