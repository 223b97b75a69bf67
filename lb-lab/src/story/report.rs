//! What was promised, what happened, and how it is told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

/// One promise and whether it was held.
#[derive(Clone, Debug, Serialize)]
pub struct Promise {
    pub promise: String,
    pub held: bool,
    /// The figures behind it.
    pub figures: String,
}

/// The whole story's result.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub held: bool,
    pub seconds: f64,
    pub promises: Vec<Promise>,
    pub figures: BTreeMap<String, serde_json::Value>,
}

impl Outcome {
    /// Whether everything promised was held.
    pub fn held(&self) -> bool {
        self.held
    }

    /// The closing table.
    pub fn print(&self) {
        let width = self.promises.iter().map(|one| one.promise.chars().count()).max().unwrap_or(0);
        println!("\nSummary");
        for one in &self.promises {
            let mark = if one.held { "held    " } else { "NOT HELD" };
            println!("  {mark}  {:width$}  {}", one.promise, one.figures);
        }
        let not = self.promises.iter().filter(|one| !one.held).count();
        let verdict = match not {
            0 => "everything promised was held".to_owned(),
            1 => "one promise was not held".to_owned(),
            count => format!("{count} promises were not held"),
        };
        println!("\n{verdict}, after {:.0} s", self.seconds);
    }
}

/// Collects promises and figures, and prints them as they come.
#[derive(Debug)]
pub(super) struct Report {
    start: Instant,
    promises: Vec<Promise>,
    figures: BTreeMap<String, serde_json::Value>,
}

impl Report {
    pub fn new() -> Self {
        Self { start: Instant::now(), promises: Vec::new(), figures: BTreeMap::new() }
    }

    /// A new chapter.
    pub fn title(&self, text: &str) {
        println!("\n{text}");
    }

    /// A line of progress.
    pub fn say(&self, text: &str) {
        println!("  [{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    pub fn promise(&mut self, promise: &str, held: bool, figures: String) {
        println!("  {} {promise}: {figures}", if held { "  held   " } else { " NOT HELD" });
        self.promises.push(Promise { promise: promise.to_owned(), held, figures });
    }

    /// For `--json`.
    pub fn figure(&mut self, name: &str, value: impl Serialize) {
        let value = serde_json::to_value(value).unwrap_or(serde_json::Value::Null);
        self.figures.insert(name.to_owned(), value);
    }

    pub fn outcome(self, took: Duration) -> Outcome {
        let held = !self.promises.is_empty() && self.promises.iter().all(|one| one.held);
        Outcome { held, seconds: took.as_secs_f64(), promises: self.promises, figures: self.figures }
    }
}

/// `1.234 s` or `12.3 ms`.
pub(super) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 1.0 { format!("{seconds:.2} s") } else { format!("{:.1} ms", seconds * 1000.0) }
}

/// `12.3 MB`
pub(super) fn bytes(count: u64) -> String {
    format!("{:.1} MB", count as f64 / 1e6)
}

/// For figures: milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
