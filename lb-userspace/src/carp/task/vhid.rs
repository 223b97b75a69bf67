//! One vhid: its plan, its state machine, and what is counted and shown of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::api::carp::{PeerStatus, VhidStatus};
use crate::carp::fsm::{Advertisement, Machine};
use crate::carp::io::announce::Mac;
use crate::carp::io::link::Assigned;
use crate::carp::io::notify::Notifier;
use crate::carp::io::virtual_mac;
use crate::carp::plan::Plan;
use crate::carp::wire::{GROUP4, GROUP6, Rejected, group};
use crate::config::CarpMac;

/// A peer that was not heard for longer is not shown.
const PEER_SHOWN: Duration = Duration::from_secs(600);

/// A vhid that runs.
#[derive(Debug)]
pub(super) struct Vhid {
    pub(super) plan: Plan,
    pub(super) machine: Machine,
    /// The counter of its advertisements, the same in all as OpenBSD has it: ucarp and FreeBSD continue the counters they
    /// hear, so that a counting one could not be told from an echo.
    pub(super) cookie: u64,
    pub(super) notifier: Notifier,
    pub(super) notified: tokio::task::JoinHandle<()>,
    pub(super) since: Instant,
    pub(super) reason: String,
    pub(super) peer: Option<(IpAddr, Advertisement, Instant)>,
    pub(super) sent: u64,
    pub(super) send_errors: u64,
    pub(super) received: u64,
    pub(super) transitions: u64,
    /// Of errors, or, while demoted for them, of successes.
    pub(super) run: u32,
    pub(super) told: BTreeMap<Rejected, Instant>,
}

impl Vhid {
    pub(super) fn new(plan: Plan, adopting: bool) -> Self {
        let (notifier, notified) = Notifier::start();
        let machine = Machine::new(plan.settings(), adopting);
        Self {
            plan,
            machine,
            cookie: rand::random(),
            notifier,
            notified,
            since: Instant::now(),
            reason: "started".to_owned(),
            peer: None,
            sent: 0,
            send_errors: 0,
            received: 0,
            transitions: 0,
            run: 0,
            told: BTreeMap::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.plan.config.name
    }

    pub(super) fn interface(&self) -> &str {
        &self.plan.config.interface
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.plan.config.addresses.iter().any(|a| a.address == address)
    }

    pub(super) fn assigned(&self) -> impl Iterator<Item = Assigned> {
        self.plan.config.addresses.iter().map(|a| Assigned { address: a.address, prefix: a.prefix })
    }

    pub(super) fn virtual_mac(&self) -> Option<Mac> {
        (self.plan.config.mac == CarpMac::Virtual).then(|| virtual_mac::mac(self.plan.config.vhid))
    }

    /// Whether somebody may send an advertisement from and to these addresses.
    pub(super) fn expects(&self, source: IpAddr, destination: IpAddr) -> bool {
        match self.plan.config.peers.as_slice() {
            [] => destination == group(destination),
            peers => !destination.is_multicast() && peers.contains(&source),
        }
    }

    /// Who is told: one group for each family, or the peers.
    pub(super) fn destinations(&self) -> Vec<IpAddr> {
        let groups = [(true, IpAddr::from(GROUP4)), (false, IpAddr::from(GROUP6))];
        match self.plan.config.peers.as_slice() {
            [] => groups.into_iter().filter(|(v4, _)| self.plan.uses(*v4)).map(|(_, group)| group).collect(),
            peers => peers.to_vec(),
        }
    }

    pub(super) fn status(&self) -> VhidStatus {
        let config = &self.plan.config;
        let advertised = self.machine.timing();
        VhidStatus {
            name: config.name.clone(),
            interface: config.interface.clone(),
            vhid: config.vhid,
            state: self.machine.state().name().to_owned(),
            since_seconds: self.since.elapsed().as_secs(),
            reason: self.reason.clone(),
            wish: self.machine.wish().name().to_owned(),
            addresses: config.addresses.iter().map(ToString::to_string).collect(),
            group: config.group.clone(),
            preempt: config.preempt,
            advbase: config.advbase,
            advskew: config.advskew,
            advertised_advbase: advertised.base,
            advertised_advskew: advertised.skew,
            demotion: self.machine.demotion(),
            peer: self.peer.filter(|(.., at)| at.elapsed() < PEER_SHOWN).map(|(address, said, at)| {
                PeerStatus {
                    address,
                    advbase: said.timing.base,
                    advskew: said.timing.skew,
                    demotion: said.demotion,
                    seconds_ago: at.elapsed().as_secs_f64(),
                }
            }),
            sent: self.sent,
            send_errors: self.send_errors,
            received: self.received,
            transitions: self.transitions,
        }
    }
}
