//! Thousands of servers are checked every second, and none is forgotten.

use std::time::Duration;

use lb_bench::checks::{Figures, Kind, Options, run};

/// Fewer in a program that is not optimised, which costs many times as much.
const BACKENDS: u32 = if cfg!(debug_assertions) { 500 } else { 5000 };

#[test]
fn no_tick_is_missed() {
    let options = Options {
        backends: BACKENDS,
        interval: Duration::from_secs(1),
        intervals: 4,
        program: env!("CARGO_BIN_EXE_lb-bench-checks").into(),
    };
    let figures = run(Kind::Tcp, &options).unwrap_or_else(|error| panic!("{error:#}"));
    println!("{}\n{figures}", Figures::HEADINGS);
    assert_eq!((figures.failures, figures.missed), (0, 0), "{figures}");
    let expected = BACKENDS as usize * 4;
    assert!(figures.checks.abs_diff(expected) <= expected / 20, "{figures}");
}
