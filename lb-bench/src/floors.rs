//! The programs beside the product: the wrapper that makes the frames, and the floors.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

use crate::layout::{FRAME, Run, Setup, map};

/// Names the object; `cargo xtask` sets it.
const VARIABLE: &str = "MATAPA_FLOORS_OBJECT";

/// How large the floors' tables are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Flows in the LRU map that is looked up.
    pub lru: u32,
    /// Flows in the LRU map that is inserted into.
    pub lru_insert: u32,
    /// Lines of the array that is the flow table's floor.
    pub lines: u32,
}

/// The loaded programs.
pub struct Floors {
    ebpf: Ebpf,
    targets: ProgramArray<MapData>,
    setup: Array<MapData, [u8; size_of::<Setup>()]>,
    run: Array<MapData, [u8; size_of::<Run>()]>,
    sizes: Sizes,
}

impl std::fmt::Debug for Floors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Floors").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

/// One call of the kernel's test runner.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// For one packet, as the kernel took it.
    pub duration: Duration,
    /// Of the last packet.
    pub verdict: u32,
    /// Packets made, by the wrapper's own count.
    pub made: u64,
    /// Packets that a floor failed with.
    pub failed: u64,
}

impl Floors {
    /// Loads them.
    ///
    /// # Errors
    /// When the object is not built, or the kernel refuses it.
    pub fn load(sizes: Sizes) -> Result<Self> {
        let path = object();
        let bytes = std::fs::read(&path).with_context(|| {
            format!("cannot read {}; `cargo xtask bench` and `cargo xtask test` build it", path.display())
        })?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(map::FLOOR_LRU, sizes.lru)
            .map_max_entries(map::FLOOR_LRU_INSERT, sizes.lru_insert)
            .map_max_entries(map::FLOOR_LINES, sizes.lines)
            .load(&bytes)
            .context("the kernel refused the maps of the floors")?;
        for (name, program) in ebpf.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("the kernel refused the program {name}"))?;
        }
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("the floors have no map {name}"));
        let targets = ProgramArray::try_from(take(map::TARGETS)?)?;
        let setup = Array::try_from(take(map::SETUP)?)?;
        let run = Array::try_from(take(map::RUN)?)?;
        Ok(Self { ebpf, targets, setup, run, sizes })
    }

    /// Puts a floor behind the wrapper.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn select(&mut self, name: &str) -> Result<()> {
        let program = self.ebpf.program(name).with_context(|| format!("there is no floor {name}"))?;
        self.targets.set(0, program.fd()?, 0).context("cannot put a floor behind the wrapper")
    }

    /// Puts another program behind the wrapper.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn put(&mut self, program: &ProgramFd) -> Result<()> {
        self.targets.set(0, program, 0).context("cannot put the program behind the wrapper")
    }

    /// Makes `repeat` frames, from the flow number `sequence` on, that came in on the interface `ingress`.
    ///
    /// # Errors
    /// When the kernel refuses to run it.
    pub fn run(&mut self, setup: &Setup, ingress: u32, sequence: u64, repeat: u32) -> Result<Ran> {
        let setup = Setup { lines: self.sizes.lines, ..*setup };
        self.setup.set(0, bytemuck::must_cast::<Setup, [u8; _]>(setup), 0).context("cannot write SETUP")?;
        let before = Run { sequence, failed: 0 };
        self.run.set(0, bytemuck::must_cast::<Run, [u8; _]>(before), 0).context("cannot write RUN")?;
        let context = context(ingress);
        let wrapper = self.ebpf.program_mut("wrapper").context("there is no wrapper")?;
        let wrapper: &mut Xdp = wrapper.try_into()?;
        let result = wrapper
            .test_run(TestRunOptions {
                data_in: Some(bytemuck::bytes_of(&setup.frame)),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::default()
            })
            .context("the kernel refuses to run the wrapper")?;
        let after: Run = bytemuck::must_cast(self.run.get(&0, 0).context("cannot read RUN")?);
        Ok(Ran {
            duration: result.duration,
            verdict: result.return_value,
            made: after.sequence - before.sequence,
            failed: after.failed,
        })
    }
}

/// `struct xdp_md` of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn context(ingress: u32) -> [u8; 24] {
    bytemuck::must_cast([0, FRAME as u32, 0, ingress, 0, 0])
}

fn object() -> PathBuf {
    match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/matapa-floors.o"),
    }
}
