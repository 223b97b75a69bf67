//! What CARP and the rest tell each other.

use std::net::IpAddr;

use super::task::Control;
use crate::api::types::{EventKind, ServiceState};
use crate::carp::demotion::Owner;
use crate::carp::task::{Change, Command};

impl Control {
    /// Tells everybody who listens that a vhid has changed its state.
    pub(super) fn tell_carp(&mut self, change: Change) {
        let Change { name, interface, vhid, from, to, reason } = change;
        let (from, to) = (from.name().to_owned(), to.name().to_owned());
        self.emit(EventKind::Carp { name, interface, vhid, from, to, reason });
    }

    /// Demotes the vhids that have addresses of services without a backend, and takes that back.
    pub(super) fn demote_for_services(&self) {
        let states = self.service_states();
        let owners = self.config.services.iter().map(|service| {
            let addresses: Vec<IpAddr> = service.listen.iter().map(|listen| listen.address).collect();
            let owner = Owner::Service(service.name.clone());
            let down = states.get(&service.name) == Some(&ServiceState::Down);
            let by = if down { owner.usual() } else { 0 };
            (owner, addresses, by)
        });
        self.carp.send(Command::Services(owners.collect()));
    }
}
