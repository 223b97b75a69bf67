//! Servers that die, refuse, return and are drained.

use std::time::{Duration, Instant};

use lb_lab::traffic::prober::{Attempt, Failure};
use lb_lab::traffic::{Dialect, EchoServer, Flows};
use lb_lab::wait_until;

use crate::support::{
    ECHO, NO_CHECK, ONE_RETRANSMISSION, Rig, TCP_CHECK, assert_prompt, echo_config, servers, vips,
};

const DETECTION: Duration = Duration::from_secs(3);

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn since(attempts: &[Attempt], from: Instant) -> Vec<Attempt> {
    attempts.iter().filter(|attempt| attempt.started >= from).cloned().collect()
}

fn assert_saved_by_the_second_chance(attempts: &[Attempt]) {
    assert!(!attempts.is_empty(), "nothing was tried");
    for attempt in attempts {
        assert!(attempt.prompt(ONE_RETRANSMISSION), "failed or slow: {attempt:?}");
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_server_that_dies_costs_new_connections_one_retransmission_at_most() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let prober = rig.prober();
    pause(300);
    rig.server(1).unplug().unwrap();
    let death = Instant::now();
    rig.matapa.wait_up(&["mx2", "mx2-v6"], DETECTION).unwrap();
    let detected = Instant::now();
    pause(500);
    let attempts = prober.finish().unwrap();
    assert_saved_by_the_second_chance(&since(&attempts, death));
    let after = since(&attempts, detected + Duration::from_millis(100));
    assert_prompt(&after);
    assert_eq!(servers(&after), ["mx2"]);
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_dead_server_that_is_never_checked_is_avoided_by_the_second_chance_alone() {
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    rig.server(1).unplug().unwrap();
    let attempts = rig.connect_echo();
    assert_saved_by_the_second_chance(&attempts);
    assert_eq!(servers(&attempts), ["mx2"]);
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_silent_server_without_a_check_gets_no_new_connections_until_it_is_tried_again() {
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    rig.server(1).unplug().unwrap();
    let suspect = |name: &str| {
        let status = rig.matapa.status()?;
        Ok(status.backend(name).filter(|backend| backend.suspect).map(|backend| backend.moved_away))
    };
    assert_saved_by_the_second_chance(&rig.connect_echo());
    for name in ["mx1", "mx1-v6"] {
        let moved = wait_until("the silent server to be a suspect", DETECTION, || suspect(name)).unwrap();
        assert!(moved >= 3, "{name} is a suspect after {moved} connections");
    }
    assert_prompt(&rig.connect_echo());
    rig.server(1).plug().unwrap();
    wait_until("the suspect to be tried again", Duration::from_secs(13), || {
        Ok((suspect("mx1")?.is_none() && suspect("mx1-v6")?.is_none()).then_some(()))
    })
    .unwrap();
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx1", "mx2"]);
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_server_that_refuses_is_avoided_by_the_second_chance() {
    let (rig, mut echo) = Rig::echo(&echo_config(NO_CHECK));
    drop(echo.remove(0));
    // Its listener is gone when a connection from next to it is refused.
    let direct = vec![(rig.server(1).v4, ECHO).into(), (rig.server(1).v6, ECHO).into()];
    wait_until("mx1 to refuse", Duration::from_secs(2), || {
        let attempts = Rig::connect(&rig.server(2).netns, direct.clone(), Duration::from_millis(50));
        Ok(attempts
            .iter()
            .all(|one| one.result.as_ref().is_err_and(|failure| *failure == Failure::Refused))
            .then_some(()))
    })
    .unwrap();
    let attempts = rig.connect_echo();
    assert_saved_by_the_second_chance(&attempts);
    assert_eq!(servers(&attempts), ["mx2"]);
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn open_connections_to_a_dead_server_are_reset_and_no_others() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let flows = Flows::open(rig.client(), vips(ECHO), 40, Dialect::Echo, Duration::from_millis(50)).unwrap();
    pause(200);
    rig.server(1).unplug().unwrap();
    rig.matapa.wait_up(&["mx2", "mx2-v6"], DETECTION).unwrap();
    pause(1000);
    for flow in flows.snapshot() {
        if flow.server.as_deref() == Some("mx1") {
            let (_, why) = flow.end.expect("a connection to the dead server still hangs");
            assert_eq!(why, Failure::Reset);
        } else {
            assert!(flow.alive() && flow.longest_wait < Duration::from_millis(900), "{flow:?}");
        }
    }
    drop((flows, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_server_that_returns_is_used_again() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.server(1).unplug().unwrap();
    rig.matapa.wait_up(&["mx2", "mx2-v6"], DETECTION).unwrap();
    rig.server(1).plug().unwrap();
    rig.matapa.wait_healthy(DETECTION).unwrap();
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx1", "mx2"]);
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_drained_server_keeps_its_connections_and_gets_no_new_ones() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let flows = Flows::open(rig.client(), vips(ECHO), 40, Dialect::Echo, Duration::from_millis(50)).unwrap();
    rig.matapa.backend("drain", "mx1", "echo").unwrap();
    rig.matapa.backend("drain", "mx1-v6", "echo").unwrap();
    let before = flows.snapshot();
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx2"]);
    for (old, new) in before.iter().zip(flows.snapshot()) {
        assert!(new.alive() && new.exchanges > old.exchanges, "{new:?}");
    }
    rig.matapa.backend("enable", "mx1", "echo").unwrap();
    rig.matapa.backend("enable", "mx1-v6", "echo").unwrap();
    assert_eq!(servers(&rig.connect_echo()), ["mx1", "mx2"]);
    drop((flows, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_service_without_servers_is_shown_as_down_and_recovers() {
    let (rig, mut echo) = Rig::echo(&echo_config(TCP_CHECK));
    echo.clear();
    let status = rig.matapa.wait_up(&[], DETECTION).unwrap();
    assert_eq!(status.service("echo").unwrap().state, "down");
    let echo: Vec<_> =
        rig.topology.servers.iter().map(|host| EchoServer::start(host, ECHO).unwrap()).collect();
    let status = rig.matapa.wait_healthy(DETECTION).unwrap();
    assert_eq!(status.service("echo").unwrap().state, "active");
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
}
