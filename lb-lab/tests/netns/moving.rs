//! Maps of another size, or of another layout, take over from those in use: no packet and no connection is lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lb_lab::traffic::udp::{Datagrams, UdpEcho, UdpStream};
use lb_lab::traffic::{Dialect, EchoServer, Flows, Prober};
use lb_lab::{Shape, Topology};

use crate::modes::{ALL, NAT, SNAT, Way};
use crate::support::{ECHO, PROMPT, Rig, assert_prompt};

/// Servers of TCP connections, and of datagrams.
type Serving = Vec<([EchoServer; 2], UdpEcho)>;

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn targets(way: Way) -> Vec<SocketAddr> {
    let port = if way == SNAT { OWN } else { ECHO };
    [false, true].map(|v6| way.target(v6, port)).to_vec()
}

/// Where the service with `snat` listens. A port of its own, so that the flows of the others need no record for their way
/// back.
const OWN: u16 = 8007;

/// A table for `capacity` flows.
fn config(topology: &Topology, capacity: u32) -> String {
    format!(
        "interfaces = [\"ext\", \"int\"]\n[flows]\ncapacity = {capacity}\nclosed = \"2s\"\n{}{}{}",
        NAT.service(topology, "echo", &format!(":{ECHO}/tcp"), ALL, ""),
        NAT.service(topology, "datagrams", &format!(":{ECHO}/udp"), ALL, ""),
        SNAT.service(topology, "echo", &format!(":{OWN}/tcp"), ALL, "scheduler = \"least-connections\""),
    )
}

fn start(capacity: u32) -> (Rig, Serving) {
    Rig::shaped(
        Shape { vips: 2, ..Shape::default() },
        |topology| config(topology, capacity),
        |_, host| {
            let servers = [ECHO, OWN].map(|port| EchoServer::start(host, port).unwrap());
            (servers, UdpEcho::start(host, ECHO).unwrap())
        },
    )
}

/// Traffic that notices every packet that is lost.
struct Traffic {
    flows: Vec<Flows>,
    streams: Vec<UdpStream>,
    prober: Prober,
}

impl Traffic {
    fn start(rig: &Rig) -> Self {
        let open = |way, count| {
            Flows::open(rig.client(), targets(way), count, Dialect::Echo, Duration::from_millis(20)).unwrap()
        };
        let stream = |target| UdpStream::start(rig.client(), target, Duration::from_millis(2)).unwrap();
        let flows = vec![open(NAT, 100), open(SNAT, 40)];
        let streams = targets(NAT).into_iter().map(stream).collect();
        let prober =
            Prober::start(rig.client(), targets(NAT), Duration::from_millis(10), Duration::from_secs(8));
        Self { flows, streams, prober: prober.unwrap() }
    }

    fn finish(self) {
        assert_prompt(&self.prober.finish().unwrap());
        for stream in self.streams {
            let Datagrams { sent, lost, servers, .. } = stream.finish().unwrap();
            assert!(sent > 200, "only {sent} sent");
            assert!(lost.is_empty(), "{} of {sent} lost, sent at {lost:?}", lost.len());
            assert_eq!(servers.len(), 1, "a flow changed its server: {servers:?}");
        }
        for flow in self.flows.iter().flat_map(Flows::snapshot) {
            assert!(flow.alive() && flow.longest_wait < PROMPT, "{flow:?}");
        }
    }
}

/// The client of each held connection, with its server and service.
type Held = BTreeSet<(SocketAddr, String, String)>;

fn held(rig: &Rig) -> Held {
    let once = || -> Held {
        let flows = rig.matapa.flows().unwrap().flows.into_iter();
        flows
            .filter(|flow| flow.state == "established")
            .map(|flow| (flow.client, flow.backend, flow.service))
            .collect()
    };
    let first = once();
    pause(200);
    first.intersection(&once()).cloned().collect()
}

/// Each of these is known, and to the same server.
fn assert_held(rig: &Rig, known: &Held) {
    let lost: Vec<_> = known.difference(&held(rig)).cloned().collect();
    let flows = rig.matapa.flows().unwrap().flows;
    let now: Vec<_> =
        flows.iter().filter(|one| lost.iter().any(|(client, ..)| one.client == *client)).collect();
    assert!(lost.is_empty(), "lost or moved: {lost:?}; now: {now:?}\n{}", rig.matapa.log());
}

fn change_size(rig: &Rig, capacity: u32) {
    rig.matapa.write_config(&config(&rig.topology, capacity)).unwrap();
}

