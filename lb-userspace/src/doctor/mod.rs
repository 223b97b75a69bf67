//! `matapa doctor`: why nothing arrives.
//!
//! [`gather`] looks at the machine and asks the daemon; what it finds are [`facts`], plain data. [`judge`] compares them
//! with the configuration and touches nothing. So each judgement is tested without a machine.

pub mod facts;
pub mod gather;
pub mod judge;

use serde::Serialize;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Looked at, and as it should be.
    Ok,
    /// Works, but not as well as it could, or not for everybody.
    Warning,
    /// With this nothing arrives, or not what should.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What was looked at: a word of [`judge::CHECKS`].
    pub check: &'static str,
    /// An interface, an address, a server; empty where it is about the machine.
    pub subject: String,
    /// One sentence without a full stop.
    pub message: String,
    /// A command that mends it, or the one to find out more.
    pub mend: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Ok, check, subject, message, None)
    }

    pub fn warning(
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, check, subject, message, Some(mend.into()))
    }

    pub fn problem(
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Problem, check, subject, message, Some(mend.into()))
    }

    fn new(
        severity: Severity,
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        mend: Option<String>,
    ) -> Self {
        Self { severity, check, subject: subject.into(), message: message.into(), mend }
    }
}
