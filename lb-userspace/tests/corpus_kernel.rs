//! Every case of the packet corpus through the loaded program, beside the host: both must do what the case says, and the same.

mod corpus;
#[path = "corpus/kernel.rs"]
mod kernel;
#[path = "corpus/random.rs"]
mod random;

use corpus::cases::{self, Chapter};
use corpus::frame;
use corpus::machine::{Host, Machine};
use corpus::world::World;
use kernel::TestRun;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, TestRunner};

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn every_case_of_the_corpus_holds_in_the_kernel() {
    let (mut run, mut skipped) = (0, 0);
    let mut failures = Vec::new();
    for Chapter { mut world, cases } in cases::load() {
        let (possible, impossible): (Vec<_>, Vec<_>) = cases.iter().partition(|c| c.host_only.is_none());
        run += possible.len();
        skipped += impossible.len();
        println!("{}: {} cases", world.name, possible.len());
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

/// How many random packets the kernel gets.
const PACKETS: usize = 2000;

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn random_packets_fare_alike_in_the_kernel_and_on_the_host() {
    for lossy in [false, true] {
        let failures = kernel::in_namespace(&mut World::load("gateway"), |world, in_kernel| {
            let mut on_host = Machine::host(world);
            if lossy {
                random::lose_servers(in_kernel, world);
                random::lose_servers(&mut on_host, world);
            } else {
                in_kernel.configure(world, &world.state);
                on_host.configure(world, &world.state);
            }
            compare(world, in_kernel, &mut on_host)
        });
        assert!(
            failures.is_empty(),
            "{} of {PACKETS} packets differ\n{}",
            failures.len(),
            cases::report(&failures)
        );
    }
}

/// The same packets, one after the other, through both. The first few that differ.
fn compare(
    world: &World,
    in_kernel: &mut Machine<TestRun>,
    on_host: &mut Machine<Host>,
) -> Vec<(String, Vec<String>)> {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let packets = random::packet(world);
    let mut failures = Vec::new();
    for _ in 0..PACKETS {
        let packet = packets.new_tree(&mut runner).expect("packets can be made").current();
        let ingress = world.interfaces[packet.interface].index;
        let differences =
            kernel::differences(&in_kernel.run(ingress, &packet.frame), &on_host.run(ingress, &packet.frame));
        if !differences.is_empty() {
            failures.push((frame::show(&packet.frame), differences));
            // After one, the flow tables may differ for good.
            if failures.len() == 5 {
                break;
            }
        }
    }
    failures
}
