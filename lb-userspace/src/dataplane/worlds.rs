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
use super::image::{BackendEntry, Id, Image, ListenerEntry, Server, Table, TableKind};
use crate::api::types::AdminState;
use crate::config::{
    Backend, Config, Control, Forward, Listen, OnDown, Pool, Protocol, Scheduler, Service, XdpMode,
};
use crate::health::Health;

/// As a small daemon has it.
pub const CAPACITY: Capacity = Capacity { listeners: 64, backends: 256, table_slots: 1 << 22 };

const VIPS: [(&str, u16, Protocol); 6] = [
    ("203.0.113.10", 25, Protocol::Tcp),
    ("203.0.113.20", 25, Protocol::Tcp),
    ("203.0.113.10", 587, Protocol::Tcp),
    ("203.0.113.10", 53, Protocol::Udp),
    ("2001:db8::10", 25, Protocol::Tcp),
    ("2001:db8::20", 53, Protocol::Udp),
];
const SERVERS: [&str; 5] =
    ["198.51.100.11", "198.51.100.12", "198.51.100.13", "2001:db8:64::11", "2001:db8:64::12"];
const SERVICES: [&str; 3] = ["mail", "names", "third"];

/// A configuration, and what the checks and the operator say.
#[derive(Clone, Debug)]
pub struct World {
    pub config: Config,
    health: Vec<Health>,
    admin: Vec<AdminState>,
}

impl World {
    /// The image for it, after `previous`.
    pub fn image(&self, previous: &Image) -> Image {
        desired(&self.config, self, previous, CAPACITY).expect("it fits")
    }
}

impl Verdicts for World {
    fn health(&self, _: &Config, _: &Service, listen: &Listen, backend: &Backend) -> Health {
        let server = SERVERS.iter().position(|s| backend.address == address(s)).unwrap_or(0);
        self.health[(server + usize::from(listen.port)) % self.health.len()]
    }

    fn admin(&self, service: &Service, backend: &Backend) -> AdminState {
        let server = backend.name.bytes().last().map_or(0, usize::from);
        self.admin[(service.name.len() + server) % self.admin.len()]
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn listens() -> impl Iterator<Item = Listen> {
    VIPS.into_iter().map(|(vip, port, protocol)| Listen { address: address(vip), port, protocol })
}

/// Everything a packet could come from or go to in any of these configurations.
pub fn endpoints() -> impl Iterator<Item = (IpAddr, u16, Protocol)> {
    let ports = [25, 53, 587, 2525];
    let addresses = VIPS.into_iter().map(|(vip, ..)| vip).chain(SERVERS);
    let all = addresses.flat_map(move |text| ports.into_iter().map(move |port| (address(text), port)));
    all.flat_map(|(address, port)| [Protocol::Tcp, Protocol::Udp].map(|protocol| (address, port, protocol)))
}

/// A listener of service `mail` with these backends in its table.
pub fn listener(listen: Listen, members: impl IntoIterator<Item = Id>) -> ListenerEntry {
    let members = members.into_iter().map(|id| (id, 1)).collect();
    ListenerEntry {
        service: "mail".to_owned(),
        listen,
        session_timeout: 600,
        second_chance: true,
        scheduler: Scheduler::Maglev,
        table: Table { kind: TableKind::Maglev, size: 131, members },
    }
}

/// A server that is up, behind port 25 of a listener.
pub fn server(listener: Id, address: IpAddr) -> BackendEntry {
    BackendEntry {
        name: address.to_string(),
        server: Server { listener, address, port: 25 },
        weight: 1,
        health: Health::Up,
        admin: AdminState::Enabled,
        reset_when_down: true,
        suspect: false,
    }
}

fn backend() -> impl Strategy<Value = Backend> {
    let port = prop_oneof![3 => Just(None), 1 => Just(Some(2525))];
    let weight = prop_oneof![4 => Just(1), 1 => Just(0), 1 => 2u16..4];
    (0..SERVERS.len(), port, weight).prop_map(|(server, port, weight)| Backend {
        name: format!("server{server}"),
        address: address(SERVERS[server]),
        port,
        weight,
    })
}

fn pool() -> impl Strategy<Value = Pool> {
    let on_down = prop_oneof![Just(OnDown::Reset), Just(OnDown::Keep)];
    (prop::collection::vec(backend(), 1..5), on_down).prop_map(|(mut backends, on_down)| {
        let mut seen = BTreeSet::new();
        backends.retain(|b| seen.insert(b.address));
        Pool { name: String::new(), check: None, on_down, backends }
    })
}

/// The VIPs by number, the pool, and the rest.
fn service() -> impl Strategy<Value = (BTreeSet<usize>, Pool, Service)> {
    let timeout = prop_oneof![Just(600), Just(30)].prop_map(Duration::from_secs);
    let scheduler = prop_oneof![
        4 => Just(Scheduler::Maglev),
        1 => Just(Scheduler::SourceHash),
        2 => Just(Scheduler::RoundRobin),
        1 => Just(Scheduler::Random)
    ];
    let rest = (timeout, scheduler, any::<bool>()).prop_map(|(session_timeout, scheduler, second_chance)| {
        let (name, listen) = (String::new(), Vec::new());
        Service { name, listen, pool: 0, forward: Forward::Nat, scheduler, second_chance, session_timeout }
    });
    (prop::collection::btree_set(0..VIPS.len(), 1..4), pool(), rest)
}

/// A valid configuration: what would collide with an earlier part of it is left out.
fn config() -> impl Strategy<Value = Config> {
    prop::collection::vec(service(), 1..=SERVICES.len()).prop_map(|parts| {
        let (mut vips, mut origins) = (BTreeSet::new(), BTreeSet::new());
        let (mut pools, mut services) = (Vec::new(), Vec::new());
        for (name, (numbers, mut pool, rest)) in SERVICES.into_iter().zip(parts) {
            let mut listen: Vec<Listen> = Vec::new();
            for one in numbers.into_iter().filter_map(|number| listens().nth(number)) {
                let new: BTreeSet<_> = pool
                    .backends
                    .iter()
                    .filter(|b| b.address.is_ipv4() == one.address.is_ipv4())
                    .map(|b| (b.address, b.port.unwrap_or(one.port), one.protocol))
                    .collect();
                if origins.is_disjoint(&new) && vips.insert(one) {
                    origins.extend(new);
                    listen.push(one);
                }
            }
            name.clone_into(&mut pool.name);
            services.push(Service { name: name.to_owned(), listen, pool: pools.len(), ..rest });
            pools.push(pool);
        }
        Config {
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: XdpMode::Auto,
            control: Control { socket: "/run/matapa/control.sock".into(), metrics: None },
            pools,
            services,
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
