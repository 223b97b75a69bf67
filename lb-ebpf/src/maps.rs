//! The maps and load-time constants, and nothing else. Their layout is `lb_common::abi`.
//!
//! Sizes here are the smallest that make sense; the daemon sets the real ones when it loads the program. The arrays
//! that the daemon writes or sweeps are memory-mapped by it.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use lb_common::abi::flow::{FlowLine, WAYS};
use lb_common::abi::{self, Backend, BackendStats, Control, Endpoint4, Endpoint6, FlowTuple, Listener};
use lb_common::pipeline::Work;
use lb_common::verdict::Reason;

const MMAPABLE: u32 = BPF_F_MMAPABLE;

#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);

#[map]
pub static ENDPOINTS4: HashMap<Endpoint4, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINTS6: HashMap<Endpoint6, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

#[map]
pub static LISTENERS: Array<Listener> = Array::with_max_entries(1024, MMAPABLE);
/// Not read by the program: so that a new daemon knows what it adopts.
#[map]
pub static LISTENER_NAMES: Array<[u8; abi::NAME_LEN]> = Array::with_max_entries(1024, MMAPABLE);

#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(4096, MMAPABLE);
/// Not read by the program either.
#[map]
pub static BACKEND_NAMES: Array<[u8; abi::NAME_LEN]> = Array::with_max_entries(4096, MMAPABLE);

/// The Maglev tables of all listeners, one after the other; a slot holds a backend's number.
/// Two slots an element, as elements of an array map are at least eight bytes long.
#[map]
pub static TABLES: Array<[u32; 2]> = Array::with_max_entries(1 << 19, MMAPABLE);

#[map]
pub static FLOWS: Array<FlowLine> = Array::with_max_entries(1 << 13, MMAPABLE);
#[map]
pub static FLOW_TUPLES: Array<FlowTuple> = Array::with_max_entries(WAYS as u32 * (1 << 13), MMAPABLE);

/// Indexes of the interfaces that carry the program, each at its place by the low bits.
#[map]
pub static PORTS: Array<u32> = Array::with_max_entries(abi::PORTS, MMAPABLE);

/// The next turn of each listener that goes by round robin.
#[map]
pub static TURNS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1024, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT as u32, 0);
#[map]
pub static BACKEND_STATS: PerCpuArray<BackendStats> = PerCpuArray::with_max_entries(4096, 0);

/// The packet being worked on.
#[map]
pub static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Where the question to the routing table is written: 64 bytes that the stack has no room for.
#[map]
pub static ROUTE_QUERY: PerCpuArray<bpf_fib_lookup> = PerCpuArray::with_max_entries(1, 0);

/// The steps of the packet being traced; the first element says how many there are.
#[map]
pub static TRACE_STEPS: PerCpuArray<[u32; 3]> = PerCpuArray::with_max_entries(crate::trace::MAX_STEPS + 1, 0);

/// The key of the flows' hash, laid out as `lb_common::hash::HashKey`: read a word at a time, it never lies on the
/// stack.
#[repr(C)]
pub struct HashKeyGlobals {
    pub words: [Global<u32>; 10],
    pub seed: Global<u64>,
}

const _: () = assert!(size_of::<HashKeyGlobals>() == size_of::<lb_common::hash::HashKey>());

#[unsafe(no_mangle)]
pub static HASH_KEY: HashKeyGlobals =
    HashKeyGlobals { words: [const { Global::new(0) }; 10], seed: Global::new(0) };

/// Stands for [`HASH_KEY`].
pub struct HashKeyConstant;

/// Lines of `FLOWS`.
#[unsafe(no_mangle)]
pub static FLOW_LINES: Global<u32> = Global::new(1 << 13);

/// A tick of the flow table's clock is 2 to this power jiffies.
#[unsafe(no_mangle)]
pub static TICK_SHIFT: Global<u32> = Global::new(8);

/// Not 0: log each step of each packet. The verifier knows this constant and removes what it switches off.
#[unsafe(no_mangle)]
pub static TRACE: Global<u32> = Global::new(0);
