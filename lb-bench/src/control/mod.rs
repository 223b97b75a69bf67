//! What the control plane costs, against growth: a verdict on its way to the packet path, a start, a reload, an adoption, the
//! daemon's memory and what it does when nothing happens.

pub mod daemon;
pub mod plots;
pub mod tables;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// One thing that was measured at one size.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub what: String,
    /// What there is so many of.
    pub size: u32,
    pub of: String,
    /// Of the figures.
    pub unit: &'static str,
    pub least: f64,
    pub median: f64,
    pub most: f64,
    /// What it is to be at most, where that was promised.
    pub bound: Option<f64>,
    /// In the order in which they were measured.
    pub rounds: Vec<f64>,
}

impl Row {
    pub const HEADINGS: &str = "what                                          size                       least   median     most    bound";

    /// `rounds` has at least one figure.
    pub fn new(what: &str, size: u32, of: &str, unit: &'static str, rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        Self {
            what: what.to_owned(),
            size,
            of: of.to_owned(),
            unit,
            least: at(0),
            median: at(sorted.len() / 2),
            most: at(sorted.len().saturating_sub(1)),
            bound: None,
            rounds,
        }
    }

    /// Durations, in milliseconds.
    pub fn times(what: &str, size: u32, of: &str, rounds: &[Duration]) -> Self {
        Self::new(what, size, of, "ms", rounds.iter().map(|took| took.as_secs_f64() * 1000.0).collect())
    }

    #[must_use]
    pub const fn at_most(mut self, bound: f64) -> Self {
        self.bound = Some(bound);
        self
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = format!("{} {}", self.size, self.of);
        write!(
            f,
            "{:<45} {size:<20} {:>10.2} {:>8.2} {:>8.2} {}",
            self.what, self.least, self.median, self.most, self.unit
        )?;
        match self.bound {
            Some(bound) if self.median > bound => write!(f, " {bound:>5.0} exceeded"),
            Some(bound) => write!(f, " {bound:>5.0}"),
            None => Ok(()),
        }
    }
}
