//! What is known of the servers, and what is wanted of them.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use super::choices::{Choices, Seen, chooses};
use super::passive::Passive;
use super::wishes::Wishes;
use crate::api::types::AdminState;
use crate::config::{Backend, Config, Forward, Listen, Member, Protocol, Service};
use crate::dataplane::desired::Verdicts;
use crate::dataplane::image::{BackendEntry, ByHand, Id, Image, Server, server_port, serves};
use crate::health::{Carriage, CheckError, Health, Report, Target, Via};

/// What the checks of one target have found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub health: Health,
    pub checks: u64,
    pub checks_up: u64,
    pub last_error: Option<CheckError>,
    pub last_latency: Option<Duration>,
    /// The latest [`KEPT_RESULTS`], the newest first.
    pub results: VecDeque<Outcome>,
    /// When the first of the certificates ends that the server sent last.
    pub certificate_expires: Option<SystemTime>,
    /// Of which end it was warned, and when.
    warned: Option<(SystemTime, SystemTime)>,
}

/// How many results of each check can be shown.
pub const KEPT_RESULTS: usize = 10;
/// How often the same certificate is warned of.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// One finished check.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub at: SystemTime,
    pub latency: Duration,
    pub result: Result<(), CheckError>,
}

/// Whole days until a certificate ends that is to be warned of at `now`; negative once it has ended.
pub fn ends_soon(target: &Target, expires: SystemTime, now: SystemTime) -> Option<i64> {
    const DAY: u64 = 24 * 3600;
    let days = target.check.probe.tls()?.expiry_warning_days;
    let whole = |time: Duration| i64::try_from(time.as_secs() / DAY).unwrap_or(i64::MAX);
    let left = match expires.duration_since(now) {
        Ok(left) => whole(left),
        Err(ago) => -1 - whole(ago.duration()),
    };
    (days > 0 && left < i64::from(days)).then_some(left)
}

/// A backend of a service, by their names.
pub type Name = (String, String);

/// Health of each target, and what an operator wants.
#[derive(Clone, Debug, Default)]
pub struct State {
    checked: BTreeMap<Target, Checked>,
    pub wishes: Wishes,
    /// Which pools and backends are used.
    pub choices: Choices,
    /// What the packet path has noticed.
    pub passive: Passive,
}

impl State {
    /// What an earlier daemon left in the maps: operators' wishes, and the last known health of the servers of
    /// `config`.
    pub fn restore(config: &Config, image: &Image) -> Self {
        let mut state = Self::default();
        let servers = image.servers();
        for service in &config.services {
            for (listen, Member { backend, .. }) in places(config, service) {
                // By its place, as the name in the maps may be cut short.
                let Some(known) = known(image, &servers, listen, backend) else { continue };
                if known.by_hand.admin {
                    state.wishes.set_admin(service, backend, known.admin);
                }
                if known.by_hand.weight.is_some() {
                    state.wishes.set_weight(service, backend, known.by_hand.weight);
                }
            }
            for listen in service.listen.iter().filter(|_| chooses(config, service)) {
                state.choices.restore(service, listen, used(config, image, service, listen));
            }
            let mut listeners = service.listen.iter().filter_map(|listen| image.listener_at(listen));
            if let Some(enabled) = listeners.find_map(|id| image.listeners[&id].by_hand) {
                state.wishes.set_enabled(service, enabled);
            }
        }
        state.inherit(config, image);
        state
    }

    /// Of servers that are in the maps but were not checked in the way of `config` so far, the health in the maps
    /// stands until the first result: another check is no reason to take a server out of rotation.
    pub fn inherit(&mut self, config: &Config, image: &Image) {
        let servers = image.servers();
        for (target, listen, member) in targets_with_use(config) {
            if let Some(known) = known(image, &servers, listen, member.backend) {
                self.checked
                    .entry(target)
                    .or_insert_with(|| Checked { health: known.health, ..Checked::default() });
            }
        }
    }

