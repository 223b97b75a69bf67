//! Whatever comes in: no panic; what is not forwarded is left as it was; what is forwarded is rewritten correctly and
//! completely; and every flow is counted.

#[expect(dead_code, reason = "of the cases, only the packets are used here")]
mod corpus;
#[path = "corpus/headers.rs"]
mod headers;
#[path = "corpus/random.rs"]
mod random;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;

use corpus::checksums::{self, Sum, sums};
use corpus::machine::{Host, Machine, Outcome};
use corpus::show::show;
use corpus::world::World;
use headers::Headers;
use lb_common::verdict::{Action, Kind, Reason};
use lb_userspace::config::Forward;
use lb_userspace::dataplane::image::{BackendEntry, Image};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use random::Packet;

/// `Err` with a text unless it is so.
fn ensure(claim: bool, what: &str) -> Result<(), String> {
    if claim { Ok(()) } else { Err(what.to_owned()) }
}

/// What must be true of any packet's fate.
fn check(came: &[u8], outcome: &Outcome, image: &Image) -> Result<Reason, String> {
    let ends: Vec<_> = outcome.counters.iter().filter(|(r, _)| r.kind() != Kind::Note).collect();
    let [(end, 1)] = ends.as_slice() else { return Err(format!("not one reason: {ends:?}")) };
    let (end, ran) = (**end, &outcome.ran);
    let left = &ran.frame;
    ensure(
        outcome.miscounted().is_empty(),
        &format!("live flows are miscounted: {:?}", outcome.miscounted()),
    )?;
    match end.kind() {
        Kind::Pass | Kind::Drop => {
            let action = if end.kind() == Kind::Pass { Action::Pass } else { Action::Drop };
            ensure(ran.action == action, "the verdict is not that of its reason")?;
            ensure(left == came, "changed although it is not forwarded")?;
            // A flow may have left its backend before it turns out that no port is free for it at the next.
            let left_behind = matches!(end, Reason::SnatExhausted | Reason::SnatUnrecorded);
            ensure(
                outcome.stats.is_empty() || left_behind,
                "counted for a backend although it is not forwarded",
            )?;
            return Ok(end);
        }
        Kind::Forward => {}
        Kind::Note => return Err("not an end".into()),
    }
    if checksums::wrong(came).is_empty() {
        let wrong = checksums::wrong(left);
        ensure(
            wrong.is_empty(),
            &format!("came with right checksums, and leaves with wrong ones: {wrong:?}"),
        )?;
    }
    let headers = |frame| Headers::of(frame).ok_or("forwarded although its lengths do not fit together");
    let (before, after) = (headers(came)?, headers(left)?);
    match end {
        Reason::ToBackend | Reason::ToBackendByKernel | Reason::ToClient | Reason::ToClientByKernel => {
            check_forwarded(before, after, outcome, end, image)?;
        }
        Reason::ErrorToBackend | Reason::ErrorToClient => {
            // Passed where the kernel has to find the neighbour first.
            ensure(ran.action != Action::Drop, "an error that is not sent")?;
            ensure(before.hops() > 1, "it had no hop left")?;
        }
        Reason::ClientReset | Reason::BackendReset => {
            check_turned(before, after, outcome)?;
            check_reset(before, after)?;
        }
        Reason::NoBackendRefused if before.protocol == 6 => {
            check_turned(before, after, outcome)?;
            check_reset(before, after)?;
        }
        Reason::EchoAnswered => {
            check_turned(before, after, outcome)?;
            ensure(left.len() == came.len(), "the answer to a ping has its length")?;
        }
        Reason::HopsAnswered | Reason::TooBigAnswered | Reason::NoBackendRefused => {
            check_turned(before, after, outcome)?;
            let mine = before.packet();
            let quote = &after.packet()[after.transport - after.ip + 8..];
            ensure(mine.starts_with(quote), "the packet that is quoted is not the one that came")?;
            ensure(
                quote.len() >= (before.transport - before.ip + 8).min(mine.len()),
                "a quote too short to tell ports",
            )?;
            ensure(end != Reason::HopsAnswered || before.hops() <= 1, "it had hops left")?;
        }
        other => return Err(format!("nothing is known of {}", other.name())),
    }
    Ok(end)
}

