//! Access to the bytes of a packet, and the headers in them.
//!
//! Nothing but [`Packet::front`] returns a reference into a packet: the kernel's verifier forgets what it knew of packet
//! pointers at many occasions, so every access is checked against the packet's end when it is made. The headers are aligned types
//! although packets are not: their copies lie on the program's stack, where copying bytes one by one would be slow.

pub mod checksum;
pub mod eth;
pub mod front;
pub mod head;
pub mod ip;
pub mod ip4;
pub mod ip6;
pub mod tcp;
pub mod udp;

use bytemuck::Pod;

/// The linear part of a frame.
pub trait Packet {
    /// Copies a header out. `None` when it does not lie within the frame.
    fn read<T: Pod>(&self, at: usize) -> Option<T>;

    /// Writes a header back. `None`, and nothing written, when it does not lie within the frame.
    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()>;

    /// The headers that the frame begins with, if they are linear. `T` must have an alignment of 1.
    fn front<T: Pod>(&mut self) -> Option<&mut T>;

    /// Bytes of the linear part.
    fn linear_len(&self) -> usize;

    /// Whether the frame has at least `len` bytes, counting the parts that are not linear.
    fn holds(&self, len: usize) -> bool;

    /// Makes room for `len` bytes in front; offsets count from the new start then. `None`, and nothing changed, when
    /// there is none.
    fn grow(&mut self, len: usize) -> Option<()>;

    /// Takes `len` bytes off the front. `None`, and nothing changed, when that is impossible.
    fn shrink(&mut self, len: usize) -> Option<()>;

    /// Cuts the frame to `len` bytes. `None` when that fails; nothing is changed then.
    fn truncate(&mut self, len: usize) -> Option<()>;
}

#[cfg(any(test, feature = "std"))]
impl Packet for Vec<u8> {
    fn read<T: Pod>(&self, at: usize) -> Option<T> {
        let bytes = self.get(at..at.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        self.get_mut(at..at.checked_add(size_of::<T>())?)?.copy_from_slice(bytemuck::bytes_of(value));
        Some(())
    }

    fn front<T: Pod>(&mut self) -> Option<&mut T> {
        bytemuck::try_from_bytes_mut(self.get_mut(..size_of::<T>())?).ok()
    }

    fn linear_len(&self) -> usize {
        self.len()
    }

    fn holds(&self, len: usize) -> bool {
        self.len() >= len
    }

    fn grow(&mut self, len: usize) -> Option<()> {
        self.splice(0..0, core::iter::repeat_n(0, len));
        Some(())
    }

    fn shrink(&mut self, len: usize) -> Option<()> {
        if len + eth::LEN > self.len() {
            return None;
        }
        self.drain(..len);
        Some(())
    }

    fn truncate(&mut self, len: usize) -> Option<()> {
        // The kernel refuses to leave less than an Ethernet header (bpf_xdp_adjust_tail).
        if len < eth::LEN || len > self.len() {
            return None;
        }
        self.truncate(len);
        Some(())
    }
}
