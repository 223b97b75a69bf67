//! Every case of the packet corpus over plain memory.

mod corpus;
#[path = "corpus/many.rs"]
mod many;

use corpus::cases::{self, Chapter};
use corpus::machine::Machine;
use corpus::world::World;

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
