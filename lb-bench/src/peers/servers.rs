//! What runs on the servers: nginx, smtp-sink, iperf3, and an echo of our own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lb_lab::{Netns, Process, wait_until};

use super::network::{Cpus, Network};

pub const WEB: u16 = 80;
pub const MAIL: u16 = 25;
pub const ECHO: u16 = 7;
/// Of iperf3.
pub const BULK: u16 = 5201;

/// Bytes of each message to the echo, and of each answer.
pub const MESSAGE: usize = 64;
/// What a web server answers.
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde";

const START_LIMIT: Duration = Duration::from_secs(5);

/// Everything that both servers run. Dropping it ends it.
#[derive(Debug)]
pub struct Servers {
    processes: Vec<Process>,
    _echoes: Vec<Echo>,
}

impl Servers {
    /// # Errors
    /// When a program is missing or does not start.
    pub fn start(network: &Network) -> Result<Self> {
        // What is started inherits the CPU.
        Cpus::keep(0, network.cpus.ends)?;
        let mut servers = Self { processes: Vec::new(), _echoes: Vec::new() };
        for (netns, number) in network.servers.iter().zip(1..) {
            servers.web(network, netns, number)?;
            servers.program(network, netns, number, "smtp-sink", &["-u", "root", ":25", "4096"])?;
            servers._echoes.push(Echo::start(netns, number)?);
        }
        let [first, _] = &network.servers;
        servers.program(network, first, 1, "iperf3", &["-s"])?;
        for (netns, ports) in network.servers.iter().zip([&[WEB, MAIL, ECHO, BULK][..], &[WEB, MAIL, ECHO]]) {
            wait_until("the servers to listen", START_LIMIT, || {
                servers.check()?;
                Ok(listening(netns)?.is_superset(&ports.iter().copied().collect()).then_some(()))
            })?;
        }
        Ok(servers)
    }

    /// # Errors
    /// With its words, when a program has ended.
    pub fn check(&mut self) -> Result<()> {
        self.processes.iter_mut().try_for_each(Process::check_running)
    }

    fn program(
        &mut self,
        network: &Network,
        netns: &Netns,
        number: u8,
        program: &str,
        arguments: &[&str],
    ) -> Result<()> {
        let mut command = network.lab.command(program)?;
        command.args(arguments);
        self.processes.push(network.lab.start(netns, &format!("{program}{number}"), command)?);
        Ok(())
    }

    fn web(&mut self, network: &Network, netns: &Netns, number: u8) -> Result<()> {
        let root = network.lab.directory().join(format!("web{number}"));
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let shown = root.display();
        let text = format!(
            "daemon off; master_process off; user root; pid {shown}/pid; error_log stderr crit;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n\
               access_log off; default_type text/plain; keepalive_requests 1000000000;\n\
               client_body_temp_path {shown}/body; proxy_temp_path {shown}/proxy;\n\
               fastcgi_temp_path {shown}/fastcgi; uwsgi_temp_path {shown}/uwsgi; scgi_temp_path {shown}/scgi;\n\
               server {{ listen {WEB} backlog=4096; location / {{ return 200 \"{BODY}\\n\"; }} }}\n\
             }}\n"
        );
        let path = root.join("nginx.conf");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let (root, path) = (root.display().to_string(), path.display().to_string());
        self.program(network, netns, number, "nginx", &["-e", "stderr", "-p", &root, "-c", &path])
    }
}

/// The TCP ports that somebody listens on.
fn listening(netns: &Netns) -> Result<std::collections::BTreeSet<u16>> {
    let tables = netns.run(|| {
        // The thread that looks must be the one that entered: /proc/net follows the main thread.
        ["tcp", "tcp6"]
            .map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default())
    })?;
    Ok(tables.iter().flat_map(|table| table.lines()).filter_map(listener).collect())
}

/// The port of a line of /proc/net/tcp, if it is a listener's.
fn listener(line: &str) -> Option<u16> {
    let mut words = line.split_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok().filter(|_| state == "0A")
}

/// Sends back what it gets, on a thread for each connection. Each server puts its number first into every answer.
#[derive(Debug)]
struct Echo {
    stop: Arc<AtomicBool>,
}

impl Echo {
    fn start(netns: &Netns, number: u8) -> Result<Self> {
        let listener = netns
            .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, ECHO)))?
            .with_context(|| format!("cannot listen on port {ECHO}"))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        std::thread::Builder::new().name(format!("echo{number}")).spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        std::thread::spawn(move || answer(stream, number));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        })?;
        Ok(Self { stop })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Until the client closes, or is gone.
fn answer(mut stream: TcpStream, number: u8) {
    let mut message = [0; MESSAGE];
    if stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true)).is_err() {
        return;
    }
    while stream.read_exact(&mut message).is_ok() {
        message[0] = number;
        if stream.write_all(&message).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_found() {
        let line = "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        assert_eq!(listener(line), Some(80));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address rem_address   st"), None);
    }
}
