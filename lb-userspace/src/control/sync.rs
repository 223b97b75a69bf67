//! Flow synchronisation and the rest: what the maps hold, when the flows are here, and who is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use log::error;
use tokio::sync::{mpsc, oneshot};

use super::task::Control;
use crate::api::sync::SyncStatus;
use crate::api::types::EventKind;
use crate::carp::demotion::Owner;
use crate::carp::task::Command;
use crate::config::{Config, Flows};
use crate::dataplane::Dataplane;
use crate::dataplane::image::Id;
use crate::dataplane::kernel::{FlowMaps, Kernel};
use crate::dataplane::plan::Op;
use crate::dataplane::snapshot::Readable as _;
use crate::sync::directory::Directory;
use crate::sync::task::{self, Change, Plan, SharedClock, SharedDirectory, SharedFlows, Sync};

impl SharedFlows for Arc<FlowMaps> {
    fn table(&self) -> crate::dataplane::flows::FlowTable<'_> {
        FlowMaps::table(self)
    }
}

/// The thread, if there is one, and what it shares with us.
#[derive(Debug)]
pub struct FlowSync {
    running: Option<Sync>,
    directory: SharedDirectory,
    pub clock: SharedClock,
    pub changes: mpsc::UnboundedReceiver<Change>,
    tell: mpsc::UnboundedSender<Change>,
}

impl Default for FlowSync {
    fn default() -> Self {
        let (tell, changes) = mpsc::unbounded_channel();
        Self {
            running: None,
            directory: SharedDirectory::default(),
            clock: SharedClock::default(),
            changes,
            tell,
        }
    }
}

impl FlowSync {
    /// Reads what a start needs.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn prepare(config: &Config) -> Result<Option<Plan>> {
        config.cluster.sync.as_ref().map(task::prepare).transpose()
    }

    /// # Errors
    /// When the system refuses a socket.
    pub fn start(&mut self, plan: Option<Plan>, flows: Arc<FlowMaps>) -> Result<()> {
        if let Some(running) = self.running.take() {
            running.stop();
        }
        if let Some(plan) = plan {
            let (directory, clock) = (self.directory.clone(), self.clock.clone());
            self.running = Some(task::start(plan, flows, directory, clock, self.tell.clone())?);
        }
        Ok(())
    }

    pub const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }

    /// Before these steps are taken: no flow is entered any more for what they remove.
    pub fn before(&self, dataplane: &Dataplane<Kernel>, timeouts: &Flows, steps: &[Op]) {
        let removed = steps.iter().filter_map(|step| match step {
            Op::RemoveBackend(id) => Some(*id),
            _ => None,
        });
        let removed: BTreeSet<Id> = removed.collect();
        let gone = |id: Id| removed.contains(&id);
        self.directory.publish(directory(dataplane, timeouts).without(&gone));
    }

    /// After steps were taken.
    pub fn after(&self, dataplane: &Dataplane<Kernel>, timeouts: &Flows) {
        self.directory.publish(directory(dataplane, timeouts));
    }
}

fn directory(dataplane: &Dataplane<Kernel>, timeouts: &Flows) -> Directory {
    Directory::new(dataplane.image(), dataplane.maps().hash_key(), timeouts)
}

impl Control {
    pub(super) fn answer_sync(&self, reply: oneshot::Sender<SyncStatus>) {
        match &self.sync.running {
            Some(running) => running.status(reply),
            None => {
                let _ = reply.send(SyncStatus::default());
            }
        }
    }

    /// After a reload. The same synchronisation goes on.
    pub(super) fn change_sync(&mut self, plan: Option<Plan>) {
        let now = self.sync.running.as_ref().map(|running| &running.config);
        if now == plan.as_ref().map(|plan| &plan.config) {
            return;
        }
        let flows = self.dataplane.maps().flow_maps();
        if let Err(error) = self.sync.start(plan, flows) {
            error!("flows are not synchronised: {error:#}");
        }
        // Only a start waits for flows.
        self.demote_for_flows(false);
    }

    /// Starts what is configured. It begins to work once it is told the time, at the first tick.
    ///
    /// # Errors
    /// When the system refuses a socket.
    pub(crate) fn begin_sync(&mut self, plan: Option<Plan>) -> Result<()> {
        self.sync.start(plan, self.dataplane.maps().flow_maps())
    }

    pub(crate) fn demote_for_flows(&self, demoted: bool) {
        let by = if demoted { Owner::Flows.usual() } else { 0 };
        self.carp.send(Command::Demote { owner: Owner::Flows, by });
    }

    pub(super) fn tell_sync(&mut self, change: &Change) {
        let kind = match *change {
            Change::PeerUp { peer } => EventKind::SyncPeerUp { peer },
            Change::PeerDown { peer } => EventKind::SyncPeerDown { peer },
            Change::Received { flows, millis } => {
                self.demote_for_flows(false);
                EventKind::SyncReceived { flows, millis }
            }
            Change::Alone => {
                self.demote_for_flows(false);
                EventKind::SyncAlone
            }
        };
        self.emit(kind);
    }
}
