//! What every mode must do.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lb_lab::decap::Wrapping;
use lb_lab::packets::{self, UDP};
use lb_lab::traffic::raw::PacketSender;
use lb_lab::traffic::udp::{self, UdpStream};
use lb_lab::traffic::{dns, http, iperf, path};
use lb_lab::{Topology, kernel_errors, wait_until};

use super::{BULK, DNS, Programs, WEB, Way};
use crate::support::{ECHO, Rig};

const REQUESTS: usize = 24;
const BYTES: u64 = 4 << 20;
/// More than two packets.
const LARGE: usize = 4000;

/// A counter of the daemon's, by name.
pub fn counter(rig: &Rig, name: &str) -> u64 {
    let counters = rig.matapa.counters().unwrap();
    counters.counters.get(name).unwrap_or_else(|| panic!("there is no counter {name}")).value
}

fn both(topology: &Topology) -> BTreeSet<String> {
    topology.servers.iter().map(|host| host.name.clone()).collect()
}

/// Everything, over IPv4 and IPv6.
pub fn everything(rig: &Rig, programs: &[Programs], way: Way) {
    for v6 in [false, true] {
        println!("{} over IPv{}", way.name(), if v6 { 6 } else { 4 });
        let before = counter(rig, "to_backend");
        traffic(&rig.topology, way, v6);
        // Four megabytes alone take as many; the kernel forwards none of them by itself.
        let forwarded = counter(rig, "to_backend") - before;
        assert!(forwarded > 500, "{way:?}: the program sent only {forwarded} packets to backends");
        if way.tunnels() {
            tunnelled(programs, way, v6);
        }
    }
    no_broken_packets(&rig.topology);
}

/// What users of a service see.
pub fn traffic(topology: &Topology, way: Way, v6: bool) {
    requests(topology, way, v6);
    datagrams(topology, way, v6);
    bulk(topology, way, v6);
    large_datagrams(topology, way, v6);
    fragments_out_of_order(topology, way, v6);
    pings(topology, way, v6);
}

/// No kernel at either end found a wrong checksum or a broken header.
pub fn no_broken_packets(topology: &Topology) {
    for host in topology.servers.iter().chain(&topology.clients) {
        let errors = kernel_errors::of(&host.netns).unwrap();
        assert!(errors.is_empty(), "{} got broken packets: {errors:?}", host.name);
    }
}

/// Each is answered, both servers take part, and they see the right client.
fn requests(topology: &Topology, way: Way, v6: bool) {
    let client = way.seen_client(topology, v6);
    let mut seen = BTreeSet::new();
    for _ in 0..REQUESTS {
        let answer =
            http::get(&topology.lab, &topology.clients[0].netns, way.target(v6, WEB), "/from").unwrap();
        let answer = answer.expect("curl").unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
        let (server, from) = answer.trim().split_once(' ').unwrap();
        assert_eq!(from.parse::<IpAddr>().unwrap(), client, "{way:?}");
        seen.insert(server.to_owned());
    }
    assert_eq!(seen, both(topology), "{way:?}");
}