/// What goes back to where it came from.
fn check_turned(before: Headers<'_>, after: Headers<'_>, outcome: &Outcome) -> Result<(), String> {
    let (came, left) = (before.frame, after.frame);
    ensure(outcome.ran.action == Action::Transmit, "an answer goes back where the packet came from")?;
    ensure(left[..6] == came[6..12] && left[6..12] == came[..6], "the MAC addresses are not turned round")?;
    ensure(left[12..after.ip] == came[12..before.ip], "the tags are not those of the packet")?;
    ensure(after.destination() == before.source(), "not to the sender")?;
    ensure(outcome.stats.is_empty(), "an answer is counted for a backend")
}

fn check_reset(before: Headers<'_>, after: Headers<'_>) -> Result<(), String> {
    let (came, left) = (before.frame, after.frame);
    ensure(
        after.protocol == 6 && after.end == after.transport + 20 && left.len() == after.end,
        "not a bare TCP header",
    )?;
    ensure(after.source() == before.destination(), "not from the end that was spoken to")?;
    ensure(
        (after.port(0), after.port(2)) == (before.port(2), before.port(0)),
        "the ports are not turned round",
    )?;
    let number = |frame: &[u8], at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| frame[at + byte]));
    // A segment without an acknowledgment opens, and gets one (RFC 9293 section 3.10.7.1).
    let (sequence, acknowledged, flags) = if came[before.transport + 13] & 16 != 0 {
        (number(came, before.transport + 8), 0, 4)
    } else {
        (0, number(came, before.transport + 4).wrapping_add(1), 20)
    };
    ensure(number(left, after.transport + 4) == sequence, "not the sequence number that is expected")?;
    ensure(number(left, after.transport + 8) == acknowledged, "not the acknowledgment that is expected")?;
    ensure(left[after.transport + 13] == flags, "not a RST")?;
    ensure(sums(left).iter().all(|s| s.sum == 0xffff), "a checksum is wrong")
}

/// The backend of a packet that was forwarded.
fn backend<'i>(outcome: &Outcome, image: &'i Image) -> Result<&'i BackendEntry, String> {
    let of: Vec<_> = outcome.stats.iter().filter(|(_, s)| s.to_packets + s.from_packets > 0).collect();
    let [(id, _)] = of.as_slice() else { return Err(format!("not counted for one backend: {of:?}")) };
    image.backends.get(id).ok_or_else(|| format!("backend {id} is not there"))
}

fn check_forwarded(
    before: Headers<'_>,
    after: Headers<'_>,
    outcome: &Outcome,
    end: Reason,
    image: &Image,
) -> Result<(), String> {
    let by_kernel = matches!(end, Reason::ToBackendByKernel | Reason::ToClientByKernel);
    let to_backend = matches!(end, Reason::ToBackend | Reason::ToBackendByKernel);
    let sent = matches!(outcome.ran.action, Action::Transmit | Action::Redirect);
    ensure(sent != by_kernel, "the verdict is not that of its reason")?;
    ensure(before.hops() > 1, "it had no hop left")?;
    let backend = backend(outcome, image)?;
    let forward = backend.forward;
    let tunnel = matches!(forward, Forward::Ipip | Forward::Gue);
    ensure(to_backend || !tunnel && forward != Forward::Dsr, "answers do not come this way")?;
    let inner = if tunnel {
        ensure(after.destination() == backend.server.address, "the tunnel leads elsewhere")?;
        ensure(after.hops() == 64, "a tunnel begins with all hops")?;
        inside(after, forward).ok_or("there is no packet in the tunnel")?
    } else {
        after
    };
    let taken = u8::from(!by_kernel || tunnel);
    ensure(inner.hops() == before.hops() - taken, "not one hop less, or one where the kernel takes it off")?;
    let padding = |h: &Headers<'_>| h.frame.len() - h.end;
    ensure(padding(&before) == padding(&after), "what follows the packet has another length")?;
    check_bytes(before, inner, to_backend, forward)?;
    ensure(
        same_sums(&sums(before.frame), &sums(after.frame), tunnel),
        "a checksum is off by something else than before",
    )?;
    check_ends(before, inner, to_backend, backend, image)
}

