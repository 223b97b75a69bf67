//! `matapa`: see [`lb_userspace::cli`].

use std::path::Path;

use lb_userspace::cli::args::{Check, RunArgs};
use lb_userspace::cli::{self, ExitCode, Failure, Hooks, output, resolve};
use lb_userspace::config::{self, Config};
use lb_userspace::daemon;
use lb_userspace::dataplane::kernel::pins;

fn main() -> std::process::ExitCode {
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
