//! The command line as clap sees it. What is written here is also the manual.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};

const GLOBAL: &str = "Global options";

/// An XDP load balancer: one address in front of several servers.
#[derive(Debug, Parser)]
#[command(
    name = "matapa",
    version,
    infer_subcommands = true,
    arg_required_else_help = true,
    after_help = "\
Commands may be shortened: `matapa sh ba` is `matapa show backends`.

Exit status:
  0  done
  1  failed
  2  bad usage
  3  bad configuration
  4  the daemon cannot be reached

Examples:
  matapa check                       is /etc/matapa/matapa.toml all right?
  matapa show                        services, pools and backends at a glance
  matapa backend drain mx1           no new flows for mx1, old ones finish
  matapa reload                      apply the changed file
"
)]
pub struct Cli {
    /// The daemon's control socket [default: /run/matapa/control.sock]; for `run`: instead of the file's
    /// `control.socket`
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "MATAPA_SOCKET",
        hide_env_values = true,
        help_heading = GLOBAL,
        display_order = 100,
        value_hint = ValueHint::FilePath
    )]
    pub socket: Option<PathBuf>,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = GLOBAL, display_order = 101)]
    pub verbose: u8,
    /// Colours: auto (on a terminal), always or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        help_heading = GLOBAL,
        display_order = 102
    )]
    pub color: Color,
    #[command(subcommand)]
    pub command: Command,
}

/// Where a daemon listens whose configuration does not say.
pub const DEFAULT_SOCKET: &str = "/run/matapa/control.sock";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    #[command(after_help = "\
The daemon adopts what an earlier one left in the kernel: stopping, killing or replacing it loses no packet. \
To stop forwarding use `matapa detach`. SIGHUP reloads the file; SIGTERM and SIGINT end the daemon.

Examples:
  matapa run
  matapa -v run -c ./matapa.toml
")]
    Run(RunArgs),
    /// Check a configuration file and say what it means
    #[command(after_help = "\
Reports every error with file, line and column. Nothing is changed and no daemon is needed.

Examples:
  matapa check
  matapa check -c new.toml && mv new.toml /etc/matapa/matapa.toml && matapa reload
")]
    Check(ConfigFile),
    /// Show what the daemon knows
    #[command(after_help = "\
Examples:
  matapa show                          the summary, in the columns of relayctl
  matapa show backends --watch         again every 2 seconds
  matapa show flows --service mail --limit 20
  matapa show counters --all
  matapa show --json | jq '.services[].name'
")]
    Show(Show),
    /// Take a backend out of service, or back in
    #[command(
        subcommand,
        after_help = "\
The choice is kept across reloads and restarts.

Examples:
  matapa backend drain mx1                   before maintenance: no new flows, old ones finish
  matapa backend disable mx1                 the same, and no more checks
  matapa backend enable mx1 --service mail   in this service only
"
    )]
    Backend(BackendCommand),
    /// Apply the configuration file again
    #[command(after_help = "\
Only what differs is changed; health, flows and counters of the rest are kept. A file with an error is \
refused whole (exit status 3) and the running configuration stays.

Examples:
  matapa check && matapa reload
")]
    Reload,
    /// Stop forwarding and remove what is pinned in the kernel
    #[command(after_help = "\
Stop the daemon first. Traffic to the services then ends at this machine. MATAPA_PIN_DIR names the directory of \
the pins if it is not /sys/fs/bpf/matapa.

Examples:
  systemctl stop matapa && matapa detach
")]
    Detach,
    /// Run all health checks now, and wait for their results
    #[command(after_help = "\
Examples:
  matapa poll && matapa show
")]
    Poll,
    /// Print events as they happen
    #[command(after_help = "\
Times are UTC. Ends with exit status 4 when the daemon goes away.

Examples:
  matapa monitor
  matapa monitor --json | jq 'select(.event == \"health\")'
")]
    Monitor(Monitor),
    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  matapa completions bash > /etc/bash_completion.d/matapa
  matapa completions fish > ~/.config/fish/completions/matapa.fish
")]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(after_help = "\
Examples:
  matapa man /usr/local/share/man/man1
")]
    Man {
        /// Created when missing
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Log every step of every packet's way; slow, for finding out why something does not arrive
    #[arg(long)]
    pub trace_packets: bool,
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The configuration file
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/matapa/matapa.toml",
        value_hint = ValueHint::FilePath
    )]
    pub config: PathBuf,
}

#[derive(Debug, Args)]
#[command(infer_subcommands = true, subcommand_value_name = "SCREEN", subcommand_help_heading = "Screens")]
pub struct Show {
    #[command(subcommand)]
    pub screen: Option<Screen>,
    /// Print the API's JSON, one line, instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// Show again every so many seconds (2 unless given)
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = seconds
    )]
    pub watch: Option<Duration>,
}

#[derive(Clone, Debug, Default, Subcommand)]
pub enum Screen {
    /// Services, their pools and backends, in the columns of relayctl (the default)
    #[default]
    Summary,
    /// Addresses, policy and traffic of each service
    Services(OfService),
    /// Health, traffic and last check of each backend
    Backends(OfService),
    /// The connections in the flow table
    Flows {
        #[command(flatten)]
        of: OfService,
        /// Show at most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Why packets were forwarded, passed or dropped
    Counters {
        /// Also those that are zero
        #[arg(long)]
        all: bool,
    },
}

#[derive(Clone, Debug, Default, Args)]
pub struct OfService {
    /// Only this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
}

#[derive(Debug, Subcommand)]
#[command(infer_subcommands = true)]
pub enum BackendCommand {
    /// New flows may use it again, once its check succeeds
    Enable(BackendName),
    /// No new flows and no checks; old flows finish
    Disable(BackendName),
    /// No new flows; old ones finish, checks go on
    Drain(BackendName),
}

#[derive(Debug, Args)]
pub struct BackendName {
    /// The backend, as `matapa show backends` names it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// In this service only; otherwise in all that use it
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
}

#[derive(Debug, Args)]
pub struct Monitor {
    /// Print the API's JSON, one line for each event
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong =
        || "give seconds from 0.1 to 86400, such as 5 (and name what to show before --watch)".to_owned();
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.1..=86_400.0).contains(&number) {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(number))
}
