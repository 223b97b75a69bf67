//! What is measured.

mod kinds;
mod modes;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::abi::flow::WAYS;
use lb_common::verdict::Reason;
use lb_userspace::dataplane::Capacity;
use lb_userspace::dataplane::kernel::load::Geometry;

use crate::floors::Sizes;
use crate::frames::{self, Client, Payload, flags};
use crate::instance::{DEAD, NONE};
use crate::layout::Setup;
use crate::network::{ONE_ARMED, client4, client6, server4, server6};

/// What a program tells the driver (`enum xdp_action` of linux/bpf.h).
pub mod verdict {
    pub const DROP: u32 = 1;
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
    pub const REDIRECT: u32 = 4;
}

const VIP4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 10);
/// The lowest port of a client.
const CLIENT_PORT: u16 = 16_384;
/// The lowest port of many services.
const SERVICE_PORT: u16 = 10_000;

/// The flows that the frames of a case belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flows {
    One,
    /// This many, a power of two, in a scattered order.
    Many(u32),
    /// Each frame another one.
    Fresh,
}

impl Flows {
    pub const fn mask(self) -> u32 {
        match self {
            Self::One => 0,
            Self::Many(n) => n - 1,
            Self::Fresh => (1 << 30) - 1,
        }
    }
}

impl std::fmt::Display for Flows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One => f.pad("1"),
            Self::Many(n) => f.pad(&n.to_string()),
            Self::Fresh => f.pad("fresh"),
        }
    }
}

/// A configuration of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum World {
    /// One service of each kind.
    Main,
    /// One hundred listeners.
    Hundred,
    /// Ten thousand listeners.
    TenThousand,
    /// Services of every forwarding mode.
    Modes,
    /// A service that records hardly any new flow.
    Flood,
    /// As `Main`, for a million of flows to backends.
    ManyTo,
    /// As `Main`, for a million of flows whose backends answer.
    ManyFrom,
    /// As `Main`, for four million flows in a table of four times as many places as the others have.
    FourMillion,
    /// A service with one thousand servers.
    TenThousandBackends,
    /// A service, for new flows.
    Fresh,
    /// A service whose flow table is full.
    Full,
}

/// The program behind the wrapper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Floor(&'static str),
    Product(World),
}

/// Which interface a frame came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Client,
    Server,
}

/// What is done to the flow table before each measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Kept,
    /// Emptied, so that new flows find room.
    Emptied,
    /// What made the flows is sent again, for what is soon forgotten.
    Renewed,
}

/// How much of the packets something must hold for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    pub least: f64,
    pub most: f64,
}

const ALL: Share = Share { least: 1.0, most: 1.0 };
const NEARLY_ALL: Share = Share { least: 0.98, most: 1.0 };
const HARDLY_ANY: Share = Share { least: 0.0, most: 0.02 };
/// What comes of lines that happen to be full.
const STRAY: Share = Share { least: 0.0, most: 0.001 };
const NO: Share = Share { least: 0.0, most: 0.0 };

/// What must be true of a measurement, by the programs' own counters.
#[derive(Clone, Debug)]
pub struct Expected {
    pub verdict: u32,
    /// How every packet ended; no other end may be counted. `None` for floors.
    pub end: Option<Reason>,
    /// What may be counted beside it.
    pub notes: Vec<(Reason, Share)>,
    /// Packets that took a free place of the flow table.
    pub recorded: Share,
    /// Packets that a floor may fail with.
    pub failed: Share,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub flows: Flows,
    pub target: Target,
    pub setup: Setup,
    pub from: From,
    /// Frames that make the flows, sent once before everything.
    pub before: Vec<Setup>,
    pub table: Table,
    pub expected: Expected,
}

/// The floor that all is compared with.
pub const FLOOR: &str = "return XDP_TX";
/// The smallest packet path that a balancer with the kernel's own maps could have.
pub const MAPS: &str = "hash 8 B + LRU 16 B";

