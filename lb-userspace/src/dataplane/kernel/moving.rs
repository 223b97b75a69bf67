//! From old maps to new ones of another layout or size, without a packet lost.
//!
//! The new maps are filled while packets use the old ones. Flows are copied, and copied again while the program of the
//! new maps takes the place of the old one on one interface after the other, and once more when no packet can be on its
//! way through the old one. Whatever ends the daemon, the pins tell the next one how far it came ([`MapSet`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::Pod;
use aya::maps::{HashMap as AyaHashMap, Map, MapData, PerCpuArray};
use lb_common::abi::{Fragment, FragmentKey, Sticky, StickyKey, VlanKey, map};
use lb_common::verdict::Reason;
use log::{debug, info, warn};

use super::attach::Attached;
use super::pinned::{PinnedMaps, open};
use super::pins::{MapSet, Pins};
use super::{Kernel, STATS_WORDS};
use crate::config::Flows;
use crate::dataplane::flows::Clock;
use crate::dataplane::image::Image;
use crate::dataplane::snapshot::Readable as _;
use crate::sync::directory::Directory;
use crate::sync::transfer::{Carried, Transfer};

/// After this time no packet is on its way through a program that was replaced: far longer than a program runs.
const GRACE: Duration = Duration::from_millis(100);
/// Between two passes over the flows while the program is being replaced.
const PAUSE: Duration = Duration::from_micros(500);

/// Flows that have yet to come to the new maps.
#[derive(Debug)]
pub struct Move {
    old: PinnedMaps,
    /// What the old maps hold.
    image: Image,
    /// An earlier daemon has begun with it, and packets may use the new maps already.
    resumed: bool,
}

impl Move {
    pub(super) const fn new(old: PinnedMaps, image: Image) -> Self {
        Self { old, image, resumed: false }
    }

    pub(super) fn resumed(self) -> Self {
        Self { resumed: true, ..self }
    }