/// A real name server, and a stream that must stay with one server.
fn datagrams(topology: &Topology, way: Way, v6: bool) {
    let target = way.target(v6, DNS);
    let answers: Vec<_> = (0..REQUESTS)
        .map(|_| dns::query(&topology.lab, &topology.clients[0].netns, target).unwrap())
        .collect();
    assert!(answers.iter().all(Option::is_some), "{way:?}: {target} did not answer: {answers:?}");
    assert_eq!(answers.into_iter().flatten().collect::<BTreeSet<_>>(), both(topology), "{way:?}");
    let stream =
        UdpStream::start(&topology.clients[0].netns, way.target(v6, ECHO), Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let result = stream.finish().unwrap();
    assert!(result.sent > 100 && result.lost.is_empty() && result.doubled == 0, "{way:?}: {result:?}");
    assert_eq!(result.servers.len(), 1, "{way:?}: {result:?}");
}

/// Megabytes there and back.
pub fn bulk(topology: &Topology, way: Way, v6: bool) {
    for back in [false, true] {
        transfer(topology, way, v6, back);
    }
}

/// Megabytes to the server, or `back` from it. (An end that has learned a path MTU asks the other one for segments
/// that fit: then that one has nothing to learn.)
pub fn transfer(topology: &Topology, way: Way, v6: bool, back: bool) {
    let target = way.target(v6, BULK);
    let received = iperf::transfer(&topology.lab, &topology.clients[0].netns, target, BYTES, back);
    let received = received.unwrap_or_else(|error| panic!("{way:?}, back {back}: {error:#}"));
    assert!(received >= BYTES - (1 << 19), "{way:?}, back {back}: {received} bytes of {BYTES}");
}

/// Questions and answers that come in fragments.
pub fn large_datagrams(topology: &Topology, way: Way, v6: bool) {
    let text: Vec<u8> = (0..LARGE).map(|number| u8::try_from(number % 251).unwrap()).collect();
    let target = way.target(v6, ECHO);
    let ask = || udp::ask(&topology.clients[0].netns, target, &text).unwrap();
    let first = ask();
    // The first one may be lost, and tell how large the parts may be.
    let answer = if way.tunnels() && first.is_none() { ask() } else { first };
    assert!(answer.is_some_and(|server| both(topology).contains(&server)), "{way:?}: {target}");
}

/// The first part, which alone tells the ports, comes last.
fn fragments_out_of_order(topology: &Topology, way: Way, v6: bool) {
    let (source, target) = (topology.clients[0].address(v6), way.target(v6, ECHO));
    let socket = &topology.clients[0].netns.run(|| UdpSocket::bind((source, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let text = vec![b'f'; LARGE];
    let datagram = packets::udp(socket.local_addr().unwrap(), target, &text);
    let id = socket.local_addr().unwrap().port();
    let parts = packets::fragments(source, target.ip(), UDP, id, &datagram, 1200);
    let sender = PacketSender::new(&topology.clients[0].netns).unwrap();
    for part in parts.iter().rev() {
        sender.send(target.ip(), part).unwrap();
    }
    let mut answer = vec![0; 65_536];
    let (count, from) = socket
        .recv_from(&mut answer)
        .unwrap_or_else(|error| panic!("{way:?}: no answer from {target} to fragments in reverse: {error}"));
    assert_eq!(from, target, "{way:?}");
    assert!(answer[..count].starts_with(&text), "{way:?}");
}

fn pings(topology: &Topology, way: Way, v6: bool) {
    for size in [56, 4000] {
        let target = way.target(v6, 0).ip();
        let pinged = path::ping(&topology.lab, &topology.clients[0].netns, target, size).unwrap();
        pinged.expect("ping").unwrap_or_else(|error| panic!("{way:?}, {size} bytes: {error:#}"));
    }
}

/// Packets came in this wrapping, with outer sources that vary with the flow, and right headers outside.
fn tunnelled(programs: &[Programs], way: Way, v6: bool) {
    let wrapping = Wrapping { gue: way.forward == "gue", outer_v6: way.outer_v6 == Some(true), inner_v6: v6 };
    let mut sources = BTreeSet::new();
    let mut packets = 0;
    for program in programs {
        let seen = program.decapsulator.as_ref().unwrap().seen();
        let unwrapped = seen.get(&wrapping).unwrap_or_else(|| panic!("{wrapping:?} never arrived: {seen:?}"));
        packets += unwrapped.packets;
        assert!(unwrapped.oddities.is_empty(), "{wrapping:?}: {:?}", unwrapped.oddities);
        sources.extend(unwrapped.sources.iter().copied());
    }
    // Most are the megabytes', which have one server.
    assert!(packets > 1000, "{wrapping:?}: {packets}");
    assert!(sources.len() > 10, "{wrapping:?}: {sources:?}");
    let right = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets()[..2] == [172, 16],
        IpAddr::V6(address) => address.segments()[..4] == [0x100, 0, 0, 0],
    };
    assert!(sources.iter().all(|source| right(source.ip())), "{wrapping:?}: {sources:?}");
    if wrapping.gue {
        assert!(sources.iter().all(|source| source.port() >= 0xc000), "{wrapping:?}: {sources:?}");
    }
}

/// Waits until a counter has grown beyond `before`.
pub fn wait_counter(rig: &Rig, name: &str, before: u64) {
    wait_until(&format!("the counter {name} to grow"), Duration::from_secs(2), || {
        Ok((counter(rig, name) > before).then_some(()))
    })
    .unwrap();
}

/// A datagram of `size` bytes, with its headers, of which the kernel must not make two; nobody answers it.
pub fn do_not_fragment(topology: &Topology, target: SocketAddr, size: usize) {
    let any = SocketAddr::new(topology.clients[0].address(target.is_ipv6()), 0);
    let socket = topology.clients[0].netns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
    // Linux sets DF on UDP that fits the first link, as long as it discovers path MTUs.
    let headers = if target.is_ipv4() { 28 } else { 48 };
    socket.send_to(&vec![b'd'; size - headers], target).unwrap();
}
