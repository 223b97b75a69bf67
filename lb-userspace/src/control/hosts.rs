//! Host names of the configuration: asked for when it is time, and what is answered put into effect like a reload.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use log::{info, warn};
use tokio::sync::mpsc;

use super::status;
use super::task::Control;
use crate::api::types::EventKind;
use crate::config::Config;
use crate::dataplane::desired::{Verdicts as _, desired};
use crate::dataplane::image::{Image, serves};
use crate::dataplane::snapshot::Readable as _;
use crate::health::Health;
use crate::hosts::Reply;
use crate::hosts::answers::{Answers, Change, Known};
use crate::hosts::expand::{self, LeftOut};
use crate::hosts::lookup::Asker;

/// A packet that has read the old table has placed its flow by then.
const SETTLED: Duration = Duration::from_secs(2);

/// What names stand for, and who asks.
#[derive(Debug)]
pub struct Hosts {
    pub answers: Answers,
    /// As told already.
    left_out: Vec<LeftOut>,
    asker: Asker,
    replies: mpsc::Receiver<(String, Reply)>,
}

impl Hosts {
    /// Gives the hosts of `config` the addresses that an earlier daemon has left in `image`.
    pub fn restore(config: &mut Config, image: &Image) -> Self {
        let answers = expand::restore(config, image, Instant::now());
        let left_out = expand::expand(config, &answers);
        let (asker, replies) = Asker::new();
        Self { answers, left_out, asker, replies }
    }

    /// Waits for an answer. None is lost when the wait is given up.
    pub(super) async fn reply(&mut self) -> Option<(String, Reply)> {
        self.replies.recv().await
    }
}

impl Control {
    /// Asks what is due. Answers come by [`Hosts::reply`].
    pub(super) fn ask_hosts(&mut self) {
        for question in self.hosts.answers.due(Instant::now()) {
            self.hosts.asker.ask(question, self.config.resolver.clone());
        }
    }

    pub(super) fn host_answered(&mut self, host: &str, reply: &Reply) {
        let Some(change) = self.hosts.answers.answered(host, reply, Instant::now()) else { return };
        let Change { added, gone, failed, recovered, unusable } = change;
        for text in unusable {
            warn!("{host}: {text}; it is left out");
        }
        if !added.is_empty() || !gone.is_empty() {
            let list = |addresses: &[IpAddr]| {
                let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                if all.is_empty() { "none".to_owned() } else { all.join(", ") }
            };
            info!("{host} has other addresses: new {}, gone {}", list(&added), list(&gone));
            self.renew_hosts();
            self.emit(EventKind::Resolved { host: host.to_owned(), added, gone });
        } else if recovered {
            info!("{host} resolves again, to the same addresses");
            self.emit(EventKind::Resolved { host: host.to_owned(), added, gone });
        }
        if let Some(reason) = failed {
            warn!("{host} does not resolve, what it had stays: {reason}");
            self.emit(EventKind::Unresolved { host: host.to_owned(), reason });
        }
    }

    /// Drains addresses that names have no longer once another one is up, and lets go of them once their last connection
    /// is over.
    pub(super) fn leave_hosts(&mut self) {
        let now = Instant::now();
        let leaves = |known: &Known| known.leaving().any(|(_, since)| since.is_none());
        let hosts =
            self.hosts.answers.iter().filter(|(host, known)| leaves(known) && self.is_up(host, known));
        let hosts: Vec<String> = hosts.map(|(host, _)| host.to_owned()).collect();
        let mut news = false;
        for host in hosts {
            news |= self.hosts.answers.hand_over(&host, now);
        }
        let settled =
            |since: Option<Instant>| since.is_some_and(|since| now.duration_since(since) >= SETTLED);
        let leaving: Vec<(String, IpAddr)> = self
            .hosts
            .answers
            .iter()
            .flat_map(|(host, known)| known.leaving().map(move |(address, since)| (host, address, since)))
            .filter(|(.., since)| settled(*since))
            .map(|(host, address, _)| (host.to_owned(), address))
            .collect();
        let over: Vec<(String, IpAddr)> =
            leaving.into_iter().filter(|(host, address)| self.live(host, *address) == 0).collect();
        if over.is_empty() && !news {
            return;
        }
        for (host, address) in over {
            info!("{address}, which {host} has no longer, has no connections left");
            self.hosts.answers.forget(&host, address);
        }
        self.renew_hosts();
    }

    /// Whether one of the addresses that the host has now is up behind some listener.
    fn is_up(&self, host: &str, known: &Known) -> bool {
        self.config.services.iter().any(|service| {
            self.config.members(service).any(|member| {
                let backend = member.backend;
                let its = backend.host.as_deref() == Some(host)
                    && known.addresses().any(|address| address == backend.address);
                let up = |listen| {
                    serves(service, listen, backend)
                        && self.state.health(service, listen, &member) == Health::Up
                };
                its && service.listen.iter().any(up)
            })
        })
    }

    /// Connections to an address that a host has or had.
    fn live(&self, host: &str, address: IpAddr) -> u64 {
        let flows = self.dataplane.maps().flows();
        let servers = &self.dataplane.image().servers();
        let of = |service| {
            let members = self.config.members(service).map(|member| member.backend);
            let its =
                move |b: &&crate::config::Backend| b.address == address && b.host.as_deref() == Some(host);
            members
                .filter(its)
                .flat_map(move |b| status::numbers(self.dataplane.image(), servers, service, b))
        };
        let numbers: BTreeSet<_> = self.config.services.iter().flat_map(of).collect();
        numbers.into_iter().map(|id| flows.live(id)).sum()
    }

    /// Puts what the names stand for now into effect.
    fn renew_hosts(&mut self) {
        let mut new = self.config.clone();
        let left_out = expand::expand(&mut new, &self.hosts.answers);
        self.tell_left_out(left_out);
        if new == self.config {
            return;
        }
        self.await_late();
        let mut state = self.state.clone();
        state.inherit(&new, self.dataplane.image());
        state.retain(&new);
        state.settle(&new, self.dataplane.image(), Instant::now());
        let capacity = self.dataplane.maps().capacity();
        if let Err(error) = desired(&new, &state, self.dataplane.image(), capacity) {
            warn!("new addresses of host names are not used: {error}");
            return;
        }
        let services = self.service_states();
        (self.config, self.state) = (new, state);
        self.converge();
        self.runner.set_targets(self.state.targets(&self.config));
        self.tell_services(&services);
    }

    /// Of addresses that cannot be used because of something else in the file.
    pub(super) fn tell_left_out(&mut self, left_out: Vec<LeftOut>) {
        for one in left_out.iter().filter(|one| !self.hosts.left_out.contains(one)) {
            let LeftOut { host, address, reason } = one;
            warn!("{host}: {address} is {reason}; it is left out");
        }
        self.hosts.left_out = left_out;
    }
}
