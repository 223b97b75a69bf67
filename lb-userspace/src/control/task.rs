//! The task itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lb_common::abi::BackendFlags;
use lb_common::abi::flow::FlowState;
use log::{debug, error, info, warn};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::carp::{VhidStates, addresses_elsewhere};
use super::explain::Explaining;
use super::held::HeldFragments;
use super::hosts::Hosts;
use super::late::LateStages;
use super::request::{Refusal, Request};
use super::resets::{self, Connection};
use super::state::{Name, State, uses};
use super::status;
use super::sync::FlowSync;
use super::tracing::Tracing;
use crate::api::types::{Event, EventKind, ServiceState};
use crate::carp::task::Carp;
use crate::config::{Config, Member, Role};
use crate::daemon::systemd;
use crate::dataplane::Dataplane;
use crate::dataplane::flows::{Clock, Flow, Swept};
use crate::dataplane::image::{Id, Server, server_port};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::kernel::attach::Attached;
use crate::dataplane::kernel::pins::Pins;
use crate::dataplane::snapshot::Readable as _;
use crate::health::{CheckError, Report, Runner, Target};
use crate::net::neighbours::Neighbours;
use crate::net::ports::Interfaces;

/// How often flows are aged and counted, and what failed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// Of the connections to reset, how many clients are asked in one tick.
const RESETS_PER_TICK: usize = 50_000;

/// Everything the daemon knows and has.
#[derive(Debug)]
pub struct Control {
    pub config: Config,
    pub config_file: PathBuf,
    pub state: State,
    pub dataplane: Dataplane<Kernel>,
    pub pins: Pins,
    pub attached: Vec<Attached>,
    pub runner: Runner,
    pub events: broadcast::Sender<Event>,
    pub swept: Swept,
    pub started: Instant,
    pub event_number: u64,
    /// Of backends that are down, how many connections were left at the last tick.
    pub resetting: BTreeMap<Id, u64>,
    /// The maps are not what they should be: a step failed, to be tried again.
    pub behind: bool,
    /// What is known of the machine's interfaces.
    pub interfaces: watch::Receiver<Interfaces>,
    pub carp: Carp,
    /// Vhids by interface and number, of those that have changed their state once.
    pub vhid_states: VhidStates,
    pub sync: FlowSync,
    pub explaining: Explaining,
    pub tracing: Tracing,
    pub held: HeldFragments,
    pub hosts: Hosts,
    /// On the way to backends that the kernel itself does not send to.
    pub neighbours: Neighbours,
    pub late: LateStages,
}

/// What ends the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A signal or the end of everything that asks.
    Asked,
}

/// What comes from outside besides requests and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Reload,
    Stop,
}

impl Control {
    /// Serves until it is told to stop. Forwarding goes on after that, but shared addresses go to another gateway.
    pub async fn run(
        mut self,
        requests: mpsc::Receiver<Request>,
        reports: mpsc::Receiver<Report>,
        signals: mpsc::Receiver<Signal>,
    ) -> Stop {
        let stop = self.serve(requests, reports, signals).await;
        self.sync.stop();
        self.stop_tracing();
        self.carp.stop().await;
        stop
    }

