//! What a test machine's memory holds at boot: busybox, Matapa, its tests, what they link to, and the kernel's modules.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::Kernel;
use super::cpio::Archive;
use crate::process::output_of;
use crate::test::{BINARY_VARIABLE, ROOT_PACKAGES, ROOT_VARIABLE, cargo_test};
use crate::workspace::{Workspace, find_program};

const INIT: &str = include_str!("init.sh");
/// Scripts beside it.
const SCRIPTS: [(&str, &str); 3] = [
    ("/checks.sh", include_str!("checks.sh")),
    ("/traffic.sh", include_str!("traffic.sh")),
    ("/tunnels.sh", include_str!("tunnels.sh")),
];
/// Programs that the scripts and the tests call.
const PROGRAMS: [&str; 2] = ["ip", "ethtool"];
/// Where the package with the tests lies.
const TESTED: &str = "lb-userspace";
/// Test binaries whose name starts so need the kernel and nothing else.
const TEST_PREFIXES: [&str; 2] = ["kernel_", "corpus_kernel"];
/// The packages whose code the tests run most.
const OPTIMISED: [&str; 2] = ["lb-common", TESTED];
const MATAPA: &str = "/usr/bin/matapa";

/// What is the same for every kernel: where a file goes, and what is in it.
#[derive(Debug)]
pub struct Contents {
    files: BTreeMap<String, (u32, Vec<u8>)>,
    directories: Vec<String>,
}

impl Contents {
    pub fn gather(workspace: &Workspace, directory: &Path, binary: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let root = workspace.root.to_str().context("the checkout's path is not UTF-8")?;
        let mut contents = Self {
            files: BTreeMap::new(),
            // Tests know the checkout by the path it was compiled in.
            directories: vec!["/proc".into(), "/sys".into(), "/run".into(), format!("{root}/{TESTED}")],
        };
        contents.program("/busybox/busybox", &find("busybox")?)?;
        for name in PROGRAMS {
            let program = find(name)?;
            contents.program(&format!("/usr/sbin/{name}"), &program)?;
        }
        contents.program(MATAPA, &stripped(directory, binary)?)?;
        for (name, test) in test_binaries(workspace, binary)? {
            contents.program(&format!("/tests/{name}"), &stripped(directory, &test)?)?;
        }
        let data = workspace.root.join("testdata");
        if data.is_dir() {
            contents.tree(&data)?;
        }
        let budget = workspace.root.join("lb-ebpf/budget.toml");
        contents.copy(format!("{root}/lb-ebpf/budget.toml"), 0o644, &budget)?;
        contents.text("/init", 0o755, INIT);
        for (path, text) in SCRIPTS {
            contents.text(path, 0o755, text);
        }
        let settings =
            format!("export {ROOT_VARIABLE}='{root}' {BINARY_VARIABLE}='{MATAPA}'\ncd '{root}/{TESTED}'\n");
        contents.text("/settings.sh", 0o644, &settings);
        Ok(contents)
    }

    /// The archive for one kernel.
    pub fn write(&self, kernel: &Kernel, path: &Path) -> Result<()> {
        self.try_write(kernel, path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn try_write(&self, kernel: &Kernel, path: &Path) -> Result<()> {
        let mut archive = Archive::new(BufWriter::new(File::create(path)?));
        archive.device("/dev/console", 5, 1)?;
        for directory in &self.directories {
            archive.directory(directory)?;
        }
        for (path, (permissions, bytes)) in &self.files {
            archive.file(path, *permissions, bytes)?;
        }
        // The shell sorts names, and that is the order they are loaded in.
        for (number, module) in kernel.modules()?.iter().enumerate() {
            archive.file(&format!("/modules/{number:02}.ko"), 0o644, &decompressed(module)?)?;
        }
        archive.finish()?;
        Ok(())
    }

    fn text(&mut self, path: &str, permissions: u32, text: &str) {
        self.files.insert(path.to_owned(), (permissions, text.as_bytes().to_vec()));
    }

    fn copy(&mut self, path: String, permissions: u32, from: &Path) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.files.insert(path, (permissions, bytes));
        Ok(())
    }

    /// A program, and the libraries it is linked to at the paths where the linker looks for them.
    fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        // It fails for a static program.
        let linked = output_of(Command::new("ldd").arg(from)).unwrap_or_default();
        if let Some(line) = linked.lines().find(|line| line.ends_with("not found")) {
            bail!("{} lacks a library: {}", from.display(), line.trim());
        }
        for library in libraries(&linked) {
            if !self.files.contains_key(library) {
                self.copy(library.to_owned(), 0o755, Path::new(library))?;
            }
        }
        self.copy(path.to_owned(), 0o755, from)
    }

    /// A directory at its own path.
    fn tree(&mut self, directory: &Path) -> Result<()> {
        let entries =
            fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                self.tree(&path)?;
            } else {
                let name = path.to_str().context("a path is not UTF-8")?.to_owned();
                self.copy(name, 0o644, &path)?;
            }
        }
        Ok(())
    }
}

fn find(program: &str) -> Result<PathBuf> {
    find_program(program).with_context(|| format!("{program} is missing"))
}

/// The paths in what ldd prints.
fn libraries(linked: &str) -> impl Iterator<Item = &str> {
    linked.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// A copy without debugging information, which is most of a binary.
fn stripped(directory: &Path, binary: &Path) -> Result<PathBuf> {
    let name = binary.file_name().context("a binary has a name")?;
    let copy = directory.join(name);
    let status = Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(binary).status();
    if !status.context("cannot run strip")?.success() {
        bail!("strip does not know what {} is", binary.display());
    }
    Ok(copy)
}

fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(module).with_context(|| format!("cannot read {}", module.display())),
    };
    let output = Command::new(program).arg("-dc").arg(module).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} cannot decompress {}", module.display());
    }
    Ok(output.stdout)
}

/// Build the tests that need another kernel.
fn test_binaries(workspace: &Workspace, binary: &Path) -> Result<Vec<(String, PathBuf)>> {
    let names = test_names(&workspace.root.join(TESTED).join("tests"))?;
    let mut cargo = cargo_test(workspace, Some(binary));
    cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    // The same choice of packages as where they run on this kernel, so that their dependencies are not built twice.
    for package in ROOT_PACKAGES {
        cargo.args(["--package", package]);
    }
    // Without optimisation they take minutes on a processor that is emulated.
    for package in OPTIMISED {
        cargo.args(["--config", &format!("profile.dev.package.{package}.opt-level=1")]);
    }
    for name in &names {
        cargo.args(["--test", name]);
    }
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo's output is not piped")?;
    let mut built = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read cargo's output")?;
        if let Ok(Artifact { executable: Some(path), target }) = serde_json::from_str(&line)
            && names.contains(&target.name)
        {
            built.push((target.name, path));
        }
    }
    if !child.wait().context("cannot wait for cargo")?.success() {
        bail!("the tests do not build (see above)");
    }
    if built.len() != names.len() {
        bail!("of the tests {} cargo built {}", names.join(" "), built.len());
    }
    built.sort();
    Ok(built)
}

fn test_names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .filter(|name| TEST_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    if names.is_empty() {
        bail!("{} has no test that needs a kernel", directory.display());
    }
    names.sort();
    Ok(names)
}

/// The part of cargo's artifact message that names a binary.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_of_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found: Vec<&str> = libraries(text).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}
