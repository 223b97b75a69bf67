//! Flow synchronisation: connections go on through the other gateway.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_lab::decap::Decapsulator;
use lb_lab::matapa::Matapa;
use lb_lab::matapa::types::EventKind;
use lb_lab::topology::{INT_V4, VIP_V4};
use lb_lab::traffic::EchoServer;
use lb_lab::traffic::flows::{Dialect, Flows};
use lb_lab::{Lab, Plan, Shape, Topology, wait_until};
use serde_json::Value;

use crate::carp_support::{Gateways, SHARED, Setting, carp, finish, start};
use crate::support::{ECHO, TCP_CHECK, interfaces};

const SETTLED: Duration = Duration::from_secs(6);
const CONNECTIONS: usize = 40;
/// What stands for the clients, shared like the others.
const SNAT: &str = "198.51.100.5";

fn sync(matapa: &Matapa) -> Value {
    matapa.show("sync").unwrap()
}

/// A file with a key in the lab's directory.
fn key(lab: &Arc<Lab>, name: &str, digit: char) -> PathBuf {
    lab.secret(name, &digit.to_string().repeat(64)).unwrap()
}

/// The configuration of gateway `number` of two, which prefers the first.
fn config(number: u8, forward: &str, one_armed: bool, key: &std::path::Path) -> String {
    let more = "preempt = true\npreempt_delay = \"2s\"".to_owned();
    let advskew = (number - 1) * 100;
    let outside =
        Setting { addresses: format!("\"{SHARED}/24\", \"{VIP_V4}/32\""), more, ..Setting::skew(advskew) };
    let inside = Setting { addresses: format!("\"{INT_V4}/24\", \"{SNAT}/24\""), ..outside.clone() };
    let peer = 250 + (3 - number);
    let snat =
        if forward == "snat" { format!("snat = {{ addresses = [\"{SNAT}\"] }}\n") } else { String::new() };
    let head = if one_armed {
        let inside = Setting { addresses: format!("\"{INT_V4}/24\", \"{VIP_V4}/32\""), ..outside };
        "interfaces = [\"int\"]\n".to_owned() + &inside.table("inside", "int", 43)
    } else {
        interfaces() + &outside.table("outside", "ext", 42) + &inside.table("inside", "int", 43)
    };
    head + &format!(
        "[cluster]\nsync = {{ interface = \"int\", peer = \"198.51.100.{peer}\", key_file = \"{}\" }}\n\n\
             [pools.echo]\n{TCP_CHECK}\nbackends = [{{ name = \"mx1\", address = \"198.51.100.11\" }}, \
             {{ name = \"mx2\", address = \"198.51.100.12\" }}]\n\n\
             [services.echo]\nlisten = \"{VIP_V4}:{ECHO}\"\npool = \"echo\"\nforward = \"{forward}\"\n{snat}",
        key.display()
    )
}

fn build(shape: Shape) -> Gateways {
    Gateways { topology: Topology::build_shaped(Lab::new().unwrap(), &Plan::pair(), shape).unwrap() }
}

