//! Telling of single packets while they are forwarded: another instance of the program takes the place of the plain one
//! on the interfaces, and gives it back.
//!
//! A gate stands in front of it. Packets that no filter wants go on in the plain one, the others in this one, over the
//! same maps. Everything that the interfaces need is pinned meanwhile, so that packets are forwarded also when the daemon
//! ends in the middle of it; the next one puts its own program into the links.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray, ProgramArray, RingBuf};
use lb_common::abi::trace::{EVENTS, FILTERS, StepWords, TraceEvent, TraceFilter};
use lb_common::abi::{self, map};
use log::warn;

use super::attach::replace;
use super::mapped::Mapped;
use super::pins::Pins;
use super::second::{Recipe, Second};
use super::{Kernel, load, test_run};

/// What both instances write, so that a packet fares alike in both.
const SHARED: [&str; 4] = [map::FLOOD, map::BACKEND_HOPS, map::CLIENT_HOPS, map::HELD];

/// The instance that tells of packets.
pub struct Tracer {
    ebpf: Ebpf,
    filters: Mapped,
    stages: Map,
    plain: Map,
    /// Of both program arrays, while the interfaces need them.
    pinned: Vec<PathBuf>,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracer").field("pinned", &self.pinned).finish_non_exhaustive()
    }
}

/// What it tells.
pub struct Events {
    ring: RingBuf<MapData>,
    steps: PerCpuArray<MapData, StepWords>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// The next packet that nobody has read yet.
    pub fn take(&mut self) -> Option<TraceEvent> {
        let item = self.ring.next()?;
        let bytes = item.get(..size_of::<TraceEvent>())?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    /// How many packets found no room, on all CPUs.
    pub fn lost(&self) -> u64 {
        let counts = self.steps.get(&0, 0);
        counts.map_or(0, |counts| counts.iter().map(|[_, lost, _]| u64::from(*lost)).sum())
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_fd().as_raw_fd()
    }
}

impl Tracer {
    /// Loads it. Takes about a second.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(recipe: Recipe) -> anyhow::Result<(Self, Events)> {
        let Second { mut ebpf, stages } = recipe.load(&[abi::TRACE_PROGRAM])?;
        let mut take = |name: &'static str| {
            ebpf.take_map(name).with_context(|| format!("the program's object has no map {name}"))
        };
        let Map::Array(data) = take(map::TRACE_FILTER)? else {
            bail!("the map {} is not an array", map::TRACE_FILTER)
        };
        let filters = Mapped::new(&data, size_of::<TraceFilter>(), FILTERS as usize)
            .context("cannot map TRACE_FILTER into memory")?;
        let events = Events {
            ring: RingBuf::try_from(take(map::TRACE_EVENTS)?)?,
            steps: PerCpuArray::try_from(take(map::TRACE_STEPS)?)?,
        };
        let plain = take(map::PLAIN)?;
        Ok((Self { ebpf, filters, stages, plain, pinned: Vec::new() }, events))
    }

    /// Packets that this filter wants are told of from now on.
    pub fn set_filter(&self, slot: usize, filter: &TraceFilter) {
        /// The word that says whether it is used.
        const USED: usize = 0;
        self.filters.write(slot, &TraceFilter { used: 1, ..*filter }, USED);
    }

    pub fn clear_filter(&self, slot: usize) {
        if let Some(used) = self.filters.element(slot).first() {
            used.store(0, Ordering::Release);
        }
    }

    /// Runs it on a frame, as [`Kernel::run`] does. For tests.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn run(&mut self, frame: &[u8], context: Option<&[u8]>) -> anyhow::Result<(u32, Vec<u8>)> {
        test_run(load::xdp(&mut self.ebpf, abi::TRACE_PROGRAM)?, frame, context)
    }

    /// Says which program runs for the packets that no filter wants.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_plain(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        ProgramArray::try_from(&mut self.plain)?
            .set(0, kernel.program_fd()?, 0)
            .with_context(|| format!("cannot write {}", map::PLAIN))
    }

    fn unpin(&mut self) {
        for path in self.pinned.drain(..) {
            match fs::remove_file(&path) {
                // Attaching anew removes it too.
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    warn!("cannot remove the pin {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }

    fn pin(&mut self, pins: &Pins) -> anyhow::Result<()> {
        self.unpin();
        for map in [&self.stages, &self.plain] {
            let path = pins.new_stages().context("cannot read the pinned program arrays")?;
            map.pin(&path).with_context(|| format!("cannot pin a program array at {}", path.display()))?;
            self.pinned.push(path);
        }
        Ok(())
    }

    fn put_on(&mut self, link: &Path) -> anyhow::Result<()> {
        replace(load::xdp(&mut self.ebpf, abi::TRACE_PROGRAM)?, link)
    }
}

impl Kernel {
    /// How to load what tells of packets.
    ///
    /// # Errors
    /// When a map that both have cannot be pinned for a moment.
    pub fn tracer(&self, pins: &Pins) -> anyhow::Result<Recipe> {
        self.recipe(pins, EVENTS, &[], &SHARED)
    }

    /// Puts the tracer into the place of the plain program on all interfaces, between two packets.
    ///
    /// # Errors
    /// When it cannot be put on any one of them: then it is on none.
    pub fn trace(&mut self, pins: &Pins, tracer: &mut Tracer) -> anyhow::Result<()> {
        let done = self.try_trace(pins, tracer);
        if done.is_err() {
            self.trace_no_more(pins, tracer);
        }
        done
    }

    fn try_trace(&mut self, pins: &Pins, tracer: &mut Tracer) -> anyhow::Result<()> {
        let links = pins.links().context("cannot read the pinned links")?;
        if links.is_empty() {
            bail!("the program is on no interface");
        }
        tracer.set_plain(self)?;
        // Before any interface runs it.
        tracer.pin(pins)?;
        for link in links {
            tracer.put_on(&link).with_context(|| format!("cannot trace at {}", link.display()))?;
        }
        Ok(())
    }

    /// Puts the plain program back.
    pub fn trace_no_more(&mut self, pins: &Pins, tracer: &mut Tracer) {
        let links = pins.links().unwrap_or_else(|error| {
            warn!("cannot read the pinned links: {error}");
            Vec::new()
        });
        let mut back = true;
        for link in links {
            if let Err(error) = replace(&mut self.own.instance.program, &link) {
                // Its interface is gone, most likely.
                warn!("{} may still have the program that traces: {error:#}", link.display());
                back = false;
            }
        }
        // What an interface may still run must keep its stages; the next attaching removes them.
        if back {
            tracer.unpin();
        } else {
            tracer.pinned.clear();
        }
    }
}
