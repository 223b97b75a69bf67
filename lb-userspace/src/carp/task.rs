//! The thread that runs all vhids: it feeds the state machines and does what they say.
//!
//! `receive` takes packets to the machines, `send` and `place` do what they say: advertisements and addresses.
//!
//! It has a thread and a runtime of its own, so that nothing the daemon does elsewhere makes an advertisement late.

mod look;
mod place;
mod receive;
mod send;
mod vhid;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::IpAddr;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use log::{debug, error, info, warn};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::demotion::{Demotions, Owner};
use super::fsm::{Action, Reason, State, Time, Wish};
use super::io::announce::Announcer;
use super::io::link::{Assigned, Changes, Netlink};
use super::io::notify::Notice;
use super::io::virtual_mac;
use super::plan::Plan;
use super::wire::Rejected;
use crate::api::carp::{CarpChange, CarpStatus, GroupStatus};
use crate::api::types::CounterValue;
use crate::control::request::Refusal;
use look::{Looker, Port, gather};
use vhid::Vhid;

/// How often interfaces are looked at even if the kernel says nothing: a lost message must not matter for long.
const LOOK: Duration = Duration::from_secs(2);
/// For commands that are told of the end.
const LAST_COMMANDS: Duration = Duration::from_secs(2);
/// For the last advertisements and commands.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A vhid changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub name: String,
    pub interface: String,
    pub vhid: u8,
    pub from: State,
    pub to: State,
    pub reason: String,
}

/// What the rest of the daemon asks.
#[derive(Debug)]
pub enum Command {
    Status(oneshot::Sender<CarpStatus>),
    /// Of the vhid of this name, or of all.
    Wish {
        name: Option<String>,
        wish: Wish,
        reply: oneshot::Sender<Result<CarpChange, Refusal>>,
    },
    /// For each owner, the addresses of the services it is about (their groups are demoted), and by how much. What is
    /// not mentioned any more is taken back.
    Services(Vec<(Owner, Vec<IpAddr>, u8)>),
    /// Of all groups.
    Demote {
        owner: Owner,
        by: u8,
    },
    Reload(Vec<Plan>),
    Stop(oneshot::Sender<()>),
}

/// The running thread.
#[derive(Debug)]
pub struct Carp {
    commands: mpsc::UnboundedSender<Command>,
    /// What happened. Ends when the thread does.
    pub changes: mpsc::UnboundedReceiver<Change>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the thread. Without vhids it waits for a reload that brings some.
///
/// # Errors
/// When the system does not allow what it needs.
pub fn start(plans: Vec<Plan>) -> Result<Carp> {
    let (commands, to_do) = mpsc::unbounded_channel();
    let (tell, changes) = mpsc::unbounded_channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("carp".to_owned()).spawn(move || {
        raise_priority();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(async move {
                match Engine::open(plans, tell).await {
                    Ok((engine, changes)) => {
                        let _ = ready.send(Ok(()));
                        engine.run(to_do, changes).await;
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            }),
            Err(error) => {
                let _ = ready.send(Err(error.into()));
            }
        }
    })?;
    is_ready.recv().context("the CARP thread ended")??;
    Ok(Carp { commands, changes, thread: Some(thread) })
}

/// An advertisement that is late because other threads were busy may cost the master its addresses.
fn raise_priority() {
    const NICE: libc::c_int = -15;
    // SAFETY: the call takes integers; 0 stands for the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        debug!("CARP runs with ordinary priority: {}", std::io::Error::last_os_error());
    }
}

impl Carp {
    /// The thread is there until [`Carp::stop`]; if it has ended early, nobody answers.
    pub fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            error!("the CARP thread has ended: restart the daemon");
        }
    }

    /// Masters say that they go away, and addresses are taken off.
    pub async fn stop(mut self) {
        let (reply, done) = oneshot::channel();
        self.send(Command::Stop(reply));
        if tokio::time::timeout(STOP_LIMIT, done).await.is_err() {
            warn!("the CARP thread did not stop in time");
        } else if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the CARP thread ended abruptly");
        }
    }
}

