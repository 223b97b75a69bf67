//! What the API shows, put together from the state, the image and the maps.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lb_common::abi::BackendStats;

use super::choices::STEPS;
use super::state::{Outcome, State, ends_soon, target, uses};
use crate::api::pools::{PoolRole, PoolStatus};
use crate::api::types::{
    AdminState, BackendChecks, BackendStatus, CheckResult, Checks, FlowStatus, Flows, HostStatus,
    InterfaceStatus, ServiceState, ServiceStatus, Status,
};
use crate::config::{Backend, Config, Host, Member, Pool, Role, Service};
use crate::dataplane::Dataplane;
use crate::dataplane::desired::Verdicts as _;
use crate::dataplane::flows::{Clock, Flow};
use crate::dataplane::image::{Id, Image, Server, address_from, server_port, serves};
use crate::dataplane::kernel::Kernel;
use crate::dataplane::kernel::attach::Attached;
use crate::dataplane::snapshot::Readable as _;
use crate::health::{CheckError, Health};
use crate::hosts::answers::Answers;

/// What a status is put together from.
#[derive(Debug)]
pub struct Sources<'a> {
    pub config: &'a Config,
    pub config_file: &'a str,
    pub state: &'a State,
    pub hosts: &'a Answers,
    pub dataplane: &'a Dataplane<Kernel>,
    pub attached: &'a [Attached],
    pub started: Instant,
}

/// `GET /v1/status`
pub fn status(sources: &Sources<'_>) -> Status {
    let Sources { config, config_file, attached, started, dataplane, .. } = sources;
    let servers = dataplane.image().servers();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: started.elapsed().as_secs(),
        config_file: (*config_file).to_owned(),
        interfaces: attached
            .iter()
            .map(|a| InterfaceStatus { name: a.name.clone(), index: a.index, mode: a.mode().to_owned() })
            .collect(),
        services: (1..)
            .zip(&config.services)
            .map(|(id, s)| service_status(sources, &servers, id, s))
            .collect(),
    }
}

/// Whether a service takes new connections.
pub fn service_state(image: &Image, state: &State, service: &Service) -> ServiceState {
    if !state.wishes.enabled(service) {
        return ServiceState::Disabled;
    }
    let active = service
        .listen
        .iter()
        .filter_map(|listen| image.listeners.get(&image.listener_at(listen)?))
        .any(|listener| !listener.table.members.is_empty());
    if active { ServiceState::Active } else { ServiceState::Down }
}

fn service_status(
    sources: &Sources<'_>,
    servers: &HashMap<Server, Id>,
    id: u32,
    service: &Service,
) -> ServiceStatus {
    let pool = &sources.config.pools[service.pool];
    let members = sources.config.members(service);
    let backends: Vec<BackendStatus> =
        members.map(|member| backend_status(sources, servers, service, &member)).collect();
    ServiceStatus {
        id,
        name: service.name.clone(),
        state: service_state(sources.dataplane.image(), sources.state, service),
        listen: service.listen.iter().map(ToString::to_string).collect(),
        pool: pool.name.clone(),
        pools: pool_states(sources, service, &backends),
        pool_switches: sources.state.choices.switches(&service.name),
        hosts: host_states(sources, service),
        forward: service.forward.to_string(),
        scheduler: service.scheduler.to_string(),
        flows: backends.iter().map(|b| b.flows).sum(),
        packets: backends.iter().map(|b| b.packets).sum(),
        bytes: backends.iter().map(|b| b.bytes).sum(),
        backends,
    }
}

/// The pools that listeners of a service hand new flows to.
pub fn pools_in_use<'c>(config: &'c Config, state: &State, service: &Service) -> Vec<(Role, &'c Pool)> {
    let uses = |role| service.listen.iter().any(|listen| state.choices.uses(service, listen, role));
    roles(config, service).filter(|(role, _)| uses(*role)).collect()
}