/// How large everything is.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Lines of the flow table.
    lines: u32,
    /// More than 65,536 flows.
    million: bool,
}

impl Scale {
    pub const fn new(quick: bool) -> Self {
        if quick { Self { lines: 1 << 18, million: false } } else { Self { lines: 1 << 19, million: true } }
    }

    pub const fn sizes(self) -> Sizes {
        let flows = self.lines * WAYS as u32;
        Sizes { lru: flows, lru_insert: flows / 4, lines: self.lines }
    }

    /// Places of the flow table.
    pub const fn places(self) -> u32 {
        self.lines * WAYS as u32
    }

    /// The most flows that are measured with.
    pub const fn most_flows(self) -> u32 {
        if self.million { 1 << 20 } else { 1 << 16 }
    }

    pub const fn geometry(self, world: World) -> Geometry {
        let (listeners, backends, table_slots) = match world {
            World::TenThousand => (10_240, 20_480, 1 << 22),
            World::TenThousandBackends => (256, 10_240, 1 << 20),
            World::Main
            | World::Modes
            | World::Flood
            | World::Hundred
            | World::ManyTo
            | World::ManyFrom
            | World::FourMillion
            | World::Fresh
            | World::Full => (256, 2048, 1 << 20),
        };
        let flow_lines = if matches!(world, World::FourMillion) { self.lines * 4 } else { self.lines };
        Geometry { capacity: Capacity { listeners, backends, table_slots }, flow_lines }
    }

    /// More flows than the floors' LRU map has room for.
    fn four_million(self) -> Option<Flows> {
        self.million.then_some(Flows::Many(1 << 22))
    }

    fn many(self) -> Vec<Flows> {
        if self.million {
            vec![Flows::One, Flows::Many(1 << 16), Flows::Many(1 << 20)]
        } else {
            vec![Flows::One, Flows::Many(1 << 16)]
        }
    }
}

/// The configuration of a world.
pub fn configuration(world: World) -> String {
    let limit = if world == World::Flood { 1 } else { 10_000_000 };
    let mut text = String::from("interfaces = [\"client0\", \"server0\"]\n");
    let mut service = |name: &str, listen: &[String], servers: &[IpAddr]| {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "[services.{name}]\nnew_flow_limit = {limit}\nlisten = {listen:?}\nbackends = {:?}\n",
            strings(servers)
        );
    };
    let v4 = |ns: std::ops::RangeInclusive<u16>| ns.map(|n| server4(n).into()).collect::<Vec<IpAddr>>();
    let v6 = |ns: std::ops::RangeInclusive<u16>| ns.map(|n| server6(n).into()).collect::<Vec<IpAddr>>();
    let ports = |n: u16| (0..n).map(|i| format!("{VIP4}:{}/tcp", SERVICE_PORT + i)).collect::<Vec<_>>();
    match world {
        World::Main | World::ManyTo | World::ManyFrom | World::FourMillion => {
            service("tcp4", &[format!("{}/tcp", vip4(0, 80))], &v4(1..=2));
            service("udp4", &[format!("{}/udp", vip4(0, 53))], &v4(1..=2));
            service("tcp6", &[format!("{}/tcp", vip6(0, 80))], &v6(1..=2));
            service("udp6", &[format!("{}/udp", vip6(0, 53))], &v6(1..=2));
            service("single", &[format!("{}/tcp", vip4(1, 80)), format!("{}/udp", vip4(1, 53))], &v4(3..=3));
            service("single6", &[format!("{}/tcp", vip6(1, 80)), format!("{}/udp", vip6(1, 53))], &v6(3..=3));
            service(DEAD, &[format!("{}/tcp", vip4(2, 80))], &v4(4..=5));
            service(NONE, &[format!("{}/tcp", vip4(3, 80))], &v4(6..=7));
            service("one-armed", &[format!("{}/tcp", vip4(4, 80))], &[ONE_ARMED.into()]);
        }
        World::Hundred => service("many", &ports(100), &v4(1..=2)),
        World::TenThousand => service("many", &ports(10_000), &v4(1..=2)),
        World::TenThousandBackends => service("tcp4", &[format!("{}/tcp", vip4(0, 80))], &v4(1..=10_000)),
        World::Modes => return text + &modes::configuration(),
        World::Flood => service("tcp4", &[format!("{}/tcp", vip4(0, 80))], &v4(1..=2)),
        World::Fresh | World::Full => {
            service("tcp4", &[format!("{}/tcp", vip4(0, 80))], &v4(1..=2));
            service("udp4", &[format!("{}/udp", vip4(0, 53))], &v4(1..=2));
            service("tcp6", &[format!("{}/tcp", vip6(0, 80))], &v6(1..=2));
        }
    }
    text
}

