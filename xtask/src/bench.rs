//! `cargo xtask bench`: what a packet costs.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::ebpf::{self, Variant};
use crate::process::host_cargo;
use crate::setup;
use crate::toolchain::Install;
use crate::workspace::Workspace;

/// Tells the bench where the programs are that the packet path is measured against.
pub const FLOORS_VARIABLE: &str = "MATAPA_FLOORS_OBJECT";

/// What to measure.
#[derive(clap::Subcommand, Debug)]
pub enum Bench {
    /// Nanoseconds per packet in the XDP program, as root
    Datapath(Options),
    /// Flows per second and lag of flow synchronisation, over loopback
    Sync(SyncOptions),
    /// CPU and lateness of health checks, with thousands of servers on loopback
    Checks(ChecksOptions),
    /// Starts, reloads, adoption and memory of the daemon in a network of namespaces, as root
    Control(SyncOptions),
}

/// How many, and where to.
#[derive(clap::Args, Debug)]
pub struct ChecksOptions {
    #[command(flatten)]
    common: SyncOptions,
    /// How many servers are checked, once a second
    #[arg(long, value_name = "N")]
    backends: Option<u32>,
}

/// Where to.
#[derive(clap::Args, Debug, Default)]
pub struct SyncOptions {
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Less of everything, for a first look
    #[arg(long)]
    quick: bool,
}

/// How long, and where to.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// How often each case is measured, all of them in turns
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Packets in each measurement
    #[arg(long, value_name = "N")]
    repeat: Option<u32>,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Less of everything, for a first look
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this, and the floors they are compared with
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// `cargo xtask bench`.
pub fn command(workspace: &Workspace, bench: &Bench) -> Result<bool> {
    let options = match bench {
        Bench::Datapath(options) => options,
        Bench::Sync(options) => return plain(workspace, "lb-bench-sync", options, &[]),
        Bench::Checks(ChecksOptions { common, backends }) => {
            let backends = backends.map(|backends| ["--backends".to_owned(), backends.to_string()]);
            return plain(workspace, "lb-bench-checks", common, &backends.unwrap_or_default());
        }
        Bench::Control(options) => return control(workspace, options),
    };
    if !nix::unistd::geteuid().is_root() {
        bail!("loading programs into the kernel needs root: run `cargo xtask bench` as root");
    }
    let bpf = setup::bpf(workspace, Install::Yes)?;
    ebpf::build(workspace, &bpf, Variant::Plain)?;
    let floors = ebpf::build(workspace, &bpf, Variant::Floors)?;
    let mut command = host_cargo(workspace);
    command.env(FLOORS_VARIABLE, floors).args([
        "run",
        "--quiet",
        "--release",
        "--package",
        "lb-bench",
        "--bin",
        "lb-bench",
        "--",
    ]);
    for (name, value) in [("--rounds", options.rounds), ("--repeat", options.repeat)] {
        if let Some(value) = value {
            command.arg(name).arg(value.to_string());
        }
    }
    if let Some(path) = &options.json {
        // The bench runs in the workspace's directory, which need not be the caller's.
        command.arg("--json").arg(std::path::absolute(path).context("cannot use the name of the JSON file")?);
    }
    if options.quick {
        command.arg("--quick");
    }
    if let Some(only) = &options.only {
        command.arg("--only").arg(only);
    }
    Ok(command.status().context("cannot run cargo")?.success())
}

/// Measures the binary that it builds.
fn control(workspace: &Workspace, options: &SyncOptions) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run `cargo xtask bench control` as root");
    }
    setup::lab(workspace, Install::Yes)?;
    let binary = build::everything(workspace, &build::Options::default())?;
    let binary = binary.to_str().context("the path of the binary is no UTF-8")?.to_owned();
    plain(workspace, "lb-bench-control", options, &["--matapa".to_owned(), binary])
}

/// Runs a bench that needs no program built for it.
fn plain(workspace: &Workspace, program: &str, options: &SyncOptions, more: &[String]) -> Result<bool> {
    let mut command = host_cargo(workspace);
    command.args(["run", "--quiet", "--release", "--package", "lb-bench", "--bin", program, "--"]);
    command.args(more.iter().filter(|word| !word.is_empty()));
    if let Some(path) = &options.json {
        command.arg("--json").arg(std::path::absolute(path).context("cannot use the name of the JSON file")?);
    }
    if options.quick {
        command.arg("--quick");
    }
    Ok(command.status().context("cannot run cargo")?.success())
}
