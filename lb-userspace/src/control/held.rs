//! Fragments that came too early: read from the program, and given to it again until their first one is known.

use std::time::Instant;

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use lb_common::abi::memo::Held;
use log::{debug, warn};
use tokio::io::unix::AsyncFd;

use super::task::Control;
use crate::net::held::{Counts, Frame, INTERVAL, Queue};

/// What the program holds back, and what waits of it.
pub struct HeldFragments {
    /// Nothing without a ring to read.
    ring: Option<AsyncFd<RingBuf<MapData>>>,
    queue: Queue,
    /// When to look again, while something waits.
    next: Instant,
}

impl std::fmt::Debug for HeldFragments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldFragments").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl HeldFragments {
    /// Over the program's ring buffer. Must be called in a runtime.
    ///
    /// # Errors
    /// When the ring cannot be waited for.
    pub fn over(ring: RingBuf<MapData>) -> anyhow::Result<Self> {
        // SAFETY: the ring owns its descriptor and closes it when it is dropped, after its registration.
        let ring =
            unsafe { AsyncFd::register(ring) }.context("cannot wait for fragments that are held back")?;
        Ok(Self { ring: Some(ring), queue: Queue::default(), next: Instant::now() })
    }

    /// What became of fragments so far.
    pub const fn counts(&self) -> Counts {
        self.queue.counts()
    }

    /// Waits until there are frames to run through the program. Nothing is lost when the wait is given up.
    pub(super) async fn due(&mut self) -> Vec<Frame> {
        let Some(ring) = &mut self.ring else { return std::future::pending().await };
        loop {
            if self.queue.is_empty() {
                match ring.readable_mut().await {
                    Ok(mut ready) => {
                        read(ready.get_inner_mut(), &mut self.queue);
                        ready.clear_ready();
                    }
                    Err(error) => {
                        warn!("fragments that are held back stay where they are: {error}");
                        self.ring = None;
                        return Vec::new();
                    }
                }
                self.next = Instant::now() + INTERVAL;
            } else {
                tokio::time::sleep_until(self.next.into()).await;
                // What the program hands back comes in the call that offers it.
                read(ring.get_mut(), &mut self.queue);
                let now = Instant::now();
                self.next = now + INTERVAL;
                let offers = self.queue.offer(now);
                if !offers.is_empty() {
                    return offers;
                }
            }
        }
    }
}

/// Moves everything that the program has handed over into the queue.
fn read(ring: &mut RingBuf<MapData>, queue: &mut Queue) {
    let now = Instant::now();
    while let Some(item) = ring.next() {
        match frame(&item) {
            Some(frame) => queue.hand_in(frame, now),
            None => warn!("the program has handed over a fragment that is none, of {} bytes", item.len()),
        }
    }
}

fn frame(item: &[u8]) -> Option<Frame> {
    let held: Held = bytemuck::try_pod_read_unaligned(item).ok()?;
    let bytes = held.frame.get(..held.len as usize)?;
    Some(Frame { ingress: held.ingress, bytes: bytes.into() })
}

impl Control {
    /// Has the program decide on these frames again, for good where it can.
    pub(super) fn offer_held(&mut self, frames: &[Frame]) {
        for frame in frames {
            if let Err(error) = self.dataplane.maps_mut().run_live(&frame.bytes, frame.ingress) {
                // Such as of an interface that is gone: counted as taken, as it is not handed back.
                debug!("a fragment from interface {} is lost: {error:#}", frame.ingress);
            }
        }
    }
}
