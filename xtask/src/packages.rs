//! The programs the lab and the virtual machines need, and Debian's way to get them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::process::{output_of, run_logged, seconds};
use crate::workspace::{Workspace, find_program, is_executable};

/// Package lists older than this are fetched again before something is installed.
const LISTS_OLD: Duration = Duration::from_secs(7 * 24 * 3600);

/// A program and the packages that have it.
#[derive(Debug)]
pub struct Need {
    pub program: &'static str,
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
    alpine: &'static str,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Install,
    /// The package would start or configure a service: only its files are taken.
    Unpack,
}

const fn need(program: &'static str, [debian, fedora, arch, alpine]: [&'static str; 4], how: How) -> Need {
    Need { program, debian, fedora, arch, alpine, how }
}

/// Everything the test networks run.
pub const LAB: [Need; 16] = [
    need("ip", ["iproute2", "iproute", "iproute2", "iproute2"], How::Install),
    need("nsenter", ["util-linux", "util-linux", "util-linux", "util-linux"], How::Install),
    need("ethtool", ["ethtool", "ethtool", "ethtool", "ethtool"], How::Install),
    need("nft", ["nftables", "nftables", "nftables", "nftables"], How::Install),
    need("iperf3", ["iperf3", "iperf3", "iperf3", "iperf3"], How::Install),
    need("curl", ["curl", "curl", "curl", "curl"], How::Install),
    need("dnsmasq", ["dnsmasq-base", "dnsmasq", "dnsmasq", "dnsmasq"], How::Install),
    need("openssl", ["openssl", "openssl", "openssl", "openssl"], How::Install),
    need("dig", ["bind9-dnsutils", "bind-utils", "bind", "bind-tools"], How::Install),
    need("ping", ["iputils-ping", "iputils", "iputils", "iputils-ping"], How::Install),
    need("traceroute", ["traceroute", "traceroute", "traceroute", "traceroute"], How::Install),
    need("sysctl", ["procps", "procps-ng", "procps-ng", "procps"], How::Install),
    need("ucarp", ["ucarp", "ucarp", "ucarp", "ucarp"], How::Install),
    need("modprobe", ["kmod", "kmod", "kmod", "kmod"], How::Install),
    need("nginx", ["nginx", "nginx", "nginx", "nginx"], How::Unpack),
    need("smtp-sink", ["postfix", "postfix", "postfix", "postfix"], How::Unpack),
];

/// What `cargo xtask bench peers` runs besides: what else would stand in Matapa's place, and what asks it.
pub const PEERS: [Need; 3] = [
    need("haproxy", ["haproxy", "haproxy", "haproxy", "haproxy"], How::Unpack),
    need(
        "ngx_stream_module.so",
        ["libnginx-mod-stream", "nginx-mod-stream", "nginx-mod-stream", "nginx-mod-stream"],
        How::Unpack,
    ),
    need("wrk", ["wrk", "wrk", "wrk", "wrk"], How::Install),
];

/// Everything that booting another kernel needs.
pub const MACHINES: [Need; 7] = [
    need(
        "qemu-system-x86_64",
        ["qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86", "qemu-system-x86_64"],
        How::Install,
    ),
    need("busybox", ["busybox-static", "busybox", "busybox", "busybox-static"], How::Install),
    need("ip", ["iproute2", "iproute", "iproute2", "iproute2"], How::Install),
    need("ethtool", ["ethtool", "ethtool", "ethtool", "ethtool"], How::Install),
    need("depmod", ["kmod", "kmod", "kmod", "kmod"], How::Install),
    need("xz", ["xz-utils", "xz", "xz", "xz"], How::Install),
    need("strip", ["binutils", "binutils", "binutils", "binutils"], How::Install),
];

/// Where distributions have what nginx loads.
const NGINX_MODULES: [&str; 2] = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"];

/// Programs that come with another of the list, but are looked for as well.
const COMPANIONS: [(&str, &str); 1] = [("smtp-sink", "smtp-source")];

impl Need {
    fn programs(&self) -> impl Iterator<Item = &'static str> {
        let own = self.program;
        let others = COMPANIONS.iter().filter(move |(of, _)| *of == own).map(|(_, program)| *program);
        std::iter::once(own).chain(others)
    }

    fn is_present(&self) -> bool {
        self.programs().all(|program| {
            if is_module(program) { module_is_here(program) } else { find_program(program).is_some() }
        })
    }
}

/// A program that another one loads.
fn is_module(program: &str) -> bool {
    Path::new(program).extension().is_some_and(|extension| extension == "so")
}

