//! Loading the program: over new maps, or over the pinned ones of an earlier daemon, whose programs are used too where they
//! are the same.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use aya::maps::{HashMap as AyaHashMap, Map, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::endpoint::ENDPOINT_WAYS;
use lb_common::abi::flow::WAYS;
use lb_common::abi::{self, ABI_VERSION, Backend, Control, FlowTuple, Listener, Port, Settings, map};
use lb_common::hash::HashKey;
use log::{info, warn};

use super::instance::{self, Instance};
use super::mapped::Mapped;
use super::moving::Move;
use super::pinned::{Found, PinnedMaps, open};
use super::pins::{MapSet, Pins};
use super::{FlowMaps, Kernel, Own, hertz, layout};
use crate::dataplane::image::Image;
use crate::dataplane::snapshot::Readable as _;
use crate::dataplane::{Capacity, Dataplane, object, snapshot};

/// Clients that are remembered by sticky services. When there are more, the kernel forgets those that were not seen
/// for the longest.
const STICKY_CLIENTS: u32 = 65_536;
/// Datagrams in fragments that are remembered, likewise.
const FRAGMENTED: u32 = 8192;
/// Bytes for packets that are traced and not yet read: some thousand.
const EVENT_BYTES: u32 = 1 << 20;
/// Interfaces for VLANs.
const VLANS: u32 = 256;

/// What new maps are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub capacity: Capacity,
    pub flow_lines: u32,
}

impl Geometry {
    /// With room for no less than `other` has. The size of the flow table is that of `self`.
    fn with_room_of(self, other: &Self) -> Self {
        let (one, other) = (self.capacity, other.capacity);
        let capacity = Capacity {
            listeners: one.listeners.max(other.listeners),
            backends: one.backends.max(other.backends),
            table_slots: one.table_slots.max(other.table_slots),
        };
        Self { capacity, ..self }
    }
}

/// A loaded program that is not attached yet, and what its maps hold.
#[derive(Debug)]
pub struct Loaded {
    pub kernel: Kernel,
    pub image: Image,
    /// What an earlier daemon has left was taken over: its maps, or what was in them.
    pub adopted: bool,
    /// Other maps whose flows have yet to come to these.
    pub moving: Option<Move>,
    /// Stages that are yet to be loaded.
    pub rest: Option<Rest>,
}

/// Stages that were left for later, so that packets are forwarded sooner that do not need them. What needs one of them is
/// left to the kernel meanwhile, as everything is before the start.
pub struct Rest(Ebpf);

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

impl Rest {
    /// Loads them, which takes a few tenths of a second, and puts them where the first one finds them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(self) -> anyhow::Result<()> {
        let Self(mut ebpf) = self;
        let is_late = |name: &&&str| ebpf.program(name).is_some_and(|program| program.fd().is_err());
        let late: Vec<_> = abi::STAGE_PROGRAMS.iter().filter(is_late).copied().collect();
        load_programs(&mut ebpf, late)?;
        fill_stages(&mut ebpf, abi::STAGE_PROGRAMS)
    }
}

/// Which programs are loaded before [`load`] returns.
#[derive(Clone, Copy, Debug)]
pub enum Programs<'n> {
    All,
    /// Only the stages of these names, if packets use none of an earlier daemon yet; the others are [`Loaded::rest`].
    First(&'n [&'static str]),
    /// All, and the way of every packet is logged.
    Traced,
}

impl Programs<'_> {
    /// Nothing is left for later: packets use an earlier daemon's programs, which have all stages.
    const fn at_once(self) -> Self {
        match self {
            Self::First(_) => Self::All,
            other => other,
        }
    }
}

