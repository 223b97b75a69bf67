//! The loop around the cases.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use lb_common::verdict::{Kind, Reason};

use crate::cases::{self, Case, Expected, FLOOR, Flows, From, MAPS, Scale, Share, Table, Target, World};
use crate::floors::{Floors, Ran};
use crate::instance::Instance;
use crate::network::{self, Interfaces};
use crate::report::{Machine, Report, Row};

/// How much to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often each case is measured.
    pub rounds: u32,
    /// Packets in each measurement.
    pub repeat: u32,
    /// Smaller tables, and no million of flows.
    pub quick: bool,
    /// Only cases whose name contains one of these, and the floors they are compared with; empty: all.
    pub only: Vec<String>,
    /// Only cases with one flow.
    pub one_flow: bool,
    /// Say on standard error how far it is.
    pub progress: bool,
}

impl Options {
    pub fn new(quick: bool) -> Self {
        let (rounds, repeat) = if quick { (3, 200_000) } else { (11, 1_000_000) };
        Self { rounds, repeat, quick, only: Vec::new(), one_flow: false, progress: false }
    }
}

/// Packets that warm the caches, where flows do not say otherwise.
const WARM: u32 = 20_000;
/// A full table is filled with this many flows for each of its places: hardly a line stays with room.
const FLOOD: u32 = 4;

/// Measures, on a thread of its own that has a network and a CPU of its own.
///
/// # Errors
/// When nothing can be measured. A case that went wrong is an error in its row.
pub fn run(options: &Options) -> Result<Report> {
    std::thread::scope(|scope| {
        scope.spawn(|| here(options)).join().map_err(|_| anyhow!("the thread that measures panicked"))?
    })
}

fn here(options: &Options) -> Result<Report> {
    if options.rounds == 0 || options.repeat == 0 || options.repeat > i32::MAX as u32 {
        bail!("at least one round of at least one packet is needed, and at most {} packets", i32::MAX);
    }
    let interfaces = network::enter()?;
    let cpu = network::pin()?;
    let scale = Scale::new(options.quick);
    let say = |text: &str| {
        if options.progress {
            eprintln!("{text}");
        }
    };
    say("loading programs and filling tables");
    let mut bench =
        Bench { floors: Floors::load(scale.sizes())?, instances: BTreeMap::new(), interfaces, scale };
    let mut running: Vec<Running> = cases::all(scale)
        .into_iter()
        .filter(|case| wanted(case, options))
        .map(|case| Running { case, nanoseconds: Vec::new(), sequence: 0, error: None })
        .collect();
    bench.prepare(&mut running)?;

    let start = Instant::now();
    for round in 1..=options.rounds {
        for running in &mut running {
            bench.measure(running, options.repeat);
        }
        say(&format!("round {round} of {} ({:.0} s)", options.rounds, start.elapsed().as_secs_f64()));
    }
    let verified = match bench.instances.values().next() {
        Some(instance) => instance.kernel().verified_programs()?,
        None => BTreeMap::new(),
    };
    let rows: Vec<Row> = running
        .into_iter()
        .map(|r| {
            Row::new(
                &r.case.name,
                r.case.flows,
                matches!(r.case.target, Target::Floor(_)),
                r.nanoseconds,
                r.error,
            )
        })
        .collect();
    Ok(Report::new(Machine::look(cpu), options, verified, rows))
}

fn wanted(case: &Case, options: &Options) -> bool {
    let Options { only, one_flow, .. } = options;
    let named = || only.iter().any(|text| case.name.contains(text.as_str()));
    let compared = case.name == FLOOR || case.name == MAPS;
    (case.flows == Flows::One || !one_flow) && (only.is_empty() || compared || named())
}

struct Running {
    case: Case,
    nanoseconds: Vec<u64>,
    /// The next flow's number.
    sequence: u64,
    error: Option<String>,
}

struct Bench {
    floors: Floors,
    instances: BTreeMap<World, Instance>,
    interfaces: Interfaces,
    scale: Scale,
}

impl Bench {
    /// Loads what the cases need and makes their flows.
    fn prepare(&mut self, running: &mut [Running]) -> Result<()> {
        self.floors.select("fill")?;
        for (mut setup, flows) in cases::floor_flows(self.scale) {
            setup.mask = flows.mask();
            let ran = self.floors.run(&setup, self.interfaces.client, 0, flows.mask() + 1)?;
            if ran.failed != 0 {
                bail!("the tables of the floors did not take {} of {} flows", ran.failed, ran.made);
            }
        }
        for running in running.iter_mut() {
            let Target::Product(world) = running.case.target else { continue };
            if !self.instances.contains_key(&world) {
                let mut instance = Instance::new(&cases::configuration(world), self.scale.geometry(world))
                    .with_context(|| format!("cannot set up the {world:?} configuration"))?;
                instance.connect(&self.interfaces)?;
                self.instances.insert(world, instance);
                if world == World::Full {
                    self.select(running.case.target)?;
                    self.floors.run(
                        &cases::flood(),
                        self.interfaces.client,
                        0,
                        self.scale.places() * FLOOD,
                    )?;
                }
            }
            self.select(running.case.target)?;
            for setup in &running.case.before {
                self.floors.run(setup, self.interfaces.client, 0, setup.mask + 1)?;
            }
        }
        match self.instances.get_mut(&World::Main) {
            Some(main) => main.kill(),
            None => Ok(()),
        }
    }

