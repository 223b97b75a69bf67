//! A program of the operator's that says by its exit code whether a server is well.
//!
//! It has a process group of its own, which is killed as a whole when the time is over, or after the program's end. What it
//! prints first is shown with the error, as is usual with monitoring plugins.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, User};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout_at;

use super::{Examined, Path};
use crate::config::Exec;
use crate::health::checker::sandbox;
use crate::health::error::excerpt;
use crate::health::{CheckError, Stage};

/// How much of what a program prints is kept, in bytes. The rest is read and thrown away, so that it does not wait.
const KEPT: usize = 1024;

/// Runs the program.
pub(super) async fn examine(path: Path, exec: &Exec) -> Examined {
    let mut command = match command(path, exec).await {
        Ok(command) => command,
        Err(error) => return error.into(),
    };
    let mut child = match command.spawn() {
        Ok(child) => child,
        // Not what a connection's error would mean.
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            return match &exec.user {
                Some(user) if errno == libc::EPERM => CheckError::MayNotBecome(user.clone()),
                _ => CheckError::Local { stage: Stage::Command, errno },
            }
            .into();
        }
    };
    let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let mut stdout = child.stdout.take();
    let mut said = Vec::new();
    let ended = timeout_at(path.deadline, async {
        tokio::select! {
            status = child.wait() => status,
            () = read(&mut stdout, &mut said) => child.wait().await,
        }
    })
    .await;
    drop(group);
    match ended {
        Err(_elapsed) => {
            Examined::verdict(Err(CheckError::Timeout(Stage::Command))).with_farewell(reap(child))
        }
        Ok(Err(error)) => {
            let errno = error.raw_os_error().unwrap_or(0);
            CheckError::Local { stage: Stage::Command, errno }.into()
        }
        Ok(Ok(status)) if status.success() => Examined::verdict(Ok(())),
        Ok(Ok(status)) => {
            drain(&mut stdout, &mut said).await;
            let text = excerpt(&said);
            Examined::verdict(Err(match (status.code(), status.signal()) {
                (None, Some(signal)) => CheckError::Signal(signal),
                (code, _) => CheckError::ExitCode { code: code.unwrap_or(-1), text },
            }))
        }
    }
}

/// With nothing of the daemon's environment, and as the user that is configured.
async fn command(path: Path, exec: &Exec) -> Result<Command, CheckError> {
    let address = path.address.ip().to_string();
    let port = path.address.port().to_string();
    let mut words =
        exec.command.iter().map(|word| word.replace("{address}", &address).replace("{port}", &port));
    let mut command = Command::new(words.next().unwrap_or_default());
    command
        .args(words)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("MATAPA_ADDRESS", &address)
        .env("MATAPA_PORT", &port)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let local = |error: io::Error| CheckError::from_io(&error, Stage::Command);
    let mut sandbox = Some(sandbox::for_programs().map_err(local)?);
    let confine = move || {
        give_up()?;
        let sandbox = sandbox.take().ok_or(io::ErrorKind::InvalidInput)?;
        // What is refused needs no memory to be told.
        sandbox.restrict_self().map(drop).map_err(|_| io::ErrorKind::PermissionDenied.into())
    };
    // SAFETY: it makes system calls and takes no memory, which is allowed between fork and exec.
    unsafe { command.pre_exec(confine) };
    if let Some(name) = &exec.user {
        let user = name.clone();
        // Where users come from a directory service, this may wait.
        let found = tokio::task::spawn_blocking(move || User::from_name(&user)).await;
        let Ok(Ok(Some(user))) = found else { return Err(CheckError::NoUser(name.clone())) };
        // Without root's other groups: the standard library drops them along with root.
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(command)
}

/// Gives up every capability, and the way to get any: a program that asks a server something needs none. Without new
/// privileges, not even root's programs get them back (capabilities(7)).
fn give_up() -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`: two sets of three words.
    const VERSION: u32 = 0x2008_0522;
    nix::sys::prctl::set_no_new_privs()?;
    let (header, none) = ([VERSION, 0], [[0_u32; 3]; 2]);
    // SAFETY: header and data are as long as this version's, and outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The program and all that it started, killed when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Where all have ended, there is nothing to kill.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// It has been killed.
async fn reap(mut child: Child) {
    let _ = child.wait().await;
}

/// Until everybody who could write has gone.
async fn read(stdout: &mut Option<ChildStdout>, said: &mut Vec<u8>) {
    let Some(stdout) = stdout else { return std::future::pending().await };
    let mut buffer = [0; KEPT];
    while let Ok(length @ 1..) = stdout.read(&mut buffer).await {
        let room = KEPT - said.len();
        said.extend_from_slice(&buffer[..length.min(room)]);
    }
}

/// What is in the pipe at the program's end. Nobody writes any more: the whole group is dead.
async fn drain(stdout: &mut Option<ChildStdout>, said: &mut Vec<u8>) {
    const SOON: std::time::Duration = std::time::Duration::from_millis(50);
    let _ = tokio::time::timeout(SOON, read(stdout, said)).await;
}
