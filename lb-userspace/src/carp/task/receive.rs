//! From packets to state machines.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use log::{debug, warn};

use super::Engine;
use super::vhid::Vhid;
use crate::carp::fsm::{Advertisement, Heard, Timing};
use crate::carp::io::socket::{Packet, Sockets};
use crate::carp::wire::{Header, Rejected};

/// The same rejection of the same vhid is told again after this.
const TELL_AGAIN: Duration = Duration::from_secs(60);

impl Engine {
    /// Takes in all packets that have arrived.
    pub(super) async fn drain(&mut self) {
        // A flood must not keep the timers waiting.
        const MOST: usize = 256;
        let names: Vec<String> = self.ports.keys().cloned().collect();
        for name in names {
            for _ in 0..MOST {
                let sockets = self.ports.get(&name).and_then(|port| port.sockets.as_ref());
                let Some(packet) = sockets.and_then(Sockets::receive) else { break };
                self.packet(&name, &packet).await;
            }
        }
    }

    pub(super) async fn packet(&mut self, interface: &str, packet: &Packet) {
        match self.judge(interface, packet) {
            Ok((index, header)) => self.heard(index, packet.source, &header).await,
            Err((reason, index)) => self.reject(interface, packet.source, reason, index),
        }
    }

    /// The vhid that a packet is for, and what it says; or why it is not taken, with the vhid if that is known.
    pub(super) fn judge(
        &self,
        interface: &str,
        packet: &Packet,
    ) -> Result<(usize, Header), (Rejected, Option<usize>)> {
        let header = Header::decode(packet.ttl, &packet.payload).map_err(|reason| (reason, None))?;
        let is_it = |vhid: &Vhid| vhid.interface() == interface && vhid.plan.config.vhid == header.vhid;
        let index = self.vhids.iter().position(is_it).ok_or((Rejected::Vhid, None))?;
        let vhid = &self.vhids[index];
        if !vhid.expects(packet.source, packet.destination) {
            return Err((Rejected::Destination, Some(index)));
        }
        if !vhid.plan.authenticator.verify(header.counter, &header.digest) {
            return Err((Rejected::Digest, Some(index)));
        }
        if header.counter == vhid.cookie {
            return Err((Rejected::Loop, Some(index)));
        }
        Ok((index, header))
    }

    pub(super) fn reject(&mut self, interface: &str, source: IpAddr, reason: Rejected, index: Option<usize>) {
        *self.rejected.entry(reason).or_default() += 1;
        debug!("{source} on {interface}: {}", reason.help());
        // What concerns a vhid of ours means two masters, sooner or later.
        let Some(index) = index else { return };
        let vhid = &mut self.vhids[index];
        let silent = vhid.told.get(&reason).is_some_and(|at| at.elapsed() < TELL_AGAIN);
        if !silent {
            vhid.told.insert(reason, Instant::now());
            let number = vhid.plan.config.vhid;
            warn!(
                "carp {} (vhid {number} on {interface}): advertisement from {source} not taken: {}",
                vhid.name(),
                reason.help()
            );
        }
    }

    pub(super) async fn heard(&mut self, index: usize, source: IpAddr, header: &Header) {
        let now = self.now();
        let ours = self.source(index, source);
        let vhid = &mut self.vhids[index];
        let timing = Timing { base: header.advbase, skew: header.advskew };
        vhid.received += 1;
        vhid.peer = Some((source, Advertisement { timing, demotion: header.demotion }, Instant::now()));
        let breaks_ties = source.is_ipv4() || !vhid.plan.uses(true);
        let heard = Heard { timing, demotion: header.demotion, source, ours, breaks_ties };
        let held = vhid.machine.holds_addresses();
        let actions = vhid.machine.on_packet(now, &heard);
        if held != vhid.machine.holds_addresses() && actions.is_empty() {
            // Not adopted after all: somebody else is master.
            let interface = vhid.interface().to_owned();
            self.put_addresses(&interface).await;
            self.put_devices(&interface).await;
        }
        self.perform(index, actions).await;
    }
}