fn roles<'c>(config: &'c Config, service: &Service) -> impl Iterator<Item = (Role, &'c Pool)> {
    let pools = [(Role::Primary, Some(service.pool)), (Role::Backup, service.backup)];
    pools.into_iter().filter_map(|(role, index)| Some((role, config.pools.get(index?)?)))
}

fn pool_states(sources: &Sources<'_>, service: &Service, backends: &[BackendStatus]) -> Vec<PoolStatus> {
    let Sources { config, state, .. } = sources;
    let used: Vec<Role> = pools_in_use(config, state, service).into_iter().map(|(role, _)| role).collect();
    roles(config, service)
        .map(|(role, pool)| {
            let well = backends.iter().filter(|b| {
                let well = b.health == Health::Up && b.admin == AdminState::Enabled && b.weight > 0;
                b.pool == pool.name && well
            });
            PoolStatus {
                name: pool.name.clone(),
                role: if role == Role::Primary { PoolRole::Primary } else { PoolRole::Backup },
                active: used.contains(&role) && state.wishes.enabled(service),
                well: well.clone().count() as u64,
                well_weight: well.map(|b| u64::from(b.weight)).sum(),
                quorum: pool.quorum.weight,
                hysteresis: pool.quorum.hysteresis,
            }
        })
        .collect()
}

/// That the address of a backend is an old answer.
fn unresolved(sources: &Sources<'_>, backend: &Backend) -> Option<String> {
    let error = sources.hosts.get(backend.host.as_ref()?)?.error.as_ref()?;
    Some(format!("the address is of an earlier answer: {error}"))
}

fn host_states(sources: &Sources<'_>, service: &Service) -> Vec<HostStatus> {
    let now = Instant::now();
    let hosts =
        roles(sources.config, service).flat_map(|(_, pool)| pool.hosts.iter().map(move |h| (pool, h)));
    let status = |(pool, host): (&Pool, &Host)| {
        let known = sources.hosts.get(&host.host)?;
        let of = |leaving: bool| {
            let its = pool.backends.iter().filter(move |backend| backend.host.as_ref() == Some(&host.host));
            let its = its.filter(|backend| backend.name == host.backend_name(backend.address));
            its.filter(move |backend| backend.leaving == leaving).map(|backend| backend.address).collect()
        };
        Some(HostStatus {
            name: host.name.clone(),
            host: host.host.clone(),
            pool: pool.name.clone(),
            addresses: of(false),
            leaving: of(true),
            error: known.error.clone(),
            failures: known.failed,
            next_seconds: known.due_in(now).as_secs(),
        })
    };
    hosts.filter_map(status).collect()
}

/// How much of its weight a backend has while its slow start goes on.
fn ramp(state: &State, service: &Service, member: &Member<'_>) -> Option<u8> {
    let steps = service.listen.iter().map(|listen| state.choices.steps(service, listen, member)).min()?;
    (steps < STEPS).then(|| u8::try_from(steps * 100 / STEPS).unwrap_or(100))
}

