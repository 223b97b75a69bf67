//! Starting in an order in which a failure leaves nothing behind, and stopping so that forwarding goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use lb_common::abi::flow::WAYS;
use log::{info, warn};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc};

use super::{host, privileges, systemd};
use crate::api::{metrics, server, socket};
use crate::carp;
use crate::config::{Config, Service};
use crate::control::carp::VhidStates;
use crate::control::explain::Explaining;
use crate::control::held::HeldFragments;
use crate::control::hosts::Hosts;
use crate::control::late::LateStages;
use crate::control::request::ControlHandle;
use crate::control::state::State;
use crate::control::sync::FlowSync;
use crate::control::task::{Control, Signal};
use crate::control::tracing::Tracing;
use crate::dataplane::flows::Swept;
use crate::dataplane::kernel::Logger;
use crate::dataplane::kernel::attach;
use crate::dataplane::kernel::load::{self, Geometry, Loaded, Programs};
use crate::dataplane::kernel::pins::{self, Pins};
use crate::dataplane::{Capacity, Dataplane, first_stages, snapshot};
use crate::health;
use crate::net::neighbours::Neighbours;
use crate::net::ports::Interfaces;
use crate::net::watch as follow;
use crate::sync::key;

/// The file that this process runs, even if another has taken its place (proc_pid_exe(5)).
const THIS_PROGRAM: &str = "/proc/self/exe";

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    pub config_file: PathBuf,
    /// Instead of the configuration's `control.socket`.
    pub socket: Option<PathBuf>,
    /// Log the way of every packet.
    pub trace_packets: bool,
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; nothing is left attached then that was not before.
pub fn run(options: &Options, config: Config) -> anyhow::Result<()> {
    // Mounting it is the only thing that needs more than what is kept.
    pins::ensure_bpf_fs(&pins::directory())?;
    privileges::give_up();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(options, config))
}

