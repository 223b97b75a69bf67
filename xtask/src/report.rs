//! What a test run did: the lines of libtest, the table of stages, and the closing line.

use std::collections::BTreeSet;
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
        tests.end();
        let mut failures = std::mem::take(&mut tests.failures);
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
    failures: Vec<String>,
    /// Failed tests of the test binary that is running.
    current: BTreeSet<String>,
    /// Inside libtest's closing list of failed tests.
    listing: bool,
    /// A test binary has begun and not told its result.
    unfinished: bool,
}

impl Tests {
    /// Take in a line of output.
    pub fn observe(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.finish(count(counts, "failed"));
        } else if is_start(line) {
            self.end();
            self.unfinished = true;
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.current.insert(name.to_owned());
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.listing) {
            // Also names a test whose own line was torn by what it printed.
            self.current.insert(name.to_owned());
        } else if !line.is_empty() {
            self.listing = line == "failures:";
        }
    }

    /// There is no more output: a binary that told no result did not get to its end.
    pub fn end(&mut self) {
        if self.unfinished {
            self.finish(0);
            self.failures.push("a test binary ended before its tests did".to_owned());
        }
    }

    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// A check that is not libtest's.
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    /// A check that is not libtest's.
    pub fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    /// Add what was observed elsewhere, named after the place.
    pub fn absorb(&mut self, place: &str, mut other: Self) {
        other.end();
        self.passed += other.passed;
        self.failures.extend(other.failures.into_iter().map(|failure| format!("{place}: {failure}")));
    }

    fn finish(&mut self, failed: usize) {
        let named = std::mem::take(&mut self.current);
        let unnamed = failed.saturating_sub(named.len());
        self.failures.extend(named);
        self.failures.extend(std::iter::repeat_n("a test (see above)".to_owned(), unnamed));
        self.listing = false;
        self.unfinished = false;
    }
}

/// Is this the first line of a test binary, as `running 5 tests`?
fn is_start(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    matches!(words[..], ["running", count, "test" | "tests"] if count.parse::<usize>().is_ok())
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
        assert_eq!(tests.failures, ["a::bad"]);
    }

    #[test]
    fn torn_line_is_named_by_the_closing_list() {
        let tests = observed(&[
            "running 1 test",
            "test a::bad ... something a child printed",
            "FAILED",
            "",
            "failures:",
            "",
            "---- a::bad stdout ----",
            "    an indented line of the test",
            "",
            "failures:",
            "    a::bad",
            "",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!(tests.failures, ["a::bad"]);
    }

    #[test]
    fn binary_without_a_result_is_a_failure() {
        let mut tests = observed(&["running 2 tests", "test a::good ... ok", "running 1 test"]);
        assert_eq!(tests.failed(), 1);
        tests.end();
        assert_eq!(tests.failed(), 2);
    }

    #[test]
    fn failure_without_a_name_is_counted() {
        let tests = observed(&["test result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured"]);
        assert_eq!(tests.failures.len(), 2);
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
