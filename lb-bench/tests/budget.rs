//! A packet costs no more than `budget.toml` says: by the floor that is measured beside it, so that it holds on any
//! machine, and with room for its noise. What this finds is a lookup or a loop too many, not a few nanoseconds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lb_bench::cases::{FLOOR, Flows};
use lb_bench::{Options, Report, run};

const UPDATE: &str = "MATAPA_UPDATE_BUDGET";
const HOW: &str = "if it is meant to be so, record it: MATAPA_UPDATE_BUDGET=1 cargo xtask test budget";
const CASES: [&str; 3] = ["to backend, TCP IPv4", "from backend, TCP IPv4", "no service, TCP IPv4"];
/// A doubling fails.
const TOLERANCE: f64 = 1.9;

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml")
}

/// By the least of the rounds, which a busy machine disturbs least.
fn ratio(report: &Report, case: &str) -> f64 {
    let least = |case| report.row(case, Flows::One).expect("each case was asked for").min as f64;
    least(case) / least(FLOOR)
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_packet_costs_no_more_than_its_budget() {
    let options = Options {
        rounds: 9,
        repeat: 100_000,
        only: CASES.map(str::to_owned).to_vec(),
        one_flow: true,
        ..Options::new(true)
    };
    let report = run(&options).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{report}");
    assert_eq!(report.errors().count(), 0, "{report}");
    let measured: BTreeMap<String, f64> =
        CASES.iter().map(|case| ((*case).to_owned(), (ratio(&report, case) * 10.0).round() / 10.0)).collect();

    if std::env::var_os(UPDATE).is_some_and(|value| !value.is_empty()) {
        let head = "# What a packet costs, as a multiple of the smallest program; about twice as much fails `cargo xtask test`.\n\
                    # Written by: MATAPA_UPDATE_BUDGET=1 cargo xtask test budget\n\n";
        std::fs::write(file(), format!("{head}{}", toml::to_string(&measured).unwrap())).unwrap();
        return;
    }
    let recorded: BTreeMap<String, f64> = toml::from_str(&std::fs::read_to_string(file()).unwrap()).unwrap();
    for (case, ratio) in measured {
        let budget = recorded.get(&case).copied().unwrap_or_default();
        assert!(ratio <= budget * TOLERANCE, "{case}: {ratio} floors, and {budget} are recorded\n{HOW}");
    }
}
