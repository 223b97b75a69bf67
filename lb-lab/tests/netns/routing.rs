//! The gateway stays a router and a host: neighbours, direct connections, generic mode.

use std::net::SocketAddr;
use std::time::Duration;

use lb_lab::traffic::http::HttpServer;
use lb_lab::traffic::{Dialect, EchoServer, Flows, Prober};

use crate::support::{
    ECHO, NO_CHECK, PROMPT, Rig, TCP_CHECK, assert_prompt, echo_config, interfaces, service, vips,
};

/// Exactly one connection.
fn connect_once(rig: &Rig, target: SocketAddr) {
    let every = Duration::from_secs(60);
    let prober = Prober::start(rig.client(), vec![target], every, Duration::from_secs(8)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let attempts = prober.finish().unwrap();
    assert_eq!(attempts.len(), 1);
    assert!(attempts[0].prompt(PROMPT), "{target}: {:?}", attempts[0].result);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_first_packet_through_an_unknown_neighbour_is_not_lost() {
    // No checks: they would make the servers known.
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    for round in 0..4 {
        for target in vips(ECHO) {
            rig.gateway().flush_neighbours().unwrap();
            println!("round {round}, {target}");
            connect_once(&rig, target);
        }
    }
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_a_forgotten_neighbour() {
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    let flows = Flows::open(rig.client(), vips(ECHO), 20, Dialect::Echo, Duration::from_millis(50)).unwrap();
    for _ in 0..5 {
        rig.gateway().flush_neighbours().unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    for flow in flows.snapshot() {
        assert!(flow.alive() && flow.longest_wait < PROMPT, "{flow:?}");
    }
    drop((flows, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn what_is_not_for_a_service_passes_untouched() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let own = EchoServer::start(&rig.topology.clients[0], 9007).unwrap();
    let quick = Duration::from_millis(300);
    let direct: Vec<SocketAddr> = [1, 2]
        .into_iter()
        .flat_map(|number| [false, true].map(|v6| (rig.server(number).address(v6), ECHO).into()))
        .collect();
    // From the gateway itself, as checks do; and from the client to the servers' own addresses.
    assert_prompt(&Rig::connect(&rig.gateway().netns, direct.clone(), quick));
    assert_prompt(&Rig::connect(rig.client(), direct, quick));
    // From a server out to the client.
    let client = &rig.topology.clients[0];
    let out = [false, true].map(|v6| (client.address(v6), 9007).into()).to_vec();
    assert_prompt(&Rig::connect(&rig.server(1).netns, out, quick));
    // All the while the service works.
    assert_prompt(&rig.connect_echo());
    drop((own, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_driver_without_xdp_gets_generic_mode_and_the_log_says_so() {
    // The loopback device has no native XDP.
    let config =
        interfaces().replace("\"int\"", "\"int\", \"lo\"") + &service("web", 80, "tcp", TCP_CHECK, &[1, 2]);
    let (rig, servers) = Rig::start(&config, |lab, host| HttpServer::start(lab, host, 80).unwrap());
    for interface in rig.matapa.status().unwrap().interfaces {
        let expected = if interface.name == "lo" { "generic" } else { "native" };
        assert_eq!(interface.mode, expected, "{}", interface.name);
    }
    let log = rig.matapa.log();
    assert!(log.contains("the driver of lo cannot run XDP"), "{log}");
    crate::traffic::check_http(&rig);
    drop(servers);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn generic_mode_works() {
    let config =
        format!("xdp_mode = \"generic\"\n{}", interfaces()) + &service("web", 80, "tcp", TCP_CHECK, &[1, 2]);
    let (rig, servers) = Rig::start(&config, |lab, host| HttpServer::start(lab, host, 80).unwrap());
    for interface in rig.matapa.status().unwrap().interfaces {
        assert_eq!(interface.mode, "generic", "{}", interface.name);
    }
    crate::traffic::check_http(&rig);
    drop(servers);
    rig.finish();
}
