//! Advertisements and announcements.

use std::net::IpAddr;

use log::{debug, info, warn};

use super::Engine;
use crate::carp::demotion::Owner;
use crate::carp::fsm::{Advertisement, State};
use crate::carp::io::link::Assigned;
use crate::carp::wire::Header;

/// Advertisements in a row that fail, or succeed, before demotion changes; OpenBSD's number.
const SEND_RUN: u32 = 3;

impl Engine {
    /// Where advertisements to somebody come from: the interface's own first address that fits, else a shared one.
    pub(super) fn source(&self, index: usize, towards: IpAddr) -> Option<IpAddr> {
        let vhid = &self.vhids[index];
        let link = self.ports.get(vhid.interface())?.link.as_ref()?;
        let is_local = |address: &IpAddr| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
        };
        let shared = |address: &IpAddr| self.vhids.iter().any(|vhid| vhid.has(*address));
        let family = || link.addresses.iter().map(|a| a.address).filter(|a| a.is_ipv4() == towards.is_ipv4());
        let own = || family().filter(|address| !shared(address));
        own()
            .find(|address| is_local(address) == is_local(&towards))
            .or_else(|| own().next())
            .or_else(|| family().find(|address| vhid.has(*address)))
            .or_else(|| {
                let on_device = vhid.virtual_mac().is_some() && vhid.machine.holds_addresses();
                let mut addresses = vhid.assigned().map(|a| a.address);
                addresses.find(|address| on_device && address.is_ipv4() == towards.is_ipv4())
            })
    }

    pub(super) fn advertise(&mut self, index: usize, what: Advertisement) {
        let vhid = &self.vhids[index];
        let header = Header {
            vhid: vhid.plan.config.vhid,
            advbase: what.timing.base,
            advskew: what.timing.skew,
            demotion: what.demotion,
            counter: vhid.cookie,
            digest: vhid.plan.authenticator.digest(vhid.cookie),
        };
        let bytes = header.encode();
        let mut failure = None;
        let interface = vhid.interface();
        let sockets = self.ports.get(interface).and_then(|port| port.sockets.as_ref());
        for destination in vhid.destinations() {
            let (Some(sockets), Some(source)) = (sockets, self.source(index, destination)) else {
                failure = Some(format!("{interface} has no address to send to {destination} from"));
                continue;
            };
            let sent = match vhid.virtual_mac() {
                Some(mac) if destination.is_multicast() => {
                    self.announcer.advertise(sockets.index(), mac, source, &bytes)
                }
                _ => sockets.send(source, destination, &bytes),
            };
            if let Err(error) = sent {
                failure = Some(format!("from {source} to {destination}: {error}"));
            }
        }
        let unheard = vhid.virtual_mac().is_some() && !vhid.plan.config.peers.is_empty();
        self.sent(index, failure);
        if unheard && self.vhids[index].machine.state() == State::Master {
            // Nothing else comes from the virtual MAC address, and switches would forget it.
            self.announce(index);
        }
    }

    /// Counts, and demotes the group of a vhid whose advertisements do not get out.
    pub(super) fn sent(&mut self, index: usize, failure: Option<String>) {
        let vhid = &mut self.vhids[index];
        let (group, owner) = (vhid.plan.config.group.clone(), Owner::Sending(vhid.name().to_owned()));
        let demoted = self.demotions.owners(&group).any(|(one, _)| *one == owner);
        vhid.sent += u64::from(failure.is_none());
        vhid.send_errors += u64::from(failure.is_some());
        vhid.run = if failure.is_some() == demoted { 0 } else { vhid.run + 1 };
        if vhid.run >= SEND_RUN {
            vhid.run = 0;
            if let Some(failure) = failure {
                warn!("carp {}: advertisements cannot be sent: {failure}", vhid.name());
                let by = owner.usual();
                self.demotions.set(&group, owner, by);
            } else {
                info!("carp {}: advertisements can be sent again", vhid.name());
                self.demotions.set(&group, owner, 0);
            }
        } else if let Some(failure) = failure {
            debug!("carp {}: {failure}", vhid.name());
        }
    }

    pub(super) fn announce(&self, index: usize) {
        let vhid = &self.vhids[index];
        let Some(link) = self.ports.get(vhid.interface()).and_then(|port| port.link.as_ref()) else { return };
        let mac = vhid.virtual_mac().unwrap_or(link.mac);
        for Assigned { address, .. } in vhid.assigned() {
            if let Err(error) = self.announcer.announce(link.index, mac, address) {
                debug!("cannot announce {address} on {}: {error}", vhid.interface());
            }
        }
    }
}
