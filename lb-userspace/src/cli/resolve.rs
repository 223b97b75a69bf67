//! `matapa check --resolve`: what the host names of a configuration stand for now.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Instant;

use crate::cli::exit::Failure;
use crate::cli::output::print;
use crate::config::Config;
use crate::hosts::answers::Answers;
use crate::hosts::expand::expand;
use crate::hosts::lookup::look_up;

/// Asks once for each name and prints its addresses.
///
/// # Errors
/// When a name does not resolve.
pub fn resolve(config: &Config) -> Result<(), Failure> {
    let (text, failed) = super::value_of(ask(config.clone()))?;
    print(&text)?;
    if failed.is_empty() { Ok(()) } else { Err(Failure::failed(failed.join("\n"))) }
}

/// What to print, and the names that do not resolve.
async fn ask(mut config: Config) -> (String, Vec<String>) {
    let mut answers = Answers::default();
    answers.follow(&config, Instant::now());
    let questions = answers.due(Instant::now());
    let replies =
        futures_util::future::join_all(questions.iter().map(|one| look_up(one, &config.resolver))).await;
    let mut failed = Vec::new();
    for (question, reply) in questions.iter().zip(&replies) {
        let change = answers.answered(&question.host, reply, Instant::now()).unwrap_or_default();
        failed.extend(change.failed.map(|reason| format!("{} does not resolve: {reason}", question.host)));
    }
    let mut text = String::new();
    if !questions.is_empty() {
        text.push('\n');
    }
    let left_out = expand(&mut config, &answers);
    for (host, known) in answers.iter() {
        let addresses: Vec<String> = known.addresses().map(|address: IpAddr| address.to_string()).collect();
        if !addresses.is_empty() {
            let seconds = known.due_in(Instant::now()).as_secs();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{host} is {}; the daemon would ask again in {seconds} s",
                addresses.join(", ")
            );
        }
        for reason in &known.unusable {
            let _ = writeln!(text, "{host}: {reason}; it is left out");
        }
    }
    for one in left_out {
        let _ = writeln!(text, "{}: {} is {}; it is left out", one.host, one.address, one.reason);
    }
    (text, failed)
}
