//! Packets that nobody thought of: random ones in the notation, and the corpus's own with bytes changed, cut and added.

use std::net::IpAddr;

use lb_userspace::config::{Listen, Protocol, Scheduler};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::corpus::cases::{self, Chapter};
use super::corpus::frame;
use super::corpus::machine::{Engine, Machine};
use super::corpus::world::{State, States, World};

/// A frame, and the interface it comes in on by its place among the world's.
#[derive(Clone, Debug)]
pub struct Packet {
    pub interface: usize,
    pub frame: Vec<u8>,
}

/// What is done to a frame of the corpus.
#[derive(Clone, Debug)]
enum Change {
    Byte(Index, u8),
    /// Within the headers.
    HeaderByte(usize, u8),
    Bit(usize, u8),
    Cut(Index),
    Add(Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        4 => (12usize..80, select(vec![0u8, 1, 4, 5, 6, 15, 17, 0x45, 0x46, 0x60, 0x80, 0xff])).prop_map(|(at, byte)| Change::HeaderByte(at, byte)),
        4 => (12usize..80, 0u8..8).prop_map(|(at, bit)| Change::Bit(at, bit)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Change::Add),
    ]
}

/// A kernel's test run takes no frame shorter than an Ethernet header; such ones are left to the cases.
fn apply(frame: &mut Vec<u8>, change: &Change) {
    let last = frame.len() - 1;
    match change {
        Change::Byte(at, byte) => {
            frame[at.index(last + 1)] = *byte;
        }
        Change::HeaderByte(at, byte) => frame[(*at).min(last)] = *byte,
        Change::Bit(at, bit) => frame[(*at).min(last)] ^= 1 << bit,
        Change::Cut(at) => frame.truncate(14 + at.index(last - 12)),
        Change::Add(bytes) => frame.extend(bytes),
    }
}

/// Frames of the corpus with up to four changes.
fn changed(world: &World) -> impl Strategy<Value = Packet> + use<> {
    let chapters = cases::load();
    let cases = chapters.into_iter().filter(|c| c.world.name == world.name).flat_map(|c: Chapter| c.cases);
    let places: Vec<_> = world.interfaces.iter().map(|i| i.name.clone()).collect();
    let seeds: Vec<Packet> = cases
        .filter(|case| (14..1500).contains(&case.packet.frame.len()))
        .map(|case| Packet {
            interface: places.iter().position(|name| *name == case.packet.ingress).unwrap_or(0),
            frame: case.packet.frame,
        })
        .collect();
    (select(seeds), prop::collection::vec(change(), 0..5)).prop_map(|(mut packet, changes)| {
        changes.iter().for_each(|change| apply(&mut packet.frame, change));
        packet
    })
}

/// An end of the conversations below.
#[derive(Clone, Debug)]
struct End {
    address: IpAddr,
    port: u16,
    protocol: Protocol,
    /// A service's, not a server's.
    service: bool,
}

/// Services and servers, and now and then ports of theirs that are nobody's.
fn ends(world: &World) -> impl Strategy<Value = End> + use<> {
    let mut ends = Vec::new();
    for service in &world.config.services {
        // Kernel and host would not roll the same.
        assert_ne!(service.scheduler, Scheduler::Random, "{} in {}", service.name, world.name);
        for listen in &service.listen {
            let Listen { address, port, protocol } = *listen;
            ends.push(End { address, port, protocol, service: true });
            for backend in &world.config.pools[service.pool].backends {
                if backend.address.is_ipv4() == address.is_ipv4() {
                    let (address, port) = (backend.address, backend.port.unwrap_or(port));
                    ends.push(End { address, port, protocol, service: false });
                }
            }
        }
    }
    let port = prop_oneof![30 => Just(0u16), 1 => Just(1)];
    (select(ends), port).prop_map(|(end, more)| End { port: end.port ^ more, ..end })
}

/// Segments that get connections on, and any others.
fn flags() -> impl Strategy<Value = String> {
    let any = any::<u8>().prop_map(|bits| {
        "FSRPAUEC"
            .chars()
            .enumerate()
            .filter(|(bit, _)| bits & (1 << bit) != 0)
            .map(|(_, c)| c)
            .collect::<String>()
            + "."
    });
    let usual = select(vec!["S", "S", "S", "SA", "SA", "A", "PA", "FA", "R", "RA", "RA"]);
    prop_oneof![3 => usual.prop_map(str::to_owned), 1 => any]
}