fn strings(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

fn vip4(n: u8, port: u16) -> SocketAddr {
    let [a, b, c, d] = VIP4.octets();
    (Ipv4Addr::new(a, b, c, d + n), port).into()
}

fn vip6(n: u16, port: u16) -> SocketAddr {
    let mut segments = VIP6.segments();
    segments[7] += n;
    (Ipv6Addr::from(segments), port).into()
}

/// The frames that fill the tables of the floors.
pub fn floor_flows(scale: Scale) -> [(Setup, Flows); 2] {
    let flows = Flows::Many(scale.most_flows());
    [(floor_frame(flows), flows), (floor_frame6(), Flows::One)]
}

/// The frame that fills a flow table.
pub fn flood() -> Setup {
    let mut setup = frames::packet(
        (client4(250), CLIENT_PORT).into(),
        vip4(0, 80),
        Payload::Tcp(flags::SYN),
        Client::Source,
    );
    setup.mask = Flows::Fresh.mask();
    setup
}

fn floor_frame(flows: Flows) -> Setup {
    let mut setup = frames::packet(
        (client4(200), CLIENT_PORT).into(),
        vip4(0, 80),
        Payload::Tcp(flags::ACK),
        Client::Source,
    );
    setup.mask = flows.mask();
    setup
}

fn floor_frame6() -> Setup {
    frames::packet((client6(200), CLIENT_PORT).into(), vip6(0, 80), Payload::Tcp(flags::ACK), Client::Source)
}

/// All cases, floors first.
pub fn all(scale: Scale) -> Vec<Case> {
    let mut list = List { cases: Vec::new(), network: 0 };
    list.floors(scale);
    list.forwarded(scale);
    list.begun();
    list.others();
    list.services();
    list.modes();
    list.kinds();
    list.cases
}

struct List {
    cases: Vec<Case>,
    /// Each case has clients of its own, so that it has flows of its own.
    network: u8,
}

/// The four kinds of flows.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    v6: bool,
    tcp: bool,
}

const KINDS: [Kind; 4] = [
    Kind { name: "TCP IPv4", v6: false, tcp: true },
    Kind { name: "UDP IPv4", v6: false, tcp: false },
    Kind { name: "TCP IPv6", v6: true, tcp: true },
    Kind { name: "UDP IPv6", v6: true, tcp: false },
];

impl Kind {
    const fn port(self) -> u16 {
        if self.tcp { 80 } else { 53 }
    }

    fn vip(self, n: u8) -> SocketAddr {
        if self.v6 { vip6(u16::from(n), self.port()) } else { vip4(n, self.port()) }
    }

    fn client(self, network: u8) -> SocketAddr {
        let address: IpAddr = if self.v6 { client6(network).into() } else { client4(network).into() };
        (address, CLIENT_PORT).into()
    }

    const fn payload(self, flags: u8) -> Payload {
        if self.tcp { Payload::Tcp(flags) } else { Payload::Udp }
    }

    /// What a client sends to open a connection, and then in it.
    fn opening(self, client: SocketAddr, vip: SocketAddr) -> Vec<Setup> {
        let frame = |flags| frames::packet(client, vip, self.payload(flags), Client::Source);
        if self.tcp { vec![frame(flags::SYN), frame(flags::ACK)] } else { vec![frame(0)] }
    }
}

