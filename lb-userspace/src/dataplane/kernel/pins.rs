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

/// Name of the directory of new maps until they are complete.
const NEXT: &str = "next";
/// Its name from then on, until they are in the place of the old ones.
const SWITCHING: &str = "switching";

/// The beginning of the names of directories of loaded programs, each named after what they were loaded from.
const PROGRAMS: &str = "programs-";
/// The name of such a directory until it is complete.
const LOADING: &str = "loading";

/// Which of the pinned maps, while flows move from old ones to new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapSet {
    /// Those in their usual place. Without [`Self::Switching`], the only ones that packets use.
    Usual,
    /// New ones that are being filled. No packet uses them.
    Next,
    /// New ones that are complete: packets use them already, or are about to, and there is no way back.
    Switching,
}

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
        self.map_of(MapSet::Usual, name)
    }

    /// Of a set, the pin of the map of this name.
    pub fn map_of(&self, set: MapSet, name: &str) -> PathBuf {
        match set {
            MapSet::Usual => self.dir.join(name),
            MapSet::Next => self.dir.join(NEXT).join(name),
            MapSet::Switching => self.dir.join(SWITCHING).join(name),
        }
    }

    /// Makes an empty directory for new maps.
    ///
    /// # Errors
    /// When the BPF file system refuses.
    pub fn make_next(&self) -> io::Result<()> {
        self.remove_next()?;
        fs::create_dir(self.dir.join(NEXT))
    }

    /// Removes new maps that no packet uses.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_next(&self) -> io::Result<()> {
        remove_directory(&self.dir.join(NEXT))
    }

    /// The new maps are complete: whatever happens, they will take the place of the old ones.
    ///
    /// # Errors
    /// When the BPF file system refuses.
    pub fn begin_switch(&self) -> io::Result<()> {
        fs::rename(self.dir.join(NEXT), self.dir.join(SWITCHING))
    }

    /// Puts the new maps in the place of the old ones, one by one. No packet uses the old ones any more.
    ///
    /// # Errors
    /// When a pin cannot be moved. What is left is moved when this is called again.
    pub fn end_switch(&self) -> io::Result<()> {
        let new = self.dir.join(SWITCHING);
        for entry in fs::read_dir(&new)? {
            let name = entry?.file_name();
            fs::rename(new.join(&name), self.dir.join(&name))?;
        }
        fs::remove_dir(new)
    }

    /// Finishes or takes back what an earlier daemon was doing when it ended. True when maps of `names` are there that
    /// are complete and not in their place, all of them: flows may still have to be moved to them.
    ///
    /// # Errors
    /// When a pin cannot be moved or removed.
    pub fn settle(&self, names: &[&str]) -> io::Result<bool> {
        self.remove_next()?;
        self.remove_loading()?;
        if !self.dir.join(SWITCHING).exists() {
            return Ok(false);
        }
        if names.iter().all(|name| self.map_of(MapSet::Switching, name).exists()) {
            return Ok(true);
        }
        // Some are in their place already, so that all flows had been moved.
        self.end_switch()?;
        Ok(false)
    }

    /// The directory of the programs of this fingerprint, all of them.
    pub fn instance(&self, fingerprint: &str) -> PathBuf {
        self.dir.join(format!("{PROGRAMS}{fingerprint}"))
    }

    /// The directory of programs that are not all there yet.
    pub fn loading(&self) -> PathBuf {
        self.dir.join(LOADING)
    }

    /// Makes that directory, empty.
    ///
    /// # Errors
    /// When the BPF file system refuses.
    pub fn make_loading(&self) -> io::Result<PathBuf> {
        self.remove_loading()?;
        fs::create_dir(self.loading())?;
        Ok(self.loading())
    }

    /// Removes it, with what a daemon has left there that ended too early.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_loading(&self) -> io::Result<()> {
        remove_directory(&self.loading())
    }

    /// They are all there now.
    ///
    /// # Errors
    /// When the BPF file system refuses.
    pub fn end_loading(&self, fingerprint: &str) -> io::Result<()> {
        let dir = self.instance(fingerprint);
        remove_directory(&dir)?;
        fs::rename(self.loading(), dir)
    }

    /// Removes the directories of programs other than this one, and of those that are being loaded.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn keep_instance(&self, kept: Option<&Path>) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if (name.starts_with(PROGRAMS) || name == LOADING) && Some(path.as_path()) != kept {
                remove_directory(&path)?;
            }
        }
        Ok(())
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
            if path.is_dir() { remove_directory(&path)? } else { fs::remove_file(path)? }
        }
        fs::remove_dir(&self.dir)
    }

    /// Removes the pins of maps and programs: what an interrupted first start left.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_maps(&self) -> io::Result<()> {
        self.keep_instance(None)?;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if !path.is_dir() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Removes a directory of pins, if it is there.
