//! What checks may not do.
//!
//! Landlock takes rights from a thread and all that it starts, for good (landlock(7)). It is there since Linux 5.13, unless
//! the kernel was built or started without it; newer kernels can take more.

use std::io;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use log::{debug, warn};

/// The newest that is asked for; of an older one, what it has.
const LANDLOCK: ABI = ABI::V6;

/// For `icmp` checks and the way through a VIP.
const NEEDED: Capability = Capability::CAP_NET_RAW;

/// Where programs of `exec` checks may write.
const WRITABLE: [&str; 3] = ["/tmp", "/var/tmp", "/dev"];

/// From here on this thread, and what it starts, has one capability, opens no file, starts no program, and signals nobody
/// outside. To be called while there is one thread.
///
/// # Errors
/// When the kernel refuses what it has to offer. That it offers less is told in the log.
pub fn enter() -> anyhow::Result<()> {
    let kept: CapsHashSet =
        caps::read(None, CapSet::Permitted)?.into_iter().filter(|one| *one == NEEDED).collect();
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    match rules(AccessFs::from_all(LANDLOCK))?.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            debug!("this kernel's Landlock can take less from checks than newer ones");
        }
        RulesetStatus::NotEnforced => {
            warn!(
                "checks could open files, if they were tricked: this kernel has no Landlock, or runs without it"
            );
        }
    }
    Ok(())
}

fn rules(handled: landlock::BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    Ruleset::default().handle_access(handled)?.scope(Scope::from_all(LANDLOCK))?.create()
}

/// Rules for programs of `exec` checks: they may read everything that their user may, and write temporary files.
/// To be entered between fork and exec.
///
/// # Errors
/// When the kernel refuses, or a directory cannot be opened.
pub(in crate::health) fn for_programs() -> io::Result<RulesetCreated> {
    let beneath = |path: &str, access| -> io::Result<_> {
        Ok(PathBeneath::new(PathFd::new(path).map_err(io::Error::other)?, access))
    };
    let mut ruleset = rules(AccessFs::from_all(LANDLOCK)).map_err(io::Error::other)?;
    ruleset = ruleset.add_rule(beneath("/", AccessFs::from_read(LANDLOCK))?).map_err(io::Error::other)?;
    for path in WRITABLE.into_iter().filter(|path| Path::new(path).is_dir()) {
        ruleset = ruleset.add_rule(beneath(path, AccessFs::from_all(LANDLOCK))?).map_err(io::Error::other)?;
    }
    Ok(ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of one thread, as capabilities and Landlock are.
    fn confined(attempt: fn() -> io::Result<()>) -> io::ErrorKind {
        let thread = std::thread::spawn(move || {
            attempt().unwrap();
            enter().unwrap();
            attempt().unwrap_err().kind()
        });
        thread.join().unwrap()
    }

    #[test]
    fn no_file_is_opened_and_no_program_started_in_the_sandbox() {
        let denied = io::ErrorKind::PermissionDenied;
        assert_eq!(confined(|| std::fs::read("/etc/passwd").map(drop)), denied);
        assert_eq!(confined(|| tempfile::tempfile().map(drop)), denied);
        assert_eq!(confined(|| std::fs::read_dir("/").map(drop)), denied);
        assert_eq!(confined(|| std::process::Command::new("/bin/true").status().map(drop)), denied);
    }

    #[test]
    fn no_capability_but_that_for_raw_sockets_is_kept() {
        std::thread::spawn(|| {
            enter().unwrap();
            for set in [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable] {
                let kept = caps::read(None, set).unwrap();
                assert!(kept.iter().all(|one| *one == NEEDED), "{set:?}: {kept:?}");
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn programs_write_temporary_files_only() {
        let thread = std::thread::spawn(|| {
            for_programs().unwrap().restrict_self().unwrap();
            std::fs::read("/etc/passwd").unwrap();
            tempfile::tempfile_in("/tmp").unwrap();
            std::fs::write("/dev/null", "x").unwrap();
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/written"), "x").unwrap_err().kind()
        });
        assert_eq!(thread.join().unwrap(), io::ErrorKind::PermissionDenied);
    }
}
