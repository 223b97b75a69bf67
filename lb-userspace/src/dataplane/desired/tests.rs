//! Numbers are stable, and the sizes of the maps are respected.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use lb_common::abi::{BackendFlags, Side};
use proptest::prelude::*;

use super::super::worlds::{AllUp, CAPACITY, World, world};
use super::*;
use crate::dataplane::endpoints::Endpoint;
use crate::dataplane::image::Pace;

fn parsed(text: &str) -> Config {
    match crate::config::parse(text, std::path::Path::new("m.toml")) {
        Ok(config) => config,
        Err(errors) => panic!("{:?}", errors.lines()),
    }
}

fn backends_wanted(world: &World) -> usize {
    let config = &world.config;
    let of =
        |s: &Service, l: &Listen| config.members(s).filter(|member| serves(s, l, member.backend)).count();
    config.services.iter().map(|s| s.listen.iter().map(|l| of(s, l)).sum::<usize>()).sum()
}

/// Numbers and places of what is in both images are the same.
fn what_stays_is_the_same(previous: &Image, image: &Image) -> Result<(), TestCaseError> {
    for (id, listener) in &image.listeners {
        match previous.listeners.iter().find(|(_, old)| old.is_same(listener)) {
            Some((known, old)) => {
                prop_assert_eq!(id, known);
                prop_assert_eq!(listener.table.size, old.table.size);
            }
            None => prop_assert!(!previous.listeners.contains_key(id), "reused while in use"),
        }
        let named = previous.listeners.values().find(|old| old.service == listener.service);
        match named {
            Some(old) => prop_assert_eq!(listener.service_number, old.service_number),
            None => {
                let others = previous
                    .listeners
                    .values()
                    .filter(|old| image.listeners.values().any(|l| l.service == old.service));
                let mut others = others.map(|old| old.service_number);
                prop_assert!(others.all(|number| number != listener.service_number), "another's number");
            }
        }
    }
    for (id, backend) in &image.backends {
        let same = |(_, old): &(&Id, &BackendEntry)| old.server == backend.server;
        match previous.backends.iter().find(same) {
            Some((known, old)) => {
                prop_assert_eq!(id, known);
                let service =
                    |image: &Image, b: &BackendEntry| image.listeners[&b.server.listener].service_number;
                if service(previous, old) == service(image, backend) {
                    prop_assert_eq!(old.number, backend.number);
                }
                prop_assert!(backend.reverse || !old.reverse);
            }
            None => prop_assert!(!previous.backends.contains_key(id), "reused while in use"),
        }
    }
    // Flows without a record for their way back belong to who was found by their server before.
    for (endpoint, id) in &previous.endpoints {
        let stays = match endpoint.side {
            Side::Vip => image.listeners.contains_key(id),
            Side::Backend => image.backends.contains_key(id),
        };
        prop_assert!(!stays || image.endpoints.get(endpoint) == Some(id), "{} leads elsewhere", endpoint);
        let kept = |ids: Vec<Id>, other: &Image| {
            let there = |id: &Id| match endpoint.side {
                Side::Vip => other.listeners.contains_key(id),
                Side::Backend => other.backends.contains_key(id),
            };
            ids.into_iter().filter(there).collect::<Vec<_>>()
        };
        let (old, new) = (previous.chain(endpoint), image.chain(endpoint));
        if endpoint.is_chained() {
            let old = kept(old, image);
            prop_assert_eq!(&old[..], &new[..old.len()], "the order has changed, or what is new is not last");
        }
    }
    Ok(())
}

/// Every listener and every backend is found where packets look for it.
fn everything_is_found(image: &Image) -> Result<(), TestCaseError> {
    for (id, listener) in &image.listeners {
        let endpoint = listener.listen.endpoint();
        let found = image.chain(&endpoint);
        prop_assert!(found.contains(id) && (endpoint.is_chained() || found.len() == 1));
        prop_assert!(endpoint.is_chained() || listener.next == 0);
        let echo = image.endpoints.get(&Endpoint::echo(listener.listen.address));
        prop_assert_eq!(echo.map(|id| image.listeners[id].listen.address), Some(listener.listen.address));
    }
    let mut used = BTreeSet::new();
    for (id, backend) in &image.backends {
        let Some(origin) = image.origin(backend) else {
            prop_assert!(!backend.forward.is_answered_here() && backend.next == 0);
            continue;
        };
        used.insert(origin);
        let found = image.chain(&origin);
        if origin.is_chained() {
            prop_assert!(found.contains(id));
        } else {
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(image.origin(&image.backends[&found[0]]), Some(origin));
            prop_assert_eq!(backend.next, 0);
        }
    }
    let backend_side = image.endpoints.keys().filter(|endpoint| endpoint.side == Side::Backend);
    prop_assert_eq!(backend_side.count(), used.len());
    Ok(())
}