/// Where unpacked programs are, or where distributions have it.
fn module_is_here(module: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(NGINX_MODULES.map(PathBuf::from))
        .any(|directory| directory.join(module).is_file())
}

/// Where a Debian package has a program.
fn inside(program: &str) -> PathBuf {
    Path::new(if is_module(program) { "usr/lib/nginx/modules" } else { "usr/sbin" }).join(program)
}

/// What of the list is not on this machine.
pub fn missing(list: &'static [Need]) -> Vec<&'static Need> {
    list.iter().filter(|need| !need.is_present()).collect()
}

/// Get what is missing; ends with an error that names each program that still is.
pub fn provide(workspace: &Workspace, wanted: &[&'static Need]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!("{}", by_hand(wanted));
    }
    let install_names: Vec<&str> =
        wanted.iter().filter(|need| need.how == How::Install).map(|need| need.debian).collect();
    if !install_names.is_empty() {
        install(workspace, &install_names)?;
    }
    for need in wanted.iter().filter(|need| need.how == How::Unpack) {
        unpack(workspace, need)?;
    }
    let still: Vec<&'static Need> = wanted.iter().copied().filter(|need| !need.is_present()).collect();
    if !still.is_empty() {
        bail!("{}", by_hand(&still));
    }
    Ok(())
}

/// What a user of another distribution has to install.
pub fn by_hand(wanted: &[&'static Need]) -> String {
    let list = |name: fn(&Need) -> &'static str| {
        let mut names: Vec<&str> = wanted.iter().map(|need| name(need)).collect();
        names.sort_unstable();
        names.dedup();
        names.join(" ")
    };
    let programs: Vec<&str> = wanted.iter().flat_map(|need| need.programs()).collect();
    format!(
        "these programs are missing: {}\n  \
         Debian, Ubuntu: {}\n  Fedora: {}\n  Arch: {}\n  Alpine: {}\n\
         Install them, then run `cargo xtask setup` again.",
        programs.join(" "),
        list(|need| need.debian),
        list(|need| need.fedora),
        list(|need| need.arch),
        list(|need| need.alpine),
    )
}

/// Install Debian packages; the lists are refreshed when they are old or the first attempt fails.
pub fn install(workspace: &Workspace, names: &[&str]) -> Result<()> {
    let words = names.join(" ");
    if find_program("apt-get").is_none() {
        bail!("apt-get is not here to install {words}: install what your distribution has instead");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("installing needs root: run `apt-get install --no-install-recommends {words}` as root");
    }
    let fresh = lists_are_fresh();
    if !fresh {
        refresh_lists(workspace)?;
    }
    println!("  installing {words}");
    let log = workspace.logs().join("apt-get-install.log");
    let attempt = || run_logged("apt-get install", &log, apt_get().arg("install").args(names));
    let time = match attempt() {
        Ok(time) => time,
        // A list can be fresh by date and still name packages that were replaced since.
        Err(_) if fresh => {
            refresh_lists(workspace)?;
            attempt()?
        }
        Err(error) => return Err(error),
    };
    println!("  installed in {}", seconds(time));
    Ok(())
}

pub fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-y", "-q", "--no-install-recommends"])
        .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Options::=--force-confold"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env_remove("LD_LIBRARY_PATH");
    command
}

/// `apt-get update`.
pub fn refresh_lists(workspace: &Workspace) -> Result<()> {
    if find_program("apt-get").is_none() || !nix::unistd::geteuid().is_root() {
        bail!("refreshing the package lists needs apt-get and root");
    }
    println!("  refreshing the package lists");
    let log = workspace.logs().join("apt-get-update.log");
    run_logged("apt-get update", &log, apt_get().arg("update")).map(drop)
}

pub fn lists_are_fresh() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else { return false };
    let newest = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .max();
    // `update` does not touch a list that has not changed, but always the directory.
    let checked = fs::metadata("/var/lib/apt/lists/partial").and_then(|data| data.modified()).ok();
    newest
        .max(checked.filter(|_| newest.is_some()))
        .is_some_and(|time| SystemTime::now().duration_since(time).map_or(true, |age| age < LISTS_OLD))
}

