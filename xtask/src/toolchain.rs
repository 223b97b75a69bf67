//! The compiler for the XDP program: one that brings its own library source.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::linker;
use crate::packages;
use crate::process::{output_of, run_logged};
use crate::workspace::{Workspace, find_program, is_executable};

pub const CARGO_VARIABLE: &str = "MATAPA_BPF_CARGO";
pub const RUSTC_VARIABLE: &str = "MATAPA_BPF_RUSTC";
/// The oldest compiler the workspace accepts (`rust-version`).
const OLDEST: (u32, u32) = (1, 95);
/// Rust of a Debian release: its own, and the newer one kept for web browsers.
const DEBIAN_RUST: [[&str; 4]; 2] = [
    ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"],
    ["rustc", "cargo", "rust-src", "rust-clippy"],
];

/// A cargo and rustc able to build `core` for BPF.
#[derive(Debug)]
pub struct Toolchain {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    /// A stable compiler must be told to accept `-Z build-std`.
    pub bootstrap: bool,
    pub llvm: u32,
    pub description: String,
}

impl Toolchain {
    /// Clippy of the same toolchain, if it has one.
    pub fn clippy(&self) -> Option<PathBuf> {
        let dir = self.cargo.parent()?;
        let clippy = dir.join("cargo-clippy");
        (is_executable(&clippy) && is_executable(&dir.join("clippy-driver"))).then_some(clippy)
    }
}

/// May setup change the machine?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    Yes,
    No,
}

/// The first usable toolchain: from the environment, a rustup nightly, the distribution's.
pub fn find(workspace: &Workspace, install: Install) -> Result<Toolchain> {
    if let Some(toolchain) = from_environment()? {
        return Ok(toolchain);
    }
    let nightly = match from_rustup(workspace, install) {
        Ok(toolchain) => return Ok(toolchain),
        Err(reason) => reason,
    };
    let distribution = match from_distribution(workspace, install) {
        Ok(toolchain) => return Ok(toolchain),
        Err(reason) => reason,
    };
    bail!(
        "no compiler for the XDP program\n  \
         environment: {CARGO_VARIABLE} and {RUSTC_VARIABLE} are not set\n  \
         rustup nightly: {nightly:#}\n  \
         distribution: {distribution:#}\n\
         Install one of them: `rustup toolchain install nightly --component rust-src`, \
         or the distribution's Rust {}.{} or later with its source package.",
        OLDEST.0,
        OLDEST.1
    )
}

fn from_environment() -> Result<Option<Toolchain>> {
    let cargo = env::var_os(CARGO_VARIABLE).map(PathBuf::from);
    let rustc = env::var_os(RUSTC_VARIABLE).map(PathBuf::from);
    let (cargo, rustc) = match (cargo, rustc) {
        (None, None) => return Ok(None),
        (Some(cargo), None) => (cargo.clone(), cargo.with_file_name("rustc")),
        (None, Some(rustc)) => (rustc.with_file_name("cargo"), rustc),
        (Some(cargo), Some(rustc)) => (cargo, rustc),
    };
    inspect(cargo, rustc, "from the environment")
        .map(Some)
        .with_context(|| format!("the toolchain that {CARGO_VARIABLE} and {RUSTC_VARIABLE} name"))
}

fn from_rustup(workspace: &Workspace, install: Install) -> Result<Toolchain> {
    let rustup = find_program("rustup").context("rustup is not installed")?;
    let rustc = output_of(Command::new(&rustup).args(["which", "--toolchain", "nightly", "rustc"]))
        .context("no nightly toolchain is installed")?;
    let rustc = PathBuf::from(rustc);
    let llvm = version(&rustc)?.llvm;
    if !linker::possible(workspace, llvm) {
        bail!("its LLVM is {llvm}, for which no bpf-linker can be built here");
    }
    if !has_source(&rustc) {
        add_rust_src(workspace, &rustup, install)?;
    }
    inspect(rustc.with_file_name("cargo"), rustc, "rustup nightly")
}

/// Ask rustup once for the library source; a failure is remembered because asking takes time.
fn add_rust_src(workspace: &Workspace, rustup: &Path, install: Install) -> Result<()> {
    let mark = workspace.tools().join("rust-src-refused");
    if mark.exists() {
        bail!(
            "it has no rust-src, and adding it failed before (remove {} to try again)",
            workspace.display(&mark)
        );
    }
    if install == Install::No {
        bail!("it has no rust-src");
    }
    let log = workspace.logs().join("rust-src.log");
    let mut command = Command::new(rustup);
    command.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    println!("  installing rust-src for the rustup nightly");
    if let Err(error) = run_logged("rustup component add rust-src", &log, &mut command) {
        fs::write(&mark, format!("{error:#}\n"))
            .with_context(|| format!("cannot write {}", mark.display()))?;
        bail!("it has no rust-src and adding it failed (see {})", workspace.display(&log));
    }
    Ok(())
}

