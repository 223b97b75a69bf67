//! The daemon and its command line, as an operator of one gateway has them.

mod monitor;
pub mod types;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

pub use self::monitor::{Monitor, Seen};
use self::types::{CarpStatus, Checks, Counters, FlowTable, Status, SyncStatus};
use crate::lab::Lab;
use crate::process::{Finished, Process, tail, wait_until};
use crate::topology::Gateway;

const COMMAND_LIMIT: Duration = Duration::from_secs(10);
const START_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Matapa on one gateway: its own socket and pins, so that many can run on one machine.
#[derive(Debug)]
pub struct Matapa {
    lab: Arc<Lab>,
    gateway: String,
    netns: crate::netns::Netns,
    binary: PathBuf,
    config: PathBuf,
    socket: PathBuf,
    pins: PathBuf,
    /// The gateway's.
    devices: Vec<&'static str>,
    process: Option<Process>,
}

impl Matapa {
    /// Nothing is started yet.
    pub fn new(lab: &Arc<Lab>, gateway: &Gateway, binary: &Path, config: &Path) -> Self {
        Self::at(lab, &gateway.name, &gateway.netns, gateway.devices(), binary, config)
    }

    /// As [`Matapa::new`], with a configuration of its own that [`Matapa::write_config`] can change.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn with_config(lab: &Arc<Lab>, gateway: &Gateway, binary: &Path, text: &str) -> Result<Self> {
        let path = lab.directory().join(format!("{}.toml", gateway.name));
        let matapa = Self::new(lab, gateway, binary, &path);
        matapa.write_config(text)?;
        Ok(matapa)
    }

    /// As [`Matapa::with_config`], on a machine of another network than [`Topology`](crate::Topology): `devices` are its
    /// interfaces.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn on(
        lab: &Arc<Lab>,
        name: &str,
        netns: &crate::netns::Netns,
        devices: &[&'static str],
        binary: &Path,
        text: &str,
    ) -> Result<Self> {
        let config = lab.directory().join(format!("{name}.toml"));
        let matapa = Self::at(lab, name, netns, devices.to_vec(), binary, &config);
        matapa.write_config(text)?;
        Ok(matapa)
    }

    fn at(
        lab: &Arc<Lab>,
        name: &str,
        netns: &crate::netns::Netns,
        devices: Vec<&'static str>,
        binary: &Path,
        config: &Path,
    ) -> Self {
        Self {
            lab: Arc::clone(lab),
            gateway: name.to_owned(),
            netns: netns.clone(),
            binary: binary.to_owned(),
            config: config.to_owned(),
            socket: lab.directory().join(format!("{name}.sock")),
            pins: lab.pin_directory(name),
            devices,
            process: None,
        }
    }

    /// With another control socket.
    #[must_use]
    pub fn with_socket(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.socket);
        self
    }

    /// With another directory for the pins.
    #[must_use]
    pub fn with_pins(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.pins);
        self
    }

    /// Another binary, from the next start on.
    pub fn set_binary(&mut self, path: &Path) {
        path.clone_into(&mut self.binary);
    }

    /// Replaces the configuration file; [`Matapa::reload`] applies it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_config(&self, text: &str) -> Result<()> {
        std::fs::write(&self.config, text).with_context(|| format!("cannot write {}", self.config.display()))
    }

    /// The name of the gateway it is on.
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn pins(&self) -> &Path {
        &self.pins
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// `matapa --socket PATH ARGS...` in the gateway's namespace.
    ///
    /// # Errors
    /// When the binary is missing.
    pub fn command(&self, args: &[&str]) -> Result<std::process::Command> {
        let mut command = self.lab.command(&self.binary)?;
        command.env("MATAPA_PIN_DIR", &self.pins).arg("--socket").arg(&self.socket).args(args);
        Ok(command)
    }

    /// Runs a command of the CLI to its end.
    ///
    /// # Errors
    /// When it cannot be started; its exit code is in the answer.
    pub fn cli(&self, args: &[&str]) -> Result<Finished> {
        self.lab.finish(&self.netns, self.command(args)?, COMMAND_LIMIT)
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// With what it printed, when it ends instead.
    pub fn start(&mut self) -> Result<Status> {
        self.launch()?;
        self.wait_answer()
    }

    /// Waits until a daemon that was launched answers, and has left its programs to later ones: then it has all stages,
    /// also those that are loaded after the start.
    ///
    /// # Errors
    /// With what it printed, when it ends instead.
    pub fn wait_answer(&mut self) -> Result<Status> {
        wait_until("the daemon to answer", START_LIMIT, || {
            self.check_running()?;
            // The socket of a killed predecessor may still be there: ask for the pid, too.
            let pid = self.process.as_ref().map(Process::pid);
            Ok(self.status().ok().filter(|status| Some(status.pid) == pid && self.is_whole()))
        })
    }

    fn is_whole(&self) -> bool {
        let is_complete = |name: std::ffi::OsString| name.to_string_lossy().starts_with("programs-");
        let pins = std::fs::read_dir(&self.pins);
        pins.is_ok_and(|pins| pins.flatten().any(|pin| is_complete(pin.file_name())))
    }

    /// Starts the daemon and does not wait.
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        let config = self.config.display().to_string();
        let command = self.command(&["run", "-c", &config])?;
        self.process = Some(self.lab.start(&self.netns, &self.log_name(), command)?);
        Ok(())
    }

    fn log_name(&self) -> String {
        format!("matapa-{}", self.gateway)
    }

    /// Runs the daemon in expectation that it ends by itself, and returns its words and exit code.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_to_end(&self, limit: Duration) -> Result<Finished> {
        let config = self.config.display().to_string();
        self.lab.finish(&self.netns, self.command(&["run", "-c", &config])?, limit)
    }

    /// As [`Matapa::run_to_end`] with the rights of the user `nobody`.
    ///
    /// # Errors
    /// When it cannot be started, or the binary cannot be copied to where everybody may run it.
    pub fn run_as_nobody(&self, limit: Duration) -> Result<Finished> {
        let binary = self.lab.directory().join("matapa");
        std::fs::copy(&self.binary, &binary)
            .with_context(|| format!("cannot copy the binary to {}", binary.display()))?;
        let mut command = self.lab.command("setpriv")?;
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(binary);
        command.env("MATAPA_PIN_DIR", &self.pins).arg("--socket").arg(&self.socket);
        command.arg("run").arg("-c").arg(&self.config);
        self.lab.finish(&self.netns, command, limit)
    }

    /// # Errors
    /// With the end of its log, when the daemon is not running.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.as_mut().context("the daemon was not started")?.check_running()
    }

    /// All that the daemon printed, over all its starts.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.check_running()?;
        self.process.as_mut().map_or(Ok(()), Process::kill)
    }

    /// `kill -9`, and `work` before its end is waited for.
    ///
    /// # Errors
    /// When it is not running, and those of `work`.
    pub fn kill_and(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let process = self.process.as_mut().context("the daemon was not started")?;
        process.signal(libc::SIGKILL)?;
        work()?;
        process.kill()
    }

    /// SIGHUP: the daemon applies its configuration file again, and tells its log how that went.
    ///
    /// # Errors
    /// When it is not running.
    pub fn hangup(&mut self) -> Result<()> {
        self.process.as_mut().context("the daemon was not started")?.signal(libc::SIGHUP)
    }

    /// SIGTERM: the daemon ends, forwarding goes on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.as_mut().context("the daemon was not started")?.terminate(STOP_LIMIT)
    }

    /// # Errors
    /// When the daemon does not answer or answers nonsense.
    pub fn status(&self) -> Result<Status> {
        self.show("summary")
    }

    /// # Errors
    /// When the daemon does not answer or answers nonsense.
    pub fn flows(&self) -> Result<FlowTable> {
        let args = ["show", "flows", "--json", "--limit", "100000"];
        let text = self.cli(&args)?.expect("matapa show flows --json")?;
        serde_json::from_str(&text).with_context(|| format!("matapa show flows --json printed: {text}"))
    }

    /// The latest results of every check.
    ///
    /// # Errors
    /// When the daemon does not answer or answers nonsense.
    pub fn checks(&self) -> Result<Checks> {
        let args = ["show", "backends", "--checks", "--json"];
        let text = self.cli(&args)?.expect("matapa show backends --checks --json")?;
        serde_json::from_str(&text).with_context(|| format!("the checks were: {text}"))
    }

    /// # Errors
    /// When the daemon does not answer or answers nonsense.
    pub fn counters(&self) -> Result<Counters> {
        self.show("counters")
    }

    /// `matapa show WHAT --json`, read as `T`.
    ///
    /// # Errors
    /// When the daemon does not answer or answers something else.
    pub fn show<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        let text = self.cli(&["show", what, "--json"])?.expect(&format!("matapa show {what} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("matapa show {what} --json printed: {text}"))
    }

    /// # Errors
    /// When the daemon does not answer or answers nonsense.
    pub fn carp(&self) -> Result<CarpStatus> {
        self.show("carp")
    }

    /// # Errors
    /// When the daemon does not answer or answers nonsense.
    pub fn sync(&self) -> Result<SyncStatus> {
        self.show("sync")
    }

    /// Starts to collect events.
    ///
    /// # Errors
    /// When `matapa monitor` cannot be started.
    pub fn monitor(&self) -> Result<Monitor> {
        let command = self.command(&["monitor", "--json"])?;
        Monitor::start(self.lab.start_piped(&self.netns, &format!("monitor-{}", self.gateway), command)?)
    }

    /// Waits until exactly the backends `names` are up, of those that exist.
    ///
    /// # Errors
    /// With what the daemon says instead.
    pub fn wait_up(&self, names: &[&str], limit: Duration) -> Result<Status> {
        let mut last = String::new();
        wait_until(&format!("{} to be up, and no other", names.join(", ")), limit, || {
            let status = self.status()?;
            let backends: Vec<_> = status.services.iter().flat_map(|service| &service.backends).collect();
            last = backends
                .iter()
                .map(|backend| format!("{} {} {}", backend.name, backend.health, backend.admin))
                .collect::<Vec<_>>()
                .join(", ");
            let right = backends.iter().all(|one| (one.health == "up") == names.contains(&one.name.as_str()));
            Ok((right && !backends.is_empty()).then_some(status))
        })
        .with_context(|| format!("the daemon says: {last}"))
    }

    /// Waits until every backend of every service is up.
    ///
    /// # Errors
    /// With what the daemon says instead.
    pub fn wait_healthy(&self, limit: Duration) -> Result<Status> {
        let status = self.status()?;
        let names: Vec<&str> = status
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| backend.name.as_str())
            .collect();
        self.wait_up(&names, limit)
    }

    /// `enable`, `drain` or `disable` a backend of one service.
    ///
    /// # Errors
    /// With the CLI's own words.
    pub fn backend(&self, action: &str, name: &str, service: &str) -> Result<()> {
        let args = ["backend", action, name, "--service", service];
        self.cli(&args)?.expect(&format!("matapa {}", args.join(" "))).map(drop)
    }

    /// Applies the configuration file again.
    ///
    /// # Errors
    /// With the CLI's own words.
    pub fn reload(&self) -> Result<()> {
        self.cli(&["reload"])?.expect("matapa reload").map(drop)
    }

    /// Takes forwarding off and removes the pins, whether or not the daemon runs.
    ///
    /// # Errors
    /// With the CLI's own words.
    pub fn detach(&self) -> Result<()> {
        self.cli(&["detach"])?.expect("matapa detach").map(drop)
    }

    /// Whether an XDP program sits on `interface` of the gateway.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn attached(&self, interface: &str) -> Result<bool> {
        Ok(self.program(interface)?.is_some())
    }

    /// The kernel's number of the program that an interface has.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn program(&self, interface: &str) -> Result<Option<u32>> {
        const BEFORE: &str = "prog/xdp id ";
        let mut command = self.lab.command("ip")?;
        command.args(["-details", "link", "show", "dev", interface]);
        let text = self.lab.finish(&self.netns, command, COMMAND_LIMIT)?.expect("ip link show")?;
        let number = text.split_once(BEFORE).and_then(|(_, rest)| rest.split_whitespace().next());
        number
            .map(|number| number.parse().with_context(|| format!("`ip` shows a program {number}")))
            .transpose()
    }

    /// # Errors
    /// When a program is still attached or a pin is left.
    pub fn check_nothing_left(&self) -> Result<()> {
        for interface in self.devices.iter().copied() {
            if self.attached(interface)? {
                bail!("an XDP program is still attached to {interface}: {}", tail(&self.log()));
            }
        }
        if std::fs::read_dir(&self.pins).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("pins are left in {}", self.pins.display());
        }
        Ok(())
    }
}
