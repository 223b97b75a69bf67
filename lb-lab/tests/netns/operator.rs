//! What an operator is shown: flows, counters, events.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::matapa::types::EventKind;
use lb_lab::topology::{VIP_V4, VIP_V6};
use lb_lab::traffic::{Dialect, Flows};

use crate::support::{ECHO, NO_CHECK, Rig, TCP_CHECK, assert_prompt, echo_config, vips};

const LIMIT: Duration = Duration::from_secs(3);

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn flows_are_shown_with_client_vip_and_server() {
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    let open = Flows::open(rig.client(), vips(ECHO), 20, Dialect::Echo, Duration::from_millis(50)).unwrap();
    let shown = rig.matapa.flows().unwrap();
    assert_eq!((shown.total, shown.flows.len()), (20, 20), "{shown:?}");
    let client = &rig.topology.clients[0];
    for flow in &shown.flows {
        let v6 = flow.client.is_ipv6();
        let vip = if v6 { VIP_V6.into() } else { VIP_V4.into() };
        let number = if flow.backend.starts_with("mx1") { 1 } else { 2 };
        assert_eq!(flow.service, "echo");
        assert_eq!(flow.protocol, "tcp");
        assert_eq!(flow.client.ip(), client.address(v6), "{flow:?}");
        assert_eq!(flow.vip, SocketAddr::new(vip, ECHO), "{flow:?}");
        assert_eq!(flow.server, SocketAddr::new(rig.server(number).address(v6), ECHO), "{flow:?}");
        assert_eq!(flow.backend.ends_with("-v6"), v6, "{flow:?}");
        assert_eq!(flow.state, "established", "{flow:?}");
        assert!(flow.idle_seconds <= 2, "{flow:?}");
    }
    for v6 in [false, true] {
        assert_eq!(shown.flows.iter().filter(|flow| flow.client.is_ipv6() == v6).count(), 10);
    }
    // The table says who serves each connection as the servers themselves do.
    let greeted =
        |name: &str| open.snapshot().iter().filter(|flow| flow.server.as_deref() == Some(name)).count();
    let tabled = |name: &str| shown.flows.iter().filter(|flow| flow.backend.starts_with(name)).count();
    assert_eq!((greeted("mx1"), greeted("mx2")), (tabled("mx1"), tabled("mx2")));
    // For people, too.
    let text = rig.matapa.cli(&["show", "flows"]).unwrap().expect("matapa show flows").unwrap();
    for part in ["203.0.113.10:7", "[2001:db8:cb::10]:7", "192.0.2.2:", "[2001:db8:c1::2]:", "established"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    drop((open, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn counters_account_for_the_packets() {
    // No checks: their packets would be counted, too.
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    std::thread::sleep(Duration::from_millis(200));
    let counters = rig.matapa.counters().unwrap().counters;
    let value = |name: &str| counters[name].value;
    let there = value("to_backend") + value("to_backend_by_kernel");
    let back = value("to_client") + value("to_client_by_kernel");
    let count = attempts.len() as u64;
    // SYN, ACK, FIN, ACK or RST; SYN-ACK, greeting, FIN.
    assert!((3 * count..=8 * count).contains(&there), "{there} packets in {count} connections");
    assert!((3 * count..=8 * count).contains(&back), "{back} packets in {count} connections");
    let status = rig.matapa.status().unwrap();
    assert_eq!(status.service("echo").unwrap().packets, there + back, "{status:?}");
    // The kernel is asked for each neighbour a few times, not for every packet.
    assert!(value("to_backend_by_kernel") <= 20, "{counters:?}");
    assert!(value("to_client_by_kernel") <= 20, "{counters:?}");
    for (name, counter) in &counters {
        assert!(
            ["forward", "pass", "drop", "note"].contains(&counter.verdict.as_str()),
            "{name} is of kind {}",
            counter.verdict
        );
        let wrong = counter.verdict == "drop" || name.starts_with("flow_") || name.starts_with("truncated_");
        assert!(!wrong || counter.value == 0, "{name} is {}", counter.value);
    }
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn polling_runs_every_check_now() {
    let check = r#"check = { type = "tcp", interval = "10m", timeout = "500ms" }"#;
    let (rig, echo) = Rig::echo(&echo_config(check));
    let checks = || -> Vec<u64> {
        let status = rig.matapa.status().unwrap();
        status.services.iter().flat_map(|service| &service.backends).map(|backend| backend.checks).collect()
    };
    let before = checks();
    rig.matapa.cli(&["poll"]).unwrap().expect("matapa poll").unwrap();
    let after = checks();
    assert_eq!(before.len(), 4);
    assert!(before.iter().zip(&after).all(|(before, after)| after > before), "{before:?} {after:?}");
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn events_tell_what_happens() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let monitor = rig.matapa.monitor().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let open = Flows::open(rig.client(), vips(ECHO), 20, Dialect::Echo, Duration::from_millis(50)).unwrap();

    let start = Instant::now();
    rig.matapa.backend("drain", "mx2", "echo").unwrap();
    monitor
        .wait("the draining", start, LIMIT, |kind| {
            matches!(kind, EventKind::Admin { backend, state } if backend == "mx2" && state == "draining")
        })
        .unwrap();

    let start = Instant::now();
    rig.server(1).unplug().unwrap();
    let down = monitor.wait_health("mx1", "down", start, LIMIT).unwrap();
    let EventKind::Health { from, reason, .. } = &down.event.kind else { unreachable!() };
    assert_eq!(from, "up");
    assert!(!reason.is_empty());
    monitor
        .wait(
            "the packet path",
            start,
            LIMIT,
            |kind| matches!(kind, EventKind::Applied { operations, .. } if *operations > 0),
        )
        .unwrap();
    monitor
        .wait(
            "the resets",
            start,
            LIMIT,
            |kind| matches!(kind, EventKind::FlowsReset { backend, flows } if backend == "mx1" && *flows > 0),
        )
        .unwrap();
    let start = Instant::now();
    rig.server(1).plug().unwrap();
    monitor.wait_health("mx1", "up", start, LIMIT).unwrap();

    let start = Instant::now();
    rig.matapa.write_config("interfaces = 7\nbogus = 1\n").unwrap();
    assert_eq!(rig.matapa.cli(&["reload"]).unwrap().code(), Some(3));
    monitor
        .wait(
            "the refusal",
            start,
            LIMIT,
            |kind| matches!(kind, EventKind::ReloadRefused { errors } if errors.len() >= 2),
        )
        .unwrap();
    rig.matapa.write_config(&echo_config(NO_CHECK)).unwrap();
    rig.matapa.reload().unwrap();
    monitor.wait("the reload", start, LIMIT, |kind| matches!(kind, EventKind::Reload { .. })).unwrap();

    let seen = monitor.seen();
    for pair in seen.windows(2) {
        assert_eq!(pair[1].event.number, pair[0].event.number + 1, "{pair:?}");
        assert!(pair[1].event.time >= pair[0].event.time, "{pair:?}");
    }
    drop((monitor, open, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_of_clients_that_are_gone_are_not_told_of_every_second() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let monitor = rig.matapa.monitor().unwrap();
    let open = Flows::open(rig.client(), vips(ECHO), 20, Dialect::Echo, Duration::from_millis(50)).unwrap();
    rig.topology.clients[0].unplug().unwrap();
    rig.server(1).unplug().unwrap();
    rig.matapa.wait_up(&["mx2", "mx2-v6"], LIMIT).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    for name in ["mx1", "mx1-v6"] {
        let told = monitor.seen().into_iter().filter(
            |one| matches!(&one.event.kind, EventKind::FlowsReset { backend, .. } if backend == name),
        );
        let told = told.count();
        assert!((1..=2).contains(&told), "{told} times for {name}");
    }
    drop((monitor, open, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_read_only_socket_answers_its_group_and_commands_nothing() {
    use std::os::unix::fs::MetadataExt as _;

    let directory = tempfile::tempdir().unwrap();
    let read_only = directory.path().join("read-only.sock");
    // Groups by number need no entry in the machine's list.
    let control = format!(
        "[control]\ngroup = \"64001\"\nread_only_socket = \"{}\"\nread_only_group = \"64002\"\n",
        read_only.display()
    );
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK).replacen("[services", &(control + "[services"), 1));
    let owner = |path: &std::path::Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.gid(), metadata.mode() & 0o777)
    };
    assert_eq!(owner(rig.matapa.socket()), (64001, 0o660));
    assert_eq!(owner(&read_only), (64002, 0o660));
    let at = |arguments: &[&str]| {
        let mut command = rig.lab().command(rig.matapa.binary()).unwrap();
        command.arg("--socket").arg(&read_only).args(arguments);
        rig.lab().finish(&rig.gateway().netns, command, Duration::from_secs(20)).unwrap()
    };
    for question in [&["show"][..], &["show", "flows"], &["reload", "--dry-run"]] {
        assert_eq!(at(question).code(), Some(0), "{:?}", at(question));
    }
    for command in [&["backend", "disable", "mx1"][..], &["reload"], &["poll"], &["trace", "--count", "1"]] {
        let answer = at(command);
        assert_eq!(answer.code(), Some(1), "{answer:?}");
        assert!(answer.stderr.contains("only answers questions"), "{answer:?}");
    }
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
    assert!(!read_only.exists(), "the socket is left behind");
}
