//! Loading the program: over new maps, or over the pinned ones of an earlier daemon.

use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::{HashMap as AyaHashMap, Map, MapData, MapInfo, PerCpuArray};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::flow::WAYS;
use lb_common::abi::{self, ABI_VERSION, Backend, Control, FlowTuple, Listener, map};
use lb_common::hash::HashKey;
use log::{debug, warn};

use super::mapped::Mapped;
use super::pins::Pins;
use super::snapshot;
use super::{Kernel, hertz};
use crate::dataplane::image::Image;
use crate::dataplane::{Capacity, object};

/// What new maps are made for.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub capacity: Capacity,
    pub flow_lines: u32,
}

/// A loaded program that is not attached yet, and what its maps hold.
#[derive(Debug)]
pub struct Loaded {
    pub kernel: Kernel,
    pub image: Image,
    /// The maps were there before.
    pub adopted: bool,
}

/// Loads the program over the pinned maps if there are any, else over new ones made for `wanted`.
///
/// # Errors
/// When the kernel refuses the program or a map, or the pinned maps have another layout.
pub fn load(pins: &Pins, wanted: Geometry, trace: bool) -> anyhow::Result<Loaded> {
    let found = existing(pins)?;
    match found {
        Some((geometry, key)) => load_with(pins, geometry, key, trace, true),
        None => load_new(pins, wanted, new_key(), trace),
    }
}

/// Loads the program over new maps with this key; there must be no pinned ones.
///
/// # Errors
/// When the kernel refuses the program or a map.
pub fn load_new(pins: &Pins, wanted: Geometry, key: HashKey, trace: bool) -> anyhow::Result<Loaded> {
    load_with(pins, wanted, key, trace, false).inspect_err(|_| {
        if let Err(error) = pins.remove_maps() {
            warn!("could not remove the pins of maps that are of no use: {error}");
        }
    })
}

fn load_with(
    pins: &Pins,
    geometry: Geometry,
    key: HashKey,
    trace: bool,
    adopted: bool,
) -> anyhow::Result<Loaded> {
    let object = object::embedded()?;
    let Geometry { capacity, flow_lines } = geometry;
    let tick_shift = tick_shift(hertz());
    let trace = u32::from(trace);
    let paths: Vec<_> = map::ALL.iter().map(|name| (*name, pins.map(name))).collect();

    let mut loader = EbpfLoader::new();
    loader
        .override_global(abi::GLOBAL_HASH_KEY, bytemuck::bytes_of(&key), true)
        .override_global(abi::GLOBAL_FLOW_LINES, &flow_lines, true)
        .override_global(abi::GLOBAL_TICK_SHIFT, &tick_shift, true)
        .override_global(abi::GLOBAL_TRACE, &trace, true)
        .map_max_entries(map::ENDPOINTS4, capacity.listeners + capacity.backends)
        .map_max_entries(map::ENDPOINTS6, capacity.listeners + capacity.backends)
        .map_max_entries(map::LISTENERS, capacity.listeners)
        .map_max_entries(map::LISTENER_NAMES, capacity.listeners)
        .map_max_entries(map::TURNS, capacity.listeners)
        .map_max_entries(map::BACKENDS, capacity.backends)
        .map_max_entries(map::BACKEND_NAMES, capacity.backends)
        .map_max_entries(map::BACKEND_STATS, capacity.backends)
        .map_max_entries(map::TABLES, capacity.table_slots / 2)
        .map_max_entries(map::FLOWS, flow_lines)
        .map_max_entries(map::FLOW_TUPLES, flow_lines * WAYS as u32);
    for (name, path) in &paths {
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader.load(object).context(
        "the kernel refused Matapa's maps (it needs Linux 6.1 or newer, CAP_BPF and CAP_NET_ADMIN, that is: root)",
    )?;

    let logger = if trace == 0 {
        None
    } else {
        Some(aya_log::EbpfLogger::init(&mut ebpf).context("cannot read the program's trace")?)
    };
    for name in [abi::PROGRAM, abi::CLOCK_PROGRAM] {
        xdp(&mut ebpf, name)?.load().with_context(|| {
            format!("the kernel refused the program {name} (it needs Linux 6.1 or newer and CAP_BPF)")
        })?;
    }
    let info = xdp(&mut ebpf, abi::PROGRAM)?.info()?;
    debug!("program loaded: {} instructions verified", info.verified_instruction_count().unwrap_or(0));

    let kernel = kernel(ebpf, logger, geometry, key, tick_shift)?;
    let image = if adopted {
        snapshot::read(&kernel)
    } else {
        let control = Control { abi_version: ABI_VERSION, flow_lines, hash_key: key, heartbeat: 0 };
        kernel.control.write(0, &control, 0);
        Image::default()
    };
    Ok(Loaded { kernel, image, adopted })
}

fn kernel(
    mut ebpf: Ebpf,
    logger: Option<super::Logger>,
    Geometry { capacity, flow_lines }: Geometry,
    key: HashKey,
    tick_shift: u32,
) -> anyhow::Result<Kernel> {
    let mut take = |name: &'static str| {
        ebpf.take_map(name).with_context(|| format!("the program's object has no map {name}"))
    };
    let mut array = |name: &'static str, value_size: usize, elements: u32| {
        let Map::Array(data) = take(name)? else { bail!("the map {name} is not an array") };
        Mapped::new(&data, value_size, elements as usize)
            .with_context(|| format!("cannot map {name} into memory"))
    };
    let listeners = array(map::LISTENERS, size_of::<Listener>(), capacity.listeners)?;
    let listener_names = array(map::LISTENER_NAMES, abi::NAME_LEN, capacity.listeners)?;
    let backends = array(map::BACKENDS, size_of::<Backend>(), capacity.backends)?;
    let backend_names = array(map::BACKEND_NAMES, abi::NAME_LEN, capacity.backends)?;
    let tables = array(map::TABLES, 8, capacity.table_slots / 2)?;
    let flows = array(map::FLOWS, WAYS * 8, flow_lines)?;
    let tuples = array(map::FLOW_TUPLES, size_of::<FlowTuple>(), flow_lines * WAYS as u32)?;
    let ports = array(map::PORTS, 8, abi::PORTS)?;
    let control = array(map::CONTROL, size_of::<Control>(), 1)?;
    Ok(Kernel {
        endpoints4: AyaHashMap::try_from(take(map::ENDPOINTS4)?)?,
        endpoints6: AyaHashMap::try_from(take(map::ENDPOINTS6)?)?,
        counters: PerCpuArray::try_from(take(map::COUNTERS)?)?,
        stats: PerCpuArray::try_from(take(map::BACKEND_STATS)?)?,
        listeners,
        listener_names,
        backends,
        backend_names,
        tables,
        flows,
        tuples,
        ports,
        control,
        capacity,
        key,
        tick_shift,
        logger,
        ebpf,
    })
}