const fn ends(end: Reason, verdict: u32) -> Expected {
    Expected { verdict, end: Some(end), notes: Vec::new(), recorded: NO, failed: NO }
}

/// In a line that is full a flow loses its place; it gets another one's with its next packet.
fn crowded(flows: Flows) -> Vec<(Reason, Share)> {
    match flows {
        Flows::Many(_) => vec![(Reason::FlowEvicted, STRAY), (Reason::FlowNotRecorded, STRAY)],
        Flows::One | Flows::Fresh => Vec::new(),
    }
}

impl List {
    fn network(&mut self) -> u8 {
        self.network += 1;
        self.network
    }

    fn push(
        &mut self,
        name: impl Into<String>,
        flows: Flows,
        world: World,
        mut setup: Setup,
        expected: Expected,
    ) {
        setup.mask = flows.mask();
        self.cases.push(Case {
            name: name.into(),
            flows,
            target: Target::Product(world),
            setup,
            from: From::Client,
            before: Vec::new(),
            table: Table::Kept,
            expected,
        });
    }

    /// For the case just pushed.
    fn last(&mut self, change: impl FnOnce(&mut Case)) {
        if let Some(case) = self.cases.last_mut() {
            change(case);
        }
    }

    /// The frames that make the flows of the case just pushed.
    fn after(&mut self, before: Vec<Setup>) {
        self.last(|case| {
            case.before = before;
            for frame in &mut case.before {
                frame.mask = case.flows.mask();
                (frame.service, frame.service_mask) = if frame.service_at == case.setup.service_at {
                    (case.setup.service, case.setup.service_mask)
                } else {
                    (frame.service, 0)
                };
            }
        });
    }

    fn floor(&mut self, name: &str, floor: &'static str, flows: Flows, verdict: u32, mut setup: Setup) {
        setup.mask = flows.mask();
        // A line of the array that happens to be full did not take a flow.
        let failed = if matches!(flows, Flows::Many(_)) { STRAY } else { NO };
        self.cases.push(Case {
            name: name.to_owned(),
            flows,
            target: Target::Floor(floor),
            setup,
            from: From::Client,
            before: Vec::new(),
            table: Table::Kept,
            expected: Expected { verdict, end: None, notes: Vec::new(), recorded: NO, failed },
        });
    }

    fn floors(&mut self, scale: Scale) {
        let tx = verdict::TX;
        for flows in scale.many().into_iter().chain(scale.four_million()).chain([Flows::Fresh]) {
            self.floor(FLOOR, "floor_tx", flows, tx, floor_frame(flows));
        }
        let one = floor_frame(Flows::One);
        for (name, floor) in [
            ("swap MACs", "floor_swap"),
            ("parse", "floor_parse"),
            ("parse + 2 per-CPU counters", "floor_counters"),
            ("jiffies", "floor_jiffies"),
            ("ktime", "floor_ktime"),
            ("adjust_tail there and back", "floor_truncate"),
            ("adjust_head there and back", "floor_prepend"),
            ("parse + hash 8 B", "floor_hash8"),
            ("parse + hash 8 B, a miss and a hit", "floor_hash8_twice"),
        ] {
            self.floor(name, floor, Flows::One, tx, one);
        }
        self.floor("redirect", "floor_redirect", Flows::One, verdict::REDIRECT, one);
        self.floor("parse + hash 20 B", "floor_hash20", Flows::One, tx, floor_frame6());
        let to = |address: IpAddr| {
            let source: SocketAddr = if address.is_ipv4() { vip4(0, 80) } else { vip6(0, 80) };
            frames::packet(source, (address, 80).into(), Payload::Tcp(flags::ACK), Client::None)
        };
        self.floor("fib_lookup IPv4, a server", "floor_fib4", Flows::One, tx, to(server4(1).into()));
        self.floor("fib_lookup IPv4, by a router", "floor_fib4", Flows::One, tx, to(client4(1).into()));
        self.floor("fib_lookup IPv6, a server", "floor_fib6", Flows::One, tx, to(server6(1).into()));
        self.floor("fib_lookup IPv6, by a router", "floor_fib6", Flows::One, tx, to(client6(1).into()));
        for (name, floor) in [
            ("parse + LRU 16 B", "floor_lru16"),
            (MAPS, "floor_hash8_lru16"),
            ("parse + flow hash + line of an array", "floor_line"),
        ] {
            for flows in scale.many() {
                self.floor(name, floor, flows, tx, floor_frame(flows));
            }
        }
        self.floor("LRU insert 16 B", "floor_lru_insert", Flows::Fresh, tx, floor_frame(Flows::Fresh));
    }

