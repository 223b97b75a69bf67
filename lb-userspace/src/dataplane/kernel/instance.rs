//! The loaded programs, and what belongs to them alone, by their pins: a later daemon that would load the same programs over
//! the same maps goes on with them, and the verifier is not asked again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Map, MapInfo};
use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;
use lb_common::abi::{self, map};
use sha2::{Digest as _, Sha256};

use super::load::{self, Constants};
use super::pinned::open;
use super::pins::Pins;

/// The programs that the daemon itself runs or attaches. The first one finds the others in `STAGES`.
const PROGRAMS: [&str; 2] = [abi::PROGRAM, abi::CLOCK_PROGRAM];
/// The maps of its own that the daemon needs.
const MAPS: [&str; 5] = [map::STAGES, map::HELD, map::FLOOD, map::BACKEND_HOPS, map::CLIENT_HOPS];
/// Letters of a fingerprint: half a SHA-256.
const LETTERS: usize = 32;

/// One instance.
pub(super) struct Instance {
    pub program: Xdp,
    pub clock: Xdp,
    maps: BTreeMap<&'static str, Map>,
}

impl Instance {
    /// Pins what was loaded in this directory, which must be empty, and opens it.
    ///
    /// # Errors
    /// When the object lacks something, a program is not loaded, or the BPF file system refuses.
    pub fn pin(ebpf: &mut Ebpf, dir: &Path) -> anyhow::Result<Self> {
        for name in PROGRAMS {
            let path = dir.join(name);
            load::xdp(ebpf, name)?
                .pin(&path)
                .with_context(|| format!("cannot pin the program at {}", path.display()))?;
        }
        for name in MAPS {
            let path = dir.join(name);
            let map = ebpf.map(name).with_context(|| format!("the program's object has no map {name}"))?;
            map.pin(&path).with_context(|| format!("cannot pin {name} at {}", path.display()))?;
        }
        Self::open(dir)
    }

    /// Opens what is pinned there.
    ///
    /// # Errors
    /// When something is missing.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let program = |name: &str| {
            let path = dir.join(name);
            Xdp::from_pin(&path, XdpAttachType::Interface)
                .with_context(|| format!("cannot open the pinned program {}", path.display()))
        };
        let maps = MAPS.iter().map(|&name| Ok((name, Map::from_map_data(open(&dir.join(name))?)?)));
        Ok(Self {
            program: program(abi::PROGRAM)?,
            clock: program(abi::CLOCK_PROGRAM)?,
            maps: maps.collect::<anyhow::Result<_>>()?,
        })
    }

    /// A map of its own.
    ///
    /// # Errors
    /// For a name that is none of these.
    pub fn map(&self, name: &str) -> anyhow::Result<&Map> {
        self.maps.get(name).with_context(|| format!("the program has no map {name} of its own"))
    }
}

/// What tells an instance from others: the object, what is written into it when it is loaded, and the maps at these paths,
/// which no others on this machine are numbered like. The directory of an instance is named after it, so it says nothing
/// of the key.
///
/// # Errors
/// When a map cannot be asked for its number.
pub(super) fn fingerprint(
    object: &[u8],
    constants: &Constants,
    maps: &[(&'static str, PathBuf)],
) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    for (name, path) in maps {
        let info = MapInfo::from_pin(path).with_context(|| format!("cannot read the pinned map {name}"))?;
        hash.update(info.id().to_ne_bytes());
    }
    hash.update(bytemuck::bytes_of(&constants.key));
    let Constants { geometry, endpoint_lines, tick_shift, trace, .. } = constants;
    for number in [geometry.flow_lines, *endpoint_lines, *tick_shift, *trace] {
        hash.update(number.to_ne_bytes());
    }
    hash.update(object);
    let letters = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Ok(letters.chars().take(LETTERS).collect())
}

/// The complete instance that an earlier daemon has left, if it is just what this one would load.
pub(super) fn find(pins: &Pins, fingerprint: &str) -> Option<Instance> {
    let dir = pins.instance(fingerprint);
    if !dir.exists() {
        return None;
    }
    Instance::open(&dir)
        .inspect_err(|error| log::warn!("the programs of the last daemon are of no use: {error:#}"))
        .ok()
}
