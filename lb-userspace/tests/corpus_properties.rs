//! Whatever comes in: no panic; what is not forwarded is left as it was; what is forwarded is rewritten correctly and
//! completely.

#[expect(dead_code, reason = "of the cases, only the packets are used here")]
mod corpus;
#[path = "corpus/random.rs"]
mod random;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use corpus::frame::{ones_sum, pseudo_header, show};
use corpus::machine::{Host, Machine, Outcome};
use corpus::world::World;
use lb_common::verdict::{Action, Kind, Reason};
use lb_userspace::dataplane::image::Image;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use random::Packet;

/// Where things are in a frame that the packet path has forwarded, and so has found sound.
struct Headers<'f> {
    frame: &'f [u8],
    v6: bool,
    protocol: u8,
    l4: usize,
    end: usize,
}

impl<'f> Headers<'f> {
    fn of(frame: &'f [u8]) -> Self {
        let be16 = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        if frame[12] == 0x86 {
            Self { frame, v6: true, protocol: frame[20], l4: 54, end: 54 + be16(18) }
        } else {
            let l4 = 14 + usize::from(frame[14] & 0xf) * 4;
            Self { frame, v6: false, protocol: frame[23], l4, end: 14 + be16(16) }
        }
    }

    /// Offsets of the source address, the destination address, and how long they are.
    fn places(&self) -> (usize, usize, usize) {
        if self.v6 { (22, 38, 16) } else { (26, 30, 4) }
    }

    fn address(&self, at: usize) -> IpAddr {
        if self.v6 {
            let bytes: [u8; 16] = std::array::from_fn(|i| self.frame[at + i]);
            Ipv6Addr::from(bytes).into()
        } else {
            let bytes: [u8; 4] = std::array::from_fn(|i| self.frame[at + i]);
            Ipv4Addr::from(bytes).into()
        }
    }

    fn hops_at(&self) -> usize {
        if self.v6 { 21 } else { 22 }
    }

    fn checksum_at(&self) -> usize {
        self.l4 + if self.protocol == 6 { 16 } else { 6 }
    }

    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.frame[self.l4 + at], self.frame[self.l4 + at + 1]])
    }

    /// The sum of the IPv4 header: ffff when its checksum is right.
    fn header_sum(&self) -> u16 {
        if self.v6 { 0xffff } else { ones_sum(&self.frame[14..self.l4]) }
    }

    /// The sum of all that the transport checksum covers, with it: ffff when it is right. `None`: there is no checksum.
    fn transport_sum(&self) -> Option<u16> {
        let mut end = self.end;
        if self.protocol == 17 {
            end =
                self.l4 + usize::from(u16::from_be_bytes([self.frame[self.l4 + 4], self.frame[self.l4 + 5]]));
            if self.frame[self.l4 + 6..self.l4 + 8] == [0, 0] {
                return None;
            }
        }
        let (source, destination, _) = self.places();
        let segment = &self.frame[self.l4..end];
        let pseudo =
            pseudo_header(self.address(source), self.address(destination), self.protocol, segment.len());
        Some(ones_sum(&[&pseudo, segment].concat()))
    }
}

/// Calls `claim` false with a text.
fn ensure(claim: bool, what: &str) -> Result<(), String> {
    if claim { Ok(()) } else { Err(what.to_owned()) }
}

/// What must be true of any packet's fate.
fn check(came: &[u8], outcome: &Outcome, image: &Image) -> Result<Reason, String> {
    let ends: Vec<_> = outcome.counters.iter().filter(|(r, _)| r.kind() != Kind::Note).collect();
    let [(end, 1)] = ends.as_slice() else { return Err(format!("not one reason: {ends:?}")) };
    let (end, ran) = (**end, &outcome.ran);
    let left = &ran.frame;
    match end.kind() {
        Kind::Pass | Kind::Drop => {
            let action = if end.kind() == Kind::Pass { Action::Pass } else { Action::Drop };
            ensure(ran.action == action, "the verdict is not that of its reason")?;
            ensure(left == came, "changed although it is not forwarded")?;
            ensure(outcome.stats.is_empty(), "counted for a backend although it is not forwarded")?;
        }
        Kind::Forward if end == Reason::ClientReset => {
            ensure(ran.action == Action::Transmit, "a RST goes back where the packet came from")?;
            check_reset(came, left)?;
        }
        Kind::Forward => check_rewritten(came, outcome, end, image)?,
        Kind::Note => return Err("not an end".into()),
    }
    Ok(end)
}

