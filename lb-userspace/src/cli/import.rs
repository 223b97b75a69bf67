//! `matapa import relayd`: files and names for what is pure in [`crate::import`].

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;

use crate::cli::args::ImportRelayd;
use crate::cli::exit::{ExitCode, Failure};
use crate::cli::output::{errors_in_color, note, print};
use crate::cli::table::clean;
use crate::import::relayd::{self, Options, Surroundings};

/// Bytes. A configuration is kilobytes.
const LARGEST_FILE: u64 = 4 << 20;

/// Prints the file as Matapa's configuration, and on standard error what differs.
///
/// # Errors
/// When the file cannot be read, has errors ([`ExitCode::Configuration`]), or has nothing to take over.
pub fn relayd(arguments: &ImportRelayd) -> Result<(), Failure> {
    let file = &arguments.file;
    let name = file.display().to_string();
    let text =
        read(file).map_err(|error| Failure::failed(format!("cannot read {}: {error}", clean(&name))))?;
    let services = fs::read_to_string("/etc/services").unwrap_or_default();
    let options = Options { macros: arguments.macros.clone(), interfaces: arguments.interfaces.clone() };
    let surroundings = Surroundings {
        read: &|path| read_included(file, Path::new(path)),
        port: &|name| relayd::service_port(&services, name),
        addresses: &addresses,
    };
    let imported = relayd::import(&name, &text, &options, &surroundings).map_err(|errors| {
        let all: String = errors.iter().map(|errors| errors.render(errors_in_color())).collect();
        Failure::new(ExitCode::Configuration, all)
    })?;
    for line in &imported.notes {
        note(&clean(line));
    }
    if !imported.usable {
        let message = format!("nothing in {} can be taken over: no redirect is left", clean(&name));
        return Err(Failure::failed(message));
    }
    print(&imported.text)
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 4 MiB, which no configuration is"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

/// A file by its path, or, as it may have come from another machine, one of that name beside the main file.
fn read_included(main: &Path, path: &Path) -> Result<String, String> {
    let beside = main.parent().unwrap_or(Path::new(""));
    let mut candidates = vec![path.to_owned(), beside.join(path)];
    candidates.extend(path.file_name().map(|name| beside.join(name)));
    let there = candidates.iter().find(|candidate| candidate.is_file()).map_or(path, |found| found);
    read(there).map_err(|error| error.to_string())
}

/// IPv4 first: relayd takes the first address of a host.
fn addresses(name: &str) -> Vec<IpAddr> {
    let found = (name, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect());
    let mut found: Vec<IpAddr> = found.unwrap_or_default();
    found.sort_unstable();
    found.dedup();
    found
}
