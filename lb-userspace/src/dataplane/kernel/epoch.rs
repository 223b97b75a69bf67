//! The route epoch in `SETTINGS`, written apart from all else: an event of the kernel must not wait for its turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::mapped::Mapped;
use crate::net::watch::EpochWriter;

/// [`lb_common::abi::Settings::route_epoch`] in the map.
#[derive(Debug)]
pub struct RouteEpoch(Arc<Mapped>);

impl RouteEpoch {
    pub(super) const fn of(settings: Arc<Mapped>) -> Self {
        Self(settings)
    }

    /// The word that it shares with the features.
    fn word(&self) -> Option<&AtomicU64> {
        self.0.element(0).first()
    }
}

impl EpochWriter for RouteEpoch {
    fn get(&self) -> u32 {
        let [_, epoch]: [u32; 2] =
            bytemuck::must_cast(self.word().map_or(0, |word| word.load(Ordering::Acquire)));
        epoch
    }

    fn set(&self, epoch: u32) {
        let change = |word: u64| {
            let [features, _]: [u32; 2] = bytemuck::must_cast(word);
            Some(bytemuck::must_cast([features, epoch]))
        };
        if let Some(word) = self.word() {
            // It always changes to something, so that there is no error.
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        }
    }
}
