//! What travels over the API. Version 1: fields are added, never renamed or removed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pools::PoolStatus;
use crate::health::Health;

/// Whether an operator wants a backend used. Kept across reloads and restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    #[default]
    Enabled,
    /// No new flows, old ones finish; still checked.
    Draining,
    /// As draining, and not checked.
    Disabled,
}

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub config_file: String,
    pub interfaces: Vec<InterfaceStatus>,
    pub services: Vec<ServiceStatus>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    pub name: String,
    pub index: u32,
    /// `native` or `generic`.
    pub mode: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    pub id: u32,
    pub name: String,
    pub state: ServiceState,
    /// As written in the configuration: `203.0.113.10:25/tcp`.
    pub listen: Vec<String>,
    pub pool: String,
    /// It and its backup, if there is one.
    #[serde(default)]
    pub pools: Vec<PoolStatus>,
    /// How often a listener went from one pool to another, or to none, since the daemon started.
    #[serde(default)]
    pub pool_switches: u64,
    /// Host names that its backends are found by.
    #[serde(default)]
    pub hosts: Vec<HostStatus>,
    pub forward: String,
    pub scheduler: String,
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub backends: Vec<BackendStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// At least one backend takes new flows.
    Active,
    /// None does.
    Down,
    /// By the file or by an operator: nobody is asked to take any.
    Disabled,
}

/// A host name in place of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    /// Of its backends, each of which also bears its address.
    pub name: String,
    /// What is resolved.
    pub host: String,
    pub pool: String,
    /// Those in use, by the last good answer.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// It has these no longer, and connections to them go on.
    #[schema(value_type = Vec<String>)]
    pub leaving: Vec<IpAddr>,
    /// Why the last question had no good answer. What was known before stays.
    pub error: Option<String>,
    /// Questions without a good answer, since the daemon started.
    pub failures: u64,
    /// When it is asked for again.
    pub next_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    pub id: u32,
    pub name: String,
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// `None`: the port the client connected to.
    pub port: Option<u16>,
    /// What holds: an operator's, else the file's.
    pub weight: u16,
    /// What the file says, where an operator has set another one.
    #[serde(default)]
    pub configured_weight: Option<u16>,
    /// The pool that it is in.
    #[serde(default)]
    pub pool: String,
    /// The least one that is up is used.
    #[serde(default)]
    pub priority: u8,
    /// The host name that its address is of; nothing where the file has the address.
    #[serde(default)]
    pub host: Option<String>,
    /// That name has this address no longer: it gets no new flows, and goes when the last one is over.
    #[serde(default)]
    pub leaving: bool,
    /// Others are used now: of another pool, or with a better priority.
    #[serde(default)]
    pub standby: bool,
    /// The most connections that it may have of each listener.
    #[serde(default)]
    pub max_connections: Option<u32>,
    /// Of some listener it has as many: it gets no new ones there.
    #[serde(default)]
    pub full: bool,
    /// While its slow start goes on: how much of its weight it has.
    #[serde(default)]
    pub ramp_percent: Option<u8>,
    pub health: Health,
    pub admin: AdminState,
    /// Share of checks that succeeded, 0.0 to 100.0; `None` before the first.
    pub availability_percent: Option<f64>,
    pub checks: u64,
    pub checks_up: u64,
    /// The text of the last failure, while not up.
    pub last_error: Option<String>,
    /// The number of that failure; docs/health-checks.md lists them.
    #[serde(default)]
    pub last_error_number: Option<u16>,
    pub last_check_millis: Option<u64>,
    /// What an operator should see to before it is a failure: a certificate that ends soon.
    #[serde(default)]
    pub notice: Option<String>,
    /// When the first of the certificates ends that the server sent, in seconds since the epoch.
    #[serde(default)]
    pub certificate_expires: Option<f64>,
    /// Opening connections that were offered to another backend because this one was silent or refused.
    #[serde(default)]
    pub moved_away: u64,
    /// Several of them within a second: it gets no new flows until its next good check.
    #[serde(default)]
    pub suspect: bool,
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// One line of `GET /v1/flows`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FlowStatus {
    pub service: String,
    pub backend: String,
    pub protocol: String,
    #[schema(value_type = String)]
    pub client: SocketAddr,
    #[schema(value_type = String)]
    pub vip: SocketAddr,
    #[schema(value_type = String)]
    pub server: SocketAddr,
    /// `opening`, `established`, `closing`, ...
    pub state: String,
    pub idle_seconds: u64,
}

/// `GET /v1/flows?limit=N&service=S`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Flows {
    /// How many there are in all; `flows` holds at most the limit asked for.
    pub total: u64,
    pub capacity: u64,
    pub flows: Vec<FlowStatus>,
}

/// `GET /v1/checks?service=S`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Checks {
    pub backends: Vec<BackendChecks>,
}