    /// Forgets the servers and backends that `config` no longer has.
    pub fn retain(&mut self, config: &Config) {
        let mut targets: Vec<Target> = targets_with_use(config).map(|(target, ..)| target).collect();
        targets.sort();
        self.checked.retain(|target, _| targets.binary_search(target).is_ok());
        self.wishes.retain(config);
    }

    /// What is to be checked, with the health that is known so far. Backends that are disabled are not checked.
    pub fn targets(&self, config: &Config) -> Vec<(Target, Health)> {
        let mut targets: Vec<_> = config
            .services
            .iter()
            .flat_map(|service| {
                uses(config, service)
                    .filter(|(_, _, member)| self.admin(service, member.backend) != AdminState::Disabled)
                    .map(|(target, ..)| target)
            })
            .collect();
        targets.sort();
        targets.dedup();
        targets
            .into_iter()
            .map(|target| {
                let health = self.checked.get(&target).map_or(Health::Unknown, |c| c.health);
                (target, health)
            })
            .collect()
    }

    /// Takes in a check's result. True when it changes the target's health.
    pub fn report(&mut self, report: &Report) -> bool {
        let checked = self.checked.entry(report.target.clone()).or_default();
        let changed = checked.health != report.health;
        checked.health = report.health;
        checked.last_latency = Some(report.latency);
        checked.checks += 1;
        checked.results.truncate(KEPT_RESULTS - 1);
        checked.results.push_front(Outcome {
            at: report.at,
            latency: report.latency,
            result: report.result.clone(),
        });
        checked.certificate_expires = report.certificate_expires.or(checked.certificate_expires);
        match &report.result {
            Ok(()) => {
                checked.checks_up += 1;
                checked.last_error = None;
            }
            Err(error) => checked.last_error = Some(error.clone()),
        }
        changed
    }

    /// Whole days until the certificate ends that the reported check has seen, if it is time to warn of that: once a day.
    pub fn certificate_warning(&mut self, report: &Report) -> Option<(SystemTime, i64)> {
        let expires = report.certificate_expires?;
        let days = ends_soon(&report.target, expires, report.at)?;
        let checked = self.checked.get_mut(&report.target)?;
        let again = |(of, at): (SystemTime, SystemTime)| {
            of != expires || report.at.duration_since(at).is_ok_and(|since| since >= WARN_EVERY)
        };
        if !checked.warned.is_none_or(again) {
            return None;
        }
        checked.warned = Some((expires, report.at));
        Some((expires, days))
    }

    /// What the checks say of a backend behind a listener; `None` without a check.
    pub fn checked(&self, listen: &Listen, member: &Member<'_>) -> Option<&Checked> {
        self.checked.get(&target(listen, member)?)
    }

    /// Chooses what each listener uses, by what is known now. `image` is what the maps hold.
    pub fn settle(&mut self, config: &Config, image: &Image, now: Instant) {
        let mut choices = std::mem::take(&mut self.choices);
        // Asked for only at the first time.
        let servers = LazyCell::new(|| image.servers());
        choices.settle(config, now, |service, listen, member, first| {
            let backend = member.backend;
            let weight = self.wishes.weight(service, backend);
            let up = self.health(service, listen, member) == Health::Up;
            // To look for a listener costs, and hardly ever is anybody suspected.
            let suspect = self.passive.has_suspects()
                && image.listener_at(listen).is_some_and(|listener| {
                    let (address, port) = (backend.address, server_port(listen, backend));
                    self.passive.suspects(&Server { listener, address, port })
                });
            let well = up && weight > 0 && self.admin(service, backend) == AdminState::Enabled;
            let took = || known(image, &servers, listen, backend).is_some_and(BackendEntry::takes_new_flows);
            Seen { well, suspect, weight, established: first && took() }
        });
        self.choices = choices;
    }
}

impl Verdicts for State {
    fn health(&self, _: &Service, listen: &Listen, member: &Member<'_>) -> Health {
        match target(listen, member) {
            Some(target) => self.checked.get(&target).map_or(Health::Unknown, |c| c.health),
            None => Health::Up,
        }
    }

