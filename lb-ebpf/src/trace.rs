//! A packet's way in words, through aya-log. Only there while the `TRACE` constant is set.

use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use lb_common::env::Step;

#[inline(never)]
pub fn log(ctx: &XdpContext, step: Step, first: u32, second: u32) {
    match step {
        Step::Listener => info!(ctx, "for listener {}", first),
        Step::FromBackend => info!(ctx, "from backend {}", first),
        Step::Flow => info!(ctx, "known flow to backend {} in state {}", first, second),
        Step::NoFlow => info!(ctx, "unknown flow"),
        Step::Picked => info!(ctx, "slot {} holds backend {}", first, second),
        Step::Routed => info!(ctx, "route {}", first),
        Step::Done => info!(ctx, "verdict {} with reason {}", second, first),
    }
}
