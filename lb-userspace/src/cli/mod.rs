//! The command line: `matapa show`, `matapa reload` and the rest.
//!
//! Most commands are questions to a running daemon through [`crate::api::client`]. The few that are not are
//! given from outside as [`Hooks`].

pub mod args;
pub mod carp;
pub mod commands;
pub mod doctor;
pub mod exit;
pub mod explain;
pub mod generate;
pub mod import;
pub mod logging;
pub mod monitor;
pub mod output;
pub mod reload;
pub mod resolve;
pub mod screens;
pub mod show;
pub mod sync;
pub mod table;
pub mod top;
pub mod trace;

use std::ffi::OsString;
use std::path::Path;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::api::client::Client;
use crate::api::server;
use crate::cli::args::{
    Check, Cli, Command, DEFAULT_READ_ONLY_SOCKET, DEFAULT_SOCKET, ImportCommand, RunArgs,
};
pub use crate::cli::exit::{ExitCode, Failure};

/// The commands that do their work in this process, without a daemon to ask.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// `matapa run`: the daemon. Logging has been started.
    pub run: fn(&RunArgs, Option<&Path>) -> Result<(), Failure>,
    /// `matapa check`: judges a configuration file; the flag says whether standard error shows colours.
    pub check: fn(&Check, bool) -> Result<(), Failure>,
    /// `matapa detach`: removes the pins.
    pub detach: fn() -> Result<(), Failure>,
}

/// Runs the command in `arguments`, the program's name first, and says how to exit.
pub fn main(arguments: impl IntoIterator<Item = OsString>, hooks: &Hooks) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    output::set_color(cli.color);
    logging::start(logging::level(matches!(cli.command, Command::Run(_)), cli.verbose));
    match dispatch(cli, hooks) {
        Ok(()) => ExitCode::Done,
        Err(failure) => {
            output::complain(&failure.message);
            failure.code
        }
    }
}

/// Help and version are answers; everything else clap says is a complaint.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => ExitCode::Done,
            Err(error) => Failure::output(&error).code,
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // With standard error closed there is nobody left to tell.
            let _ = error.print();
            ExitCode::Usage
        }
        _ => {
            let text = error.render().to_string();
            output::complain(text.strip_prefix("error: ").unwrap_or(&text));
            ExitCode::Usage
        }
    }
}

fn dispatch(cli: Cli, hooks: &Hooks) -> Result<(), Failure> {
    let given = cli.socket;
    let client = match &given {
        Some(socket) => Client::new(socket),
        None => Client::new(DEFAULT_SOCKET).or_read_only(DEFAULT_READ_ONLY_SOCKET),
    };
    match cli.command {
        Command::Run(arguments) => (hooks.run)(&arguments, given.as_deref()),
        Command::Check(arguments) => (hooks.check)(&arguments, output::errors_in_color()),
        Command::Detach => (hooks.detach)(),
        Command::Import(ImportCommand::Relayd(arguments)) => import::relayd(&arguments),
        Command::Completions { shell } => generate::completions(shell),
        Command::Openapi => output::print(&format!("{}\n", server::description())),
        Command::Man { directory } => generate::man(&directory),
        Command::Show(arguments) => block_on(show::show(&client, arguments)),
        Command::Service(command) => block_on(commands::service(&client, command)),
        Command::Backend(command) => block_on(commands::backend(&client, command)),
        Command::Carp(command) => block_on(commands::carp(&client, command)),
        Command::Reload(arguments) => block_on(reload::reload(&client, &arguments)),
        Command::Explain(arguments) => block_on(explain::explain(&client, &arguments)),
        Command::Doctor(arguments) => block_on(doctor::doctor(&arguments, given)),
        Command::Poll => block_on(commands::poll(&client)),
        Command::Trace(arguments) => block_on(trace::trace(&client, &arguments, cli.verbose > 0)),
        Command::Top(arguments) => block_on(top::top(&client, &arguments)),
        Command::Monitor(arguments) => block_on(monitor::monitor(&client, arguments.json)),
    }
}

fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    value_of(command)?
}

/// Of something that waits for others.
fn value_of<T>(command: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    Ok(runtime.block_on(command))
}
