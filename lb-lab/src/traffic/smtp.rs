//! Mail by Postfix's smtp-source and smtp-sink, counted message by message.
//!
//! What was found out about them: smtp-sink writes and closes a message's dump file before it answers 250, so
//! what it accepted is known even after `kill -9` (a file without content was never accepted). smtp-source
//! opens its connections one after the other and gives up altogether at the first one that fails, after a
//! pause of a second; so where failures are expected each message gets a process of its own, whose exit code
//! says whether the server took that message. Its `-N` numbers the recipients, which names every message.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::{self, Finished, Process, wait_until};
use crate::topology::Host;

/// After which a single message counts as failed.
const MAIL_LIMIT: Duration = Duration::from_secs(20);
/// Of all senders.
pub(super) const DOMAIN: &str = "client.example";

/// A message a server has taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Received {
    /// Before the `@` of the sender.
    pub sender: String,
    /// Before the `@` of the recipient: its number in a run of many.
    pub recipient: String,
    /// Who connected, as the server saw it.
    pub client: String,
}

/// A mail server: one smtp-sink for each address.
#[derive(Debug)]
pub struct Sink {
    lab: Arc<Lab>,
    name: String,
    netns: Netns,
    listen: Vec<SocketAddr>,
    starts: u32,
    processes: Vec<Process>,
}

impl Sink {
    /// Starts smtp-sink on `port` of all addresses of `host`, greeting with the host's name.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub fn start(lab: &Arc<Lab>, host: &Host, port: u16) -> Result<Self> {
        let listen = host.addresses().into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let mut sink = Self {
            lab: Arc::clone(lab),
            name: host.name.clone(),
            netns: host.netns.clone(),
            listen,
            starts: 0,
            processes: Vec::new(),
        };
        sink.restart()?;
        Ok(sink)
    }

    /// Starts it, after [`Sink::kill`]. What it took before is still counted.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.starts += 1;
        for (number, listen) in self.listen.iter().enumerate() {
            let family = if listen.is_ipv4() { "-4" } else { "-6" };
            let directory = self.directory().join(format!("{}.{number}", self.starts));
            fs::create_dir_all(&directory)?;
            let mut command = self.lab.command("smtp-sink")?;
            command.args([family, "-u", "root", "-m", "4000", "-h", &format!("{}.example", self.name)]);
            command.arg("-d").arg(directory.join("m."));
            command.args([listen.to_string().as_str(), "1024"]);
            let label = format!("smtp-sink-{}.{number}", self.name);
            self.processes.push(self.lab.start(&self.netns, &label, command)?);
        }
        let (netns, listen) = (self.netns.clone(), self.listen.clone());
        wait_until("smtp-sink to listen", Duration::from_secs(5), || {
            self.processes.iter_mut().try_for_each(Process::check_running)?;
            netns.run(|| {
                let open = |target: &SocketAddr| {
                    std::net::TcpStream::connect_timeout(target, Duration::from_millis(500)).is_ok()
                };
                listen.iter().all(open).then_some(())
            })
        })
    }

    fn directory(&self) -> PathBuf {
        self.lab.directory().join(format!("mail-{}", self.name))
    }

    /// `kill -9` for all of it.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn kill(&mut self) -> Result<()> {
        for mut process in self.processes.drain(..) {
            process.kill()?;
        }
        Ok(())
    }

    /// Every message taken so far, in all its lives.
    ///
    /// # Errors
    /// When the dump files cannot be read.
    pub fn received(&self) -> Result<Vec<Received>> {
        let mut all = Vec::new();
        self.each_dump(|text| all.extend(parse(text)))?;
        Ok(all)
    }

    /// Its files of the messages from `sender`, headers of its own first.
    ///
    /// # Errors
    /// When the dump files cannot be read.
    pub fn dumps(&self, sender: &str) -> Result<Vec<String>> {
        let mut dumps = Vec::new();
        self.each_dump(|text| {
            if parse(text).is_some_and(|one| one.sender == sender) {
                dumps.push(text.to_owned());
            }
        })?;
        Ok(dumps)
    }

    fn each_dump(&self, mut take: impl FnMut(&str)) -> Result<()> {
        for life in fs::read_dir(self.directory())? {
            for file in fs::read_dir(life?.path())? {
                let path = file?.path();
                let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                take(&String::from_utf8_lossy(&text));
            }
        }
        Ok(())
    }
}

/// One dump file; `None` for a message that was not finished.
fn parse(text: &str) -> Option<Received> {
    let header = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_matches([' ', '<', '>']))
    };
    let local = |address: &str| address.split('@').next().unwrap_or_default().to_owned();
    let client = header("X-Client-Addr:")?;
    Some(Received {
        sender: local(header("X-Mail-Args:")?.split('>').next()?),
        recipient: local(header("X-Rcpt-Args:")?),
        // `ipv6:::1` for ::1.
        client: client.trim_start_matches("ipv6:").to_owned(),
    })
}

/// Whether each of them came from `client`.
pub fn all_from(received: &[Received], client: IpAddr) -> bool {
    received.iter().all(|one| one.client.parse() == Ok(client))
}

