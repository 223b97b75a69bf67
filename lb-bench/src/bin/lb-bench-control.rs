//! Measures the control plane. Run by `cargo xtask bench control`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use lb_bench::control::daemon::Gateway;
use lb_bench::control::{Row, plots, tables};
use lb_bench::network;
use lb_bench::plot::directories;
use lb_bench::report::write_json;

#[derive(Debug, Parser)]
#[command(about = "Measures the control plane; `cargo xtask bench control` runs it")]
struct Arguments {
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
    let (rounds, million, idle) = if arguments.quick {
        (3, 50_000, Duration::from_secs(3))
    } else {
        (9, 1_000_000, Duration::from_secs(20))
    };
    println!("{}", Row::HEADINGS);
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        println!("{row}");
        rows.push(row);
    };
    // The network of these is that of a thread, which ends with it.
    let tables = std::thread::spawn(move || {
        network::enter()?;
        [(10, 5.0), (1_000, 10.0), (10_000, 50.0)]
            .map(|(servers, bound)| Ok(tables::change(servers, rounds)?.at_most(bound)))
            .into_iter()
            .collect::<Result<Vec<_>>>()
    });
    let tables = tables.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    tables.into_iter().for_each(&mut add);

    let mut gateway = Gateway::new(&arguments.matapa)?;
    let rounds = u32::from(rounds);
    for services in [1, 100, 1_000] {
        add(gateway.cold_start(services, rounds)?.at_most(300.0));
    }
    add(gateway.cold_start(10_000, rounds)?);
    for services in [1, 100, 1_000] {
        add(gateway.reload(services, rounds)?.at_most(20.0));
    }
    add(gateway.reload(10_000, rounds)?);
    for flows in [million / 1_000, million / 10, million] {
        add(gateway.adoption(flows, rounds)?.at_most(500.0));
    }
    for services in [1, 100, 1_000] {
        add(gateway.memory(services)?.at_most(30.0));
    }
    add(gateway.memory(10_000)?);
    for capacity in [1 << 16, 1 << 20, 1 << 22] {
        add(gateway.idle(capacity, million.min(capacity / 2), idle)?);
    }
    if let Some(path) = &arguments.json {
        write_json(path, &rows)?;
    }
    for directory in directories(arguments.json.as_deref(), arguments.plots.as_deref()) {
        for path in plots::draw(&rows, directory)? {
            eprintln!("wrote {}", path.display());
        }
    }
    Ok(())
}
