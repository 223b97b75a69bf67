//! Every case of the packet corpus over plain memory.

mod corpus;
#[path = "corpus/many.rs"]
mod many;

use corpus::cases::{self, Chapter};
use corpus::machine::{Machine, Outcome};
use corpus::world::World;
use lb_common::verdict::{Action, Kind, Reason};

#[test]
fn every_case_of_the_corpus_holds_on_the_host() {
    let chapters = cases::load();
    let (mut count, mut here_only) = (0, 0);
    let mut failures = Vec::new();
    for Chapter { world, cases } in &chapters {
        println!("{}: {} cases", world.name, cases.len());
        // One remembers ways, the other asks the routing table for every packet.
        let mut machines = [1, 0].map(|route_epoch| Machine::host_in_epoch(world, route_epoch));
        for case in cases {
            count += 1;
            here_only += usize::from(case.host_only.is_some());
            let mut problems = Vec::new();
            for machine in &mut machines {
                match case.run(machine, world) {
                    Ok(outcome) => problems.extend(case.problems(&outcome, world, machine.image())),
                    Err(problem) => problems.push(problem),
                }
            }
            problems.dedup();
            if !problems.is_empty() {
                failures.push((case.label.clone(), problems));
            }
        }
    }
    println!("{count} cases, {here_only} of them on the host only");
    assert!(failures.is_empty(), "{} of {count} cases fail\n{}", failures.len(), cases::report(&failures));
}

#[test]
fn flows_are_shared_out_as_promised() {
    let world = World::load("shares");
    let mut machine = Machine::host(&world);
    many::flows_are_shared_out(&mut machine, &world);
    many::flows_stay(&mut machine, &world);
}

#[test]
fn a_repeated_syn_visits_everyone() {
    for (world, services) in many::VISITS {
        let world = World::load(world);
        let mut machine = Machine::host(&world);
        services.iter().for_each(|service| many::everyone_is_visited(&mut machine, &world, service));
    }
}

#[test]
fn without_a_daemon_for_too_long_nothing_is_forwarded_and_nothing_is_touched() {
    use Reason::{
        EchoAnswered, ErrorToBackend, ErrorToClient, ToBackend, ToBackendByKernel, ToClient, ToClientByKernel,
    };
    const FORWARDED: [Reason; 7] = [
        ToBackend,
        ToClient,
        ToBackendByKernel,
        ToClientByKernel,
        EchoAnswered,
        ErrorToBackend,
        ErrorToClient,
    ];
    let end = |outcome: &Outcome| outcome.counters.keys().copied().find(|r| r.kind() != Kind::Note);
    let (mut forwarded, mut dropped) = (0, 0);
    for Chapter { world, cases } in &cases::load() {
        // With what is remembered of next hops, which is good for a tick, and without.
        for route_epoch in [1, 0] {
            let [mut alive, mut alone] = [(); 2].map(|()| Machine::host_in_epoch(world, route_epoch));
            for case in cases {
                let before = case.run(&mut alive, world).unwrap_or_else(|e| panic!("{}: {e}", case.label));
                case.prepare(&mut alone, world).unwrap_or_else(|e| panic!("{}: {e}", case.label));
                let maps = alone.dataplane.maps_mut();
                maps.abandoned = true;
                maps.now = maps.now.wrapping_add(1);
                let (ingress, frame) = case.arrives(world);
                let after = alone.run(ingress, frame);
                let maps = alone.dataplane.maps_mut();
                maps.abandoned = false;
                maps.now = maps.now.wrapping_sub(1);
                let is_forwarded =
                    |reason: Option<Reason>| reason.is_some_and(|one| FORWARDED.contains(&one));
                let (before, now) = (end(&before), end(&after));
                assert!(!is_forwarded(now), "{}: {now:?}", case.label);
                forwarded += usize::from(is_forwarded(before));
                if now == Some(Reason::NoDaemon) {
                    dropped += 1;
                    assert_eq!(after.ran.action, Action::Drop, "{}", case.label);
                    assert!(after.ran.frame == frame, "{}: the frame was changed", case.label);
                }
            }
        }
    }
    println!("{dropped} dropped, {forwarded} are forwarded while a daemon is alive");
    assert!(forwarded > 100 && dropped * 10 > forwarded * 9, "{dropped} dropped, {forwarded} forwarded");
}