/// Loads the program over the pinned maps if there are any, else over new ones made for `wanted`, with the hash key that
/// `key` says or a random one. Pinned maps that have another layout or are made for something else are not touched: new
/// ones beside them get what they hold, and [`Move`] does the rest.
///
/// # Errors
/// When the kernel refuses the program or a map, or the pinned maps have a layout that cannot be read.
pub fn load(
    pins: &Pins,
    wanted: Geometry,
    key: Option<HashKey>,
    programs: Programs<'_>,
) -> anyhow::Result<Loaded> {
    let resumed = pins
        .settle(&map::ALL)
        .context("cannot finish or take back what an earlier daemon was doing with the pinned maps")?;
    let is_used = !pins.links().context("cannot read the pinned links")?.is_empty();
    if resumed && let Some(new) = Found::look(pins, MapSet::Switching, true)? {
        return resume(pins, new, programs);
    }
    let Some(found) = Found::look(pins, MapSet::Usual, is_used)? else {
        if !is_used {
            // What a first start has left that was interrupted before it attached anything.
            pins.remove_maps().context("cannot remove the pins of an interrupted start")?;
        }
        return load_new(pins, wanted, key.unwrap_or_else(new_key), programs);
    };
    if key.is_some_and(|key| key != found.key) {
        warn!(
            "the maps in use have another seed than cluster.seed_file, so that this gateway chooses other backends \
             than its peer; run `matapa detach` and start the daemon again (this interrupts forwarding)"
        );
    }
    let geometry = wanted.with_room_of(&found.geometry);
    if found.layout.is_current() && geometry == found.geometry {
        return load_with(pins, found, programs.at_once(), true);
    }
    load_beside(pins, found, geometry, programs.at_once())
}

/// Loads the program over new maps with this key; there must be no pinned ones.
///
/// # Errors
/// When the kernel refuses the program or a map.
pub fn load_new(
    pins: &Pins,
    wanted: Geometry,
    key: HashKey,
    programs: Programs<'_>,
) -> anyhow::Result<Loaded> {
    let new = Found { set: MapSet::Usual, layout: &layout::CURRENT, geometry: wanted, key };
    load_with(pins, new, programs, false).inspect_err(|_| {
        if let Err(error) = pins.remove_maps() {
            warn!("could not remove the pins of maps that are of no use: {error}");
        }
    })
}

/// Loads the program over new maps beside those of `found`, with everything that they hold but the flows.
fn load_beside(
    pins: &Pins,
    found: Found,
    geometry: Geometry,
    programs: Programs<'_>,
) -> anyhow::Result<Loaded> {
    let old = PinnedMaps::open(pins, found)?;
    let image = snapshot::read(&old)?;
    info!(
        "the maps in use have layout {} and room for {} flows; new ones of layout {ABI_VERSION} for {} flows take their \
         place",
        found.layout.version,
        u64::from(found.geometry.flow_lines) * WAYS as u64,
        u64::from(geometry.flow_lines) * WAYS as u64
    );
    pins.make_next().context("cannot make a directory for new maps")?;
    let new = Found { set: MapSet::Next, layout: &layout::CURRENT, geometry, key: found.key };
    let filled = || {
        let Loaded { kernel, .. } = load_with(pins, new, programs, false)?;
        let (kernel, filled) =
            Dataplane::filled(kernel, &image).context("cannot fill the new maps")?.into_parts();
        Ok(Loaded { kernel, image: filled, adopted: true, moving: Some(Move::new(old, image)), rest: None })
    };
    filled().inspect_err(|_: &anyhow::Error| {
        if let Err(error) = pins.remove_loading().and_then(|()| pins.remove_next()) {
            warn!("could not remove the pins of new maps that are of no use: {error}");
        }
    })
}

/// Loads the program over new maps that an earlier daemon has made and filled, and which packets may use already.
fn resume(pins: &Pins, new: Found, programs: Programs<'_>) -> anyhow::Result<Loaded> {
    info!("an earlier daemon was moving flows to new maps when it ended; going on with that");
    if !new.layout.is_current() {
        bail!(
            "a daemon of layout {} was moving flows to new maps when it ended, and this binary makes layout \
             {ABI_VERSION}; start the other version again, which ends that, and then this one",
            new.layout.version
        );
    }
    let old = Found::look(pins, MapSet::Usual, true).context("flows were being moved from these maps")?;
    let old = old.context("the maps that flows were being moved from are gone; run `matapa detach`")?;
    let old = PinnedMaps::open(pins, old)?;
    let image = snapshot::read(&old)?;
    let moving = Some(Move::new(old, image).resumed());
    Ok(Loaded { moving, ..load_with(pins, new, programs.at_once(), true)? })
}