/// A backend of a service stands in the maps once for each of the service's listeners; here they are one.
fn backend_status(
    sources: &Sources<'_>,
    servers: &HashMap<Server, Id>,
    service: &Service,
    member: &Member<'_>,
) -> BackendStatus {
    let Sources { state, dataplane, .. } = sources;
    let backend = member.backend;
    let ids = numbers(dataplane.image(), servers, service, backend);
    let stats = ids.iter().map(|id| dataplane.maps().stats(*id).unwrap_or_default()).fold(
        BackendStats::default(),
        |sum, s| BackendStats {
            to_packets: sum.to_packets + s.to_packets,
            to_bytes: sum.to_bytes + s.to_bytes,
            from_packets: sum.from_packets + s.from_packets,
            from_bytes: sum.from_bytes + s.from_bytes,
            moved_away: sum.moved_away + s.moved_away,
        },
    );
    let checked: Vec<_> = service.listen.iter().filter_map(|listen| state.checked(listen, member)).collect();
    let listens = || service.listen.iter().filter(|listen| serves(service, listen, backend));
    // The worst of the ports that traffic goes to.
    let healths: Vec<Health> = listens().map(|l| state.health(service, l, member)).collect();
    let health = [Health::Down, Health::Unknown]
        .into_iter()
        .find(|bad| healths.contains(bad))
        .unwrap_or(if healths.is_empty() { Health::Unknown } else { Health::Up });
    let suspect = ids.iter().any(|id| dataplane.image().backends.get(id).is_some_and(|b| b.suspect));
    let silent = || suspect.then(|| "left connections unanswered".to_owned());
    let error = checked.iter().find_map(|c| c.last_error.as_ref());
    let expires = checked.iter().filter_map(|c| c.certificate_expires).min();
    let now = SystemTime::now();
    let soon = service
        .listen
        .iter()
        .filter_map(|listen| {
            let target = target(listen, member)?;
            let expires = state.checked(listen, member)?.certificate_expires?;
            Some((ends_soon(&target, expires, now)?, expires))
        })
        .min();
    let checks = checked.iter().map(|c| c.checks).sum();
    let checks_up = checked.iter().map(|c| c.checks_up).sum();
    BackendStatus {
        id: ids.first().copied().unwrap_or(0),
        name: backend.name.clone(),
        address: backend.address,
        port: backend.port,
        weight: state.wishes.weight(service, backend),
        configured_weight: state.wishes.by_hand(service, backend).weight.map(|_| backend.weight),
        pool: member.pool.name.clone(),
        priority: backend.priority,
        host: backend.host.clone(),
        leaving: backend.leaving,
        standby: listens().count() > 0 && listens().all(|l| state.choices.stands_by(service, l, member)),
        max_connections: backend.max_connections,
        full: backend
            .max_connections
            .is_some_and(|most| ids.iter().any(|id| dataplane.maps().flows().live(*id) >= u64::from(most))),
        ramp_percent: ramp(state, service, member),
        health,
        admin: state.admin(service, backend),
        availability_percent: (checks > 0).then(|| checks_up as f64 * 100.0 / checks as f64),
        checks,
        checks_up,
        last_error: error.map(ToString::to_string).or_else(silent),
        last_error_number: error.map(CheckError::number),
        notice: soon.map(|(days, _)| certificate_sentence(days)).or_else(|| unresolved(sources, backend)),
        certificate_expires: expires.map(seconds),
        last_check_millis: checked
            .iter()
            .filter_map(|c| c.last_latency)
            .max()
            .map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX)),
        moved_away: stats.moved_away,
        suspect,
        flows: ids.iter().map(|id| dataplane.maps().flows().live(*id)).sum(),
        packets: stats.to_packets + stats.from_packets,
        bytes: stats.to_bytes + stats.from_bytes,
    }
}

/// `GET /v1/checks`: a backend that is checked on several ports is there once for each.
pub fn checks(config: &Config, state: &State, service: Option<&str>) -> Checks {
    let mut backends: Vec<BackendChecks> = Vec::new();
    let mut known = BTreeSet::new();
    for s in config.services.iter().filter(|s| service.is_none_or(|wanted| wanted == s.name)) {
        for (target, listen, member) in uses(config, s) {
            let backend = member.backend;
            let checked = state.checked(listen, &member).cloned().unwrap_or_default();
            let shown = BackendChecks {
                service: s.name.clone(),
                backend: backend.name.clone(),
                check: target.check.kind().to_string(),
                address: match target.address.port() {
                    0 => target.address.ip().to_string(),
                    _ => target.address.to_string(),
                },
                health: checked.health,
                certificate_expires: checked.certificate_expires.map(seconds),
                results: checked.results.iter().map(check_result).collect(),
            };
            if known.insert((s.name.as_str(), backend.name.as_str(), target)) {
                backends.push(shown);
            }
        }
    }
    Checks { backends }
}

