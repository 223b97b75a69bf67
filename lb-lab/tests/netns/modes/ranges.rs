//! Services on ranges of ports, which keep the client's port or lead to one.

use std::collections::BTreeSet;
use std::time::Duration;

use lb_lab::decap::Decapsulator;
use lb_lab::traffic::http::{self, HttpServer};
use lb_lab::traffic::prober::Failure;
use lb_lab::traffic::udp::{self, UdpEcho};

use super::{ALL, DSR, IPIP_V4, NAT, SNAT, Way, one_segment};
use crate::support::Rig;

/// Of the range 8000-8100.
const PORTS: [u16; 3] = [8000, 8057, 8100];

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn ranges_keep_the_port_or_lead_to_one() {
    // Clients come from elsewhere, so that translated answers pass the gateway; others go straight.
    let shape = one_segment();
    let ways = [NAT, SNAT, DSR, IPIP_V4];
    let configure = |topology: &lb_lab::Topology| {
        let mut text = "interfaces = [\"int\"]\n".to_owned();
        for way in ways {
            text += &way.service(topology, "range", ":8000-8100/tcp", ALL, "");
            text += &way.service(topology, "range-udp", ":8000-8100/udp", ALL, "");
            if way == NAT || way == SNAT {
                text += &way.service_at(topology, "mapped", ":9000-9009/tcp", ALL, ", port = 8000", "");
            }
        }
        text
    };
    let (rig, servers) = Rig::shaped(shape, configure, |lab, host| {
        let echoes: Vec<_> = PORTS.iter().map(|port| UdpEcho::start(host, *port).unwrap()).collect();
        let decapsulator = Decapsulator::start(&host.netns).unwrap();
        (HttpServer::start_ports(lab, host, &PORTS).unwrap(), echoes, decapsulator)
    });
    for way in [NAT, SNAT] {
        check(&rig, way);
        for v6 in [false, true] {
            for port in [9000, 9004, 9009] {
                let target = way.target(v6, port);
                let answer = http::get(rig.lab(), rig.client(), target, "/").unwrap();
                answer.expect("curl").unwrap_or_else(|error| panic!("{way:?}, {target}: {error:#}"));
            }
        }
    }
    rig.topology.answer_directly().unwrap();
    for way in [DSR, IPIP_V4] {
        check(&rig, way);
    }
    drop(servers);
    rig.finish();
}

fn check(rig: &Rig, way: Way) {
    for v6 in [false, true] {
        let mut seen = BTreeSet::new();
        for port in PORTS.into_iter().cycle().take(24) {
            let target = way.target(v6, port);
            let answer = http::get(rig.lab(), rig.client(), target, "/").unwrap();
            let server = answer.expect("curl").unwrap_or_else(|error| panic!("{way:?}, {target}: {error:#}"));
            seen.insert(server.trim().to_owned());
            let answer = udp::ask(rig.client(), target, b"hello").unwrap();
            assert!(answer.is_some(), "{way:?}: {target}/udp");
        }
        assert_eq!(seen.len(), 2, "{way:?}: {seen:?}");
        // Beside the range the gateway itself is asked, and nobody listens there.
        for port in [7999, 8101] {
            let targets = vec![way.target(v6, port)];
            let attempts = Rig::connect(rig.client(), targets, Duration::from_millis(30));
            assert!(!attempts.is_empty());
            for attempt in attempts {
                assert_eq!(attempt.result.unwrap_err(), Failure::Refused, "{way:?}, port {port}");
            }
        }
    }
}
