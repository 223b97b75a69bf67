//! A packet's way in words, through aya-log. Only there while the `TRACE` constant is set.
//!
//! The steps are noted as they happen and logged at the end of the way: deep inside it, the stack has no room for a
//! logger.

use aya_log_ebpf::info;
use lb_common::env::Step;

use crate::maps;

/// More than any way has.
pub const MAX_STEPS: u32 = 7;

/// Notes a step; the last one logs them all.
#[inline(always)]
pub fn note(step: Step, first: u32, second: u32) {
    matapa_note(number(step), first, second);
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
    if step == DONE {
        count[0] = 0;
        for index in 1..=MAX_STEPS {
            if let Some(place) = maps::TRACE_STEPS.get_ptr_mut(index) {
                // SAFETY: as above.
                let [step, first, second] = unsafe { place.replace([NONE, 0, 0]) };
                matapa_log(step, first, second);
            }
        }
    }
    0
}

/// What an unused place of the map has from the start.
const NONE: u32 = 0;

/// A step as it stands in the map.
const fn number(step: Step) -> u32 {
    step as u32 + 1
}

const LISTENER: u32 = number(Step::Listener);
const FROM_BACKEND: u32 = number(Step::FromBackend);
const FLOW: u32 = number(Step::Flow);
const NO_FLOW: u32 = number(Step::NoFlow);
const PICKED: u32 = number(Step::Picked);
const MOVED: u32 = number(Step::Moved);
const ROUTED: u32 = number(Step::Routed);
const DONE: u32 = number(Step::Done);

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
        DONE => info!(&(), "action {} for reason {}", second, first),
        _ => {}
    }
    0
}
