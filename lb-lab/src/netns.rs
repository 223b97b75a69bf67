//! Named network namespaces, entered with setns(2).
//!
//! `ip netns exec` is avoided on purpose: it mounts a fresh /sys and thereby hides the BPF file system.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::process::run_tool;

const DIRECTORY: &str = "/run/netns";

/// A network namespace under /run/netns. The [`Lab`](crate::Lab) that made it removes it.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Makes the namespace `name` with its loopback up.
    ///
    /// # Errors
    /// When it exists already or may not be made.
    pub(crate) fn create(name: &str) -> Result<Self> {
        run_tool("ip", &["netns", "add", name], None)?;
        let path = PathBuf::from(DIRECTORY).join(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let netns = Self { name: name.to_owned(), file: Arc::new(file) };
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// As under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `nsenter --net=` takes.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(&self.name)
    }

    pub(crate) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Runs `ip` commands inside, one a line.
    ///
    /// # Errors
    /// With what `ip` printed, when one of them fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        run_tool("ip", &["-n", &self.name, "-batch", "-"], Some(batch))
            .with_context(|| format!("in namespace {}", self.name))
            .map(drop)
    }

    /// Writes `net/...` settings below /proc/sys.
    ///
    /// # Errors
    /// Naming the first setting that cannot be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                // /proc/sys/net shows the namespace of the thread that looks at it.
                std::fs::write(PathBuf::from("/proc/sys/net").join(key), value)
                    .with_context(|| format!("cannot set net/{key} to {value} in {}", self.name))?;
            }
            Ok(())
        })?
    }

    /// Runs `work` on a thread inside and waits for it.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| self.enter().map(|()| work()))
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Starts a thread inside that runs `work`.
    ///
    /// # Errors
    /// When the thread cannot be started; joining it tells whether it could enter.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let inside = self.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || inside.enter().map(|()| work()))
            .context("cannot start a thread")
    }

    /// Moves the calling thread, and nothing else, into the namespace.
    fn enter(&self) -> Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter namespace {}", self.name))
    }
}

/// The namespaces whose name starts with `prefix`, with their inodes.
pub(crate) fn list(prefix: &str) -> Vec<(String, Option<u64>)> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.starts_with(prefix).then(|| (name, entry.metadata().ok().map(|metadata| metadata.ino())))
        })
        .collect()
}

/// # Errors
/// When `ip` cannot remove it.
pub(crate) fn delete(name: &str) -> Result<()> {
    run_tool("ip", &["netns", "delete", name], None).map(drop)
}