/// The version apt-get would install, as major and minor.
pub fn candidate_version(package: &str) -> Option<(u32, u32)> {
    let text = output_of(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let candidate = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    let without_epoch = candidate.split_once(':').map_or(candidate, |(_, version)| version);
    major_minor(without_epoch)
}

/// The first two numbers of a version.
pub fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|sign: char| !sign.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Take the programs out of a package without installing it, and the libraries they need with it.
fn unpack(workspace: &Workspace, need: &Need) -> Result<()> {
    if !nix::unistd::geteuid().is_root() && !lists_are_fresh() {
        bail!("unpacking {} needs fresh package lists: run `apt-get update` as root", need.debian);
    }
    println!("  unpacking {} from package {} (not installed)", need.program, need.debian);
    let dir = workspace.tools().join("lab").join(need.debian);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let log = workspace.logs().join(format!("unpack-{}.log", need.debian));
    let download = || {
        let mut command = apt_get();
        run_logged("apt-get download", &log, command.arg("download").arg(need.debian).current_dir(&dir))
    };
    if download().is_err() {
        refresh_lists(workspace)?;
        download()?;
    }
    let archive = only_archive(&dir)?;
    run_logged("dpkg-deb", &log, Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&dir))?;
    let programs: Vec<PathBuf> = need.programs().map(|name| dir.join(inside(name))).collect();
    let absent = need
        .programs()
        .zip(&programs)
        .find(|(name, path)| !is_module(name) && !is_executable(path) || !path.is_file());
    if let Some((_, absent)) = absent {
        bail!("package {} has no {}: install {} by hand", need.debian, absent.display(), need.program);
    }
    let libraries = dir.join("usr/lib").join(need.debian);
    if programs.iter().any(|program| lacks_library(program, &libraries)) {
        install_libraries(workspace, &archive)?;
    }
    for program in need.programs() {
        publish(workspace, need.debian, program, &libraries)?;
    }
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

pub fn only_archive(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no package in {}", dir.display()))
}

fn lacks_library(program: &Path, libraries: &Path) -> bool {
    output_of(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", libraries))
        .is_some_and(|text| text.contains("not found"))
}

fn install_libraries(workspace: &Workspace, archive: &Path) -> Result<()> {
    let depends = output_of(Command::new("dpkg-deb").arg("-f").arg(archive).arg("Depends"))
        .with_context(|| format!("cannot read what {} depends on", archive.display()))?;
    install(workspace, &library_names(&depends))
}

/// The shared libraries among a package's dependencies.
fn library_names(depends: &str) -> Vec<&str> {
    depends
        .split(',')
        .filter_map(|word| word.split_whitespace().next())
        .filter(|name| name.starts_with("lib") && !name.starts_with("libnginx"))
        .collect()
}

/// Make an unpacked program callable by its name.
fn publish(workspace: &Workspace, package: &str, name: &str, libraries: &Path) -> Result<()> {
    let bin = workspace.lab_programs();
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    let link = bin.join(name);
    let _ = fs::remove_file(&link);
    let inside = Path::new("..").join(package).join(inside(name));
    let written = if libraries.is_dir() && !is_module(name) {
        let script = format!(
            "#!/bin/sh\nhere=$(dirname \"$(readlink -f \"$0\")\")\n\
             LD_LIBRARY_PATH=\"$here/../{package}/usr/lib/{package}\" exec \"$here/{}\" \"$@\"\n",
            inside.display()
        );
        fs::write(&link, script).and_then(|()| fs::set_permissions(&link, fs::Permissions::from_mode(0o755)))
    } else {
        symlink(&inside, &link)
    };
    written.with_context(|| format!("cannot write {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_packages_and_compilers() {
        assert_eq!(major_minor("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(major_minor("22.1.8-1~deb12u1"), Some((22, 1)));
        assert_eq!(major_minor("(none)"), None);
    }

    #[test]
    fn only_shared_libraries_are_taken_from_dependencies() {
        let depends = "libc6 (>= 2.34), libssl3 (>= 3.0.0), iproute2, debconf | debconf-2.0, ssl-cert";
        assert_eq!(library_names(depends), ["libc6", "libssl3"]);
    }

    #[test]
    fn a_module_of_nginx_is_no_program() {
        assert!(is_module("ngx_stream_module.so") && !is_module("nginx"));
        assert_eq!(inside("ngx_stream_module.so"), Path::new("usr/lib/nginx/modules/ngx_stream_module.so"));
        assert_eq!(inside("haproxy"), Path::new("usr/sbin/haproxy"));
    }

    #[test]
    fn advice_names_each_distribution_and_companion() {
        let postfix: Vec<&Need> = LAB.iter().filter(|need| need.program == "smtp-sink").collect();
        let text = by_hand(&postfix);
        assert!(text.contains("smtp-sink smtp-source"), "{text}");
        assert!(text.contains("Alpine: postfix"), "{text}");
    }
}
