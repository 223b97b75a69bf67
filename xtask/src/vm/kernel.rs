//! Debian's kernels for virtual machines: fetched and unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::Series;
use crate::packages;
use crate::process::{output_of, run_logged, seconds};
use crate::toolchain::Install;
use crate::workspace::{Workspace, find_program};

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";

/// Drivers that the test networks need.
const MODULES: [&str; 8] = ["virtio_pci", "virtio_net", "veth", "8021q", "ipip", "sit", "ip6_tunnel", "fou6"];

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    pub series: Series,
    /// As `uname -r` says it.
    pub version: String,
    pub image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The newest unpacked kernel of a series; if there is none, the newest that can be fetched.
    pub fn find(workspace: &Workspace, series: Series, install: Install) -> Result<Self> {
        let start = Instant::now();
        let directory = workspace.tools().join("kernels");
        let kernel = match present(&directory, series) {
            Some(kernel) => kernel,
            None if install == Install::No => bail!("kernel {series} is missing"),
            None => fetch(workspace, &directory, series)
                .with_context(|| format!("there is no kernel of series {series}"))?,
        };
        println!("kernel {series}: {} [{}]", kernel.version, seconds(start.elapsed()));
        Ok(kernel)
    }

    fn unpacked(directory: &Path, series: Series, version: &str) -> Self {
        let root = directory.join(version);
        Self {
            series,
            version: version.to_owned(),
            image: root.join("boot").join(format!("vmlinuz-{version}")),
            modules: root.join("lib/modules").join(version),
        }
    }

    /// The modules to load, in this order, as they are in files.
    pub fn modules(&self) -> Result<Vec<PathBuf>> {
        let read = |name: &str| {
            let path = self.modules.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let paths = load_order(&read("modules.dep")?, &read("modules.builtin")?, &MODULES)
            .with_context(|| format!("in Linux {}", self.version))?;
        Ok(paths.into_iter().map(|path| self.modules.join(path)).collect())
    }
}

fn present(directory: &Path, series: Series) -> Option<Kernel> {
    let entries = fs::read_dir(directory).ok()?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let version = newest(names, series)?;
    let kernel = Kernel::unpacked(directory, series, &version);
    // Written last: an interrupted unpacking has none.
    kernel.modules.join("modules.dep").is_file().then_some(kernel)
}

fn fetch(workspace: &Workspace, directory: &Path, series: Series) -> Result<Kernel> {
    if find_program("apt-get").is_none() {
        bail!("apt-get is not here to fetch it, and other distributions' kernels have not been tried");
    }
    if nix::unistd::geteuid().is_root() && !packages::lists_are_fresh() {
        packages::refresh_lists(workspace)?;
    }
    let mut version = newest(known(), series);
    if version.is_none() && nix::unistd::geteuid().is_root() {
        packages::refresh_lists(workspace)?;
        version = newest(known(), series);
    }
    let version = version.with_context(|| {
        format!(
            "the package sources have no {PREFIX}{series}.*{SUFFIX}; on Debian 12 add bookworm-security \
             and bookworm-backports to them"
        )
    })?;
    let root = directory.join(&version);
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let package = format!("{PREFIX}{version}");
    println!("  unpacking {package} (not installed)");
    let log = workspace.logs().join(format!("unpack-{package}.log"));
    let mut download = packages::apt_get();
    run_logged("apt-get download", &log, download.arg("download").arg(&package).current_dir(&root))?;
    let archive = packages::only_archive(&root)?;
    run_logged("dpkg-deb", &log, Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&root))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    run_logged("depmod", &log, Command::new("depmod").arg("-b").arg(&root).arg(&version))?;
    Ok(Kernel::unpacked(directory, series, &version))
}

/// The versions the package lists know.
fn known() -> impl Iterator<Item = String> {
    let pattern = format!("^{PREFIX}[0-9].*{SUFFIX}$");
    let text = output_of(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
    let versions: Vec<String> = text
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix(PREFIX).map(str::to_owned))
        .collect();
    versions.into_iter()
}

/// The newest version that belongs to a series.
fn newest(versions: impl Iterator<Item = String>, series: Series) -> Option<String> {
    versions
        .filter_map(|version| {
            let numbers = numbers(version.strip_suffix(SUFFIX)?);
            // A series' meta-package is called after nothing but the series.
            (numbers.starts_with(&series.numbers()) && numbers.len() > 2).then_some((numbers, version))
        })
        .max()
        .map(|(_, version)| version)
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|sign: char| !sign.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

/// What to load for `wanted`, what others need first; nothing for what is built in.
fn load_order(dependencies: &str, built_in: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        if built_in.lines().any(|path| module_name(path) == *name) {
            continue;
        }
        let (path, needs) = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module_name(path) == *name)
            .with_context(|| format!("there is no module {name}"))?;
        // depmod lists what must be loaded first last.
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|present| present == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_of_each_series_is_taken() {
        let versions = [
            "6.1.0-9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.12-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.99+deb12-cloud-amd64",
            "6.12.118+deb12-cloud-amd64-unsigned",
        ];
        let newest = |series| newest(versions.iter().map(|version| (*version).to_owned()), series);
        assert_eq!(newest(Series::V6_1).as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(newest(Series::V6_12).as_deref(), Some("6.12.117+deb12-cloud-amd64"));
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let dependencies =
            "net/virtio_net.ko.xz: net/net_failover.ko.xz core/failover.ko.xz\nnet/veth.ko.xz:\n";
        let built_in = "kernel/drivers/virtio/virtio_pci.ko\n";
        assert_eq!(
            load_order(dependencies, built_in, &["virtio_pci", "virtio_net", "veth"]).unwrap(),
            ["core/failover.ko.xz", "net/net_failover.ko.xz", "net/virtio_net.ko.xz", "net/veth.ko.xz"]
        );
        assert!(load_order(dependencies, "", &["virtio_pci"]).is_err());
    }
}
