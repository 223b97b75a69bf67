//! CARP as it travels over the API, and its metrics. Fields are added, never renamed or removed.

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

/// `GET /v1/carp`
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CarpStatus {
    /// In the order of the configuration.
    pub vhids: Vec<VhidStatus>,
    pub groups: Vec<GroupStatus>,
    /// Packets of protocol 112 that were not taken, by why.
    pub rejected: BTreeMap<String, CounterValue>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VhidStatus {
    pub name: String,
    pub interface: String,
    pub vhid: u8,
    /// `init`, `backup` or `master`.
    pub state: String,
    /// Since when, and why.
    pub since_seconds: u64,
    pub reason: String,
    /// An operator's wish: `promoted`, `demoted` or `released`.
    pub wish: String,
    /// With prefix lengths.
    pub addresses: Vec<String>,
    pub group: String,
    pub preempt: bool,
    /// As configured.
    pub advbase: u8,
    pub advskew: u8,
    /// As advertised: changed by demotion and by an operator's wish.
    pub advertised_advbase: u8,
    pub advertised_advskew: u8,
    pub demotion: u8,
    /// Who was heard last, when that is not long ago.
    pub peer: Option<PeerStatus>,
    pub sent: u64,
    pub send_errors: u64,
    pub received: u64,
    pub transitions: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PeerStatus {
    #[schema(value_type = String)]
    pub address: IpAddr,
    pub advbase: u8,
    pub advskew: u8,
    pub demotion: u8,
    pub seconds_ago: f64,
}

/// Vhids that are demoted together.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    pub name: String,
    pub demotion: u8,
    /// Why, and by how much each.
    pub owners: BTreeMap<String, u8>,
}

/// `POST /v1/carp/{promote|demote|release}?name=N` answers with the vhids it was done to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CarpChange {
    pub wish: String,
    pub vhids: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VhidLabels {
    name: String,
    interface: String,
    vhid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    name: String,
    interface: String,
    vhid: u32,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

/// Adds what there is of CARP; nothing where none is configured.
pub fn register(registry: &mut Registry, status: &CarpStatus) {
    if status.vhids.is_empty() {
        return;
    }
    let states = Family::<StateLabels, Gauge>::default();
    let demotion = Family::<VhidLabels, Gauge>::default();
    let sent = Family::<VhidLabels, Counter>::default();
    let errors = Family::<VhidLabels, Counter>::default();
    let received = Family::<VhidLabels, Counter>::default();
    let transitions = Family::<VhidLabels, Counter>::default();
    let rejected = Family::<ReasonLabels, Counter>::default();
    for vhid in &status.vhids {
        let (name, interface) = (vhid.name.clone(), vhid.interface.clone());
        let labels = VhidLabels { name, interface, vhid: u32::from(vhid.vhid) };
        demotion.get_or_create(&labels).set(i64::from(vhid.demotion));
        sent.get_or_create(&labels).inc_by(vhid.sent);
        errors.get_or_create(&labels).inc_by(vhid.send_errors);
        received.get_or_create(&labels).inc_by(vhid.received);
        transitions.get_or_create(&labels).inc_by(vhid.transitions);
        for state in ["init", "backup", "master"] {
            let VhidLabels { name, interface, vhid: number } = labels.clone();
            let labels = StateLabels { name, interface, vhid: number, state };
            states.get_or_create(&labels).set(i64::from(vhid.state == state));
        }
    }
    for (reason, counter) in &status.rejected {
        rejected.get_or_create(&ReasonLabels { reason: reason.clone() }).inc_by(counter.value);
    }
    registry.register("carp_state", "1 for the state the vhid is in", states);
    registry.register("carp_demotion", "Demotion that the vhid advertises", demotion);
    registry.register("carp_advertisements_sent", "Advertisements sent", sent);
    registry.register("carp_send_errors", "Advertisements that could not be sent", errors);
    registry.register("carp_advertisements_received", "Sound advertisements of others", received);
    registry.register("carp_transitions", "Changes of state", transitions);
    registry.register("carp_rejected", "Packets of protocol 112 that were not taken", rejected);
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn text(status: &CarpStatus) -> String {
        let mut registry = Registry::with_prefix("matapa");
        register(&mut registry, status);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn metrics() {
        assert_eq!(text(&CarpStatus::default()).trim(), "# EOF");
        let vhid = VhidStatus {
            name: "mail".to_owned(),
            interface: "eth0".to_owned(),
            vhid: 10,
            state: "master".to_owned(),
            since_seconds: 7,
            reason: "no advertisement for 3.000 s".to_owned(),
            wish: "released".to_owned(),
            addresses: vec!["203.0.113.10/24".to_owned()],
            group: "carp".to_owned(),
            preempt: true,
            advbase: 1,
            advskew: 0,
            advertised_advbase: 1,
            advertised_advskew: 240,
            demotion: 1,
            peer: None,
            sent: 5,
            send_errors: 0,
            received: 2,
            transitions: 3,
        };
        let counter = CounterValue { value: 4, verdict: "drop".to_owned(), help: String::new() };
        let rejected = [("carp_digest".to_owned(), counter)].into();
        let text = text(&CarpStatus { vhids: vec![vhid], groups: vec![], rejected });
        for line in [
            r#"matapa_carp_state{name="mail",interface="eth0",vhid="10",state="master"} 1"#,
            r#"matapa_carp_state{name="mail",interface="eth0",vhid="10",state="backup"} 0"#,
            r#"matapa_carp_demotion{name="mail",interface="eth0",vhid="10"} 1"#,
            r#"matapa_carp_advertisements_sent_total{name="mail",interface="eth0",vhid="10"} 5"#,
            r#"matapa_carp_transitions_total{name="mail",interface="eth0",vhid="10"} 3"#,
            r#"matapa_carp_rejected_total{reason="carp_digest"} 4"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
        }
    }
}
