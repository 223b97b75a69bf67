//! The number of live flows of each backend is exact: under load, over a restart, and after the end of flows.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_lab::traffic::{Dialect, EchoServer, Flows};
use lb_lab::{Shape, wait_until};

use crate::modes::{ALL, NAT, SNAT, Way};
use crate::scale::scale;
use crate::support::{ECHO, Rig, assert_prompt};

fn targets(way: Way) -> Vec<std::net::SocketAddr> {
    [false, true].map(|v6| way.target(v6, ECHO)).to_vec()
}

/// Open connections by service and backend, as the client knows them.
fn held(way: Way, flows: &Flows) -> BTreeMap<(String, String), u64> {
    let mut counts = BTreeMap::new();
    for flow in flows.snapshot() {
        let server = flow.server.unwrap();
        let backend = if flow.target.is_ipv6() { format!("{server}-v6") } else { server };
        *counts.entry((format!("{}-echo", way.forward), backend)).or_default() += 1;
    }
    counts
}

/// As the daemon counts them, without those that have none.
fn counted(rig: &Rig) -> BTreeMap<(String, String), u64> {
    let services = rig.matapa.status().unwrap().services;
    let all = services.iter().flat_map(|service| {
        service.backends.iter().map(|one| ((service.name.clone(), one.name.clone()), one.flows))
    });
    all.filter(|(_, count)| *count > 0).collect()
}

fn wait_counted(rig: &Rig, when: &str, expected: &BTreeMap<(String, String), u64>, limit: Duration) {
    let mut last = BTreeMap::new();
    let result = wait_until(&format!("right counts {when}"), limit, || {
        last = counted(rig);
        Ok((last == *expected).then_some(()))
    });
    result.unwrap_or_else(|error| panic!("{error:#}: {last:?} instead of {expected:?}"));
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn live_flows_are_counted_exactly() {
    let configure = |topology: &lb_lab::Topology| {
        let more = "session_timeout = \"4s\"";
        let service = |way: Way| way.service(topology, "echo", &format!(":{ECHO}/tcp"), ALL, more);
        format!(
            "interfaces = [\"ext\", \"int\"]\n[flows]\nclosing = \"1s\"\nclosed = \"1s\"\n{}{}",
            service(NAT),
            service(SNAT)
        )
    };
    let shape = Shape { vips: 2, ..Shape::default() };
    let (mut rig, echoes) = Rig::shaped(shape, configure, |_, host| EchoServer::start(host, ECHO).unwrap());
    let pause = Duration::from_millis(300);
    let open =
        |rig: &Rig, way| Flows::open(rig.client(), targets(way), scale().held, Dialect::Echo, pause).unwrap();
    let (nat, snat) = (open(&rig, NAT), open(&rig, SNAT));
    let mut expected = held(NAT, &nat);
    expected.extend(held(SNAT, &snat));
    wait_counted(&rig, "of open connections", &expected, Duration::from_secs(1));
    // Connections that come and go leave nothing behind.
    for way in [NAT, SNAT] {
        assert_prompt(&Rig::connect(rig.client(), targets(way), Duration::from_secs(1)));
    }
    wait_counted(&rig, "after a thousand short ones", &expected, Duration::from_secs(6));
    rig.matapa.kill().unwrap();
    for way in [NAT, SNAT] {
        assert_prompt(&Rig::connect(rig.client(), targets(way), Duration::from_millis(500)));
    }
    rig.matapa.start().unwrap();
    wait_counted(&rig, "after kill -9 and a new start", &expected, Duration::from_secs(6));
    drop(nat);
    wait_counted(&rig, "after half of them ended", &held(SNAT, &snat), Duration::from_secs(8));
    // Cut off, they end nothing: only time does.
    rig.topology.clients[0].unplug().unwrap();
    wait_counted(&rig, "after idling", &BTreeMap::new(), Duration::from_secs(12));
    drop((snat, echoes));
    rig.finish();
}
