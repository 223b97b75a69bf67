//! The tasks of the Matapa workspace: `cargo xtask help` lists them.

mod bench;
mod btf_lines;
mod build;
mod ebpf;
mod licences;
mod linker;
mod lint;
mod object_check;
mod packages;
mod process;
mod report;
mod run;
mod setup;
mod soak;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Builds, tests and shows Matapa")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install what building and testing need; done steps cost nothing
    Setup {
        /// Say what is missing and change nothing
        #[arg(long)]
        check: bool,
    },
    /// Build the XDP program, check it, and build the `matapa` binary around it
    Build(build::Options),
    /// Check format, clippy, documentation and licences
    Lint,
    /// Run everything: setup, build, lint, host tests, tests in network namespaces (as root), and other kernels
    Test(test::Options),
    /// Run the long forms of tests: many rounds, large transfers, random packets by the hundred thousand (as root)
    Soak(soak::Options),
    /// Boot Linux 6.1 and 6.12 in QEMU: load the program there, run its tests, and send traffic through it
    Vm(vm::Options),
    /// Show Matapa at work in a network of namespaces, or run it on this host
    Run(run::Options),
    /// Measure what a packet costs
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let workspace = Workspace::find();
    // SAFETY: no other thread exists yet that could read the environment.
    unsafe { std::env::set_var("PATH", workspace.search_path()) };
    let outcome = match arguments.task {
        Task::Setup { check } => setup::command(&workspace, check),
        Task::Build(options) => build::command(&workspace, &options),
        Task::Lint => lint::command(&workspace),
        Task::Test(options) => test::command(&workspace, &options),
        Task::Soak(options) => soak::command(&workspace, &options),
        Task::Vm(options) => vm::command(&workspace, &options),
        Task::Run(options) => run::command(&workspace, options),
        Task::Bench(bench) => bench::command(&workspace, &bench),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
