//! What a test run did: the lines of libtest, the table of stages, and the closing line.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::seconds;

/// One stage: a check that counts as one test, or a run of many tests.
#[derive(Debug)]
pub struct Stage {
    pub name: &'static str,
    pub passed: usize,
    pub failures: Vec<String>,
    pub time: Duration,
}

/// All stages so far.
#[derive(Debug, Default)]
pub struct Report {
    stages: Vec<Stage>,
}

impl Report {
    /// Run a check that counts as one test.
    pub fn check(&mut self, name: &'static str, run: impl FnOnce() -> Result<()>) -> bool {
        heading(name);
        let start = Instant::now();
        let (passed, failures) = match run() {
            Ok(()) => (1, vec![]),
            Err(error) => {
                println!("error: {error:#}");
                (0, vec![first_line(&format!("{error:#}"))])
            }
        };
        let good = failures.is_empty();
        self.stages.push(Stage { name, passed, failures, time: start.elapsed() });
        good
    }

    /// Run tests; an error, or a failure without a failed test, counts as one failure.
    pub fn tests(&mut self, name: &'static str, run: impl FnOnce(&mut Tests) -> Result<()>) {
        heading(name);
        let start = Instant::now();
        let mut tests = Tests::default();
        let outcome = run(&mut tests);
        let mut failures = tests.failures();
        if let Err(error) = outcome {
            println!("error: {error:#}");
            failures.push(first_line(&format!("{error:#}")));
        }
        self.stages.push(Stage { name, passed: tests.passed, failures, time: start.elapsed() });
    }

    pub fn passed(&self) -> usize {
        self.stages.iter().map(|stage| stage.passed).sum()
    }

    pub fn failed(&self) -> usize {
        self.stages.iter().map(|stage| stage.failures.len()).sum()
    }
}

fn heading(name: &str) {
    println!("\n=== {name}");
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default().max(5);
        writeln!(out, "\n{:width$}  passed  failed      time", "stage")?;
        for stage in &self.stages {
            let Stage { name, passed, failures, time } = stage;
            writeln!(out, "{name:width$}  {passed:>6}  {:>6}  {:>8}", failures.len(), seconds(*time))?;
        }
        for stage in &self.stages {
            for failure in &stage.failures {
                writeln!(out, "FAILED {}: {failure}", stage.name)?;
            }
        }
        writeln!(out, "{} passed, {} failed", self.passed(), self.failed())
    }
}

/// What libtest said in one run of `cargo test`.
#[derive(Debug, Default)]
pub struct Tests {
    pub passed: usize,
    failed: usize,
    names: Vec<String>,
}

impl Tests {
    /// Take in a line of output.
    pub fn observe(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.names.push(name.to_owned());
        }
    }

    pub fn failed(&self) -> usize {
        self.failed.max(self.names.len())
    }

    /// One entry per failed test, also for one whose name did not stand on a line of its own.
    fn failures(&self) -> Vec<String> {
        let unnamed = self.failed().saturating_sub(self.names.len());
        let mut failures = self.names.clone();
        failures.extend(std::iter::repeat_n("a test (see above)".to_owned(), unnamed));
        failures
    }
}

/// The number in front of `what` in a line as `ok. 5 passed; 0 failed; 1 ignored; ...`.
fn count(counts: &str, what: &str) -> usize {
    let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(lines: &[&str]) -> Tests {
        let mut tests = Tests::default();
        for line in lines {
            tests.observe(line);
        }
        tests
    }

    #[test]
    fn results_of_several_binaries_are_added() {
        let tests = observed(&[
            "running 2 tests",
            "test a::good ... ok",
            "test a::bad ... FAILED",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 7 passed; 0 failed; 3 ignored; 0 measured; 9 filtered out; finished in 0.10s",
        ]);
        assert_eq!((tests.passed, tests.failed()), (8, 1));
        assert_eq!(tests.failures(), ["a::bad"]);
    }

    #[test]
    fn failure_without_a_name_is_counted() {
        let tests = observed(&["test result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured"]);
        assert_eq!(tests.failures().len(), 2);
    }

    #[test]
    fn last_line_is_the_count() {
        let mut report = Report::default();
        report.check("format", || Ok(()));
        report.check("licences", || Err(anyhow::anyhow!("one is missing\nand more")));
        report.tests("host tests", |tests| {
            tests.observe("test result: ok. 3 passed; 0 failed; 0 ignored");
            anyhow::bail!("a test binary was killed")
        });
        let text = report.to_string();
        assert_eq!(text.lines().last(), Some("4 passed, 2 failed"));
        assert!(text.contains("FAILED licences: one is missing\n"), "{text}");
    }
}