/// What the checks of a backend have found lately.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackendChecks {
    pub service: String,
    pub backend: String,
    /// `tcp`, `smtp`, ...
    pub check: String,
    /// What is checked: `198.51.100.11:25`, without a port where there is none.
    pub address: String,
    pub health: Health,
    /// When the first of the certificates ends that the server sent, in seconds since the epoch.
    pub certificate_expires: Option<f64>,
    /// The last ten, the newest first.
    pub results: Vec<CheckResult>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckResult {
    /// When the verdict fell, in seconds since the epoch.
    pub time: f64,
    /// From the start of the check to its verdict.
    pub millis: u64,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// The number of that failure; docs/health-checks.md lists them.
    pub error_number: Option<u16>,
}

/// `GET /v1/counters`: why packets were forwarded, passed or dropped.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    pub counters: BTreeMap<String, CounterValue>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CounterValue {
    pub value: u64,
    /// `forward`, `pass`, `drop` or `note`.
    pub verdict: String,
    pub help: String,
}

/// One line of `GET /v1/events` (newline-delimited JSON, as they happen).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts up from 1 for each daemon.
    pub number: u64,
    /// Seconds since the epoch, with fraction.
    pub time: f64,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    Health {
        service: String,
        backend: String,
        from: Health,
        to: Health,
        reason: String,
        /// Of the failure in `reason`, if it is one.
        #[serde(default)]
        error_number: Option<u16>,
    },
    /// The certificate that a backend sent ends soon, or has ended.
    Certificate {
        service: String,
        backend: String,
        /// Seconds since the epoch.
        expires: f64,
        /// Whole days until then; negative once it has ended.
        days: i64,
    },
    /// The packet path found a backend silent; it gets no new flows until its next good check.
    Suspect {
        service: String,
        backend: String,
        moved_away: u64,
    },
    Admin {
        service: String,
        backend: String,
        state: AdminState,
    },
    /// The weight of a backend by hand; `by_hand` is false when the file's holds again.
    Weight {
        service: String,
        backend: String,
        weight: u16,
        by_hand: bool,
    },
    Service {
        service: String,
        state: ServiceState,
    },
    /// New flows of a service go to these pools from now on.
    Pools {
        service: String,
        using: Vec<String>,
        /// The backup is among them.
        backup: bool,
    },
    /// A host name has other addresses than before, or resolves again.
    Resolved {
        host: String,
        #[schema(value_type = Vec<String>)]
        added: Vec<IpAddr>,
        #[schema(value_type = Vec<String>)]
        gone: Vec<IpAddr>,
    },
    /// There was no good answer for a host name; what it had stays. Told once, until there is one again.
    Unresolved {
        host: String,
        reason: String,
    },
    Reload {
        operations: u64,
    },
    ReloadRefused {
        errors: Vec<String>,
    },
    Adopted {
        services: u64,
        flows: u64,
    },
    /// How long after the verdict the packet path used the new backends.
    Applied {
        operations: u64,
        micros: u64,
    },
    FlowsReset {
        service: String,
        backend: String,
        flows: u64,
    },
    /// A vhid changed its state: `init`, `backup` or `master`.
    Carp {
        name: String,
        interface: String,
        vhid: u8,
        from: String,
        to: String,
        reason: String,
    },
    /// The other gateway is there, or there again.
    SyncPeerUp {
        #[schema(value_type = String)]
        peer: IpAddr,
    },
    /// It has been silent for some seconds.
    SyncPeerDown {
        #[schema(value_type = String)]
        peer: IpAddr,
    },
    /// All its flows are here.
    SyncReceived {
        flows: u64,
        millis: u64,
    },
    /// Nobody has answered since the start.
    SyncAlone,
}

/// `POST /v1/backends/{name}/{enable|disable|drain}?service=S` answers with what it changed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackendChange {
    pub state: AdminState,
    /// `service/backend` of each one changed.
    pub backends: Vec<String>,
}

/// `POST /v1/reload`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReloadOutcome {
    /// Map operations that were needed; 0 when nothing changed.
    pub operations: u64,
}

/// `GET /v1/reload`: what `POST /v1/reload` would do now. Nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReloadPlan {
    /// What the file says otherwise than the running configuration.
    pub changes: Vec<ConfigChange>,
    /// What would be done to the kernel's maps, one sentence each, in this order.
    pub operations: Vec<String>,
    /// What would not take effect by a reload, and what to do for it.
    pub warnings: Vec<String>,
}

/// One thing that the file has, lacks, or has in another form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigChange {
    pub change: ChangeKind,
    /// `service mail`, `backend mail/mx1`, `interfaces`
    pub subject: String,
    pub aspects: Vec<ChangedAspect>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    Added,
    Removed,
    Changed,
}

/// Without `from` it is new, without `to` it goes; without both it is something that must not be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedAspect {
    /// Empty where the subject says it all.
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

/// `POST /v1/poll`: every check has a result.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct PollOutcome {}

/// `GET /healthz`, `GET /readyz`: all is well.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Wellbeing {
    /// `ok` or `ready`.
    pub status: String,
}

/// Every answer outside 2xx.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// One sentence: what was wrong and what to do instead.
    pub error: String,
    /// Further lines, such as each error of a configuration as `file:line:column: text`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}
