//! The command line as clap sees it. What is written here is also the manual.

use std::path::PathBuf;
use std::time::Duration;

use crate::api::trace::{DEFAULT_RATE, MOST_RATE};
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
/// Where questions go when this user may not use [`DEFAULT_SOCKET`].
pub const DEFAULT_READ_ONLY_SOCKET: &str = "/run/matapa/read-only.sock";

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
Reports every error with file, line and column. Nothing is changed and no daemon is needed. Host names are asked for \
with --resolve only.

Examples:
  matapa check
  matapa check --resolve
  matapa check -c new.toml && mv new.toml /etc/matapa/matapa.toml && matapa reload
")]
    Check(Check),
    /// Show what the daemon knows
    #[command(after_help = "\
Examples:
  matapa show                          the summary, in the columns of relayctl
  matapa show backends --watch         again every 2 seconds
  matapa show backends --checks        the last results of each check
  matapa show flows --service mail --limit 20
  matapa show counters --all
  matapa show --json | jq '.services[].name'
")]
    Show(Show),
    /// Take a backend out of service, or back in, or give it another share
    #[command(
        subcommand,
        after_help = "\
The choice is kept across reloads and restarts.

Examples:
  matapa backend drain mx1                   before maintenance: no new flows, old ones finish
  matapa backend disable mx1                 the same, and no more checks
  matapa backend enable mx1 --service mail   in this service only
  matapa backend weight mx1 5                five times the share of a backend with weight 1
  matapa backend weight mx1 file             what the file says again
"
    )]
    Backend(BackendCommand),
    /// Take a whole service out of use, or back in
    #[command(
        subcommand,
        after_help = "\
A disabled service takes no new connections; those that are open go on. The choice is kept across reloads and restarts.

Examples:
  matapa service disable mail
  matapa service enable mail
"
    )]
    Service(ServiceCommand),
    /// Decide who has the shared addresses
    #[command(
        subcommand,
        after_help = "\
Without a name all carps of the configuration are meant. Lasts until `release` or a restart.

Examples:
  matapa carp demote          before maintenance: the other gateway takes over at once
  matapa carp release         back to what is configured
  matapa carp promote mail    this gateway has the addresses of [carp.mail]
"
    )]
    Carp(CarpCommand),
    /// Apply the configuration file again
    #[command(after_help = "\
Only what differs is changed; health, flows and counters of the rest are kept. A file with an error is \
refused whole (exit status 3) and the running configuration stays.

Examples:
  matapa reload --dry-run && matapa reload
  matapa reload --dry-run --json | jq -r '.operations[]'
")]
    Reload(Reload),
    /// Stop forwarding and remove what is pinned in the kernel
    #[command(after_help = "\
Stop the daemon first. Traffic to the services then ends at this machine. MATAPA_PIN_DIR names the directory of \
the pins if it is not /sys/fs/bpf/matapa.

Examples:
  systemctl stop matapa && matapa detach
")]
    Detach,
    /// Say what would happen to a packet, and why
    #[command(after_help = "\
The loaded program itself is asked: a packet is built and run through it, and changes neither flows nor counters. \
Without --interface it comes in where the way to SOURCE goes out. The first question takes a second.

Examples:
  matapa explain 192.0.2.1:40000 203.0.113.10:25          a new connection
  matapa explain 192.0.2.1:40000 203.0.113.10:25 --ack    in the middle of one
  matapa explain 192.0.2.1:5353 203.0.113.10:53/udp --interface eth0 --vlan 10
  matapa explain 192.0.2.1 203.0.113.10/47                GRE, for a service that takes every protocol
  matapa explain 198.51.100.11:25 192.0.2.1:40000 --syn --ack    a server's answer
  matapa explain '[2001:db8::1]:40000' '[2001:db8::10]:25' --json | jq .reason
")]
    Explain(Explain),
    /// Find out why nothing arrives
    #[command(after_help = "\
Looks at the machine, asks the daemon, and asks the network; changes nothing, except that the daemon's checks are run \
once. Takes some seconds, and wants root: without it, less can be seen. What is wrong comes with the command that mends \
it, or that tells more. Exit status 0: nothing is wrong; 1: something is.

