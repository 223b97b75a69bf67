//! Checks that ask the VIP on each server, by the way that packets go.

use std::time::Duration;

use lb_lab::decap::Decapsulator;
use lb_lab::topology::vip;
use lb_lab::traffic::EchoServer;
use lb_lab::{Host, Shape, Topology, wait_until};

use super::{ALL, DSR, GUE_V4, GUE_V6, IPIP_V4, IPIP_V6, VIPS, Way};
use crate::support::{ECHO, Rig};

const CHECK: &str = "type = \"tcp\", interval = \"300ms\", timeout = \"200ms\", rise = 1, fall = 2";
const WAYS: [Way; 5] = [DSR, IPIP_V4, IPIP_V6, GUE_V4, GUE_V6];
const SOON: Duration = Duration::from_secs(6);

/// Each way, with checks that go by it and with plain ones. Tunnels of either family carry both.
fn config(topology: &Topology) -> String {
    let devices: Vec<String> =
        topology.gateways[0].devices().iter().map(|device| format!("\"{device}\"")).collect();
    let mut text = format!("interfaces = [{}]\n", devices.join(", "));
    // A tunnel of the other family does not say which of the gateway's addresses is the answer's.
    let sources = [false, true].map(|v6| topology.gateway_address(v6));
    let via = format!("via = \"vip\", source = [\"{}\", \"{}\"]", sources[0], sources[1]);
    for way in WAYS {
        for (name, port, more) in [("vip", ECHO, via.as_str()), ("plain", ECHO + 2, "port = 7")] {
            let check = format!("check = {{ {CHECK}, {more} }}");
            text += &way.service(topology, name, &format!(":{port}/tcp"), ALL, &check);
        }
    }
    text
}

fn serve(host: &Host) -> (EchoServer, Decapsulator) {
    (EchoServer::start(host, ECHO).unwrap(), Decapsulator::start(&host.netns).unwrap())
}

/// By service, the backends that are not up.
fn wait_down(rig: &Rig, service: &str, wanted: &[&str]) {
    wait_until(&format!("{wanted:?} of {service} to be down"), SOON, || {
        let status = rig.matapa.status()?;
        let backends = &status.service(service).unwrap().backends;
        let mut down: Vec<&str> =
            backends.iter().filter(|backend| backend.health != "up").map(|one| one.name.as_str()).collect();
        down.sort_unstable();
        Ok((down == wanted).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
}

/// Takes all VIPs from a server, or gives them back.
fn vips(host: &Host, action: &str) {
    for number in 0..VIPS {
        for v6 in [false, true] {
            let length = if v6 { "/128 nodad" } else { "/32" };
            let line = format!("address {action} {}{length} dev lo", vip(number, v6));
            let line = if action == "del" { line.replace(" nodad", "") } else { line };
            host.netns.ip(&line).unwrap();
        }
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_server_without_the_vip_is_down_when_checks_go_there() {
    let shape = Shape { one_armed: true, vips: VIPS, vips_on_servers: true, ..Shape::default() };
    let (rig, servers) = Rig::shaped(shape, config, |_, host| serve(host));
    let names = |way: Way| match way.outer_v6 {
        None => vec!["mx1", "mx1-v6"],
        Some(false) => vec!["mx1"],
        Some(true) => vec!["mx1-v6"],
    };
    vips(rig.server(1), "del");
    for way in WAYS {
        wait_down(&rig, &format!("{}-vip", way.name()), &names(way));
        wait_down(&rig, &format!("{}-plain", way.name()), &[]);
    }
    // Each listener by itself, and one may be an interval behind the other.
    let failed = wait_until("all listeners' checks to fail", SOON, || {
        let failed: Vec<_> =
            rig.matapa.checks()?.backends.into_iter().filter(|one| one.health == "down").collect();
        Ok((failed.len() == 2 * WAYS.len()).then_some(failed))
    });
    for one in failed.unwrap() {
        let last = &one.results[0];
        assert_eq!(last.error.as_deref(), Some("the VIP does not answer on the server"), "{one:?}");
        assert_eq!(last.error_number, Some(5));
    }
    vips(rig.server(1), "add");
    for way in WAYS {
        wait_down(&rig, &format!("{}-vip", way.name()), &[]);
    }
    // It has the VIP, and nothing listens.
    let mut servers = servers;
    let (echo, decapsulator) = servers.remove(0);
    drop(echo);
    for way in WAYS {
        wait_down(&rig, &format!("{}-vip", way.name()), &names(way));
    }
    let checks = rig.matapa.checks().unwrap();
    let of = checks.backends.iter().find(|one| one.service == "dsr-vip" && one.health == "down").unwrap();
    assert_eq!(of.results[0].error.as_deref(), Some("connections to the VIP are refused by the server"));
    drop((decapsulator, servers));
    rig.finish();
}