fn check_rewritten(came: &[u8], outcome: &Outcome, end: Reason, image: &Image) -> Result<(), String> {
    let left = &outcome.ran.frame;
    let by_kernel = matches!(end, Reason::ToBackendByKernel | Reason::ToClientByKernel);
    let to_backend = matches!(end, Reason::ToBackend | Reason::ToBackendByKernel);
    let sent = matches!(outcome.ran.action, Action::Transmit | Action::Redirect);
    ensure(sent != by_kernel, "the verdict is not that of its reason")?;
    ensure(left.len() == came.len(), "its length has changed")?;
    let (before, after) = (Headers::of(came), Headers::of(left));
    let (source, destination, len) = before.places();
    let hops = before.hops_at();
    ensure(came[hops] > 1, "it had no hop left")?;
    ensure(
        left[hops] == came[hops] - u8::from(!by_kernel),
        "not one hop less, or one where the kernel takes it off",
    )?;

    // Only these bytes may change.
    let address = if to_backend { destination } else { source };
    let port = if to_backend { 2 } else { 0 };
    let sum = before.checksum_at();
    let mut may = vec![address..address + len, before.l4 + port..before.l4 + port + 2, sum..sum + 2];
    if !by_kernel {
        may.extend([0..12, hops..hops + 1]);
    }
    if !before.v6 {
        may.push(24..26);
    }
    let stray = (0..came.len()).find(|at| came[*at] != left[*at] && !may.iter().any(|r| r.contains(at)));
    ensure(stray.is_none(), &format!("byte {stray:?} has changed"))?;

    // One's complement has two zeros; the sum of something is never the positive one.
    ensure(before.header_sum() == after.header_sum(), "the IPv4 header's checksum is off")?;
    ensure(before.transport_sum() == after.transport_sum(), "the transport checksum is off")?;

    let inside = if to_backend { &after } else { &before };
    let outside = if to_backend { &before } else { &after };
    let known = image.backends.values().any(|b| {
        let listen = image.listeners[&b.server.listener].listen;
        (b.server.address, b.server.port) == (inside.address(address), inside.port(port))
            && (listen.address, listen.port) == (outside.address(address), outside.port(port))
    });
    ensure(known, "not between a service and one of its backends")
}

fn check_reset(came: &[u8], left: &[u8]) -> Result<(), String> {
    let (before, after) = (Headers::of(came), Headers::of(left));
    let (source, destination, _) = before.places();
    ensure(
        after.protocol == 6 && after.end == after.l4 + 20 && left.len() == after.end,
        "not a bare TCP header",
    )?;
    ensure(left[..6] == came[6..12] && left[6..12] == came[..6], "the MAC addresses are not turned round")?;
    ensure(after.address(source) == before.address(destination), "not from the service")?;
    ensure(after.address(destination) == before.address(source), "not to the client")?;
    ensure(
        (after.port(0), after.port(2)) == (before.port(2), before.port(0)),
        "the ports are not turned round",
    )?;
    ensure(
        left[after.l4 + 4..after.l4 + 8] == came[before.l4 + 8..before.l4 + 12],
        "not the sequence number that is expected",
    )?;
    ensure(left[after.l4 + 13] == 4, "not a RST")?;
    ensure(after.header_sum() == 0xffff && after.transport_sum() == Some(0xffff), "a checksum is wrong")
}

#[test]
fn any_packet_is_left_alone_or_rewritten_correctly() {
    let world = World::load("gateway");
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
    ];
    hold(&world, vec![up, lossy], &reasons);
}

#[test]
fn any_packet_is_left_alone_or_rewritten_correctly_when_flows_are_moved() {
    for name in ["chances", "schedulers"] {
        let world = World::load(name);
        let mut machine = Machine::host(&world);
        machine.configure(&world, &world.state);
        hold(&world, vec![machine], &[Reason::ToBackend, Reason::ToClient, Reason::SecondChance]);
    }
}

/// Sends random packets through all the machines. They must reach these reasons.
fn hold(world: &World, machines: Vec<Machine<Host>>, reasons: &[Reason]) {
    let machines: Vec<_> = machines.into_iter().map(RefCell::new).collect();
    let seen = RefCell::new(BTreeMap::<Reason, u32>::new());
    let count = Cell::new(0);
    let config = Config { failure_persistence: None, ..Config::default() };
    let config = Config { cases: config.cases.max(4096), ..config };
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
    println!("{} packets: {seen:?}", count.get());
    if let Err(error) = result {
        panic!("{error}");
    }
    // The packets must reach what they are there to try.
    for reason in reasons {
        assert!(seen.contains_key(reason), "no packet came to {}", reason.name());
    }
}
