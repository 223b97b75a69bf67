//! Who gets new connections: the schedulers as clients and servers see them.

use std::collections::BTreeMap;
use std::time::Duration;

use lb_lab::traffic::prober::{Attempt, shares};
use lb_lab::traffic::{Dialect, EchoServer, Flows};
use lb_lab::{Shape, Topology, wait_until};

use crate::modes::{ALL, NAT};
use crate::support::{ECHO, Rig, assert_prompt, servers};

const LONG: Duration = Duration::from_secs(60);

/// One service over both families, with these further lines.
fn rig(more: &str) -> (Rig, Vec<EchoServer>) {
    let configure = |topology: &Topology| config(topology, more);
    Rig::shaped(Shape::default(), configure, |_, host| EchoServer::start(host, ECHO).unwrap())
}

fn config(topology: &Topology, more: &str) -> String {
    let service = NAT.service(topology, "echo", &format!(":{ECHO}/tcp"), ALL, more);
    format!("interfaces = [\"ext\", \"int\"]\n{service}")
}

fn connect(rig: &Rig, v6: bool) -> Vec<Attempt> {
    let attempts = Rig::connect(rig.client(), vec![NAT.target(v6, ECHO)], Duration::from_millis(600));
    assert_prompt(&attempts);
    attempts
}

/// Open connections of each server.
fn held(flows: &Flows) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for flow in flows.snapshot() {
        *counts.entry(flow.server.unwrap()).or_default() += 1;
    }
    counts
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn in_turns_each_server_gets_as_many_connections() {
    let (rig, echoes) = rig("scheduler = \"round-robin\"");
    // Each processor takes turns by itself.
    let processors = std::thread::available_parallelism().unwrap().get();
    for v6 in [false, true] {
        let shares = shares(&connect(&rig, v6));
        let counts: Vec<usize> = shares.values().copied().collect();
        assert_eq!(counts.len(), 2, "{shares:?}");
        assert!(counts[0].abs_diff(counts[1]) <= processors, "{shares:?}");
    }
    drop(echoes);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_server_with_the_fewest_connections_gets_the_next() {
    let (rig, echoes) = rig("scheduler = \"least-connections\"");
    for v6 in [false, true] {
        let target = NAT.target(v6, ECHO);
        let first = Flows::open(rig.client(), vec![target], 30, Dialect::Echo, LONG).unwrap();
        let counts = held(&first);
        // Two processors can choose at the same time.
        assert!(counts.len() == 2 && counts["mx1"].abs_diff(counts["mx2"]) <= 2, "{counts:?}");
        // Ten more on one server: the next ten go to the other.
        let direct = (rig.server(1).address(v6), ECHO).into();
        rig.matapa.backend("drain", if v6 { "mx2-v6" } else { "mx2" }, "nat-echo").unwrap();
        let more = Flows::open(rig.client(), vec![target], 10, Dialect::Echo, LONG).unwrap();
        assert_eq!(held(&more), [("mx1".to_owned(), 10)].into());
        rig.matapa.backend("enable", if v6 { "mx2-v6" } else { "mx2" }, "nat-echo").unwrap();
        // Past the gateway nothing is counted.
        let uncounted = Flows::open(rig.client(), vec![direct], 5, Dialect::Echo, LONG).unwrap();
        let last = Flows::open(rig.client(), vec![target], 10, Dialect::Echo, LONG).unwrap();
        let counts = held(&last);
        assert!(counts.get("mx2").is_some_and(|count| *count >= 8), "{counts:?}");
        drop((first, more, uncounted, last));
    }
    drop(echoes);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_sticky_client_stays_with_its_server() {
    let (rig, echoes) = rig("scheduler = \"round-robin\"\nsticky = \"10m\"");
    for v6 in [false, true] {
        let first = connect(&rig, v6);
        assert_eq!(servers(&first).len(), 1, "{:?}", shares(&first));
        // Only a server that cannot take it any more is left.
        let server = servers(&first)[0].to_owned();
        let name = format!("{server}{}", if v6 { "-v6" } else { "" });
        rig.matapa.backend("drain", &name, "nat-echo").unwrap();
        let other = connect(&rig, v6);
        assert!(servers(&other).len() == 1 && servers(&other) != [server.as_str()], "{:?}", shares(&other));
        rig.matapa.backend("enable", &name, "nat-echo").unwrap();
        assert_eq!(servers(&connect(&rig, v6)), servers(&other));
    }
    drop(echoes);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn weight_nothing_takes_a_server_out_and_its_connections_go_on() {
    let (rig, echoes) = rig("");
    let targets = [false, true].map(|v6| NAT.target(v6, ECHO)).to_vec();
    let pause = Duration::from_millis(50);
    let flows = Flows::open(rig.client(), targets, 40, Dialect::Echo, pause).unwrap();
    assert_eq!(held(&flows).len(), 2);
    let text = config(&rig.topology, "");
    let lighter: Vec<String> = text
        .lines()
        .map(
            |line| {
                if line.contains("\"mx1") { line.replace(" }", ", weight = 0 }") } else { line.to_owned() }
            },
        )
        .collect();
    rig.matapa.write_config(&lighter.join("\n")).unwrap();
    rig.matapa.reload().unwrap();
    for v6 in [false, true] {
        assert_eq!(servers(&connect(&rig, v6)), ["mx2"]);
    }
    let before = flows.snapshot();
    wait_until("every connection to go on", Duration::from_secs(2), || {
        let now = flows.snapshot();
        let goes_on = |(old, new): (&lb_lab::traffic::flows::Flow, &lb_lab::traffic::flows::Flow)| {
            new.alive() && new.exchanges > old.exchanges
        };
        Ok(before.iter().zip(&now).all(goes_on).then_some(()))
    })
    .unwrap();
    drop((flows, echoes));
    rig.finish();
}
