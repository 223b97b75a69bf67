//! Random configurations with what is known of their servers, for the tests of this module.
//!
//! Addresses, ports and names come from small sets, so that two of them have much in common: the same servers behind
//! other listeners, the same VIP in another service.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::Capacity;
use super::desired::{Verdicts, desired};
use super::image::{BackendEntry, ByHand, Id, Image, ListenerEntry, Server, Table, TableKind, serves};
use crate::api::types::AdminState;
use crate::config::{
    Backend, Config, Control, Flows, Forward, Listen, Member, OnDown, Pool, Protocol, Quorum, Resolver, Role,
    Scheduler, Service, Snat, Tunnel, WhenEmpty, XdpMode,
};
use crate::health::Health;

/// As a small daemon has it.
pub const CAPACITY: Capacity = Capacity { listeners: 64, backends: 256, table_slots: 1 << 22 };

/// The first port, and the last one.
const VIPS: [(&str, u16, u16, Protocol); 15] = [
    ("203.0.113.10", 25, 25, Protocol::Tcp),
    ("203.0.113.20", 25, 25, Protocol::Tcp),
    ("203.0.113.10", 587, 587, Protocol::Tcp),
    ("203.0.113.10", 53, 53, Protocol::Udp),
    ("2001:db8::10", 25, 25, Protocol::Tcp),
    ("2001:db8::20", 53, 53, Protocol::Udp),
    ("203.0.113.10", 8000, 8100, Protocol::Tcp),
    // In the place of the one before, more or less.
    ("203.0.113.10", 8050, 8200, Protocol::Tcp),
    ("203.0.113.10", 8201, 8300, Protocol::Tcp),
    // The first range again, shorter and longer.
    ("203.0.113.10", 8000, 8049, Protocol::Tcp),
    ("203.0.113.10", 8000, 8200, Protocol::Tcp),
    ("203.0.113.20", 8090, 8210, Protocol::Tcp),
    ("203.0.113.10", 8000, 8100, Protocol::Udp),
    ("203.0.113.10", 0, 0, Protocol::Any),
    ("203.0.113.20", 0, 0, Protocol::Any),
];
const SERVERS: [&str; 5] =
    ["198.51.100.11", "198.51.100.12", "198.51.100.13", "2001:db8:64::11", "2001:db8:64::12"];
const SERVICES: [&str; 3] = ["mail", "names", "third"];
const SOURCES: [&str; 5] =
    ["198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8:64::1", "2001:db8:64::2"];

/// A configuration, and what the checks and the operator say.
#[derive(Clone, Debug)]
pub struct World {
    pub config: Config,
    health: Vec<Health>,
    admin: Vec<AdminState>,
}

impl World {
    /// Something that differs between backends, and between worlds.
    fn chance(&self, service: &Service, backend: &Backend) -> usize {
        let server = backend.name.bytes().last().map_or(0, usize::from);
        let state = self.admin[service.listen.len() % self.admin.len()] as usize;
        server + state + service.name.len()
    }

    /// The image for it, after `previous`.
    pub fn image(&self, previous: &Image) -> Image {
        desired(&self.config, self, previous, CAPACITY).expect("it fits")
    }
}

impl Verdicts for World {
    fn health(&self, _: &Service, listen: &Listen, member: &Member<'_>) -> Health {
        let server = SERVERS.iter().position(|s| member.backend.address == address(s)).unwrap_or(0);
        self.health[(server + usize::from(listen.port)) % self.health.len()]
    }

    fn admin(&self, service: &Service, backend: &Backend) -> AdminState {
        let server = backend.name.bytes().last().map_or(0, usize::from);
        self.admin[(service.name.len() + server) % self.admin.len()]
    }

    fn by_hand(&self, service: &Service, backend: &Backend) -> ByHand {
        let admin = self.admin(service, backend);
        // Nobody but an operator drains.
        let by_operator = admin == AdminState::Draining || self.chance(service, backend).is_multiple_of(2);
        ByHand { admin: by_operator, weight: (backend.weight != 1).then_some(backend.weight) }
    }

    fn service_by_hand(&self, service: &Service) -> Option<bool> {
        [None, Some(true), Some(false)][self.health.len().min(service.listen.len()) % 3]
    }

    fn weight(&self, service: &Service, _: &Listen, member: &Member<'_>) -> u16 {
        // Some have a part of it only.
        let rising = member.role == Role::Primary && self.chance(service, member.backend).is_multiple_of(3);
        if rising { member.backend.weight.div_ceil(2) } else { member.backend.weight }
    }

