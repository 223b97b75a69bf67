//! Going on in another program.

use core::arch::asm;

use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::XdpContext;

/// Goes on in the program at this place; returns only when there is none.
///
/// The call is written out, one for each place: so its index is a constant, and the kernel makes it a jump. The compiler
/// would join them to one call whose index is not known, which costs an indirect jump.
#[inline(always)]
pub fn call<const INDEX: u32>(ctx: &XdpContext, programs: &'static ProgramArray) {
    // SAFETY: bpf_tail_call (number 12) takes the context, a program array and an index, and clobbers what a call does.
    unsafe {
        asm!(
            "r3 = {index}",
            "call 12",
            index = const INDEX,
            in("r1") ctx.ctx,
            in("r2") programs,
            lateout("r0") _,
            lateout("r1") _,
            lateout("r2") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
        );
    }
}
