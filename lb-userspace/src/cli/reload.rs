//! `matapa reload`, and what it would do.

use std::fmt::Write as _;

use crate::api::client::Client;
use crate::api::types::{ChangeKind, ReloadPlan};
use crate::cli::args::Reload;
use crate::cli::exit::Failure;
use crate::cli::monitor::changes;
use crate::cli::output::print;
use crate::cli::table::clean;

/// Applies the file again, or says what that would do.
///
/// # Errors
/// When the daemon cannot be reached or refuses; [`crate::cli::exit::ExitCode::Configuration`] for a file with errors.
pub async fn reload(client: &Client, arguments: &Reload) -> Result<(), Failure> {
    match (arguments.dry_run, arguments.json) {
        (true, true) => line(&client.plan_reload_json().await?),
        (true, false) => print(&screen(&client.plan_reload().await?)),
        (false, true) => line(&client.reload_json().await?),
        (false, false) => print(&format!("reloaded: {}\n", changes(client.reload().await?.operations))),
    }
}

fn line(json: &[u8]) -> Result<(), Failure> {
    print(&format!("{}\n", String::from_utf8_lossy(json).trim_end()))
}

fn screen(plan: &ReloadPlan) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_plan(&mut text, plan);
    text
}

fn write_plan(out: &mut String, plan: &ReloadPlan) -> std::fmt::Result {
    let ReloadPlan { changes, operations, warnings } = plan;
    if changes.is_empty() {
        writeln!(out, "The file says what runs.")?;
    }
    for change in changes {
        let word = match change.change {
            ChangeKind::Added => "added",
            ChangeKind::Removed => "removed",
            ChangeKind::Changed => "changed",
        };
        writeln!(out, "{word:<7}  {}", clean(&change.subject))?;
        for aspect in &change.aspects {
            let name =
                if aspect.name.is_empty() { String::new() } else { format!("{}: ", clean(&aspect.name)) };
            match (&aspect.from, &aspect.to) {
                (Some(from), Some(to)) => writeln!(out, "         {name}{} -> {}", clean(from), clean(to))?,
                (None, Some(to)) if change.change == ChangeKind::Added => {
                    writeln!(out, "         {name}{}", clean(to))?;
                }
                (None, Some(to)) => writeln!(out, "         {name}nothing -> {}", clean(to))?,
                (Some(from), None) => writeln!(out, "         {name}{} -> nothing", clean(from))?,
                (None, None) => writeln!(out, "         {}", clean(&aspect.name))?,
            }
        }
    }
    for warning in warnings {
        writeln!(out, "warning  {}", clean(warning))?;
    }
    match operations.len() {
        0 => writeln!(out, "The kernel's maps would stay as they are.")?,
        1 => writeln!(out, "\n1 map change would be made:")?,
        many => writeln!(out, "\n{many} map changes would be made, in this order:")?,
    }
    let width = operations.len().to_string().len();
    for (number, operation) in (1..).zip(operations) {
        writeln!(out, "{number:>width$}  {}", clean(operation))?;
    }
    writeln!(out, "Nothing was changed.")
}

#[cfg(test)]
mod tests {
    use super::screen;
    use crate::api::types::{ChangeKind, ChangedAspect, ConfigChange, ReloadPlan};

    #[test]
    fn nothing_from_the_file_reaches_the_terminal_as_it_is() {
        let harm = || "\u{1b}[2J".to_owned();
        let aspect =
            |from: bool, to: bool| ChangedAspect { name: harm(), from: from.then(harm), to: to.then(harm) };
        let aspects =
            vec![aspect(true, true), aspect(false, true), aspect(true, false), aspect(false, false)];
        let change = ConfigChange { change: ChangeKind::Changed, subject: harm(), aspects };
        let plan = ReloadPlan { changes: vec![change], operations: vec![harm()], warnings: vec![harm()] };
        let text = screen(&plan);
        assert!(!text.contains('\u{1b}') && text.matches("\\u{1b}[2J").count() == 11, "{text}");
    }
}
