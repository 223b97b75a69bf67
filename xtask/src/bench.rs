//! `cargo xtask bench`: what a packet costs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::ebpf::{self, Variant};
use crate::process::host_cargo;
use crate::setup;
use crate::toolchain::Install;
use crate::workspace::Workspace;

/// Tells the bench where the programs are that the packet path is measured against.
pub const FLOORS_VARIABLE: &str = "MATAPA_FLOORS_OBJECT";

/// Tells the bench where the programs are that send and count packets.
pub const TRAFFIC_VARIABLE: &str = "MATAPA_TRAFFIC_OBJECT";

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
    Control(GrowthOptions),
    /// Matapa beside plain routing, nftables, HAProxy and nginx, in a network of namespaces, as root
    Peers(PeersOptions),
}

/// Where to, with plots.
#[derive(clap::Args, Debug, Default)]
pub struct GrowthOptions {
    #[command(flatten)]
    common: SyncOptions,
    /// Also write plots (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// How long, of what, and where to.
#[derive(clap::Args, Debug)]
pub struct PeersOptions {
    #[command(flatten)]
    common: GrowthOptions,
    /// How often all gateways are gone over
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Only gateways whose name contains this, and plain routing
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
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
    /// Also write plots (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// `cargo xtask bench`.
pub fn command(workspace: &Workspace, bench: &Bench) -> Result<bool> {
    let options = match bench {
        Bench::Datapath(options) => options,
        Bench::Sync(options) => return plain(workspace, "lb-bench-sync", options, &[]),
        Bench::Checks(ChecksOptions { common, backends }) => {
            let more = backends.map(|backends| vec!["--backends".into(), backends.to_string().into()]);
            return plain(workspace, "lb-bench-checks", common, &more.unwrap_or_default());
        }
        Bench::Control(options) => return control(workspace, options),
        Bench::Peers(options) => return peers(workspace, options),
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
        command.arg("--json").arg(absolute(path)?);
    }
    if let Some(directory) = &options.plots {
        command.arg("--plots").arg(absolute(directory)?);
    }
    if options.quick {
        command.arg("--quick");
    }
    if let Some(only) = &options.only {
        command.arg("--only").arg(only);
    }
    Ok(command.status().context("cannot run cargo")?.success())
}

/// The bench runs in the workspace's directory, which need not be the caller's.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot use the name {}", path.display()))
}

fn need_root(bench: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run `cargo xtask bench {bench}` as root");
    }
    Ok(())
}

/// Measures the binary that it builds.
fn control(workspace: &Workspace, options: &GrowthOptions) -> Result<bool> {
    need_root("control")?;
    setup::lab(workspace, Install::Yes)?;
    let binary = build::everything(workspace, &build::Options::default())?;
    let more = ["--matapa".into(), binary.into_os_string()];
    grown(workspace, "lb-bench-control", options, &more)
}

/// Measures the binary that it builds, beside the others.
fn peers(workspace: &Workspace, options: &PeersOptions) -> Result<bool> {
    need_root("peers")?;
    setup::lab(workspace, Install::Yes)?;
    setup::peers(workspace, Install::Yes)?;
    let bpf = setup::bpf(workspace, Install::Yes)?;
    let traffic = ebpf::build(workspace, &bpf, Variant::Traffic)?;
    let binary = build::everything(workspace, &build::Options::default())?;
    let mut more: Vec<OsString> = vec!["--matapa".into(), binary.into(), "--traffic".into(), traffic.into()];
    if let Some(rounds) = options.rounds {
        more.extend(["--rounds".into(), rounds.to_string().into()]);
    }
    if let Some(only) = &options.only {
        more.extend(["--only".into(), only.into()]);
    }
    grown(workspace, "lb-bench-peers", &options.common, &more)
}

/// Runs a bench that draws what it has measured.
fn grown(workspace: &Workspace, program: &str, options: &GrowthOptions, more: &[OsString]) -> Result<bool> {
    let mut more = more.to_vec();
    if let Some(directory) = &options.plots {
        more.extend(["--plots".into(), absolute(directory)?.into()]);
    }
    plain(workspace, program, &options.common, &more)
}

/// Runs a bench that needs no program built for it.
fn plain(workspace: &Workspace, program: &str, options: &SyncOptions, more: &[OsString]) -> Result<bool> {
    let mut command = host_cargo(workspace);
    command.args(["run", "--quiet", "--release", "--package", "lb-bench", "--bin", program, "--"]);
    command.args(more);
    if let Some(path) = &options.json {
        command.arg("--json").arg(absolute(path)?);
    }
    if options.quick {
        command.arg("--quick");
    }
    Ok(command.status().context("cannot run cargo")?.success())
}
