//! `GET /metrics`: the state as Prometheus reads it (OpenMetrics text), built anew for each scrape.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use anyhow::{Result, anyhow};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

use crate::api::carp::CarpStatus;
use crate::api::error::ApiError;
use crate::api::pools::PoolRole;
use crate::api::server::serve_until;
use crate::api::sync::SyncStatus;
use crate::api::types::{AdminState, BackendStatus, Counters, Flows, ServiceState, ServiceStatus, Status};
use crate::control::request::{ControlHandle, Request};
use crate::health::Health;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Listens on `control.metrics`.
///
/// # Errors
/// When the address is taken or not this machine's; the text says which and what to do.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "stop what listens there or choose another port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this machine",
            io::ErrorKind::PermissionDenied => "choose a port above 1023",
            _ => "choose another address",
        };
        anyhow!("cannot serve metrics on {address}: {error}; {advice} in control.metrics, or remove it")
    })
}

/// Answers scrapes on `listener` until `shutdown` resolves.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    control: ControlHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is only GET /metrics here"))
        .with_state(control);
    serve_until(listener, router, shutdown).await
}

async fn scrape(State(control): State<ControlHandle>) -> Result<Response, ApiError> {
    let status = control.ask(Request::Status).await?;
    let counters = control.ask(Request::Counters).await?;
    let flows = control.ask(|reply| Request::Flows { limit: 0, service: None, reply }).await??;
    let carp = control.ask(Request::Carp).await?;
    let sync = control.ask(Request::Sync).await?;
    let text = render(&status, &counters, &flows, &carp, &sync)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// The whole page.
///
/// # Errors
/// When the encoder fails, which it has no reason to.
pub fn render(
    status: &Status,
    counters: &Counters,
    flows: &Flows,
    carp: &CarpStatus,
    sync: &SyncStatus,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("matapa");
    daemon(&mut registry, status, flows);
    packets(&mut registry, counters);
    services(&mut registry, &status.services);
    backends(&mut registry, &status.services);
    hosts(&mut registry, &status.services);
    crate::api::carp::register(&mut registry, carp);
    crate::api::sync::register(&mut registry, sync);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
    mode: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    reason: String,
    verdict: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    service: String,
    pool: String,
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    service: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabels {
    service: String,
    host: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdminLabels {
    service: String,
    backend: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    service: String,
    backend: String,
    result: &'static str,
}

fn daemon(registry: &mut Registry, status: &Status, flows: &Flows) {
    let build = Info::new([("version", status.version.clone())]);
    registry.register("build", "The version of the running daemon", build);
    let uptime = gauge(status.uptime_seconds);
    registry.register_with_unit("uptime", "Time since the daemon started", Unit::Seconds, uptime);
    let interfaces = Family::<InterfaceLabels, Gauge>::default();
    for interface in &status.interfaces {
        let labels = InterfaceLabels { interface: interface.name.clone(), mode: interface.mode.clone() };
        interfaces.get_or_create(&labels).set(1);
    }
    registry.register("interface_attached", "Interfaces that run the program, with its mode", interfaces);
    registry.register("flows", "Entries in the flow table", gauge(flows.total));
    registry.register("flow_table_capacity", "Places in the flow table", gauge(flows.capacity));
}

fn packets(registry: &mut Registry, counters: &Counters) {
    let packets = Family::<PacketLabels, Counter>::default();
    for (reason, counter) in &counters.counters {
        let labels = PacketLabels { reason: reason.clone(), verdict: counter.verdict.clone() };
        packets.get_or_create(&labels).inc_by(counter.value);
    }
    registry.register("packets", "Packets by what was decided and why", packets);
}

fn services(registry: &mut Registry, services: &[ServiceStatus]) {
    let up = Family::<ServiceLabels, Gauge>::default();
    let active = Family::<PoolLabels, Gauge>::default();
    let switches = Family::<ServiceLabels, Counter>::default();
    let flows = Family::<ServiceLabels, Gauge>::default();
    let packets = Family::<ServiceLabels, Counter>::default();
    let bytes = Family::<ServiceLabels, Counter>::default();
    for service in services {
        let labels = ServiceLabels { service: service.name.clone() };
        up.get_or_create(&labels).set(i64::from(service.state == ServiceState::Active));
        flows.get_or_create(&labels).set(signed(service.flows));
        packets.get_or_create(&labels).inc_by(service.packets);
        bytes.get_or_create(&labels).inc_by(service.bytes);
        if service.pools.len() > 1 {
            switches.get_or_create(&labels).inc_by(service.pool_switches);
        }
        for pool in &service.pools {
            let role = match pool.role {
                PoolRole::Primary => "primary",
                PoolRole::Backup => "backup",
            };
            let labels = PoolLabels { service: service.name.clone(), pool: pool.name.clone(), role };
            active.get_or_create(&labels).set(i64::from(pool.active));
        }
    }
    registry.register("service_up", "1 while at least one backend takes new flows", up);
    registry.register("service_pool_active", "1 while new flows of the service go to the pool", active);
    let help = "How often a listener of the service went from one pool to another, or to none";
    registry.register("service_pool_switches", help, switches);
    registry.register("service_flows", "Live flows of the service", flows);
    registry.register("service_packets", "Packets forwarded for the service", packets);
    registry.register_with_unit("service", "Bytes forwarded for the service", Unit::Bytes, bytes);
}

fn backends(registry: &mut Registry, services: &[ServiceStatus]) {
    let up = Family::<BackendLabels, Gauge>::default();
    let admin = Family::<AdminLabels, Gauge>::default();
    let weight = Family::<BackendLabels, Gauge>::default();
    let flows = Family::<BackendLabels, Gauge>::default();
    let packets = Family::<BackendLabels, Counter>::default();
    let bytes = Family::<BackendLabels, Counter>::default();
    let checks = Family::<CheckLabels, Counter>::default();
    let duration = Family::<BackendLabels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    let certificate = Family::<BackendLabels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    let most = Family::<BackendLabels, Gauge>::default();
    let full = Family::<BackendLabels, Gauge>::default();
    for (service, backend) in pairs(services) {
        let labels = BackendLabels { service: service.name.clone(), backend: backend.name.clone() };
        up.get_or_create(&labels).set(i64::from(backend.health == Health::Up));
        weight.get_or_create(&labels).set(i64::from(backend.weight));
        flows.get_or_create(&labels).set(signed(backend.flows));
        packets.get_or_create(&labels).inc_by(backend.packets);
        bytes.get_or_create(&labels).inc_by(backend.bytes);
        if let Some(millis) = backend.last_check_millis {
            duration.get_or_create(&labels).set(std::time::Duration::from_millis(millis).as_secs_f64());
        }
        if let Some(limit) = backend.max_connections {
            most.get_or_create(&labels).set(i64::from(limit));
            full.get_or_create(&labels).set(i64::from(backend.full));
        }
        if let Some(expires) = backend.certificate_expires {
            certificate.get_or_create(&labels).set(expires);
        }
        let BackendLabels { service, backend: name } = labels;
        for (state, text) in [
            (AdminState::Enabled, "enabled"),
            (AdminState::Draining, "draining"),
            (AdminState::Disabled, "disabled"),
        ] {
            let labels = AdminLabels { service: service.clone(), backend: name.clone(), state: text };
            admin.get_or_create(&labels).set(i64::from(backend.admin == state));
        }
        let failed = backend.checks.saturating_sub(backend.checks_up);
        for (result, count) in [("success", backend.checks_up), ("failure", failed)] {
            let labels = CheckLabels { service: service.clone(), backend: name.clone(), result };
            checks.get_or_create(&labels).inc_by(count);
        }
    }
    registry.register("backend_up", "1 while the checks find the backend up", up);
    registry.register("backend_admin_state", "1 for the state an operator gave the backend", admin);
    registry.register("backend_weight", "Weight, an operator's or the file's", weight);
    registry.register("backend_flows", "Live flows of the backend", flows);
    let help = "The most flows that the backend may have of each listener";
    registry.register("backend_max_connections", help, most);
    let help = "1 while the backend has as many flows of some listener as it may";
    registry.register("backend_full", help, full);
    registry.register("backend_packets", "Packets forwarded to and from the backend", packets);
    registry.register_with_unit("backend", "Bytes forwarded to and from the backend", Unit::Bytes, bytes);
    registry.register("backend_checks", "Finished health checks", checks);
    registry.register_with_unit("backend_check_duration", "Last health check", Unit::Seconds, duration);
    let help = "When the backend's certificate ends, since the epoch";
    registry.register_with_unit("backend_certificate_end", help, Unit::Seconds, certificate);
}

/// Host names that backends are found by.
fn hosts(registry: &mut Registry, services: &[ServiceStatus]) {
    let resolved = Family::<HostLabels, Gauge>::default();
    let addresses = Family::<HostLabels, Gauge>::default();
    let failures = Family::<HostLabels, Counter>::default();
    for service in services {
        for host in &service.hosts {
            let labels = HostLabels { service: service.name.clone(), host: host.name.clone() };
            let well = host.error.is_none() && !host.addresses.is_empty();
            resolved.get_or_create(&labels).set(i64::from(well));
            addresses.get_or_create(&labels).set(signed(host.addresses.len() as u64));
            failures.get_or_create(&labels).inc_by(host.failures);
        }
    }
    let help = "1 while the last question for the host name had a good answer";
    registry.register("host_resolved", help, resolved);
    registry.register("host_addresses", "Addresses of the host name that are used", addresses);
    registry.register("host_failures", "Questions for the host name without a good answer", failures);
}

fn pairs(services: &[ServiceStatus]) -> impl Iterator<Item = (&ServiceStatus, &BackendStatus)> {
    services.iter().flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(signed(value));
    gauge
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
