//! The directory in the BPF file system where link, program and maps outlive the daemon.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::link::take_off;
use anyhow::{Context as _, bail};
use log::info;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

/// Where pins are unless `MATAPA_PIN_DIR` says otherwise.
pub const DEFAULT_DIR: &str = "/sys/fs/bpf/matapa";

/// BPF_FS_MAGIC of linux/magic.h.
const BPF_FS: FsType = FsType(0xcafe_4a11);
/// Name of the pin of the program's stages, and the beginning of the names of new ones.
const STAGES: &str = "stages";
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// The directory, held by one daemon at a time.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
    _lock: Flock<File>,
}

/// The directory that pins go to.
pub fn directory() -> PathBuf {
    std::env::var_os("MATAPA_PIN_DIR")
        .filter(|d| !d.is_empty())
        .map_or_else(|| DEFAULT_DIR.into(), PathBuf::from)
}

/// All pinned links of a directory, whoever has it.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn links_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir.join("links"))?.map(|entry| Ok(entry?.path())).collect()
}

impl Pins {
    /// Makes sure that the directory is there and ours alone.
    ///
    /// # Errors
    /// Without privileges, without a BPF file system, or when another daemon has it.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        ensure_bpf_fs(dir)?;
        fs::create_dir_all(dir.join("links")).with_context(|| {
            format!("cannot create {}; the daemon must be started as root", dir.display())
        })?;
        Self::lock(dir)
    }

    /// As [`Self::open`] for a directory that is there already; `None` when it is not.
    ///
    /// # Errors
    /// When another daemon has it, or it cannot be read.
    pub fn open_existing(dir: &Path) -> anyhow::Result<Option<Self>> {
        match fs::metadata(dir) {
            Ok(_) => Self::lock(dir).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}; run this as root", dir.display()))
            }
        }
    }

    fn lock(dir: &Path) -> anyhow::Result<Self> {
        let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
                "another matapa daemon holds {}; stop it first, or give this one a directory of its own in \
                 MATAPA_PIN_DIR",
                dir.display()
            ),
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", dir.display())),
        }
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where a map is for a moment while another instance of the program, of this kind, is loaded.
    pub fn passing(&self, name: &str, kind: u32) -> PathBuf {
        self.dir.join(format!("passing-{name}-{kind}"))
    }

    pub fn program(&self) -> PathBuf {
        self.dir.join("program")
    }

    /// The array of the program's stages.
    pub fn stages(&self) -> PathBuf {
        self.dir.join(STAGES)
    }

    /// The pins of all such arrays: also of those that a daemon had not yet put in their place when it ended.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn all_stages(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(STAGES) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Where a new one is pinned until it is the only one in use.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn new_stages(&self) -> io::Result<PathBuf> {
        let taken = self.all_stages()?;
        let names = (1u32..).map(|number| self.dir.join(format!("{STAGES}-{number}")));
        names
            .into_iter()
            .find(|path| !taken.contains(path))
            .ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))
    }

    /// The pin of the link of an interface: its name says which interface it was made for and how.
    pub fn link(&self, interface: &str, index: u32, mode: &str) -> PathBuf {
        self.dir.join("links").join(format!("{interface}@{index}@{mode}"))
    }

    /// All pinned links.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn links(&self) -> io::Result<Vec<PathBuf>> {
        match links_in(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            links => links,
        }
    }

    /// Removes every pin, links first: forwarding stops here, and the kernel frees the maps.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_all(self) -> io::Result<()> {
        for link in self.links()? {
            take_off(&link)?;
        }
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir(path)? } else { fs::remove_file(path)? }
        }
        fs::remove_dir(&self.dir)
    }

    /// Removes the pins of maps and program: what an interrupted first start left.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_maps(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if !path.is_dir() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Mounts the BPF file system where it belongs if that is missing.
fn ensure_bpf_fs(dir: &Path) -> anyhow::Result<()> {
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if statfs(there).is_ok_and(|stat| stat.filesystem_type() == BPF_FS) {
        return Ok(());
    }
    if !dir.starts_with(MOUNT_POINT) {
        bail!(
            "{} is not on a BPF file system, where pins must be; mount one with `mount -t bpf bpf DIR`",
            dir.display()
        );
    }
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
        format!(
            "no BPF file system at {MOUNT_POINT} and mounting one failed; \
             run as root: mount -t bpf bpf {MOUNT_POINT}"
        )
    })?;
    info!("mounted the BPF file system at {MOUNT_POINT}");
    Ok(())
}
