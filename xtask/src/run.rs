//! `cargo xtask run`: the story in a network of namespaces, or the daemon on this host.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use lb_lab::story;

use crate::build;
use crate::setup;
use crate::toolchain::Install;
use crate::workspace::Workspace;

/// What to show.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Leave the network running at the end, to look around in it
    #[arg(long)]
    keep: bool,
    /// Remove a network that was left running
    #[arg(long, conflicts_with_all = ["keep", "json", "config"])]
    clean: bool,
    /// Also write what was seen to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run the daemon on this host with this configuration, as `-- --config FILE` does
    #[arg(long, value_name = "FILE", conflicts_with_all = ["keep", "json"])]
    config: Option<PathBuf>,
    /// Run `matapa run` with these arguments on this host, instead of the lab
    #[arg(last = true, conflicts_with_all = ["keep", "json"])]
    arguments: Vec<String>,
}

/// `cargo xtask run`.
pub fn command(workspace: &Workspace, options: Options) -> Result<bool> {
    if options.clean {
        story::clean()?;
        return Ok(true);
    }
    if options.config.is_some() || !options.arguments.is_empty() {
        return on_this_host(workspace, options);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run `cargo xtask run` as root");
    }
    setup::lab(workspace, Install::Yes)?;
    let binary = build::everything(workspace, &build::Options::default())?;
    let root = workspace.root.clone();
    let outcome = story::run(&story::Options { binary, keep: options.keep, json: options.json, root })?;
    Ok(outcome.held())
}

/// Become `matapa run`; returns only if that fails.
fn on_this_host(workspace: &Workspace, options: Options) -> Result<bool> {
    let binary = build::everything(workspace, &build::Options::default())?;
    let mut command = Command::new(&binary);
    command.arg("run");
    if let Some(config) = options.config {
        command.arg("--config").arg(config);
    }
    let error = command.args(options.arguments).exec();
    bail!("cannot run {}: {error}", binary.display())
}
