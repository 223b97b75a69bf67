//! TLS by OpenSSL: certificates of an authority made for the occasion, and `openssl s_server`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
use crate::process::{Process, run_tool, wait_until};
use crate::topology::Host;

/// A key and its certificate, in PEM, by an authority that is in `authority`.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for the host `name` that ends after `days`.
    ///
    /// # Errors
    /// When openssl is missing or refuses.
    pub fn make(lab: &Lab, name: &str, days: u32) -> Result<Self> {
        let directory = lab.directory().join(format!("tls-{name}-{days}"));
        fs::create_dir_all(&directory)?;
        let path = |file: &str| directory.join(file);
        let days = days.to_string();
        let request = |key: &Path, subject: &str, extension: &str, more: &[&str]| {
            let key = key.display().to_string();
            let subject = format!("/CN={subject}");
            let mut args =
                vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
            args.extend(["-keyout", &key, "-subj", &subject, "-addext", extension, "-days", &days]);
            args.extend(more);
            run_tool("openssl", &args, None).map(drop)
        };
        let (authority, authority_key) = (path("ca.pem"), path("ca.key"));
        let (certificate, key) = (path("cert.pem"), path("key.pem"));
        let shown = [&authority, &authority_key, &certificate].map(|path| path.display().to_string());
        request(&authority_key, "lab authority", "keyUsage=critical,keyCertSign", &["-out", &shown[0]])?;
        let by = ["-CA", &shown[0], "-CAkey", &shown[1], "-out", &shown[2]];
        let extension = format!("subjectAltName=DNS:{name}");
        request(
            &key,
            name,
            &extension,
            &[&by[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat(),
        )?;
        Ok(Self { authority, certificate, key })
    }
}

/// `openssl s_server -www` on one host: it shakes hands, and answers requests with a page about the connection.
#[derive(Debug)]
pub struct TlsServer {
    pub process: Process,
}

impl TlsServer {
    /// Serves `port` of all addresses of `host`.
    ///
    /// # Errors
    /// When openssl is missing or does not start.
    pub fn start(lab: &Arc<Lab>, host: &Host, port: u16, certificate: &Certificate) -> Result<Self> {
        let mut command = lab.command("openssl")?;
        command.args(["s_server", "-www", "-accept", &port.to_string()]);
        command.arg("-cert").arg(&certificate.certificate).arg("-key").arg(&certificate.key);
        let mut process = lab.start(&host.netns, &format!("s_server-{}", host.name), command)?;
        let target = SocketAddr::new(host.address(false), port);
        wait_until("s_server to listen", Duration::from_secs(5), || {
            process.check_running()?;
            host.netns.run(|| std::net::TcpStream::connect(target).is_ok().then_some(()))
        })?;
        Ok(Self { process })
    }
}
