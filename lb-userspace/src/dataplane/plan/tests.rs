//! Laws of plans, over random pairs of configurations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::BackendFlags;
use proptest::prelude::*;

use super::super::worlds::{World, listener, listens, server, world};
use super::*;

/// What packets can see: where endpoints lead, and the records behind them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    vips: BTreeMap<Listen, Id>,
    origins: BTreeMap<(IpAddr, u16, Protocol), Id>,
    image: Image,
}

impl Seen {
    /// With exactly the endpoints that the image needs.
    fn of(image: &Image) -> Self {
        let origin =
            |(id, b): (&Id, &BackendEntry)| ((b.server.address, b.server.port, protocol_of(image, b)), *id);
        Self {
            vips: image.listeners.iter().map(|(id, l)| (l.listen, *id)).collect(),
            origins: image.backends.iter().map(origin).collect(),
            image: image.clone(),
        }
    }

    fn take(&mut self, op: &Op) {
        match op {
            Op::PutVip(listen, id) => {
                self.vips.insert(*listen, *id);
            }
            Op::RemoveVip(listen) => {
                self.vips.remove(listen);
            }
            Op::PutOrigin(server, protocol, id) => {
                self.origins.insert((server.address, server.port, *protocol), *id);
            }
            Op::RemoveOrigin(server, protocol) => {
                self.origins.remove(&(server.address, server.port, *protocol));
            }
            _ => {}
        }
        advance(&mut self.image, op);
    }

    fn listener(&self, listen: &Listen) -> Option<&ListenerEntry> {
        self.image.listeners.get(self.vips.get(listen)?)
    }
}

/// What must hold for a packet that comes between any two steps from `a` to `b`.
fn without_holes(seen: &Seen, a: &Seen, b: &Seen) -> Result<(), TestCaseError> {
    for (listen, id) in &seen.vips {
        let listener = seen.image.listeners.get(id);
        prop_assert_eq!(listener.map(|l| l.listen), Some(*listen), "a VIP leads to another listener or none");
    }
    for id in seen.origins.values() {
        prop_assert!(seen.image.backends.contains_key(id), "an origin leads to no backend");
    }
    for (id, listener) in &seen.image.listeners {
        for member in listener.table.members.keys() {
            let backend = seen.image.backends.get(member);
            prop_assert_eq!(backend.map(|b| b.server.listener), Some(*id), "a table has another's backend");
            let flags = backend.map(BackendEntry::flags).unwrap_or_default();
            prop_assert!(!flags.has(BackendFlags::DOWN), "a table hands flows to a backend marked down");
        }
    }
    for listen in a.vips.keys().filter(|listen| b.vips.contains_key(*listen)) {
        let members = |seen: &Seen| seen.listener(listen).map(|l| l.table.members.len());
        prop_assert!(members(seen).is_some(), "{} was out of reach for a moment", listen);
        let always = members(a) > Some(0) && members(b) > Some(0);
        prop_assert!(!always || members(seen) > Some(0), "{} was without backends for a moment", listen);
    }
    for listen in seen.vips.keys().filter(|listen| !a.vips.contains_key(*listen)) {
        let table = |seen: &Seen| seen.listener(listen).map(|l| l.table.clone());
        prop_assert_eq!(table(seen), table(b), "a new VIP is seen before its table is complete");
    }
    let both = a.origins.keys().filter(|origin| b.origins.contains_key(*origin));
    for origin in both {
        prop_assert!(seen.origins.contains_key(origin), "replies of {:?} were nobody's for a moment", origin);
    }
    Ok(())
}

fn place(steps: &[Op], wanted: impl Fn(&Op) -> bool) -> Option<usize> {
    steps.iter().position(wanted)
}

/// Two configurations, one after the other, with something before them.
fn pair(before: &World, from: &World, to: &World) -> (Image, Image) {
    let a = from.image(&before.image(&Image::default()));
    let b = to.image(&a);
    (a, b)
}

proptest! {
    #[test]
    fn the_steps_lead_from_one_image_to_the_other(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let mut seen = Seen::of(&a);
        for step in plan(&a, &b) {
            seen.take(&step);
        }
        prop_assert_eq!(seen, Seen::of(&b));
    }

    #[test]
    fn between_equal_images_there_is_nothing_to_do(from in world(), to in world()) {
        let a = from.image(&Image::default());
        prop_assert_eq!(plan(&a, &a), []);
        // Also when the same is wanted again, of an image with gaps in its numbers.
        let b = to.image(&a);
        prop_assert_eq!(plan(&b, &to.image(&b)), []);
    }

    #[test]
    fn no_packet_finds_a_hole_between_two_steps(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let (start, end) = (Seen::of(&a), Seen::of(&b));
        let mut seen = start.clone();
        without_holes(&seen, &start, &end)?;
        for step in plan(&a, &b) {
            seen.take(&step);
            without_holes(&seen, &start, &end)?;
        }
    }

    #[test]
    fn marks_come_before_flows_and_go_after_them(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let steps = plan(&a, &b);
        for (id, new) in &b.backends {
            let Some(old) = a.backends.get(id) else { continue };
            let record = place(&steps, |op| matches!(op, Op::PutBackend(one, _) if one == id));
            let table = place(&steps, |op| matches!(op, Op::PutTable(one, _) if *one == new.server.listener));
            let down = |b: &BackendEntry| b.flags().has(BackendFlags::DOWN);
            if let (Some(record), Some(table)) = (record, table) {
                if down(old) && !down(new) {
                    prop_assert!(record < table, "{} takes flows before it is marked up", new.name);
                }
                if !down(old) && down(new) {
                    prop_assert!(record > table, "{} is marked down while it takes flows", new.name);
                }
            }
        }
    }

    #[test]
    fn each_thing_is_touched_once(before in world(), from in world(), to in world()) {
        let (a, b) = pair(&before, &from, &to);
        let steps = plan(&a, &b);
        let distinct: BTreeSet<String> = steps.iter().map(|step| format!("{step:?}")).collect();
        prop_assert_eq!(distinct.len(), steps.len());
        for (id, new) in &b.backends {
            let writes = steps.iter().filter(|op| matches!(op, Op::PutBackend(one, _) if one == id)).count();
            prop_assert_eq!(writes, usize::from(a.backends.get(id) != Some(new)));
        }
    }
}

#[test]
fn a_vip_that_moves_to_another_listener_is_overwritten() {
    let listen = listens().next().expect("one");
    let image = |id: Id, backend: Id| Image {
        listeners: [(id, listener(listen, [backend]))].into(),
        backends: [(backend, server(id, [198, 51, 100, 11].into()))].into(),
    };
    let (a, b) = (image(1, 1), image(2, 2));
    let (start, end) = (Seen::of(&a), Seen::of(&b));
    let mut seen = start.clone();
    for step in plan(&a, &b) {
        seen.take(&step);
        without_holes(&seen, &start, &end).expect("no hole");
    }
    assert_eq!(seen, end);
}
