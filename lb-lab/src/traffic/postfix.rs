//! A real mail server (Postfix) with a log of its own, for what checks leave in it. It takes no mail.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::tls::Certificate;
use crate::lab::Lab;
use crate::process::{Process, find, wait_until};
use crate::topology::Host;

/// Where distributions have Postfix's daemons, besides beside the lab's own smtp-sink.
const DAEMONS: [&str; 3] = ["/usr/lib/postfix/sbin", "/usr/libexec/postfix", "/usr/lib/postfix/bin"];
/// Owns the queue. Must be neither root nor the user of `default_privs`.
const OWNER: &str = "mail";
const QUEUES: [&str; 14] = [
    "pid", "public", "private", "active", "incoming", "deferred", "maildrop", "bounce", "defer", "corrupt",
    "hold", "flush", "saved", "trace",
];

/// Postfix on one host.
#[derive(Debug)]
pub struct Postfix {
    process: Process,
    log: PathBuf,
}

impl Postfix {
    /// Answers on `port` of all IPv4 addresses of `host`, and offers STARTTLS.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub fn start(lab: &Arc<Lab>, host: &Host, port: u16, certificate: &Certificate) -> Result<Self> {
        let daemons = daemons()?;
        let root = lab.directory().join(format!("postfix-{}", host.name));
        let path = |name: &str| root.join(name);
        for directory in ["etc", "data", "queue"] {
            fs::create_dir_all(path(directory))?;
        }
        let owner = nix::unistd::User::from_name(OWNER)?.context("there is no user mail")?;
        chown(path("data"), Some(owner.uid.as_raw()), None)?;
        for queue in QUEUES {
            let queue = path("queue").join(queue);
            fs::create_dir_all(&queue)?;
            // The master's lock is root's.
            if !queue.ends_with("pid") {
                chown(&queue, Some(owner.uid.as_raw()), None)?;
            }
        }
        let shown = root.display();
        let main = format!(
            "compatibility_level = 3.6\nmail_owner = {OWNER}\nsetgid_group = uucp\ndefault_privs = daemon\n\
             queue_directory = {shown}/queue\ndata_directory = {shown}/data\ndaemon_directory = {daemons}\n\
             command_directory = {daemons}\nimport_environment = LD_LIBRARY_PATH MAIL_CONFIG TZ\n\
             myhostname = {name}.example\nmaillog_file = {shown}/mail.log\nmaillog_file_prefixes = {shown}\n\
             inet_protocols = ipv4\nmydestination =\nlocal_recipient_maps =\nsmtpd_peername_lookup = no\n\
             smtpd_tls_security_level = may\nsmtpd_tls_loglevel = 1\nsmtpd_tls_cert_file = {certificate}\n\
             smtpd_tls_key_file = {key}\n",
            daemons = daemons.display(),
            name = host.name,
            certificate = certificate.certificate.display(),
            key = certificate.key.display(),
        );
        let services = format!(
            "{port} inet n - n - - smtpd\nrewrite unix - - n - - trivial-rewrite\n\
             tlsmgr unix - - n 1000? 1 tlsmgr\nanvil unix - - n - 1 anvil\nproxymap unix - - n - - proxymap\n\
             cleanup unix n - n - 0 cleanup\npostlog unix-dgram n - n - 1 postlogd\n"
        );
        fs::write(path("etc/main.cf"), main)?;
        fs::write(path("etc/master.cf"), services)?;
        let mut command = lab.command(daemons.join("master"))?;
        command.arg("-c").arg(path("etc")).arg("-d");
        if let Some(libraries) = daemons.parent() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let mut process = lab.start(&host.netns, &format!("postfix-{}", host.name), command)?;
        let target = SocketAddr::new(host.address(false), port);
        wait_until("postfix to listen", Duration::from_secs(10), || {
            process.check_running()?;
            host.netns.run(|| std::net::TcpStream::connect(target).is_ok().then_some(()))
        })?;
        Ok(Self { process, log: path("mail.log") })
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it with all its daemons.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(10)).map(drop)
    }
}

fn daemons() -> Result<PathBuf> {
    let near = find("smtp-sink").ok().and_then(|sink| {
        let lab = fs::canonicalize(sink).ok()?.parent()?.parent()?.to_owned();
        Some(lab.join("postfix/usr/lib/postfix/sbin"))
    });
    near.into_iter()
        .chain(DAEMONS.map(|daemons| Path::new(daemons).to_owned()))
        .find(|daemons| daemons.join("master").is_file())
        .context("the program master of Postfix is missing: run `cargo xtask setup`")
}
