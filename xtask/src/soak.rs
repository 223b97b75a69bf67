//! `cargo xtask soak`: the long forms of the tests that look for what goes wrong by chance.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::bench;
use crate::process::{seconds, stream};
use crate::report::{Report, Tests};
use crate::test::{self, cargo_test};
use crate::workspace::Workspace;

/// Tells the tests in network namespaces how many rounds to do, and that everything else is to be large as well.
const ROUNDS_VARIABLE: &str = "MATAPA_ROUNDS";
/// proptest's own; tests that have another number than its 256 take the same multiple of theirs.
const CASES_VARIABLE: &str = "PROPTEST_CASES";
const USUAL_CASES: u64 = 256;
/// Multiplies the random packets that go through the kernel.
const PACKETS_VARIABLE: &str = "MATAPA_PACKETS_FACTOR";

/// Tests whose long form differs from the short one, by what their names begin with.
const IN_NAMESPACES: [&str; 9] = [
    "carp::",
    "churn::",
    "sync::",
    "transfers::",
    "takeover::",
    "partition::",
    "second_chance::",
    "live_counts::",
    "speed::",
];

/// What to run.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask soak                        everything; about two hours on two cores
  cargo xtask soak transfers::            only the transfers that meet the death of a gateway
  cargo xtask soak ucarp --rounds 100     only the tests beside ucarp, a hundred rounds of each
  cargo xtask soak --only properties      no root: property tests with many cases
  cargo xtask soak --only packets         random packets through the kernel and the host")]
pub struct Options {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// How often what can go wrong by chance is repeated
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many times as many cases property tests try, and packets go through the kernel
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    factor: u32,
    /// Only this part; may be repeated
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Property tests with many cases
    Properties,
    /// Random packets through the kernel and the host, which must agree
    Packets,
    /// Gateways, servers and clients in network namespaces
    Namespaces,
    /// A million flows to the other gateway
    Sync,
}

impl Part {
    const ALL: [Self; 4] = [Self::Properties, Self::Packets, Self::Namespaces, Self::Sync];

    const fn needs_root(self) -> bool {
        matches!(self, Self::Packets | Self::Namespaces)
    }
}

/// `cargo xtask soak`.
pub fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let parts: Vec<Part> = Part::ALL
        .into_iter()
        .filter(|part| options.only.is_empty() || options.only.contains(part))
        // With a name, tests are wanted.
        .filter(|part| options.filter.is_none() || *part != Part::Sync)
        .collect();
    if parts.iter().any(|part| part.needs_root()) && !nix::unistd::geteuid().is_root() {
        bail!(
            "tests in network namespaces need root: run `cargo xtask soak` as root, or `cargo xtask soak --only properties`"
        );
    }
    let start = Instant::now();
    let mut report = Report::default();
    let binary = test::prepare(workspace, parts.iter().any(|part| part.needs_root()), &mut report);
    for part in parts {
        match part {
            Part::Properties => report.tests("property tests", |tests| {
                let mut cargo = cargo_test(workspace, binary.as_deref());
                cargo.args(["--package", "lb-common", "--package", "lb-userspace", "--lib", "--tests"]);
                run(&mut cargo, options, &[], &[], tests)
            }),
            Part::Packets => report.tests("packets through the kernel", |tests| {
                let mut cargo = rooted(workspace, binary.as_deref())?;
                cargo.args(["--package", "lb-userspace", "--test", "corpus_kernel"]);
                run(&mut cargo, options, &["--ignored", "--test-threads=1"], &["random_packets"], tests)
            }),
            Part::Namespaces => report.tests("tests in namespaces", |tests| {
                let mut cargo = rooted(workspace, binary.as_deref())?;
                cargo.args(["--package", "lb-lab", "--test", "netns"]);
                run(&mut cargo, options, &["--ignored", "--test-threads=1"], &IN_NAMESPACES, tests)
            }),
            Part::Sync => {
                report.check("a million flows to the other gateway", || {
                    if bench::command(workspace, &bench::Bench::Sync(bench::SyncOptions::default()))? {
                        Ok(())
                    } else {
                        bail!("`cargo xtask bench sync` failed")
                    }
                });
            }
        }
        println!("\n{} so far", seconds(start.elapsed()));
    }
    println!("\nthe soak took {}", seconds(start.elapsed()));
    print!("{report}");
    Ok(report.failed() == 0)
}

fn rooted(workspace: &Workspace, binary: Option<&Path>) -> Result<Command> {
    Ok(cargo_test(workspace, Some(binary.context("not run: there is no binary to test")?)))
}

/// The tests of `names`, or of those the ones that are asked for. What they print is shown as it comes: figures of every
/// round.
fn run(
    cargo: &mut Command,
    options: &Options,
    libtest: &[&str],
    names: &[&str],
    tests: &mut Tests,
) -> Result<()> {
    let cases = USUAL_CASES * u64::from(options.factor);
    cargo
        .env(ROUNDS_VARIABLE, options.rounds.to_string())
        .env(CASES_VARIABLE, cases.to_string())
        .env(PACKETS_VARIABLE, options.factor.to_string());
    cargo.arg("--").args(libtest).arg("--nocapture");
    match &options.filter {
        Some(filter) => cargo.arg(filter),
        None => cargo.args(names),
    };
    let status = stream(cargo, |line| tests.observe(line))?;
    tests.end();
    if !status.success() && tests.failed() == 0 {
        bail!("`cargo test` failed without naming a test: it did not compile, or a test ended the process");
    }
    Ok(())
}
