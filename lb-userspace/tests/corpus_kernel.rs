//! Every case of the packet corpus through the loaded program, beside the host: both must do what the case says, and
//! the same.

mod corpus;
#[path = "corpus/dump.rs"]
mod dump;
#[path = "corpus/kernel.rs"]
mod kernel;
#[path = "corpus/many.rs"]
mod many;
#[path = "corpus/random.rs"]
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use corpus::cases::{self, Chapter};
use corpus::frame;
use corpus::machine::{Host, Machine};
use corpus::show::show;
use corpus::world::{State, World};
use kernel::TestRun;
use lb_common::verdict::{Action, Kind, Reason};
use lb_userspace::dataplane::kernel::explain::Explainer;
use lb_userspace::net::watch::EpochWriter as _;
use log::{Log, Metadata, Record};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

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

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn what_is_explained_is_what_happens_and_changes_nothing() {
    let mut explained = 0;
    let mut failures = Vec::new();
    for Chapter { mut world, cases } in cases::load() {
        if !wanted(&world.name) {
            continue;
        }
        let possible: Vec<_> = cases.iter().filter(|c| c.host_only.is_none()).collect();
        explained += possible.len();
        println!("{}: {} cases", world.name, possible.len());
        failures.extend(kernel::in_explained_namespace(&mut world, |world, machine, explainer| {
            let mut failed = Vec::new();
            let mut ways = BTreeSet::new();
            for case in possible {
                let problems = match case.prepare(machine, world) {
                    Ok(()) => explain_and_run(case.arrives(world), machine, explainer, &mut ways),
                    Err(problem) => vec![problem],
                };
                if !problems.is_empty() {
                    failed.push((case.label.clone(), problems));
                }
            }
            failed
        }));
    }
    println!("{explained} packets explained");
    let text = cases::report(&failures);
    assert!(failures.is_empty(), "{} of {explained} cases fail\n{text}", failures.len());
}

/// A packet's way by its steps, without their numbers.
type Way = (Vec<u32>, Reason);

