//! Stages of the program that are loaded while packets are forwarded already: those that few packets need.

use log::{debug, error};
use tokio::sync::mpsc;

use super::task::Control;
use crate::dataplane::kernel::load::Rest;

/// The stages that are being loaded.
#[derive(Debug)]
pub struct LateStages {
    waiting: bool,
    loaded_to: mpsc::Sender<anyhow::Result<()>>,
    loaded: mpsc::Receiver<anyhow::Result<()>>,
}

impl Default for LateStages {
    fn default() -> Self {
        let (loaded_to, loaded) = mpsc::channel(1);
        Self { waiting: false, loaded_to, loaded }
    }
}

impl LateStages {
    /// Waits until they are loaded, if any are.
    pub async fn loaded(&mut self) -> Option<anyhow::Result<()>> {
        self.loaded.recv().await
    }
}

impl Control {
    /// Has the kernel verify what was left for later, in a thread of its own.
    pub fn load_late(&mut self, rest: Option<Rest>) {
        let Some(rest) = rest else { return };
        let to = self.late.loaded_to.clone();
        let load = move || {
            // Nobody to tell when the daemon ends.
            let _ = to.blocking_send(rest.load());
        };
        // Not one of the runtime's: the end of the daemon does not wait for the verifier.
        match std::thread::Builder::new().name("stages".to_owned()).spawn(load) {
            Ok(_) => self.late.waiting = true,
            Err(error) => {
                error!("packets that need more than the first stages are left to the kernel: {error}");
            }
        }
    }

    pub(super) fn late_loaded(&mut self, loaded: anyhow::Result<()>) {
        self.late.waiting = false;
        match loaded {
            Ok(()) => {
                self.dataplane.maps_mut().completed(&self.pins);
                debug!("all stages are loaded");
            }
            Err(error) => error!(
                "packets that need more than the first stages, such as fragments, are left to the kernel: {error:#}"
            ),
        }
    }

    /// Waits for the stages that are being loaded: what follows may lead packets to them.
    pub(super) fn await_late(&mut self) {
        if self.late.waiting
            && let Some(loaded) = tokio::task::block_in_place(|| self.late.loaded.blocking_recv())
        {
            self.late_loaded(loaded);
        }
    }
}
