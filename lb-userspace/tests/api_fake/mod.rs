//! A control task that answers from a fixed state, behind the real server on a socket in a directory of its own.
#![expect(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use lb_common::verdict::Reason;
use lb_userspace::api::carp::{CarpChange, CarpStatus, GroupStatus, PeerStatus, VhidStatus};
use lb_userspace::api::explain::{
    Carries, Choice, ExplainedBackend, ExplainedFlow, ExplainedHop, ExplainedListener, ExplainedPacket,
    Explanation, Question, Reached, flag_names,
};
use lb_userspace::api::pools::{ChangedWeight, PoolRole, PoolStatus, ServiceChange, WeightChange};
use lb_userspace::api::sync::{PeerState, SyncStatus};
use lb_userspace::api::trace::TraceLine;
use lb_userspace::api::types::{
    AdminState, BackendChange, BackendChecks, BackendStatus, ChangeKind, ChangedAspect, CheckResult, Checks,
    ConfigChange, CounterValue, Counters, Event, EventKind, FlowStatus, Flows, HostStatus, InterfaceStatus,
    ReloadOutcome, ReloadPlan, ServiceState, ServiceStatus, Status,
};
use lb_userspace::api::{metrics, server, socket};
use lb_userspace::control::request::{ControlHandle, Refusal, Request};
use lb_userspace::control::tracing::Trace;
use lb_userspace::health::Health;
use tokio::sync::{broadcast, mpsc, oneshot};

