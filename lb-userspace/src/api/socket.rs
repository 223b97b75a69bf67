//! The path of the control socket: taken over from a dead daemon, never from a living one.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Group};
use tokio::net::{UnixListener, UnixStream, unix};

/// Owner and group may talk to the daemon, others may not.
const SOCKET_MODE: u32 = 0o660;
/// The path of a Unix socket, without its terminating zero.
const LONGEST_PATH: usize = 107;
/// How long another daemon may take to claim a socket in the same directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The control socket of this daemon, listening. Removed from the file system when dropped, if it is still ours.
#[derive(Debug)]
pub struct ControlSocket {
    listener: StdListener,
    path: OwnedPath,
}

/// Takes the socket at `path` for this daemon and listens on it.
///
/// The directory is created when missing. A socket nobody answers on is a dead daemon's and is replaced.
///
/// # Errors
/// When another daemon answers there, when something else is in the way, or when the system refuses.
pub fn claim(path: &Path) -> Result<ControlSocket> {
    claim_for("control.socket", path, None)
}

/// As [`claim`], for the members of a group. `key` is what the configuration calls it.
///
/// # Errors
/// Also when there is no such group, or the daemon may not give its socket to it.
pub fn claim_for(key: &str, path: &Path, group: Option<&str>) -> Result<ControlSocket> {
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        bail!(
            "{key} is {length} bytes long and a Unix socket's path can have {LONGEST_PATH}; \
             choose a shorter one"
        );
    }
    let path = std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))?;
    let directory = path.parent().ok_or_else(|| anyhow!("{key} is a directory, not a file"))?;
    let group = group.map(|name| group_id(key, name)).transpose()?;
    create_directory(directory)
        .with_context(|| format!("cannot create the directory {} of {key}", directory.display()))?;
    // Without the lock two daemons starting at once could each take the other's fresh socket for a stale one.
    let _lock = lock(key, directory)?;
    make_room(key, &path)?;
    let listener = listen_on(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let metadata =
        fs::symlink_metadata(&path).with_context(|| format!("cannot inspect {}", path.display()))?;
    let path = OwnedPath { device: metadata.dev(), inode: metadata.ino(), path };
    if let Some(gid) = group {
        std::os::unix::fs::lchown(&path.path, None, Some(gid.as_raw())).with_context(|| {
            format!(
                "cannot give {} to its group; that takes root, and CAP_CHOWN in a service's unit",
                path.path.display()
            )
        })?;
    }
    Ok(ControlSocket { listener, path })
}

impl ControlSocket {
    /// Where it listens, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path.path
    }

    /// The same socket for use inside a tokio runtime.
    ///
    /// # Errors
    /// When the runtime has no I/O driver, or the system refuses.
    pub fn into_listener(self) -> io::Result<ControlListener> {
        let Self { listener, path } = self;
        listener.set_nonblocking(true)?;
        Ok(ControlListener { listener: UnixListener::from_std(listener)?, _path: path })
    }
}

/// A [`ControlSocket`] that axum can serve.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    _path: OwnedPath,
}

impl axum::serve::Listener for ControlListener {
    type Io = UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        axum::serve::Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Removes the socket on drop, unless another daemon has put its own there since.
#[derive(Debug)]
struct OwnedPath {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A group by its name, or by its number where no group has that name.
fn group_id(key: &str, name: &str) -> Result<Gid> {
    let found =
        Group::from_name(name).with_context(|| format!("cannot look up the group {name} for {key}"))?;
    let number = || name.parse().ok().map(Gid::from_raw);
    found.map(|group| group.gid).or_else(number).ok_or_else(|| {
        anyhow!("there is no group {name} for {key}; `getent group` lists those that there are, `groupadd {name}` makes it")
    })
}

fn create_directory(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    // A strict umask must not hide the socket from its group.
    fs::set_permissions(directory, Permissions::from_mode(0o755))
}

fn lock(key: &str, directory: &Path) -> Result<Flock<File>> {
    let mut file = File::open(directory)
        .with_context(|| format!("cannot open the directory {}", directory.display()))?;
    let started = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((returned, nix::errno::Errno::EWOULDBLOCK)) if started.elapsed() < LOCK_PATIENCE => {
                file = returned;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, error)) => bail!(
                "cannot lock the directory {} of {key}: {}; is another matapa daemon starting there?",
                directory.display(),
                error.desc()
            ),
        }
    }
}

/// Removes what a dead daemon left; refuses to remove anything else.
fn make_room(key: &str, path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot inspect {}", path.display())),
    };
    if !metadata.file_type().is_socket() {
        bail!("{} exists and is not a socket; remove it or choose another {key}", path.display());
    }
    match StdStream::connect(path) {
        Ok(stream) => {
            let owner = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)
                .ok()
                .filter(|peer| peer.pid() > 0)
                .map(|peer| format!(" (pid {})", peer.pid()))
                .unwrap_or_default();
            bail!(
                "another matapa daemon{owner} owns {}; stop it or give this one another {key}",
                path.display()
            )
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("{} was left by a daemon that is gone; replacing it", path.display());
            fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale socket {}", path.display()))
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot tell whether a daemon listens on {}", path.display()))
        }
    }
}

fn listen_on(path: &Path) -> io::Result<StdListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the socket's own mode less the umask: at no instant more than SOCKET_MODE.
    fchmod(&descriptor, Mode::from_bits_truncate(SOCKET_MODE))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    listen(&descriptor, Backlog::new(128)?)?;
    Ok(StdListener::from(descriptor))
}
