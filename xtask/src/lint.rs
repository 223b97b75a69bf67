//! `cargo xtask lint`: format, clippy, documentation, licences.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::ebpf;
use crate::licences;
use crate::process::host_cargo;
use crate::report::Report;
use crate::setup::{self, Bpf};
use crate::toolchain::Install;
use crate::workspace::{Workspace, find_program};

const HOST_CRATES: [&str; 3] = ["--workspace", "--exclude", "lb-ebpf"];

/// `cargo xtask lint`.
pub fn command(workspace: &Workspace) -> Result<bool> {
    let mut report = Report::default();
    let mut bpf = None;
    report.check("setup", || {
        bpf = Some(setup::bpf(workspace, Install::Yes)?);
        Ok(())
    });
    stages(workspace, bpf.as_ref(), &mut report);
    print!("{report}");
    Ok(report.failed() == 0)
}

/// Each lint as a stage of its own; they do not depend on each other.
pub fn stages(workspace: &Workspace, bpf: Option<&Bpf>, report: &mut Report) {
    report.check("format", || run(host_cargo(workspace).args(["fmt", "--all", "--check"])));
    report.check("clippy", || {
        let mut command = host_cargo(workspace);
        run(command.arg("clippy").args(HOST_CRATES).args(["--all-targets", "--", "-D", "warnings"]))
    });
    report.check("clippy of the XDP program", || {
        let bpf = bpf.context("not run: there is no toolchain for it")?;
        ebpf::lint(workspace, bpf)
    });
    report.check("documentation", || {
        let mut command = host_cargo(workspace);
        command.arg("doc").args(HOST_CRATES).arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings");
        run(&mut command)
    });
    report.check("licences", || licences::check(workspace));
    if find_program("cargo-deny").is_some() {
        report.check("cargo deny", || deny(workspace));
    } else {
        println!(
            "cargo-deny is not installed: advisories, bans and sources are not checked \
             (`cargo install cargo-deny` adds it)"
        );
    }
}

fn deny(workspace: &Workspace) -> Result<()> {
    let mut command = host_cargo(workspace);
    run(command.args(["deny", "--offline", "check", "licenses", "advisories", "bans", "sources"]))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!("`cargo {}` found something (see above)", words.join(" "));
    }
    Ok(())
}
