//! The XDP program stays as small as `lb-ebpf/budget.toml` says.
//!
//! The verifier follows each path through the program, so a small change can multiply what it has to look at, long
//! before it refuses the program. The instructions of the object are compared on every kernel, with room for what
//! compilers do differently; those that the verifier looked at only on a kernel series for which they were recorded,
//! as each verifies in its own way.

#![expect(clippy::unwrap_used, reason = "a test ends with what goes wrong")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lb_userspace::dataplane::Capacity;
use lb_userspace::dataplane::kernel::load::{Geometry, Programs, load};
use lb_userspace::dataplane::kernel::pins::Pins;
use lb_userspace::dataplane::object;
use serde::{Deserialize, Serialize};

const UPDATE: &str = "MATAPA_UPDATE_BUDGET";
const HOW: &str = "if it is meant to be so, record it: MATAPA_UPDATE_BUDGET=1 cargo xtask test budget";

/// What compilers may do differently.
const OBJECT_TOLERANCE: f64 = 1.05;
const VERIFIED_TOLERANCE: f64 = 1.10;
/// Half of what any kernel is willing to look at (`BPF_COMPLEXITY_LIMIT_INSNS`).
const VERIFIED_LIMIT: u32 = 500_000;

type Counts = BTreeMap<String, u32>;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Budget {
    /// Instructions in the object.
    object: Counts,
    /// Instructions that the verifier looked at, by kernel series.
    verified: BTreeMap<String, Counts>,
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../lb-ebpf/budget.toml")
}

fn in_object() -> Counts {
    let object = aya_obj::Object::parse(object::embedded().unwrap()).unwrap();
    let mut counts: Counts = object
        .functions
        .values()
        .filter(|function| object.programs.contains_key(&function.name))
        .map(|function| (function.name.clone(), function.instructions.len() as u32))
        .collect();
    let all: usize = object.functions.values().map(|function| function.instructions.len()).sum();
    counts.insert("all functions".to_owned(), all as u32);
    counts
}

fn verified() -> Counts {
    let dir = PathBuf::from(format!("/sys/fs/bpf/matapa-budget-{}", std::process::id()));
    let pins = Pins::open(&dir).unwrap();
    let capacity = Capacity { listeners: 64, backends: 256, table_slots: 1 << 18 };
    let loaded = load(&pins, Geometry { capacity, flow_lines: 1024 }, None, Programs::All);
    pins.remove_all().unwrap();
    loaded.unwrap_or_else(|e| panic!("{e:#}")).kernel.verified_programs().unwrap()
}

/// As `6.18`.
fn kernel_series() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

fn compare(what: &str, actual: &Counts, budget: &Counts, tolerance: f64, problems: &mut Vec<String>) {
    for (name, &count) in actual {
        match budget.get(name) {
            None => problems.push(format!("{name}: {count} {what}, and none are recorded")),
            Some(&recorded) if f64::from(count) > f64::from(recorded) * tolerance => {
                problems.push(format!("{name}: {count} {what}, and {recorded} are recorded"));
            }
            Some(&recorded) if f64::from(count) * tolerance < f64::from(recorded) => {
                println!("{name}: {count} {what}, and {recorded} are recorded; {HOW}");
            }
            Some(_) => {}
        }
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_program_is_within_its_budget() {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let mut budget: Budget = toml::from_str(&text).unwrap();
    let (in_object, verified, series) = (in_object(), verified(), kernel_series());
    println!("in the object: {in_object:?}; verified by Linux {series}: {verified:?}");

    if std::env::var_os(UPDATE).is_some_and(|value| !value.is_empty()) {
        budget.object = in_object;
        budget.verified.insert(series, verified);
        let head = "# Instructions of the XDP program; growth by more than a little fails `cargo xtask test`.\n\
                    # Written by: MATAPA_UPDATE_BUDGET=1 cargo xtask test budget\n\n";
        std::fs::write(file(), format!("{head}{}", toml::to_string(&budget).unwrap())).unwrap();
        return;
    }

    let mut problems = Vec::new();
    compare("instructions in the object", &in_object, &budget.object, OBJECT_TOLERANCE, &mut problems);
    match budget.verified.get(&series) {
        Some(recorded) => {
            compare("instructions verified", &verified, recorded, VERIFIED_TOLERANCE, &mut problems);
        }
        None => println!("nothing is recorded for Linux {series}"),
    }
    for (name, &count) in &verified {
        if count > VERIFIED_LIMIT {
            problems.push(format!("{name}: {count} instructions verified, more than {VERIFIED_LIMIT}"));
        }
    }
    assert!(problems.is_empty(), "{}\n{HOW}", problems.join("\n"));
}