Examples:
  matapa doctor
  matapa doctor -c new.toml --all
  matapa doctor --json | jq '.findings[] | select(.severity == \"problem\")'
")]
    Doctor(Doctor),
    /// Run all health checks now, and wait for their results
    #[command(after_help = "\
Examples:
  matapa poll && matapa show
")]
    Poll,
    /// Print what the program decides for packets, as they come
    #[command(after_help = "\
While a trace runs, the interfaces have a program that tells of packets; before and after it costs nothing. \
Addresses and ports are those that a packet comes in with, so `service` is what shows both directions.

Words of a filter, all of which must hold:
  host ADDRESS, src ADDRESS, dst ADDRESS    or a network, such as 192.0.2.0/24
  port N                                    of either side
  proto tcp|udp|icmp|icmp6|N
  service NAME
  reason NAME                               as in `matapa show counters --all`
  drop                                      only what is dropped

Examples:
  matapa trace service mail --count 20
  matapa trace host 192.0.2.1 port 25 -v      with every step of the way
  matapa trace drop --duration 1m
  matapa trace proto tcp reason no_backend --json | jq .source
")]
    Trace(Trace),
    /// Services, backends, their traffic and events, live on a terminal
    #[command(after_help = "\
Keys: up and down choose a backend; d drains, e enables, x disables it; s sorts, / filters, h helps, q quits.

Examples:
  matapa top
  matapa top --interval 0.5
")]
    Top(TopArgs),
    /// Print events as they happen
    #[command(after_help = "\
Times are UTC. Ends with exit status 4 when the daemon goes away.

Examples:
  matapa monitor
  matapa monitor --json | jq 'select(.event == \"health\")'
")]
    Monitor(Monitor),
    /// Rewrite the configuration of another program as Matapa's
    #[command(
        subcommand,
        after_help = "\
Examples:
  matapa import relayd /etc/relayd.conf > matapa.toml
"
    )]
    Import(ImportCommand),
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
    /// Print what the API is, for programs: OpenAPI 3.1 as JSON
    #[command(after_help = "\
The daemon itself answers with the same at /v1/openapi.json.

Examples:
  matapa openapi | jq '.paths | keys'
  curl --unix-socket /run/matapa/control.sock http://localhost/v1/openapi.json
")]
    Openapi,
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
pub struct Check {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Also ask for the addresses of host names, and say what they are
    #[arg(long)]
    pub resolve: bool,
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
    Backends {
        #[command(flatten)]
        of: OfService,
        /// The last ten results of each backend's check instead
        #[arg(long)]
        checks: bool,
    },
    /// The connections in the flow table
    Flows {
        #[command(flatten)]
        of: OfService,
        /// Show at most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
    },
    /// Shared addresses: who has them, and why
    Carp,
    /// Flow synchronisation with the other gateway
    Sync,
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
    /// Set its share of new flows, whatever the file says; 0: no new flows, as with drain
    Weight(BackendWeight),
}

#[derive(Debug, Args)]
pub struct BackendWeight {
    /// The backend, as `matapa show backends` names it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// From 0 to 1000, relative to the other backends; or `file`, for what the file says
    #[arg(value_name = "VALUE", value_parser = weight)]
    pub value: String,
    /// In this service only; otherwise in all that use it
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
}

#[derive(Debug, Subcommand)]
#[command(infer_subcommands = true)]
pub enum ServiceCommand {
    /// New flows are taken again
    Enable(ServiceName),
    /// No new flows; old ones go on, checks too
    Disable(ServiceName),
}

#[derive(Debug, Args)]
pub struct ServiceName {
    /// As in `[services.NAME]`
    #[arg(value_name = "NAME")]
    pub name: String,
}

#[derive(Debug, Subcommand)]
#[command(infer_subcommands = true)]
pub enum CarpCommand {
    /// Be master
    Promote(CarpName),
    /// Be master only if there is no other
    Demote(CarpName),
    /// Be what the configuration says
    Release(CarpName),
}

