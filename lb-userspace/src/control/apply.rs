//! Bringing maps and interfaces to what is configured: at the start, at a reload, and when something has changed.

use std::time::Instant;

use anyhow::Context as _;
use log::{error, info, warn};

use super::request::Refusal;
use super::state::State;
use super::sync::FlowSync;
use super::task::Control;
use crate::api::types::{EventKind, ReloadOutcome};
use crate::carp;
use crate::config::{self, Config, Forward};
use crate::daemon::host;
use crate::dataplane::Dataplane;
use crate::dataplane::desired::desired;
use crate::dataplane::image::Image;
use crate::dataplane::kernel::Kernel;
use crate::dataplane::kernel::attach;
use crate::dataplane::kernel::moving::Move;
use crate::dataplane::plan::plan;
use crate::dataplane::snapshot::Readable as _;
use crate::hosts::answers::Answers;
use crate::hosts::expand::{LeftOut, expand};

pub(super) const CAPACITY_STAYS: &str = "flows.capacity is used when the daemon starts, and the flow table goes on as it \
    is; restart the daemon to change it: connections move to the new table, and forwarding goes on";

/// What a reload needs, ready to be used.
pub(super) struct Prepared {
    pub config: Config,
    pub state: State,
    /// What the maps would hold.
    pub image: Image,
    interfaces: Vec<(String, u32)>,
    vhids: Vec<carp::plan::Plan>,
    sync: Option<crate::sync::task::Plan>,
    /// What host names stand for, and what of it cannot be used.
    answers: Answers,
    left_out: Vec<LeftOut>,
}

fn refuse(text: impl std::fmt::Display) -> Refusal {
    Refusal::Invalid(format!("{text}; nothing was changed"))
}

impl Control {
    /// Makes the maps what configuration and state say. Says how many steps it took; what fails is tried again at the
    /// next tick.
    pub(super) fn converge(&mut self) -> usize {
        self.state.settle(&self.config, self.dataplane.image(), Instant::now());
        match bring(&mut self.dataplane, &self.config, &self.state, &self.sync) {
            Ok(steps) => {
                self.behind = false;
                self.meet_neighbours();
                self.tell_pools();
                steps
            }
            Err(error) => {
                error!("the maps could not be brought up to date, trying again: {error:#}");
                self.behind = true;
                0
            }
        }
    }

    /// Reads the file again and applies the difference. When anything is wrong with it, nothing changes.
    pub(super) fn reload(&mut self) -> Result<ReloadOutcome, Refusal> {
        let prepared = self.prepare_reload();
        if let Err(Refusal::Configuration(lines)) = &prepared {
            self.emit(EventKind::ReloadRefused { errors: lines.clone() });
        }
        let Prepared { config: new, state, image, interfaces, vhids, sync, answers, left_out } = prepared?;
        self.await_late();
        let services = self.service_states();
        // An interface that was removed and made again has another number.
        let same =
            self.attached.iter().map(|a| (&a.name, a.index)).eq(interfaces.iter().map(|(n, i)| (n, *i)));
        if !same || new.xdp_mode != self.config.xdp_mode {
            match self.dataplane.maps_mut().attach(&self.pins, &interfaces, new.xdp_mode) {
                Ok(attached) => {
                    self.attached = attached;
                    self.tell_ports();
                    self.trace_again();
                }
                Err(error) => {
                    self.attach_again();
                    return Err(refuse(format!("{error:#}")));
                }
            }
        }
        if new.flows.capacity != self.config.flows.capacity {
            warn!("{CAPACITY_STAYS}");
        }
        let steps = match bring_to(&mut self.dataplane, &image, &new, &self.sync) {
            Ok(steps) => steps,
            Err(error) => {
                self.converge();
                self.attach_again();
                return Err(Refusal::Failed(format!("{error:#}; the old configuration was put back")));
            }
        };
        (self.config, self.state) = (new, state);
        self.hosts.answers = answers;
        self.tell_left_out(left_out);
        self.ask_hosts();
        self.tell_alive();
        self.tell_pools();
        self.change_sync(sync);
        self.meet_neighbours();
        self.carp.send(carp::task::Command::Reload(vhids));
        host::prepare(&self.config);
        self.runner.set_targets(self.state.targets(&self.config));
        self.tell_services(&services);
        self.emit(EventKind::Reload { operations: steps as u64 });
        Ok(ReloadOutcome { operations: steps as u64 })
    }

    /// Everything that can be found out before anything is touched.
    ///
    /// # Errors
    /// When the file, or something that it names, cannot be used.
    pub(super) fn prepare_reload(&self) -> Result<Prepared, Refusal> {
        let mut new =
            config::load(&self.config_file).map_err(|error| Refusal::Configuration(error.lines()))?;
        if new.control != self.config.control {
            return Err(refuse(
                "what is in [control] cannot change while the daemon runs: restart it, \
                 forwarding goes on meanwhile",
            ));
        }
        let interfaces = attach::resolve(&new.interfaces).map_err(|error| refuse(format!("{error:#}")))?;
        let mut answers = self.hosts.answers.clone();
        answers.follow(&new, Instant::now());
        let left_out = expand(&mut new, &answers);
        let mut state = self.state.clone();
        state.inherit(&new, self.dataplane.image());
        state.retain(&new);
        state.settle(&new, self.dataplane.image(), Instant::now());
        let capacity = self.dataplane.maps().capacity();
        let image = desired(&new, &state, self.dataplane.image(), capacity).map_err(refuse)?;
        let vhids = carp::plan::prepare(&new.carp).map_err(|error| refuse(format!("{error:#}")))?;
        let sync = FlowSync::prepare(&new).map_err(|error| refuse(format!("{error:#}")))?;
        Ok(Prepared { config: new, state, image, interfaces, vhids, sync, answers, left_out })
    }