    async fn serve(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        mut reports: mpsc::Receiver<Report>,
        mut signals: mpsc::Receiver<Signal>,
    ) -> Stop {
        self.runner.set_targets(self.state.targets(&self.config));
        self.demote_for_services();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(report) = reports.recv() => {
                    let verdict = Instant::now();
                    let mut batch = vec![report];
                    while let Ok(more) = reports.try_recv() {
                        batch.push(more);
                    }
                    self.reports(&batch, verdict);
                }
                signal = signals.recv() => match signal {
                    Some(Signal::Reload) => match self.reload() {
                        Ok(outcome) => info!("configuration applied in {} steps", outcome.operations),
                        Err(refusal) => {
                            error!("{refusal}");
                            if let Refusal::Configuration(lines) = refusal {
                                lines.iter().for_each(|line| error!("{line}"));
                            }
                        }
                    },
                    Some(Signal::Stop) | None => return Stop::Asked,
                },
                request = requests.recv() => match request {
                    Some(request) => self.answer(request),
                    None => return Stop::Asked,
                },
                Ok(()) = self.interfaces.changed() => self.tell_ports(),
                Some(change) = self.carp.changes.recv() => self.tell_carp(change),
                Some(change) = self.sync.changes.recv() => self.tell_sync(&change),
                Some(loaded) = self.late.loaded() => self.late_loaded(loaded),
                Some(loaded) = self.explaining.loaded() => self.explainer_loaded(loaded),
                Some(change) = self.tracing.change() => self.tracing_changed(change),
                frames = self.held.due() => self.offer_held(&frames),
                Some((host, reply)) = self.hosts.reply() => self.host_answered(&host, &reply),
                _ = tick.tick() => self.tick(),
            }
        }
    }

    fn reports(&mut self, batch: &[Report], verdict: Instant) {
        let mut changed = false;
        let mut before = Vec::new();
        let mut ending = Vec::new();
        for report in batch {
            // To find a target's servers costs as much as there are, and reports come by the thousand.
            if report.result.is_ok() && self.state.passive.has_suspects() {
                let servers = self.servers(&report.target);
                changed |= self.state.passive.acquit(|server| servers.contains(server));
            }
            if let Err(error) = &report.result {
                debug!("check of {} failed: {error}", report.target.address);
            }
            if self.state.report(report) {
                changed = true;
                before.push(report);
            }
            ending.extend(self.state.certificate_warning(report).map(|warning| (report, warning)));
        }
        self.tell_certificates(&ending);
        if !changed {
            return;
        }
        let services = self.service_states();
        let steps = self.converge();
        let micros = u64::try_from(verdict.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.tell_health(&before);
        self.tell_services(&services);
        self.emit(EventKind::Applied { operations: steps as u64, micros });
        self.reset_connections();
    }

    /// The backends whose health a target tells.
    fn servers(&self, target: &Target) -> Vec<Server> {
        let image = self.dataplane.image();
        let uses = self.config.services.iter().flat_map(|service| uses(&self.config, service));
        uses.filter(|(used, ..)| used == target)
            .filter_map(|(_, listen, Member { backend, .. })| {
                let port = server_port(listen, backend);
                Some(Server { listener: image.listener_at(listen)?, address: backend.address, port })
            })
            .collect()
    }

    /// The backends, by service and name, that each target is checked for.
    fn names(&self) -> BTreeMap<Target, Vec<Name>> {
        let mut names: BTreeMap<Target, Vec<Name>> = BTreeMap::new();
        for service in &self.config.services {
            for (target, _, Member { backend, .. }) in uses(&self.config, service) {
                names.entry(target).or_default().push((service.name.clone(), backend.name.clone()));
            }
        }
        names.values_mut().for_each(Vec::dedup);
        names
    }

    fn tell_health(&mut self, reports: &[&Report]) {
        if reports.is_empty() {
            return;
        }
        let names = self.names();
        for report in reports {
            let error = report.result.as_ref().err();
            let reason = error.map_or_else(|| "check succeeded".to_owned(), ToString::to_string);
            for (service, backend) in names.get(&report.target).into_iter().flatten() {
                info!("{service}/{backend} is {:?} (was {:?}): {reason}", report.health, report.previous);
                self.emit(EventKind::Health {
                    service: service.clone(),
                    backend: backend.clone(),
                    from: report.previous,
                    to: report.health,
                    reason: reason.clone(),
                    error_number: error.map(CheckError::number),
                });
            }
        }
    }

    /// Certificates that end soon, with the whole days that are left.
    fn tell_certificates(&mut self, ending: &[(&Report, (SystemTime, i64))]) {
        if ending.is_empty() {
            return;
        }
        let names = self.names();
        for (report, (expires, days)) in ending {
            for (service, backend) in names.get(&report.target).into_iter().flatten() {
                let address = report.target.address;
                warn!("{service}/{backend} ({address}): {}", status::certificate_sentence(*days));
                self.emit(EventKind::Certificate {
                    service: service.clone(),
                    backend: backend.clone(),
                    expires: status::seconds(*expires),
                    days: *days,
                });
            }
        }
    }

    pub(super) fn service_states(&self) -> BTreeMap<String, ServiceState> {
        let image = self.dataplane.image();
        self.config
            .services
            .iter()
            .map(|s| (s.name.clone(), status::service_state(image, &self.state, s)))
            .collect()
    }

    pub(super) fn tell_services(&mut self, before: &BTreeMap<String, ServiceState>) {
        for (service, state) in self.service_states() {
            if before.get(&service) != Some(&state) {
                let word = match state {
                    ServiceState::Active => "active",
                    ServiceState::Down => "down",
                    ServiceState::Disabled => "disabled",
                };
                info!("service {service} is {word}");
                self.emit(EventKind::Service { service, state });
            }
        }
        self.demote_for_services();
    }

    /// Services whose new flows go to other pools than before.
    pub(super) fn tell_pools(&mut self) {
        for name in self.state.choices.news() {
            let Some(service) = self.config.services.iter().find(|one| one.name == name) else { continue };
            if service.backup.is_none() {
                continue;
            }
            let pools = status::pools_in_use(&self.config, &self.state, service);
            let using: Vec<String> = pools.iter().map(|(_, pool)| pool.name.clone()).collect();
            let backup = pools.iter().any(|(role, _)| *role == Role::Backup);
            match using.as_slice() {
                [] => warn!("service {name} has no pool that can be used"),
                some => info!("service {name} uses {}", some.join(" and ")),
            }
            self.emit(EventKind::Pools { service: name, using, backup });
        }
    }

    fn tick(&mut self) {
        systemd::alive();
        self.tell_alive();
        if self.behind || self.state.choices.is_due(Instant::now()) {
            let services = self.service_states();
            self.converge();
            self.tell_services(&services);
        }
        self.follow_interfaces();
        self.neighbours.refresh();
        match self.clock() {
            Ok(clock) => {
                self.sync.clock.tell(clock);
                self.swept = self.sweep(clock);
            }
            Err(error) => warn!("flows were not aged: {error:#}"),
        }
        self.suspect();
        self.reset_connections();
        self.leave_hosts();
        self.ask_hosts();
        self.explaining.rest();
        self.refresh_names();
    }

    /// Says in the maps how long packets are forwarded from now on if no more is heard.
    pub(super) fn tell_alive(&self) {
        let until = self.config.forward_without_daemon.map_or(0, |time| {
            let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            monotonic_nanoseconds().saturating_add(nanoseconds)
        });
        self.dataplane.maps().forward_until(until);
    }

    /// Ages and counts the flows.
    pub(super) fn sweep(&self, clock: Clock) -> Swept {
        let swept = self.dataplane.maps().flows().sweep(self.dataplane.image(), clock, &self.config.flows);
        if !swept.drift.is_empty() {
            // Of a few, while packets come.
            debug!("live flows counted one by one differ from their number: {:?}", swept.drift);
        }
        swept
    }

    /// Takes backends out of the tables that the packet path has found silent, and gives those another try that no
    /// check will acquit.
    fn suspect(&mut self) {
        let now = Instant::now();
        let maps = self.dataplane.maps();
        let moved = |id| maps.stats(id).map_or(0, |stats| stats.moved_away);
        let found = self.state.passive.observe(self.dataplane.image(), moved, now);
        let mut expired = false;
        if self.state.passive.has_suspects() {
            let targets = self.state.targets(&self.config);
            let checked: Vec<Server> = targets.iter().flat_map(|(target, _)| self.servers(target)).collect();
            expired = self.state.passive.expire(now, |server| checked.contains(server));
        }
        if found.is_empty() && !expired {
            return;
        }
        let services = self.service_states();
        self.converge();
        self.tell_services(&services);
        for (id, moved_away) in found {
            let image = self.dataplane.image();
            let Some(backend) = image.backends.get(&id) else { continue };
            let Some(listener) = image.listeners.get(&backend.server.listener) else { continue };
            let (service, backend) = (listener.service.clone(), backend.name.clone());
            warn!(
                "{service}/{backend} left {moved_away} connections unanswered within a second: no new ones until its next \
                 good check"
            );
            self.emit(EventKind::Suspect { service, backend, moved_away });
        }
    }

    pub(super) fn clock(&mut self) -> anyhow::Result<Clock> {
        self.dataplane.maps_mut().clock()
    }

    /// Ends the connections of backends that are down, as far as their pools want that. Repeated at each tick for those
    /// that are left.
    fn reset_connections(&mut self) {
        let image = self.dataplane.image();
        let down = BackendFlags::DOWN.with(BackendFlags::RESET);
        let doomed = |id: Id| image.backends.get(&id).is_some_and(|b| b.flags().has(down));
        if !image.backends.values().any(|b| b.flags().has(down)) {
            self.resetting.clear();
            return;
        }
        let key = self.dataplane.maps().hash_key();
        let table = self.dataplane.maps().flows();
        let mut per_backend: BTreeMap<Id, u64> = BTreeMap::new();
        let mut connections = Vec::new();
        let live = |state| {
            matches!(
                state,
                FlowState::Answered
                    | FlowState::Established
                    | FlowState::ClientClosed
                    | FlowState::BackendClosed
            )
        };
        // The master asks. An end that two ask answers the one that is first, which may be before the other has found the
        // backend down, and then nobody for half a second (tcp_invalid_ratelimit).
        let elsewhere = addresses_elsewhere(&self.config.carp, &self.vhid_states);
        let here = |flow: &Flow| {
            let listener = image.listeners.get(&flow.tuple.listener);
            !listener.is_some_and(|listener| elsewhere.contains(&listener.listen.address))
        };
        let flows = table.list(image, &key, |word| live(word.state()) && doomed(word.backend()));
        for flow in flows.filter(here).take(RESETS_PER_TICK) {
            connections.extend(Connection::of(&flow, image));
            *per_backend.entry(flow.backend).or_default() += 1;
        }
        // Clients that are gone do not answer: they are asked again until their flows expire, but not told of again.
        let before = std::mem::replace(&mut self.resetting, per_backend.clone());
        per_backend.retain(|id, flows| before.get(id) != Some(flows));
        if connections.is_empty() {
            return;
        }
        let names: Vec<(String, String, u64)> = per_backend
            .into_iter()
            .filter_map(|(id, flows)| {
                let backend = image.backends.get(&id)?;
                let listener = image.listeners.get(&backend.server.listener)?;
                Some((listener.service.clone(), backend.name.clone(), flows))
            })
            .collect();
        for (service, backend, flows) in names {
            info!("resetting {flows} connections of {service}/{backend}, which is down");
            self.emit(EventKind::FlowsReset { service, backend, flows });
        }
        // Many thousand packets take a while, and checks must not wait for them.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = resets::ask(&connections) {
                warn!("connections of a backend that is down are left to their timeouts: {error}");
            }
        });
    }

    pub(super) fn emit(&mut self, kind: EventKind) {
        self.event_number += 1;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        // Nobody listening is no error.
        let _ = self.events.send(Event { number: self.event_number, time, kind });
    }
}

fn monotonic_nanoseconds() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