fn wait_synchronised(matapa: &Matapa) {
    wait_until("the gateways to be synchronised", SETTLED, || {
        Ok((sync(matapa)["state"] == "synchronised").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", sync(matapa), matapa.log()));
}

/// Waits until the first gateway alone has the addresses.
fn wait_alone(gateways: &Gateways, shared: std::net::IpAddr) {
    wait_until("gw1 alone to be master", Duration::from_secs(12), || {
        Ok((gateways.masters(shared) == [1]).then_some(()))
    })
    .unwrap();
}

fn connections_survive(forward: &str, shape: Shape) {
    let gateways = build(shape);
    let shared = if shape.one_armed { INT_V4 } else { SHARED }.into();
    let cables: &[&str] = if shape.one_armed { &["int"] } else { &["ext", "int"] };
    let plug = |how: &dyn Fn(&str) -> String| {
        let lines: String = cables.iter().map(|cable| how(cable)).collect();
        gateways.topology.switch.ip(&lines).unwrap();
    };
    let echo: Vec<_> =
        gateways.topology.servers.iter().map(|host| EchoServer::start(host, ECHO).unwrap()).collect();
    let opening = gateways.topology.servers.iter().filter(|_| forward == "ipip");
    let opening: Vec<_> = opening.map(|host| Decapsulator::start(&host.netns).unwrap()).collect();
    let key = key(gateways.lab(), "sync.key", '5');
    let mut first = gateways.started(1, &config(1, forward, shape.one_armed, &key));
    wait_alone(&gateways, shared);
    let second = gateways.started(2, &config(2, forward, shape.one_armed, &key));
    wait_synchronised(&first);
    wait_synchronised(&second);
    for matapa in [&first, &second] {
        matapa.wait_healthy(Duration::from_secs(5)).unwrap();
    }
    let client = &gateways.topology.clients[0].netns;
    let target = vec![std::net::SocketAddr::new(VIP_V4.into(), ECHO)];
    let flows = Flows::open(client, target, CONNECTIONS, Dialect::Echo, Duration::from_millis(200))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", first.cli(&["show", "counters"]).unwrap().stdout));
    // Now the scheduler alone would choose another server for half of them.
    for matapa in [&first, &second] {
        matapa.backend("drain", "mx1", "echo").unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    let known = second.flows().unwrap();
    assert!(known.total >= CONNECTIONS as u64, "{known:?}\n{}", sync(&second));
    plug(&|cable| format!("link set gw1-{cable} nomaster\n"));
    first.kill().unwrap();
    // The dead daemon's addresses stay where they are.
    wait_until("the second gateway to be master", Duration::from_secs(8), || {
        Ok(gateways.masters(shared).contains(&2).then_some(()))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let before = flows.snapshot();
    std::thread::sleep(Duration::from_secs(2));
    for (before, now) in before.iter().zip(flows.snapshot()) {
        assert!(now.alive(), "{now:?}\n{}\n{}", sync(&second), second.log());
        assert!(now.exchanges > before.exchanges, "it stands still: {now:?}\n{}", sync(&second));
    }
    // Back again: the first gateway gets everything before it may be master, and they go on through it.
    plug(&|cable| format!("link set gw1-{cable} master {cable}\n"));
    start(&mut first);
    wait_synchronised(&first);
    wait_alone(&gateways, shared);
    std::thread::sleep(Duration::from_secs(3));
    let before = flows.snapshot();
    std::thread::sleep(Duration::from_secs(2));
    for (before, now) in before.iter().zip(flows.snapshot()) {
        assert!(
            now.alive() && now.exchanges > before.exchanges,
            "{now:?}\n{}\n{}",
            sync(&first),
            first.log()
        );
    }
    drop(flows);
    drop(opening);
    drop(echo);
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_nat() {
    connections_survive("nat", Shape::default());
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_snat() {
    connections_survive("snat", Shape::default());
}

/// A gateway with another key learns nothing, is counted, and does not wait for ever.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn another_key_is_refused() {
    let gateways = build(Shape::default());
    let (one, other) = (key(gateways.lab(), "one.key", '5'), key(gateways.lab(), "other.key", '6'));
    let first = gateways.started(1, &config(1, "nat", false, &one));
    let second = gateways.started(2, &config(2, "nat", false, &other));
    let owners = carp(&second)["groups"][0]["owners"].to_string();
    assert!(owners.contains("flows are not synchronised yet"), "{owners}");
    wait_until("datagrams to be refused", SETTLED, || {
        let refused = sync(&second)["refused"]["digest"]["value"].as_u64();
        Ok(refused.filter(|count| *count > 0))
    })
    .unwrap();
    assert_eq!(sync(&second)["state"], "waiting");
    wait_until("the gateway to go on alone", Duration::from_secs(10), || {
        let owners = carp(&second)["groups"][0]["owners"].to_string();
        Ok((!owners.contains("flows are not synchronised yet")).then_some(()))
    })
    .unwrap();
    finish(first);
    finish(second);
    gateways.remove();
}

/// Clients answer only the first of two who ask where their connections stand, and a backup would be told nothing.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_of_a_dead_server_are_reset_by_the_master_alone() {
    let gateways = build(Shape::default());
    let servers = &gateways.topology.servers;
    let echo: Vec<_> = servers.iter().map(|host| EchoServer::start(host, ECHO).unwrap()).collect();
    let key = key(gateways.lab(), "sync.key", '5');
    let first = gateways.started(1, &config(1, "nat", false, &key));
    wait_alone(&gateways, SHARED.into());
    let second = gateways.started(2, &config(2, "nat", false, &key));
    for matapa in [&first, &second] {
        wait_synchronised(matapa);
        matapa.wait_healthy(Duration::from_secs(5)).unwrap();
    }
    let client = &gateways.topology.clients[0].netns;
    let target = vec![std::net::SocketAddr::new(VIP_V4.into(), ECHO)];
    // They say nothing by themselves while it lasts.
    let flows = Flows::open(client, target, CONNECTIONS, Dialect::Echo, Duration::from_secs(60)).unwrap();
    let monitors = [&first, &second].map(|matapa| matapa.monitor().unwrap());
    std::thread::sleep(Duration::from_secs(1));
    let death = std::time::Instant::now();
    servers[0].unplug().unwrap();
    for monitor in &monitors {
        monitor.wait_health("mx1", "down", death, SETTLED).unwrap();
    }
    let of_mx1 = |flow: &lb_lab::traffic::flows::Flow| flow.server.as_deref() == Some("mx1");
    wait_until("the connections to mx1 to be reset", Duration::from_secs(3), || {
        let left = flows.snapshot().into_iter().filter(|flow| of_mx1(flow) && flow.end.is_none()).count();
        Ok((left == 0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", first.log(), second.log()));
    std::thread::sleep(Duration::from_secs(1));
    let asked = monitors.each_ref().map(|monitor| {
        monitor.seen().iter().any(|seen| matches!(seen.event.kind, EventKind::FlowsReset { .. }))
    });
    assert_eq!(asked, [true, false], "{}", second.log());
    drop((flows, echo, monitors));
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_dsr() {
    connections_survive("dsr", Shape { one_armed: true, vips_on_servers: true, ..Shape::default() });
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_ipip() {
    connections_survive("ipip", Shape { one_armed: true, vips_on_servers: true, ..Shape::default() });
}
