//! New flows by the hundred, for what a case cannot say: how they are shared out, and whom a repeated SYN visits.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::flow::{FlowState, FlowWord};
use lb_common::verdict::{Kind, Reason};
use lb_userspace::config::{Listen, Protocol};
use lb_userspace::dataplane::image::{Id, ListenerEntry};

use super::corpus::frame;
use super::corpus::machine::{Engine, Machine, Outcome};
use super::corpus::world::World;

/// Services with more servers than one, by world.
pub const VISITS: [(&str, &[&str]); 3] = [
    ("chances", &["two", "three", "many"]),
    ("schedulers", &["turns", "weights"]),
    ("shares", &["random", "source"]),
];

/// A client's connection, or conversation in datagrams, with a service.
#[derive(Clone, Debug)]
struct Flow {
    client: String,
    port: u16,
    listen: Listen,
}

impl Flow {
    /// Of client `number` (of 200), from its port `port`.
    fn new(listen: Listen, number: u16, port: u16) -> Self {
        let client = if listen.address.is_ipv4() {
            format!("192.0.2.{}", number % 200 + 1)
        } else {
            format!("2001:db8:c::{number:x}")
        };
        Self { client, port, listen }
    }

    fn run<E: Engine>(&self, machine: &mut Machine<E>, world: &World, flags: &str) -> Outcome {
        let (ingress, frame) = self.request(world, flags);
        machine.run(ingress, &frame)
    }

    fn request(&self, world: &World, flags: &str) -> (u32, Vec<u8>) {
        let Self { client, port, listen: Listen { address, port: to, .. } } = self;
        self.frame(world, &world.ingress, &format!("{client} > {address}"), &format!("{port} > {to}"), flags)
    }

    /// From a server.
    fn answer<E: Engine>(&self, machine: &mut Machine<E>, world: &World, from: Id, flags: &str) -> Outcome {
        let server = machine.image().backends[&from].server;
        let Self { client, port, .. } = self;
        let (ingress, frame) = self.frame(
            world,
            "int",
            &format!("{} > {client}", server.address),
            &format!("{} > {port}", server.port),
            flags,
        );
        machine.run(ingress, &frame)
    }

    fn frame(
        &self,
        world: &World,
        ingress: &str,
        addresses: &str,
        ports: &str,
        flags: &str,
    ) -> (u32, Vec<u8>) {
        let ingress = world.interface(ingress).unwrap_or_else(|| panic!("there is no interface {ingress}"));
        let ip = if self.listen.address.is_ipv4() { "ip4" } else { "ip6" };
        let transport = match self.listen.protocol {
            Protocol::Tcp => format!("tcp {ports} {flags}"),
            Protocol::Udp => format!("udp {ports}"),
            Protocol::Any => panic!("{}: no flows of ports", self.listen),
        };
        let text = format!("eth / {ip} {addresses} / {transport}");
        let frame = frame::build(&text, world.names(ingress)).unwrap_or_else(|e| panic!("{text}: {e}"));
        (ingress.index, frame)
    }
}

/// The listeners of a service: one of each family.
fn listeners<E: Engine>(machine: &Machine<E>, service: &str) -> Vec<ListenerEntry> {
    let found: Vec<_> =
        machine.image().listeners.values().filter(|l| l.service == service).cloned().collect();
    assert_eq!(found.len(), 2, "listeners of {service}");
    found
}

/// How an outcome ended.
fn end(outcome: &Outcome) -> Reason {
    let ends: Vec<_> = outcome.counters.keys().filter(|r| r.kind() != Kind::Note).collect();
    let [end] = ends.as_slice() else { panic!("not one reason: {:?}", outcome.counters) };
    **end
}

/// To whom a client's packet went.
fn server(outcome: &Outcome) -> Id {
    assert_eq!(end(outcome), Reason::ToBackend);
    let to: Vec<_> = outcome.stats.iter().filter(|(_, s)| s.to_packets == 1).map(|(id, _)| *id).collect();
    let [to] = to.as_slice() else { panic!("not one backend: {:?}", outcome.stats) };
    *to
}

/// Opens these flows; how many each of the listener's backends got.
fn share<E: Engine>(
    machine: &mut Machine<E>,
    world: &World,
    flows: impl Iterator<Item = Flow>,
) -> BTreeMap<Id, u64> {
    let before = machine.snapshot();
    for flow in flows {
        let (ingress, frame) = flow.request(world, "S");
        machine.send(ingress, &frame);
    }
    let after = machine.snapshot();
    let got = |id: &Id| after.stats[id].to_packets - before.stats[id].to_packets;
    after.stats.keys().map(|id| (*id, got(id))).filter(|(_, n)| *n > 0).collect()
}

/// Says whether the backends of a listener got their shares, give or take the part `slack` of each, and one.
fn check_shares(listener: &ListenerEntry, got: &BTreeMap<Id, u64>, all: u64, slack: f64) {
    println!("{} {}: {got:?}", listener.service, listener.listen);
    assert_eq!(got.values().sum::<u64>(), all, "{}", listener.service);
    let members = &listener.table.members;
    let weights: u64 = members.values().map(|w| u64::from(*w)).sum();
    assert!(got.keys().eq(members.keys()), "{}: {got:?} among {members:?}", listener.service);
    for (id, weight) in members {
        let fair = (all * u64::from(*weight)) as f64 / weights as f64;
        let off = (got[id] as f64 - fair).abs();
        assert!(off <= fair * slack + 1.0, "{}: {} of {fair} for backend {id}", listener.service, got[id]);
    }
}

