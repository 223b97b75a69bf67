//! bpf-linker: must be built against the LLVM of the compiler whose bitcode it links.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::packages;
use crate::process::{host_cargo, output_of, run_logged, seconds};
use crate::toolchain::Install;
use crate::workspace::{Workspace, find_program, is_executable};

pub const LINKER_VARIABLE: &str = "MATAPA_BPF_LINKER";
const VERSION: &str = "0.13.0";
/// The LLVM versions bpf-linker 0.13 has a feature for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Could a linker for this LLVM be had here?
pub fn possible(workspace: &Workspace, llvm: u32) -> bool {
    env::var_os(LINKER_VARIABLE).is_some()
        || is_executable(&program(workspace, llvm))
        || LLVM.contains(&llvm)
            && (llvm_prefix(llvm).is_some()
                || packages::candidate_version(&format!("llvm-{llvm}-dev")).is_some())
}

/// The linker for code of this LLVM, built if it must be.
pub fn find(workspace: &Workspace, llvm: u32, install: Install) -> Result<PathBuf> {
    if let Some(linker) = env::var_os(LINKER_VARIABLE).map(PathBuf::from) {
        return match installed_version(&linker) {
            Some(_) => Ok(linker),
            None => bail!("{LINKER_VARIABLE} names {}, which cannot be run", linker.display()),
        };
    }
    let linker = program(workspace, llvm);
    if installed_version(&linker).as_deref() == Some(VERSION) {
        return Ok(linker);
    }
    if install == Install::No {
        bail!("bpf-linker {VERSION} for LLVM {llvm} is not built yet");
    }
    if !LLVM.contains(&llvm) {
        bail!(
            "bpf-linker {VERSION} knows LLVM {} to {}, but the compiler has {llvm}",
            LLVM.start(),
            LLVM.end()
        );
    }
    let prefix = llvm_with_headers(workspace, llvm)?;
    build(workspace, llvm, &prefix)?;
    match installed_version(&linker).as_deref() {
        Some(VERSION) => Ok(linker),
        _ => bail!("{} was built but does not run", linker.display()),
    }
}

fn root(workspace: &Workspace, llvm: u32) -> PathBuf {
    workspace.tools().join(format!("llvm-{llvm}"))
}

fn program(workspace: &Workspace, llvm: u32) -> PathBuf {
    root(workspace, llvm).join("bin/bpf-linker")
}

fn installed_version(linker: &Path) -> Option<String> {
    let text = output_of(Command::new(linker).arg("--version").env_remove("LD_LIBRARY_PATH"))?;
    text.strip_prefix("bpf-linker ").map(|version| version.trim().to_owned())
}

/// Where LLVM's headers and libraries of this major version are.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if is_executable(&debian.join("bin/llvm-config")) && debian.join("include/llvm-c").exists() {
        return Some(debian);
    }
    [format!("llvm-config-{llvm}"), "llvm-config".to_owned()].iter().find_map(|name| {
        let config = find_program(name)?;
        let version = output_of(Command::new(&config).arg("--version"))?;
        let include = output_of(Command::new(&config).arg("--includedir"))?;
        (packages::major_minor(&version)?.0 == llvm && Path::new(&include).join("llvm-c").exists())
            .then(|| output_of(Command::new(&config).arg("--prefix")).map(PathBuf::from))?
    })
}

fn llvm_with_headers(workspace: &Workspace, llvm: u32) -> Result<PathBuf> {
    let libraries = ["/usr/include/zstd.h", "/usr/include/zlib.h"];
    let complete = libraries.iter().all(|header| Path::new(header).exists());
    if let Some(prefix) = llvm_prefix(llvm).filter(|_| complete) {
        return Ok(prefix);
    }
    let llvm_package = format!("llvm-{llvm}-dev");
    packages::install(workspace, &[&llvm_package, "libzstd-dev", "zlib1g-dev"])
        .with_context(|| format!("building bpf-linker needs the development files of LLVM {llvm}"))?;
    llvm_prefix(llvm).with_context(|| format!("LLVM {llvm} is installed but not found"))
}

fn build(workspace: &Workspace, llvm: u32, prefix: &Path) -> Result<()> {
    // Kept when the build fails, so that the next one goes on where it stopped.
    let scratch = workspace.tools().join("build");
    println!("  building bpf-linker {VERSION} for LLVM {llvm}: takes one to three minutes, once");
    let mut command = host_cargo(workspace);
    command
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(root(workspace, llvm))
        .env("CARGO_TARGET_DIR", &scratch)
        .env("LLVM_PREFIX", prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), prefix)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    let log = workspace.logs().join("bpf-linker.log");
    let time = run_logged("building bpf-linker", &log, &mut command)?;
    println!("  built bpf-linker in {}", seconds(time));
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}
