//! Programs the lab runs: found, started in a namespace, captured, and ended with their owner.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;
use crate::netns::Netns;

/// How long a helper such as `ip` may take.
const TOOL_LIMIT: Duration = Duration::from_secs(20);

/// Where `program` is: in the directory `MATAPA_TOOLS` names, on the path, or among the system's programs.
///
/// # Errors
/// Naming the program and how to get it.
pub fn find(program: &str) -> Result<PathBuf> {
    let tools = std::env::var_os("MATAPA_TOOLS").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    tools
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("the program {program} is missing: run `cargo xtask setup`"))
}

/// What a program that ran to its end left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// `None`: it was killed at its deadline.
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    /// Whether it ended with exit code 0.
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// `None` for one that a signal ended.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// The output, of a program that succeeded.
    ///
    /// # Errors
    /// With its own words, when it did not.
    pub fn expect(self, what: &str) -> Result<String> {
        if self.ok() {
            return Ok(self.stdout);
        }
        let end = self.status.map_or_else(|| "took too long".to_owned(), |status| status.to_string());
        bail!("{what}: {end}: {}{}", self.stderr.trim(), self.stdout.trim())
    }
}

/// Runs `program`, by name, outside any namespace.
pub(crate) fn run_tool<S: AsRef<OsStr>>(program: &str, args: &[S], input: Option<&str>) -> Result<String> {
    let mut command = Command::new(find(program)?);
    command.args(args);
    let words = args.iter().map(|arg| arg.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    // Ctrl-C does not cut it short: the clean-up needs it, too.
    finish_unless(command, None, input, TOOL_LIMIT, &|| false)?.expect(&format!("{program} {words}"))
}

/// Runs `command` inside `netns` to its end, or kills it after `limit`.
///
/// # Errors
/// When it cannot be started, or on Ctrl-C.
pub(crate) fn finish(
    command: Command,
    netns: Option<&Netns>,
    input: Option<&str>,
    limit: Duration,
) -> Result<Finished> {
    let finished = finish_unless(command, netns, input, limit, &interrupt::requested)?;
    interrupt::check()?;
    Ok(finished)
}

/// As [`finish`]; killed also when `give_up` says so, and otherwise not on Ctrl-C.
pub(crate) fn finish_unless(
    mut command: Command,
    netns: Option<&Netns>,
    input: Option<&str>,
    limit: Duration,
    give_up: &dyn Fn() -> bool,
) -> Result<Finished> {
    let start = Instant::now();
    let mut stdout = tempfile::tempfile().context("cannot make a file for the output")?;
    let mut stderr = tempfile::tempfile().context("cannot make a file for the output")?;
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    prepare(&mut command, netns, true);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        // One that ends without reading its input says why itself.
        let _ = pipe.write_all(text.as_bytes());
    }
    let status = wait_child(&mut child, start + limit, give_up);
    let took = start.elapsed();
    let status = match status {
        Ok(Some(status)) => Some(status),
        other => {
            let _ = child.kill();
            let _ = child.wait();
            other?;
            None
        }
    };
    Ok(Finished { status, stdout: text(&mut stdout)?, stderr: text(&mut stderr)?, took })
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Puts the child into `netns` and into a session of its own, so that Ctrl-C reaches the lab alone.
fn prepare(command: &mut Command, netns: Option<&Netns>, die_with_parent: bool) {
    let netns = netns.map(Netns::handle);
    let parent = std::process::id();
    let hook = move || {
        // SAFETY: setns, setsid, prctl and getppid are async-signal-safe system calls on values that
        // were made before the fork.
        unsafe {
            if let Some(netns) = &netns
                && libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            libc::setsid();
            if die_with_parent {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if u32::try_from(libc::getppid()) != Ok(parent) {
                    return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(hook) };
}

/// Waits until the child has ended, `deadline` has passed, or `give_up` says so.
fn wait_child(
    child: &mut Child,
    deadline: Instant,
    give_up: &dyn Fn() -> bool,
) -> Result<Option<ExitStatus>> {
    // SAFETY: pidfd_open takes two integers; the child has not been waited for, so the pid is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let Ok(fd @ 0..) = i32::try_from(fd) else {
        return Err(std::io::Error::last_os_error()).context("pidfd_open");
    };
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || give_up() {
            return Ok(None);
        }
        let millis = i32::try_from(left.as_millis().clamp(1, 200)).unwrap_or(200);
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, millis) };
    }
}

/// A program that runs until it is stopped. Dropping it kills it, unless its lab is kept.
#[derive(Debug)]
pub struct Process {
    child: Child,
    label: String,
    stdout: PathBuf,
    stderr: PathBuf,
    keep: Arc<AtomicBool>,
}

impl Process {
    /// Output goes to `LABEL.out` and `LABEL.err` below `directory`. The kernel kills the program when the
    /// *thread* that started it ends, so long-lived ones are started from long-lived threads.
    pub(crate) fn start(
        mut command: Command,
        netns: Option<&Netns>,
        directory: &Path,
        label: &str,
        keep: &Arc<AtomicBool>,
        piped: bool,
    ) -> Result<Self> {
        let stdout = directory.join(format!("{label}.out"));
        let stderr = directory.join(format!("{label}.err"));
        let open = |path: &Path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot open {}", path.display()))
        };
        command.stdin(Stdio::null()).stderr(open(&stderr)?);
        command.stdout(if piped { Stdio::piped() } else { open(&stdout)?.into() });
        prepare(&mut command, netns, !keep.load(Ordering::Relaxed));
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        Ok(Self { child, label: label.to_owned(), stdout, stderr, keep: Arc::clone(keep) })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far, with what it said on standard error.
    pub fn log(&self) -> String {
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        let mut bytes = read(&self.stdout);
        bytes.extend(read(&self.stderr));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, once it has.
    ///
    /// # Errors
    /// When the kernel does not know the child.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.label))
    }

    /// # Errors
    /// With its output, when it is no longer running.
    pub fn check_running(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}): {}", self.label, tail(&self.log())),
        }
    }

    /// `kill -9`, and waits for the end.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().with_context(|| format!("cannot kill {}", self.label))?;
            self.child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        match wait_child(&mut self.child, Instant::now() + limit, &|| false)? {
            Some(status) => Ok(status),
            None => bail!("{} is still there {limit:?} after SIGTERM: {}", self.label, tail(&self.log())),
        }
    }

    /// Sends a signal to one that is running.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, signal: i32) -> Result<()> {
        self.check_running()?;
        let pid = libc::pid_t::try_from(self.pid()).context("pid out of range")?;
        // SAFETY: kill takes integers; the child has not been waited for, so the pid is its own.
        if unsafe { libc::kill(pid, signal) } != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot signal {}", self.label));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Relaxed) {
            let _ = self.kill();
        }
    }
}

/// The last lines of a log, for a message.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// Asks `probe` again and again until it has an answer.
///
/// # Errors
/// Naming `what`, when there is none after `limit`; and what `probe` fails with.
pub fn wait_until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        interrupt::check()?;
        if let Some(value) = probe().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// As [`wait_until`] for the clean-up, which goes on after Ctrl-C and gives up silently.
pub(crate) fn wait_quietly(limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() && start.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
}
