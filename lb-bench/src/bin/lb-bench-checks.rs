//! Measures health checks. Run by `cargo xtask bench checks`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_bench::checks::{Figures, Kind, Options, run};
use lb_bench::report::write_json;
use lb_userspace::health::checker;

#[derive(Debug, Parser)]
#[command(about = "Measures health checks; `cargo xtask bench checks` runs it")]
struct Arguments {
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Less of everything
    #[arg(long)]
    quick: bool,
    /// How many servers are checked, once a second
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    backends: u32,
}

fn main() -> ExitCode {
    // The process that checks is this program once more.
    let checks = std::env::args_os().nth(1).is_some_and(|word| word == checker::WORD);
    match if checks { checker::serve() } else { bench(&Arguments::parse()) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    let intervals = if arguments.quick { 3 } else { 10 };
    let program = std::env::current_exe().context("this program's file")?;
    let options =
        Options { backends: arguments.backends, interval: Duration::from_secs(1), intervals, program };
    println!("{}", Figures::HEADINGS);
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let figures = run(kind, &options)?;
        println!("{figures}");
        rows.push(figures);
    }
    if let Some(path) = &arguments.json {
        write_json(path, &rows)?;
    }
    Ok(())
}