    /// Packets of flows that are known, both ways.
    fn forwarded(&mut self, scale: Scale) {
        for kind in KINDS {
            for flows in scale.many().into_iter().chain(scale.four_million()) {
                let world = match flows {
                    Flows::Many(n) if n > 1 << 20 => World::FourMillion,
                    Flows::Many(n) if n > 1 << 16 => World::ManyTo,
                    Flows::One | Flows::Many(_) | Flows::Fresh => World::Main,
                };
                if world != World::Main && (kind.v6 || !kind.tcp) {
                    continue;
                }
                let client = kind.client(self.network());
                let opening = kind.opening(client, kind.vip(0));
                let Some(data) = opening.last().copied() else { continue };
                let expected =
                    Expected { notes: crowded(flows), ..ends(Reason::ToBackend, verdict::REDIRECT) };
                self.push(format!("to backend, {}", kind.name), flows, world, data, expected);
                self.after(opening);
            }
        }
        for kind in KINDS {
            for flows in scale.many() {
                let world = match flows {
                    Flows::Many(n) if n > 1 << 16 => World::ManyFrom,
                    Flows::One | Flows::Many(_) | Flows::Fresh => World::Main,
                };
                if flows != Flows::One && (kind.v6 || !kind.tcp) {
                    continue;
                }
                let client = kind.client(self.network());
                let server: IpAddr = if kind.v6 { server6(3).into() } else { server4(3).into() };
                let answer = frames::packet(
                    (server, kind.port()).into(),
                    client,
                    kind.payload(flags::ACK),
                    Client::Destination,
                );
                let expected = ends(Reason::ToClient, verdict::REDIRECT);
                self.push(format!("from backend, {}", kind.name), flows, world, answer, expected);
                self.after(kind.opening(client, kind.vip(1)));
                self.last(|case| case.from = From::Server);
            }
        }
        let client = KINDS[0].client(self.network());
        let opening = KINDS[0].opening(client, vip4(4, 80));
        if let Some(data) = opening.last().copied() {
            let expected = ends(Reason::ToBackend, verdict::TX);
            self.push("to backend, TCP IPv4, one interface", Flows::One, World::Main, data, expected);
            self.after(opening);
        }
    }

