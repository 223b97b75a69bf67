//! The task itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use lb_common::abi::BackendFlags;
use lb_common::abi::flow::FlowState;
use log::{debug, error, info, warn};
use tokio::sync::{broadcast, mpsc};
use tokio::time::MissedTickBehavior;

use super::request::{Refusal, Request};
use super::resets::{self, Connection};
use super::state::{State, uses};
use super::status::{self, Sources};
use crate::api::types::{
    AdminState, BackendChange, CounterValue, Counters, Event, EventKind, Flows, ReloadOutcome, ServiceState,
};
use crate::config::{self, Config};
use crate::daemon::host;
use crate::dataplane::desired::desired;
use crate::dataplane::flows::{Clock, Swept};
use crate::dataplane::image::{Id, Server, address_from};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::kernel::attach::{self, Attached};
use crate::dataplane::kernel::pins::Pins;
use crate::dataplane::plan::plan;
use crate::dataplane::{Dataplane, Maps};
use crate::health::{Report, Runner, Target};

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
    /// Serves until it is told to stop. Forwarding goes on after that.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut reports: mpsc::Receiver<Report>,
        mut signals: mpsc::Receiver<Signal>,
    ) -> Stop {
        self.runner.set_targets(self.state.targets(&self.config));
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
                _ = tick.tick() => self.tick(),
            }
        }
    }

    fn reports(&mut self, batch: &[Report], verdict: Instant) {
        let mut changed = false;
        let mut before = Vec::new();
        for report in batch {
            if report.result.is_ok() {
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
        }
        if !changed {
            return;
        }
        let services = self.service_states();
        let steps = self.converge();
        let micros = u64::try_from(verdict.elapsed().as_micros()).unwrap_or(u64::MAX);
        for report in before {
            self.tell_health(report);
        }
        self.tell_services(&services);
        self.emit(EventKind::Applied { operations: steps as u64, micros });
        self.reset_connections();
    }

    /// The backends whose health a target tells.
    fn servers(&self, target: &Target) -> Vec<Server> {
        let image = self.dataplane.image();
        let uses = self.config.services.iter().flat_map(|service| uses(&self.config, service));
        uses.filter(|(used, ..)| used == target)
            .filter_map(|(_, listen, backend)| {
                let port = backend.port.unwrap_or(listen.port);
                Some(Server { listener: image.listener_at(listen)?, address: backend.address, port })
            })
            .collect()
    }

    fn tell_health(&mut self, report: &Report) {
        let reason =
            report.result.as_ref().err().map_or_else(|| "check succeeded".to_owned(), ToString::to_string);
        let mut told = Vec::new();
        for service in &self.config.services {
            for (target, _, backend) in uses(&self.config, service) {
                if target == report.target {
                    told.push((service.name.clone(), backend.name.clone()));
                }
            }
        }
        told.dedup();
        for (service, backend) in told {
            info!("{service}/{backend} is {:?} (was {:?}): {reason}", report.health, report.previous);
            self.emit(EventKind::Health {
                service,
                backend,
                from: report.previous,
                to: report.health,
                reason: reason.clone(),
            });
        }
    }

    fn service_states(&self) -> BTreeMap<String, ServiceState> {
        let image = self.dataplane.image();
        self.config.services.iter().map(|s| (s.name.clone(), status::service_state(image, s))).collect()
    }

    fn tell_services(&mut self, before: &BTreeMap<String, ServiceState>) {
        for (service, state) in self.service_states() {
            if before.get(&service) != Some(&state) {
                info!(
                    "service {service} is {}",
                    if state == ServiceState::Active { "active" } else { "down" }
                );
                self.emit(EventKind::Service { service, state });
            }
        }
    }

    /// Makes the maps what configuration and state say. Says how many steps it took; what fails is tried again at the
    /// next tick.
    fn converge(&mut self) -> usize {
        match bring(&mut self.dataplane, &self.config, &self.state) {
            Ok(steps) => {
                self.behind = false;
                steps
            }
            Err(error) => {
                error!("the maps could not be brought up to date, trying again: {error:#}");
                self.behind = true;
                0
            }
        }
    }

    fn tick(&mut self) {
        self.dataplane.maps().heartbeat(monotonic_nanoseconds());
        if self.behind {
            self.converge();
        }
        self.follow_interfaces();
        match self.clock() {
            Ok(clock) => self.swept = self.dataplane.maps().flows().sweep(self.dataplane.image(), clock),
            Err(error) => warn!("flows were not aged: {error:#}"),
        }
        self.suspect();
        self.reset_connections();
    }

    /// Takes backends out of the tables that the packet path has found silent, and gives those another try that no check
    /// will acquit.
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
        self.converge();
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

    /// An interface that was removed and made again, such as by a driver that was loaded anew, has lost the program.
    fn follow_interfaces(&mut self) {
        let present = attach::present(&self.config.interfaces);
        let is_new = |(name, index): &&(String, u32)| {
            !self.attached.iter().any(|a| (&a.name, a.index) == (name, *index))
        };
        let Some((name, _)) = present.iter().find(is_new) else { return };
        info!("{name} was made anew and gets the program");
        self.attach_again();
        host::prepare(&self.config);
    }

    fn clock(&mut self) -> anyhow::Result<Clock> {
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
        let flows = table.list(image, &key, |word| live(word.state()) && doomed(word.backend()));
        for flow in flows.take(RESETS_PER_TICK) {
            let Some(listener) = image.listeners.get(&flow.tuple.listener) else { continue };
            let client = SocketAddr::new(address_from(flow.tuple.client), flow.tuple.client_port.get());
            connections.push(Connection {
                client,
                vip: SocketAddr::new(listener.listen.address, flow.tuple.vip_port.get()),
            });
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

    fn answer(&mut self, request: Request) {
        // Nobody to answer is no error: the client has gone.
        match request {
            Request::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Request::Flows { limit, service, reply } => {
                let _ = reply.send(self.flows(limit, service.as_deref()));
            }
            Request::Counters(reply) => {
                let _ = reply.send(self.counters());
            }
            Request::SetAdmin { backend, service, state, reply } => {
                let _ = reply.send(self.set_admin(&backend, service.as_deref(), state));
            }
            Request::Reload(reply) => {
                let _ = reply.send(self.reload());
            }
            Request::Poll(reply) => self.runner.poll(reply),
        }
    }

    fn status(&self) -> crate::api::types::Status {
        status::status(&Sources {
            config: &self.config,
            config_file: &self.config_file.display().to_string(),
            state: &self.state,
            dataplane: &self.dataplane,
            attached: &self.attached,
            swept: &self.swept,
            started: self.started,
        })
    }

    fn flows(&mut self, limit: usize, service: Option<&str>) -> Result<Flows, Refusal> {
        if let Some(name) = service
            && !self.config.services.iter().any(|s| s.name == name)
        {
            return Err(Refusal::NotFound(status::no_such_backend(&self.config, "", service)));
        }
        if limit == 0 && service.is_none() {
            let capacity = self.dataplane.maps().flows().capacity();
            return Ok(Flows { total: self.swept.occupied, capacity, flows: Vec::new() });
        }
        let clock = self.clock().map_err(|error| Refusal::Failed(format!("{error:#}")))?;
        Ok(status::flows(&self.dataplane, clock, limit, service))
    }

    fn counters(&self) -> Counters {
        let values = self.dataplane.maps().counters().unwrap_or_else(|error| {
            warn!("{error:#}");
            BTreeMap::new()
        });
        let counters = values
            .into_iter()
            .map(|(reason, value)| {
                let verdict = reason.kind().name().to_owned();
                (reason.name().to_owned(), CounterValue { value, verdict, help: reason.help().to_owned() })
            })
            .collect();
        Counters { counters }
    }

    fn set_admin(
        &mut self,
        backend: &str,
        service: Option<&str>,
        state: AdminState,
    ) -> Result<BackendChange, Refusal> {
        let mut matching = Vec::new();
        for s in self.config.services.iter().filter(|s| service.is_none_or(|wanted| wanted == s.name)) {
            if self.config.pools[s.pool].backends.iter().any(|b| b.name == backend) {
                matching.push(s.name.clone());
            }
        }
        if matching.is_empty() {
            return Err(Refusal::NotFound(status::no_such_backend(&self.config, backend, service)));
        }
        let services = self.service_states();
        let mut changed = Vec::new();
        for service in matching {
            if self.state.set_admin((service.clone(), backend.to_owned()), state) {
                changed.push(service);
            }
        }
        self.runner.set_targets(self.state.targets(&self.config));
        self.converge();
        self.tell_services(&services);
        for service in &changed {
            info!("{service}/{backend} is now {state:?}");
            self.emit(EventKind::Admin { service: service.clone(), backend: backend.to_owned(), state });
        }
        Ok(BackendChange { state, backends: changed.into_iter().map(|s| format!("{s}/{backend}")).collect() })
    }

    /// Reads the file again and applies the difference. When anything is wrong with it, nothing changes.
    fn reload(&mut self) -> Result<ReloadOutcome, Refusal> {
        let new = match config::load(&self.config_file) {
            Ok(new) => new,
            Err(error) => {
                let lines = error.lines();
                self.emit(EventKind::ReloadRefused { errors: lines.clone() });
                return Err(Refusal::Configuration(lines));
            }
        };
        let refuse = |text: String| Refusal::Invalid(format!("{text}; nothing was changed"));
        if new.control != self.config.control {
            return Err(refuse(
                "control.socket and control.metrics cannot change while the daemon runs: restart it, \
                 forwarding goes on meanwhile"
                    .to_owned(),
            ));
        }
        let interfaces = attach::resolve(&new.interfaces).map_err(|error| refuse(format!("{error:#}")))?;
        let mut state = self.state.clone();
        state.inherit(&new, self.dataplane.image());
        state.retain(&new);
        // Found out before anything is touched.
        let capacity = self.dataplane.maps().capacity();
        desired(&new, &state, self.dataplane.image(), capacity).map_err(|error| refuse(error.to_string()))?;

        let services = self.service_states();
        // An interface that was removed and made again has another number.
        let same =
            self.attached.iter().map(|a| (&a.name, a.index)).eq(interfaces.iter().map(|(n, i)| (n, *i)));
        if !same || new.xdp_mode != self.config.xdp_mode {
            match self.dataplane.maps_mut().attach(&self.pins, &interfaces, new.xdp_mode) {
                Ok(attached) => self.attached = attached,
                Err(error) => {
                    self.attach_again();
                    return Err(refuse(format!("{error:#}")));
                }
            }
        }
        let steps = match bring(&mut self.dataplane, &new, &state) {
            Ok(steps) => steps,
            Err(error) => {
                self.converge();
                self.attach_again();
                return Err(Refusal::Failed(format!("{error:#}; the old configuration was put back")));
            }
        };
        (self.config, self.state) = (new, state);
        host::prepare(&self.config);
        self.runner.set_targets(self.state.targets(&self.config));
        self.tell_services(&services);
        self.emit(EventKind::Reload { operations: steps as u64 });
        Ok(ReloadOutcome { operations: steps as u64 })
    }

    /// Puts the program where the running configuration wants it: a change of mode takes it off before it is known whether
    /// the driver agrees to the new one.
    fn attach_again(&mut self) {
        let present = attach::present(&self.config.interfaces);
        match self.dataplane.maps_mut().attach(&self.pins, &present, self.config.xdp_mode) {
            Ok(attached) => self.attached = attached,
            Err(error) => error!("the program could not be put back on all interfaces: {error:#}"),
        }
    }

    /// Brings the maps up to the configuration for the first time, and then puts the program over them: no packet sees
    /// a half-filled table.
    ///
    /// # Errors
    /// When a map or an interface refuses: then the daemon does not start.
    pub fn begin(&mut self, adopted: bool, interfaces: &[(String, u32)]) -> anyhow::Result<()> {
        let steps = bring(&mut self.dataplane, &self.config, &self.state)?;
        self.attached = self.dataplane.maps_mut().attach(&self.pins, interfaces, self.config.xdp_mode)?;
        if adopted {
            let clock = self.clock()?;
            self.swept = self.dataplane.maps().flows().sweep(self.dataplane.image(), clock);
            let (services, flows) = (self.config.services.len() as u64, self.swept.occupied);
            info!("took over {flows} flows of an earlier daemon; {steps} steps to this configuration");
            self.emit(EventKind::Adopted { services, flows });
        }
        Ok(())
    }

    fn emit(&mut self, kind: EventKind) {
        self.event_number += 1;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        // Nobody listening is no error.
        let _ = self.events.send(Event { number: self.event_number, time, kind });
    }
}

/// Makes the maps what `config` and `state` say. Says how many steps it took.
fn bring(dataplane: &mut Dataplane<Kernel>, config: &Config, state: &State) -> anyhow::Result<usize> {
    let wanted = desired(config, state, dataplane.image(), dataplane.maps().capacity())?;
    let steps = plan(dataplane.image(), &wanted);
    for step in &steps {
        dataplane.apply(step).with_context(|| format!("step {step:?}"))?;
    }
    Ok(steps.len())
}

fn monotonic_nanoseconds() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
