//! Where addresses belong: looking at interfaces, and putting addresses and devices right.

use std::collections::BTreeSet;

use log::{debug, warn};

use super::Engine;
use super::look::Port;
use super::look::Seen;
use super::vhid::Vhid;
use crate::carp::demotion::Owner;
use crate::carp::io::announce::Mac;
use crate::carp::io::link::{Assigned, Link};
use crate::carp::io::socket::Sockets;
use crate::carp::io::virtual_mac;
use crate::carp::plan::Plan;
use crate::config::CarpMac;

impl Engine {
    /// The addresses where those of a vhid belong, now.
    pub(super) async fn look_at(&self, plan: &Plan) -> Vec<Assigned> {
        let link = async |name: &str| self.netlink.link(name).await.ok().flatten();
        let Some(mut found) = link(&plan.config.interface).await else { return Vec::new() };
        if plan.config.mac == CarpMac::Virtual {
            match link(&virtual_mac::device(plan.config.vhid, found.index)).await {
                Some(device) => found = device,
                None => return Vec::new(),
            }
        }
        found.addresses
    }

    /// Interfaces with vhids, and those where something is still to be taken off.
    pub(super) fn interfaces(&self) -> BTreeSet<String> {
        let used = self.vhids.iter().map(|vhid| vhid.interface().to_owned());
        used.chain(self.retired.iter().map(|(interface, _)| interface.clone())).collect()
    }

    /// Takes in what interfaces are now: opens and closes sockets, and puts addresses right.
    pub(super) async fn see(&mut self, seen: Seen) {
        let interfaces = self.interfaces();
        self.ports.retain(|name, _| interfaces.contains(name));
        for (name, link) in seen.into_iter().filter(|(name, _)| interfaces.contains(name)) {
            match link {
                Ok(link) => self.follow(&name, link),
                // The state of a moment ago is the best guess.
                Err(error) => warn!("cannot look at interface {name}: {error}"),
            }
            self.put_addresses(&name).await;
            self.put_devices(&name).await;
        }
        for index in 0..self.vhids.len() {
            let now = self.now();
            let vhid = &mut self.vhids[index];
            let running = self.ports.get(vhid.interface()).is_some_and(Port::is_running);
            let (group, owner) = (vhid.plan.config.group.clone(), Owner::Link(vhid.name().to_owned()));
            let by = if running { 0 } else { owner.usual() };
            let actions = vhid.machine.on_link(now, running);
            self.demotions.set(&group, owner, by);
            self.perform(index, actions).await;
        }
    }

    /// Takes in what an interface is now.
    pub(super) fn follow(&mut self, name: &str, link: Option<Link>) {
        let of_port = || self.vhids.iter().filter(|vhid| vhid.interface() == name);
        let families = (of_port().any(|v| v.plan.uses(true)), of_port().any(|v| v.plan.uses(false)));
        let port = self.ports.entry(name.to_owned()).or_default();
        let index = link.as_ref().map(|link| link.index);
        let stale = port.sockets.as_ref().map(Sockets::index) != index || port.families != families;
        if stale {
            port.sockets = None;
        }
        let mut trouble = None;
        match index {
            Some(index) if stale && families != (false, false) => {
                match Sockets::open(name, index, families.0, families.1) {
                    Ok(sockets) => {
                        port.sockets = Some(sockets);
                        port.families = families;
                    }
                    Err(error) => trouble = Some(format!("cannot open the CARP sockets on {name}: {error}")),
                }
            }
            Some(_) => {}
            None => trouble = Some(format!("there is no interface {name}; waiting for it")),
        }
        if let Some(trouble) = &trouble
            && port.trouble.as_ref() != Some(trouble)
        {
            warn!("{trouble}");
        }
        port.trouble = trouble;
        port.link = link;
    }