/// Neither maps that are being made nor maps that are not in their place.
fn assert_settled(rig: &Rig) {
    for left in ["next", "switching"] {
        assert!(!rig.matapa.pins().join(left).exists(), "{left} is left: {}", rig.matapa.log());
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_flow_table_of_another_size_takes_every_connection_over() {
    let (mut rig, serving) = start(32_768);
    let traffic = Traffic::start(&rig);
    pause(300);
    let known = held(&rig);
    assert_eq!(known.len(), 140, "{known:?}");
    let before = rig.matapa.status().unwrap();
    for capacity in [65_536, 16_384, 1 << 20, 32_768] {
        rig.matapa.kill().unwrap();
        change_size(&rig, capacity);
        rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
        assert_settled(&rig);
        let size = format!("new ones of layout {} for {capacity} flows", layout(&rig));
        assert!(rig.matapa.log().contains(&size), "no {size:?} in {}", rig.matapa.log());
        assert_held(&rig, &known);
    }
    let after = rig.matapa.status().unwrap();
    for (old, new) in before.services.iter().zip(&after.services) {
        assert!(new.packets > old.packets, "the counters of {} began anew", new.name);
    }
    // The same size again: nothing is moved.
    rig.matapa.kill().unwrap();
    let moves = |rig: &Rig| rig.matapa.log().matches("new maps are in use").count();
    let done = moves(&rig);
    rig.matapa.start().unwrap();
    assert_eq!((done, moves(&rig)), (4, 4), "{}", rig.matapa.log());
    pause(300);
    traffic.finish();
    drop(serving);
    rig.finish();
}

/// The layout that the binary makes, from its own words.
fn layout(rig: &Rig) -> u32 {
    let log = rig.matapa.log();
    let (_, rest) = log.rsplit_once("new ones of layout ").unwrap_or_else(|| panic!("no move in {log}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn killed_at_any_moment_of_a_move_it_goes_on_from_there() {
    let (mut rig, serving) = start(32_768);
    let traffic = Traffic::start(&rig);
    pause(300);
    let known = held(&rig);
    assert_eq!(known.len(), 140, "{known:?}");
    let mut switching = 0;
    for (turn, moment) in [0, 2, 10, 40, 110].into_iter().enumerate() {
        change_size(&rig, if turn % 2 == 0 { 65_536 } else { 32_768 });
        // While the new maps are being filled, and while both are in use.
        for directory in ["next", "switching"] {
            rig.matapa.kill().unwrap();
            rig.matapa.launch().unwrap();
            wait_for(&mut rig, directory);
            pause(moment);
        }
        rig.matapa.kill().unwrap();
        switching += usize::from(rig.matapa.pins().join("switching").exists());
        // While it goes on with what the one before had begun.
        rig.matapa.launch().unwrap();
        pause(5 * moment);
        rig.matapa.kill().unwrap();
        rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
        assert_settled(&rig);
        assert_held(&rig, &known);
    }
    assert!(switching >= 2, "only {switching} times killed while both sets of maps were in use");
    rig.matapa.kill().unwrap();
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    assert_settled(&rig);
    assert_held(&rig, &known);
    pause(300);
    traffic.finish();
    drop(serving);
    rig.finish();
}

/// Waits until a daemon that was just launched has made this directory of pins, or is ready: `switching` is there for a tenth
/// of a second, which a slow machine may miss.
fn wait_for(rig: &mut Rig, directory: &str) {
    let starts = |rig: &Rig| rig.matapa.log().matches("INFO ] ready, ").count();
    let before = starts(rig);
    let end = Instant::now() + Duration::from_secs(20);
    while !rig.matapa.pins().join(directory).exists() && starts(rig) == before {
        rig.matapa.check_running().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
        assert!(Instant::now() < end, "no directory {directory}: {}", rig.matapa.log());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A binary that makes maps of another layout than the one under test, and reads that of this one.
pub fn next_layout() -> PathBuf {
    let path = std::env::var_os("MATAPA_NEXT_BIN");
    PathBuf::from(
        path.expect("MATAPA_NEXT_BIN names a matapa with the feature next-layout: cargo xtask test"),
    )
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn maps_of_another_layout_take_over_and_the_older_binary_is_refused() {
    let (mut rig, serving) = start(32_768);
    let old = rig.matapa.binary().to_owned();
    let traffic = Traffic::start(&rig);
    pause(300);
    rig.matapa.backend("drain", "mx1", "nat-datagrams").unwrap();
    let known = held(&rig);
    assert_eq!(known.len(), 140, "{known:?}");
    rig.matapa.kill().unwrap();
    rig.matapa.set_binary(&next_layout());
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    assert_settled(&rig);
    assert_held(&rig, &known);
    let status = rig.matapa.status().unwrap();
    let drained = status.service("nat-datagrams").unwrap().backends.iter().find(|one| one.name == "mx1");
    assert_eq!(drained.unwrap().admin, "draining", "what the operator chose came over");
    rig.matapa.stop().unwrap();

    // The way back is refused, and changes nothing.
    rig.matapa.set_binary(&old);
    let refused = rig.matapa.run_to_end(Duration::from_secs(10)).unwrap();
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert!(refused.stderr.contains("newer than this binary knows"), "{refused:?}");
    pause(300);
    rig.matapa.set_binary(&next_layout());
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    assert_held(&rig, &known);
    pause(300);
    traffic.finish();
    drop(serving);
    rig.finish();
}
