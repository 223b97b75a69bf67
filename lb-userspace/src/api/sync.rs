//! Flow synchronisation as it travels over the API, and its metrics. Fields are added, never renamed or removed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::types::CounterValue;

/// How far the other gateway and this one have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Nothing acceptable has been heard yet.
    #[default]
    Waiting,
    /// Its flows are being received.
    Receiving,
    /// All its flows are here, and changes follow.
    Synchronised,
    /// It was there and has been silent for some seconds.
    Silent,
    /// It speaks another version.
    OtherVersion,
}

impl PeerState {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Receiving => "receiving",
            Self::Synchronised => "synchronised",
            Self::Silent => "silent",
            Self::OtherVersion => "other version",
        }
    }
}

/// `GET /v1/sync`
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SyncStatus {
    /// Everything else is empty when it is not.
    pub configured: bool,
    #[schema(value_type = Option<String>)]
    pub peer: Option<IpAddr>,
    pub interface: String,
    pub state: PeerState,
    /// Random numbers of this start and of the peer's.
    pub session: String,
    pub peer_session: Option<String>,
    /// Sessions of the peer since this start.
    pub sessions: u64,
    pub heard_seconds_ago: Option<f64>,
    /// All flows of the peer are here; all of ours have been sent.
    pub received_all: bool,
    pub sent_all: bool,
    /// New and changed flows, without repetitions.
    pub flows_sent: u64,
    pub removals_sent: u64,
    pub flows_received: u64,
    pub removals_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Batches that are not acknowledged.
    pub in_flight: u64,
    /// Batches that were sent once more.
    pub resent: u64,
    pub send_errors: u64,
    /// Flows of which the peer does not know the latest.
    pub behind: u64,
    /// More changes than can be sent now: they wait in the flow table.
    pub held_back: bool,
    /// How long the latest batch was, or the oldest one is, under way.
    pub lag_millis: f64,
    /// Datagrams that were not taken, by why.
    pub refused: BTreeMap<String, CounterValue>,
    /// Flows of the peer that have no place here, by why.
    pub left_out: BTreeMap<String, CounterValue>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

/// Adds what there is; nothing where it is not configured.
pub fn register(registry: &mut Registry, status: &SyncStatus) {
    if !status.configured {
        return;
    }
    let gauge = |value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge
    };
    let counter = |value: u64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        counter
    };
    let up = u64::from(status.state == PeerState::Synchronised);
    registry.register("sync_up", "1 while the peer is there and all its flows are here", gauge(up));
    registry.register(
        "sync_behind",
        "Flows of which the peer does not know the latest",
        gauge(status.behind),
    );
    registry.register("sync_in_flight", "Batches that are not acknowledged", gauge(status.in_flight));
    let lag = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
    lag.set(status.lag_millis / 1000.0);
    registry.register("sync_lag_seconds", "How long the latest batch was, or the oldest is, under way", lag);
    for (name, help, value) in [
        ("sync_flows_sent", "New and changed flows sent", status.flows_sent),
        ("sync_removals_sent", "Ends of flows sent", status.removals_sent),
        ("sync_flows_received", "New and changed flows received", status.flows_received),
        ("sync_removals_received", "Ends of flows received", status.removals_received),
        ("sync_resent", "Batches sent once more", status.resent),
        ("sync_send_errors", "Datagrams that could not be sent", status.send_errors),
        ("sync_sessions", "Sessions of the peer", status.sessions),
        ("sync_sent_bytes", "Bytes sent", status.bytes_sent),
        ("sync_received_bytes", "Bytes received", status.bytes_received),
    ] {
        registry.register(name, help, counter(value));
    }
    for (name, help, reasons) in [
        ("sync_refused", "Datagrams that were not taken", &status.refused),
        ("sync_left_out", "Flows of the peer that have no place here", &status.left_out),
    ] {
        let family = Family::<ReasonLabels, Counter>::default();
        for (reason, counter) in reasons {
            family.get_or_create(&ReasonLabels { reason: reason.clone() }).inc_by(counter.value);
        }
        registry.register(name, help, family);
    }
}
