//! The demonstration: two gateways and two mail servers, of which one after the other is killed in the middle of
//! traffic and comes back. Told step by step for a person; every promise is checked.

mod death;
mod drain;
mod pair;
mod report;
mod restart;
mod stage;
mod takeover;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

pub use self::report::{Outcome, Promise};
use self::stage::Stage;
pub use crate::lab::clean;
use crate::{Lab, interrupt, process};

/// How to run it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `matapa` to show.
    pub binary: PathBuf,
    /// Leave the network standing, and print commands to try.
    pub keep: bool,
    /// Write the figures there.
    pub json: Option<PathBuf>,
    /// The repository, for `examples/lab.toml`.
    pub root: PathBuf,
}

/// Builds the network, tells the story, and takes everything down again; also on Ctrl-C.
///
/// # Errors
/// When a step could not be carried out. A promise that was not held is no error: see [`Outcome::held`].
pub fn run(options: &Options) -> Result<Outcome> {
    interrupt::install()?;
    let start = Instant::now();
    let lab = Lab::new()?;
    if options.keep {
        lab.keep()?;
    }
    let result = tell(&lab, options, start);
    if options.keep && !interrupt::requested() {
        print_commands(&lab, options);
    } else {
        lab.unkeep()?;
    }
    let outcome = result?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&outcome)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(outcome)
}

fn tell(lab: &std::sync::Arc<Lab>, options: &Options, start: Instant) -> Result<Outcome> {
    let mut stage = Stage::build(lab, options)?;
    let told = stage
        .both_servers()
        .and_then(|()| death::tell(&mut stage, death::MX1))
        .and_then(|()| drain::tell(&mut stage))
        .and_then(|()| restart::tell(&mut stage))
        .and_then(|()| takeover::leave(&mut stage))
        .and_then(|crossing| takeover::come_back(&mut stage, crossing))
        .and_then(|()| death::tell(&mut stage, death::MX2))
        .and_then(|()| death::revive(&mut stage, death::MX2))
        .and_then(|()| if options.keep { Ok(()) } else { stage.end() });
    if let Err(error) = told {
        stage.log_on_failure();
        return Err(error);
    }
    let outcome = stage.into_outcome(start.elapsed());
    outcome.print();
    Ok(outcome)
}

fn print_commands(lab: &Lab, options: &Options) {
    let inside = |name: &str| format!("nsenter --net=/run/netns/matapa-lab-{}-{name}", lab.id());
    let matapa = |name: &str| {
        let socket = lab.directory().join(format!("{name}.sock"));
        format!("{} {} --socket {}", inside(name), options.binary.display(), socket.display())
    };
    let (gw1, gw2, client) = (matapa("gw1"), matapa("gw2"), inside("client"));
    let source = process::find("smtp-source").unwrap_or_else(|_| "smtp-source".into());
    println!("\nThe lab is left standing; only the servers of the service bulk have ended. To try:");
    println!("  {gw1} show summary");
    println!("  {gw1} backend drain mx1 --service mail");
    println!("  {client} {} -4 -s 10 -m 1000 [203.0.113.10]:25", source.display());
    println!("  {gw1} show carp");
    println!("  {gw1} carp demote      # gw2 takes over; `carp release` ends it");
    println!("  {gw2} show sync");
    println!("Logs and the gateways' configurations are in {}.", lab.directory().display());
    println!("To remove it: cargo xtask run --clean");
}
