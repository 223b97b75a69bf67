//! `cargo xtask test`: everything, in order, to the end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::bench::{FLOORS_VARIABLE, TRAFFIC_VARIABLE};
use crate::build;
use crate::ebpf::{self, Variant};
use crate::lint;
use crate::process::{host_cargo, seconds, stream};
use crate::report::{Report, Tests};
use crate::setup::{self, Bpf};
use crate::toolchain::Install;
use crate::vm;
use crate::workspace::Workspace;

/// The packages with tests marked `#[ignore]` because they need root and network namespaces.
pub const ROOT_PACKAGES: [&str; 3] = ["lb-userspace", "lb-lab", "lb-bench"];
/// Tells tests which binary to run.
pub const BINARY_VARIABLE: &str = "MATAPA_BIN";
/// Tells tests of a binary with another layout of the maps.
const NEXT_VARIABLE: &str = "MATAPA_NEXT_BIN";
/// Tells tests where the checkout is.
pub const ROOT_VARIABLE: &str = "MATAPA_ROOT";

/// What to test.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Only the XDP program and the host tests: no lint, nothing that needs root, no other kernel
    #[arg(long)]
    quick: bool,
    /// Only tests whose name contains this; leaves lint and other kernels out
    filter: Option<String>,
}

/// `cargo xtask test`.
pub fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let start = Instant::now();
    let mut report = Report::default();
    let bpf = setup_stages(workspace, !options.quick, &mut report);
    let binary = build_stages(workspace, !options.quick, bpf.as_ref(), &mut report);
    if !options.quick && options.filter.is_none() {
        lint::stages(workspace, bpf.as_ref(), &mut report);
    }
    report.tests("host tests", |tests| {
        let mut cargo = cargo_test(workspace, binary.as_deref());
        cargo.args(["--workspace", "--exclude", "lb-ebpf"]);
        run(&mut cargo, options, &[], tests)
    });
    if !options.quick {
        report.tests("root tests", |tests| root_tests(workspace, options, binary.as_deref(), tests));
        if options.filter.is_none() {
            vm::stage(workspace, &vm::Series::ALL, binary.as_deref(), &mut report);
        }
    }
    println!("\nall stages took {}", seconds(start.elapsed()));
    print!("{report}");
    Ok(report.failed() == 0)
}

/// Everything that tests need, and the binary; without `lab`, no binary.
pub fn prepare(workspace: &Workspace, lab: bool, report: &mut Report) -> Option<PathBuf> {
    let bpf = setup_stages(workspace, lab, report);
    build_stages(workspace, lab, bpf.as_ref(), report)
}

fn setup_stages(workspace: &Workspace, lab: bool, report: &mut Report) -> Option<Bpf> {
    let mut found = None;
    report.check("setup of the BPF toolchain", || {
        found = Some(setup::bpf(workspace, Install::Yes)?);
        Ok(())
    });
    if lab {
        report.check("setup of the lab", || {
            setup::lab(workspace, Install::Yes)?;
            setup::peers(workspace, Install::Yes)
        });
    }
    found
}

fn build_stages(workspace: &Workspace, lab: bool, bpf: Option<&Bpf>, report: &mut Report) -> Option<PathBuf> {
    let good = report.check("build of the XDP program", || {
        let bpf = bpf.context("not run: there is no toolchain for it")?;
        ebpf::build(workspace, bpf, Variant::Plain).map(drop)
    });
    if !lab {
        return None;
    }
    report.check("build of the measuring programs", || {
        let bpf = bpf.context("not run: there is no toolchain for them")?;
        ebpf::build(workspace, bpf, Variant::Floors)?;
        ebpf::build(workspace, bpf, Variant::Traffic).map(drop)
    });
    let mut binary = None;
    report.check("build of the binary", || {
        let built = build::binary(workspace, &build::Options::default())?;
        // An older object may be embedded in it: nothing must be tested with that.
        binary = Some(built).filter(|_| good);
        Ok(())
    });
    report.check("build of a binary with another layout of the maps", || {
        let bpf = bpf.context("not run: there is no toolchain for its XDP program")?;
        build::next_layout(workspace, bpf).map(drop)
    });
    binary
}

fn root_tests(
    workspace: &Workspace,
    options: &Options,
    binary: Option<&Path>,
    tests: &mut Tests,
) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("not run: tests in network namespaces need root; run `cargo xtask test` as root");
    }
    let binary = binary.context("not run: there is no binary with the XDP program to test")?;
    let mut cargo = cargo_test(workspace, Some(binary));
    for package in ROOT_PACKAGES {
        cargo.args(["--package", package]);
    }
    // Documentation tests marked `ignore` are text, not tests.
    cargo.args(["--lib", "--bins", "--tests"]);
    run(&mut cargo, options, &["--ignored", "--test-threads=1"], tests)
}

pub fn cargo_test(workspace: &Workspace, binary: Option<&Path>) -> Command {
    let mut cargo = host_cargo(workspace);
    cargo
        .args(["test", "--no-fail-fast"])
        .env(ROOT_VARIABLE, &workspace.root)
        .env(NEXT_VARIABLE, build::next_layout_path(workspace))
        .env(FLOORS_VARIABLE, Variant::Floors.object(workspace))
        .env(TRAFFIC_VARIABLE, Variant::Traffic.object(workspace));
    match binary {
        Some(binary) => cargo.env(BINARY_VARIABLE, binary),
        None => cargo.env_remove(BINARY_VARIABLE),
    };
    cargo
}

fn run(cargo: &mut Command, options: &Options, libtest: &[&str], tests: &mut Tests) -> Result<()> {
    if let Some(filter) = &options.filter {
        cargo.arg(filter);
    }
    let status = stream(cargo.arg("--").args(libtest), |line| tests.observe(line))?;
    tests.end();
    if !status.success() && tests.failed() == 0 {
        bail!("`cargo test` failed without naming a test: it did not compile, or a test ended the process");
    }
    Ok(())
}
