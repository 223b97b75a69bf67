//! What packagers need: completion scripts and manual pages, made from the command line's own description.

use std::fs;
use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::args::Cli;
use crate::cli::exit::Failure;
use crate::cli::output::print;

/// `matapa completions SHELL`
///
/// # Errors
/// When the output cannot be written.
pub fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "matapa", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// `matapa man DIR`
///
/// # Errors
/// When the directory cannot be written to.
pub fn man(directory: &Path) -> Result<(), Failure> {
    let write = || {
        fs::create_dir_all(directory)?;
        clap_mangen::generate_to(Cli::command(), directory)
    };
    write().map_err(|error| {
        Failure::failed(format!("cannot write manual pages to {}: {error}", directory.display()))
    })
}
