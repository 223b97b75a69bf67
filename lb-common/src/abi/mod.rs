//! The layout of the maps: what the daemon writes and the program reads, and the other way round.
//!
//! Any change to a type in here changes [`ABI_VERSION`], which is stored in the pinned maps: a daemon never adopts
//! maps of another version. It moves what is in older ones to maps of its own, as far as it can read them: the daemon's
//! `dataplane::kernel::layout` has how, and gets the layout that a change leaves behind.

pub mod backend;
pub mod control;
pub mod endpoint;
pub mod flow;
pub mod hop;
pub mod listener;
mod live;
pub mod memo;
pub mod net;
pub mod port;
pub mod settings;
pub mod stats;
pub mod trace;

pub use backend::{Backend, BackendFlags, Mode};
pub use control::Control;
pub use endpoint::{EndpointWord, Side};
pub use flow::{FlowTuple, FlowWord};
pub use hop::{ClientHop, NextHop};
pub use listener::{Listener, ListenerFlags, SchedulerCode, TableRef};
pub use live::Live;
pub use memo::{Fragment, FragmentKey, Held, SiblingKey, Sticky, StickyKey};
pub use net::{Be16, Family, Protocol};
pub use port::{Port, Tag, VlanKey};
pub use settings::{Features, Settings};
pub use stats::BackendStats;

/// Version of everything in this module.
pub const ABI_VERSION: u32 = if cfg!(feature = "next-layout") { THIS_VERSION + 1 } else { THIS_VERSION };
const THIS_VERSION: u32 = 4;

/// Names of the maps, as in the object file and in the pin directory.
pub mod map {
    pub const CONTROL: &str = "CONTROL";
    pub const SETTINGS: &str = "SETTINGS";
    pub const ENDPOINTS: &str = "ENDPOINTS";
    pub const LISTENERS: &str = "LISTENERS";
    pub const LISTENER_NAMES: &str = "LISTENER_NAMES";
    pub const BACKENDS: &str = "BACKENDS";
    pub const BACKEND_NAMES: &str = "BACKEND_NAMES";
    pub const TABLES: &str = "TABLES";
    pub const FLOWS: &str = "FLOWS";
    pub const FLOW_TUPLES: &str = "FLOW_TUPLES";
    pub const LIVE: &str = "LIVE";
    pub const SNAT_ADDRESSES: &str = "SNAT_ADDRESSES";
    pub const STICKY: &str = "STICKY";
    pub const SIBLINGS: &str = "SIBLINGS";
    pub const FRAGMENTS: &str = "FRAGMENTS";
    pub const PORTS: &str = "PORTS";
    pub const VLANS: &str = "VLANS";
    pub const TURNS: &str = "TURNS";
    pub const COUNTERS: &str = "COUNTERS";
    pub const BACKEND_STATS: &str = "BACKEND_STATS";

    /// Those that are not pinned: they belong to one loaded object.
    pub const FLOOD: &str = "FLOOD";
    pub const BACKEND_HOPS: &str = "BACKEND_HOPS";
    pub const CLIENT_HOPS: &str = "CLIENT_HOPS";
    pub const STAGES: &str = "STAGES";
    pub const HELD: &str = "HELD";
    pub const TRACE_STEPS: &str = "TRACE_STEPS";
    pub const TRACE_PACKET: &str = "TRACE_PACKET";
    pub const TRACE_FILTER: &str = "TRACE_FILTER";
    pub const TRACE_EVENTS: &str = "TRACE_EVENTS";
    pub const PLAIN: &str = "PLAIN";

    /// Those that outlive the daemon, in the order in which they are pinned.
    pub const ALL: [&str; 20] = [
        CONTROL,
        SETTINGS,
        ENDPOINTS,
        LISTENERS,
        LISTENER_NAMES,
        BACKENDS,
        BACKEND_NAMES,
        TABLES,
        FLOWS,
        FLOW_TUPLES,
        LIVE,
        SNAT_ADDRESSES,
        STICKY,
        SIBLINGS,
        FRAGMENTS,
        PORTS,
        VLANS,
        TURNS,
        COUNTERS,
        BACKEND_STATS,
    ];
}

/// Names of the program and of its load-time constants.
pub const PROGRAM: &str = "matapa_xdp";
pub const CLOCK_PROGRAM: &str = "matapa_clock";
/// What stands for a stage that is yet to be loaded: leaves the packet to the kernel.
pub const LATER_PROGRAM: &str = "matapa_later";
/// What stands in front of the first stage while packets are traced.
pub const TRACE_PROGRAM: &str = "matapa_trace";
pub const GLOBAL_HASH_KEY: &str = "HASH_KEY";
pub const GLOBAL_FLOW_LINES: &str = "FLOW_LINES";
pub const GLOBAL_ENDPOINT_LINES: &str = "ENDPOINT_LINES";
pub const GLOBAL_TICK_SHIFT: &str = "TICK_SHIFT";
pub const GLOBAL_TRACE: &str = "TRACE";

/// The programs of the stages, each at its index in `STAGES`. The first one is [`PROGRAM`].
pub const STAGE_PROGRAMS: &[&str] = crate::pipeline::Stage::PROGRAMS;

/// Stages that another program stands for when a packet is explained: of the first name, the second.
pub const EXPLAINING_PROGRAMS: [(&str, &str); 1] = [("matapa_record", "matapa_dry_record")];

/// A backend's number has 17 bits in a flow entry.
pub const MAX_BACKENDS: u32 = 1 << 17;

/// Elements of `SNAT_ADDRESSES`, 16 bytes each: IPv4 as mapped address. Only a number in use is read.
pub const SNAT_ADDRESSES: u32 = 256;

/// Elements of `PORTS`, a power of two. The interface with index `i` stands at `i % PORTS`; of two that share a
/// place, one is left to the kernel.
pub const PORTS: u32 = 1024;

/// Bytes of a name in `LISTENER_NAMES` and `BACKEND_NAMES`, filled up with zeros.
pub const NAME_LEN: usize = if cfg!(feature = "next-layout") { 96 } else { 64 };
