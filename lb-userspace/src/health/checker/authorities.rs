//! Authorities that the daemon has read for the process that checks.

use std::collections::{BTreeSet, HashMap};

use super::wire::Order;
use crate::health::probe::trust::{self, Reading, Trust};

/// What has been told, and when it was read.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<Trust, Reading>);

impl Told {
    /// Reads what is wanted and new, or has changed since. Blocks for some milliseconds then.
    pub(super) fn refresh(&mut self, wanted: BTreeSet<Trust>) -> Vec<Order> {
        self.0.retain(|trust, _| wanted.contains(trust));
        let stale = |trust: &Trust| !self.0.get(trust).is_some_and(|reading| reading.is_fresh(trust));
        let stale: Vec<Trust> = wanted.into_iter().filter(stale).collect();
        stale.into_iter().map(|trust| self.read(trust)).collect()
    }

    fn read(&mut self, trust: Trust) -> Order {
        let reading = Reading::begin(&trust);
        let certificates = trust::read(&trust).map_err(|error| error.to_string());
        self.0.insert(trust.clone(), reading);
        let bytes = certificates.map(|all| all.iter().map(|one| one.to_vec()).collect());
        Order::Trust(trust, bytes)
    }
}
