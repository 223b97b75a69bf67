//! The daemon is killed, stopped and started again; the packet path goes on.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::traffic::udp::{Datagrams, UdpEcho, UdpStream};
use lb_lab::traffic::{Dialect, EchoServer, Flows};
use lb_lab::wait_until;

use crate::support::{ECHO, NO_CHECK, Rig, TCP_CHECK, assert_prompt, echo_config, interfaces, service, vips};

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn assert_nothing_lost(result: &Datagrams) {
    assert!(result.sent > 500, "only {} sent", result.sent);
    assert!(
        result.lost.is_empty(),
        "{} of {} lost, sent at {:?}",
        result.lost.len(),
        result.sent,
        result.lost
    );
    assert_eq!(result.servers.len(), 1, "a flow changed its server: {:?}", result.servers);
}

/// Connections that are established, with the server of each. Those that the prober makes last a moment only.
fn held_flows(rig: &Rig) -> BTreeSet<(SocketAddr, String)> {
    let once = || -> BTreeSet<(SocketAddr, String)> {
        let flows = rig.matapa.flows().unwrap().flows.into_iter();
        flows
            .filter(|flow| flow.service == "echo" && flow.state == "established")
            .map(|flow| (flow.client, flow.backend))
            .collect()
    };
    let first = once();
    pause(100);
    let second = once();
    first.intersection(&second).cloned().collect()
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn killed_and_started_again_under_load_it_loses_no_packet() {
    let config = interfaces()
        + &service("echo", ECHO, "tcp", TCP_CHECK, &[1, 2])
        + &service("echo-udp", ECHO, "udp", NO_CHECK, &[1, 2]);
    let (mut rig, servers) = Rig::start(&config, |_, host| {
        (EchoServer::start(host, ECHO).unwrap(), UdpEcho::start(host, ECHO).unwrap())
    });
    let flows = Flows::open(rig.client(), vips(ECHO), 100, Dialect::Echo, Duration::from_millis(50)).unwrap();
    let streams: Vec<_> = vips(ECHO)
        .into_iter()
        .map(|target| UdpStream::start(rig.client(), target, Duration::from_millis(2)).unwrap())
        .collect();
    let prober = rig.prober();
    pause(500);
    let old = rig.matapa.status().unwrap();
    let known = held_flows(&rig);
    rig.matapa.kill().unwrap();
    pause(700);
    let new = rig.matapa.start().unwrap();
    assert_ne!(old.pid, new.pid);
    let flows_now = held_flows(&rig);
    assert_eq!(known.len(), 100, "{known:?}");
    let lost: Vec<_> = known.difference(&flows_now).collect();
    assert!(lost.is_empty(), "lost or moved: {lost:?}");
    for (before, after) in old.services.iter().zip(&new.services) {
        assert!(after.packets > before.packets, "the counters of {} began anew", after.name);
    }
    pause(700);
    assert_prompt(&prober.finish().unwrap());
    for stream in streams {
        assert_nothing_lost(&stream.finish().unwrap());
    }
    for flow in flows.snapshot() {
        assert!(flow.alive() && flow.longest_wait < Duration::from_millis(900), "{flow:?}");
    }
    let counted = rig.matapa.status().unwrap().service("echo").unwrap().flows;
    assert!(counted >= 100, "100 connections are open, {counted} flows are counted");
    // Known from before, not found out again: nothing was out of rotation.
    assert!(new.services.iter().flat_map(|one| &one.backends).all(|one| one.health == "up"), "{new:?}");
    drop((flows, servers));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn what_an_operator_chose_survives_a_restart() {
    let (mut rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.matapa.backend("drain", "mx1", "echo").unwrap();
    rig.matapa.kill().unwrap();
    let status = rig.matapa.start().unwrap();
    assert_eq!(status.backend("mx1").unwrap().admin, "draining");
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn started_again_it_goes_on_with_its_programs_where_they_are_the_same() {
    let config = echo_config(TCP_CHECK);
    let (mut rig, echo) = Rig::echo(&config);
    let programs = |rig: &Rig| ["ext", "int"].map(|name| rig.matapa.program(name).unwrap());
    let first = programs(&rig);
    assert!(first.iter().all(Option::is_some), "{first:?}");
    rig.matapa.kill().unwrap();
    rig.matapa.start().unwrap();
    assert_eq!(programs(&rig), first, "killed");
    assert!(rig.matapa.stop().unwrap().success());
    rig.matapa.start().unwrap();
    assert_eq!(programs(&rig), first, "stopped");
    assert_prompt(&rig.connect_echo());
    // Other maps need others.
    rig.matapa.write_config(&format!("{config}[flows]\ncapacity = 2048\n")).unwrap();
    assert!(rig.matapa.stop().unwrap().success());
    rig.matapa.start().unwrap();
    let second = programs(&rig);
    assert!(second.iter().zip(first).all(|(new, old)| new.is_some() && *new != old), "{first:?}, {second:?}");
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn stopped_it_forwards_on_and_detached_it_does_not() {
    let (mut rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let flows = Flows::open(rig.client(), vips(ECHO), 20, Dialect::Echo, Duration::from_millis(50)).unwrap();
    assert!(rig.matapa.stop().unwrap().success());
    let before = flows.snapshot();
    assert_prompt(&rig.connect_echo());
    for (old, new) in before.iter().zip(flows.snapshot()) {
        assert!(new.alive() && new.exchanges > old.exchanges, "{new:?}");
    }
    drop(flows);
    rig.matapa.detach().unwrap();
    rig.matapa.check_nothing_left().unwrap();
    let attempts = rig.connect_echo();
    assert!(attempts.iter().all(|attempt| attempt.result.is_err()), "still forwarded: {attempts:?}");
    // Nothing is left to detach: that is no error.
    rig.matapa.detach().unwrap();
    drop(echo);
    rig.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn it_starts_where_the_interfaces_were_made_anew() {
    let (mut rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.matapa.kill().unwrap();
    // The pins hold links to interfaces that no longer exist, as after a driver was reloaded.
    rig.topology.replace_cables(rig.gateway()).unwrap();
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    rig.matapa.wait_healthy(Duration::from_secs(5)).unwrap();
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn killed_at_any_moment_of_its_start_it_starts_again() {
    let mut rig = Rig::prepare(&echo_config(NO_CHECK), &["mx1", "mx2"]);
    let echo: Vec<_> =
        rig.topology.servers.iter().map(|host| EchoServer::start(host, ECHO).unwrap()).collect();
    // Over nothing, and over what the killed ones left: pins, half of the maps, links.
    for moment in (0..150).step_by(10) {
        rig.matapa.launch().unwrap();
        pause(moment);
        rig.matapa.kill().unwrap();
    }
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    assert_prompt(&rig.connect_echo());
    // Under load no packet may notice.
    let prober = rig.prober();
    let flows = Flows::open(rig.client(), vips(ECHO), 20, Dialect::Echo, Duration::from_millis(20)).unwrap();
    for moment in (0..150).step_by(10) {
        rig.matapa.kill().unwrap();
        rig.matapa.launch().unwrap();
        pause(moment);
    }
    rig.matapa.kill().unwrap();
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    assert_prompt(&prober.finish().unwrap());
    for flow in flows.snapshot() {
        assert!(flow.alive() && flow.longest_wait < Duration::from_millis(900), "{flow:?}");
    }
    drop((flows, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn interfaces_that_are_made_anew_get_the_program_again() {
    let (mut rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.topology.replace_cables(rig.gateway()).unwrap();
    wait_until("the program on both interfaces", Duration::from_secs(3), || {
        Ok((rig.matapa.attached("ext")? && rig.matapa.attached("int")?).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    rig.matapa.wait_healthy(Duration::from_secs(5)).unwrap();
    assert_prompt(&rig.connect_echo());
    rig.matapa.check_running().unwrap();
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn without_a_daemon_it_forwards_as_long_as_the_file_says() {
    let config = format!("forward_without_daemon = \"5s\"\n{}", echo_config(TCP_CHECK));
    let (mut rig, echo) = Rig::echo(&config);
    let flows = Flows::open(rig.client(), vips(ECHO), 20, Dialect::Echo, Duration::from_millis(50)).unwrap();
    // Longer than that with a daemon.
    pause(6000);
    let counted = |rig: &Rig| rig.matapa.counters().unwrap().counters["no_daemon"].value;
    assert_eq!(counted(&rig), 0);
    rig.matapa.kill().unwrap();
    let killed = Instant::now();
    // The last word may be a second old.
    let prober = rig.prober();
    pause(3500);
    assert_prompt(&prober.finish().unwrap());
    pause(7500_u64.saturating_sub(killed.elapsed().as_millis() as u64));
    let attempts = rig.connect_echo();
    assert!(attempts.iter().all(|attempt| attempt.result.is_err()), "still forwarded: {attempts:?}");
    let before = flows.snapshot();
    pause(500);
    let silent = before.iter().zip(flows.snapshot()).all(|(old, new)| old.exchanges == new.exchanges);
    assert!(silent, "known flows are still forwarded");

    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    rig.matapa.wait_healthy(Duration::from_secs(5)).unwrap();
    assert_prompt(&rig.connect_echo());
    assert!(counted(&rig) > 20, "{}", counted(&rig));
    wait_until("the connections to go on", Duration::from_secs(10), || {
        let now = flows.snapshot();
        let all = before.iter().zip(&now).all(|(old, new)| new.alive() && new.exchanges > old.exchanges);
        Ok(all.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", flows.snapshot()));
    // For ever, from a reload on.
    rig.matapa.write_config(&echo_config(TCP_CHECK)).unwrap();
    rig.matapa.reload().unwrap();
    rig.matapa.kill().unwrap();
    pause(7000);
    assert_prompt(&rig.connect_echo());
    rig.matapa.start().unwrap();
    drop((flows, echo));
    rig.finish();
}
