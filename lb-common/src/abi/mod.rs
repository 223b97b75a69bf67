//! The layout of the maps: what the daemon writes and the program reads, and the other way round.
//!
//! Any change to a type in here changes [`ABI_VERSION`], which is stored in the pinned maps: a daemon never adopts
//! maps of another version.

pub mod backend;
pub mod control;
pub mod endpoint;
pub mod flow;
pub mod listener;
pub mod net;
pub mod stats;

pub use backend::{Backend, BackendFlags};
pub use control::Control;
pub use endpoint::{Endpoint4, Endpoint6, Side};
pub use flow::{FlowTuple, FlowWord};
pub use listener::{Listener, ListenerFlags, SchedulerCode, TableRef};
pub use net::{Be16, Family, Protocol};
pub use stats::BackendStats;

/// Version of everything in this module.
pub const ABI_VERSION: u32 = 1;

/// Names of the maps, as in the object file and in the pin directory.
pub mod map {
    pub const CONTROL: &str = "CONTROL";
    pub const ENDPOINTS4: &str = "ENDPOINTS4";
    pub const ENDPOINTS6: &str = "ENDPOINTS6";
    pub const LISTENERS: &str = "LISTENERS";
    pub const LISTENER_NAMES: &str = "LISTENER_NAMES";
    pub const BACKENDS: &str = "BACKENDS";
    pub const BACKEND_NAMES: &str = "BACKEND_NAMES";
    pub const TABLES: &str = "TABLES";
    pub const FLOWS: &str = "FLOWS";
    pub const FLOW_TUPLES: &str = "FLOW_TUPLES";
    pub const PORTS: &str = "PORTS";
    pub const TURNS: &str = "TURNS";
    pub const COUNTERS: &str = "COUNTERS";
    pub const BACKEND_STATS: &str = "BACKEND_STATS";

    /// All of them, in the order in which they are pinned.
    pub const ALL: [&str; 14] = [
        CONTROL,
        ENDPOINTS4,
        ENDPOINTS6,
        LISTENERS,
        LISTENER_NAMES,
        BACKENDS,
        BACKEND_NAMES,
        TABLES,
        FLOWS,
        FLOW_TUPLES,
        PORTS,
        TURNS,
        COUNTERS,
        BACKEND_STATS,
    ];
}

/// Names of the program and of its load-time constants.
pub const PROGRAM: &str = "matapa_xdp";
pub const CLOCK_PROGRAM: &str = "matapa_clock";
pub const GLOBAL_HASH_KEY: &str = "HASH_KEY";
pub const GLOBAL_FLOW_LINES: &str = "FLOW_LINES";
pub const GLOBAL_TICK_SHIFT: &str = "TICK_SHIFT";
pub const GLOBAL_TRACE: &str = "TRACE";

/// A backend's number has 17 bits in a flow entry.
pub const MAX_BACKENDS: u32 = 1 << 17;

/// Elements of `PORTS`, a power of two. The interface with index `i` stands at `i % PORTS`; of two that share a
/// place, one is left to the kernel.
pub const PORTS: u32 = 1024;

/// Bytes of a name in `LISTENER_NAMES` and `BACKEND_NAMES`, filled up with zeros.
pub const NAME_LEN: usize = 64;
