//! Every case of the packet corpus through the loaded program, beside the host: both must do what the case says, and the same.

mod corpus;
#[path = "corpus/kernel.rs"]
mod kernel;

use corpus::cases::{self, Chapter};
use corpus::machine::Machine;

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn every_case_of_the_corpus_holds_in_the_kernel() {
    let (mut run, mut skipped) = (0, 0);
    let mut failures = Vec::new();
    for Chapter { mut world, cases } in cases::load() {
        let (possible, impossible): (Vec<_>, Vec<_>) = cases.iter().partition(|c| c.host_only.is_none());
        run += possible.len();
        skipped += impossible.len();
        let failed = kernel::in_namespace(&mut world, |world, in_kernel| {
            // Made here: the interfaces have the kernel's numbers now.
            let mut on_host = Machine::host(world);
            let mut failed = Vec::new();
            for case in possible {
                let mut problems = Vec::new();
                match (case.run(in_kernel, world), case.run(&mut on_host, world)) {
                    (Ok(ran), Ok(host)) => {
                        problems = case.problems(&ran, world, in_kernel.image());
                        problems.extend(kernel::differences(&ran, &host));
                    }
                    (ran, host) => {
                        problems.extend(ran.err().map(|e| format!("kernel: {e}")));
                        problems.extend(host.err().map(|e| format!("host: {e}")));
                    }
                }
                if !problems.is_empty() {
                    failed.push((case.label.clone(), problems));
                }
            }
            failed
        });
        failures.extend(failed);
    }
    println!("{run} cases, {skipped} that the kernel cannot run");
    assert!(failures.is_empty(), "{} of {run} cases fail\n{}", failures.len(), cases::report(&failures));
}
