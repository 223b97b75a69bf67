//! The maps and load-time constants, and nothing else. Their layout is `lb_common::abi`.
//!
//! Sizes here are the smallest that make sense; the daemon sets the real ones when it loads the program. The arrays
//! that the daemon writes or sweeps are memory-mapped by it.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use lb_common::abi::endpoint::EndpointLine;
use lb_common::abi::flow::{FlowLine, WAYS};
use lb_common::abi::hop::CLIENT_HOPS as CLIENTS;
use lb_common::abi::trace::{FILTERS, MAX_STEPS, StepWords, TraceEvent, TraceFilter};
use lb_common::abi::{
    self, Backend, BackendStats, ClientHop, Control, FlowTuple, Fragment, FragmentKey, Listener, NextHop,
    Port, Settings, SiblingKey, Sticky, StickyKey, VlanKey,
};
use lb_common::pipeline::{Stage, Work};
use lb_common::verdict::Reason;

const MMAPABLE: u32 = BPF_F_MMAPABLE;

#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, MMAPABLE);

#[map]
pub static ENDPOINTS: Array<EndpointLine> = Array::with_max_entries(1 << 10, MMAPABLE);

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

/// Live flows of each backend, counted by program and daemon together.
#[map]
pub static LIVE: Array<u64> = Array::with_max_entries(4096, MMAPABLE);

#[map]
pub static SNAT_ADDRESSES: Array<[u8; 16]> = Array::with_max_entries(abi::SNAT_ADDRESSES, MMAPABLE);
#[map]
pub static STICKY: LruHashMap<StickyKey, Sticky> = LruHashMap::with_max_entries(1 << 10, 0);
#[map]
pub static SIBLINGS: HashMap<SiblingKey, u32> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(1 << 10, 0);

/// The interfaces that packets may leave by, each at its place by the low bits of its index.
#[map]
pub static PORTS: Array<Port> = Array::with_max_entries(abi::PORTS, MMAPABLE);
#[map]
pub static VLANS: HashMap<VlanKey, u32> = HashMap::with_max_entries(256, BPF_F_NO_PREALLOC);

#[map]
pub static BACKEND_HOPS: PerCpuArray<NextHop> = PerCpuArray::with_max_entries(4096, 0);
#[map]
pub static CLIENT_HOPS: PerCpuArray<ClientHop> = PerCpuArray::with_max_entries(CLIENTS, 0);

/// The new flows of each listener on this CPU: the tick, and how many.
#[map]
pub static FLOOD: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1024, 0);

/// The programs of the stages.
#[map]
pub static STAGES: ProgramArray = ProgramArray::with_max_entries(Stage::ALL.len() as u32, 0);

/// Fragments that came before the first one of their datagram.
#[map]
pub static HELD: RingBuf = RingBuf::with_byte_size(1 << 18, 0);

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
pub static TRACE_STEPS: PerCpuArray<StepWords> = PerCpuArray::with_max_entries(MAX_STEPS + 1, 0);

/// The packet being traced, as it came in.
#[map]
pub static TRACE_PACKET: PerCpuArray<TraceEvent> = PerCpuArray::with_max_entries(1, 0);

/// Which packets are traced.
#[map]
pub static TRACE_FILTER: Array<TraceFilter> = Array::with_max_entries(FILTERS, MMAPABLE);

/// The packets that were, and their ways. Larger where they are.
#[map]
pub static TRACE_EVENTS: RingBuf = RingBuf::with_byte_size(1 << 12, 0);

/// While packets are traced: in its only place, the program for those that are not.
#[map]
pub static PLAIN: ProgramArray = ProgramArray::with_max_entries(1, 0);

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

/// Lines of `ENDPOINTS`, a power of two.
#[unsafe(no_mangle)]
pub static ENDPOINT_LINES: Global<u32> = Global::new(1 << 10);

/// Lines of `FLOWS`.
#[unsafe(no_mangle)]
pub static FLOW_LINES: Global<u32> = Global::new(1 << 13);

/// A tick of the flow table's clock is 2 to this power jiffies.
#[unsafe(no_mangle)]
pub static TICK_SHIFT: Global<u32> = Global::new(8);

/// As in `lb_common::abi::trace`. The verifier knows this constant and removes what it switches off.
#[unsafe(no_mangle)]
pub static TRACE: Global<u32> = Global::new(0);
