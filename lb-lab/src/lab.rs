//! One test network's belongings, and their removal: also after a panic, Ctrl-C or a crashed earlier run.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};

use crate::interrupt;
use crate::netns::{self, Netns};
use crate::process::{self, Finished, Process};

/// Every namespace of every lab starts with it.
const PREFIX: &str = "matapa-lab-";
/// One directory per lab: its state and what its programs printed.
const STATE: &str = "/run/matapa-lab";
const BPF_FS: &str = "/sys/fs/bpf";
/// In the environment of every program of a lab; the value is the lab's id.
const MARKER: &str = "MATAPA_LAB";

/// Names how many seconds a network stands on after a panic, to look at what went wrong.
const HOLD: &str = "MATAPA_LAB_HOLD";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Who a lab belongs to.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    /// From /proc/PID/stat: tells a process from a later one with the same number.
    started: u64,
    /// Left standing on purpose.
    kept: bool,
}

impl Owner {
    fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Namespaces, processes, pins and files under one unique id. Dropping it removes them all.
#[derive(Debug)]
pub struct Lab {
    id: String,
    directory: PathBuf,
    keep: Arc<AtomicBool>,
}

impl Lab {
    /// # Errors
    /// When not root, or when the state directory cannot be made.
    pub fn new() -> Result<Arc<Self>> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab needs root: it makes network namespaces and loads a BPF program");
        }
        // Ctrl-C must not leave the lab behind: waits end, and what follows removes it.
        interrupt::install()?;
        interrupt::check()?;
        hold_on_panic();
        sweep(false)?;
        // Hundreds of connections with both ends in one process.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, 65_536, 65_536);
        let pid = std::process::id();
        let id = format!("{pid}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(STATE).join(&id);
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let lab = Self { id, directory, keep: Arc::default() };
        lab.write_owner(false)?;
        Ok(Arc::new(lab))
    }

    fn write_owner(&self, kept: bool) -> Result<()> {
        let pid = std::process::id();
        let owner = Owner { pid, started: start_time(pid).context("cannot read /proc/self/stat")?, kept };
        let path = self.directory.join("owner.json");
        fs::write(&path, serde_json::to_vec(&owner)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Unique among the labs of this machine.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// For the files of this lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a file into [`Lab::directory`] that root alone may read, and returns where it is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn secret(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        let mut file = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Where a daemon of this lab pins its maps.
    pub fn pin_directory(&self, name: &str) -> PathBuf {
        Path::new(BPF_FS).join(format!("{PREFIX}{}-{name}", self.id))
    }

    /// Leaves everything standing, also after this process has ended. To be called before anything is
    /// started: programs started earlier end with their owner.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn keep(&self) -> Result<()> {
        self.write_owner(true)?;
        self.keep.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes [`Lab::keep`] back.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn unkeep(&self) -> Result<()> {
        self.keep.store(false, Ordering::Relaxed);
        self.write_owner(false)
    }

    /// A namespace of this lab, `matapa-lab-ID-NAME`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn netns(&self, name: &str) -> Result<Netns> {
        Netns::create(&format!("{PREFIX}{}-{name}", self.id))
    }

    /// `program` by name or path, marked as this lab's.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let program = program.as_ref();
        let path = match program.to_str() {
            Some(name) if !name.contains('/') => process::find(name)?,
            _ => program.to_owned(),
        };
        let mut command = Command::new(path);
        command.env(MARKER, &self.id);
        Ok(command)
    }

    /// Starts a program that runs until stopped; its output goes to files named after `label`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, netns: &Netns, label: &str, command: Command) -> Result<Process> {
        Process::start(command, Some(netns), &self.directory, label, &self.keep, false)
    }

    pub(crate) fn start_piped(&self, netns: &Netns, label: &str, command: Command) -> Result<Process> {
        Process::start(command, Some(netns), &self.directory, label, &self.keep, true)
    }

    /// Runs a program to its end, or kills it after `limit`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn finish(&self, netns: &Netns, command: Command, limit: Duration) -> Result<Finished> {
        process::finish(command, Some(netns), None, limit)
    }

    /// What would be left if the lab went away now; for tests of the removal itself.
    pub fn leftovers(id: &str) -> Vec<String> {
        let mut found: Vec<String> =
            netns::list(&format!("{PREFIX}{id}-")).into_iter().map(|(name, _)| name).collect();
        found.extend(members(id).into_iter().map(|pid| format!("process {pid}")));
        found.extend(pins(id).into_iter().map(|path| path.display().to_string()));
        if Path::new(STATE).join(id).exists() {
            found.push(format!("{STATE}/{id}"));
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Relaxed)
            && let Err(error) = remove(&self.id)
        {
            eprintln!("the lab could not be removed completely: {error:#}");
        }
    }
}

