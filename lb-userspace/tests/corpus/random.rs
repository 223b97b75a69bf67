//! Packets that nobody thought of: random ones in the notation, and the corpus's own with bytes changed, cut and added.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_userspace::config::{Forward, Listen, Protocol, Scheduler};
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

/// A service and one of its servers: between whom and clients the conversations below are.
#[derive(Clone, Debug)]
struct Way {
    listen: Listen,
    server: IpAddr,
    /// The server's port; 0: the client's choice.
    port: u16,
    /// What stands for the client: addresses of the server's family, and ports.
    snat: Option<(Vec<IpAddr>, u16, u16)>,
    /// The server is of the other family, and answers the client itself.
    crossed: bool,
}

fn ways(world: &World) -> Vec<Way> {
    let mut ways = Vec::new();
    for service in &world.config.services {
        // Kernel and host would not roll the same.
        assert_ne!(service.scheduler, Scheduler::Random, "{} in {}", service.name, world.name);
        for listen in &service.listen {
            for backend in &world.config.pools[service.pool].backends {
                let alike = |address: &&IpAddr| address.is_ipv4() == backend.address.is_ipv4();
                let crossed = !alike(&&listen.address);
                if crossed && !matches!(service.forward, Forward::Ipip | Forward::Gue) {
                    continue;
                }
                let kept = if listen.port == listen.last_port { listen.port } else { 0 };
                let snat = service.snat.as_ref().map(|snat| {
                    let addresses = snat.addresses.iter().filter(alike).copied().collect();
                    (addresses, snat.first_port, snat.last_port)
                });
                let (server, port) = (backend.address, backend.port.unwrap_or(kept));
                ways.push(Way { listen: *listen, server, port, snat, crossed });
            }
        }
    }
    ways
}

/// Numbers that a seed gives (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    /// Once in `n` times.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Segments that get connections on, and now and then any others.
    fn flags(&mut self) -> String {
        if self.one_in(4) {
            let bits = self.roll();
            let set = "FSRPAUEC".chars().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
            return set.map(|(_, c)| c).collect::<String>() + ".";
        }
        self.pick(&["S", "S", "S", "SA", "SA", "A", "A", "PA", "FA", "R", "RA", "RA"]).to_owned()
    }

    fn hops(&mut self) -> u64 {
        if self.one_in(10) { self.below(2) } else { 2 + self.below(254) }
    }
}

/// Where a conversation's packets come from and go to, on one side of the gateway.
struct Ends {
    from: IpAddr,
    to: IpAddr,
    from_port: u16,
    to_port: u16,
}

