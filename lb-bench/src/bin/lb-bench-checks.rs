//! Measures health checks. Run by `cargo xtask bench checks`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use lb_bench::checks::{Figures, Kind, Options, run};
use lb_bench::report::write_json;

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
    match bench(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    let intervals = if arguments.quick { 3 } else { 10 };
    let options = Options { backends: arguments.backends, interval: Duration::from_secs(1), intervals };
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