    /// New flows.
    fn begun(&mut self) {
        for kind in [KINDS[0], KINDS[1], KINDS[2]] {
            let client = kind.client(self.network());
            let first = kind.opening(client, kind.vip(0))[0];
            let expected = Expected {
                notes: vec![
                    (Reason::FlowEvicted, HARDLY_ANY),
                    (Reason::FlowNotRecorded, HARDLY_ANY),
                    (Reason::SecondChance, STRAY),
                ],
                recorded: NEARLY_ALL,
                ..ends(Reason::ToBackend, verdict::REDIRECT)
            };
            self.push(format!("new flow, {}", kind.name), Flows::Fresh, World::Fresh, first, expected);
            self.last(|case| case.table = Table::Emptied);
        }
        let client = KINDS[0].client(self.network());
        let syn = KINDS[0].opening(client, vip4(0, 80))[0];
        let expected = Expected {
            // With eight flows in each line, one packet in two millions has another flow's fingerprint.
            notes: vec![
                (Reason::FlowEvicted, NEARLY_ALL),
                (Reason::FlowNotRecorded, HARDLY_ANY),
                (Reason::SecondChance, STRAY),
            ],
            recorded: HARDLY_ANY,
            ..ends(Reason::ToBackend, verdict::REDIRECT)
        };
        self.push("new flow, TCP IPv4, full table", Flows::Fresh, World::Full, syn, expected);

        let client = KINDS[0].client(self.network());
        let syn = KINDS[0].opening(client, vip4(0, 80))[0];
        let expected = Expected {
            // What the limit allows is used up in no time.
            notes: vec![(Reason::FlowSuppressed, NEARLY_ALL), (Reason::SecondChance, STRAY)],
            recorded: HARDLY_ANY,
            ..ends(Reason::ToBackend, verdict::REDIRECT)
        };
        self.push("SYN flood over the limit, TCP IPv4", Flows::Fresh, World::Flood, syn, expected);

        let client = KINDS[0].client(self.network());
        let syn = KINDS[0].opening(client, vip4(0, 80))[0];
        let expected = Expected {
            notes: vec![(Reason::SecondChance, ALL)],
            ..ends(Reason::ToBackend, verdict::REDIRECT)
        };
        self.push("repeated SYN, second chance", Flows::One, World::Main, syn, expected);
        self.after(vec![syn]);
    }

    /// Packets that are not forwarded.
    fn others(&mut self) {
        let network = self.network();
        let (client, client_v6) = (KINDS[0].client(network), KINDS[2].client(network));
        let pass = |reason| ends(reason, verdict::PASS);
        let ack = Payload::Tcp(flags::ACK);
        let mut push = |name: &str, setup: Setup, expected: Expected| {
            self.push(name, Flows::One, World::Main, setup, expected);
        };
        let elsewhere = frames::packet(client, (server4(9), 443).into(), ack, Client::Source);
        push("no service, TCP IPv4", elsewhere, pass(Reason::NoService));
        let elsewhere = frames::packet(client_v6, (server6(9), 443).into(), ack, Client::Source);
        push("no service, TCP IPv6", elsewhere, pass(Reason::NoService));
        push("ARP", frames::arp(), pass(Reason::NotIp));
        let syn = frames::packet(client, vip4(3, 80), Payload::Tcp(flags::SYN), Client::Source);
        push("no backend", syn, ends(Reason::NoBackend, verdict::DROP));

        let client = KINDS[0].client(self.network());
        let opening = KINDS[0].opening(client, vip4(2, 80));
        if let Some(data) = opening.last().copied() {
            let expected = ends(Reason::ClientReset, verdict::TX);
            self.push("client reset", Flows::One, World::Main, data, expected);
            self.after(opening);
        }
    }

    /// Many services, many backends.
    fn services(&mut self) {
        let many = Flows::Many(1 << 16);
        for (name, world, flows, port, mask) in [
            ("100 services, one in use", World::Hundred, Flows::One, 50, 0),
            ("10,000 services, one in use", World::TenThousand, Flows::One, 5000, 0),
            ("10,000 services, one in use", World::TenThousand, many, 5000, 0),
            ("10,000 services, 8,192 in use", World::TenThousand, many, 0, 8191),
        ] {
            let client = KINDS[0].client(self.network());
            let opening = KINDS[0].opening(client, vip4(0, SERVICE_PORT + port));
            let Some(mut data) = opening.last().copied() else { continue };
            data.service_mask = mask;
            let expected = Expected { notes: crowded(flows), ..ends(Reason::ToBackend, verdict::REDIRECT) };
            self.push(format!("to backend, {name}"), flows, world, data, expected);
            self.after(opening);
        }
        for flows in [Flows::One, many] {
            let client = KINDS[0].client(self.network());
            let opening = KINDS[0].opening(client, vip4(0, 80));
            let Some(data) = opening.last().copied() else { continue };
            let expected = Expected { notes: crowded(flows), ..ends(Reason::ToBackend, verdict::REDIRECT) };
            self.push("to backend, one of 10,000 servers", flows, World::TenThousandBackends, data, expected);
            self.after(opening);
        }
    }
}