/// Everything in which a packet's fate is not what was said before, and every map that telling it has changed. The maps
/// are read for the first packet on each way: there is much to read.
fn explain_and_run(
    (ingress, frame): (u32, &[u8]),
    machine: &mut Machine<TestRun>,
    explainer: &mut Explainer,
    ways: &mut BTreeSet<Way>,
) -> Vec<String> {
    let kernel = machine.dataplane.maps();
    let mut explain = || explainer.explain(kernel, frame, ingress).unwrap_or_else(|e| panic!("{e:#}"));
    let told = explain();
    let mut problems = Vec::new();
    if ways.insert((told.steps.iter().map(|(step, ..)| step.number()).collect(), told.reason)) {
        let before = dump::dump(kernel);
        explain();
        let changed = dump::changed(&before, &dump::dump(kernel));
        problems.extend(changed.into_iter().map(|name| format!("to explain it has changed {name}")));
    }
    let outcome = machine.run(ingress, frame);
    let end = outcome.counters.keys().find(|reason| reason.kind() != Kind::Note);
    if (Some(&told.reason), told.action) != (end, outcome.ran.action) {
        problems.push(format!(
            "explained as {:?} for {:?}, and was {:?} for {end:?}; steps {:?}",
            told.action, told.reason, outcome.ran.action, told.steps
        ));
    }
    if told.frame != outcome.ran.frame {
        problems.push(format!("explained {}\n    real {}", show(&told.frame), show(&outcome.ran.frame)));
    }
    problems
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn every_case_of_the_corpus_holds_while_packets_are_traced() {
    for all in [true, false] {
        let mut run = 0;
        let mut failures = Vec::new();
        for Chapter { mut world, cases } in cases::load() {
            if !wanted(&world.name) {
                continue;
            }
            let possible: Vec<_> = cases.iter().filter(|c| c.host_only.is_none()).collect();
            run += possible.len();
            failures.extend(kernel::in_tracing_namespace(&mut world, all, |world, machine| {
                let mut failed = Vec::new();
                for case in possible {
                    let problems = match case.run(machine, world) {
                        Ok(ran) => case.problems(&ran, world, machine.image()),
                        Err(problem) => vec![problem],
                    };
                    if !problems.is_empty() {
                        failed.push((case.label.clone(), problems));
                    }
                }
                failed
            }));
        }
        let text = cases::report(&failures);
        assert!(failures.is_empty(), "traced {all}: {} of {run} cases fail\n{text}", failures.len());
    }
}

/// How many random packets are explained in each world, at least.
const EXPLAINED: usize = 1500;

/// A soak (`cargo xtask soak`) takes more packets by this factor.
fn factor() -> usize {
    let factor = std::env::var("MATAPA_PACKETS_FACTOR");
    factor.map_or(1, |factor| factor.parse().expect("MATAPA_PACKETS_FACTOR is a number"))
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn random_packets_fare_as_was_explained() {
    for name in ["gateway", "chances", "schedulers", "modes", "ranges", "vlans"]
        .into_iter()
        .filter(|name| wanted(name))
    {
        let failures = kernel::in_explained_namespace(&mut World::load(name), |world, machine, explainer| {
            machine.configure(world, &world.state);
            // What is explained goes by the routing table alone; a packet with a source that is none would go by what is
            // remembered of others.
            machine.dataplane.maps().route_epoch().set(0);
            let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            let config = Config { failure_persistence: None, ..Config::default() };
            let mut runner = TestRunner::new_with_rng(config, rng);
            let packets = random::packet(world);
            let mut ways = BTreeSet::new();
            let mut failures = Vec::new();
            for _ in 0..EXPLAINED * factor() {
                let packet = packets.new_tree(&mut runner).expect("packets can be made").current();
                let arrives = (world.interfaces[packet.interface].index, &packet.frame[..]);
                let problems = explain_and_run(arrives, machine, explainer, &mut ways);
                if !problems.is_empty() {
                    failures.push((show(&packet.frame), problems));
                }
            }
            println!("{name}: {} ways", ways.len());
            failures
        });
        let text = cases::report(&failures);
        assert!(failures.is_empty(), "{name}: {} of the packets differ\n{text}", failures.len());
    }
}

/// How many random packets the kernel gets in each world, at least.
const PACKETS: usize = 5000;

/// Where loading the program takes long, `MATAPA_ONLY_WORLD` names the one world that more than the plain corpus is run in.
fn wanted(world: &str) -> bool {
    std::env::var("MATAPA_ONLY_WORLD").map_or(true, |only| only == world)
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn random_packets_fare_alike_in_the_kernel_and_on_the_host() {
    for (name, lossy) in [
        ("gateway", false),
        ("gateway", true),
        ("chances", false),
        ("schedulers", false),
        ("modes", false),
        ("ranges", false),
        ("vlans", false),
    ] {
        if !wanted(name) {
            continue;
        }
        let failures = kernel::in_namespace(&mut World::load(name), |world, in_kernel| {
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
            "{name}: {} of {} packets differ\n{}",
            failures.len(),
            PACKETS * factor(),
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
    // The same packets in every run: what it finds can be found again.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let strategy = random::packet(world);
    let mut failures = Vec::new();
    let mut seen = BTreeMap::<Reason, u64>::new();
    let mut held = in_kernel.dataplane.maps_mut().take_held().expect("nobody else reads it");
    for _ in 0..PACKETS * factor() {
        let packet = strategy.new_tree(&mut runner).expect("packets can be made").current();
        let ingress = world.interfaces[packet.interface].index;
        // Which flow of a full line gives way depends on their ages, and the kernel's clock does not wait.
        on_host.set_time(in_kernel.time());
        let outcome = in_kernel.run(ingress, &packet.frame);
        // As the daemon would: the ring has room for a hundred.
        while held.next().is_some() {}
        for (reason, count) in &outcome.counters {
            *seen.entry(*reason).or_default() += count;
        }
        let differences = kernel::differences(&outcome, &on_host.run(ingress, &packet.frame));
        if !differences.is_empty() {
            failures.push((show(&packet.frame), differences));
            // After one, the flow tables may differ for good.
            if failures.len() == 5 {
                break;
            }
        }
    }
    println!("{}: {} packets: {seen:?}", world.name, PACKETS * factor());
    // The packets must reach what they are there to try.
    let expected: &[Reason] = match world.name.as_str() {
        "chances" => &[Reason::SecondChance, Reason::RefusalHeld, Reason::LateAnswer],
        "schedulers" => &[Reason::SecondChance],
        "modes" => &[
            Reason::ToBackend,
            Reason::ToClient,
            Reason::SnatExhausted,
            Reason::ErrorToBackend,
            Reason::FragmentFollowed,
        ],
        "ranges" => &[Reason::ToBackend, Reason::ToClient, Reason::ErrorToClient],
        _ => &[Reason::ToBackend],
    };
    if failures.is_empty() {
        for reason in expected {
            assert!(seen.contains_key(reason), "{}: no packet came to {}", world.name, reason.name());
        }
    }
    failures
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn flows_are_shared_out_as_promised_by_the_kernel() {
    kernel::in_namespace(&mut World::load("shares"), |world, machine| {
        many::flows_are_shared_out(machine, world);
        many::flows_stay(machine, world);
    });
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_repeated_syn_visits_everyone_in_the_kernel() {
    for (world, services) in many::VISITS {
        kernel::in_namespace(&mut World::load(world), |world, machine| {
            services.iter().for_each(|service| many::everyone_is_visited(machine, world, service));
        });
    }
}

/// What the program's trace says, and nothing else.
struct Collector(Mutex<Vec<String>>);

impl Log for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target().starts_with("matapa_xdp") {
            self.0.lock().expect("no test panics here").push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

static TRACE: Collector = Collector(Mutex::new(Vec::new()));

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_trace_tells_a_packets_way_in_words() {
    log::set_logger(&TRACE).expect("no other test sets one");
    log::set_max_level(log::LevelFilter::Trace);
    for traced in [true, false] {
        let name = "chances";
        kernel::in_traced_namespace(&mut World::load(name), traced, |world, machine, mut logger| {
            assert_eq!(logger.is_some(), traced);
            // Each packet asks for its way.
            machine.dataplane.maps().route_epoch().set(0);
            let mut states = world.state.clone();
            let mut put = |machine: &mut Machine<TestRun>, name: &str, state| {
                states.insert(name.into(), state);
                machine.configure(world, &states);
            };
            // Remembered next hops would spare some questions, depending on the time.
            machine.dataplane.maps_mut().route_epoch().set(0);
            put(machine, "a2", State::Disabled);
            let id = |machine: &Machine<TestRun>, name: &str| {
                machine.image().backends.iter().find(|(_, b)| b.name == name).map_or(0, |(id, _)| *id)
            };
            let (a1, a2) = (id(machine, "a1"), id(machine, "a2"));
            let listener = machine.image().backends[&a1].server.listener;
            let index = |name: &str| world.interface(name).map_or(0, |i| i.index);
            let (ext, int) = (index("ext"), index("int"));
            let mut way = |machine: &mut Machine<TestRun>, text: &str| {
                let (ingress, text) = text.split_once(": ").expect("an interface");
                let ingress = world.interface(ingress).expect("an interface");
                let frame = frame::build(text, world.names(ingress)).expect("the notation is right");
                machine.run(ingress.index, &frame);
                if let Some(logger) = &mut logger {
                    logger.flush();
                }
                std::mem::take(&mut *TRACE.0.lock().expect("no test panics there"))
            };
            let done = |action: Action, reason: Reason| {
                format!("action {} for reason {}", action as u8, reason as u8)
            };

            let syn = "ext: eth / ip4 192.0.2.1 > 203.0.113.10 / tcp 40000 > 25 S";
            let steps = way(machine, syn);
            if !traced {
                assert!(steps.is_empty(), "{steps:?}");
                return;
            }
            let slot = steps.get(2).cloned().unwrap_or_default();
            let expected = [
                format!("for listener {listener}"),
                "unknown flow".into(),
                slot.clone(),
                format!("mode 0 to backend {a1}"),
                format!("route 0 by interface {int}"),
                done(Action::Redirect, Reason::ToBackend),
            ];
            assert_eq!(steps, expected);
            assert!(slot.starts_with("slot ") && slot.ends_with(&format!(" holds backend {a1}")), "{slot}");

            put(machine, "a2", State::Up);
            let expected = [
                format!("for listener {listener}"),
                format!("known flow to backend {a1} in state 1"),
                format!("backend {a1} was silent, backend {a2} is next"),
                format!("mode 0 to backend {a2}"),
                format!("route 0 by interface {int}"),
                done(Action::Redirect, Reason::ToBackend),
            ];
            assert_eq!(way(machine, syn), expected);
            let expected = [
                format!("from backend {a2}"),
                format!("known flow to backend {a2} in state 1"),
                format!("route 0 by interface {ext}"),
                done(Action::Redirect, Reason::ToClient),
            ];
            assert_eq!(
                way(machine, "int: eth / ip4 198.51.100.12 > 192.0.2.1 / tcp 2525 > 40000 SA"),
                expected
            );
            let expected = [
                format!("from backend {a1}"),
                "unknown flow".into(),
                format!("route 0 by interface {ext}"),
                done(Action::Pass, Reason::ReplyNotOurs),
            ];
            assert_eq!(
                way(machine, "int: eth / ip4 198.51.100.11 > 192.0.2.1 / tcp 25 > 40001 SA"),
                expected
            );
            assert_eq!(
                way(machine, "ext: eth / arp who-has 203.0.113.254 tell 203.0.113.1"),
                [done(Action::Pass, Reason::NotIp)]
            );
            assert_eq!(
                way(machine, "ext: eth / ip4 192.0.2.1 > 203.0.113.99 / tcp 40000 > 25 S"),
                [done(Action::Pass, Reason::NoService)]
            );
        });
    }
}