impl Way {
    /// A packet from the client or from the server.
    fn ends(&self, dice: &mut Dice, to_server: bool) -> Ends {
        let number = if dice.one_in(10) { 1 + dice.below(120) } else { 1 + dice.below(2) };
        let client: IpAddr = if self.listen.address.is_ipv4() {
            Ipv4Addr::new(192, 0, 2, number as u8).into()
        } else {
            Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, number as u16).into()
        };
        let port = if dice.one_in(10) { dice.roll() as u16 } else { 40_000 + dice.below(2) as u16 };
        let Listen { address, port: first, last_port: last, .. } = self.listen;
        let mut vip_port = first + dice.below(3.min(u64::from(last - first) + 1)) as u16;
        if dice.one_in(30) {
            vip_port ^= 1;
        }
        if to_server {
            return Ends { from: client, to: address, from_port: port, to_port: vip_port };
        }
        let (to, to_port) = match &self.snat {
            Some((addresses, first, last)) if !dice.one_in(10) && !addresses.is_empty() => {
                let ports = u64::from(last - first) + 1;
                (dice.pick(addresses), first + dice.below(ports) as u16)
            }
            _ => (client, port),
        };
        let from_port = if self.port == 0 { vip_port } else { self.port };
        Ends { from: self.server, to, from_port, to_port }
    }

    fn transport(&self, dice: &mut Dice, ends: &Ends, len: u64) -> String {
        let Ends { from_port, to_port, .. } = ends;
        let number = dice.roll() as u32;
        let wrong = if dice.one_in(20) { " sum=+7" } else { "" };
        match self.listen.protocol {
            Protocol::Tcp => {
                let flags = dice.flags();
                format!("tcp {from_port} > {to_port} {flags} seq={number} ack={number}{wrong} / bytes {len}")
            }
            Protocol::Udp => {
                let none = if ends.from.is_ipv4() && dice.one_in(8) { " sum=0" } else { wrong };
                format!("udp {from_port} > {to_port}{none} / bytes {len}")
            }
            Protocol::Any => format!("bytes {len}"),
        }
    }

    /// An IP packet in the notation. `more`: what its header says besides.
    fn packet(&self, dice: &mut Dice, ends: &Ends, more: &str) -> String {
        let Ends { from, to, .. } = ends;
        let len = dice.pick(&[0, 1, 2, 31, 40, 64, 100]);
        let len = if dice.one_in(40) { 1200 + dice.below(500) } else { len };
        let hops = dice.hops();
        let any = self.listen.protocol == Protocol::Any;
        let protocol = dice.pick(&[47, 50, 132, 254]);
        let transport = self.transport(dice, ends, len);
        // Cut where there is something on both sides. Few numbers, so that fragments find their first one.
        let cut = dice.pick(&["0..8", "0..16", "0..24", "8..", "16..", "24..", "8..24"]);
        let cut = (len >= 40 && dice.one_in(5)).then_some(cut);
        let id = dice.below(4);
        if from.is_ipv4() {
            let protocol = if any { format!(" proto={protocol}") } else { String::new() };
            let options =
                if dice.one_in(5) { format!(" opt=nop*{}", 1 + dice.below(40)) } else { String::new() };
            let part = cut.map(|cut| format!(" part={cut}")).unwrap_or_default();
            let mark = dice.pick(&["", " df", " tos=0xb8"]);
            format!("ip4 {from} > {to} ttl={hops} id={id}{part}{protocol}{options}{mark}{more} / {transport}")
        } else {
            let mut headers = Vec::new();
            while dice.one_in(4) && headers.len() < 8 {
                let kind = dice.pick(&["hop-by-hop", "routing", "destination", "destination len=24", "auth"]);
                headers.push(format!("ext {kind}"));
            }
            if let Some(cut) = cut {
                headers.push(format!("ext fragment part={cut} id={id}"));
            }
            let mut own = if any && headers.is_empty() { format!(" next={protocol}") } else { String::new() };
            own += &format!(" flow={} class={}", dice.roll() & 0xf_ffff, dice.pick(&[0, 0xb8]));
            if let (true, Some(last)) = (any, headers.last_mut()) {
                *last += &format!(" next={protocol}");
            }
            let headers: String = headers.iter().map(|header| format!("{header} / ")).collect();
            format!("ip6 {from} > {to} hlim={hops}{own}{more} / {headers}{transport}")
        }
    }

    /// An ICMP error about a packet that went the other way.
    fn error(&self, dice: &mut Dice, to_server: bool) -> String {
        let Ends { from, to, from_port, to_port } = self.ends(dice, to_server);
        let about = Ends { from: to, to: from, from_port: to_port, to_port: from_port };
        let v4 = about.from.is_ipv4();
        let stranger: IpAddr = match (v4, to_server) {
            (true, true) => Ipv4Addr::new(192, 0, 2, 99).into(),
            (true, false) => Ipv4Addr::new(198, 51, 100, 99).into(),
            (false, true) => Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0x99).into(),
            (false, false) => Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 0x99).into(),
        };
        let from = if dice.one_in(2) { about.to } else { stranger };
        let quote = dice.pick(&[0, 7, 8, 8, 8, 8, 12, 18, 20, 28]);
        let quoted = loop {
            let quoted = self.packet(dice, &about, &format!(" quote={quote}"));
            let long = ["bytes 31", "bytes 40", "bytes 64"].iter().any(|len| quoted.ends_with(len));
            if long && (quote <= 8 || !quoted.contains("part=")) {
                break quoted;
            }
        };
        let (hops, to) = (dice.hops(), about.from);
        if v4 {
            let kind =
                dice.pick(&["type=3 code=4 mtu=1400", "type=3 code=3", "type=11", "type=12 rest=0x14000000"]);
            format!("ip4 {from} > {to} ttl={hops} / icmp {kind} / {quoted}")
        } else {
            let kind = dice.pick(&["type=2 mtu=1400", "type=1 code=4", "type=3", "type=4 rest=40"]);
            format!("ip6 {from} > {to} hlim={hops} / icmp6 {kind} / {quoted}")
        }
    }

    fn ping(&self, dice: &mut Dice) -> String {
        let Ends { from, to, .. } = self.ends(dice, true);
        let (hops, len) = (dice.hops(), dice.below(60));
        if from.is_ipv4() {
            format!("ip4 {from} > {to} ttl={hops} / icmp echo / bytes {len}")
        } else {
            format!("ip6 {from} > {to} hlim={hops} / icmp6 echo / bytes {len}")
        }
    }
}

/// Correct packets to services and from servers, and errors about them. Clients, their ports and the numbers of
/// datagrams are few, so that they meet again.
fn correct(world: &World) -> impl Strategy<Value = Packet> + use<> {
    let world = world.clone();
    let ways = ways(&world);
    let place = |name: &str| world.interfaces.iter().position(|i| i.name == name).unwrap_or(0);
    let (ext, int) = (place("ext"), place("int"));
    any::<u64>().prop_map(move |seed| {
        let mut dice = Dice(seed);
        let way = &ways[dice.below(ways.len() as u64) as usize];
        let to_server = way.crossed || !dice.one_in(3);
        let packet = match dice.below(12) {
            0..2 => way.error(&mut dice, to_server),
            2 if to_server => way.ping(&mut dice),
            _ => {
                let ends = way.ends(&mut dice, to_server);
                way.packet(&mut dice, &ends, "")
            }
        };
        let tags = if dice.one_in(10) {
            dice.pick(&[
                "vlan 10 / ",
                "vlan 20 / ",
                "qinq 100 / vlan 7 / ",
                "vlan 0xe000 / ",
                "vlan 1 / vlan 2 / vlan 3 / ",
            ])
        } else {
            ""
        };
        let interface = if to_server { ext } else { int };
        let text = format!("eth / {tags}{packet}");
        let frame = frame::build(&text, world.names(&world.interfaces[interface]));
        Packet { interface, frame: frame.unwrap_or_else(|e| panic!("{text}: {e}")) }
    })
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
