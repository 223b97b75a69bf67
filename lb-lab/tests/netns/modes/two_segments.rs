//! The gateway between clients and servers, with routers on both sides: services that share servers and ports,
//! traces, and servers that connect to their own service.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_lab::traffic::http;
use lb_lab::traffic::path::{self, Probe};
use lb_lab::traffic::smtp::{self, Sink};
use lb_lab::{Shape, Topology};

use super::{ALL, NAT, Programs, SNAT, WEB, Way, checks, config};
use crate::support::{ECHO, Rig};

const MAIL: u16 = 25;
const MESSAGES: usize = 200;

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn nat_works_between_two_segments() {
    let (rig, programs) = Rig::shaped(Shape::default(), |topology| config(topology, &[NAT]), Programs::start);
    checks::everything(&rig, &programs, NAT);
    drop(programs);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn nat_and_snat_share_servers_and_ports() {
    let shape = Shape { clients_router: true, servers_router: true, vips: 2, ..Shape::default() };
    let configure = |topology: &Topology| {
        let mail = [NAT, SNAT].map(|way| way.service(topology, "mail", &format!(":{MAIL}/tcp"), ALL, ""));
        config(topology, &[NAT, SNAT]) + &mail.concat()
    };
    let (rig, servers) = Rig::shaped(shape, configure, |lab, host| {
        (Programs::start(lab, host), Sink::start(lab, host, MAIL).unwrap())
    });
    let (programs, sinks): (Vec<_>, Vec<_>) = servers.into_iter().unzip();
    for way in [NAT, SNAT] {
        checks::everything(&rig, &programs, way);
        mail(&rig, &sinks, way);
        traces(&rig, way);
    }
    a_server_reaches_its_own_service(&rig.topology);
    drop((programs, sinks));
    rig.finish();
}

/// Messages in parallel sessions arrive once, at both servers, from the right client.
fn mail(rig: &Rig, sinks: &[Sink], way: Way) {
    for v6 in [false, true] {
        let sender = format!("{}{}", way.forward, if v6 { 6 } else { 4 });
        let limit = Duration::from_secs(20);
        let target = way.target(v6, MAIL);
        let sent = smtp::send(rig.lab(), rig.client(), target, &sender, (MESSAGES, 10), limit).unwrap();
        sent.expect("smtp-source").unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
        let mut arrived = BTreeSet::new();
        let mut count = 0;
        for sink in sinks {
            let mut received = sink.received().unwrap();
            received.retain(|one| one.sender == sender);
            assert!(!received.is_empty(), "{way:?}: one server got no message");
            assert!(smtp::all_from(&received, way.seen_client(&rig.topology, v6)), "{way:?}: {received:?}");
            count += received.len();
            arrived.extend(received.into_iter().map(|one| one.recipient));
        }
        assert_eq!((count, arrived.len()), (MESSAGES, MESSAGES), "{way:?}");
    }
}

/// Every hop by its own address, and the server by the service's.
fn traces(rig: &Rig, way: Way) {
    let (near, far) =
        (rig.topology.clients_router.as_ref().unwrap(), rig.topology.servers_router.as_ref().unwrap());
    for v6 in [false, true] {
        let vip = way.target(v6, 0).ip();
        let gateway = rig.topology.gateway_address(v6);
        let whole = [near.far_address(v6), gateway, far.near_address(v6), vip];
        // The gateway itself answers a ping.
        let short = [near.far_address(v6), vip];
        for (probe, port, hops) in
            [(Probe::Udp, ECHO, &whole[..]), (Probe::Tcp, WEB, &whole), (Probe::Icmp, 0, &short)]
        {
            let seen = path::trace(rig.lab(), rig.client(), (vip, port).into(), probe).unwrap();
            let hops: Vec<String> = hops.iter().map(IpAddr::to_string).collect();
            assert_eq!(seen, hops, "{way:?}, {probe:?}");
        }
    }
}

/// Its packets come back from the gateway, not straight from its neighbour or itself.
pub fn a_server_reaches_its_own_service(topology: &Topology) {
    for v6 in [false, true] {
        let mut seen = BTreeSet::new();
        for _ in 0..24 {
            let answer =
                http::get(&topology.lab, &topology.servers[0].netns, SNAT.target(v6, WEB), "/from").unwrap();
            let answer = answer.expect("curl from a server to its own service").unwrap();
            let (server, from) = answer.trim().split_once(' ').unwrap();
            assert_eq!(from.parse::<IpAddr>().unwrap(), SNAT.seen_client(topology, v6));
            seen.insert(server.to_owned());
        }
        assert_eq!(seen, ["mx1", "mx2"].map(str::to_owned).into());
    }
}