    /// Puts the program where the running configuration wants it: a change of mode takes it off before it is known
    /// whether the driver agrees to the new one.
    pub(super) fn attach_again(&mut self) {
        let present = attach::present(&self.config.interfaces);
        match self.dataplane.maps_mut().attach(&self.pins, &present, self.config.xdp_mode) {
            Ok(attached) => {
                self.attached = attached;
                self.tell_ports();
                self.trace_again();
            }
            Err(error) => error!("the program could not be put back on all interfaces: {error:#}"),
        }
    }

    /// Brings the maps up to the configuration for the first time, and then puts the program over them: no packet sees
    /// a half-filled table.
    ///
    /// # Errors
    /// When a map or an interface refuses: then the daemon does not start.
    pub fn begin(
        &mut self,
        adopted: bool,
        moving: Option<Move>,
        interfaces: &[(String, u32)],
    ) -> anyhow::Result<()> {
        self.state.settle(&self.config, self.dataplane.image(), Instant::now());
        let steps = bring(&mut self.dataplane, &self.config, &self.state, &self.sync)?;
        self.meet_neighbours();
        // An earlier daemon's last word may be out of date.
        self.tell_alive();
        let (pins, mode) = (&self.pins, self.config.xdp_mode);
        let attach = |kernel: &mut Kernel| kernel.attach(pins, interfaces, mode);
        self.attached = match moving {
            Some(moving) => {
                let image = self.dataplane.image().clone();
                let (attached, carried) =
                    moving.switch(self.dataplane.maps_mut(), &image, &self.config.flows, pins, attach)?;
                info!(
                    "new maps are in use; {} flows came over, of which {} changed and {} ended meanwhile",
                    carried.flows, carried.changed, carried.gone
                );
                if let Some(losses) = carried.losses() {
                    warn!("not carried over to the new maps: {losses}");
                }
                attached
            }
            None => attach(self.dataplane.maps_mut())?,
        };
        if adopted {
            let clock = self.clock()?;
            self.swept = self.sweep(clock);
            let (services, flows) = (self.config.services.len() as u64, self.swept.occupied);
            info!("took over {flows} flows of an earlier daemon; {steps} steps to this configuration");
            self.emit(EventKind::Adopted { services, flows });
        }
        Ok(())
    }

    /// Has the kernel know the MAC addresses on the way to backends that the program sends to by itself. What is
    /// translated is left to the kernel while it does not know the neighbour, and it asks. But it cannot forward what is
    /// for an address of its own, nor, with `rp_filter`, a tunnel's packet with a source that is nowhere.
    fn meet_neighbours(&mut self) {
        let backends = self.dataplane.image().backends.values();
        let alone =
            backends.filter(|backend| matches!(backend.forward, Forward::Dsr | Forward::Ipip | Forward::Gue));
        self.neighbours.replace(alone.map(|backend| backend.server.address).collect());
    }

    /// Tells the program of the interfaces that it runs on, and of the VLANs on them.
    pub(super) fn tell_ports(&mut self) {
        let carriers: Vec<u32> = self.attached.iter().map(|attached| attached.index).collect();
        let table = self.interfaces.borrow_and_update().table(&carriers);
        self.dataplane.maps().write_ports(&table.ports);
        if let Err(error) = self.dataplane.maps_mut().write_vlans(&table.vlans) {
            warn!("packets of some VLANs are left to the kernel: {error}");
        }
    }

    /// An interface that was removed and made again, such as by a driver that was loaded anew, has lost the program.
    pub(super) fn follow_interfaces(&mut self) {
        let present = attach::present(&self.config.interfaces);
        let is_new = |(name, index): &&(String, u32)| {
            !self.attached.iter().any(|a| (&a.name, a.index) == (name, *index))
        };
        let Some((name, _)) = present.iter().find(is_new) else { return };
        info!("{name} was made anew and gets the program");
        self.attach_again();
        host::prepare(&self.config);
    }
}

/// Makes the maps what `config` and `state` say. Says how many steps it took.
fn bring(
    dataplane: &mut Dataplane<Kernel>,
    config: &Config,
    state: &State,
    sync: &FlowSync,
) -> anyhow::Result<usize> {
    let wanted = desired(config, state, dataplane.image(), dataplane.maps().capacity())?;
    bring_to(dataplane, &wanted, config, sync)
}

/// Makes the maps what `wanted` says, which follows from `config`.
fn bring_to(
    dataplane: &mut Dataplane<Kernel>,
    wanted: &Image,
    config: &Config,
    sync: &FlowSync,
) -> anyhow::Result<usize> {
    let steps = plan(dataplane.image(), wanted);
    sync.before(dataplane, &config.flows, &steps);
    let done: anyhow::Result<()> =
        steps.iter().try_for_each(|step| dataplane.apply(step).with_context(|| format!("step {step:?}")));
    sync.after(dataplane, &config.flows);
    done?;
    Ok(steps.len())
}
