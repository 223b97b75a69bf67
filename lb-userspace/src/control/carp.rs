//! What CARP and the rest tell each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::task::Control;
use crate::api::types::{EventKind, ServiceState};
use crate::carp::demotion::Owner;
use crate::carp::fsm::State;
use crate::carp::task::{Change, Command};
use crate::config::Carp;

/// What vhids are, by interface and number.
pub type VhidStates = BTreeMap<(String, u8), State>;

/// The shared addresses that this gateway does not have now: packets to them come to another.
pub(super) fn addresses_elsewhere(vhids: &[Carp], states: &VhidStates) -> BTreeSet<IpAddr> {
    let is_master = |vhid: &&Carp| states.get(&(vhid.interface.clone(), vhid.vhid)) == Some(&State::Master);
    let addresses = |vhid: &Carp| vhid.addresses.iter().map(|one| one.address).collect::<Vec<_>>();
    vhids.iter().filter(|vhid| !is_master(vhid)).flat_map(addresses).collect()
}

impl Control {
    /// Tells everybody who listens that a vhid has changed its state.
    pub(super) fn tell_carp(&mut self, change: Change) {
        let Change { name, interface, vhid, from, to, reason } = change;
        self.vhid_states.insert((interface.clone(), vhid), to);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn shared_addresses_are_elsewhere_unless_their_vhid_is_master() {
        let vhid = |name: &str, interface: &str, number: u8, address: &str| {
            format!(
                "[carp.{name}]\ninterface = '{interface}'\nvhid = {number}\naddresses = ['{address}']\npassword = 'x'\n"
            )
        };
        let source = vhid("a", "eth0", 10, "203.0.113.10/24") + &vhid("b", "eth1", 10, "2001:db8::10/64");
        let config = crate::config::parse(&source, Path::new("x.toml")).unwrap();
        let (a, b): (IpAddr, IpAddr) = ("203.0.113.10".parse().unwrap(), "2001:db8::10".parse().unwrap());
        let key = |interface: &str| (interface.to_owned(), 10);
        let elsewhere = |states: VhidStates| addresses_elsewhere(&config.carp, &states);
        assert_eq!(elsewhere(VhidStates::new()), [a, b].into());
        assert_eq!(elsewhere([(key("eth0"), State::Master)].into()), [b].into());
        let states = [(key("eth0"), State::Backup), (key("eth1"), State::Master)];
        assert_eq!(elsewhere(states.into()), [a].into());
        assert_eq!(addresses_elsewhere(&[], &VhidStates::new()), BTreeSet::new());
    }
}
