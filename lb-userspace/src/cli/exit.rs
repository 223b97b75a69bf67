//! How a command ends.

use std::io;

use crate::api::client::ClientError;
use crate::cli::table::clean;

/// The exit codes, which scripts may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// What was asked is done.
    Done = 0,
    /// It was understood but could not be done.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The configuration has errors.
    Configuration = 3,
    /// No daemon answers.
    Unreachable = 4,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// Why a command did not do what was asked. The message goes to standard error as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: ExitCode,
    /// A sentence, perhaps followed by further lines. Nothing is printed when empty.
    pub message: String,
}

impl Failure {
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The plain kind, [`ExitCode::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Failed, message)
    }

    /// What could not be written to standard output. A reader that has seen enough (`| head`) is no failure.
    pub fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::new(ExitCode::Done, "")
        } else {
            Self::failed(format!("cannot write the output: {error}"))
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mut message = clean(&error.to_string()).into_owned();
        let code = match error {
            ClientError::Unreachable { .. } | ClientError::Silent { .. } | ClientError::Lost { .. } => {
                ExitCode::Unreachable
            }
            ClientError::Refused { status, body } => {
                for line in &body.details {
                    message.push_str("\n  ");
                    message.push_str(&clean(line));
                }
                let configuration = status == hyper::StatusCode::UNPROCESSABLE_ENTITY;
                if configuration { ExitCode::Configuration } else { ExitCode::Failed }
            }
            ClientError::Foreign { .. } => ExitCode::Failed,
        };
        Self { code, message }
    }
}
