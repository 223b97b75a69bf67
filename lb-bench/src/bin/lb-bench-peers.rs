//! Measures Matapa beside other gateways. Run by `cargo xtask bench peers`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use lb_bench::peers::gateways::{Kind, named};
use lb_bench::peers::programs::object;
use lb_bench::peers::{Options, plots, run};
use lb_bench::plot::directories;
use lb_bench::report::write_json;

#[derive(Debug, Parser)]
#[command(about = "Measures Matapa beside other gateways; `cargo xtask bench peers` runs it")]
struct Arguments {
    /// How often all gateways are gone over
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Only gateways whose name contains this, and plain routing
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write plots (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Less of everything
    #[arg(long)]
    quick: bool,
    /// The binary that is measured
    #[arg(long, value_name = "FILE")]
    matapa: PathBuf,
    /// The programs that send and count packets
    #[arg(long, value_name = "FILE")]
    traffic: Option<PathBuf>,
}

fn main() -> ExitCode {
    match bench(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: Arguments) -> Result<bool> {
    let (rounds, seconds) = if arguments.quick { (1, 1) } else { (3, 3) };
    let rounds = arguments.rounds.unwrap_or(rounds);
    if rounds == 0 {
        bail!("--rounds 0 measures nothing: give 1 or more");
    }
    let report = run(&Options {
        rounds,
        time: Duration::from_secs(seconds),
        quick: arguments.quick,
        kinds: kinds(arguments.only.as_deref().unwrap_or_default())?,
        matapa: arguments.matapa,
        traffic: arguments.traffic.unwrap_or_else(object),
    })?;
    print!("{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    for directory in directories(arguments.json.as_deref(), arguments.plots.as_deref()) {
        for path in plots::draw(&report, directory)? {
            eprintln!("wrote {}", path.display());
        }
    }
    let errors = report.errors().count();
    if errors > 0 {
        println!("\n{errors} figures are none");
    }
    Ok(errors == 0)
}

/// Those of that name, after plain routing, which all are compared with.
fn kinds(only: &str) -> Result<Vec<Kind>> {
    let mut kinds: Vec<Kind> = named(only).collect();
    if kinds.is_empty() {
        let names = Kind::ALL.map(Kind::name).join(", ");
        bail!("--only {only}: there is no such gateway; there are: {names}");
    }
    if !kinds.contains(&Kind::Routing) {
        kinds.insert(0, Kind::Routing);
    }
    Ok(kinds)
}
