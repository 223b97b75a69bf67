//! `matapa`: see [`lb_userspace::cli`].

use std::ffi::OsString;
use std::path::Path;

use lb_userspace::cli::args::{Check, RunArgs};
use lb_userspace::cli::{self, ExitCode, Failure, Hooks, logging, output, resolve};
use lb_userspace::config::{self, Config};
use lb_userspace::daemon;
use lb_userspace::dataplane::kernel::pins;
use lb_userspace::health::checker;
use log::LevelFilter;

fn main() -> std::process::ExitCode {
    let mut words = std::env::args_os().skip(1);
    // The daemon's word, not one for people: neither help nor completions have it.
    if words.next().is_some_and(|word| word == checker::WORD) {
        return check_servers(words.next()).into();
    }
    cli::main(std::env::args_os(), &Hooks { run, check, detach }).into()
}

fn run(arguments: &RunArgs, socket: Option<&Path>) -> Result<(), Failure> {
    let file = &arguments.file.config;
    let config = load(file, output::errors_in_color())?;
    let options = daemon::Options {
        config_file: file.clone(),
        socket: socket.map(Path::to_path_buf),
        trace_packets: arguments.trace_packets,
    };
    daemon::run(&options, config).map_err(|error| Failure::failed(format!("{error:#}")))
}

/// As the daemon says, which logs at this level.
fn check_servers(level: Option<OsString>) -> ExitCode {
    logging::start(level.and_then(|level| level.to_str()?.parse().ok()).unwrap_or(LevelFilter::Info));
    match checker::serve() {
        Ok(()) => ExitCode::Done,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::Failed
        }
    }
}

fn check(arguments: &Check, color: bool) -> Result<(), Failure> {
    let config = load(&arguments.file.config, color)?;
    output::print(&config::explain(&config))?;
    if arguments.resolve { resolve::resolve(&config) } else { Ok(()) }
}

fn detach() -> Result<(), Failure> {
    let dir = pins::directory();
    match daemon::detach(&dir) {
        Ok(true) => output::print("forwarding is off and the pins are gone\n"),
        Ok(false) => output::print("nothing was attached\n"),
        Err(error) => Err(Failure::failed(format!("{error:#}"))),
    }
}

fn load(file: &Path, color: bool) -> Result<Config, Failure> {
    config::load(file).map_err(|error| Failure::new(ExitCode::Configuration, error.render(color)))
}