/// Two backends that a reply could come from have records of their own for the way back.
fn shared_servers_are_marked(image: &Image) -> Result<(), TestCaseError> {
    let span = |b: &BackendEntry| {
        let listen = image.listeners[&b.server.listener].listen;
        let (first, last) =
            if b.server.port == 0 { (listen.port, listen.last_port) } else { (b.server.port, b.server.port) };
        (listen.protocol, first, last)
    };
    for (id, backend) in image.backends.iter().filter(|(_, b)| b.forward.is_answered_here()) {
        let (protocol, first, last) = span(backend);
        let shared = image.backends.iter().any(|(other, b)| {
            let (its_protocol, its_first, its_last) = span(b);
            other != id
                && b.forward.is_answered_here()
                && (b.server.address, its_protocol) == (backend.server.address, protocol)
                && its_first <= last
                && first <= its_last
        });
        let folded = backend.server.port != 0 && image.listeners[&backend.server.listener].listen.is_range();
        prop_assert_eq!(backend.reverse, shared || folded || backend.forward == Forward::Snat);
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_stays_keeps_its_number_and_new_numbers_are_unused(worlds in prop::collection::vec(world(), 1..6)) {
        let mut previous = Image::default();
        for world in &worlds {
            let image = world.image(&previous);
            let wanted: usize = world.config.services.iter().map(|s| s.listen.len()).sum();
            prop_assert_eq!(image.listeners.len(), wanted);
            prop_assert_eq!(image.backends.len(), backends_wanted(world));
            prop_assert!(!image.listeners.contains_key(&0) && !image.backends.contains_key(&0));
            what_stays_is_the_same(&previous, &image)?;
            everything_is_found(&image)?;
            let servers: BTreeSet<Server> = image.backends.values().map(|b| b.server).collect();
            prop_assert_eq!(servers.len(), image.backends.len());
            previous = image;
        }
    }

    #[test]
    fn a_server_has_one_number_in_its_service_and_a_service_one_number(
        worlds in prop::collection::vec(world(), 1..4),
    ) {
        let mut image = Image::default();
        for world in &worlds {
            image = world.image(&image);
        }
        let config = &worlds[worlds.len() - 1].config;
        let mut services = BTreeMap::new();
        for listener in image.listeners.values() {
            let number = services.entry(&listener.service).or_insert(listener.service_number);
            prop_assert_eq!(*number, listener.service_number);
        }
        let numbers: BTreeSet<u32> = services.values().copied().collect();
        prop_assert_eq!(numbers.len(), services.len());
        prop_assert!(!numbers.contains(&0));
        for service in &config.services {
            let mut servers: BTreeMap<&str, u32> = BTreeMap::new();
            for listen in &service.listen {
                let listener = image.listener_at(listen).expect("a listener");
                for (id, backend) in image.backends_of(listener) {
                    let number = *servers.entry(&backend.name).or_insert(backend.number);
                    prop_assert_eq!(number, backend.number);
                    let key = SiblingKey { listener, server: number };
                    let expected = service.sticky.is_some().then_some(id);
                    prop_assert_eq!(image.siblings.get(&key).copied(), expected);
                }
            }
            let distinct: BTreeSet<u32> = servers.values().copied().collect();
            prop_assert_eq!(distinct.len(), servers.len());
        }
    }

    #[test]
    fn a_new_image_marks_exactly_what_needs_a_record_for_the_way_back(world in world()) {
        shared_servers_are_marked(&world.image(&Image::default()))?;
    }

    #[test]
    fn source_addresses_stand_where_listeners_look_and_stay_there(worlds in prop::collection::vec(world(), 1..6)) {
        let mut previous = Image::default();
        for world in &worlds {
            let image = world.image(&previous);
            for service in &world.config.services {
                for listen in &service.listen {
                    let listener = &image.listeners[&image.listener_at(listen).expect("a listener")];
                    let expected: Vec<IpAddr> = service.snat.iter().flat_map(|snat| &snat.addresses).copied()
                        .filter(|address| address.is_ipv4() == listen.address.is_ipv4()).collect();
                    let range = listener.snat;
                    prop_assert_eq!(range.is_some(), service.forward == Forward::Snat);
                    let found: Vec<IpAddr> = range.iter()
                        .flat_map(|range| (0..range.count).map(|i| image.snat_addresses[&(range.first + i)]))
                        .collect();
                    prop_assert_eq!(found, expected);
                }
            }
            // Flows may use them for long.
            for (index, address) in &previous.snat_addresses {
                prop_assert_eq!(image.snat_addresses.get(index), Some(address));
            }
            previous = image;
        }
    }

    /// As if one were compared with the next.
    #[test]
    fn listeners_and_servers_are_found_at_once(before in world(), now in world()) {
        let image = now.image(&before.image(&Image::default()));
        let servers = image.servers();
        prop_assert_eq!(servers.len(), image.backends.len());
        for (id, backend) in &image.backends {
            prop_assert_eq!(servers.get(&backend.server), Some(id));
        }
        let listens = before.config.services.iter().chain(&now.config.services).flat_map(|service| &service.listen);
        for listen in listens {
            let found = image.listeners.iter().find(|(_, listener)| listener.listen == *listen).map(|(id, _)| *id);
            prop_assert_eq!(image.listener_at(listen), found);
        }
    }

    #[test]
    fn a_table_has_exactly_the_backends_that_take_new_flows(before in world(), now in world()) {
        let image = now.image(&before.image(&Image::default()));
        for (id, listener) in &image.listeners {
            let takers: BTreeMap<Id, u16> = image
                .backends_of(*id)
                .filter(|(_, b)| b.takes_new_flows())
                .map(|(id, b)| (id, b.weight))
                .collect();
            prop_assert_eq!(&listener.table.members, &takers);
        }
        for backend in image.backends.values() {
            let listener = &image.listeners[&backend.server.listener];
            let same = backend.server.address.is_ipv4() == listener.listen.address.is_ipv4();
            prop_assert!(same || matches!(backend.forward, Forward::Ipip | Forward::Gue));
            prop_assert_eq!(backend.flags().has(BackendFlags::IN_TABLE), backend.takes_new_flows());
            let tcp = listener.listen.protocol == Protocol::Tcp;
            prop_assert!(tcp || !backend.reset_when_down, "a datagram has no connection to reset");
            prop_assert!(!listener.second_chance || (tcp && listener.forward.is_answered_here()));
        }
    }
}

#[test]
fn limits_are_shared_by_the_cpus_and_counted_in_ticks() {
    let config = parsed(TWO);
    let mut previous = Image::default();
    let limit = |previous: &Image| {
        let image = desired(&config, &AllUp, previous, CAPACITY).unwrap();
        image.listeners.values().map(|l| l.new_flow_limit).collect::<Vec<_>>()
    };
    assert_eq!(limit(&previous), [100_000]);
    let tick = Duration::from_millis(1024);
    previous.pace = Pace { cpus: 3, tick };
    assert_eq!(limit(&previous), [34_134]);
    assert_eq!(previous.pace.share(1), 1);
    assert_eq!(previous.pace.share(0), 0);
    assert_eq!(previous.pace.share(u32::MAX), 1_466_015_504);
    assert_eq!(previous.pace.ticks(Duration::from_secs(60)), 59);
    assert_eq!(previous.pace.ticks(Duration::from_millis(1)), 1);
    assert_eq!(previous.pace.ticks(Duration::from_secs(1 << 40)), u16::MAX / 2);
}

#[test]
fn each_member_of_least_connections_has_one_slot() {
    let image = Image {
        backends: [
            (5, server(1, "198.51.100.13")),
            (2, server(1, "198.51.100.12")),
            (9, server(1, "198.51.100.11")),
        ]
        .into(),
        ..Image::default()
    };
    let table = Table { kind: TableKind::Each, size: 131, members: [(2, 7), (5, 1), (9, 3)].into() };
    assert_eq!(image.fill(&table, 1), [9, 2, 5]);
    assert_eq!(image.fill(&Table { size: 2, ..table.clone() }, 1), [9, 2]);
    assert!(image.fill(&Table { members: BTreeMap::new(), ..table }, 1).is_empty());
}

/// A slow start multiplies all weights of a pool, and must not move anybody once it is over.
#[test]
fn a_table_goes_by_proportions() {
    let backends =
        [(2, server(1, "198.51.100.12")), (5, server(1, "198.51.100.13")), (9, server(1, "198.51.100.11"))];
    let image = Image { backends: backends.into(), ..Image::default() };
    for kind in [TableKind::Maglev, TableKind::Rotation, TableKind::Each] {
        let table = |times: u16| {
            let members = [(2, 7 * times), (5, times), (9, 3 * times)].into();
            image.fill(&Table { kind, size: 257, members }, 1)
        };
        assert_eq!(table(1), table(10), "{kind:?}");
        let uneven = [(2, 70), (5, 1), (9, 30)].into();
        let rising = image.fill(&Table { kind, size: 257, members: uneven }, 1);
        assert_eq!(rising == table(1), kind == TableKind::Each, "{kind:?}");
    }
}

fn server(listener: Id, address: &str) -> BackendEntry {
    super::super::worlds::server(listener, address.parse().unwrap())
}

#[test]
fn the_bits_that_vary_are_those_after_the_prefix() {
    let tunnel = |four: &str, len4, six: &str, len6| {
        TunnelSources::of(&crate::config::Tunnel {
            source4: crate::config::Prefix { address: four.parse().unwrap(), len: len4 },
            source6: crate::config::Prefix { address: six.parse().unwrap(), len: len6 },
        })
    };
    let default = TunnelSources::of(&crate::config::Tunnel::default());
    assert_eq!(default, tunnel("172.16.0.0", 16, "100::", 64));
    assert_eq!((default.v4, default.v4_vary), ([172, 16, 0, 0], [0, 0, 255, 255]));
    assert_eq!(default.v6_vary[..8], [0; 8]);
    assert_eq!(default.v6_vary[8..], [255; 8]);
    let single = tunnel("198.51.100.1", 32, "2001:db8::1", 128);
    assert_eq!((single.v4_vary, single.v6_vary), ([0; 4], [0; 16]));
    let all = tunnel("0.0.0.0", 0, "::", 0);
    assert_eq!((all.v4_vary, all.v6_vary), ([255; 4], [255; 16]));
}

const TWO: &str = r#"
    interfaces = ["eth0"]
    [services.mail]
    listen = "203.0.113.10:25"
    backends = ["198.51.100.11", "198.51.100.12"]
"#;

#[test]
fn too_many_of_a_thing_are_refused_with_their_number() {
    let config = parsed(TWO);
    // Number 0 is never used: room for 3 is room for 2.
    let fits = |capacity| desired(&config, &AllUp, &Image::default(), capacity);
    assert_eq!(fits(Capacity { backends: 3, listeners: 2, ..CAPACITY }).unwrap().backends.len(), 2);
    let error = fits(Capacity { backends: 2, ..CAPACITY }).unwrap_err().to_string();
    assert!(error.starts_with("2 backends are configured, but the maps in use were made for 2;"), "{error}");
    let error = fits(Capacity { listeners: 1, ..CAPACITY }).unwrap_err().to_string();
    assert!(error.starts_with("1 listeners are configured"), "{error}");
}

#[test]
fn a_number_that_was_given_up_comes_back_a_step_later() {
    let other = TWO.replace("198.51.100.11", "198.51.100.13");
    let (first, second) = (parsed(TWO), parsed(&other));
    let step = |config, previous: &Image| desired(config, &AllUp, previous, CAPACITY).unwrap();
    let numbers = |image: &Image| image.backends.keys().copied().collect::<Vec<_>>();
    let a = step(&first, &Image::default());
    assert_eq!(numbers(&a), [1, 2]);
    let b = step(&second, &a);
    assert_eq!(numbers(&b), [2, 3]);
    let c = step(&first, &b);
    assert_eq!(numbers(&c), [1, 2]);
}

#[test]
fn tables_shrink_as_listeners_become_many() {
    assert_eq!(table_size(1, CAPACITY), 65_537);
    assert_eq!(table_size(31, CAPACITY), 65_537);
    assert_eq!(table_size(32, CAPACITY), 32_771);
    for listeners in [1, 2, 5, 30, 100, 1000] {
        let size = table_size(listeners, CAPACITY) as usize + 1;
        assert!(2 * listeners * size <= CAPACITY.table_slots as usize, "{listeners} listeners");
    }
    // Where nothing fits, the smallest is tried.
    assert_eq!(table_size(1, Capacity { table_slots: 10, ..CAPACITY }), 131);
}

/// Services that share the servers of [`TWO`], each with a VIP of its own.
fn sharing(vips: &[u8]) -> Config {
    let mut config = parsed(TWO);
    let one = config.services.remove(0);
    config.services = vips
        .iter()
        .map(|vip| {
            let listen = Listen { address: [203, 0, 113, *vip].into(), ..one.listen[0] };
            Service { name: format!("mail{vip}"), listen: vec![listen], ..one.clone() }
        })
        .collect();
    config
}

#[test]
fn the_oldest_of_those_that_share_a_server_answers_for_it_until_it_goes() {
    let step = |vips: &[u8], previous: &Image| desired(&sharing(vips), &AllUp, previous, CAPACITY).unwrap();
    let origin = Endpoint::new(Side::Backend, [198, 51, 100, 11].into(), 25, Protocol::Tcp);
    let vip = |image: &Image| {
        let listener = image.backends[&image.endpoints[&origin]].server.listener;
        image.listeners[&listener].listen.address
    };
    let marked = |image: &Image| image.backends.values().filter(|b| b.reverse).count();
    let one = step(&[20], &Image::default());
    assert_eq!((vip(&one), marked(&one)), ([203, 0, 113, 20].into(), 0));
    let two = step(&[10, 20], &one);
    assert_eq!((vip(&two), marked(&two)), ([203, 0, 113, 20].into(), 4));
    let three = step(&[9, 10], &two);
    // One that was there, whose flows may be without a record for the way back.
    assert_eq!((vip(&three), marked(&three)), ([203, 0, 113, 10].into(), 4));
    // Alone again, it keeps the mark that its flows need.
    let last = step(&[10], &three);
    assert_eq!((vip(&last), marked(&last)), ([203, 0, 113, 10].into(), 2));
}

#[test]
fn another_mode_makes_another_listener_and_another_range_does_not() {
    let nat = sharing(&[10]);
    let first = desired(&nat, &AllUp, &Image::default(), CAPACITY).unwrap();
    let mut dsr = nat.clone();
    dsr.services[0].forward = Forward::Dsr;
    let second = desired(&dsr, &AllUp, &first, CAPACITY).unwrap();
    assert!(second.listeners.keys().all(|id| !first.listeners.contains_key(id)));
    assert!(second.endpoints.keys().all(|endpoint| endpoint.side == Side::Vip), "replies come another way");
    let range = |last_port| {
        let mut config = nat.clone();
        config.services[0].listen[0] = Listen { port: 8000, last_port, ..config.services[0].listen[0] };
        config
    };
    let first = desired(&range(8100), &AllUp, &Image::default(), CAPACITY).unwrap();
    let second = desired(&range(8200), &AllUp, &first, CAPACITY).unwrap();
    assert_eq!(first.listeners.keys().collect::<Vec<_>>(), second.listeners.keys().collect::<Vec<_>>());
    assert_eq!(first.backends, second.backends);
}

#[test]
fn source_addresses_without_a_place_are_refused_with_their_number() {
    let with = |first: u16, count: u16| {
        let mut config = sharing(&[10]);
        let addresses =
            (first..first + count).map(|n| IpAddr::from([10, 0, (n >> 8) as u8, n as u8])).collect();
        config.services[0].forward = Forward::Snat;
        config.services[0].snat =
            Some(crate::config::Snat { addresses, first_port: 1024, last_port: 32_767 });
        config
    };
    let first = desired(&with(0, 200), &AllUp, &Image::default(), CAPACITY).unwrap();
    let error = desired(&with(1000, 100), &AllUp, &first, CAPACITY).unwrap_err().to_string();
    assert!(error.starts_with("service mail10 has 100 source addresses, and there is no room"), "{error}");
    assert!(error.contains("there are 256 places"), "{error}");
    assert!(desired(&with(1000, 56), &AllUp, &first, CAPACITY).is_ok());
    assert!(desired(&with(0, 256), &AllUp, &Image::default(), CAPACITY).is_err(), "255 fit into a listener");
}