/// A test that fails waits as long as [`HOLD`] says before its network is removed.
fn hold_on_panic() {
    static ONCE: Once = Once::new();
    let Some(seconds) = std::env::var(HOLD).ok().and_then(|text| text.parse().ok()) else { return };
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            usual(info);
            let pid = std::process::id();
            eprintln!("{info}\nThe network stands for {seconds} s, in namespaces {PREFIX}{pid}-*.");
            std::thread::sleep(Duration::from_secs(seconds));
        }));
    });
}

/// Removes every lab that is not in use: those left standing with `--keep` and those of crashed runs.
///
/// # Errors
/// When one cannot be removed.
pub fn clean() -> Result<Vec<String>> {
    sweep(true)
}

/// Removes labs whose owner is gone; those left standing on purpose only when `kept`.
fn sweep(kept: bool) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(STATE) else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        // One without a readable owner is being made or removed at this moment.
        let Ok(text) = fs::read(entry.path().join("owner.json")) else { continue };
        let Ok(owner) = serde_json::from_slice::<Owner>(&text) else { continue };
        if owner.alive() || (owner.kept && !kept) {
            continue;
        }
        remove(&id).with_context(|| format!("cannot remove the earlier lab {id}"))?;
        removed.push(id);
    }
    Ok(removed)
}

/// Processes first, since they hold the namespaces; the state last, so that a failure can be retried.
fn remove(id: &str) -> Result<()> {
    process::wait_quietly(Duration::from_secs(5), || {
        let pids = members(id);
        for pid in &pids {
            // SAFETY: kill takes integers. The process carries this lab's mark or sits in its namespace.
            unsafe { libc::kill(*pid, libc::SIGKILL) };
        }
        pids.is_empty()
    });
    let mut failed = None;
    for path in pins(id) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed {
            failed = Some(anyhow::Error::new(error).context(format!("cannot remove {}", path.display())));
        }
    }
    for (name, _) in netns::list(&format!("{PREFIX}{id}-")) {
        if let Err(error) = netns::delete(&name) {
            failed = Some(error);
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let directory = Path::new(STATE).join(id);
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

/// Pin directories of a lab.
fn pins(id: &str) -> Vec<PathBuf> {
    let prefix = format!("{PREFIX}{id}-");
    let Ok(entries) = fs::read_dir(BPF_FS) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Processes that are certainly this lab's: they carry its mark, or they live in one of its namespaces.
fn members(id: &str) -> Vec<i32> {
    let spaces: Vec<u64> =
        netns::list(&format!("{PREFIX}{id}-")).into_iter().filter_map(|(_, inode)| inode).collect();
    let mark = format!("{MARKER}={id}").into_bytes();
    let own = std::process::id().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let pid: i32 = name.parse().ok()?;
            if name == own || is_zombie(pid) {
                return None;
            }
            let marked = || {
                fs::read(entry.path().join("environ"))
                    .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == mark))
            };
            let inside = || {
                use std::os::unix::fs::MetadataExt;
                fs::metadata(entry.path().join("ns/net"))
                    .is_ok_and(|metadata| spaces.contains(&metadata.ino()))
            };
            (inside() || marked()).then_some(pid)
        })
        .collect()
}

fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain anything; fields are counted after it.
    Some(stat[stat.rfind(')')? + 1..].split_whitespace().map(str::to_owned).collect())
}

fn is_zombie(pid: i32) -> bool {
    u32::try_from(pid).ok().and_then(stat_fields).is_none_or(|fields| fields.first().is_none_or(|s| s == "Z"))
}

/// Field 22 of /proc/PID/stat.
fn start_time(pid: u32) -> Option<u64> {
    stat_fields(pid)?.get(19)?.parse().ok()
}
