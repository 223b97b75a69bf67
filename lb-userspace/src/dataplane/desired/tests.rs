//! Numbers are stable, and the sizes of the maps are respected.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::worlds::{CAPACITY, World, world};
use super::*;

fn parsed(text: &str) -> Config {
    match crate::config::parse(text, std::path::Path::new("m.toml")) {
        Ok(config) => config,
        Err(errors) => panic!("{:?}", errors.lines()),
    }
}

/// Everything is up.
struct AllUp;

impl Verdicts for AllUp {
    fn health(&self, _: &Config, _: &Service, _: &Listen, _: &Backend) -> Health {
        Health::Up
    }

    fn admin(&self, _: &Service, _: &Backend) -> AdminState {
        AdminState::Enabled
    }
}

fn backends_wanted(world: &World) -> usize {
    let config = &world.config;
    let of = |s: &Service, l: &Listen| {
        config.pools[s.pool].backends.iter().filter(|b| b.address.is_ipv4() == l.address.is_ipv4()).count()
    };
    config.services.iter().map(|s| s.listen.iter().map(|l| of(s, l)).sum::<usize>()).sum()
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
            for (id, listener) in &image.listeners {
                match previous.listener_at(&listener.listen) {
                    Some(known) => {
                        prop_assert_eq!(*id, known);
                        prop_assert_eq!(listener.table.size, previous.listeners[&known].table.size);
                    }
                    None => prop_assert!(!previous.listeners.contains_key(id), "reused while in use"),
                }
            }
            for (id, backend) in &image.backends {
                let same = |(_, old): &(&Id, &BackendEntry)| old.server == backend.server;
                match previous.backends.iter().find(same) {
                    Some((known, _)) => prop_assert_eq!(id, known),
                    None => prop_assert!(!previous.backends.contains_key(id), "reused while in use"),
                }
            }
            let servers: BTreeSet<Server> = image.backends.values().map(|b| b.server).collect();
            prop_assert_eq!(servers.len(), image.backends.len());
            previous = image;
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
            prop_assert_eq!(backend.server.address.is_ipv4(), listener.listen.address.is_ipv4());
            let tcp = listener.listen.protocol == Protocol::Tcp;
            prop_assert!(tcp || !backend.reset_when_down, "a datagram has no connection to reset");
        }
    }
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
