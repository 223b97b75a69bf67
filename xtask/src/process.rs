//! Running other programs: quietly with progress, or line by line.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

const PIPED_PROGRESS: Duration = Duration::from_secs(10);
const TERMINAL_PROGRESS: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
/// Lines of a log shown when its command fails.
const LOG_TAIL: usize = 25;

/// Variables cargo sets for the program it runs; passed on they make nested builds look changed.
const CARGO_OWN: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"];
/// A user's settings for the host build, which must not reach a build for another target.
const USER_BUILD: [&str; 11] = [
    "RUSTFLAGS",
    "RUSTDOC",
    "RUSTC",
    "RUSTUP_TOOLCHAIN",
    "CARGO_ENCODED_RUST",
    "CARGO_BUILD_",
    "CARGO_TARGET_",
    "CARGO_PROFILE_",
    "CARGO_UNSTABLE_",
    "CLIPPY_",
    "LD_LIBRARY_PATH",
];

/// The cargo that runs this task, for host builds.
pub fn host_cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(&workspace.root).env("CARGO_TARGET_DIR", &workspace.target);
    remove_variables(&mut command, &CARGO_OWN);
    if io::stderr().is_terminal() && io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// `program` without any setting of the user's or of an outer cargo that could change what it builds.
pub fn isolated(workspace: &Workspace, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(&workspace.root);
    remove_variables(&mut command, &CARGO_OWN);
    remove_variables(&mut command, &USER_BUILD);
    command.env_remove("CARGO");
    command
}

fn remove_variables(command: &mut Command, prefixes: &[&str]) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
}

/// What a short command prints, or `None` if it cannot be run or fails.
pub fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Run `command` with its output in `log`, saying every so often that it still runs.
pub fn run_logged(label: &str, log: &Path, command: &mut Command) -> Result<Duration> {
    let dir = log.parent().context("a log needs a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("cannot share the log")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let status = wait_with_progress(label, &mut child, start)?;
    if !status.success() {
        let text = fs::read(log).unwrap_or_default();
        bail!("{label} failed ({status}); the end of {}:\n{}", log.display(), tail(&text));
    }
    Ok(start.elapsed())
}

fn wait_with_progress(label: &str, child: &mut Child, start: Instant) -> Result<ExitStatus> {
    let terminal = io::stdout().is_terminal();
    let interval = if terminal { TERMINAL_PROGRESS } else { PIPED_PROGRESS };
    let mut next = start + interval;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            if terminal {
                print!("\r\x1b[K");
                let _ = io::stdout().flush();
            }
            return Ok(status);
        }
        if Instant::now() >= next {
            next += interval;
            let seconds = start.elapsed().as_secs();
            if terminal {
                print!("\r\x1b[K    {label}: {seconds} s");
                let _ = io::stdout().flush();
            } else {
                println!("    {label}: {seconds} s");
            }
        }
        thread::sleep(POLL);
    }
}

fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
}

/// Run `command`, pass on what it prints as it comes, and show each line to `observe`.
pub fn stream(command: &mut Command, mut observe: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let (sender, lines) = mpsc::channel();
    let readers = [
        child.stdout.take().map(|pipe| read_lines(pipe, sender.clone())),
        child.stderr.take().map(|pipe| read_lines(pipe, sender.clone())),
    ];
    drop(sender);
    for line in lines {
        println!("{line}");
        observe(&line);
    }
    for reader in readers.into_iter().flatten() {
        // A reader only ends early if reading failed; what it read was passed on.
        let _ = reader.join();
    }
    child.wait().context("cannot wait for the command")
}

fn read_lines(pipe: impl Read + Send + 'static, lines: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            if lines.send(line).is_err() {
                return;
            }
            bytes.clear();
        }
    })
}

/// Seconds with a sensible number of digits.
pub fn seconds(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 1000 { format!("{millis} ms") } else { format!("{:.1} s", time.as_secs_f64()) }
}