    fn stands_by(&self, service: &Service, listen: &Listen, member: &Member<'_>) -> bool {
        (self.chance(service, member.backend) + usize::from(listen.port)).is_multiple_of(5)
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn listens() -> impl Iterator<Item = Listen> {
    VIPS.into_iter().map(|(vip, port, last_port, protocol)| Listen {
        address: address(vip),
        port,
        last_port,
        protocol,
    })
}

/// Everything a packet could come from or go to in any of these configurations, but for ports that are like their
/// neighbours.
pub fn ends() -> impl Iterator<Item = (IpAddr, u16, Protocol)> {
    let ports = [25, 53, 587, 2525, 8000, 8050, 8095, 8100, 8150, 8200, 8210, 8250, 8300, 8301];
    let addresses = || VIPS.into_iter().map(|(vip, ..)| vip).chain(SERVERS).collect::<BTreeSet<_>>();
    let all = addresses().into_iter().flat_map(move |text| ports.map(|port| (address(text), port)));
    let with_ports = all
        .flat_map(|(address, port)| [Protocol::Tcp, Protocol::Udp].map(|protocol| (address, port, protocol)));
    with_ports.chain(addresses().into_iter().map(|text| (address(text), 0, Protocol::Any)))
}

/// Every server is up, and no operator has said anything.
#[derive(Debug)]
pub struct AllUp;

impl Verdicts for AllUp {
    fn health(&self, _: &Service, _: &Listen, _: &Member<'_>) -> Health {
        Health::Up
    }

    fn admin(&self, _: &Service, _: &Backend) -> AdminState {
        AdminState::Enabled
    }
}

/// A listener of service `mail` with these backends in its table.
pub fn listener(listen: Listen, members: impl IntoIterator<Item = Id>) -> ListenerEntry {
    let members = members.into_iter().map(|id| (id, 1)).collect();
    ListenerEntry {
        service: "mail".to_owned(),
        service_number: 1,
        listen,
        forward: Forward::Nat,
        session_timeout: 600,
        second_chance: true,
        new_flow_limit: 100_000,
        sticky_ticks: 0,
        snat: None,
        scheduler: Scheduler::Maglev,
        by_hand: None,
        when_empty: WhenEmpty::Drop,
        table: Table { kind: TableKind::Maglev, size: 131, members },
        next: 0,
    }
}

/// A server that is up, behind port 25 of a listener.
pub fn server(listener: Id, address: IpAddr) -> BackendEntry {
    BackendEntry {
        name: address.to_string(),
        server: Server { listener, address, port: 25 },
        number: 1,
        forward: Forward::Nat,
        gue_port: 0,
        weight: 1,
        max_flows: None,
        health: Health::Up,
        admin: AdminState::Enabled,
        by_hand: ByHand::default(),
        reset_when_down: true,
        suspect: false,
        standby: false,
        reverse: false,
        vip: None,
        next: 0,
    }
}

fn backend() -> impl Strategy<Value = Backend> {
    let port = prop_oneof![3 => Just(None), 1 => Just(Some(2525))];
    let weight = prop_oneof![4 => Just(1), 1 => Just(0), 1 => 2u16..4];
    let most = prop_oneof![3 => Just(None), 1 => (1u32..4).prop_map(Some)];
    (0..SERVERS.len(), port, weight, most).prop_map(|(server, port, weight, max_connections)| Backend {
        name: format!("server{server}"),
        address: address(SERVERS[server]),
        port,
        weight,
        priority: 0,
        max_connections,
        enabled: true,
        host: None,
        leaving: false,
    })
}

fn pool() -> impl Strategy<Value = Pool> {
    let on_down = prop_oneof![Just(OnDown::Reset), Just(OnDown::Keep)];
    (prop::collection::vec(backend(), 1..5), on_down).prop_map(|(mut backends, on_down)| {
        let mut seen = BTreeSet::new();
        backends.retain(|b| seen.insert(b.address));
        Pool { check: None, on_down, backends, ..empty_pool() }
    })
}

fn empty_pool() -> Pool {
    Pool {
        name: String::new(),
        check: None,
        on_down: OnDown::Keep,
        quorum: Quorum::default(),
        slow_start: Duration::ZERO,
        backends: Vec::new(),
        hosts: Vec::new(),
    }
}

fn forward() -> impl Strategy<Value = Forward> {
    prop_oneof![
        6 => Just(Forward::Nat),
        4 => Just(Forward::Snat),
        1 => Just(Forward::Dsr),
        1 => Just(Forward::Ipip),
        1 => Just(Forward::Gue)
    ]
}

/// Some addresses, at least one of each family.
fn snat() -> impl Strategy<Value = Snat> {
    let four = prop::sample::subsequence(SOURCES[..3].to_vec(), 1..=3).prop_shuffle();
    let six = prop::sample::subsequence(SOURCES[3..].to_vec(), 1..=2).prop_shuffle();
    (four, six, 1024u16..1026).prop_map(|(four, six, first_port)| Snat {
        addresses: four.into_iter().chain(six).map(address).collect(),
        first_port,
        last_port: 32_767,
    })
}

/// The VIPs by number, the pool, its backup, and the rest.
fn service() -> impl Strategy<Value = (BTreeSet<usize>, Pool, Option<Pool>, Service)> {
    let timeout = prop_oneof![Just(600), Just(30)].prop_map(Duration::from_secs);
    let scheduler = prop_oneof![
        4 => Just(Scheduler::Maglev),
        1 => Just(Scheduler::SourceHash),
        2 => Just(Scheduler::RoundRobin),
        1 => Just(Scheduler::Random),
        2 => Just(Scheduler::LeastConnections)
    ];
    let sticky = prop::option::weighted(0.4, prop_oneof![Just(60), Just(3600)].prop_map(Duration::from_secs));
    let when_empty = prop_oneof![Just(WhenEmpty::Drop), Just(WhenEmpty::Reset), Just(WhenEmpty::Pass)];
    let rest = (timeout, scheduler, any::<bool>(), forward(), snat(), sticky, when_empty).prop_map(
        |(session_timeout, scheduler, second_chance, forward, snat, sticky, when_empty)| Service {
            name: String::new(),
            listen: Vec::new(),
            pool: 0,
            backup: None,
            backup_hold: Duration::ZERO,
            forward,
            scheduler,
            second_chance,
            session_timeout,
            sticky,
            new_flow_limit: 100_000,
            snat: Some(snat).filter(|_| forward == Forward::Snat),
            gue_port: 6080,
            enabled: true,
            when_empty,
        },
    );
    (prop::collection::btree_set(0..VIPS.len(), 1..5), pool(), prop::option::of(pool()), rest)
}

/// Whether some packet belongs to both.
fn overlap(a: &Listen, b: &Listen) -> bool {
    (a.address, a.protocol) == (b.address, b.protocol) && a.port <= b.last_port && b.port <= a.last_port
}

/// A valid configuration: listeners that would collide with an earlier part of it are left out.
fn config() -> impl Strategy<Value = Config> {
    prop::collection::vec(service(), 1..=SERVICES.len()).prop_map(|parts| {
        let mut vips: Vec<Listen> = Vec::new();
        let (mut pools, mut services) = (Vec::new(), Vec::new());
        for (name, (numbers, mut pool, backup, rest)) in SERVICES.into_iter().zip(parts) {
            let mut listen: Vec<Listen> = Vec::new();
            for one in numbers.into_iter().filter_map(|number| listens().nth(number)) {
                let served = pool.backends.iter().any(|backend| serves(&rest, &one, backend));
                if served && !vips.iter().any(|vip| overlap(vip, &one)) {
                    vips.push(one);
                    listen.push(one);
                }
            }
            name.clone_into(&mut pool.name);
            // What is in the pool already is left out.
            let spare = |mut spare: Pool| {
                spare.backends.retain(|one| pool.backends.iter().all(|known| known.address != one.address));
                (!spare.backends.is_empty()).then_some(spare)
            };
            let backup = backup.and_then(spare);
            let index = pools.len();
            let second = backup.is_some().then_some(index + 1);
            services.push(Service { name: name.to_owned(), listen, pool: index, backup: second, ..rest });
            pools.push(pool);
            pools.extend(backup);
        }
        Config {
            resolver: Resolver::default(),
            cluster: crate::config::Cluster::default(),
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: XdpMode::Auto,
            forward_without_daemon: None,
            control: Control {
                socket: "/run/matapa/control.sock".into(),
                group: None,
                read_only_socket: None,
                read_only_group: None,
                metrics: None,
            },
            flows: Flows::default(),
            tunnel: Tunnel::default(),
            pools,
            services,
            carp: Vec::new(),
        }
    })
}

pub fn world() -> impl Strategy<Value = World> {
    let health = prop_oneof![3 => Just(Health::Up), 1 => Just(Health::Down), 1 => Just(Health::Unknown)];
    let admin = prop_oneof![
        4 => Just(AdminState::Enabled),
        1 => Just(AdminState::Draining),
        1 => Just(AdminState::Disabled)
    ];
    let known = (prop::collection::vec(health, 7), prop::collection::vec(admin, 5));
    (config(), known).prop_map(|(config, (health, admin))| World { config, health, admin })
}