/// The program of this name in the object.
pub(super) fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<&'e mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Geometry and key of the pinned maps, if there are usable ones.
fn existing(pins: &Pins) -> anyhow::Result<Option<(Geometry, HashKey)>> {
    let present = map::ALL.iter().filter(|name| pins.map(name).exists()).count();
    if present == 0 {
        return Ok(None);
    }
    let control = pins.map(map::CONTROL);
    let version = if control.exists() { control_of(&control)?.abi_version } else { 0 };
    let links = pins.links().context("cannot read the pinned links")?;
    if (version == 0 || present < map::ALL.len()) && links.is_empty() {
        // A first start that was interrupted before it attached anything.
        pins.remove_maps().context("cannot remove the pins of an interrupted start")?;
        return Ok(None);
    }
    let other = || {
        format!(
            "the pinned maps have layout {version} and this binary has {ABI_VERSION}; run `matapa detach` with the \
             other version or this one, then start again (this interrupts forwarding)"
        )
    };
    if version != ABI_VERSION || present < map::ALL.len() {
        bail!(other());
    }
    let control = control_of(&control)?;
    let sizes = [
        (map::LISTENERS, size_of::<Listener>()),
        (map::BACKENDS, size_of::<Backend>()),
        (map::FLOWS, WAYS * 8),
        (map::FLOW_TUPLES, size_of::<FlowTuple>()),
        (map::TABLES, 8),
    ];
    for (name, size) in sizes {
        if info(pins, name)?.value_size() as usize != size {
            bail!(other());
        }
    }
    let entries = |name| Ok::<_, anyhow::Error>(info(pins, name)?.max_entries());
    let geometry = Geometry {
        capacity: Capacity {
            listeners: entries(map::LISTENERS)?,
            backends: entries(map::BACKENDS)?,
            table_slots: entries(map::TABLES)? * 2,
        },
        flow_lines: entries(map::FLOWS)?,
    };
    if control.flow_lines != geometry.flow_lines {
        bail!(other());
    }
    Ok(Some((geometry, control.hash_key)))
}

fn info(pins: &Pins, name: &str) -> anyhow::Result<MapInfo> {
    MapInfo::from_pin(pins.map(name)).with_context(|| format!("cannot read the pinned map {name}"))
}

fn control_of(path: &Path) -> anyhow::Result<Control> {
    let data = MapData::from_pin(path).with_context(|| format!("cannot open the pin {}", path.display()))?;
    let value_size = data.info()?.value_size() as usize;
    if value_size != size_of::<Control>() {
        // Another layout altogether; 0 is no version.
        return Ok(Control { abi_version: u32::MAX, ..Control::default() });
    }
    let mapped = Mapped::new(&data, value_size, 1).context("cannot map CONTROL into memory")?;
    Ok(mapped.read(0))
}

fn new_key() -> HashKey {
    HashKey { words: rand::random(), seed: rand::random() }
}

/// A tick of the flow table's clock is this power of two of jiffies: the one nearest to a second.
fn tick_shift(hertz: u32) -> u32 {
    f64::from(hertz).log2().round() as u32
}