    /// Has packets use the maps of `kernel`, which hold `image` and must be complete but for the flows, instead of the
    /// old ones. `attach` puts its program on the interfaces.
    ///
    /// # Errors
    /// Those of `attach`, and when the kernel refuses something. Which maps packets use then is known from the pins, and
    /// the next start goes on from there.
    pub fn switch(
        mut self,
        kernel: &mut Kernel,
        image: &Image,
        timeouts: &Flows,
        pins: &Pins,
        attach: impl FnOnce(&mut Kernel) -> anyhow::Result<Vec<Attached>>,
    ) -> anyhow::Result<(Vec<Attached>, Carried)> {
        let key = kernel.hash_key();
        let (told, heard) =
            (Directory::new(&self.image, key, timeouts), Directory::new(image, key, timeouts));
        let flows = kernel.flow_maps();
        let table = flows.table();
        let mut transfer = Transfer::new(told, heard, self.old.flows().capacity(), table.capacity());
        let began = (kernel.clock()?, Instant::now());
        let mut pass = |old: &mut PinnedMaps| {
            old.look_at_flows();
            transfer.pass(&old.flows(), &table, later(began))
        };
        if self.resumed {
            // Packets may use them.
            debug!("what is remembered besides flows is left as it is");
        } else {
            self.copy_the_rest(kernel, pins);
        }
        let mut carried = pass(&mut self.old);
        kernel.set_moving(true);
        // Of a connection, one interface may have the new program already and the other one not yet.
        if !self.old.set_moving() {
            info!(
                "the program that is replaced is older than moving flows; a few connections may open later by a second"
            );
        }
        if !self.resumed {
            pins.begin_switch().context("cannot rename the pins of the new maps")?;
        }
        let done = AtomicBool::new(false);
        let old = &mut self.old;
        let (attached, meanwhile) = std::thread::scope(|scope| {
            let passes = scope.spawn(|| {
                let mut carried = Carried::default();
                while !done.load(Ordering::Acquire) {
                    carried.add(&pass(old));
                    std::thread::sleep(PAUSE);
                }
                carried.add(&pass(old));
                carried
            });
            let attached = attach(kernel);
            done.store(true, Ordering::Release);
            (attached, passes.join())
        });
        let attached = attached?;
        match meanwhile {
            Ok(meanwhile) => carried.add(&meanwhile),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        std::thread::sleep(GRACE);
        carried.add(&pass(&mut self.old));
        kernel.set_moving(false);
        pins.end_switch().context("cannot put the pins of the new maps in the place of the old ones")?;
        Ok((attached, carried))
    }

    /// Copies what is remembered besides flows: sticky clients, fragments, counters, interfaces. What cannot be copied
    /// costs less than a start that fails.
    fn copy_the_rest(&self, kernel: &mut Kernel, pins: &Pins) {
        type Copy = fn(MapData, MapData) -> anyhow::Result<()>;
        let copies: [(&str, Copy); 5] = [
            (map::VLANS, entries::<{ size_of::<VlanKey>() }, 4>),
            (map::STICKY, entries::<{ size_of::<StickyKey>() }, { size_of::<Sticky>() }>),
            (map::FRAGMENTS, entries::<{ size_of::<FragmentKey>() }, { size_of::<Fragment>() }>),
            (map::COUNTERS, |from, to| per_cpu::<u64>(from, to, 0..Reason::COUNT as u32)),
            (map::BACKEND_STATS, |from, to| {
                let backends = from.info()?.max_entries().min(to.info()?.max_entries());
                per_cpu::<[u64; STATS_WORDS]>(from, to, 0..backends)
            }),
        ];
        let layout = self.old.found().layout;
        for (name, copy) in copies {
            let copied = || {
                let set = self.old.found().set;
                copy(open(&pins.map_of(set, name))?, open(&pins.map_of(MapSet::Next, name))?)
            };
            if layout.copied.contains(&name)
                && let Err(error) = copied()
            {
                warn!("{name} begins anew: {error:#}");
            }
        }
        if layout.copied.contains(&map::PORTS)
            && let Err(error) = self.copy_ports(kernel, pins)
        {
            warn!("packets go through the kernel until the interfaces are known: {error:#}");
        }
    }

    fn copy_ports(&self, kernel: &Kernel, pins: &Pins) -> anyhow::Result<()> {
        use super::mapped::Mapped;
        use lb_common::abi::{PORTS, Port};

        let data = open(&pins.map_of(self.old.found().set, map::PORTS))?;
        let old =
            Mapped::new(&data, size_of::<Port>(), PORTS as usize).context("cannot map PORTS into memory")?;
        for (from, to) in old.words().iter().zip(kernel.ports.words()) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A clock that was read a while ago, as it is now.
fn later((clock, read): (Clock, Instant)) -> Clock {
    let ticks = (read.elapsed().as_secs_f64() / clock.seconds_per_tick) as u16;
    Clock { now: clock.now.wrapping_add(ticks), ..clock }
}

/// Copies the elements of a hash map.
fn entries<const KEY: usize, const VALUE: usize>(from: MapData, to: MapData) -> anyhow::Result<()>
where
    [u8; KEY]: Pod,
    [u8; VALUE]: Pod,
{
    let from: AyaHashMap<_, [u8; KEY], [u8; VALUE]> = AyaHashMap::try_from(Map::from_map_data(from)?)?;
    let mut to: AyaHashMap<_, [u8; KEY], [u8; VALUE]> = AyaHashMap::try_from(Map::from_map_data(to)?)?;
    for entry in &from {
        let (key, value) = entry?;
        to.insert(key, value, 0)?;
    }
    Ok(())
}

/// Copies elements that each CPU has for itself.
fn per_cpu<T: Pod>(from: MapData, to: MapData, indexes: std::ops::Range<u32>) -> anyhow::Result<()> {
    let from: PerCpuArray<_, T> = PerCpuArray::try_from(Map::from_map_data(from)?)?;
    let mut to: PerCpuArray<_, T> = PerCpuArray::try_from(Map::from_map_data(to)?)?;
    // An older version may count less.
    for index in indexes.take_while(|index| *index < from.len()) {
        to.set(index, from.get(&index, 0)?, 0)?;
    }
    Ok(())
}
