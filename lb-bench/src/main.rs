//! Measures the packet path. Run by `cargo xtask bench datapath`, which builds the programs first.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use lb_bench::Options;
use lb_bench::plot::directories;
use lb_bench::report::write_json;

#[derive(Debug, Parser)]
#[command(about = "Measures the packet path; `cargo xtask bench datapath` runs it")]
struct Arguments {
    /// How often each case is measured, all of them in turns
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Packets in each measurement
    #[arg(long, value_name = "N")]
    repeat: Option<u32>,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write a plot (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Less of everything
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn main() -> ExitCode {
    match bench(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<bool> {
    let mut options = Options::new(arguments.quick);
    options.rounds = arguments.rounds.unwrap_or(options.rounds);
    options.repeat = arguments.repeat.unwrap_or(options.repeat);
    options.only = arguments.only.iter().cloned().collect();
    options.progress = true;
    let report = lb_bench::run(&options)?;
    print!("{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    for directory in directories(arguments.json.as_deref(), arguments.plots.as_deref()) {
        if let Some(path) = report.draw(directory)? {
            eprintln!("wrote {}", path.display());
        }
    }
    let errors = report.errors().count();
    if errors > 0 {
        println!("\n{errors} rows are no measurements");
    }
    Ok(errors == 0)
}
