//! `lb_common::packet::Packet` over an XDP frame: the only place with packet pointers.

use core::arch::asm;
use core::intrinsics::unaligned_volatile_store;

use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use bytemuck::Pod;
use lb_common::packet::Packet;

pub struct Frame<'c>(pub &'c XdpContext);

/// The field of the context (`struct xdp_md`) at this offset.
///
/// Written out: the compiler would keep a pointer to the field, which the verifier does not allow to be used.
#[inline(always)]
pub fn field<const AT: usize>(ctx: &XdpContext) -> usize {
    let value: usize;
    // SAFETY: one load from the context, which is this program's.
    unsafe {
        asm!(
            "{value} = *(u32 *)({ctx} + {at})",
            value = out(reg) value,
            ctx = in(reg) ctx.ctx,
            at = const AT,
            options(nostack),
        );
    }
    value
}

impl Frame<'_> {
    /// A pointer to `T` at an offset, if `T` lies within the linear part.
    ///
    /// The pointer is computed once and that very pointer compared with the end: the verifier tracks it from there.
    #[inline(always)]
    fn pointer<T>(&self, at: usize) -> Option<*mut T> {
        let start = self.start() + at;
        if start + size_of::<T>() > self.end() {
            return None;
        }
        Some(start as *mut T)
    }

    /// The first byte. Read anew each time: the compiler would conclude from one comparison that another is
    /// superfluous, in ways that the verifier does not follow.
    #[inline(always)]
    fn start(&self) -> usize {
        field::<0>(self.0)
    }

    /// The byte after the linear part.
    #[inline(always)]
    fn end(&self) -> usize {
        field::<4>(self.0)
    }

    /// Bytes of the frame with the parts that are not linear.
    #[inline(always)]
    fn whole_len(&self) -> usize {
        // SAFETY: the context is this program's.
        unsafe { bpf_xdp_get_buff_len(self.0.ctx) as usize }
    }
}

impl Packet for Frame<'_> {
    #[inline(always)]
    fn read<T: Pod>(&self, at: usize) -> Option<T> {
        // SAFETY: checked against the end of the packet; `T` takes any bits.
        self.pointer::<T>(at).map(|p| unsafe { p.read_unaligned() })
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        // SAFETY: checked against the end of the packet.
        self.pointer::<T>(at).map(|p| unsafe { write_words(p, value) })
    }

    #[inline(always)]
    fn front<T: Pod>(&mut self) -> Option<&mut T> {
        const { assert!(align_of::<T>() == 1) };
        // SAFETY: checked against the end of the packet; `T` takes any bits, anywhere.
        self.pointer::<T>(0).map(|p| unsafe { &mut *p })
    }

    #[inline(always)]
    fn linear_len(&self) -> usize {
        self.end() - self.start()
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        // The helper is asked only about frames that come in parts.
        self.linear_len() >= len || self.whole_len() >= len
    }

    #[inline(always)]
    fn grow(&mut self, len: usize) -> Option<()> {
        // SAFETY: the context is this program's; no packet pointer outlives the call.
        (unsafe { bpf_xdp_adjust_head(self.0.ctx, -(len as i32)) } == 0).then_some(())
    }

    #[inline(always)]
    fn shrink(&mut self, len: usize) -> Option<()> {
        // SAFETY: as above.
        (unsafe { bpf_xdp_adjust_head(self.0.ctx, len as i32) } == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Option<()> {
        let by = len as i32 - self.whole_len() as i32;
        // SAFETY: the context is this program's; no packet pointer outlives the call.
        (unsafe { bpf_xdp_adjust_tail(self.0.ctx, by) } == 0).then_some(())
    }
}

/// Writes a header word by word. A plain unaligned write of it becomes a call that copies byte by byte, which costs as
/// much as a lookup.
///
/// # Safety
/// As for `write_unaligned`.
#[inline(always)]
unsafe fn write_words<T: Pod>(to: *mut T, value: &T) {
    let from: *const T = value;
    // SAFETY: within `T` on both sides, and `from` is aligned for `T`.
    unsafe {
        if align_of::<T>() >= 4 {
            for i in 0..size_of::<T>() / 4 {
                unaligned_volatile_store(to.cast::<u32>().add(i), from.cast::<u32>().add(i).read());
            }
        } else if align_of::<T>() == 2 {
            for i in 0..size_of::<T>() / 2 {
                unaligned_volatile_store(to.cast::<u16>().add(i), from.cast::<u16>().add(i).read());
            }
        } else {
            to.write_unaligned(*value);
        }
    }
}
