//! What the lab reads of the API's answers. Fields it does not use are left out; the API may add more.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

/// `matapa show summary --json`
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    pub pid: u32,
    pub interfaces: Vec<InterfaceStatus>,
    pub services: Vec<ServiceStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct InterfaceStatus {
    pub name: String,
    pub mode: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ServiceStatus {
    pub name: String,
    /// `active`, `down` or `disabled`.
    pub state: String,
    pub flows: u64,
    pub packets: u64,
    pub backends: Vec<BackendStatus>,
    pub hosts: Vec<HostStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct HostStatus {
    pub host: String,
    pub addresses: Vec<IpAddr>,
    pub leaving: Vec<IpAddr>,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct BackendStatus {
    pub name: String,
    /// `unknown`, `up` or `down`.
    pub health: String,
    /// `enabled`, `draining` or `disabled`.
    pub admin: String,
    pub max_connections: Option<u32>,
    /// It has as many connections as it may.
    pub full: bool,
    pub checks: u64,
    /// The packet path found it silent.
    pub suspect: bool,
    pub moved_away: u64,
    pub flows: u64,
    pub packets: u64,
}

/// `matapa show backends --checks --json`
#[derive(Clone, Debug, Deserialize)]
pub struct Checks {
    pub backends: Vec<BackendChecks>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct BackendChecks {
    pub service: String,
    pub backend: String,
    pub check: String,
    pub address: String,
    pub health: String,
    /// Seconds since the epoch.
    pub certificate_expires: Option<f64>,
    /// The newest first.
    pub results: Vec<CheckResult>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CheckResult {
    pub time: f64,
    pub millis: u64,
    pub error: Option<String>,
    pub error_number: Option<u16>,
}

/// `matapa show flows --json`
#[derive(Clone, Debug, Deserialize)]
pub struct FlowTable {
    pub total: u64,
    pub flows: Vec<FlowStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct FlowStatus {
    pub service: String,
    pub backend: String,
    pub protocol: String,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub server: SocketAddr,
    pub state: String,
    pub idle_seconds: u64,
}

/// `matapa show counters --json`
#[derive(Clone, Debug, Deserialize)]
pub struct Counters {
    pub counters: BTreeMap<String, CounterValue>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct CounterValue {
    pub value: u64,
    pub verdict: String,
}

/// `matapa show carp --json`
#[derive(Clone, Debug, Deserialize)]
pub struct CarpStatus {
    pub vhids: Vec<VhidStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct VhidStatus {
    pub name: String,
    /// `init`, `backup` or `master`.
    pub state: String,
}

/// `matapa show sync --json`
#[derive(Clone, Debug, Deserialize)]
pub struct SyncStatus {
    /// `synchronised` when all flows of the peer are here and changes follow.
    pub state: String,
    /// All flows of the peer are here.
    pub received_all: bool,
    /// New and changed flows.
    pub flows_received: u64,
}

/// One line of `matapa monitor --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Counts up from 1.
    pub number: u64,
    /// Seconds since the epoch.
    pub time: f64,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    Health {
        backend: String,
        from: String,
        to: String,
        reason: String,
    },
    Certificate {
        service: String,
        backend: String,
        days: i64,
    },
    Admin {
        backend: String,
        state: String,
    },
    Adopted {
        services: u64,
        flows: u64,
    },
    Service {
        service: String,
        state: String,
    },
    /// The pools that a service's new connections go to.
    Pools {
        service: String,
        using: Vec<String>,
        backup: bool,
    },
    ReloadRefused {
        errors: Vec<String>,
    },
    Applied {
        operations: u64,
        micros: u64,
    },
    FlowsReset {
        backend: String,
        flows: u64,
    },
    Resolved {
        host: String,
        added: Vec<IpAddr>,
        gone: Vec<IpAddr>,
    },
    Unresolved {
        host: String,
        reason: String,
    },
    Reload {
        operations: u64,
    },
    Carp {
        name: String,
        from: String,
        to: String,
        reason: String,
    },
    /// All flows of the peer are here.
    SyncReceived {
        flows: u64,
        millis: u64,
    },
    #[serde(other)]
    Other,
}

impl CarpStatus {
    /// Whether every vhid is in this state.
    pub fn all(&self, state: &str) -> bool {
        !self.vhids.is_empty() && self.vhids.iter().all(|vhid| vhid.state == state)
    }
}

impl Status {
    /// The backend called `name`, of the first service that has it.
    pub fn backend(&self, name: &str) -> Option<&BackendStatus> {
        self.services.iter().flat_map(|service| &service.backends).find(|backend| backend.name == name)
    }

    pub fn service(&self, name: &str) -> Option<&ServiceStatus> {
        self.services.iter().find(|service| service.name == name)
    }
}