/// A daemon on a thread of its own. Stops when dropped.
pub struct Fake {
    pub directory: tempfile::TempDir,
    pub events: broadcast::Sender<Event>,
    /// `Err` makes the next reloads refused with these lines.
    pub reload: Arc<Mutex<Result<u64, Vec<String>>>>,
    pub metrics: std::net::SocketAddr,
    /// What was done to it, in order.
    pub changes: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = socket::claim(&directory.path().join("control.sock")).expect("the socket");
        let read_only = socket::claim(&directory.path().join("read-only.sock")).expect("the socket");
        let (events, _) = broadcast::channel(64);
        let reload = Arc::new(Mutex::new(Ok(3)));
        let changes = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, metrics) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (events, reload) = (events.clone(), Arc::clone(&reload));
            let changes = Arc::clone(&changes);
            move || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let (requests, inbox) = mpsc::channel(8);
                    tokio::spawn(answer(inbox, reload, changes));
                    let handle = ControlHandle::new(requests, events);
                    let listener =
                        metrics::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
                    address.send(listener.local_addr().expect("an address")).expect("a listener");
                    tokio::spawn(metrics::serve(listener, handle.clone(), std::future::pending()));
                    let shutdown = async {
                        let _ = stopped.await;
                    };
                    tokio::spawn(server::serve_read_only(read_only, handle.clone(), std::future::pending()));
                    server::serve(socket, handle, shutdown).await.expect("serving");
                });
            }
        });
        let metrics = metrics.recv().expect("the metrics address");
        Self { directory, events, reload, metrics, changes, stop: Some(stop), thread: Some(thread) }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    pub fn read_only_socket(&self) -> PathBuf {
        self.directory.path().join("read-only.sock")
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the daemon ended well");
        }
    }

    /// Waits until somebody reads events.
    pub fn wait_for_reader(&self) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.events.receiver_count() == 0 {
            assert!(std::time::Instant::now() < deadline, "nobody reads the events");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn answer(
    mut inbox: mpsc::Receiver<Request>,
    reload: Arc<Mutex<Result<u64, Vec<String>>>>,
    changes: Arc<Mutex<Vec<String>>>,
) {
    let changed = |what: String| changes.lock().expect("the changes").push(what);
    let mut wanted: BTreeMap<String, AdminState> = BTreeMap::new();
    while let Some(request) = inbox.recv().await {
        // A caller that has gone away needs no answer.
        match request {
            Request::Status(reply) => {
                let mut status = status();
                for service in &mut status.services {
                    for backend in &mut service.backends {
                        if let Some(admin) = wanted.get(&format!("{}/{}", service.name, backend.name)) {
                            backend.admin = *admin;
                        }
                    }
                }
                drop(reply.send(status));
            }
            Request::Readiness(reply) => {
                let unready = reload.lock().expect("the outcome").is_err();
                let reasons = unready.then(|| "eth1 does not carry the program".to_owned());
                drop(reply.send(reasons.into_iter().collect()));
            }
            Request::Flows { limit, service, reply } => drop(reply.send(flows(limit, service.as_deref()))),
            Request::Explain { question, reply, .. } => drop(reply.send(explanation(&question))),
            Request::Trace { filter, reply, .. } => match filter.service.as_deref() {
                Some("mail") => {
                    let (to, lines) = mpsc::channel(8);
                    drop(reply.send(Ok(Trace::of(lines))));
                    for line in trace_lines() {
                        drop(to.send(line).await);
                    }
                    // It goes on until the client ends it.
                    tokio::spawn(async move { to.closed().await });
                }
                _ => {
                    let text = "there is no service web; there is mail, dns".to_owned();
                    drop(reply.send(Err(Refusal::NotFound(text))));
                }
            },
            Request::Checks { service, reply } => drop(reply.send(checks(service.as_deref()))),
            Request::Counters(reply) => drop(reply.send(counters())),
            Request::SetAdmin { backend, service, state, reply } => {
                let done = set_admin(&backend, service.as_deref(), state);
                for name in done.iter().flat_map(|change| &change.backends) {
                    wanted.insert(name.clone(), state);
                    changed(format!("{name} {state:?}"));
                }
                drop(reply.send(done));
            }
            Request::SetWeight { backend, service, weight, reply } => {
                drop(reply.send(set_weight(&backend, service.as_deref(), weight)));
            }
            Request::SetService { service, enabled, reply } => {
                drop(reply.send(set_service(service, enabled)));
            }
            Request::Reload(reply) => {
                let outcome = reload.lock().expect("the outcome").clone();
                let outcome = outcome.map(|operations| ReloadOutcome { operations });
                changed("reload".to_owned());
                drop(reply.send(outcome.map_err(Refusal::Configuration)));
            }
            Request::PlanReload(reply) => {
                let outcome = reload.lock().expect("the outcome").clone();
                let outcome = outcome.map(|operations| reload_plan(operations > 0));
                drop(reply.send(outcome.map_err(Refusal::Configuration)));
            }
            Request::Carp(reply) => drop(reply.send(carp())),
            Request::Sync(reply) => drop(reply.send(sync())),
            Request::SetCarp { name, wish, reply } => match name.as_deref() {
                None | Some("mail") => {
                    let wish = format!("{wish:?}").to_lowercase();
                    changed(format!("carp {wish}"));
                    drop(reply.send(Ok(CarpChange { wish, vhids: vec!["mail".to_owned()] })));
                }
                Some(name) => {
                    drop(
                        reply.send(Err(Refusal::NotFound(format!("there is no carp {name}; there is mail")))),
                    );
                }
            },
            Request::Poll(reply) => {
                changed("poll".to_owned());
                let _ = reply.send(());
            }
        }
    }
}

/// A master that hears another gateway.
fn carp() -> CarpStatus {
    let vhid = VhidStatus {
        name: "mail".to_owned(),
        interface: "eth0".to_owned(),
        vhid: 10,
        state: "master".to_owned(),
        since_seconds: 41,
        reason: "no advertisement for 3.000 s".to_owned(),
        wish: "released".to_owned(),
        addresses: vec!["203.0.113.10/24".to_owned()],
        group: "carp".to_owned(),
        preempt: true,
        advbase: 1,
        advskew: 0,
        advertised_advbase: 1,
        advertised_advskew: 0,
        demotion: 0,
        peer: Some(PeerStatus {
            address: "203.0.113.3".parse().expect("an address"),
            advbase: 1,
            advskew: 100,
            demotion: 0,
            seconds_ago: 40.5,
        }),
        sent: 41,
        send_errors: 0,
        received: 2,
        transitions: 2,
    };
    let group = GroupStatus { name: "carp".to_owned(), demotion: 0, owners: BTreeMap::new() };
    let bad = CounterValue { value: 1, verdict: "drop".to_owned(), help: "the digest is wrong".to_owned() };
    CarpStatus { vhids: vec![vhid], groups: vec![group], rejected: [("carp_digest".to_owned(), bad)].into() }
}

/// A pair that knows the same flows.
fn sync() -> SyncStatus {
    SyncStatus {
        configured: true,
        peer: Some("10.0.0.2".parse().expect("an address")),
        interface: "eth2".to_owned(),
        state: PeerState::Synchronised,
        session: "5f3a".to_owned(),
        peer_session: Some("91c0".to_owned()),
        sessions: 1,
        heard_seconds_ago: Some(0.02),
        received_all: true,
        sent_all: true,
        flows_sent: 1403,
        flows_received: 12,
        bytes_sent: 98_304,
        bytes_received: 4096,
        ..SyncStatus::default()
    }
}

fn reload_plan(differs: bool) -> ReloadPlan {
    if !differs {
        return ReloadPlan { changes: Vec::new(), operations: Vec::new(), warnings: Vec::new() };
    }
    let aspect = |name: &str, from: Option<&str>, to: Option<&str>| ChangedAspect {
        name: name.to_owned(),
        from: from.map(str::to_owned),
        to: to.map(str::to_owned),
    };
    let change =
        |change, subject: &str, aspects| ConfigChange { change, subject: subject.to_owned(), aspects };
    ReloadPlan {
        changes: vec![
            change(ChangeKind::Changed, "interfaces", vec![aspect("", Some("eth0"), Some("eth0, eth1"))]),
            change(
                ChangeKind::Changed,
                "service mail",
                vec![
                    aspect("sticky", None, Some("a client's new connections follow its earlier ones")),
                    aspect("checks", Some("tcp every 10s"), Some("smtp every 10s")),
                    aspect("something that matapa check does not show", None, None),
                ],
            ),
            change(
                ChangeKind::Added,
                "backend mail/mx5",
                vec![aspect("address", None, Some("198.51.100.15")), aspect("weight", None, Some("1"))],
            ),
            change(ChangeKind::Removed, "service dns", Vec::new()),
        ],
        operations: [
            "write backend mx5 of mail 203.0.113.10:25/tcp (weight 1, health unknown)",
            "lead no more packets by service address 203.0.113.10:53 (protocol 17)",
            "remove listener dns 203.0.113.10:53/udp",
        ]
        .map(str::to_owned)
        .into(),
        warnings: vec![
            "flows.capacity is used when the flow table is made, and this one goes on as it is".to_owned(),
        ],
    }
}

fn backend(id: u32, name: &str, address: &str, port: Option<u16>) -> BackendStatus {
    BackendStatus {
        id,
        name: name.to_owned(),
        address: address.parse().expect("an address"),
        port,
        weight: 1,
        configured_weight: None,
        pool: (if id < 5 { "mx" } else { "dns" }).to_owned(),
        priority: 0,
        standby: false,
        host: None,
        leaving: false,
        max_connections: None,
        full: false,
        ramp_percent: None,
        health: Health::Up,
        admin: AdminState::Enabled,
        availability_percent: Some(99.95),
        checks: 2000,
        checks_up: 1999,
        last_error: None,
        last_error_number: None,
        last_check_millis: Some(4),
        notice: None,
        certificate_expires: None,
        moved_away: 0,
        suspect: false,
        flows: 12,
        packets: 48_211,
        bytes: 31_457_280,
    }
}

fn pool(name: &str, role: PoolRole, well: u64) -> PoolStatus {
    PoolStatus {
        name: name.to_owned(),
        role,
        active: well > 0,
        well,
        well_weight: well,
        quorum: 1,
        hysteresis: 0,
    }
}

fn host(name: &str, pool: &str, addresses: &[&str], leaving: &[&str], error: Option<&str>) -> HostStatus {
    let list = |all: &[&str]| all.iter().map(|one| one.parse().expect("an address")).collect();
    HostStatus {
        name: name.to_owned(),
        host: name.to_owned(),
        pool: pool.to_owned(),
        addresses: list(addresses),
        leaving: list(leaving),
        error: error.map(str::to_owned),
        failures: u64::from(error.is_some()),
        next_seconds: 2,
    }
}

pub fn status() -> Status {
    let mail = ServiceStatus {
        id: 1,
        name: "mail".to_owned(),
        state: ServiceState::Active,
        listen: vec!["203.0.113.10:25/tcp".to_owned(), "[2001:db8::10]:25/tcp".to_owned()],
        pool: "mx".to_owned(),
        pools: vec![
            pool("mx", PoolRole::Primary, 1),
            PoolStatus { active: false, ..pool("spool", PoolRole::Backup, 1) },
        ],
        pool_switches: 2,
        forward: "nat".to_owned(),
        scheduler: "maglev".to_owned(),
        flows: 14,
        packets: 51_334,
        bytes: 33_423_360,
        backends: vec![
            BackendStatus {
                ramp_percent: Some(30),
                max_connections: Some(12),
                full: true,
                ..backend(1, "mx1", "198.51.100.11", None)
            },
            BackendStatus {
                health: Health::Down,
                availability_percent: Some(71.5),
                // What a server says is not to be trusted with a terminal.
                last_error: Some("greeting \"421 \u{1b}[2Jbusy\r\n\", expected 220".to_owned()),
                last_check_millis: Some(2000),
                flows: 0,
                weight: 2,
                configured_weight: Some(1),
                ..backend(2, "mx2", "198.51.100.12", Some(2525))
            },
            BackendStatus {
                admin: AdminState::Draining,
                flows: 2,
                ..backend(3, "mx3", "2001:db8:1::13", Some(25))
            },
            BackendStatus {
                admin: AdminState::Draining,
                health: Health::Down,
                last_error: Some("timed out".to_owned()),
                ..backend(4, "mx4", "198.51.100.14", None)
            },
            BackendStatus {
                standby: true,
                pool: "spool".to_owned(),
                max_connections: Some(1000),
                ..backend(7, "spool1", "198.51.100.20", None)
            },
            BackendStatus {
                admin: AdminState::Draining,
                host: Some("spool.example.com".to_owned()),
                leaving: true,
                pool: "spool".to_owned(),
                flows: 1,
                ..backend(8, "spool.example.com-198.51.100.21", "198.51.100.21", None)
            },
        ],
        hosts: vec![
            host("mx.example.com", "mx", &[], &[], Some("there is no name mx.example.com")),
            host("spool.example.com", "spool", &[], &["198.51.100.21"], None),
        ],
    };
    let dns = ServiceStatus {
        id: 2,
        name: "dns".to_owned(),
        state: ServiceState::Down,
        listen: vec!["203.0.113.10:53/udp".to_owned()],
        pool: "dns".to_owned(),
        pools: vec![pool("dns", PoolRole::Primary, 0)],
        pool_switches: 0,
        hosts: Vec::new(),
        flows: 0,
        packets: 0,
        bytes: 0,
        backends: vec![
            BackendStatus {
                health: Health::Unknown,
                availability_percent: None,
                checks: 0,
                checks_up: 0,
                last_check_millis: None,
                flows: 0,
                packets: 0,
                bytes: 0,
                ..backend(5, "198.51.100.21", "198.51.100.21", None)
            },
            BackendStatus {
                admin: AdminState::Disabled,
                health: Health::Unknown,
                availability_percent: None,
                last_check_millis: None,
                flows: 0,
                ..backend(6, "198.51.100.22", "198.51.100.22", None)
            },
        ],
        ..mail.clone()
    };
    Status {
        version: "0.1.0".to_owned(),
        pid: 4711,
        uptime_seconds: 86_400,
        config_file: "/etc/matapa/matapa.toml".to_owned(),
        interfaces: vec![InterfaceStatus { name: "eth0".to_owned(), index: 2, mode: "native".to_owned() }],
        services: vec![mail, dns],
    }
}

fn checks(service: Option<&str>) -> Result<Checks, Refusal> {
    if let Some(name) = service.filter(|name| !["mail", "dns"].contains(name)) {
        return Err(Refusal::NotFound(format!("there is no service {name}; there is mail, dns")));
    }
    let result = |time, millis, error: Option<(&str, u16)>| CheckResult {
        time,
        millis,
        error: error.map(|(text, _)| text.to_owned()),
        error_number: error.map(|(_, number)| number),
    };
    let backend = |name: &str, address: &str, health, results| BackendChecks {
        service: "mail".to_owned(),
        backend: name.to_owned(),
        check: "smtp".to_owned(),
        address: address.to_owned(),
        health,
        certificate_expires: None,
        results,
    };
    let noon = 1_764_072_000.0;
    let backends = vec![
        BackendChecks {
            certificate_expires: Some(1_766_664_000.0),
            ..backend(
                "mx1",
                "198.51.100.11:25",
                Health::Up,
                vec![result(noon, 4, None), result(noon - 10.0, 3, None)],
            )
        },
        backend(
            "mx2",
            "198.51.100.12:2525",
            Health::Down,
            vec![
                result(noon + 1.5, 2000, Some(("timed out while waiting for the greeting", 11))),
                result(
                    noon - 8.5,
                    12,
                    Some(("wrong reply while waiting for the greeting: 421 \u{1b}[2J", 31)),
                ),
                result(noon - 18.5, 5, None),
            ],
        ),
        backend("mx3", "[2001:db8:1::13]:25", Health::Unknown, Vec::new()),
    ];
    let wanted = |checks: &BackendChecks| service.is_none_or(|name| name == checks.service);
    Ok(Checks { backends: backends.into_iter().filter(wanted).collect() })
}

fn flows(limit: usize, service: Option<&str>) -> Result<Flows, Refusal> {
    if let Some(name) = service.filter(|name| !["mail", "dns"].contains(name)) {
        return Err(Refusal::NotFound(format!("there is no service {name:?}; there are dns, mail")));
    }
    let flow = |client: &str, vip: &str, server: &str, state: &str, idle_seconds| FlowStatus {
        service: "mail".to_owned(),
        backend: "mx1".to_owned(),
        protocol: "tcp".to_owned(),
        client: client.parse().expect("an address"),
        vip: vip.parse().expect("an address"),
        server: server.parse().expect("an address"),
        state: state.to_owned(),
        idle_seconds,
    };
    let mut flows = vec![
        flow("192.0.2.7:51812", "203.0.113.10:25", "198.51.100.11:25", "established", 0),
        flow("192.0.2.99:40001", "203.0.113.10:25", "198.51.100.11:25", "opening", 3),
        flow("[2001:db8:f::1]:33333", "[2001:db8::10]:25", "[2001:db8:1::13]:25", "closing", 127),
    ];
    flows.retain(|flow| service.is_none_or(|name| flow.service == name));
    let total = u64::try_from(flows.len()).expect("few");
    flows.truncate(limit);
    Ok(Flows { total, capacity: 1_048_576, flows })
}

/// One way of each kind, by the destination port.
fn explanation(question: &Question) -> Result<Explanation, Refusal> {
    if let Some(name) = question.interface.as_deref().filter(|name| *name != "eth0") {
        return Err(Refusal::NotFound(format!("the program is not on {name}; it is on eth0, eth1")));
    }
    let (source_port, destination_port) = question.ports();
    let Carries::Tcp { flags, .. } = question.carries else {
        return Err(Refusal::Invalid("the fake knows TCP only".to_owned()));
    };
    let unknown = ExplainedFlow { known: false, state: None, idle_seconds: None, backend: None };
    let answer = Explanation {
        packet: ExplainedPacket {
            source: question.source,
            destination: question.destination,
            source_port: Some(source_port),
            destination_port: Some(destination_port),
            protocol: "tcp".to_owned(),
            flags: flag_names(flags),
            interface: "eth0".to_owned(),
            vlans: question.vlans.clone(),
        },
        listener: Some(ExplainedListener {
            service: "mail".to_owned(),
            listen: "203.0.113.10:25/tcp".to_owned(),
            scheduler: "maglev".to_owned(),
        }),
        from_backend: false,
        flow: Some(unknown),
        choice: Some(Choice::Scheduler { slot: 4711, slots: 65_537 }),
        backend: Some(ExplainedBackend {
            service: "mail".to_owned(),
            name: "mx1".to_owned(),
            address: "198.51.100.11".parse().expect("an address"),
            port: Some(25),
            health: Health::Up,
            admin: AdminState::Enabled,
            suspect: false,
        }),
        mode: Some("nat".to_owned()),
        stands_for_client: None,
        next_hop: Some(ExplainedHop {
            reach: Reached::Known,
            interface: Some("eth1".to_owned()),
            mac: Some("02:00:00:00:00:11".to_owned()),
        }),
        action: "redirect".to_owned(),
        reason: "to_backend".to_owned(),
        verdict: "forward".to_owned(),
        meaning: "A client's packet was rewritten and sent to its backend.".to_owned(),
    };
    let backend = answer.backend.clone();
    Ok(match destination_port {
        25 => answer,
        // A known flow by `snat`, whose server is suspect and not in the neighbours' table.
        26 => Explanation {
            flow: Some(ExplainedFlow {
                known: true,
                state: Some("established".to_owned()),
                idle_seconds: Some(3),
                backend: Some("mail/mx1".to_owned()),
            }),
            choice: None,
            backend: backend.map(|backend| ExplainedBackend {
                admin: AdminState::Draining,
                suspect: true,
                ..backend
            }),
            mode: Some("snat".to_owned()),
            stands_for_client: Some("198.51.100.1:5000".parse().expect("an address")),
            next_hop: Some(ExplainedHop { reach: Reached::NeighbourUnknown, interface: None, mac: None }),
            action: "pass".to_owned(),
            reason: "to_backend_by_kernel".to_owned(),
            meaning: "A client's packet was rewritten and left to the kernel.".to_owned(),
            ..answer
        },
        // A repeated SYN.
        27 => Explanation {
            choice: Some(Choice::SecondChance { silent: "mail/mx2".to_owned() }),
            flow: Some(ExplainedFlow {
                known: true,
                state: Some("opening".to_owned()),
                idle_seconds: Some(1),
                backend: Some("mail/mx2".to_owned()),
            }),
            ..answer
        },
        // The scheduler's choice is full.
        28 => Explanation { choice: Some(Choice::Room { full: "mail/mx2".to_owned() }), ..answer },
        // An answer, by its port.
        40_000 => Explanation { listener: None, from_backend: true, choice: None, ..answer },
        _ => Explanation {
            listener: None,
            flow: None,
            choice: None,
            backend: None,
            mode: None,
            next_hop: None,
            action: "pass".to_owned(),
            reason: "no_service".to_owned(),
            verdict: "pass".to_owned(),
            meaning: "Not for a service: left to the kernel untouched.".to_owned(),
            ..answer
        },
    })
}

/// A SYN and its answer, and a packet that is not IP after some that were missed.
fn trace_lines() -> Vec<TraceLine> {
    let syn = TraceLine {
        time: 1_767_225_599.25,
        interface: "eth0".to_owned(),
        vlan: None,
        source: Some("192.0.2.7".parse().expect("an address")),
        destination: Some("203.0.113.10".parse().expect("an address")),
        source_port: Some(40_000),
        destination_port: Some(25),
        protocol: Some("tcp".to_owned()),
        flags: "S".to_owned(),
        fragment: false,
        length: 74,
        service: Some("mail".to_owned()),
        backend: Some("mx1".to_owned()),
        action: "redirect".to_owned(),
        reason: "to_backend".to_owned(),
        steps: ["for the service mail", "unknown flow", "slot 5 holds mx1"].map(str::to_owned).into(),
        missed: 0,
    };
    vec![
        syn.clone(),
        TraceLine {
            time: syn.time + 0.001,
            interface: "eth1".to_owned(),
            vlan: Some(10),
            source: Some("198.51.100.11".parse().expect("an address")),
            destination: syn.source,
            source_port: syn.destination_port,
            destination_port: syn.source_port,
            flags: "S.".to_owned(),
            reason: "to_client".to_owned(),
            steps: ["from mx1", "known flow with mx1, opening"].map(str::to_owned).into(),
            ..syn.clone()
        },
        TraceLine {
            time: syn.time + 2.0,
            source: None,
            destination: None,
            source_port: None,
            destination_port: None,
            protocol: None,
            flags: String::new(),
            service: None,
            backend: None,
            action: "pass".to_owned(),
            reason: "not_ip".to_owned(),
            steps: Vec::new(),
            missed: 12,
            ..syn
        },
    ]
}

pub fn counters() -> Counters {
    let counter = |name: &str, value| {
        let reason = Reason::ALL.iter().find(|reason| reason.name() == name).expect("a counter");
        let (verdict, help) = (reason.kind().name().to_owned(), reason.help().to_owned());
        (name.to_owned(), CounterValue { value, verdict, help })
    };
    let counters = BTreeMap::from([
        counter("to_backend", 51_320),
        counter("to_client", 40_911),
        counter("no_service", 982_113),
        counter("no_backend", 7),
        counter("no_route", 0),
    ]);
    Counters { counters }
}

fn set_admin(backend: &str, service: Option<&str>, state: AdminState) -> Result<BackendChange, Refusal> {
    let status = status();
    let backends: Vec<String> = status
        .services
        .iter()
        .filter(|candidate| service.is_none_or(|name| candidate.name == name))
        .flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
        .filter(|(_, candidate)| candidate.name == backend)
        .map(|(service, backend)| format!("{}/{}", service.name, backend.name))
        .collect();
    if backends.is_empty() {
        let names: Vec<_> = status
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| backend.name.clone())
            .collect();
        return Err(Refusal::NotFound(format!(
            "there is no backend {backend:?}; there are {}",
            names.join(", ")
        )));
    }
    Ok(BackendChange { state, backends })
}

