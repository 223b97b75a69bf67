//! The machine itself: QEMU, its console, and what the console says about the checks.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::report::Tests;

/// Longer than all checks take on a busy machine.
const LIMIT: Duration = Duration::from_secs(2400);
/// No single check is silent for so long: init stops tests earlier.
const SILENCE: Duration = Duration::from_secs(1450);
/// What init says starts so.
const MARK: &str = "vm: ";
/// The kernel's command line.
///
/// On a busy host the emulated timer may not tick as often as the kernel expects while it looks for it, and that
/// panics: `no_timer_check` has it trust the timer.
const QUIET: &str = "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check rdinit=/init";

/// A kernel and what it boots into.
#[derive(Debug)]
pub struct Machine<'a> {
    pub image: &'a Path,
    pub archive: &'a Path,
    /// Gets everything the console says.
    pub log: &'a Path,
}

impl Machine<'_> {
    /// Boot, pass on what is said, count the checks, and return the time it took.
    pub fn run(&self, label: &str, tests: &mut Tests) -> Result<Duration> {
        let start = Instant::now();
        let mut log =
            File::create(self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let complaints = self.log.with_extension("qemu.log");
        let errors =
            File::create(&complaints).with_context(|| format!("cannot write {}", complaints.display()))?;
        let mut running = Running(
            self.command()
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(errors)
                .spawn()
                .context("cannot run qemu-system-x86_64")?,
        );
        let (sender, lines) = mpsc::channel();
        if let Some(console) = running.0.stdout.take() {
            read_lines(console, sender);
        }
        let mut complete = false;
        loop {
            let left = LIMIT.saturating_sub(start.elapsed()).min(SILENCE);
            let line = match lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine hung and was stopped after {} s", start.elapsed().as_secs())
                }
            };
            writeln!(log, "{:7.2} {line}", start.elapsed().as_secs_f64()).context("cannot write the log")?;
            println!("{label} | {line}");
            complete |= observe(&line, tests);
        }
        let status = running.0.wait().context("cannot wait for QEMU")?;
        if !status.success() {
            let words = fs::read_to_string(&complaints).unwrap_or_default();
            bail!("QEMU failed ({status}): {}", words.trim());
        }
        if !complete {
            bail!("the machine stopped before all checks were made");
        }
        Ok(start.elapsed())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "1024"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.archive)
            .args(["-append", QUIET]);
        // Two cables; the last number of a MAC address tells the ends apart.
        for (number, cable) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
            command.args(["-netdev", &format!("hubport,id=port{number},hubid={cable}")]).args([
                "-device",
                &format!("virtio-net-pci,netdev=port{number},mac=02:00:00:00:00:0{number},romfile="),
            ]);
        }
        command
    }
}

/// QEMU does not outlive what started it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_lines(pipe: impl Read + Send + 'static, lines: mpsc::Sender<String>) {
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
    });
}

/// Count what a line says; is it the last one of a machine that made all checks?
fn observe(line: &str, tests: &mut Tests) -> bool {
    // The firmware's last words may stand in front of it.
    let Some((_, said)) = line.split_once(MARK) else {
        tests.observe(line);
        return false;
    };
    match said.split_once(' ') {
        Some(("pass", _)) => tests.pass(),
        Some(("fail", what)) => tests.fail(what.to_owned()),
        _ => {}
    }
    said == "done"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_is_counted() {
        let mut tests = Tests::default();
        for line in ["\u{1b}[2Jvm: begin", "vm: pass veth: native", "running 1 test", "test a ... ok"] {
            assert!(!observe(line, &mut tests));
        }
        assert!(!observe("test result: ok. 1 passed; 0 failed; 0 ignored", &mut tests));
        assert!(!observe("vm: fail virtio: native: no", &mut tests));
        assert!(observe("vm: done", &mut tests));
        assert_eq!((tests.passed, tests.failed()), (2, 1));
    }
}
