//! `cargo xtask run`: the story in a network of namespaces, or the daemon on this host.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

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
    if options.config.is_some() || !options.arguments.is_empty() {
        return on_this_host(workspace, options);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run `cargo xtask run` as root");
    }
    setup::lab(workspace, Install::Yes)?;
    let binary = build::everything(workspace, &build::Options::default())?;
    story::run(story::Options { binary, keep: options.keep, json: options.json })?;
    Ok(true)
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

/// SEAM: stands in for `lb_lab::story`; remove this module and `use lb_lab::story;` once that exists.
mod story {
    use std::path::PathBuf;

    use anyhow::{Result, bail};

    #[derive(Debug)]
    pub struct Options {
        pub binary: PathBuf,
        pub keep: bool,
        pub json: Option<PathBuf>,
    }

    pub fn run(options: Options) -> Result<()> {
        let Options { binary, keep, json } = options;
        bail!(
            "the lab is not part of this build: {} is built (keep: {keep}, json: {json:?})",
            binary.display()
        )
    }
}
