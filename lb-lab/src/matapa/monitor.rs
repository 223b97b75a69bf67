//! `matapa monitor --json`, read as it comes.

use std::io::{BufRead, BufReader};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::types::{Event, EventKind};
use crate::process::{Process, wait_until};

/// An event and when its line was read.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub event: Event,
}

impl Seen {
    /// How long after `since` the daemon says it happened.
    pub fn after(&self, since: SystemTime) -> Duration {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Duration::try_from_secs_f64(self.event.time - since).unwrap_or_default()
    }
}

/// A running `matapa monitor --json`.
#[derive(Debug)]
pub struct Monitor {
    seen: Arc<Mutex<Vec<Seen>>>,
    process: Process,
}

impl Monitor {
    pub(super) fn start(mut process: Process) -> Result<Self> {
        let output = process.take_stdout().context("the monitor has no output")?;
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let record = Arc::clone(&seen);
        std::thread::Builder::new().name("monitor".to_owned()).spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(event) => {
                        let entry = Seen { at: Instant::now(), event };
                        record.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                    }
                    Err(error) => eprintln!("matapa monitor printed {line}: {error}"),
                }
            }
        })?;
        Ok(Self { seen, process })
    }

    /// Everything seen so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for an event that was read after `since` and that `wanted` accepts.
    ///
    /// # Errors
    /// Naming `what`, when there is none in time.
    pub fn wait(
        &self,
        what: &str,
        since: Instant,
        limit: Duration,
        wanted: impl Fn(&EventKind) -> bool,
    ) -> Result<Seen> {
        wait_until(what, limit, || {
            Ok(self.seen().into_iter().find(|one| one.at >= since && wanted(&one.event.kind)))
        })
    }

    /// Waits for the health of `backend` to become `to`.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_health(&self, backend: &str, to: &str, since: Instant, limit: Duration) -> Result<Seen> {
        self.wait(&format!("{backend} to go {to}"), since, limit, |kind| {
            matches!(kind, EventKind::Health { backend: name, to: health, .. } if name == backend && health == to)
        })
    }

    /// Waits for a vhid to become `to`.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_carp(&self, to: &str, since: Instant, limit: Duration) -> Result<Seen> {
        let wanted = |kind: &EventKind| matches!(kind, EventKind::Carp { to: state, .. } if state == to);
        self.wait(&format!("a vhid to become {to}"), since, limit, wanted)
    }

    /// `kill -9`; what was seen stays.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Also in a lab that is kept: nobody would read what it prints.
        let _ = self.process.kill();
    }
}
