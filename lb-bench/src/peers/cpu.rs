//! CPU time of the gateway: of the kernel's threads that receive for it, and of its programs.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What these kernel threads and all threads of these programs have spent so far.
///
/// # Errors
/// When one of them is not there, or the kernel does not say (it is built without `CONFIG_SCHED_INFO`).
pub fn spent(threads: &[i32], programs: &[u32]) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for thread in threads {
        all += of(&format!("/proc/{thread}/schedstat"))?;
    }
    for program in programs {
        let path = format!("/proc/{program}/task");
        for entry in fs::read_dir(&path).with_context(|| format!("cannot read {path}"))? {
            // One that has ended since is not asked any more.
            all += of(&format!("{}/schedstat", entry?.path().display())).unwrap_or_default();
        }
    }
    Ok(all)
}

fn of(path: &str) -> Result<Duration> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    ran(&text).with_context(|| format!("{path} has no time in it: {text}"))
}

/// The first number: nanoseconds on a CPU.
fn ran(text: &str) -> Option<Duration> {
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_on_a_cpu_is_the_first_number() {
        assert_eq!(ran("1500 22 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(ran(""), None);
    }

    #[test]
    fn this_program_has_spent_time() {
        let before = spent(&[], &[std::process::id()]).unwrap();
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let after = spent(&[], &[std::process::id()]).unwrap();
        assert!(after > before, "{before:?} {after:?}");
    }
}