    /// Makes the addresses on an interface those of its masters, and leaves alone what belongs to no vhid.
    pub(super) async fn put_addresses(&mut self, interface: &str) {
        let Some(port) = self.ports.get_mut(interface) else { return };
        let Some(link) = &mut port.link else { return };
        let of_port = || self.vhids.iter().filter(|vhid| vhid.interface() == interface);
        let wanted: BTreeSet<Assigned> = of_port()
            .filter(|vhid| vhid.machine.holds_addresses() && vhid.virtual_mac().is_none())
            .flat_map(Vhid::assigned)
            .collect();
        let ours = of_port().flat_map(Vhid::assigned);
        let retired = self.retired.iter().filter(|(name, _)| name == interface).map(|(_, address)| *address);
        let unwanted: BTreeSet<Assigned> = ours.chain(retired).filter(|one| !wanted.contains(one)).collect();
        let has = |link: &Link, one: &Assigned| link.addresses.contains(one);
        for one in unwanted.into_iter().filter(|one| has(link, one)).collect::<Vec<_>>() {
            match self.netlink.remove(link.index, one).await {
                Ok(()) => {
                    debug!("{one} taken off {interface}");
                    link.addresses.retain(|other| *other != one);
                }
                Err(error) => warn!("cannot take {one} off {interface}: {error}"),
            }
        }
        for one in wanted.into_iter().filter(|one| !has(link, one)).collect::<Vec<_>>() {
            match self.netlink.add(link.index, one, true).await {
                Ok(()) => {
                    debug!("{one} put on {interface}");
                    link.addresses.push(one);
                }
                Err(error) => warn!("cannot put {one} on {interface}: {error}"),
            }
        }
        let left = &link.addresses;
        self.retired.retain(|(name, address)| name != interface || left.contains(address));
    }

    /// As [`Engine::put_addresses`], for vhids with a MAC address and a device of their own.
    pub(super) async fn put_devices(&mut self, interface: &str) {
        let Some(link) = self.ports.get(interface).and_then(|port| port.link.as_ref()) else { return };
        for vhid in self.vhids.iter().filter(|vhid| vhid.interface() == interface) {
            let Some(mac) = vhid.virtual_mac() else { continue };
            let device = virtual_mac::device(vhid.plan.config.vhid, link.index);
            if let Err(error) = self.put_device(link, vhid, mac, &device).await {
                warn!("carp {}: the device {device} is not as it should be: {error}", vhid.name());
            }
        }
    }

    pub(super) async fn put_device(
        &self,
        parent: &Link,
        vhid: &Vhid,
        mac: Mac,
        device: &str,
    ) -> std::io::Result<()> {
        let holds = vhid.machine.holds_addresses();
        let found = match self.netlink.link(device).await? {
            Some(found) => found,
            None => {
                self.netlink.add_macvlan(device, parent.index, mac).await?;
                virtual_mac::prepare(vhid.interface(), device);
                self.netlink.link(device).await?.ok_or(std::io::ErrorKind::NotFound)?
            }
        };
        if found.up != holds {
            self.netlink.set_up(found.index, holds).await?;
        }
        let wanted: BTreeSet<Assigned> = vhid.assigned().filter(|_| holds).collect();
        for old in found.addresses.iter().filter(|old| !wanted.contains(old)) {
            self.netlink.remove(found.index, *old).await?;
        }
        for new in wanted.iter().filter(|new| !found.addresses.contains(new)) {
            // Where the interface is in the same network, that is the way to it.
            let route = !parent.addresses.iter().any(|own| own.is_in_network_of(new));
            self.netlink.add(found.index, *new, route).await?;
        }
        Ok(())
    }

    /// Of before a reload, or of a daemon that died.
    pub(super) async fn delete_unused_devices(&self) {
        for vhid in self.vhids.iter().filter(|vhid| vhid.virtual_mac().is_none()) {
            let Some(link) = self.ports.get(vhid.interface()).and_then(|port| port.link.as_ref()) else {
                continue;
            };
            let device = virtual_mac::device(vhid.plan.config.vhid, link.index);
            if let Err(error) = self.delete_device(&device).await {
                warn!("cannot remove {device}: {error}");
            }
        }
    }

    pub(super) async fn delete_device(&self, device: &str) -> std::io::Result<()> {
        match self.netlink.link(device).await? {
            Some(found) => self.netlink.delete(found.index).await,
            None => Ok(()),
        }
    }
}