#[derive(Debug)]
struct Engine {
    started: Instant,
    vhids: Vec<Vhid>,
    ports: BTreeMap<String, Port>,
    demotions: Demotions,
    netlink: Netlink,
    announcer: Announcer,
    tell: mpsc::UnboundedSender<Change>,
    rejected: BTreeMap<Rejected, u64>,
    /// Addresses that a vhid had before a reload, to be taken off: interface, address.
    retired: BTreeSet<(String, Assigned)>,
    /// Commands of vhids that are gone.
    finishing: Vec<tokio::task::JoinHandle<()>>,
}

impl Engine {
    async fn open(plans: Vec<Plan>, tell: mpsc::UnboundedSender<Change>) -> Result<(Self, Changes)> {
        let (netlink, changes) = Netlink::open().context("cannot reach rtnetlink, which CARP needs")?;
        let announcer =
            Announcer::open().context("cannot open a packet socket, which CARP needs (CAP_NET_RAW)")?;
        let mut engine = Self {
            started: Instant::now(),
            vhids: Vec::new(),
            ports: BTreeMap::new(),
            demotions: Demotions::default(),
            netlink,
            announcer,
            tell,
            rejected: BTreeMap::new(),
            retired: BTreeSet::new(),
            finishing: Vec::new(),
        };
        engine.reload(plans).await;
        Ok((engine, changes))
    }

    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>, mut changes: Changes) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looker = Looker::new();
        loop {
            let deadline = self.vhids.iter().filter_map(|vhid| vhid.machine.next_deadline()).min();
            let at = deadline.map(|deadline| tokio::time::Instant::from_std(self.started + deadline));
            let timer = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let readable = poll_fn(|context| {
                let ready = |port: &Port| {
                    port.sockets.as_ref().is_some_and(|sockets| sockets.poll_readable(context).is_ready())
                };
                // Each is asked, so that each wakes this task.
                if self.ports.values().map(ready).fold(false, |any, one| any | one) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            });
            tokio::select! {
                biased;
                () = readable => self.drain().await,
                command = commands.recv() => match command {
                    Some(Command::Stop(reply)) => {
                        self.reload(Vec::new()).await;
                        let finishing = futures_util::future::join_all(self.finishing);
                        // Also an operator's commands want to hear of the end, if they are quick.
                        let _ = tokio::time::timeout(LAST_COMMANDS, finishing).await;
                        let _ = reply.send(());
                        return;
                    }
                    Some(command) => self.obey(command).await,
                    None => return self.reload(Vec::new()).await,
                },
                Some(()) = changes.recv() => looker.ask(&self),
                _ = look.tick() => looker.ask(&self),
                Some(seen) = looker.seen.recv() => {
                    self.see(seen).await;
                    looker.answered(&self);
                }
                () = timer => {
                    // After a pause of this machine, what the others said meanwhile counts first.
                    self.drain().await;
                    self.timers().await;
                }
            }
            self.demote().await;
        }
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Command::Wish { name, wish, reply } => {
                let answer = self.wish(name.as_deref(), wish).await;
                let _ = reply.send(answer);
            }
            Command::Services(owners) => self.services(&owners),
            Command::Demote { owner, by } => {
                let groups: BTreeSet<String> =
                    self.vhids.iter().map(|v| v.plan.config.group.clone()).collect();
                for group in groups {
                    self.demotions.set(&group, owner.clone(), by);
                }
            }
            Command::Reload(plans) => self.reload(plans).await,
            // Handled where it ends the loop.
            Command::Stop(_) => {}
        }
    }

    fn services(&mut self, owners: &[(Owner, Vec<IpAddr>, u8)]) {
        let mut current = BTreeMap::new();
        for (owner, addresses, by) in owners {
            for vhid in &self.vhids {
                if addresses.iter().any(|address| vhid.has(*address)) {
                    current.insert((vhid.plan.config.group.as_str(), owner), *by);
                }
            }
        }
        self.demotions.retain(|group, owner| {
            !matches!(owner, Owner::Service(_)) || current.contains_key(&(group, owner))
        });
        for ((group, owner), by) in current {
            self.demotions.set(group, owner.clone(), by);
        }
    }

    async fn wish(&mut self, name: Option<&str>, wish: Wish) -> Result<CarpChange, Refusal> {
        let chosen: Vec<usize> = (0..self.vhids.len())
            .filter(|index| name.is_none_or(|name| self.vhids[*index].name() == name))
            .collect();
        if chosen.is_empty() {
            let names: Vec<&str> = self.vhids.iter().map(Vhid::name).collect();
            return Err(Refusal::NotFound(match name {
                Some(name) if !names.is_empty() => {
                    format!("there is no carp {name}; there is {}", names.join(", "))
                }
                _ => "no carp is configured".to_owned(),
            }));
        }
        let mut vhids = Vec::new();
        for index in chosen {
            let now = self.now();
            let vhid = &mut self.vhids[index];
            vhids.push(vhid.name().to_owned());
            if vhid.machine.wish() != wish {
                info!("carp {}: {} by an operator", vhid.name(), wish.name());
            }
            let actions = vhid.machine.set_wish(now, wish);
            self.perform(index, actions).await;
        }
        Ok(CarpChange { wish: wish.name().to_owned(), vhids })
    }

    fn status(&self) -> CarpStatus {
        let names: BTreeSet<&str> = self.vhids.iter().map(|v| v.plan.config.group.as_str()).collect();
        CarpStatus {
            vhids: self.vhids.iter().map(Vhid::status).collect(),
            groups: names
                .into_iter()
                .map(|name| GroupStatus {
                    name: name.to_owned(),
                    demotion: self.demotions.sum(name),
                    owners: self.demotions.owners(name).map(|(owner, by)| (owner.to_string(), by)).collect(),
                })
                .collect(),
            rejected: Rejected::ALL
                .into_iter()
                .map(|reason| {
                    let value = self.rejected.get(&reason).copied().unwrap_or(0);
                    let help = reason.help().to_owned();
                    (reason.name().to_owned(), CounterValue { value, verdict: "drop".to_owned(), help })
                })
                .collect(),
        }
    }

    /// Makes the vhids those of `plans`. One that stays keeps its state.
    async fn reload(&mut self, plans: Vec<Plan>) {
        let key = |plan: &Plan| (plan.config.interface.clone(), plan.config.vhid);
        let kept: BTreeSet<_> = plans.iter().map(key).collect();
        let (stay, go): (Vec<Vhid>, Vec<Vhid>) =
            std::mem::take(&mut self.vhids).into_iter().partition(|vhid| kept.contains(&key(&vhid.plan)));
        let mut stay: BTreeMap<_, Vhid> = stay.into_iter().map(|vhid| (key(&vhid.plan), vhid)).collect();
        // The masters among those that go say so.
        self.vhids = go;
        for index in 0..self.vhids.len() {
            let actions = self.vhids[index].machine.stop();
            self.perform(index, actions).await;
        }
        for gone in std::mem::take(&mut self.vhids) {
            let link = self.ports.get(gone.interface()).and_then(|port| port.link.as_ref());
            if let (Some(link), Some(_)) = (link, gone.virtual_mac()) {
                let device = virtual_mac::device(gone.plan.config.vhid, link.index);
                if let Err(error) = self.delete_device(&device).await {
                    warn!("cannot remove {device}: {error}");
                }
            }
            self.retired.extend(gone.assigned().map(|address| (gone.interface().to_owned(), address)));
            self.finishing.retain(|task| !task.is_finished());
            self.finishing.push(gone.notified);
        }

        let mut adjust = Vec::new();
        for plan in plans {
            let index = self.vhids.len();
            if let Some(mut vhid) = stay.remove(&key(&plan)) {
                let before: Vec<Assigned> = vhid.assigned().collect();
                vhid.plan = plan;
                let interface = vhid.interface().to_owned();
                self.retired.extend(before.into_iter().map(|address| (interface.clone(), address)));
                adjust.push(index);
                self.vhids.push(vhid);
            } else {
                let present = self.look_at(&plan).await;
                let here = |address: IpAddr| present.iter().any(|a| a.address == address);
                let adopting = plan.config.addresses.iter().all(|a| here(a.address));
                if adopting {
                    info!(
                        "carp {}: the addresses are here already; listening for another master",
                        plan.config.name
                    );
                }
                self.vhids.push(Vhid::new(plan, adopting));
            }
        }
        let current: BTreeSet<(String, Assigned)> = self
            .vhids
            .iter()
            .flat_map(|vhid| vhid.assigned().map(|address| (vhid.interface().to_owned(), address)))
            .collect();
        self.retired.retain(|address| !current.contains(address));
        let groups: BTreeMap<&str, &str> =
            self.vhids.iter().map(|v| (v.name(), v.plan.config.group.as_str())).collect();
        self.demotions.retain(|group, owner| match owner {
            Owner::Link(name) | Owner::Sending(name) => groups.get(name.as_str()) == Some(&group),
            Owner::Service(_) | Owner::Flows => true,
        });
        let seen = gather(self.netlink.clone(), self.interfaces()).await;
        self.see(seen).await;
        self.delete_unused_devices().await;
        for index in adjust {
            let now = self.now();
            let settings = self.vhids[index].plan.settings();
            let actions = self.vhids[index].machine.set_settings(now, settings);
            self.perform(index, actions).await;
            if self.vhids[index].machine.state() == State::Master {
                self.announce(index);
            }
        }
        self.demote().await;
    }

    async fn timers(&mut self) {
        for index in 0..self.vhids.len() {
            let now = self.now();
            let actions = self.vhids[index].machine.on_timer(now);
            self.perform(index, actions).await;
        }
    }

    /// Passes the groups' sums on. A change may change others in turn, through errors of sending.
    async fn demote(&mut self) {
        for index in 0..self.vhids.len() {
            let now = self.now();
            let sum = self.demotions.sum(&self.vhids[index].plan.config.group);
            let actions = self.vhids[index].machine.set_demotion(now, sum);
            self.perform(index, actions).await;
        }
    }

    async fn perform(&mut self, index: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Advertise(advertisement) => self.advertise(index, advertisement),
                Action::Changed { from, to, reason } => self.changed(index, from, to, reason).await,
                Action::Announce => self.announce(index),
                Action::GiveWay(advertisement) => {
                    if self.vhids[index].virtual_mac().is_none() {
                        self.advertise(index, advertisement);
                    }
                }
            }
        }
    }

    async fn changed(&mut self, index: usize, from: State, to: State, reason: Reason) {
        let interface = self.vhids[index].interface().to_owned();
        self.put_addresses(&interface).await;
        self.put_devices(&interface).await;
        let vhid = &mut self.vhids[index];
        vhid.since = Instant::now();
        vhid.reason = reason.to_string();
        vhid.transitions += 1;
        let config = &vhid.plan.config;
        info!(
            "carp {} (vhid {} on {interface}): {} -> {}: {reason}",
            config.name,
            config.vhid,
            from.name(),
            to.name()
        );
        if let Some(command) = &config.notify {
            let addresses: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
            vhid.notifier.tell(Notice {
                command: command.clone(),
                name: config.name.clone(),
                state: to.name(),
                environment: vec![
                    ("MATAPA_CARP_NAME", config.name.clone()),
                    ("MATAPA_CARP_STATE", to.name().to_owned()),
                    ("MATAPA_CARP_PREVIOUS", from.name().to_owned()),
                    ("MATAPA_CARP_REASON", reason.to_string()),
                    ("MATAPA_CARP_INTERFACE", interface.clone()),
                    ("MATAPA_CARP_VHID", config.vhid.to_string()),
                    ("MATAPA_CARP_ADDRESSES", addresses.join(" ")),
                ],
            });
        }
        let (name, vhid) = (config.name.clone(), config.vhid);
        // Nobody listens any more while the daemon ends.
        let _ = self.tell.send(Change { name, interface, vhid, from, to, reason: reason.to_string() });
    }
}
