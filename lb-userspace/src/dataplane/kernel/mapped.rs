//! An array map's values in our address space: reads and writes without a system call.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use bytemuck::Pod;
use memmap2::{MmapOptions, MmapRaw};

/// The values of an array map made with `BPF_F_MMAPABLE`. Each is a whole number of 64-bit words, as the kernel rounds
/// the size of an element up to that.
#[derive(Debug)]
pub struct Mapped {
    memory: MmapRaw,
    words_per_element: usize,
    elements: usize,
}

impl Mapped {
    /// Maps all of a map.
    ///
    /// # Errors
    /// When the kernel refuses, such as for a map without `BPF_F_MMAPABLE`.
    pub fn new(map: &MapData, value_size: usize, elements: usize) -> io::Result<Self> {
        use std::os::fd::{AsFd as _, AsRawFd as _};

        let words_per_element = value_size.div_ceil(8);
        let bytes = words_per_element * 8 * elements;
        let memory = MmapOptions::new().len(bytes).map_raw(map.fd().as_fd().as_raw_fd())?;
        Ok(Self { memory, words_per_element, elements })
    }

    /// All words. The kernel's program changes them at any time, by atomic or single instructions.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, as long as computed in `new`, and lives as long as `self`; every access
        // from here is atomic.
        unsafe {
            std::slice::from_raw_parts(
                self.memory.as_ptr().cast::<AtomicU64>(),
                self.words_per_element * self.elements,
            )
        }
    }

    /// The words of one element. Empty for an index outside the map.
    pub fn element(&self, index: usize) -> &[AtomicU64] {
        let start = index * self.words_per_element;
        self.words().get(start..start + self.words_per_element).unwrap_or_default()
    }

    /// The bytes of an element, read word by word. Empty for an index outside the map.
    pub fn bytes(&self, index: usize) -> Vec<u8> {
        self.element(index).iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect()
    }

    /// Copies an element out, word by word. `T` must have the size of an element.
    pub fn read<T: Pod>(&self, index: usize) -> T {
        bytemuck::pod_read_unaligned(&self.bytes(index))
    }

    /// Writes an element word by word, the one at `last` after all others.
    pub fn write<T: Pod>(&self, index: usize, value: &T, last: usize) {
        let bytes = bytemuck::bytes_of(value);
        let words = || bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>);
        let places = self.element(index);
        for (i, (place, word)) in places.iter().zip(words()).enumerate() {
            if i != last {
                place.store(word, Ordering::Relaxed);
            }
        }
        if let (Some(place), Some(word)) = (places.get(last), words().nth(last)) {
            place.store(word, Ordering::Release);
        }
    }
}
