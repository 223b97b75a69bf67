//! Another instance of the program over the maps of the one that forwards, which does more than that.
//!
//! It has its own stages, and of the maps that are not pinned its own too, unless it is to share them.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::Map;
use lb_common::abi::{self, map};
use log::warn;

use super::Kernel;
use super::load::{self, Constants};
use super::pins::Pins;

/// What it takes to load an instance. Loading takes a second, in which the daemon must not wait.
#[derive(Debug)]
pub struct Recipe {
    constants: Constants,
    paths: Vec<(&'static str, PathBuf)>,
    /// Pins that are there only until it is loaded.
    passing: Vec<PathBuf>,
}

/// An instance, loaded.
pub(super) struct Second {
    pub ebpf: Ebpf,
    /// The kernel empties the array when nobody in user space holds it.
    pub stages: Map,
}

impl Kernel {
    /// How to load another instance with this value of `TRACE`. Of the pinned maps it gets copies of its own of those in
    /// `own`, and of the others it shares those in `shared`.
    ///
    /// # Errors
    /// When the shared maps cannot be pinned for a moment: that is how the instance gets them.
    pub(super) fn recipe(
        &self,
        pins: &Pins,
        trace: u32,
        own: &[&str],
        shared: &[&'static str],
    ) -> anyhow::Result<Recipe> {
        let mut paths: Vec<_> =
            map::ALL.iter().filter(|name| !own.contains(name)).map(|name| (*name, pins.map(name))).collect();
        let mut recipe = Recipe {
            constants: Constants { trace, ..self.constants.clone() },
            paths: Vec::new(),
            passing: Vec::new(),
        };
        for &name in shared {
            let path = pins.passing(name, trace);
            // An earlier daemon may have ended in the middle of this.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove the pin {}", path.display()));
                }
                _ => {}
            }
            // Not by its number: to open a map by that takes CAP_SYS_ADMIN.
            let map = self.own.instance.map(name)?;
            map.pin(&path).with_context(|| format!("cannot pin {name} at {}", path.display()))?;
            recipe.passing.push(path.clone());
            paths.push((name, path));
        }
        recipe.paths = paths;
        Ok(recipe)
    }
}

impl Recipe {
    /// Loads the programs of the stages and `others`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn load(self, others: &[&'static str]) -> anyhow::Result<Second> {
        let mut ebpf = self.constants.load_maps(&self.paths)?;
        let explaining = self.constants.trace == abi::trace::EXPLAIN;
        let stand_in = |name: &&'static str| {
            let instead = abi::EXPLAINING_PROGRAMS.iter().find(|(stage, _)| explaining && stage == name);
            instead.map_or(*name, |(_, instead)| *instead)
        };
        let programs: Vec<_> = abi::STAGE_PROGRAMS.iter().map(stand_in).collect();
        load::load_programs(&mut ebpf, programs.iter().chain(others).copied())?;
        load::fill_stages(&mut ebpf, &programs)?;
        let stages = ebpf
            .take_map(map::STAGES)
            .with_context(|| format!("the program's object has no map {}", map::STAGES))?;
        Ok(Second { ebpf, stages })
    }
}

impl Drop for Recipe {
    fn drop(&mut self) {
        for path in &self.passing {
            if let Err(error) = fs::remove_file(path) {
                warn!("cannot remove the pin {}: {error}", path.display());
            }
        }
    }
}