async fn serve(options: &Options, config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let socket = socket::claim_for(
        "control.socket",
        options.socket.as_ref().unwrap_or(&config.control.socket),
        config.control.group.as_deref(),
    )?;
    let read_only = match &config.control.read_only_socket {
        Some(path) => {
            let group = config.control.read_only_group.as_deref();
            Some(socket::claim_for("control.read_only_socket", path, group)?)
        }
        None => None,
    };
    let metrics_listener = match config.control.metrics {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    let vhids = carp::plan::prepare(&config.carp)?;
    let sync = FlowSync::prepare(&config)?;
    let seed = match &config.cluster.seed_file {
        Some(path) => Some(key::hash_key(&key::read("cluster.seed_file", path)?)),
        None => None,
    };
    let interfaces = attach::resolve(&config.interfaces)?;
    let pins = Pins::open(&pins::directory())?;
    // A gateway that cannot forward yet must not be master. One that an earlier daemon has left forwarding can, as one
    // that has nothing to forward; and its peers do not wait until this one's program is verified.
    let forwards = config.services.is_empty() || pins.links().is_ok_and(|links| !links.is_empty());
    let early = if forwards { Some(carp::task::start(vhids.clone())?) } else { None };
    let first = first_stages::of(&config);
    let programs = if options.trace_packets { Programs::Traced } else { Programs::First(&first) };
    let Loaded { mut kernel, image, adopted, moving, rest } =
        match load::load(&pins, geometry(&config), seed, programs) {
            Ok(loaded) => loaded,
            Err(error) => {
                if let Some(carp) = early {
                    carp.stop().await;
                }
                if pins.links().is_ok_and(|links| links.is_empty()) {
                    give_up(pins);
                }
                return Err(error);
            }
        };
    let logger = kernel.take_logger();
    let ring = kernel.take_held().context("the program's ring buffer of fragments is in use")?;
    let held = HeldFragments::over(ring)?;
    if adopted {
        snapshot::remove_rest(&mut kernel, &image)?;
    }
    let epoch = kernel.route_epoch();
    let (interfaces_to, known) = tokio::sync::watch::channel(Interfaces::default());
    let (reports_to, reports) = mpsc::channel(1024);
    let (events, _) = broadcast::channel(1024);
    let mut config = config;
    let hosts = Hosts::restore(&mut config, &image);
    let mut control = Control {
        state: State::restore(&config, &image),
        dataplane: Dataplane::over(kernel, image),
        config,
        config_file: options.config_file.clone(),
        pins,
        attached: Vec::new(),
        runner: {
            health::raise_descriptor_limit();
            health::checker::spawn(reports_to, THIS_PROGRAM.into())
        },
        events: events.clone(),
        swept: Swept::default(),
        started,
        event_number: 0,
        resetting: BTreeMap::new(),
        behind: false,
        interfaces: known,
        carp: match early {
            Some(carp) => carp,
            None => carp::task::start(Vec::new())?,
        },
        vhid_states: VhidStates::default(),
        explaining: Explaining::default(),
        tracing: Tracing::default(),
        held,
        hosts,
        neighbours: Neighbours::default(),
        sync: FlowSync::default(),
        late: LateStages::default(),
    };
    let begun = control.begin_sync(sync).and_then(|()| control.begin(adopted, moving, &interfaces));
    if let Err(error) = begun {
        control.carp.stop().await;
        // Also of an earlier start that ended before it attached anything.
        if control.pins.links().is_ok_and(|links| links.is_empty()) {
            give_up(control.pins);
        }
        return Err(error);
    }
    control.load_late(rest);
    if !forwards {
        control.carp.send(carp::task::Command::Reload(vhids));
    }
    // What an earlier daemon has left is what this gateway has seen.
    control.demote_for_flows(control.sync.is_running() && !adopted);
    host::prepare(&control.config);
    for attached in &control.attached {
        info!("{} ({}) carries the program in {} mode", attached.name, attached.index, attached.mode());
    }

    let (requests_to, requests) = mpsc::channel(64);
    let handle = ControlHandle::new(requests_to, events);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let until = |mut stopped: tokio::sync::watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is a stop too.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let api = tokio::spawn(server::serve(socket, handle.clone(), until(stopped.clone())));
    let read_only = read_only
        .map(|socket| tokio::spawn(server::serve_read_only(socket, handle.clone(), until(stopped.clone()))));
    let metrics = metrics_listener
        .map(|listener| tokio::spawn(metrics::serve(listener, handle.clone(), until(stopped.clone()))));
    let follower = match follow::spawn(epoch, interfaces_to, until(stopped.clone())) {
        Ok(follower) => Some(follower),
        Err(error) => {
            warn!("routes and interfaces are not followed, so VLANs are left to the kernel: {error}");
            None
        }
    };
    if let Some(logger) = logger {
        tokio::spawn(trace(logger));
    }
    let signals = signals()?;
    info!("ready, {} ms after start", started.elapsed().as_millis());
    systemd::ready();
    control.run(requests, reports, signals).await;
    systemd::stopping();

    stop.send_replace(true);
    report_end("API", api.await);
    if let Some(read_only) = read_only {
        report_end("read-only API", read_only.await);
    }
    if let Some(metrics) = metrics {
        report_end("metrics", metrics.await);
    }
    if let Some(follower) = follower {
        report_end("task that follows routes", follower.await.map(Ok));
    }
    info!(
        "stopped; forwarding goes on as it is until `matapa detach`, or as long as forward_without_daemon says"
    );
    Ok(())
}

/// Removes what a start that failed has pinned.
fn give_up(pins: Pins) {
    if let Err(error) = pins.remove_all() {
        warn!("could not remove all pins of the start that failed: {error}");
    }
}

/// Room for the configuration to grow to twice its size, and for small ones to grow a lot.
fn geometry(config: &Config) -> Geometry {
    let listeners: usize = config.services.iter().map(|s| s.listen.len()).sum();
    // What a host name may come to is not known yet.
    const PER_HOST: usize = 8;
    let hosts = |s: &Service| -> usize {
        let pools = [Some(s.pool), s.backup].into_iter().flatten();
        pools.map(|index| config.pools[index].hosts.len() * PER_HOST).sum()
    };
    let backends = |s: &Service| s.listen.len() * (config.members(s).count() + hosts(s));
    let backends: usize = config.services.iter().map(backends).sum();
    let room = |wanted: usize, least: u32| {
        u32::try_from(wanted * 2)
            .unwrap_or(u32::MAX)
            .clamp(least, lb_common::abi::MAX_BACKENDS)
            .next_power_of_two()
    };
    Geometry {
        capacity: Capacity {
            listeners: room(listeners, 1024),
            backends: room(backends, 4096),
            // 64 listeners with two tables of the largest size each; more listeners get smaller tables.
            table_slots: 1 << 22,
        },
        flow_lines: flow_lines(config),
    }
}

/// Lines of a new flow table.
fn flow_lines(config: &Config) -> u32 {
    config.flows.capacity.div_ceil(WAYS as u32).max(1).next_power_of_two()
}

fn signals() -> anyhow::Result<mpsc::Receiver<Signal>> {
    let (to, from) = mpsc::channel(8);
    let kinds = [
        (SignalKind::hangup(), Signal::Reload),
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
    ];
    for (kind, meaning) in kinds {
        let mut stream = signal(kind).context("cannot receive signals")?;
        let to = to.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && to.send(meaning).await.is_ok() {} });
    }
    Ok(from)
}

/// Prints what the program tells of packets.
async fn trace(logger: Logger) {
    // SAFETY: the logger owns its descriptor and closes it when it is dropped, after its registration.
    let mut logger = match unsafe { tokio::io::unix::AsyncFd::register(logger) } {
        Ok(logger) => logger,
        Err(error) => return warn!("the trace of packets cannot be read: {error}"),
    };
    while let Ok(mut ready) = logger.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

fn report_end(what: &str, end: Result<std::io::Result<()>, tokio::task::JoinError>) {
    match end {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("the {what} ended with an error: {error}"),
        Err(error) => warn!("the {what} ended abruptly: {error}"),
    }
}

/// Takes the program off all interfaces and removes the maps. Says whether there was anything to remove.
///
/// # Errors
/// While a daemon runs, or when a pin cannot be removed.
pub fn detach(dir: &Path) -> anyhow::Result<bool> {
    let Some(pins) =
        Pins::open_existing(dir).context("a running daemon must be stopped before `matapa detach`")?
    else {
        return Ok(false);
    };
    pins.remove_all()
        .with_context(|| format!("cannot remove all pins in {}; run this as root", dir.display()))?;
    Ok(true)
}