    fn select(&mut self, target: Target) -> Result<()> {
        match target {
            Target::Floor(name) => self.floors.select(name),
            Target::Product(world) => {
                let instance = self.instances.get(&world).context("the configuration is not set up")?;
                self.floors.put(instance.kernel().program_fd()?)
            }
        }
    }

    fn measure(&mut self, running: &mut Running, repeat: u32) {
        match self.try_measure(&running.case, running.sequence, repeat) {
            Ok(nanoseconds) => running.nanoseconds.push(nanoseconds),
            // The first one tells most.
            Err(error) => running.error = running.error.take().or(Some(format!("{error:#}"))),
        }
        // The flows of this measurement are known now.
        running.sequence += u64::from(warm(&running.case)) + u64::from(repeat);
    }

    fn try_measure(&mut self, case: &Case, sequence: u64, repeat: u32) -> Result<u64> {
        self.select(case.target)?;
        let ingress = match case.from {
            From::Client => self.interfaces.client,
            From::Server => self.interfaces.server,
        };
        let instance = match case.target {
            Target::Floor(_) => None,
            Target::Product(world) => self.instances.get(&world),
        };
        let mut repeat = repeat;
        if let (Table::Emptied, Some(instance)) = (case.table, instance) {
            instance.forget_flows();
            // At most a quarter full, so that there is room in nearly every line.
            repeat = repeat.min(self.scale.places() / 4 - WARM);
        }
        if case.table == Table::Renewed {
            for setup in &case.before {
                self.floors.run(setup, ingress, 0, setup.mask + 1)?;
            }
        }
        let occupied = instance.map(Instance::occupied);
        let warm = warm(case);
        self.floors.run(&case.setup, ingress, sequence, warm)?;
        let before = instance.map(Instance::counters).transpose()?;
        let ran = self.floors.run(&case.setup, ingress, sequence + u64::from(warm), repeat)?;
        let after = instance.map(Instance::counters).transpose()?;

        if let (Some(before), Some(after)) = (before, after) {
            prove_counters(&case.expected, &before, &after, repeat)?;
        }
        prove(&case.expected, &ran, repeat)?;
        if let (Some(before), Some(instance)) = (occupied, instance) {
            let recorded = instance.occupied().saturating_sub(before);
            within("packets recorded", recorded, case.expected.recorded, warm + repeat)?;
        }
        Ok(u64::try_from(ran.duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Packets that warm the caches before a measurement of this case.
fn warm(case: &Case) -> u32 {
    match case.flows {
        Flows::Many(n) => n.min(1 << 16),
        Flows::One | Flows::Fresh => WARM,
    }
}

fn prove(expected: &Expected, ran: &Ran, repeat: u32) -> Result<()> {
    if ran.made != u64::from(repeat) {
        bail!("{} of {repeat} packets were made", ran.made);
    }
    within("packets failed", ran.failed, expected.failed, repeat)?;
    if ran.verdict != expected.verdict && ran.failed == 0 {
        bail!("the verdict is {} instead of {}", ran.verdict, expected.verdict);
    }
    Ok(())
}

/// Every packet took the expected end, and no other one; what else happened is within its bounds.
fn prove_counters(
    expected: &Expected,
    before: &BTreeMap<Reason, u64>,
    after: &BTreeMap<Reason, u64>,
    repeat: u32,
) -> Result<()> {
    for reason in Reason::ALL {
        let count = |counters: &BTreeMap<Reason, u64>| counters.get(reason).copied().unwrap_or_default();
        let counted = count(after) - count(before);
        let share = if Some(*reason) == expected.end && reason.kind() != Kind::Note {
            Share { least: 1.0, most: 1.0 }
        } else {
            let note = expected.notes.iter().find(|(note, _)| note == reason);
            note.map_or(Share { least: 0.0, most: 0.0 }, |(_, share)| *share)
        };
        within(reason.name(), counted, share, repeat)?;
    }
    Ok(())
}

fn within(what: &str, counted: u64, share: Share, packets: u32) -> Result<()> {
    let part = counted as f64 / f64::from(packets);
    if part < share.least || part > share.most {
        bail!(
            "{what}: {counted} of {packets}, expected {} to {}",
            share.least * f64::from(packets),
            share.most * f64::from(packets)
        );
    }
    Ok(())
}