/// The packet in a tunnel.
fn inside(outer: Headers<'_>, forward: Forward) -> Option<Headers<'_>> {
    let at = outer.transport + if forward == Forward::Gue { 8 } else { 0 };
    // As if it were a frame of its own.
    let version = outer.frame.get(at)? >> 4;
    let frame = &outer.frame[at - 14..];
    let headers = Headers::of_ip(frame, 14, version == 6)?;
    (outer.later || headers.end == outer.end + 14 - at).then_some(headers)
}

/// Only addresses, ports, hops and checksums of those that the mode rewrites may change.
fn check_bytes(
    before: Headers<'_>,
    after: Headers<'_>,
    to_backend: bool,
    forward: Forward,
) -> Result<(), String> {
    let (old, new) = (before.packet(), after.packet());
    ensure(old.len() == new.len(), "the packet's length has changed")?;
    let at = |place: usize| place - before.ip;
    let (source, destination, len) = before.places();
    let hops = at(before.hops_at());
    let header_sum = if before.v6 { 10..10 } else { 10..12 };
    let mut may = vec![hops..hops + 1, header_sum];
    let near = matches!(forward, Forward::Nat | Forward::Snat);
    let both = forward == Forward::Snat;
    let transport = at(before.transport);
    for (address, port, rewritten) in
        [(at(destination), 2, near && (to_backend || both)), (at(source), 0, near && (!to_backend || both))]
    {
        if rewritten {
            may.push(address..address + len);
            if before.has_ports() {
                may.push(transport + port..transport + port + 2);
            }
        }
    }
    if near && before.has_ports() {
        let sum = at(before.checksum_at());
        may.push(sum..sum + 2);
    }
    let stray = (0..old.len()).find(|at| old[*at] != new[*at] && !may.iter().any(|r| r.contains(at)));
    ensure(stray.is_none(), &format!("byte {stray:?} of the packet has changed"))
}

/// Whether every checksum is as right or as wrong as it was. With a tunnel, those of the outer headers are more.
fn same_sums(before: &[Sum], after: &[Sum], tunnel: bool) -> bool {
    let all = |sums: &[Sum]| sums.iter().map(|s| s.sum).collect::<Vec<_>>();
    let (before, after) = (all(before), all(after));
    if tunnel { after.ends_with(&before) } else { before == after }
}

/// Between a service and one of its servers.
fn check_ends(
    before: Headers<'_>,
    after: Headers<'_>,
    to_backend: bool,
    backend: &BackendEntry,
    image: &Image,
) -> Result<(), String> {
    let listen = image.listeners[&backend.server.listener].listen;
    let (inside, outside) = if to_backend { (after, before) } else { (before, after) };
    let (vip, port): (IpAddr, u16) = if to_backend {
        (outside.destination(), outside.port(2))
    } else {
        (outside.source(), outside.port(0))
    };
    ensure(vip == listen.address, "not of the service that it is counted for")?;
    if outside.has_ports() {
        ensure((listen.port..=listen.last_port).contains(&port), "not a port of the service")?;
    }
    if matches!(backend.forward, Forward::Nat | Forward::Snat) {
        let (server, at) = if to_backend {
            (inside.destination(), inside.port(2))
        } else {
            (inside.source(), inside.port(0))
        };
        ensure(server == backend.server.address, "not the server that it is counted for")?;
        let expected = if backend.server.port == 0 { port } else { backend.server.port };
        ensure(!inside.has_ports() || at == expected, "not the server's port")?;
    }
    if backend.forward == Forward::Snat {
        let local = if to_backend { inside.source() } else { inside.destination() };
        ensure(image.snat_addresses.values().any(|a| *a == local), "not an address of the gateway's")?;
    }
    Ok(())
}

#[test]
fn any_packet_is_left_alone_or_rewritten_correctly() {
    let world = small("gateway");
    let mut up = Machine::host(&world);
    up.configure(&world, &world.state);
    let mut lossy = Machine::host(&world);
    random::lose_servers(&mut lossy, &world);
    let reasons = [
        Reason::ToBackend,
        Reason::ToClient,
        Reason::ToBackendByKernel,
        Reason::ClientReset,
        Reason::MalformedTcp,
        Reason::EchoAnswered,
        Reason::ErrorToBackend,
        Reason::ErrorToClient,
        Reason::HopsAnswered,
        Reason::FragmentFollowed,
        Reason::FragmentHeld,
        Reason::ExtensionHeader,
    ];
    hold(&world, vec![up, lossy], &reasons);
}

#[test]
fn any_packet_is_left_alone_or_rewritten_correctly_in_each_mode() {
    for (name, reasons) in [
        ("modes", &[Reason::ToBackend, Reason::ToClient, Reason::SnatExhausted, Reason::TooBigAnswered][..]),
        ("ranges", &[Reason::ToBackend, Reason::ToClient, Reason::ErrorToBackend]),
        ("vlans", &[Reason::ToBackend, Reason::ToClient]),
        ("balance", &[Reason::ToBackend, Reason::ToClient, Reason::FlowSuppressed]),
    ] {
        let world = small(name);
        let mut machine = Machine::host(&world);
        machine.configure(&world, &world.state);
        hold(&world, vec![machine], reasons);
    }
}

#[test]
fn any_packet_is_left_alone_or_refused_correctly_when_nobody_is_there() {
    let world = small("empty");
    let mut machine = Machine::host(&world);
    machine.configure(&world, &world.state);
    hold(&world, vec![machine], &[Reason::NoBackendRefused, Reason::NoBackendPassed, Reason::NoBackend]);
}

#[test]
fn any_packet_is_left_alone_or_rewritten_correctly_when_flows_are_moved() {
    for name in ["chances", "schedulers"] {
        let world = small(name);
        let mut machine = Machine::host(&world);
        machine.configure(&world, &world.state);
        hold(&world, vec![machine], &[Reason::ToBackend, Reason::ToClient, Reason::SecondChance]);
    }
}

#[test]
fn the_short_way_leads_where_the_long_one_does() {
    for (name, least) in [
        ("gateway", 500),
        ("modes", 500),
        ("vlans", 500),
        ("ranges", 1),
        ("balance", 100),
        ("chances", 500),
        ("schedulers", 100),
    ] {
        let world = small(name);
        let [short, long] = [true, false].map(|short_way| {
            let mut machine = Machine::host(&world);
            machine.configure(&world, &world.state);
            machine.dataplane.maps_mut().short_way = short_way;
            RefCell::new(machine)
        });
        let config = Config { failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
        let config = Config { cases: (PACKETS / 1024).saturating_mul(config.cases), ..config };
        let result = TestRunner::new(config).run(&random::packet(&world), |Packet { interface, frame }| {
            let [short, long] = [&short, &long].map(|machine| {
                let ingress = world.interfaces[interface].index;
                machine.borrow_mut().run(ingress, &frame)
            });
            if short == long {
                return Ok(());
            }
            let text = format!("{}\n{short:#?}\nis not\n{long:#?}", show(&frame));
            Err(TestCaseError::fail(text))
        });
        if let Err(error) = result {
            panic!("{name}: {error}");
        }
        let taken = short.borrow().dataplane.maps().short_ways.get();
        assert!(taken >= least, "{name}: only {taken} packets took the short way");
        assert_eq!(long.borrow().dataplane.maps().short_ways.get(), 0);
    }
}

/// A world with a small flow table: it is looked at after each packet, and its lines are full.
fn small(name: &str) -> World {
    let mut world = World::load(name);
    world.flow_lines = 64;
    world
}

/// How many packets each world gets, where `PROPTEST_CASES` does not ask for a multiple of proptest's usual 256.
const PACKETS: u32 = 40_000;

/// Sends random packets through all the machines. They must reach these reasons.
fn hold(world: &World, machines: Vec<Machine<Host>>, reasons: &[Reason]) {
    let machines: Vec<_> = machines.into_iter().map(RefCell::new).collect();
    let seen = RefCell::new(BTreeMap::<Reason, u32>::new());
    let count = Cell::new(0);
    // A packet is what the ones before it have made possible: there is nothing to shrink.
    let config = Config { failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let config = Config { cases: (PACKETS / 256).saturating_mul(config.cases), ..config };
    let result = TestRunner::new(config).run(&random::packet(world), |Packet { interface, frame }| {
        for machine in &machines {
            let mut machine = machine.borrow_mut();
            let outcome = machine.run(world.interfaces[interface].index, &frame);
            match check(&frame, &outcome, machine.image()) {
                Ok(_) => {
                    for reason in outcome.counters.keys() {
                        *seen.borrow_mut().entry(*reason).or_default() += 1;
                    }
                }
                Err(what) => {
                    let (frame, after) = (show(&frame), show(&outcome.ran.frame));
                    let text =
                        format!("{what}\n{:?} {:?}\n{frame}\n{after}", outcome.counters, outcome.ran.action);
                    return Err(TestCaseError::fail(text));
                }
            }
        }
        count.set(count.get() + 1);
        Ok(())
    });
    let seen = seen.into_inner();
    println!("{}: {} packets: {seen:?}", world.name, count.get());
    if let Err(error) = result {
        panic!("{}: {error}", world.name);
    }
    // The packets must reach what they are there to try.
    for reason in reasons {
        assert!(seen.contains_key(reason), "{}: no packet came to {}", world.name, reason.name());
    }
}