fn from_distribution(workspace: &Workspace, install: Install) -> Result<Toolchain> {
    let first = installed_distribution();
    if first.is_ok() || install == Install::No {
        return first;
    }
    let names = DEBIAN_RUST
        .iter()
        .find(|names| packages::candidate_version(names[0]).is_some_and(|found| found >= OLDEST))
        .or_else(|| {
            // The lists may be missing or older than the package.
            packages::refresh_lists(workspace).ok()?;
            DEBIAN_RUST
                .iter()
                .find(|names| packages::candidate_version(names[0]).is_some_and(|found| found >= OLDEST))
        })
        .with_context(|| {
            format!("no package of Rust {}.{} or later is known to apt-get", OLDEST.0, OLDEST.1)
        })?;
    packages::install(workspace, names)?;
    installed_distribution()
}

fn installed_distribution() -> Result<Toolchain> {
    let mut reason = None;
    for dir in ["/usr/bin", "/usr/local/bin"].map(Path::new) {
        let (cargo, rustc) = (dir.join("cargo"), dir.join("rustc"));
        // A link to rustup is not the distribution's compiler.
        if !is_executable(&rustc) || fs::canonicalize(&rustc).is_ok_and(|real| real.ends_with("rustup")) {
            continue;
        }
        match inspect(cargo, rustc, "the distribution's") {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => reason = Some(error),
        }
    }
    Err(reason.unwrap_or_else(|| anyhow::anyhow!("no /usr/bin/rustc")))
}

/// Check that the two programs exist and can do what is asked of them.
fn inspect(cargo: PathBuf, rustc: PathBuf, origin: &str) -> Result<Toolchain> {
    for program in [&cargo, &rustc] {
        if !is_executable(program) {
            bail!("{} is not a program", program.display());
        }
    }
    let version = version(&rustc)?;
    if (version.major, version.minor) < OLDEST {
        bail!("{} is {}, older than {}.{}", rustc.display(), version.release, OLDEST.0, OLDEST.1);
    }
    if !has_source(&rustc) {
        bail!("{} has no library source (rust-src)", rustc.display());
    }
    Ok(Toolchain {
        bootstrap: !(version.release.contains("nightly") || version.release.contains("dev")),
        llvm: version.llvm,
        description: format!(
            "{origin} ({}, rustc {}, LLVM {})",
            rustc.display(),
            version.release,
            version.llvm
        ),
        cargo,
        rustc,
    })
}

fn has_source(rustc: &Path) -> bool {
    let dir = |root: &Path| root.join("lib/rustlib/src/rust/library/core").is_dir();
    // The compiler lies in `bin` of its sysroot; asking it is slower and only needed where it does not.
    if rustc.parent().and_then(Path::parent).is_some_and(dir) {
        return true;
    }
    output_of(Command::new(rustc).args(["--print", "sysroot"])).is_some_and(|root| dir(Path::new(&root)))
}

#[derive(Debug, PartialEq, Eq)]
struct Version {
    release: String,
    major: u32,
    minor: u32,
    llvm: u32,
}

fn version(rustc: &Path) -> Result<Version> {
    let text = output_of(Command::new(rustc).args(["--version", "--verbose"]).env_remove("LD_LIBRARY_PATH"))
        .with_context(|| format!("{} does not tell its version", rustc.display()))?;
    parse_version(&text)
        .with_context(|| format!("{} tells its version in an unknown form:\n{text}", rustc.display()))
}

fn parse_version(text: &str) -> Option<Version> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:")?;
    let (major, minor) = packages::major_minor(release)?;
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(Version { release: release.to_owned(), major, minor, llvm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_llvm_are_read_from_verbose_output() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nrelease: 1.97.0-nightly\n\
                    LLVM version: 22.1.4\n";
        let expected = Version { release: "1.97.0-nightly".into(), major: 1, minor: 97, llvm: 22 };
        assert_eq!(parse_version(text), Some(expected));
        assert_eq!(parse_version("rustc 1.97.0"), None);
    }
}
