//! `cargo xtask build`: the XDP program, then the binary that carries it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::ebpf::{self, Variant};
use crate::process::{host_cargo, seconds};
use crate::setup::{self, Bpf};
use crate::toolchain::Install;
use crate::workspace::Workspace;

/// Names another object for the binary than the usual one, as its build script reads it.
const OBJECT_VARIABLE: &str = "MATAPA_BPF_OBJECT";

/// How to build.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// Build the binary optimised (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Build the binary for debugging; the XDP program is always optimised
    #[arg(long)]
    debug: bool,
    /// Build a binary with another layout of the maps instead, which the tests of moving flows need
    #[arg(long, conflicts_with_all = ["release", "debug"])]
    next_layout: bool,
}

/// `cargo xtask build`.
pub fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    everything(workspace, options).map(|_| true)
}

/// Build both and return the binary's path.
pub fn everything(workspace: &Workspace, options: &Options) -> Result<PathBuf> {
    let bpf = setup::bpf(workspace, Install::Yes)?;
    if options.next_layout {
        return next_layout(workspace, &bpf);
    }
    ebpf::build(workspace, &bpf, Variant::Plain)?;
    binary(workspace, options)
}

/// Build the binary around the object that is there.
pub fn binary(workspace: &Workspace, options: &Options) -> Result<PathBuf> {
    let mut command = host_cargo(workspace);
    command.arg("build");
    if !options.debug {
        command.arg("--release");
    }
    compile(workspace, command)
}

/// Build what is not the product but has another layout of the maps, for debugging. Returns the path where it stays, as
/// it shares cargo's with the product.
pub fn next_layout(workspace: &Workspace, bpf: &Bpf) -> Result<PathBuf> {
    let object = ebpf::build(workspace, bpf, Variant::NextLayout)?;
    let mut command = host_cargo(workspace);
    command.args(["build", "--features", ebpf::NEXT_LAYOUT]).env(OBJECT_VARIABLE, object);
    let built = compile(workspace, command)?;
    let path = next_layout_path(workspace);
    fs::copy(&built, &path)
        .with_context(|| format!("cannot copy {} to {}", built.display(), path.display()))?;
    Ok(path)
}

/// Where [`next_layout`] puts it.
pub fn next_layout_path(workspace: &Workspace) -> PathBuf {
    workspace.bpf_target().join("matapa-next-layout")
}

fn compile(workspace: &Workspace, mut command: Command) -> Result<PathBuf> {
    let start = Instant::now();
    command.args(["--package", "lb-userspace", "--bin", "matapa"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo's output is not piped")?;
    let mut binary = None;
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read cargo's output")?;
        if let Ok(Artifact { executable: Some(path), target }) = serde_json::from_str(&line)
            && target.name == "matapa"
        {
            binary = Some(path);
        }
    }
    if !child.wait().context("cannot wait for cargo")?.success() {
        bail!("the binary does not build (see above)");
    }
    let binary = binary.context("cargo built no binary called matapa")?;
    let size = fs::metadata(&binary).with_context(|| format!("cannot read {}", binary.display()))?.len();
    println!("{}: {} KiB [{}]", workspace.display(&binary), size.div_ceil(1024), seconds(start.elapsed()));
    Ok(binary)
}

/// The part of cargo's artifact message that names a binary.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}
