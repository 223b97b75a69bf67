//! Every case of the packet corpus over plain memory.

mod corpus;

use corpus::cases::{self, Chapter};
use corpus::machine::Machine;

#[test]
fn every_case_of_the_corpus_holds_on_the_host() {
    let chapters = cases::load();
    let (mut count, mut here_only) = (0, 0);
    let mut failures = Vec::new();
    for Chapter { world, cases } in &chapters {
        println!("{}: {} cases", world.name, cases.len());
        let mut machine = Machine::host(world);
        for case in cases {
            count += 1;
            here_only += usize::from(case.host_only.is_some());
            let problems = match case.run(&mut machine, world) {
                Ok(outcome) => case.problems(&outcome, world, machine.image()),
                Err(problem) => vec![problem],
            };
            if !problems.is_empty() {
                failures.push((case.label.clone(), problems));
            }
        }
    }
    println!("{count} cases, {here_only} of them on the host only");
    assert!(failures.is_empty(), "{} of {count} cases fail\n{}", failures.len(), cases::report(&failures));
}
