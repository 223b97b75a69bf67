//! What cannot work is said clearly, and leaves nothing behind.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lb_lab::Finished;
use lb_lab::matapa::Matapa;

use crate::support::{Rig, TCP_CHECK, assert_prompt, binary, echo_config};

const LIMIT: Duration = Duration::from_secs(10);

/// Starts with `config` must fail, in these words, and leave nothing.
fn refuse(rig: &Rig, config: &str, code: Option<i32>, words: &[&str]) {
    rig.matapa.write_config(config).unwrap();
    let ended = rig.matapa.run_to_end(LIMIT).unwrap();
    let said = format!("{}{}", ended.stderr, ended.stdout);
    assert!(ended.code().is_some_and(|code| code != 0), "it started or was killed: {ended:?}");
    if code.is_some() {
        assert_eq!(ended.code(), code, "{said}");
    }
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    rig.matapa.check_nothing_left().unwrap();
    assert!(!rig.matapa.pins().exists(), "an empty directory is left for the pins");
    assert!(!rig.matapa.socket().exists(), "the socket is left");
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_start_that_cannot_work_says_why_and_attaches_nothing() {
    let good = echo_config(TCP_CHECK);
    let rig = Rig::prepare(&good, &["mx1"]);
    refuse(&rig, &good.replace("\"int\"]", "\"nosuch0\"]"), None, &["nosuch0"]);
    refuse(&rig, &good.replace("pool = \"echo\"", "pool = \"nosuch\""), Some(3), &["nosuch", ".toml:"]);
    refuse(&rig, "interfaces = [", Some(3), &[".toml:1"]);
    let taken = rig.gateway().netns.run(|| TcpListener::bind("127.0.0.1:9753")).unwrap().unwrap();
    refuse(&rig, &(good.clone() + "\n[control]\nmetrics = \"127.0.0.1:9753\"\n"), None, &["127.0.0.1:9753"]);
    drop(taken);
    // Each error is told, not the first alone.
    let two = good.replace("pool = \"echo\"", "pool = \"nosuch\"\nshceduler = \"maglev\"");
    refuse(&rig, &two, Some(3), &["nosuch", "shceduler", "errors"]);
    rig.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let config = rig.lab().directory().join("gateway.toml");
    let second = Matapa::new(rig.lab(), rig.gateway(), &binary(), &config);
    let ended = second.run_to_end(LIMIT).unwrap();
    assert!(ended.code().is_some_and(|code| code != 0), "{ended:?}");
    let socket = rig.matapa.socket().display().to_string();
    assert!(ended.stderr.contains(&socket), "{socket} is not named: {}", ended.stderr);
    rig.matapa.status().unwrap();
    assert!(rig.matapa.attached("ext").unwrap() && rig.matapa.attached("int").unwrap());
    // With a socket of its own it would still want the same maps.
    let second = second.with_socket(&rig.lab().directory().join("second.sock"));
    let ended = second.run_to_end(LIMIT).unwrap();
    assert!(ended.code().is_some_and(|code| code != 0), "{ended:?}");
    assert_one_sentence(&ended, &[&rig.matapa.pins().display().to_string(), "another matapa daemon"]);
    assert!(!second.socket().exists());
    // Nor may forwarding be taken off under a running daemon.
    let answer = rig.matapa.cli(&["detach"]).unwrap();
    assert_eq!(answer.code(), Some(1), "{answer:?}");
    assert!(rig.matapa.attached("ext").unwrap() && rig.matapa.attached("int").unwrap());
    assert_prompt(&rig.connect_echo());
    drop((second, echo));
    rig.finish();
}

/// One line of complaint, in these words.
fn assert_one_sentence(ended: &Finished, words: &[&str]) {
    let complaints: Vec<&str> =
        ended.stderr.lines().filter(|line| line.starts_with("matapa:") || line.contains("ERROR")).collect();
    assert_eq!(complaints.len(), 1, "{}", ended.stderr);
    for word in words {
        assert!(complaints[0].contains(word), "{word:?} is not in: {}", ended.stderr);
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn pins_outside_a_bpf_file_system_are_refused() {
    let mut rig = Rig::prepare(&echo_config(TCP_CHECK), &["mx1"]);
    let elsewhere = rig.lab().directory().join("pins");
    rig.matapa = rig.matapa.with_pins(&elsewhere);
    let ended = rig.matapa.run_to_end(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_one_sentence(&ended, &[&elsewhere.display().to_string(), "mount -t bpf"]);
    assert!(!elsewhere.exists() && !rig.matapa.socket().exists());
    rig.matapa.check_nothing_left().unwrap();
    rig.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn without_privileges_it_says_what_it_needs() {
    let mut rig = Rig::prepare(&echo_config(TCP_CHECK), &["mx1"]);
    let ended = rig.matapa.run_as_nobody(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_one_sentence(&ended, &[&rig.matapa.socket().display().to_string(), "denied"]);
    // Where it may make its socket, it fails at the pins, or at the maps if everybody may pin.
    let open = rig.lab().directory().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    rig.matapa = rig.matapa.with_socket(&open.join("control.sock"));
    let ended = rig.matapa.run_as_nobody(LIMIT).unwrap();
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_one_sentence(&ended, &["root"]);
    assert!(!rig.matapa.socket().exists() && !rig.matapa.pins().exists());
    rig.matapa.check_nothing_left().unwrap();
    rig.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn commands_that_make_no_sense_are_refused() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let answer = rig.matapa.cli(&["backend", "drain", "mx9", "--service", "echo"]).unwrap();
    assert_eq!(answer.code(), Some(1), "{answer:?}");
    assert!(answer.stderr.contains("mx9") && answer.stderr.contains("mx1"), "{answer:?}");
    let answer = rig.matapa.cli(&["backend", "drain", "mx1", "--service", "nosuch"]).unwrap();
    assert_eq!(answer.code(), Some(1), "{answer:?}");
    assert!(answer.stderr.contains("nosuch") && answer.stderr.contains("echo"), "{answer:?}");
    assert_eq!(rig.matapa.cli(&["backend", "explode", "mx1"]).unwrap().code(), Some(2));
    assert_eq!(rig.matapa.status().unwrap().backend("mx1").unwrap().admin, "enabled");
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn without_a_daemon_commands_end_with_code_four() {
    let rig = Rig::prepare(&echo_config(TCP_CHECK), &["mx1"]);
    for args in [&["show", "summary"][..], &["backend", "drain", "mx1"], &["reload"], &["monitor"]] {
        let answer = rig.matapa.cli(args).unwrap();
        assert_eq!(answer.code(), Some(4), "{args:?}: {answer:?}");
        assert!(answer.stderr.contains("gateway.sock"), "{args:?}: {answer:?}");
    }
    rig.remove();
}
