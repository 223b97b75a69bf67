//! The lab itself: nothing stays behind, whatever happens.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lb_lab::traffic::EchoServer;
use lb_lab::traffic::prober::Failure;
use lb_lab::traffic::smtp::Sink;
use lb_lab::{Lab, Netns, Plan, Topology};

use crate::support::{Rig, TCP_CHECK, assert_prompt, echo_config};

/// In the environment of [`a_lab_that_crashes`]: where it writes its id before it crashes.
const CRASH: &str = "MATAPA_LAB_CRASH";
/// As [`CRASH`], for [`a_lab_that_is_interrupted`].
const INTERRUPT: &str = "MATAPA_LAB_INTERRUPT";

fn build() -> (Topology, Vec<Sink>) {
    let lab = Lab::new().unwrap();
    let topology = Topology::build(Arc::clone(&lab), &Plan::default()).unwrap();
    let sinks = topology.servers.iter().map(|host| Sink::start(&lab, host, 25).unwrap()).collect();
    (topology, sinks)
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_lab_routes_and_leaves_nothing_behind() {
    let (topology, sinks) = build();
    let id = topology.lab.id().to_owned();
    assert!(Lab::leftovers(&id).len() > 5);
    let echo: Vec<_> = topology.servers.iter().map(|host| EchoServer::start(host, 7).unwrap()).collect();
    let targets = topology
        .servers
        .iter()
        .flat_map(|host| [false, true].map(|v6| (host.address(v6), 7).into()))
        .collect();
    let attempts = Rig::connect(&topology.clients[0].netns, targets, Duration::from_millis(300));
    assert_prompt(&attempts);
    drop((topology, sinks, echo));
    assert_eq!(Lab::leftovers(&id), Vec::<String>::new());
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn several_gateways_share_both_segments() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let plan = Plan {
        clients: names(&["c1", "c2"]),
        gateways: names(&["g1", "g2"]),
        servers: names(&["s1", "s2", "s3"]),
        sync_cable: true,
    };
    let topology = Topology::build(Lab::new().unwrap(), &plan).unwrap();
    let id = topology.lab.id().to_owned();
    let reached = |from: &Netns, to: &str| {
        // Nobody listens: a refusal shows that the machine is there.
        let attempts = Rig::connect(from, vec![to.parse().unwrap()], Duration::from_millis(100));
        attempts.iter().all(|attempt| attempt.result.as_ref().is_err_and(|why| *why == Failure::Refused))
    };
    for peer in ["10.0.0.2:7", "[2001:db8:66::2]:7"] {
        assert!(reached(&topology.gateways[0].netns, peer), "the first gateway cannot reach {peer}");
    }
    for client in &topology.clients {
        for gateway in ["192.0.2.251:7", "192.0.2.252:7", "[2001:db8:c1::251]:7", "[2001:db8:c1::252]:7"] {
            assert!(reached(&client.netns, gateway), "{} cannot reach {gateway}", client.name);
        }
    }
    assert!(reached(&topology.gateways[1].netns, "198.51.100.13:7"));
    topology.gateways[0].unplug().unwrap();
    assert!(!reached(&topology.clients[0].netns, "192.0.2.251:7"));
    topology.gateways[0].plug().unwrap();
    assert!(reached(&topology.clients[0].netns, "192.0.2.251:7"));
    drop(topology);
    assert_eq!(Lab::leftovers(&id), Vec::<String>::new());
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_panic_removes_the_lab() {
    let mut id = String::new();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (topology, _sinks) = build();
        topology.lab.id().clone_into(&mut id);
        panic!("expected");
    }));
    assert!(caught.is_err() && !id.is_empty());
    assert_eq!(Lab::leftovers(&id), Vec::<String>::new());
}

#[test]
#[ignore = "run by the_next_run_removes_what_a_crash_left only"]
fn a_lab_that_crashes() {
    let Some(path) = std::env::var_os(CRASH) else { return };
    let (topology, _sinks) = build();
    std::fs::write(path, topology.lab.id()).unwrap();
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
#[ignore = "run by an_interrupted_lab_removes_itself only"]
fn a_lab_that_is_interrupted() {
    let Some(path) = std::env::var_os(INTERRUPT) else { return };
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    std::fs::write(path, rig.lab().id()).unwrap();
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT).unwrap();
    rig.matapa.wait_up(&[], Duration::from_secs(60)).unwrap();
    drop(echo);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn an_interrupted_lab_removes_itself() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "cleanup::a_lab_that_is_interrupted"])
        .env(INTERRUPT, file.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("interrupted"), "{output:?}");
    let id = std::fs::read_to_string(file.path()).unwrap();
    assert!(!id.is_empty());
    assert_eq!(Lab::leftovers(&id), Vec::<String>::new());
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_next_run_removes_what_a_crash_left() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // Its output would look like that of a test run that broke off, which it is.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "cleanup::a_lab_that_crashes"])
        .env(CRASH, file.path())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    let id = std::fs::read_to_string(file.path()).unwrap();
    assert!(!id.is_empty() && !Lab::leftovers(&id).is_empty(), "the crash left nothing: {id}");
    drop(Lab::new().unwrap());
    assert_eq!(Lab::leftovers(&id), Vec::<String>::new());
}