#[derive(Debug, Subcommand)]
#[command(infer_subcommands = true)]
pub enum ImportCommand {
    /// The tables and redirects of a relayd.conf of OpenBSD or FreeBSD
    #[command(after_help = "\
The new configuration goes to standard output, with comments that name the lines of the old one. What Matapa has no \
equal for, or does in another way, is named on standard error with its line and what to use instead. A file with an \
error gives no output and exit status 3; one without any redirect to take over, exit status 1.

Examples:
  matapa import relayd relayd.conf > matapa.toml && matapa check -c matapa.toml
  matapa import relayd -D ext_addr=203.0.113.10 --interface eth0 --interface eth1 relayd.conf
")]
    Relayd(ImportRelayd),
}

#[derive(Debug, Args)]
pub struct ImportRelayd {
    /// The relayd.conf
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// An interface of the new configuration; may be repeated. Without it those that the file names, or eth0
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,
    /// A macro, instead of what the file says; may be repeated
    #[arg(short = 'D', long = "define", value_name = "NAME=VALUE", value_parser = definition)]
    pub macros: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct CarpName {
    /// As in `[carp.NAME]`; all when absent
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
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
pub struct Reload {
    /// Say what would change, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the API's JSON, one line, instead of sentences
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// Where the packet comes from: ADDRESS:PORT, or an address alone for protocols without ports
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Where it goes to: ADDRESS:PORT, with /tcp (the default), /udp, or ADDRESS/icmp, /icmp6, /NUMBER
    #[arg(value_name = "DESTINATION")]
    pub destination: String,
    /// The interface that it comes in on
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// With TCP's SYN flag, as when no flag is given
    #[arg(long)]
    pub syn: bool,
    /// With TCP's ACK flag
    #[arg(long)]
    pub ack: bool,
    /// With TCP's FIN flag
    #[arg(long)]
    pub fin: bool,
    /// With TCP's RST flag
    #[arg(long)]
    pub rst: bool,
    /// With these flags of TCP: syn, ack, fin, rst, several with commas, or none
    #[arg(long, value_name = "FLAGS", conflicts_with_all = ["syn", "ack", "fin", "rst"])]
    pub flags: Option<String>,
    /// With a VLAN tag of this number; two as OUTER,INNER
    #[arg(long, value_name = "NUMBER")]
    pub vlan: Option<String>,
    /// Print the API's JSON, one line, instead of sentences
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    pub file: ConfigFile,
    /// Also what is as it should be
    #[arg(long)]
    pub all: bool,
    /// Print everything as JSON, one line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Trace {
    /// Which packets: words such as `host 192.0.2.1 port 25 drop`; all when absent
    #[arg(value_name = "FILTER")]
    pub filter: Vec<String>,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time, such as 10s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Tell of at most so many packets a second; the others are counted
    #[arg(
        long,
        value_name = "N",
        default_value_t = DEFAULT_RATE,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_RATE))
    )]
    pub rate: u32,
    /// Print the API's JSON, one line for each packet
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Ask the daemon every so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
    pub interval: Duration,
}

#[derive(Debug, Args)]
pub struct Monitor {
    /// Print the API's JSON, one line for each event
    #[arg(long)]
    pub json: bool,
}

/// `NAME=VALUE`.
fn definition(text: &str) -> Result<(String, String), String> {
    let plain = |name: &&str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    match text.split_once('=').filter(|(name, _)| plain(name)) {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("give NAME=VALUE, as in ext_addr=203.0.113.10".to_owned()),
    }
}

/// A number of seconds, minutes or hours: `10s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give a time from 1s to 24h, such as 10s, 5m or 1h".to_owned();
    let at = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "" | "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    };
    seconds.filter(|seconds| (1..=86_400).contains(seconds)).map(Duration::from_secs).ok_or_else(wrong)
}

fn seconds(text: &str) -> Result<Duration, String> {
    interval(text).map_err(|wrong| format!("{wrong} (and name what to show before --watch)"))
}

fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || "give seconds from 0.1 to 86400, such as 5".to_owned();
    let number: f64 = text.parse().map_err(|_| wrong())?;
    if !(0.1..=86_400.0).contains(&number) {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(number))
}

fn weight(text: &str) -> Result<String, String> {
    crate::api::pools::weight(text).map(|_| text.to_owned())
}
