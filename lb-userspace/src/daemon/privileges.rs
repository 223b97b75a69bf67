//! What the daemon may do: what its work needs, and nothing else of what root may.

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use log::{debug, warn};

/// As packaging/matapa.service and packaging/exec-checks.conf have it.
const NEEDED: [Capability; 9] = [
    // Programs and maps.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // Interfaces, neighbours, settings of the network.
    Capability::CAP_NET_ADMIN,
    // Resets, CARP, `icmp` checks.
    Capability::CAP_NET_RAW,
    // `control.metrics` may have a port below 1024.
    Capability::CAP_NET_BIND_SERVICE,
    // Sockets are given to `control.group` and `control.read_only_group`.
    Capability::CAP_CHOWN,
    // `exec` checks run as another user, and are killed when their time is over.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_KILL,
];

/// Where a checkout or a key is, root may not be allowed to read without it. Not for the service, whose files are root's.
const BY_HAND: Capability = Capability::CAP_DAC_READ_SEARCH;

/// Gives up all other capabilities, and the way to get them back. To be called while there is one thread: capabilities are
/// each thread's own (capabilities(7)). What cannot be given up is told, and kept.
pub fn give_up() {
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        warn!("programs that the daemon starts may get new privileges: {error}");
    }
    if let Err(error) = keep_needed() {
        warn!("the daemon keeps more capabilities than it needs: {error}");
    }
}

fn keep_needed() -> Result<(), CapsError> {
    let needed: CapsHashSet = NEEDED.into_iter().chain([BY_HAND]).collect();
    // The way back first, as that needs CAP_SETPCAP. Who lacks it was started with few to begin with.
    for capability in caps::read(None, CapSet::Bounding)?.difference(&needed) {
        if let Err(error) = caps::drop(None, CapSet::Bounding, *capability) {
            debug!("{capability} stays in the bounding set: {error}");
        }
    }
    caps::clear(None, CapSet::Inheritable)?;
    let kept: CapsHashSet = caps::read(None, CapSet::Permitted)?.intersection(&needed).copied().collect();
    // What is not effective can be taken from the permitted, not the other way round.
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}