/// The same in every run (SplitMix64).
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    (1u64..).map(move |n| {
        let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// With the world `shares`: each scheduler shares new flows out as it promises.
pub fn flows_are_shared_out<E: Engine>(machine: &mut Machine<E>, world: &World) {
    machine.configure(world, &world.state);
    for listener in listeners(machine, "turns") {
        let flows = (0..1000).map(|n| Flow::new(listener.listen, 1, 1000 + n));
        let got = share(machine, world, flows);
        check_shares(&listener, &got, 1000, 0.0);
        machine.forget_flows();
    }
    for (service, count, slack) in [("maglev", 10_000, 0.05), ("random", 4000, 0.2), ("dice", 4000, 0.2)] {
        for listener in listeners(machine, service) {
            let flows = noise(1)
                .take(count as usize)
                .map(|n| Flow::new(listener.listen, (n >> 16) as u16, n as u16 | 1024));
            let got = share(machine, world, flows);
            check_shares(&listener, &got, count, slack);
            machine.forget_flows();
        }
    }
}

/// With the world `shares`: a client stays with its server, whatever its port; and a flow with its own, whatever the
/// scheduler.
pub fn flows_stay<E: Engine>(machine: &mut Machine<E>, world: &World) {
    machine.configure(world, &world.state);
    for listener in listeners(machine, "source") {
        let mut all = BTreeSet::new();
        for client in 1..40 {
            let went: BTreeSet<Id> = (1000..1005)
                .map(|port| server(&Flow::new(listener.listen, client, port).run(machine, world, "S")))
                .collect();
            assert_eq!(went.len(), 1, "client {client}: {went:?}");
            all.extend(went);
        }
        assert_eq!(all.len(), 3, "{all:?}");
        machine.forget_flows();
    }
    for service in ["maglev", "turns", "random", "source", "dice"] {
        for listener in listeners(machine, service) {
            for client in 1..20 {
                let flow = Flow::new(listener.listen, client, 1000);
                let first = server(&flow.run(machine, world, "S"));
                for flags in ["A", "PA", "PA", "FA", "A"] {
                    assert_eq!(server(&flow.run(machine, world, flags)), first, "{service}: {flow:?}");
                }
            }
            machine.forget_flows();
        }
    }
}

/// A service with more servers than one: a SYN sent again and again visits each of them before any again; each
/// refusal but the last one's is held back; late answers of those visited before go nowhere; and the one it is with
/// answers.
pub fn everyone_is_visited<E: Engine>(machine: &mut Machine<E>, world: &World, service: &str) {
    machine.configure(world, &world.state);
    for listener in listeners(machine, service) {
        let members: BTreeSet<Id> = listener.table.members.keys().copied().collect();
        for client in 1..20 {
            let flow = Flow::new(listener.listen, client, 1000 + client);
            let mut visited: Vec<Id> = Vec::new();
            for moves in 0..members.len() as u32 {
                let outcome = flow.run(machine, world, "S");
                let current = server(&outcome);
                let expected = visited
                    .last()
                    .map(|_| (Reason::SecondChance, 1))
                    .into_iter()
                    .chain([(Reason::ToBackend, 1)]);
                assert_eq!(outcome.counters, expected.collect(), "{flow:?}");
                let left: Vec<_> =
                    outcome.stats.iter().filter(|(_, s)| s.moved_away > 0).map(|(id, _)| *id).collect();
                assert_eq!(left.first(), visited.last(), "{flow:?}");
                assert_eq!(state(&outcome), (current, FlowState::Opening, moves), "{flow:?}");
                assert!(!visited.contains(&current), "{flow:?}: {visited:?}, and {current} again");
                for old in &visited {
                    for flags in ["SA", "RA", "R"] {
                        let late = flow.answer(machine, world, *old, flags);
                        assert_eq!(end(&late), Reason::LateAnswer, "{flow:?}");
                        assert_eq!(late.flows, late.flows_before);
                    }
                }
                visited.push(current);
                if visited.len() < members.len() {
                    let refused = flow.answer(machine, world, current, "RA");
                    assert_eq!(end(&refused), Reason::RefusalHeld, "{flow:?} after {visited:?}");
                    assert_eq!(refused.flows, refused.flows_before);
                }
            }
            assert_eq!(visited.iter().copied().collect::<BTreeSet<_>>(), members, "{flow:?}: {visited:?}");
            let (last, moves) = (visited[visited.len() - 1], visited.len() as u32 - 1);
            if client % 3 == 0 {
                assert_eq!(server(&flow.run(machine, world, "S")), visited[0], "{flow:?}");
            } else if client % 3 == 1 {
                let refused = flow.answer(machine, world, last, "RA");
                assert_eq!(end(&refused), Reason::ToClient, "{flow:?}");
                assert_eq!(state(&refused), (last, FlowState::Closed, moves), "{flow:?}");
            } else {
                let answered = flow.answer(machine, world, last, "SA");
                assert_eq!(end(&answered), Reason::ToClient, "{flow:?}");
                assert_eq!(state(&answered), (last, FlowState::Answered, moves), "{flow:?}");
                assert_eq!(server(&flow.run(machine, world, "A")), last);
                assert_eq!(server(&flow.run(machine, world, "PA")), last);
            }
            machine.forget_flows();
        }
    }
}

/// Backend, state and moves of the only flow.
fn state(outcome: &Outcome) -> (Id, FlowState, u32) {
    let [(_, word, _)] = outcome.flows.as_slice() else { panic!("not one flow: {:?}", outcome.flows) };
    let word = FlowWord(*word);
    (word.backend(), word.state(), word.moves())
}
