//! Pinned maps without a program: what a daemon reads whose own maps are others.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use aya::maps::{HashMap as AyaHashMap, Map, MapData, MapInfo};
use lb_common::abi::flow::{FlowTuple, WAYS};
use lb_common::abi::{self, Backend, Control, Features, Listener, Settings, SiblingKey, TableRef, map};
use lb_common::hash::HashKey;

use super::layout::{self, Layout, Unreadable};
use super::load::Geometry;
use super::mapped::Mapped;
use super::pins::{MapSet, Pins};
use super::{name_from, pace, pair_of, refused};
use crate::dataplane::endpoints::EndpointTable;
use crate::dataplane::flows::FlowTable;
use crate::dataplane::image::{Id, Pace};
use crate::dataplane::snapshot::Readable;
use crate::dataplane::{ApplyError, Capacity};

/// Words of a tuple of this version.
const TUPLE_WORDS: usize = size_of::<FlowTuple>() / 8;

/// What is known of pinned maps before they are opened.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub set: MapSet,
    pub layout: &'static Layout,
    pub geometry: Geometry,
    pub key: HashKey,
}

impl Found {
    /// Looks at a set of maps. `None` when there is none, or one that was never finished: without a version, or, as
    /// long as no link needs it, without all of its maps.
    ///
    /// # Errors
    /// When the maps cannot be read, or have a layout that this binary cannot read.
    pub fn look(pins: &Pins, set: MapSet, is_used: bool) -> anyhow::Result<Option<Self>> {
        let present = map::ALL.iter().filter(|name| pins.map_of(set, name).exists()).count();
        let control = pins.map_of(set, map::CONTROL);
        let version = if control.exists() { version(&control)? } else { 0 };
        if present == 0 || (version == 0 || present < map::ALL.len()) && !is_used {
            return Ok(None);
        }
        let layout = layout::of_version(version)?;
        let broken = |what: String| Unreadable::Broken { version, what };
        if let Some(missing) = map::ALL.iter().find(|name| !pins.map_of(set, name).exists()) {
            bail!(broken(format!("{missing} is missing")));
        }
        let info = |name: &str| {
            MapInfo::from_pin(pins.map_of(set, name))
                .with_context(|| format!("cannot read the pinned map {name}"))
        };
        layout.check(|name| Ok(info(name)?.value_size() as usize))?;
        let entries = |name: &str| Ok::<_, anyhow::Error>(info(name)?.max_entries());
        let geometry = Geometry {
            capacity: Capacity {
                listeners: entries(map::LISTENERS)?,
                backends: entries(map::BACKENDS)?,
                table_slots: entries(map::TABLES)? * 2,
            },
            flow_lines: entries(map::FLOWS)?,
        };
        let Control { flow_lines, hash_key, .. } = control_of(&control)?;
        if flow_lines != geometry.flow_lines {
            bail!(broken(format!("FLOWS has {} lines instead of {flow_lines}", geometry.flow_lines)));
        }
        let (found, wanted) = (entries(map::ENDPOINTS)?, geometry.capacity.endpoint_lines());
        if found != wanted {
            bail!(broken(format!("ENDPOINTS has {found} lines instead of {wanted}")));
        }
        Ok(Some(Self { set, layout, geometry, key: hash_key }))
    }
}

/// The version is the first word in every layout.
fn version(path: &Path) -> anyhow::Result<u32> {
    let data = open(path)?;
    let value_size = data.info()?.value_size() as usize;
    let mapped = Mapped::new(&data, value_size, 1).context("cannot map CONTROL into memory")?;
    Ok(mapped.element(0).first().map_or(0, |word| word.load(Ordering::Acquire) as u32))
}

/// All layouts that can be read have this one.
fn control_of(path: &Path) -> anyhow::Result<Control> {
    let data = open(path)?;
    let value_size = data.info()?.value_size() as usize;
    if value_size != size_of::<Control>() {
        bail!("CONTROL has {value_size} bytes instead of {}", size_of::<Control>());
    }
    Ok(Mapped::new(&data, value_size, 1).context("cannot map CONTROL into memory")?.read(0))
}

pub(super) fn open(path: &Path) -> anyhow::Result<MapData> {
    MapData::from_pin(path).with_context(|| format!("cannot open the pin {}", path.display()))
}

/// A set of maps.
pub struct PinnedMaps {
    found: Found,
    settings: Mapped,
    endpoints: Mapped,
    listeners: Mapped,
    listener_names: Mapped,
    backends: Mapped,
    backend_names: Mapped,
    tables: Mapped,
    snat_addresses: Mapped,
    words: Mapped,
    tuples: Mapped,
    live: Mapped,
    siblings: AyaHashMap<MapData, [u8; size_of::<SiblingKey>()], Id>,
    /// Of another layout, the flows as of the last look at them.
    translated: Option<Translated>,
}

impl std::fmt::Debug for PinnedMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedMaps").field("found", &self.found).finish_non_exhaustive()
    }
}

/// Flows of another layout as those of this version.
#[derive(Debug)]
struct Translated {
    /// As they are in the map.
    seen: Vec<u64>,
    words: Vec<AtomicU64>,
    tuples: Vec<AtomicU64>,
}