fn set_weight(backend: &str, service: Option<&str>, weight: Option<u16>) -> Result<WeightChange, Refusal> {
    let backends = set_admin(backend, service, AdminState::Enabled)?.backends.into_iter();
    let configured_weight = weight.map(|_| 1);
    let change = |backend| ChangedWeight {
        backend,
        weight: weight.unwrap_or(1),
        configured_weight,
        changed: configured_weight.is_some(),
    };
    Ok(WeightChange { backends: backends.map(change).collect() })
}

fn set_service(service: String, enabled: bool) -> Result<ServiceChange, Refusal> {
    let Some(known) = status().services.into_iter().find(|known| known.name == service) else {
        return Err(Refusal::NotFound(format!("there is no service {service}; there is mail, dns")));
    };
    Ok(ServiceChange { service, enabled, changed: (known.state != ServiceState::Disabled) != enabled })
}

/// One event of each kind.
pub fn events() -> Vec<Event> {
    let (service, backend) = ("mail".to_owned(), "mx2".to_owned());
    let kinds = [
        EventKind::Adopted { services: 2, flows: 1403 },
        EventKind::Health {
            service: service.clone(),
            backend: backend.clone(),
            from: Health::Up,
            to: Health::Down,
            reason: "greeting \"421 \u{1b}[2Jbusy\r\n\", expected 220".to_owned(),
            error_number: Some(31),
        },
        EventKind::Applied { operations: 2, micros: 412 },
        EventKind::FlowsReset { service: service.clone(), backend: backend.clone(), flows: 9 },
        EventKind::Resolved {
            host: "mx.example.com".to_owned(),
            added: vec!["198.51.100.12".parse().expect("an address")],
            gone: vec!["198.51.100.11".parse().expect("an address")],
        },
        EventKind::Resolved { host: "mx.example.com".to_owned(), added: Vec::new(), gone: Vec::new() },
        EventKind::Unresolved {
            host: "mx.example.com".to_owned(),
            reason: "there is no name mx.example.com".to_owned(),
        },
        EventKind::Service { service: service.clone(), state: ServiceState::Down },
        EventKind::Certificate {
            service: service.clone(),
            backend: backend.clone(),
            expires: 1_767_657_600.0,
            days: 4,
        },
        EventKind::Pools { service: service.clone(), using: vec!["spool".to_owned()], backup: true },
        EventKind::Pools { service: service.clone(), using: Vec::new(), backup: false },
        EventKind::Pools { service: service.clone(), using: vec!["mx".to_owned()], backup: false },
        EventKind::Weight { service: service.clone(), backend: backend.clone(), weight: 2, by_hand: true },
        EventKind::Weight { service: service.clone(), backend: backend.clone(), weight: 1, by_hand: false },
        EventKind::Service { service: service.clone(), state: ServiceState::Disabled },
        EventKind::Admin { service, backend, state: AdminState::Draining },
        EventKind::Reload { operations: 1 },
        EventKind::ReloadRefused {
            errors: vec!["/etc/matapa/matapa.toml:3:1: unknown key `lisen`".to_owned()],
        },
    ];
    let mut number = 0;
    kinds
        .into_iter()
        .map(|kind| {
            // A gap after the third, as for a reader that was too slow.
            number += if number == 3 { 4 } else { 1 };
            Event { number, time: 1_767_225_599.25 + f64::from(u32::try_from(number).expect("small")), kind }
        })
        .collect()
}

/// Answer of the daemon on a Unix socket to a request written by hand: status code, head, body.
pub fn raw(socket: &Path, request: &str) -> (u16, String, String) {
    let stream = std::os::unix::net::UnixStream::connect(socket).expect("connected");
    exchange(stream, request)
}

pub fn exchange(mut stream: impl std::io::Read + std::io::Write, request: &str) -> (u16, String, String) {
    let text = format!("{request} HTTP/1.1\r\nHost: matapa\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, head.to_lowercase(), body.to_owned())
}