fn remove_directory(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(dir)
}

/// Mounts the BPF file system where it belongs if that is missing.
///
/// # Errors
/// When `dir` is elsewhere, or the mount is refused.
pub fn ensure_bpf_fs(dir: &Path) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["CONTROL", "FLOWS", "TABLES"];

    /// Files stand for pins. `usual` and `new` say what is in them.
    fn pins(usual: &str, new: &str) -> (tempfile::TempDir, Pins) {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::open_existing(dir.path()).unwrap().unwrap();
        fs::create_dir(dir.path().join("links")).unwrap();
        for name in NAMES {
            fs::write(pins.map(name), usual).unwrap();
        }
        pins.make_next().unwrap();
        for name in NAMES {
            fs::write(pins.map_of(MapSet::Next, name), new).unwrap();
        }
        (dir, pins)
    }

    fn contents(pins: &Pins) -> Vec<String> {
        NAMES.iter().map(|name| fs::read_to_string(pins.map(name)).unwrap()).collect()
    }

    #[test]
    fn new_maps_that_are_not_complete_are_removed() {
        let (dir, pins) = pins("old", "new");
        assert!(!pins.settle(&NAMES).unwrap());
        assert_eq!(contents(&pins), ["old"; 3]);
        assert!(!dir.path().join(NEXT).exists());
        // Nothing to do is no error.
        assert!(!pins.settle(&NAMES).unwrap());
    }

    #[test]
    fn complete_ones_take_the_place_of_the_old_ones_wherever_it_was_interrupted() {
        for moved in 0..=NAMES.len() {
            let (dir, pins) = pins("old", "new");
            pins.begin_switch().unwrap();
            for name in &NAMES[..moved] {
                fs::rename(pins.map_of(MapSet::Switching, name), pins.map(name)).unwrap();
            }
            let still_moving = pins.settle(&NAMES).unwrap();
            assert_eq!(still_moving, moved == 0, "{moved} moved");
            if still_moving {
                assert_eq!(contents(&pins), ["old"; 3]);
                pins.end_switch().unwrap();
            }
            assert_eq!(contents(&pins), ["new"; 3], "{moved} moved");
            assert!(!dir.path().join(SWITCHING).exists());
        }
    }

    #[test]
    fn programs_have_their_place_only_once_they_are_all_there_and_others_go() {
        let (dir, pins) = pins("old", "new");
        fs::write(pins.make_loading().unwrap().join("matapa_xdp"), "first").unwrap();
        pins.end_loading("one").unwrap();
        // Interrupted.
        fs::write(pins.make_loading().unwrap().join("matapa_xdp"), "second").unwrap();
        assert!(!pins.instance("two").exists());
        fs::write(pins.make_loading().unwrap().join("matapa_clock"), "third").unwrap();
        pins.end_loading("two").unwrap();
        let names =
            |dir: PathBuf| fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(pins.instance("two")), ["matapa_clock"], "nothing of the interrupted one");
        pins.keep_instance(Some(&pins.instance("two"))).unwrap();
        assert!(!pins.instance("one").exists() && pins.instance("two").exists());
        pins.remove_maps().unwrap();
        assert!(!pins.instance("two").exists());
        assert!(dir.path().join("links").exists());
    }

    #[test]
    fn all_pins_are_removed_in_the_middle_of_a_move() {
        let (dir, first) = pins("old", "new");
        fs::write(first.make_loading().unwrap().join("matapa_xdp"), "").unwrap();
        first.end_loading("one").unwrap();
        first.begin_switch().unwrap();
        first.make_next().unwrap();
        first.remove_all().unwrap();
        assert!(!dir.path().exists());
    }
}