impl PinnedMaps {
    /// # Errors
    /// When the kernel refuses to open a map or to map it into memory.
    pub fn open(pins: &Pins, found: Found) -> anyhow::Result<Self> {
        let Found { set, layout, geometry: Geometry { capacity, flow_lines }, .. } = found;
        let array = |name: &'static str, size: usize, elements: u32| {
            Mapped::new(&open(&pins.map_of(set, name))?, size, elements as usize)
                .with_context(|| format!("cannot map {name} into memory"))
        };
        let read = |name: &'static str, elements: u32| array(name, layout.size(name), elements);
        let places = flow_lines * WAYS as u32;
        let siblings = Map::from_map_data(open(&pins.map_of(set, map::SIBLINGS))?)?;
        let translated = layout.flows.as_ref().map(|_| Translated {
            seen: vec![0; places as usize],
            words: zeros(places as usize),
            tuples: zeros(places as usize * TUPLE_WORDS),
        });
        Ok(Self {
            found,
            settings: read(map::SETTINGS, 1)?,
            endpoints: read(map::ENDPOINTS, capacity.endpoint_lines())?,
            listeners: read(map::LISTENERS, capacity.listeners)?,
            listener_names: read(map::LISTENER_NAMES, capacity.listeners)?,
            backends: read(map::BACKENDS, capacity.backends)?,
            backend_names: read(map::BACKEND_NAMES, capacity.backends)?,
            tables: read(map::TABLES, capacity.table_slots / 2)?,
            snat_addresses: read(map::SNAT_ADDRESSES, abi::SNAT_ADDRESSES)?,
            words: read(map::FLOWS, flow_lines)?,
            tuples: read(map::FLOW_TUPLES, places)?,
            live: array(map::LIVE, 8, capacity.backends)?,
            siblings: AyaHashMap::try_from(siblings)?,
            translated,
        })
    }

    pub const fn found(&self) -> &Found {
        &self.found
    }

    /// Has programs over these maps take replies as clients' also where their flows are not known: others have them. False
    /// when they do not know how.
    pub fn set_moving(&self) -> bool {
        let moves = self.found.layout.moves;
        if let Some(word) = self.settings.element(0).first().filter(|_| moves) {
            let moving: u64 = bytemuck::must_cast([Features::MOVING.0, 0]);
            word.fetch_or(moving, Ordering::AcqRel);
        }
        moves
    }

    /// Looks at the flows anew, where they are of another layout; others are seen as they stand.
    pub fn look_at_flows(&mut self) {
        let (Some(decoder), Some(translated)) = (&self.found.layout.flows, &mut self.translated) else {
            return;
        };
        for (index, word) in self.words.words().iter().enumerate() {
            let word = word.load(Ordering::Acquire);
            // A tuple may be written after its word, so that one that was read too early is read again.
            if word == 0 && translated.seen[index] == 0 {
                continue;
            }
            translated.seen[index] = word;
            let tuple: [u64; TUPLE_WORDS] = bytemuck::must_cast((decoder.tuple)(&self.tuples.bytes(index)));
            for (place, word) in translated.tuples[index * TUPLE_WORDS..].iter().zip(tuple) {
                place.store(word, Ordering::Relaxed);
            }
            let word = if word == 0 { 0 } else { (decoder.word)(word) };
            translated.words[index].store(word, Ordering::Relaxed);
        }
    }
}

fn zeros(count: usize) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl Readable for PinnedMaps {
    fn capacity(&self) -> Capacity {
        self.found.geometry.capacity
    }

    fn hash_key(&self) -> HashKey {
        self.found.key
    }

    fn endpoints(&self) -> EndpointTable<'_> {
        EndpointTable::new(self.endpoints.words())
    }

    fn flows(&self) -> FlowTable<'_> {
        match &self.translated {
            Some(Translated { words, tuples, .. }) => FlowTable::new(words, tuples, self.live.words()),
            None => FlowTable::new(self.words.words(), self.tuples.words(), self.live.words()),
        }
    }

    fn table_ref(&self, id: Id) -> TableRef {
        self.listener(id).table
    }

    fn pace(&self) -> Pace {
        pace()
    }

    fn settings(&self) -> Settings {
        (self.found.layout.settings)(&self.settings.bytes(0))
    }

    fn snat_address(&self, index: u8) -> [u8; 16] {
        self.snat_addresses.read(index.into())
    }

    fn listener(&self, id: Id) -> Listener {
        (self.found.layout.listener)(&self.listeners.bytes(id as usize))
    }

    fn service_name(&self, id: Id) -> String {
        name_from(&self.listener_names.bytes(id as usize))
    }

    fn backend(&self, id: Id) -> Backend {
        (self.found.layout.backend)(&self.backends.bytes(id as usize))
    }

    fn backend_name(&self, id: Id) -> String {
        name_from(&self.backend_names.bytes(id as usize))
    }

    fn slot(&self, index: u32) -> Id {
        pair_of(&self.tables, index / 2)[(index % 2) as usize]
    }

    fn siblings(&self) -> Result<Vec<(SiblingKey, Id)>, ApplyError> {
        let entries = self.siblings.iter().map(|entry| {
            let (key, id) = entry.map_err(|error| refused(map::SIBLINGS, error))?;
            Ok((bytemuck::must_cast(key), id))
        });
        entries.collect()
    }
}
