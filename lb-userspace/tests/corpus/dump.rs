//! Everything that is in the maps of the loaded program.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use lb_userspace::dataplane::kernel::Kernel;
use memmap2::MmapOptions;

/// Of enum bpf_cmd in linux/bpf.h.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Of enum bpf_map_type.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PROG_ARRAY: u32 = 3;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const RINGBUF: u32 = 27;

/// What the packet in hand is written to while the program runs: it means nothing after that.
const SCRATCH: [&str; 2] = ["WORK", "ROUTE_QUERY"];

/// Content by name: of arrays all elements, of hash maps the sorted pairs of key and value, of ring buffers how much was
/// ever put in.
pub type Dump = BTreeMap<String, Vec<u8>>;

/// Reads all maps of the program but those for the packet in hand.
pub fn dump(kernel: &Kernel) -> Dump {
    let mut dump = Dump::new();
    for id in kernel.map_ids().unwrap_or_else(|e| panic!("{e:#}")) {
        let map = MapData::from_id(id).unwrap_or_else(|e| panic!("map {id}: {e}"));
        let info = map.info().unwrap_or_else(|e| panic!("map {id}: {e}"));
        let name = info.name_as_str().unwrap_or_default().to_owned();
        if SCRATCH.contains(&name.as_str()) || name.starts_with(".rodata") {
            continue;
        }
        let cpus = aya::util::nr_cpus().unwrap_or_else(|(_, e)| panic!("how many CPUs? {e}"));
        let kind = info.map_type().unwrap_or_else(|e| panic!("{name}: {e}")) as u32;
        let (keys, values) = (info.key_size() as usize, info.value_size() as usize);
        let (entries, fd) = (info.max_entries() as usize, map.fd().as_fd().as_raw_fd());
        let bytes = match kind {
            ARRAY => batch(fd, entries, keys, values).1,
            PERCPU_ARRAY => batch(fd, entries, keys, values.next_multiple_of(8) * cpus).1,
            HASH | LRU_HASH => {
                let (found, content) = batch(fd, entries, keys, values);
                let mut pairs: Vec<Vec<u8>> = found
                    .chunks(keys)
                    .zip(content.chunks(values))
                    .map(|(key, value)| [key, value].concat())
                    .collect();
                pairs.sort_unstable();
                pairs.concat()
            }
            PROG_ARRAY => continue,
            RINGBUF => produced(fd).to_ne_bytes().to_vec(),
            other => panic!("{name} is a map of type {other}, which nobody has thought of here"),
        };
        assert!(dump.insert(name.clone(), bytes).is_none(), "two maps are called {name}");
    }
    dump
}

/// Names of the maps that differ.
pub fn changed(before: &Dump, after: &Dump) -> Vec<String> {
    assert!(before.keys().eq(after.keys()), "not the same maps");
    before.iter().filter(|(name, bytes)| after[*name] != **bytes).map(|(name, _)| name.clone()).collect()
}

/// All keys and values of a map of at most so many entries.
fn batch(fd: i32, entries: usize, key_size: usize, value_size: usize) -> (Vec<u8>, Vec<u8>) {
    /// The part of union bpf_attr for BPF_MAP_*_BATCH.
    #[repr(C)]
    struct Attr {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    let (mut keys, mut values) = (vec![0; entries * key_size], vec![0; entries * value_size]);
    // The kernel's own bookmark, no longer than a key or a number.
    let mut bookmark = vec![0u8; key_size.max(4)];
    let mut attr = Attr {
        in_batch: 0,
        out_batch: bookmark.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(entries).expect("a 32-bit number of elements"),
        map_fd: u32::try_from(fd).expect("a descriptor"),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attr` is what the command expects; the buffers are as long as it says, and outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, std::ptr::from_mut(&mut attr), size_of::<Attr>())
    };
    let error = io::Error::last_os_error();
    // ENOENT: that was all.
    assert!(result == 0 || error.raw_os_error() == Some(libc::ENOENT), "cannot read a map: {error}");
    let found = attr.count as usize;
    keys.truncate(found * key_size);
    values.truncate(found * value_size);
    (keys, values)
}

/// Bytes that were ever put into a ring buffer: the first word of its second page (kernel/bpf/ringbuf.c).
fn produced(fd: i32) -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|page| usize::try_from(page).ok()).expect("a page has a size");
    let memory = MmapOptions::new()
        .offset(page as u64)
        .len(page)
        .map_raw_read_only(fd)
        .unwrap_or_else(|e| panic!("cannot map a ring buffer: {e}"));
    // SAFETY: the mapping is as long as a page; the kernel writes the word at once.
    unsafe { memory.as_ptr().cast::<u64>().read_volatile() }
}