/// Sends `count` messages over `sessions` parallel sessions with one smtp-source; fails as a whole. Message
/// number N comes from `sender` and goes to a recipient of that number.
///
/// # Errors
/// When it cannot be started.
pub fn send(
    lab: &Lab,
    netns: &Netns,
    target: SocketAddr,
    sender: &str,
    (count, sessions): (usize, usize),
    limit: Duration,
) -> Result<Finished> {
    process::finish(source(lab, target, sender, (count, sessions))?, Some(netns), None, limit)
}

fn source(lab: &Lab, target: SocketAddr, sender: &str, (count, sessions): (usize, usize)) -> Result<Command> {
    let mut command = lab.command("smtp-source")?;
    command.args([if target.is_ipv4() { "-4" } else { "-6" }, "-N", "-M", "client.example"]);
    command.args(["-s", &sessions.to_string(), "-m", &count.to_string()]);
    command.args(["-f", &format!("{sender}@{DOMAIN}"), "-t", "@lab.example", &host_port(target)]);
    Ok(command)
}

/// `[ADDRESS]:PORT` for both families, as Postfix wants it.
fn host_port(target: SocketAddr) -> String {
    format!("[{}]:{}", target.ip(), target.port())
}

/// One message of a [`Mailer`], as its client saw it.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The sender, before the `@`.
    pub id: String,
    pub started: Instant,
    pub took: Duration,
    /// smtp-source's complaint, without one the server's 250 was seen.
    pub error: Option<String>,
}

/// A stream of single messages, each with a connection and a process of its own.
#[derive(Debug)]
pub struct Mailer {
    stop: Arc<AtomicBool>,
    abort: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Mail>>>,
    workers: Vec<JoinHandle<Result<()>>>,
}

impl Mailer {
    /// `workers` send one message after the other to `targets` in turn, each at most one every `pause`.
    ///
    /// # Errors
    /// When smtp-source is missing.
    pub fn start(
        lab: &Arc<Lab>,
        netns: &Netns,
        targets: &[SocketAddr],
        tag: &str,
        (workers, pause): (usize, Duration),
    ) -> Result<Self> {
        lab.command("smtp-source")?;
        let (stop, abort) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let done: Arc<Mutex<Vec<Mail>>> = Arc::default();
        let mut handles = Vec::new();
        for worker in 0..workers {
            let (lab, netns, targets) = (Arc::clone(lab), netns.clone(), targets.to_vec());
            let (stop, abort, done) = (Arc::clone(&stop), Arc::clone(&abort), Arc::clone(&done));
            let tag = format!("{tag}.{worker}");
            // Programs are moved into the namespace when they start; the worker itself stays outside.
            let work = move || {
                for (number, target) in targets.iter().copied().cycle().skip(worker).enumerate() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let mail = send_one(&lab, &netns, target, format!("{tag}.{number}"), &abort)?;
                    let rest = pause.saturating_sub(mail.took);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
                    std::thread::sleep(rest);
                }
                Ok(())
            };
            handles.push(std::thread::Builder::new().name("mailer".to_owned()).spawn(work)?);
        }
        Ok(Self { stop, abort, done, workers: handles })
    }

    /// Messages that have ended so far.
    pub fn mails(&self) -> Vec<Mail> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts no more and waits for those under way.
    ///
    /// # Errors
    /// When a worker could not start smtp-source.
    pub fn finish(mut self) -> Result<Vec<Mail>> {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| anyhow!("a mail worker panicked"))??;
        }
        let mut mails = self.mails();
        mails.sort_by_key(|mail| mail.started);
        Ok(mails)
    }
}

impl Drop for Mailer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.abort.store(true, Ordering::Relaxed);
        // They share the lab, which is to be removed by its owner and not by them.
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn send_one(lab: &Lab, netns: &Netns, target: SocketAddr, id: String, abort: &AtomicBool) -> Result<Mail> {
    let started = Instant::now();
    let command = source(lab, target, &id, (1, 1))?;
    let finished =
        process::finish_unless(command, Some(netns), None, MAIL_LIMIT, &|| abort.load(Ordering::Relaxed))?;
    let error = (!finished.ok()).then(|| match finished.status {
        None => format!("hung for {MAIL_LIMIT:?}"),
        Some(_) => finished.stderr.trim().rsplit("fatal: ").next().unwrap_or_default().to_owned(),
    });
    Ok(Mail { id, started, took: finished.took, error })
}

/// The clients' view against the servers': nothing may be accepted and then be nowhere.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Balance {
    pub sent: usize,
    /// The client saw the server's 250.
    pub accepted: usize,
    pub failed: usize,
    /// Accepted, but no server has it.
    pub lost: usize,
    /// Failed for the client, but a server has it: a real sender would send it again.
    pub doubtful: usize,
    /// What the clients complained about, and how often.
    pub errors: BTreeMap<String, usize>,
}

/// Compares what was sent with what the servers hold.
pub fn balance(mails: &[Mail], received: &[Received]) -> Balance {
    let held: BTreeSet<&str> = received.iter().map(|one| one.sender.as_str()).collect();
    let mut balance = Balance { sent: mails.len(), ..Balance::default() };
    for mail in mails {
        let arrived = held.contains(mail.id.as_str());
        match &mail.error {
            None => {
                balance.accepted += 1;
                balance.lost += usize::from(!arrived);
            }
            Some(error) => {
                balance.failed += 1;
                balance.doubtful += usize::from(arrived);
                *balance.errors.entry(error.clone()).or_default() += 1;
            }
        }
    }
    balance
}
