//! A packet's way in words, through aya-log. Only there while the `TRACE` constant is set.
//!
//! The steps are noted as they happen and logged at the end of the way: deep inside it, the stack has no room for a logger.

use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use lb_common::env::Step;

use crate::maps;

/// More than any way has.
pub const MAX_STEPS: u32 = 7;

/// Notes a step; the last one logs them all.
#[inline(always)]
pub fn note(ctx: &XdpContext, step: Step, first: u32, second: u32) {
    let Some(count) = maps::TRACE_STEPS.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own value, here and below; XDP programs do not interrupt each other on a CPU.
    let index = unsafe { (*count)[0] } + 1;
    if index <= MAX_STEPS
        && let Some(place) = maps::TRACE_STEPS.get_ptr_mut(index)
    {
        unsafe {
            *place = [step as u32, first, second];
            (*count)[0] = index;
        }
    }
    if step == Step::Done {
        unsafe { (*count)[0] = 0 };
        for index in 1..=MAX_STEPS {
            if let Some(place) = maps::TRACE_STEPS.get_ptr_mut(index) {
                let [step, first, second] = unsafe { *place };
                unsafe { *place = [NONE, 0, 0] };
                log(ctx, step, first, second);
            }
        }
    }
}

const NONE: u32 = u32::MAX;
const LISTENER: u32 = Step::Listener as u32;
const FROM_BACKEND: u32 = Step::FromBackend as u32;
const FLOW: u32 = Step::Flow as u32;
const NO_FLOW: u32 = Step::NoFlow as u32;
const PICKED: u32 = Step::Picked as u32;
const MOVED: u32 = Step::Moved as u32;
const ROUTED: u32 = Step::Routed as u32;
const DONE: u32 = Step::Done as u32;

#[inline(never)]
fn log(ctx: &XdpContext, step: u32, first: u32, second: u32) {
    match step {
        LISTENER => info!(ctx, "for listener {}", first),
        FROM_BACKEND => info!(ctx, "from backend {}", first),
        FLOW => info!(ctx, "known flow to backend {} in state {}", first, second),
        NO_FLOW => info!(ctx, "unknown flow"),
        PICKED => info!(ctx, "slot {} holds backend {}", first, second),
        MOVED => info!(ctx, "backend {} was silent, backend {} is next", first, second),
        ROUTED => info!(ctx, "route {} by interface {}", first, second),
        DONE => info!(ctx, "action {} for reason {}", second, first),
        _ => {}
    }
}
