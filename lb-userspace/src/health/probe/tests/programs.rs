//! The exec check.

use std::path::Path as FilePath;
use std::sync::Arc;

use super::*;
use crate::config::Exec;

fn script(text: &str) -> Exec {
    let command = ["/bin/sh", "-c", text, "sh", "{address}", "{port}"].map(str::to_owned).to_vec();
    Exec { command, user: None }
}

async fn check(exec: Exec, limit: Duration) -> Result<(), CheckError> {
    probe(&target(Probe::Exec(Arc::new(exec)), "192.0.2.1:25".parse().unwrap(), limit)).await
}

fn exit_code(code: i32, text: &str) -> Result<(), CheckError> {
    Err(CheckError::ExitCode { code, text: text.to_owned() })
}

#[tokio::test]
async fn exit_codes() {
    assert_eq!(check(script("exit 0"), PATIENT).await, Ok(()));
    assert_eq!(check(script("exit 3"), PATIENT).await, exit_code(3, ""));
    let said = "echo; echo 'CRITICAL: \u{e9} queue'; echo more; echo unseen >&2; exit 2";
    assert_eq!(check(script(said), PATIENT).await, exit_code(2, "CRITICAL: ?? queue"));
    assert_eq!(check(script("kill -SEGV $$"), PATIENT).await, Err(CheckError::Signal(libc::SIGSEGV)));
}

#[tokio::test]
async fn what_it_is_told() {
    assert_eq!(check(script("test $1 = 192.0.2.1 -a $2 = 25"), PATIENT).await, Ok(()));
    let environment = "test $MATAPA_ADDRESS = 192.0.2.1 -a $MATAPA_PORT = 25 -a -z \"$CARGO$HOME\"";
    assert_eq!(check(script(environment), PATIENT).await, Ok(()));
    assert_eq!(check(script("test \"$(pwd)\" = / && ! read line"), PATIENT).await, Ok(()));
}

#[tokio::test]
async fn programs_that_cannot_run() {
    let exec = |path: &str| Exec { command: vec![path.to_owned()], user: None };
    let local = |errno| Err(CheckError::Local { stage: Stage::Command, errno });
    assert_eq!(check(exec("/nonexistent/check"), PATIENT).await, local(libc::ENOENT));
    assert_eq!(check(exec("/etc"), PATIENT).await, local(libc::EACCES));
    let user = Some("no-such-user".to_owned());
    let error = CheckError::NoUser("no-such-user".to_owned());
    assert_eq!(check(Exec { user, ..script("exit 0") }, PATIENT).await, Err(error.clone()));
    assert!(error.is_inconclusive());
}

#[tokio::test]
async fn another_user() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let user = Some("nobody".to_owned());
    let who = "test \"$(id -un)\" = nobody && test \"$(id -G)\" = \"$(id -g)\"";
    assert_eq!(check(Exec { user, ..script(who) }, PATIENT).await, Ok(()));
}

/// Whether a process still runs, or is a zombie.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn gone(file: &FilePath) -> bool {
    for pid in std::fs::read_to_string(file).unwrap().lines() {
        for _ in 0..200 {
            if !is_alive(pid) {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        if is_alive(pid) {
            return false;
        }
    }
    true
}

#[tokio::test]
async fn the_whole_group_ends_with_the_check() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    // A child that ignores polite signals, and keeps the pipe open.
    let spawn = format!("(trap '' TERM HUP; sleep 600) & echo $! > {0}; echo $$ >> {0};", file.display());
    let hangs = check(script(&format!("{spawn} sleep 600")), Duration::from_millis(500)).await;
    assert_eq!(hangs, Err(Timeout(Stage::Command)));
    assert!(gone(&file).await);
    let leaves = check(script(&format!("{spawn} exit 0")), PATIENT).await;
    assert_eq!(leaves, Ok(()));
    assert!(gone(&file).await);
    // Also when nobody waits for the verdict any more.
    let start = Instant::now();
    let given_up = timeout(Duration::from_millis(500), check(script(&format!("{spawn} sleep 600")), PATIENT));
    assert!(given_up.await.is_err());
    assert!(gone(&file).await && start.elapsed() < PATIENT);
}

#[tokio::test]
async fn endless_output_is_read_and_thrown_away() {
    let result = check(script("head -c 10000000 /dev/zero | tr '\\0' x; exit 1"), PATIENT).await;
    assert_eq!(result, exit_code(1, &"x".repeat(80)));
    assert_eq!(check(script("yes"), HASTY * 2).await, Err(Timeout(Stage::Command)));
}

#[tokio::test]
async fn output_that_is_closed_early() {
    assert_eq!(check(script("exec >&-; sleep 0.1; exit 4"), PATIENT).await, exit_code(4, ""));
}

/// Also root's, which would get all of them otherwise.
#[tokio::test]
async fn no_program_has_privileges() {
    let tell = "grep -E '^(CapPrm|CapEff|NoNewPrivs)' /proc/self/status | tr -d '\\t\\n'; exit 1";
    let none = "CapPrm:0000000000000000CapEff:0000000000000000NoNewPrivs:1";
    assert_eq!(check(script(tell), PATIENT).await, exit_code(1, none));
    if nix::unistd::geteuid().is_root() {
        let user = Some("nobody".to_owned());
        assert_eq!(check(Exec { user, ..script(tell) }, PATIENT).await, exit_code(1, none));
    }
}

#[tokio::test]
async fn no_program_writes_but_temporary_files() {
    let elsewhere = concat!(env!("CARGO_MANIFEST_DIR"), "/written-by-a-check");
    let refused = check(script(&format!("(: > {elsewhere}) 2>&1; exit 1")), PATIENT).await;
    let Err(CheckError::ExitCode { text, .. }) = refused else { panic!("{refused:?}") };
    assert!(text.ends_with("Permission denied") || text.contains("cannot create"), "{text}");
    assert!(!FilePath::new(elsewhere).exists());
    assert_eq!(check(script("t=$(mktemp) && rm $t && : > /dev/null"), PATIENT).await, Ok(()));
}