/// Correct packets to services and from servers. Clients and their ports are few, so that they meet again.
fn correct(world: &World) -> impl Strategy<Value = Packet> + use<> {
    let world = world.clone();
    let client = prop_oneof![9 => 1u8..3, 1 => any::<u8>()];
    let port = prop_oneof![9 => 40_000u16..40_002, 1 => any::<u16>()];
    let hops = prop_oneof![9 => 2u8..=255, 1 => 0u8..2];
    let rest = (flags(), hops, any::<u32>(), 0usize..40, any::<bool>());
    (ends(&world), client, port, rest).prop_map(
        move |(end, client, port, (flags, hops, number, len, options))| {
            let End { address, port: near_port, protocol, service } = end;
            let v6 = address.is_ipv6();
            let near = address.to_string();
            let far = if v6 { format!("2001:db8:c::{client:x}") } else { format!("192.0.2.{client}") };
            let (a, b) = if service { (far, near) } else { (near, far) };
            let (from, to) = if service { (port, near_port) } else { (near_port, port) };
            let ip = match (v6, options) {
                (true, _) => format!("ip6 {a} > {b} hlim={hops} flow={}", number & 0xf_ffff),
                (false, false) => format!("ip4 {a} > {b} ttl={hops} id={port}"),
                (false, true) => format!("ip4 {a} > {b} ttl={hops} id={port} opt=nop*{}", len.max(1)),
            };
            let transport = match protocol {
                Protocol::Tcp => format!("tcp {from} > {to} {flags} seq={number} ack={number}"),
                Protocol::Udp => format!("udp {from} > {to}"),
            };
            let text = format!("eth / {ip} / {transport} / bytes {len}");
            let name = if service { "ext" } else { "int" };
            let interface = world.interfaces.iter().position(|i| i.name == name).unwrap_or(0);
            let frame = frame::build(&text, world.names(&world.interfaces[interface]));
            Packet { interface, frame: frame.unwrap_or_else(|e| panic!("{text}: {e}")) }
        },
    )
}

fn noise(world: &World) -> impl Strategy<Value = Packet> + use<> {
    let types = select(vec![[0x08u8, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x00, 0x00]]);
    (0..world.interfaces.len(), types, prop::collection::vec(any::<u8>(), 14..200)).prop_map(
        |(interface, ether_type, mut frame)| {
            frame[12..14].copy_from_slice(&ether_type);
            Packet { interface, frame }
        },
    )
}

/// Packets for a world that has interfaces `ext` and `int`.
pub fn packet(world: &World) -> impl Strategy<Value = Packet> + use<> {
    prop_oneof![6 => changed(world), 4 => correct(world), 1 => noise(world)]
}

/// Takes servers down under connections that were made while they were up, so that resets happen.
pub fn lose_servers<E: Engine>(machine: &mut Machine<E>, world: &World) {
    machine.configure(world, &world.state);
    let ext = world.interface("ext").expect("the world has ext");
    for text in [
        "eth / ip4 192.0.2.1 > 203.0.113.10 / tcp 40000 > 25 A",
        "eth / ip4 192.0.2.1 > 203.0.113.10 / tcp 40000 > 587 A",
        "eth / ip6 2001:db8:c::1 > 2001:db8:cb::10 / tcp 40000 > 25 A",
        "eth / ip6 2001:db8:c::1 > 2001:db8:cb::10 / tcp 40000 > 587 A",
        "eth / ip4 192.0.2.1 > 203.0.113.53 / udp 5000 > 53",
    ] {
        let frame = frame::build(text, world.names(ext)).expect("the notation is right");
        machine.run(ext.index, &frame);
    }
    let mut states: States = world.state.clone();
    for name in ["mx1", "mx1-v6", "sub1", "sub1-v6", "ns1"] {
        states.insert(name.into(), State::Down);
    }
    for name in ["mx2", "mx2-v6", "ns2"] {
        states.insert(name.into(), State::Up);
    }
    machine.configure(world, &states);
}
