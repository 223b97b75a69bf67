//! `matapa doctor`: a table of what was found, and whether anything is wrong.

use std::path::PathBuf;

use comfy_table::Cell;
use serde::Serialize;

use crate::api::client::Client;
use crate::cli::args::Doctor;
use crate::cli::exit::{ExitCode, Failure};
use crate::cli::output::{errors_in_color, print};
use crate::cli::table::{Column, Meaning, lines, status, table, text};
use crate::config;
use crate::doctor::{Finding, Severity, gather, judge};

/// As JSON.
#[derive(Serialize)]
struct Report<'a> {
    /// Nothing is wrong.
    ok: bool,
    findings: &'a [Finding],
}

/// Looks at everything and prints it.
///
/// # Errors
/// With [`ExitCode::Failed`] and no message when something is wrong, and when the configuration or the output is.
pub async fn doctor(arguments: &Doctor, socket: Option<PathBuf>) -> Result<(), Failure> {
    let config = config::load(&arguments.file.config)
        .map_err(|error| Failure::new(ExitCode::Configuration, error.render(errors_in_color())))?;
    let client = Client::new(socket.unwrap_or_else(|| config.control.socket.clone()));
    let facts = gather::gather(&config, &client).await;
    let findings = judge::examine(&config, &facts);
    let well = judge::is_well(&findings);
    if arguments.json {
        let report = Report { ok: well, findings: &findings };
        let text = serde_json::to_string(&report)
            .map_err(|error| Failure::failed(format!("cannot write JSON: {error}")))?;
        print(&format!("{text}\n"))?;
    } else {
        print(&screen(&findings, arguments.all))?;
    }
    if well { Ok(()) } else { Err(Failure::new(ExitCode::Failed, "")) }
}

/// What is wrong, the worst first, then how much was looked at.
pub fn screen(findings: &[Finding], all: bool) -> String {
    let mut shown: Vec<&Finding> =
        findings.iter().filter(|finding| all || finding.severity != Severity::Ok).collect();
    shown.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let number = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let mut out = String::new();
    if !shown.is_empty() {
        let columns = [
            Column::Text("Finding"),
            Column::Text("Check"),
            Column::Text("Subject"),
            Column::Prose("Meaning"),
        ];
        let mut rows = table(&columns);
        for finding in &shown {
            let (word, meaning) = match finding.severity {
                Severity::Ok => ("ok", Meaning::Good),
                Severity::Warning => ("warning", Meaning::Notice),
                Severity::Problem => ("problem", Meaning::Bad),
            };
            rows.add_row([
                status(word, meaning),
                Cell::new(finding.check),
                text(&finding.subject),
                meaning_cell(finding),
            ]);
        }
        out.push_str(&lines(&rows));
        out.push('\n');
    }
    let (problems, warnings, fine) =
        (number(Severity::Problem), number(Severity::Warning), number(Severity::Ok));
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    out.push_str(&format!(
        "{problems} problem{}, {warnings} warning{}, {fine} ok\n",
        plural(problems),
        plural(warnings)
    ));
    out
}

/// The sentence, and below it the command.
fn meaning_cell(finding: &Finding) -> Cell {
    let mut content = crate::cli::table::clean(&finding.message).into_owned();
    if let Some(mend) = &finding.mend {
        content.push_str("\n> ");
        content.push_str(&crate::cli::table::clean(mend));
    }
    Cell::new(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first() {
        let findings = [
            Finding::ok("program", "int", "forwards in the driver"),
            Finding::warning("tunnels", "mx1", "too small", "ip link set dev int mtu 1520"),
            Finding::problem("forwarding", "ext ip_forward", "off\u{1b}", "sysctl -w net.ipv4.ip_forward=1"),
        ];
        let plain = |all| anstream::adapter::strip_str(&screen(&findings, all)).to_string();
        insta::assert_snapshot!(plain(true), @r"
        Finding  Check       Subject         Meaning
        problem  forwarding  ext ip_forward  off\u{1b}
                                             > sysctl -w net.ipv4.ip_forward=1
        warning  tunnels     mx1             too small
                                             > ip link set dev int mtu 1520
        ok       program     int             forwards in the driver

        1 problem, 1 warning, 1 ok
        ");
        assert!(!plain(false).contains("driver"), "{}", plain(false));
        assert_eq!(screen(&findings[..1], false), "0 problems, 0 warnings, 1 ok\n");
    }
}
