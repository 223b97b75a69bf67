//! Building the XDP program, and the programs it is measured against.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::object_check;
use crate::process::{isolated, seconds};
use crate::setup::Bpf;
use crate::workspace::Workspace;

const PACKAGE: &str = "lb-ebpf";
/// The feature of the crates that changes the layout of the maps.
pub const NEXT_LAYOUT: &str = "next-layout";
const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "bpf";
/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`, so that a path may contain spaces.
const FLAG_SEPARATOR: &str = "\x1f";

/// Which object is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Plain,
    /// Not the product: what `cargo xtask bench` measures it against.
    Floors,
    /// Not the product: what sends and counts packets for `cargo xtask bench peers`.
    Traffic,
    /// Not the product: with another layout of the maps, for the tests of moving flows between two.
    NextLayout,
}

impl Variant {
    pub fn object(self, workspace: &Workspace) -> PathBuf {
        workspace.objects().join(match self {
            Self::Plain => "matapa-xdp.o",
            Self::Floors => "matapa-floors.o",
            Self::Traffic => "matapa-traffic.o",
            Self::NextLayout => "matapa-next-layout.o",
        })
    }

    /// As cargo calls the program.
    const fn binary(self) -> &'static str {
        match self {
            Self::Plain | Self::NextLayout => "matapa-xdp",
            Self::Floors => "matapa-floors",
            Self::Traffic => "matapa-traffic",
        }
    }

    /// Of the crate.
    const fn features(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Floors | Self::Traffic => &[],
            Self::NextLayout => &["--features", NEXT_LAYOUT],
        }
    }
}

/// Build one object, check it, and put it where the build script of the daemon looks for it.
pub fn build(workspace: &Workspace, bpf: &Bpf, variant: Variant) -> Result<PathBuf> {
    let start = Instant::now();
    let mut command = cargo(workspace, bpf, &bpf.toolchain.cargo);
    command.arg("build").args(arguments(workspace)).args(["--bin", variant.binary()]);
    command.args(variant.features());
    let status = command.status().context("cannot run the BPF toolchain's cargo")?;
    if !status.success() {
        bail!("the XDP program does not build (see above)");
    }
    let built = workspace.bpf_target().join(TARGET).join(PROFILE).join(variant.binary());
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let summary = match object_check::check(&bytes) {
        Ok(summary) => summary,
        Err(problems) => bail!("the XDP program would not load:\n{problems}"),
    };
    let object = variant.object(workspace);
    replace_if_different(&object, &bytes)?;
    println!(
        "{}: {} KiB, {summary} [{}]",
        workspace.display(&object),
        bytes.len().div_ceil(1024),
        seconds(start.elapsed())
    );
    Ok(object)
}

/// Clippy on the XDP program, with the toolchain that builds it; else the compiler's own warnings.
pub fn lint(workspace: &Workspace, bpf: &Bpf) -> Result<()> {
    let mut command = if let Some(clippy) = bpf.toolchain.clippy() {
        let mut command = cargo(workspace, bpf, &clippy);
        // Called without cargo in front, it must be told which cargo to use.
        command.arg("clippy").args(arguments(workspace)).env("CARGO", &bpf.toolchain.cargo);
        command
    } else {
        println!(
            "{} has no clippy (on Debian: package rust-web-clippy); only the compiler's warnings are checked",
            bpf.toolchain.description
        );
        let mut command = cargo(workspace, bpf, &bpf.toolchain.cargo);
        command.arg("rustc").args(arguments(workspace)).args(["--bin", Variant::Plain.binary()]);
        command
    };
    let status = command.args(["--", "-D", "warnings"]).status().context("cannot lint the XDP program")?;
    if !status.success() {
        bail!("the XDP program has warnings (see above)");
    }
    Ok(())
}

fn arguments(workspace: &Workspace) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["--package", PACKAGE, "--profile", PROFILE, "-Z", "build-std=core", "--target", TARGET]
            .map(OsString::from)
            .into();
    arguments.push("--target-dir".into());
    arguments.push(workspace.bpf_target().into());
    arguments
}

fn cargo(workspace: &Workspace, bpf: &Bpf, program: &Path) -> Command {
    let mut command = isolated(workspace, program);
    command.env("RUSTC", &bpf.toolchain.rustc).env("CARGO_ENCODED_RUSTFLAGS", flags(workspace, &bpf.linker));
    if bpf.toolchain.bootstrap {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command
}

fn flags(workspace: &Workspace, linker: &Path) -> OsString {
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    for flag in [
        "-Clink-arg=--btf",
        // 32-bit registers and atomic compare-and-exchange (Linux 5.12).
        "-Ctarget-cpu=v3",
        // Every target of an XDP program reads unaligned words; without this each becomes byte loads.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
    ] {
        flags.push(FLAG_SEPARATOR);
        flags.push(flag);
    }
    // The same object from any directory. "." lets the linker still find our sources, whose lines it copies
    // for the verifier's log.
    for (from, to) in [(Some(workspace.root.clone()), "."), (cargo_home(), "cargo")] {
        if let Some(from) = from {
            flags.push(FLAG_SEPARATOR);
            flags.push("--remap-path-prefix=");
            flags.push(from);
            flags.push("=");
            flags.push(to);
        }
    }
    flags
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// Keep the file's time when nothing changed, so that the daemon is not linked again.
fn replace_if_different(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let dir = path.parent().context("an object lies in a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let new = path.with_extension("o.new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
