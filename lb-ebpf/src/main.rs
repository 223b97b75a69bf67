//! The XDP program of Matapa: the mechanism under `lb_common::pipeline`, which holds the policy.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "compare-and-swap exists on the BPF target as an intrinsic only")]
#![expect(clippy::needless_pass_by_value, reason = "what the macro calls takes the context by value")]

mod env;
mod frame;
mod gate;
mod maps;
mod tail;
mod trace;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use lb_common::env::Env;
use lb_common::pipeline::{self, Stage};
use lb_common::verdict::{Action, Reason, Verdict};

/// A stage as a program. `frags`: frames larger than a page come in parts, of which the first holds the headers.
macro_rules! stage {
    ($name:ident, $stage:ident, [$($next:ident),*]) => {
        stage!($name, $stage, [$($next),*], env::Kernel);
    };
    ($name:ident, $stage:ident, [$($next:ident),*], $surroundings:path) => {
        #[xdp(frags)]
        // A call between two functions costs 32 bytes of the stack's 512 on Linux 6.1.
        #[inline(always)]
        pub fn $name(ctx: XdpContext) -> u32 {
            let Some(work) = env::work() else { return XDP_PASS };
            let kernel = $surroundings(&ctx);
            let verdict = pipeline::run(Stage::$stage, &mut frame::Frame(&ctx), &kernel, work);
            if verdict.action == Action::Continue {
                $(
                    if verdict.ifindex == Stage::$next as u32 {
                        tail::call::<{ Stage::$next as u32 }>(&ctx, &maps::STAGES);
                    }
                )*
                // Only when the stage is missing.
                let missing = Reason::StaleRecord.drop();
                return finish(pipeline::finish(&mut frame::Frame(&ctx), &kernel, work, missing));
            }
            finish(verdict)
        }
    };
}

stage!(matapa_xdp, Entry, [V6, Tagged, Fragment4, Icmp4, Any4, Out4, Back4, Refuse4]);
stage!(matapa_v6, V6, [Headers6, Icmp6, Any6, Out6, Back6, Refuse6]);
stage!(matapa_tagged, Tagged, [Entry]);
stage!(matapa_fragment4, Fragment4, [Any4, Out4, Back4, Refuse4]);
stage!(matapa_headers6, Headers6, [Beyond6, Fragment6, Icmp6, Any6]);
stage!(matapa_beyond6, Beyond6, [Out6, Back6, Refuse6]);
stage!(matapa_fragment6, Fragment6, [Any6, Out6, Back6, Refuse6]);
stage!(matapa_icmp4, Icmp4, [Out4]);
stage!(matapa_icmp6, Icmp6, [Out6]);
stage!(matapa_any4, Any4, [Out4, Back4, Refuse4]);
stage!(matapa_any6, Any6, [Out6, Back6, Refuse6]);
stage!(matapa_out4, Out4, [Send4, Tunnel4, Refuse4]);
stage!(matapa_out6, Out6, [Send6, Tunnel6, Refuse6]);
stage!(matapa_send4, Send4, [Record]);
stage!(matapa_send6, Send6, [Record]);
stage!(matapa_record, Record, [Send4, Send6]);
// In its place when a packet is explained.
stage!(matapa_dry_record, Record, [Send4, Send6], env::dry);
stage!(matapa_tunnel4, Tunnel4, []);
stage!(matapa_tunnel6, Tunnel6, []);
stage!(matapa_back4, Back4, [Refuse4]);
stage!(matapa_back6, Back6, [Refuse6]);
stage!(matapa_refuse4, Refuse4, []);
stage!(matapa_refuse6, Refuse6, []);

/// Stands for a stage that is yet to be loaded, at a first start: the packet goes to the kernel as it came in, as those before
/// it did that no program saw, and uncounted as they. Where that fails it is dropped, and counted.
#[xdp(frags)]
pub fn matapa_later(ctx: XdpContext) -> u32 {
    let Some(work) = env::work() else { return XDP_PASS };
    if pipeline::leave(&mut frame::Frame(&ctx), &env::Kernel(&ctx), work) { XDP_PASS } else { XDP_DROP }
}

#[inline(always)]
fn finish(verdict: Verdict) -> u32 {
    match verdict.action {
        Action::Pass => XDP_PASS,
        Action::Drop | Action::Continue => XDP_DROP,
        Action::Transmit => XDP_TX,
        // SAFETY: a helper call without pointers. With flags 0 it returns XDP_REDIRECT or, as an error, XDP_ABORTED.
        Action::Redirect => match unsafe { bpf_redirect(verdict.ifindex, 0) } as u32 {
            XDP_REDIRECT => XDP_REDIRECT,
            _ => XDP_DROP,
        },
    }
}

/// In front of the first stage while packets are traced: those that a filter wants go on in this instance of the program,
/// which tells of them, and all others in the one that does not.
#[xdp(frags)]
pub fn matapa_trace(ctx: XdpContext) -> u32 {
    if !gate::wants(&ctx) {
        tail::call::<0>(&ctx, &maps::PLAIN);
    }
    tail::call::<{ Stage::Entry as u32 }>(&ctx, &maps::STAGES);
    // Only when there are no stages.
    XDP_PASS
}

/// Answers what time it is on the flow table's clock. Run by the daemon, never attached.
#[xdp]
pub fn matapa_clock(ctx: XdpContext) -> u32 {
    u32::from(Env::now(&env::Kernel(&ctx)))
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