fn check_result(outcome: &Outcome) -> CheckResult {
    let error = outcome.result.as_ref().err();
    CheckResult {
        time: seconds(outcome.at),
        millis: u64::try_from(outcome.latency.as_millis()).unwrap_or(u64::MAX),
        error: error.map(ToString::to_string),
        error_number: error.map(CheckError::number),
    }
}

/// Since the epoch.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What to say of a certificate that ends in so many whole days.
pub fn certificate_sentence(days: i64) -> String {
    match days {
        ..0 => "the certificate has ended".to_owned(),
        0 => "the certificate ends in less than a day".to_owned(),
        1 => "the certificate ends in 1 day".to_owned(),
        days => format!("the certificate ends in {days} days"),
    }
}

/// The numbers that a backend of a service has in the maps. `servers` are those of the image.
pub fn numbers(
    image: &Image,
    servers: &HashMap<Server, Id>,
    service: &Service,
    backend: &Backend,
) -> Vec<Id> {
    service
        .listen
        .iter()
        .filter_map(|listen| {
            let listener = image.listener_at(listen)?;
            let port = server_port(listen, backend);
            servers.get(&Server { listener, address: backend.address, port }).copied()
        })
        .collect()
}

/// `GET /v1/flows`
pub fn flows(dataplane: &Dataplane<Kernel>, clock: Clock, limit: usize, service: Option<&str>) -> Flows {
    let image = dataplane.image();
    let key = dataplane.maps().hash_key();
    let table = dataplane.maps().flows();
    let of_service = |id: Id| {
        let listener = image.backends.get(&id).and_then(|b| image.listeners.get(&b.server.listener));
        service.is_none_or(|wanted| listener.is_some_and(|l| l.service == wanted))
    };
    let mut total = 0;
    let mut shown = Vec::new();
    for flow in table.list(image, &key, |word| of_service(word.backend())) {
        total += 1;
        if shown.len() < limit {
            shown.extend(flow_status(image, clock, &flow));
        }
    }
    Flows { total, capacity: table.capacity(), flows: shown }
}

fn flow_status(image: &Image, clock: Clock, flow: &Flow) -> Option<FlowStatus> {
    let backend = image.backends.get(&flow.backend)?;
    let listener = image.listeners.get(&backend.server.listener)?;
    let port = match backend.server.port {
        // It is the one that the client used.
        0 => flow.tuple.vip_port.get(),
        port => port,
    };
    Some(FlowStatus {
        service: listener.service.clone(),
        backend: backend.name.clone(),
        protocol: listener.listen.protocol.to_string(),
        client: SocketAddr::new(address_from(flow.tuple.client), flow.tuple.client_port.get()),
        vip: SocketAddr::new(listener.listen.address, flow.tuple.vip_port.get()),
        server: SocketAddr::new(backend.server.address, port),
        state: flow.state.name().to_owned(),
        idle_seconds: clock.age(flow.time) as u64,
    })
}

/// `no backend NAME; ...`, naming those that exist.
pub fn no_such_backend(config: &Config, name: &str, service: Option<&str>) -> String {
    let services = config.services.iter().filter(|s| service.is_none_or(|wanted| wanted == s.name));
    let mut names: Vec<String> = services
        .flat_map(|s| config.members(s).map(move |member| format!("{}/{}", s.name, member.backend.name)))
        .collect();
    names.dedup();
    match service {
        Some(wanted) if !config.services.iter().any(|s| s.name == wanted) => {
            let services: Vec<_> = config.services.iter().map(|s| s.name.as_str()).collect();
            format!("there is no service {wanted}; there is {}", services.join(", "))
        }
        _ => format!("there is no backend {name}; there is {}", names.join(", ")),
    }
}
