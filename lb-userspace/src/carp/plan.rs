//! A vhid as configured, with its password: what a start or a reload needs, read before anything is changed.

use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use log::warn;

use super::auth::Authenticator;
use super::fsm::{Dialect, Settings, Timing};
use crate::config::{Carp, CarpDialect, Password, check_password};

/// Of a password file. More is no password.
const LARGEST_FILE: u64 = 4096;

/// A vhid that can be run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub config: Carp,
    pub authenticator: Authenticator,
}

impl Plan {
    /// What the state machine needs of it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            timing: Timing { base: self.config.advbase, skew: self.config.advskew },
            preempt: self.config.preempt,
            preempt_delay: self.config.preempt_delay,
            dialect: match self.config.dialect {
                CarpDialect::Any => Dialect::Any,
                CarpDialect::OpenBsd => Dialect::OpenBsd,
            },
        }
    }

    /// Whether it has addresses, or peers, of IPv4 (or else IPv6): each family is advertised by itself.
    #[must_use]
    pub fn uses(&self, v4: bool) -> bool {
        let is = |address: &IpAddr| address.is_ipv4() == v4;
        match self.config.peers.as_slice() {
            [] => self.config.addresses.iter().any(|a| is(&a.address)),
            peers => peers.iter().any(is),
        }
    }
}

/// Reads the passwords.
///
/// # Errors
/// When one cannot be read or used; the text says which and why.
pub fn prepare(configured: &[Carp]) -> Result<Vec<Plan>> {
    configured
        .iter()
        .map(|config| {
            let about = || format!("carp {}", config.name);
            let password = match &config.password {
                Password::Inline(text) => text.clone().into_bytes(),
                Password::File(path) => read_password(path).with_context(about)?,
            };
            let addresses: Vec<IpAddr> = config.addresses.iter().map(|a| a.address).collect();
            let authenticator = Authenticator::new(&password, config.vhid, &addresses)
                .context("the password is too long")
                .with_context(about)?;
            Ok(Plan { config: config.clone(), authenticator })
        })
        .collect()
}

/// The first and only line of a file, without its end.
fn read_password(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let file = fs::File::open(path).with_context(|| format!("cannot read password_file {shown}"))?;
    if let Ok(metadata) = file.metadata()
        && metadata.mode() & 0o077 != 0
    {
        warn!("others than its owner may read the password in {shown}: chmod 600 {shown}");
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read password_file {shown}"))?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.contains(&b'\n') {
        bail!("password_file {shown} has more than one line");
    }
    if let Err(wrong) = check_password(line) {
        bail!("the password in {shown} {wrong}");
    }
    Ok(line.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_a_line() {
        let file = |content: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), content).unwrap();
            read_password(file.path())
        };
        assert_eq!(file(b"love\n").unwrap(), b"love");
        assert_eq!(file(b"love").unwrap(), b"love");
        assert_eq!(file(b"love\r\n").unwrap(), b"love");
        for (content, expected) in [
            (&b""[..], "is empty"),
            (b"\n", "is empty"),
            (b"a\nb\n", "more than one line"),
            (b"12345678901234567890\n", "has 20 bytes"),
        ] {
            let error = format!("{:#}", file(content).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        let error = format!("{:#}", read_password(Path::new("/nonexistent/key")).unwrap_err());
        assert!(error.contains("/nonexistent/key"), "{error}");
    }
}