    fn admin(&self, service: &Service, backend: &Backend) -> AdminState {
        self.wishes.admin(service, backend)
    }

    fn by_hand(&self, service: &Service, backend: &Backend) -> ByHand {
        self.wishes.by_hand(service, backend)
    }

    fn service_by_hand(&self, service: &Service) -> Option<bool> {
        self.wishes.service_by_hand(service)
    }

    fn weight(&self, service: &Service, listen: &Listen, member: &Member<'_>) -> u16 {
        let whole = self.wishes.weight(service, member.backend);
        // Tables go by the proportions alone, so that one that all have whole is as without a slow start.
        let rising = !member.pool.slow_start.is_zero();
        let parts = if rising { self.choices.steps(service, listen, member) } else { 1 };
        whole.saturating_mul(parts)
    }

    fn stands_by(&self, service: &Service, listen: &Listen, member: &Member<'_>) -> bool {
        !self.wishes.enabled(service) || self.choices.stands_by(service, listen, member)
    }

    fn suspects(&self, server: &Server) -> bool {
        self.passive.suspects(server)
    }
}

/// The target that tells the health of a backend behind a listener; `None` without a check.
pub fn target(listen: &Listen, member: &Member<'_>) -> Option<Target> {
    let Member { pool, backend, .. } = member;
    let check = pool.check.as_ref()?;
    let mut target = Target::new(backend.address, backend.port.unwrap_or(listen.port), check);
    if check.via_vip && listen.protocol == Protocol::Tcp {
        target.via = via(listen, member);
    }
    Some(target)
}

/// The VIP on the server, where packets go to it.
fn via(listen: &Listen, member: &Member<'_>) -> Option<Via> {
    let carriage = match member.forward {
        Forward::Dsr => Carriage::Direct,
        Forward::Ipip => Carriage::Ipip,
        Forward::Gue => Carriage::Gue(member.gue_port),
        Forward::Nat | Forward::Snat => return None,
    };
    Some(Via { vip: SocketAddr::new(listen.address, listen.port), carriage })
}

/// Every target of a service with the listener and backend it is for.
pub fn uses<'c>(
    config: &'c Config,
    service: &'c Service,
) -> impl Iterator<Item = (Target, &'c Listen, Member<'c>)> {
    places(config, service)
        .filter_map(move |(listen, member)| Some((target(listen, &member)?, listen, member)))
}

/// Each listener of a service with each backend that it hands packets to.
fn places<'c>(config: &'c Config, service: &'c Service) -> impl Iterator<Item = (&'c Listen, Member<'c>)> {
    service.listen.iter().flat_map(move |listen| {
        let members = config.members(service);
        members.filter(|member| serves(service, listen, member.backend)).map(move |member| (listen, member))
    })
}

/// Whether the listener's table in the maps has backends of the pool, and of the backup.
fn used(config: &Config, image: &Image, service: &Service, listen: &Listen) -> [bool; 2] {
    let mut used = [false; 2];
    let Some(id) = image.listener_at(listen) else { return used };
    let table = image.listeners[&id].table.members.keys().filter_map(|id| image.backends.get(id));
    let table: BTreeSet<_> = table.map(|b| (b.server.address, b.server.port)).collect();
    for member in config.members(service) {
        let server = (member.backend.address, server_port(listen, member.backend));
        used[member.role as usize] |= table.contains(&server);
    }
    used
}

/// What the maps hold of a backend behind a listener. `servers` are those of the image.
fn known<'i>(
    image: &'i Image,
    servers: &HashMap<Server, Id>,
    listen: &Listen,
    backend: &Backend,
) -> Option<&'i BackendEntry> {
    let listener = image.listener_at(listen)?;
    let server = Server { listener, address: backend.address, port: server_port(listen, backend) };
    image.backends.get(servers.get(&server)?)
}

fn targets_with_use(config: &Config) -> impl Iterator<Item = (Target, &Listen, Member<'_>)> {
    config.services.iter().flat_map(|service| uses(config, service))
}

#[cfg(test)]
mod tests;
