//! The XDP program of Matapa: the mechanism under `lb_common::pipeline`, which holds the policy.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "compare-and-swap exists on the BPF target as an intrinsic only")]
#![expect(clippy::needless_pass_by_value, reason = "what the macro calls takes the context by value")]

mod env;
mod frame;
mod maps;
mod trace;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::env::Env;
use lb_common::pipeline;
use lb_common::verdict::Action;

/// The one entry point. `frags`: frames larger than a page come in parts, of which the first holds the headers.
#[xdp(frags)]
pub fn matapa_xdp(ctx: XdpContext) -> u32 {
    let Some(work) = maps::WORK.get_ptr_mut(0) else { return XDP_PASS };
    // SAFETY: this CPU's own value; XDP programs do not interrupt each other on a CPU.
    let verdict = pipeline::handle(&mut frame::Frame(&ctx), &env::Kernel(&ctx), unsafe { &mut *work });
    match verdict.action {
        Action::Pass => XDP_PASS,
        Action::Drop => XDP_DROP,
        Action::Transmit => XDP_TX,
        // SAFETY: a helper call without pointers. With flags 0 it returns XDP_REDIRECT or, as an error, XDP_ABORTED.
        Action::Redirect => match unsafe { bpf_redirect(verdict.ifindex, 0) } as u32 {
            XDP_REDIRECT => XDP_REDIRECT,
            _ => XDP_DROP,
        },
    }
}

/// Answers what time it is on the flow table's clock. Run by the daemon, never attached.
#[xdp]
pub fn matapa_clock(ctx: XdpContext) -> u32 {
    u32::from(env::Kernel(&ctx).now())
}

/// Never linked into an object that loads: the build refuses one that contains it.
#[panic_handler]
#[inline(never)]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_fib_lookup` and the others are for programs that say they are GPL-compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
