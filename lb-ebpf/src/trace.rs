//! A packet's way, step by step: in words, through aya-log, or as an event. Only there while the `TRACE` constant is
//! set.
//!
//! The steps are noted as they happen and told at the end of the way: deep inside it, the stack has no room for a
//! logger.

use aya_log_ebpf::info;
use lb_common::abi::trace::TraceEvent;
use lb_common::abi::trace::{EVENTS, EXPLAIN, MAX_STEPS};
use lb_common::env::Step;

use crate::maps;

/// Notes a step; with the last one they are logged, or told of as an event.
#[inline(always)]
pub fn note(step: Step, first: u32, second: u32) {
    matapa_note(number(step), first, second);
    if number(step) == DONE && maps::TRACE.load() != EXPLAIN {
        matapa_log_steps();
    }
}

/// A global function: verified once, instead of on each of the many ways that lead here. It returns a number as such
/// functions must.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_note(step: u32, first: u32, second: u32) -> u32 {
    let Some(count) = maps::TRACE_STEPS.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own value; XDP programs do not interrupt each other on a CPU.
    let count = unsafe { &mut *count };
    let index = count[0] + 1;
    if index <= MAX_STEPS
        && let Some(place) = maps::TRACE_STEPS.get_ptr_mut(index)
    {
        // SAFETY: as above; another element than `count`.
        unsafe { *place = [step, first, second] };
        count[0] = index;
    }
    0
}

/// Logs the steps that were noted, or tells of them. A global function likewise.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_log_steps() -> u32 {
    // Here, and not where it is called: each call is as short as it can be.
    if maps::TRACE.load() == EVENTS {
        return matapa_tell();
    }
    for index in 1..=MAX_STEPS {
        if let Some(place) = maps::TRACE_STEPS.get_ptr_mut(index) {
            // SAFETY: as above.
            let [step, first, second] = unsafe { place.replace([NONE, 0, 0]) };
            matapa_log(step, first, second);
        }
    }
    if let Some(count) = maps::TRACE_STEPS.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { (*count)[0] = 0 };
    }
    0
}

/// Tells of the packet in `TRACE_PACKET` and of the steps that were noted. A global function likewise.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_tell() -> u32 {
    let Some(noted) = maps::TRACE_STEPS.get_ptr_mut(0) else { return 0 };
    let Some(event) = maps::TRACE_PACKET.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own values, and of different maps.
    let (noted, event) = unsafe { (&mut *noted, &mut *event) };
    event.count = noted[0];
    for index in 1..=MAX_STEPS {
        if let Some(place) = maps::TRACE_STEPS.get_ptr(index) {
            // SAFETY: as above.
            event.steps[(index - 1) as usize] = unsafe { *place };
        }
    }
    noted[0] = 0;
    // One that finds no room is counted.
    if maps::TRACE_EVENTS.output::<TraceEvent>(&*event, 0).is_err() {
        noted[1] = noted[1].wrapping_add(1);
    }
    0
}

/// What an unused place of the map has from the start.
const NONE: u32 = 0;

/// A step as it stands in the map.
const fn number(step: Step) -> u32 {
    step.number()
}

const LISTENER: u32 = number(Step::Listener);
const FROM_BACKEND: u32 = number(Step::FromBackend);
const FLOW: u32 = number(Step::Flow);
const NO_FLOW: u32 = number(Step::NoFlow);
const PICKED: u32 = number(Step::Picked);
const MOVED: u32 = number(Step::Moved);
const ROUTED: u32 = number(Step::Routed);
const DONE: u32 = number(Step::Done);
const STUCK: u32 = number(Step::Stuck);
const MODE: u32 = number(Step::Mode);
const SNAT: u32 = number(Step::Snat);
const REVERSE: u32 = number(Step::Reverse);
const ICMP_ERROR: u32 = number(Step::IcmpError);
const FRAGMENT: u32 = number(Step::Fragment);
const TAGS: u32 = number(Step::Tags);
const FULL: u32 = number(Step::Full);

/// A global function likewise.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn matapa_log(step: u32, first: u32, second: u32) -> u32 {
    match step {
        LISTENER => info!(&(), "for listener {}", first),
        FROM_BACKEND => info!(&(), "from backend {}", first),
        FLOW => info!(&(), "known flow to backend {} in state {}", first, second),
        NO_FLOW => info!(&(), "unknown flow"),
        PICKED => info!(&(), "slot {} holds backend {}", first, second),
        MOVED => info!(&(), "backend {} was silent, backend {} is next", first, second),
        ROUTED => info!(&(), "route {} by interface {}", first, second),
        STUCK => info!(&(), "the client has backend {}", first),
        MODE => info!(&(), "mode {} to backend {}", first, second),
        SNAT => info!(&(), "port {} of address {} stands for the client", first, second),
        REVERSE => info!(&(), "way back of a flow of backend {}", first),
        ICMP_ERROR => info!(&(), "error of type {}, code {}", first, second),
        FRAGMENT => info!(&(), "fragment of a datagram of backend {}", first),
        TAGS => info!(&(), "{} VLAN tags of interface {}", first, second),
        FULL => info!(&(), "backend {} is full, backend {} has room", first, second),
        DONE => info!(&(), "action {} for reason {}", second, first),
        _ => {}
    }
    0
}
