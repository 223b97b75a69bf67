//! What the program would do with a packet: it is run on one, and leaves nothing behind.
//!
//! The explaining instance reads the maps of the one that forwards, and writes to none that both have. Its own are the
//! packet in hand, remembered next hops, and `SETTINGS`: with route epoch 0 there, no next hop is taken from memory, and what
//! is said of it is what the routing table says now.

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use lb_common::abi::trace::{EXPLAIN, MAX_STEPS, StepWords};
use lb_common::abi::{self, Settings, map};
use lb_common::env::Step;
use lb_common::verdict::{Action, Reason};

use super::mapped::Mapped;
use super::pins::Pins;
use super::second::{Recipe, Second};
use super::{Kernel, load, test_run};
use crate::dataplane::snapshot::Readable as _;

/// A step of a packet's way, and the two numbers beside it.
pub type Told = (Step, u32, u32);

/// What the program would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub reason: Reason,
    /// All but the last, which `action` and `reason` are.
    pub steps: Vec<Told>,
    /// The frame as it would leave.
    pub frame: Vec<u8>,
}

/// The explaining instance.
pub struct Explainer {
    settings: Mapped,
    steps: PerCpuArray<MapData, StepWords>,
    _stages: Map,
    ebpf: Ebpf,
}

impl std::fmt::Debug for Explainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Explainer").finish_non_exhaustive()
    }
}

impl Kernel {
    /// How to load what explains.
    ///
    /// # Errors
    /// When a map that both have cannot be pinned for a moment.
    pub fn explainer(&self, pins: &Pins) -> anyhow::Result<Recipe> {
        self.recipe(pins, EXPLAIN, &[map::SETTINGS], &[map::FLOOD])
    }
}

impl Explainer {
    /// Loads it. Takes about a second.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn load(recipe: Recipe) -> anyhow::Result<Self> {
        let Second { mut ebpf, stages } = recipe.load(&[])?;
        let mut take = |name: &'static str| {
            ebpf.take_map(name).with_context(|| format!("the program's object has no map {name}"))
        };
        let Map::Array(data) = take(map::SETTINGS)? else {
            anyhow::bail!("the map {} is not an array", map::SETTINGS)
        };
        let settings =
            Mapped::new(&data, size_of::<Settings>(), 1).context("cannot map SETTINGS into memory")?;
        let steps = PerCpuArray::try_from(take(map::TRACE_STEPS)?)?;
        Ok(Self { settings, steps, _stages: stages, ebpf })
    }

    /// What the program would do with a frame that comes in on the interface with index `ingress`.
    ///
    /// # Errors
    /// When the kernel refuses to run it, such as for an interface that is gone.
    pub fn explain(&mut self, kernel: &Kernel, frame: &[u8], ingress: u32) -> anyhow::Result<Outcome> {
        self.settings.write(0, &Settings { route_epoch: 0, ..kernel.settings() }, 0);
        self.forget_steps()?;
        let len = u32::try_from(frame.len()).context("a frame of more than 4 GiB")?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u32; 6] = [0, len, 0, ingress, 0, 0];
        let program = load::xdp(&mut self.ebpf, abi::PROGRAM)?;
        let (_, frame) = test_run(program, frame, Some(bytemuck::bytes_of(&context)))
            .with_context(|| format!("cannot run the program as on interface number {ingress}"))?;
        let mut steps = self.read_steps()?;
        let Some((Step::Done, reason, action)) = steps.pop() else {
            anyhow::bail!("the program did not say how it ended");
        };
        let reason = Reason::ALL.get(reason as usize).copied().context("an unknown reason")?;
        let action = Action::from_number(action).context("an unknown verdict")?;
        Ok(Outcome { action, reason, steps, frame })
    }

    /// Sets their number to zero on each CPU.
    fn forget_steps(&mut self) -> anyhow::Result<()> {
        let zeros = vec![StepWords::default(); aya::util::nr_cpus().map_err(|(_, error)| error)?];
        let zeros = PerCpuValues::try_from(zeros)?;
        self.steps.set(0, zeros, 0).context("cannot write TRACE_STEPS")
    }

    /// Of the CPU that the program ran on.
    fn read_steps(&self) -> anyhow::Result<Vec<Told>> {
        let at = |index| self.steps.get(&index, 0).context("cannot read TRACE_STEPS");
        let counts = at(0)?;
        let Some(cpu) = counts.iter().position(|[count, ..]| *count != 0) else { return Ok(Vec::new()) };
        let count = counts[cpu][0].min(MAX_STEPS);
        (1..=count)
            .map(|index| {
                let [step, first, second] = at(index)?[cpu];
                Ok((Step::from_number(step).context("an unknown step")?, first, second))
            })
            .collect()
    }
}
