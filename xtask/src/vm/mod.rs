//! `cargo xtask vm`: the program on other kernels, each booted in QEMU without its help from hardware.

mod cpio;
mod guest;
mod initramfs;
mod kernel;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

pub use kernel::Kernel;

use crate::build;
use crate::process::seconds;
use crate::report::{Report, Tests};
use crate::setup;
use crate::toolchain::Install;
use crate::workspace::Workspace;

/// The stage's name wherever all series are tested.
const STAGE: &str = "kernels 6.1 and 6.12";

/// A kernel that is kept up for years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Debian 12's: the oldest that Matapa runs on.
    V6_1,
    V6_12,
}

impl Series {
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    const fn numbers(self) -> [u32; 2] {
        match self {
            Self::V6_1 => [6, 1],
            Self::V6_12 => [6, 12],
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor] = self.numbers();
        write!(out, "{major}.{minor}")
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Which {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[default]
    All,
}

impl Which {
    const fn series(self) -> &'static [Series] {
        match self {
            Self::V6_1 => &[Series::V6_1],
            Self::V6_12 => &[Series::V6_12],
            Self::All => &Series::ALL,
        }
    }
}

/// What to boot.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Options {
    /// The series of kernels
    #[arg(long, value_enum, default_value_t)]
    kernel: Which,
}

/// `cargo xtask vm`.
pub fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let start = Instant::now();
    let mut report = Report::default();
    let mut binary = None;
    report.check("build", || {
        binary = Some(build::everything(workspace, &build::Options::default())?);
        Ok(())
    });
    stage(workspace, options.kernel.series(), binary.as_deref(), &mut report);
    println!("\nall stages took {}", seconds(start.elapsed()));
    print!("{report}");
    Ok(report.failed() == 0)
}

/// Boot each series and count each check made inside.
pub fn stage(workspace: &Workspace, series: &[Series], binary: Option<&Path>, report: &mut Report) {
    let name = match series {
        [Series::V6_1] => "kernel 6.1",
        [Series::V6_12] => "kernel 6.12",
        _ => STAGE,
    };
    report.tests(name, |tests| {
        let binary = binary.context("not run: there is no binary with the XDP program to test")?;
        all(workspace, series, binary, tests)
    });
}

fn all(workspace: &Workspace, series: &[Series], binary: &Path, tests: &mut Tests) -> Result<()> {
    let kernels = setup::machines(workspace, series, Install::Yes)?;
    let directory = workspace.target.join("vm");
    let contents = initramfs::Contents::gather(workspace, &directory, binary)?;
    // At the same time: an emulated machine does little else than verify programs, which is the work of one processor.
    let outcomes: Vec<(Result<Duration>, Tests)> = std::thread::scope(|scope| {
        let boot = |kernel| {
            let mut inside = Tests::default();
            (one(workspace, &directory, kernel, &contents, &mut inside), inside)
        };
        let machines: Vec<_> = kernels.iter().map(|kernel| scope.spawn(move || boot(kernel))).collect();
        let ends = machines.into_iter().map(std::thread::ScopedJoinHandle::join);
        ends.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut ended: Vec<String> = Vec::new();
    for (kernel, (outcome, inside)) in kernels.iter().zip(outcomes) {
        let place = kernel.series.to_string();
        match outcome {
            Ok(time) => println!("{place}: {} checks passed [{}]", inside.passed, seconds(time)),
            Err(error) => {
                println!("{place}: error: {error:#}");
                ended.push(format!("{place}: {error:#}"));
            }
        }
        tests.absorb(&place, inside);
    }
    if !ended.is_empty() {
        bail!("{}", ended.join("; "));
    }
    Ok(())
}

fn one(
    workspace: &Workspace,
    directory: &Path,
    kernel: &Kernel,
    contents: &initramfs::Contents,
    tests: &mut Tests,
) -> Result<Duration> {
    let archive = directory.join(format!("{}.cpio", kernel.series));
    contents.write(kernel, &archive)?;
    let log: PathBuf = directory.join(format!("{}.log", kernel.series));
    println!("\n--- Linux {}, log in {}", kernel.version, workspace.display(&log));
    let machine = guest::Machine { image: &kernel.image, archive: &archive, log: &log };
    machine.run(&kernel.series.to_string(), tests)
}