fn load_with(pins: &Pins, found: Found, programs: Programs<'_>, adopted: bool) -> anyhow::Result<Loaded> {
    let Found { set, geometry, key, .. } = found;
    let traced = matches!(programs, Programs::Traced);
    let constants = Constants::new(geometry, key, if traced { abi::trace::LOG } else { abi::trace::OFF });
    let paths: Vec<_> = map::ALL.iter().map(|name| (*name, pins.map_of(set, name))).collect();
    let kept = if adopted && !traced { Own::kept(pins, &constants, &paths)? } else { None };
    let (own, rest, logger) = match kept {
        Some(own) => {
            info!("the programs of the last daemon are those of this one, and go on");
            (own, None, None)
        }
        None => Own::load(pins, &constants, &paths, programs)?,
    };
    let kernel = kernel(&paths, own, logger, &constants)?;
    let image = if adopted {
        snapshot::read(&kernel)?
    } else {
        let control = Control {
            abi_version: ABI_VERSION,
            flow_lines: geometry.flow_lines,
            hash_key: key,
            forward_until: 0,
        };
        kernel.control.write(0, &control, 0);
        Image { pace: kernel.pace(), ..Image::default() }
    };
    Ok(Loaded { kernel, image, adopted, moving: None, rest })
}

impl Own {
    /// Those that an earlier daemon has left over these maps, if they are the same.
    fn kept(
        pins: &Pins,
        constants: &Constants,
        maps: &[(&'static str, PathBuf)],
    ) -> anyhow::Result<Option<Self>> {
        let fingerprint = instance::fingerprint(object::embedded()?, constants, maps)?;
        let found = instance::find(pins, &fingerprint);
        Ok(found.map(|instance| {
            let dir = pins.instance(&fingerprint);
            Self { instance, fingerprint, dir, is_whole: true, ebpf: None }
        }))
    }

    /// Loads them, and says what is left to load.
    fn load(
        pins: &Pins,
        constants: &Constants,
        maps: &[(&'static str, PathBuf)],
        programs: Programs<'_>,
    ) -> anyhow::Result<(Self, Option<Rest>, Option<super::Logger>)> {
        let mut ebpf = constants.load_maps(maps)?;
        let logger = match programs {
            Programs::Traced => {
                Some(aya_log::EbpfLogger::init(&mut ebpf).context("cannot read the program's trace")?)
            }
            Programs::All | Programs::First(_) => None,
        };
        let stages: Vec<&str> = match programs {
            Programs::First(stages) => stages.iter().copied().chain([abi::LATER_PROGRAM]).collect(),
            Programs::All | Programs::Traced => abi::STAGE_PROGRAMS.to_vec(),
        };
        load_programs(&mut ebpf, stages.iter().copied().chain([abi::CLOCK_PROGRAM]))?;
        fill_stages(&mut ebpf, abi::STAGE_PROGRAMS)?;
        let fingerprint = instance::fingerprint(object::embedded()?, constants, maps)?;
        let dir = pins.make_loading().context("cannot make a directory for the programs' pins")?;
        let instance = Instance::pin(&mut ebpf, &dir)?;
        let (ebpf, rest) = match programs {
            Programs::First(_) => (None, Some(Rest(ebpf))),
            Programs::All | Programs::Traced => (Some(ebpf), None),
        };
        Ok((Self { instance, fingerprint, dir, is_whole: rest.is_none(), ebpf }, rest, logger))
    }
}

/// What is written into the program when it is loaded. All instances over the same maps must agree on all but the last.
#[derive(Clone, Debug)]
pub(super) struct Constants {
    pub geometry: Geometry,
    pub key: HashKey,
    pub endpoint_lines: u32,
    pub tick_shift: u32,
    /// As in [`abi::trace`].
    pub trace: u32,
}

impl Constants {
    fn new(geometry: Geometry, key: HashKey, trace: u32) -> Self {
        let endpoint_lines = geometry.capacity.endpoint_lines();
        Self { geometry, key, endpoint_lines, tick_shift: tick_shift(hertz()), trace }
    }

    /// Makes an instance's maps: those that are pinned at these paths are taken from there, or pinned there when they are
    /// not. Its programs are not loaded yet.
    pub(super) fn load_maps(&self, paths: &[(&'static str, PathBuf)]) -> anyhow::Result<Ebpf> {
        let Geometry { capacity, ref flow_lines } = self.geometry;
        let mut loader = EbpfLoader::new();
        loader
            .override_global(abi::GLOBAL_HASH_KEY, bytemuck::bytes_of(&self.key), true)
            .override_global(abi::GLOBAL_FLOW_LINES, flow_lines, true)
            .override_global(abi::GLOBAL_ENDPOINT_LINES, &self.endpoint_lines, true)
            .override_global(abi::GLOBAL_TICK_SHIFT, &self.tick_shift, true)
            .override_global(abi::GLOBAL_TRACE, &self.trace, true)
            .map_max_entries(map::ENDPOINTS, self.endpoint_lines)
            .map_max_entries(map::LISTENERS, capacity.listeners)
            .map_max_entries(map::LISTENER_NAMES, capacity.listeners)
            .map_max_entries(map::TURNS, capacity.listeners)
            .map_max_entries(map::FLOOD, capacity.listeners)
            .map_max_entries(map::BACKENDS, capacity.backends)
            .map_max_entries(map::BACKEND_NAMES, capacity.backends)
            .map_max_entries(map::BACKEND_STATS, capacity.backends)
            .map_max_entries(map::BACKEND_HOPS, capacity.backends)
            .map_max_entries(map::LIVE, capacity.backends)
            .map_max_entries(map::SIBLINGS, capacity.backends)
            .map_max_entries(map::SNAT_ADDRESSES, abi::SNAT_ADDRESSES)
            .map_max_entries(map::STICKY, STICKY_CLIENTS)
            .map_max_entries(map::FRAGMENTS, FRAGMENTED)
            .map_max_entries(map::PORTS, abi::PORTS)
            .map_max_entries(map::VLANS, VLANS)
            .map_max_entries(map::TABLES, capacity.table_slots / 2)
            .map_max_entries(map::FLOWS, *flow_lines)
            .map_max_entries(map::FLOW_TUPLES, flow_lines * WAYS as u32);
        if self.trace == abi::trace::EVENTS {
            loader.map_max_entries(map::TRACE_EVENTS, EVENT_BYTES);
        }
        for (name, path) in paths {
            loader.map_pin_path(name, path);
        }
        loader.load(object::embedded()?).context(
            "the kernel refused Matapa's maps (it needs Linux 6.1 or newer, CAP_BPF and CAP_NET_ADMIN, that is: root)",
        )
    }
}

/// Has the kernel verify the programs of these names, as many at a time as there are CPUs: it takes most of a start.
pub(super) fn load_programs<'n>(
    ebpf: &mut Ebpf,
    names: impl IntoIterator<Item = &'n str>,
) -> anyhow::Result<()> {
    let names: Vec<&str> = names.into_iter().collect();
    // Also a name that the object lacks is an error.
    for name in &names {
        xdp(ebpf, name)?;
    }
    let place = |name: &str| names.iter().position(|known| *known == name);
    let mut wanted: Vec<_> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| Some((std::cmp::Reverse(place(name)?), name, program)))
        .collect();
    // The first ones come first: they are the longest.
    wanted.sort_by_key(|(place, ..)| *place);
    let queue = Mutex::new(wanted);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let load_some = || -> anyhow::Result<()> {
        while let Some((_, name, program)) = next() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| {
                format!("the kernel refused the program {name} (it needs Linux 6.1 or newer and CAP_BPF)")
            })?;
        }
        Ok(())
    };
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(load_some)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Puts the programs that the first one calls where it finds them, and in the place of those that are not loaded what
/// stands for them.
pub(super) fn fill_stages(ebpf: &mut Ebpf, names: &[&str]) -> anyhow::Result<()> {
    let mut programs = Vec::new();
    for stage in names {
        let name = if ebpf.program(stage).is_some_and(|program| program.fd().is_err()) {
            abi::LATER_PROGRAM
        } else {
            stage
        };
        programs.push((name, xdp(ebpf, name)?.fd()?.try_clone()?));
    }
    let name = map::STAGES;
    let map = ebpf.map_mut(name).with_context(|| format!("the program's object has no map {name}"))?;
    let mut array = ProgramArray::try_from(map)?;
    for (index, (stage, program)) in (0..).zip(programs) {
        array
            .set(index, &program, 0)
            .with_context(|| format!("cannot put the program {stage} at place {index} of {name}"))?;
    }
    Ok(())
}

fn kernel(
    paths: &[(&'static str, PathBuf)],
    own: Own,
    logger: Option<super::Logger>,
    constants: &Constants,
) -> anyhow::Result<Kernel> {
    let Geometry { capacity, flow_lines } = constants.geometry;
    // Another descriptor of it, to read it; that of the instance is for sharing.
    let held = Map::from_map_data(open(&own.dir.join(map::HELD))?)?;
    let mut held = RingBuf::try_from(held).context("cannot map HELD into memory")?;
    // What an earlier daemon has not read is too old.
    while held.next().is_some() {}
    let take = |name: &'static str| {
        let path = paths.iter().find(|(known, _)| *known == name);
        let (_, path) = path.with_context(|| format!("the map {name} is not pinned"))?;
        open(path)
    };
    let array = |name: &'static str, value_size: usize, elements: u32| {
        Mapped::new(&take(name)?, value_size, elements as usize)
            .with_context(|| format!("cannot map {name} into memory"))
    };
    let map = |name: &'static str| anyhow::Ok(Map::from_map_data(take(name)?)?);
    let settings = array(map::SETTINGS, size_of::<Settings>(), 1)?;
    let endpoints = array(map::ENDPOINTS, ENDPOINT_WAYS * 8, capacity.endpoint_lines())?;
    let listeners = array(map::LISTENERS, size_of::<Listener>(), capacity.listeners)?;
    let listener_names = array(map::LISTENER_NAMES, abi::NAME_LEN, capacity.listeners)?;
    let backends = array(map::BACKENDS, size_of::<Backend>(), capacity.backends)?;
    let backend_names = array(map::BACKEND_NAMES, abi::NAME_LEN, capacity.backends)?;
    let tables = array(map::TABLES, 8, capacity.table_slots / 2)?;
    let flows = array(map::FLOWS, WAYS * 8, flow_lines)?;
    let tuples = array(map::FLOW_TUPLES, size_of::<FlowTuple>(), flow_lines * WAYS as u32)?;
    let live = array(map::LIVE, 8, capacity.backends)?;
    let snat_addresses = array(map::SNAT_ADDRESSES, 16, abi::SNAT_ADDRESSES)?;
    let ports = array(map::PORTS, size_of::<Port>(), abi::PORTS)?;
    let control = array(map::CONTROL, size_of::<Control>(), 1)?;
    Ok(Kernel {
        siblings: AyaHashMap::try_from(map(map::SIBLINGS)?)?,
        vlans: AyaHashMap::try_from(map(map::VLANS)?)?,
        counters: PerCpuArray::try_from(map(map::COUNTERS)?)?,
        stats: PerCpuArray::try_from(map(map::BACKEND_STATS)?)?,
        settings: Arc::new(settings),
        endpoints,
        listeners,
        listener_names,
        backends,
        backend_names,
        tables,
        flows: Arc::new(FlowMaps { words: flows, tuples, live }),
        snat_addresses,
        ports,
        control,
        own,
        constants: constants.clone(),
        held: Some(held),
        logger,
    })
}

/// The program of this name in the object.
pub(super) fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<&'e mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn new_key() -> HashKey {
    HashKey { words: rand::random(), seed: rand::random() }
}

/// A tick of the flow table's clock is this power of two of jiffies: the one nearest to a second.
pub(super) fn tick_shift(hertz: u32) -> u32 {
    f64::from(hertz).log2().round() as u32
}
