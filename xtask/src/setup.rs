//! `cargo xtask setup`: everything a build or a test needs, found or installed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::linker;
use crate::packages;
use crate::process::seconds;
use crate::toolchain::{self, Install, Toolchain};
use crate::vm;
use crate::workspace::Workspace;

/// What the BPF build needs.
#[derive(Debug)]
pub struct Bpf {
    pub toolchain: Toolchain,
    pub linker: PathBuf,
}

/// `cargo xtask setup [--check]`.
pub fn command(workspace: &Workspace, check: bool) -> Result<bool> {
    let start = Instant::now();
    let install = if check { Install::No } else { Install::Yes };
    let compiler = bpf(workspace, install);
    let programs = lab(workspace, install);
    let kernels = machines(workspace, &vm::Series::ALL, install).map(drop);
    let mut complete = true;
    for error in [compiler.map(drop), programs, kernels].into_iter().filter_map(Result::err) {
        complete = false;
        eprintln!("error: {error:#}");
    }
    if complete {
        println!("setup is complete ({})", seconds(start.elapsed()));
    } else if check {
        println!("run `cargo xtask setup` to install what is missing");
    }
    Ok(complete)
}

/// The compiler and the linker of the XDP program.
pub fn bpf(workspace: &Workspace, install: Install) -> Result<Bpf> {
    let start = Instant::now();
    let toolchain = toolchain::find(workspace, install)?;
    println!("BPF compiler: {} [{}]", toolchain.description, seconds(start.elapsed()));
    let start = Instant::now();
    let linker = linker::find(workspace, toolchain.llvm, install).context("no linker for the XDP program")?;
    println!("BPF linker: {} [{}]", workspace.display(&linker), seconds(start.elapsed()));
    Ok(Bpf { toolchain, linker })
}

/// The programs the test networks run.
pub fn lab(workspace: &Workspace, install: Install) -> Result<()> {
    let start = Instant::now();
    programs(workspace, &packages::LAB, install)?;
    println!("lab programs: all {} found [{}]", packages::LAB.len(), seconds(start.elapsed()));
    Ok(())
}

/// The programs that Matapa is measured beside.
pub fn peers(workspace: &Workspace, install: Install) -> Result<()> {
    programs(workspace, &packages::PEERS, install)
}

/// What boots other kernels, and those kernels.
pub fn machines(workspace: &Workspace, series: &[vm::Series], install: Install) -> Result<Vec<vm::Kernel>> {
    let start = Instant::now();
    programs(workspace, &packages::MACHINES, install)?;
    println!(
        "virtual machine: all {} programs found [{}]",
        packages::MACHINES.len(),
        seconds(start.elapsed())
    );
    series.iter().map(|one| vm::Kernel::find(workspace, *one, install)).collect()
}

fn programs(workspace: &Workspace, list: &'static [packages::Need], install: Install) -> Result<()> {
    let missing = packages::missing(list);
    if missing.is_empty() {
        return Ok(());
    }
    if install == Install::No {
        anyhow::bail!("{}", packages::by_hand(&missing));
    }
    packages::provide(workspace, &missing)
}
