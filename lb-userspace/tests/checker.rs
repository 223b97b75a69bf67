//! The process that checks: what the daemon has of it when all goes well, and when it does not.

#![expect(clippy::unwrap_used, reason = "a test ends with what goes wrong")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_userspace::config::{Check, Exec, Probe, Tls};
use lb_userspace::health::checker;
use lb_userspace::health::{CheckError, Health, Report, Runner, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

const LIMIT: Duration = Duration::from_secs(20);
const NAME: &str = "server.example";

/// One at a time: so its process is this one's only child of that kind.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn alone() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().await;
    assert!(gone().await, "of an earlier test: {:?}", checkers());
    alone
}

struct Checking {
    runner: Runner,
    reports: mpsc::Receiver<Report>,
    _alone: MutexGuard<'static, ()>,
}

impl Checking {
    async fn of(targets: &[Target]) -> Self {
        let alone = alone().await;
        let (reports_to, reports) = mpsc::channel(64);
        let runner = checker::spawn(reports_to, env!("CARGO_BIN_EXE_matapa").into());
        runner.set_targets(targets.iter().map(|target| (target.clone(), Health::Unknown)).collect());
        Self { runner, reports, _alone: alone }
    }

    async fn report(&mut self) -> Report {
        timeout(LIMIT, self.reports.recv()).await.expect("a report in time").expect("checking goes on")
    }

    async fn wait_for(&mut self, what: impl Fn(&Report) -> bool) -> Report {
        let until = Instant::now() + LIMIT;
        loop {
            let report = self.report().await;
            if what(&report) {
                return report;
            }
            assert!(Instant::now() < until, "{report:?}");
        }
    }
}

fn target(address: SocketAddr, probe: Probe) -> Target {
    let interval = Duration::from_millis(100);
    let check = Check { interval, timeout: Duration::from_millis(90), fall: 1, ..Check::of(probe) };
    Target::new(address.ip(), address.port(), &check)
}

/// Accepts connections and closes them.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    address
}

/// The processes that check, of this process.
fn checkers() -> Vec<i32> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // `PID (NAME) STATE PARENT`; a zombie has ended.
        let mut words = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (words.next()?, words.next()?);
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (state != "Z"
            && parent == own
            && command.split(|byte| *byte == 0).nth(1) == Some(checker::WORD.as_bytes()))
        .then_some(pid)
    });
    processes.collect()
}

async fn gone() -> bool {
    let until = Instant::now() + LIMIT;
    while !checkers().is_empty() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    checkers().is_empty()
}

fn signal_checker(signal: Signal) -> i32 {
    let [checker] = checkers()[..] else { panic!("{:?}", checkers()) };
    kill(Pid::from_raw(checker), signal).unwrap();
    checker
}

#[tokio::test]
async fn it_has_hardly_any_rights_and_ends_with_the_daemon() {
    let mut checking = Checking::of(&[target(server().await, Probe::Tcp)]).await;
    assert_eq!(checking.report().await.health, Health::Up);
    let [checker] = checkers()[..] else { panic!("{:?}", checkers()) };
    let status = std::fs::read_to_string(format!("/proc/{checker}/status")).unwrap();
    assert_eq!(status.lines().next(), Some("Name:\tmatapa-checker"));
    let command = std::fs::read(format!("/proc/{checker}/cmdline")).unwrap();
    assert!(command.starts_with(b"matapa\0"), "{}", String::from_utf8_lossy(&command));
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(value.trim_start_matches(':').trim(), 16).unwrap()
    };
    // CAP_NET_RAW (capability.h), where this was run by root.
    let raw = 1 << 13;
    assert!([0, raw].contains(&field("CapEff")) && [0, raw].contains(&field("CapPrm")), "{status}");
    assert_eq!((field("CapInh"), field("NoNewPrivs")), (0, 1));
    // What a terminal or a service manager sends to all is not for it.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        kill(Pid::from_raw(checker), signal).unwrap();
    }
    for _ in 0..5 {
        checking.report().await;
    }
    assert_eq!(checkers(), [checker]);
    drop(checking.runner);
    assert!(gone().await);
}

#[tokio::test]
async fn a_killed_one_is_replaced_and_servers_keep_their_health() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (well, ill) = (target(server().await, Probe::Tcp), target(closed, Probe::Tcp));
    let mut checking = Checking::of(&[well.clone(), ill.clone()]).await;
    checking.wait_for(|report| report.health == Health::Up).await;
    checking.wait_for(|report| report.health == Health::Down).await;
    signal_checker(Signal::SIGKILL);
    assert!(gone().await);
    while checking.reports.try_recv().is_ok() {}
    // Asked while nobody checks.
    let (done, polled) = oneshot::channel();
    checking.runner.poll(done);
    let mut previous = HashMap::new();
    while previous.len() < 2 {
        let report = checking.report().await;
        previous.entry(report.target).or_insert(report.previous);
    }
    assert_eq!(previous, HashMap::from([(well, Health::Up), (ill, Health::Down)]));
    timeout(LIMIT, polled).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_that_hangs_is_replaced() {
    let mut checking = Checking::of(&[target(server().await, Probe::Tcp)]).await;
    checking.report().await;
    let hung = signal_checker(Signal::SIGSTOP);
    while checking.reports.try_recv().is_ok() {}
    assert_eq!(checking.report().await.previous, Health::Up);
    assert!(!checkers().contains(&hung));
}

#[tokio::test]
async fn targets_come_and_go() {
    let (first, second) = (target(server().await, Probe::Tcp), target(server().await, Probe::Tcp));
    let mut checking = Checking::of(std::slice::from_ref(&first)).await;
    checking.wait_for(|report| report.target == first).await;
    checking.runner.set_targets(vec![(second.clone(), Health::Up)]);
    let report = checking.wait_for(|report| report.target == second).await;
    assert_eq!((report.previous, report.health), (Health::Up, Health::Up));
    for _ in 0..5 {
        assert_eq!(checking.report().await.target, second);
    }
    // More than one message holds.
    let many = (1..=2500).map(|port| target(SocketAddr::new(second.address.ip(), port), Probe::Tcp));
    checking.runner.set_targets(many.map(|target| (target, Health::Unknown)).collect());
    let mut seen = std::collections::HashSet::new();
    while seen.len() < 2500 {
        seen.insert(checking.wait_for(|report| report.target != second).await.target);
    }
}

#[tokio::test]
async fn a_poll_is_over_when_servers_and_programs_have_reported() {
    let address = server().await;
    let exec = Exec { command: vec!["/bin/true".to_owned()], user: None };
    let slow = |probe| {
        let mut target = target(address, probe);
        (target.check.interval, target.check.timeout) = (LIMIT * 3, LIMIT);
        target
    };
    let targets = [slow(Probe::Tcp), slow(Probe::Exec(Arc::new(exec)))];
    let mut checking = Checking::of(&targets).await;
    for _ in &targets {
        checking.report().await;
    }
    for _ in 0..3 {
        let (done, polled) = oneshot::channel();
        checking.runner.poll(done);
        timeout(LIMIT, polled).await.unwrap().unwrap();
        let mut reported = Vec::new();
        while let Ok(report) = checking.reports.try_recv() {
            reported.push(report.target);
        }
        assert_eq!(reported.len(), 2, "{reported:?}");
    }
    // Nothing is left to wait for.
    checking.runner.set_targets(Vec::new());
    let (done, polled) = oneshot::channel();
    checking.runner.poll(done);
    timeout(LIMIT, polled).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_targets_there_is_no_process() {
    let checking = Checking::of(&[]).await;
    let (done, polled) = oneshot::channel();
    checking.runner.poll(done);
    timeout(LIMIT, polled).await.unwrap().unwrap();
    assert_eq!(checkers(), [0; 0]);
}

#[tokio::test]
async fn one_that_cannot_be_started_is_tried_again() {
    let _alone = alone().await;
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("matapa");
    let (reports_to, mut reports) = mpsc::channel(64);
    let runner = checker::spawn(reports_to, program.clone());
    runner.set_targets(vec![(target(server().await, Probe::Tcp), Health::Unknown)]);
    assert!(timeout(Duration::from_millis(500), reports.recv()).await.is_err());
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_matapa"), &program).unwrap();
    assert_eq!(timeout(LIMIT, reports.recv()).await.unwrap().unwrap().health, Health::Up);
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, format!("authority {}", rand::random::<u64>()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server with a certificate by this authority.
async fn secured(authority: &CertifiedIssuer<'static, KeyPair>) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}

/// As tools for certificates do it.
fn replace(file: &Path, text: &str) {
    let new: PathBuf = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

#[tokio::test]
async fn authorities_are_read_for_it_and_again_when_their_file_is_replaced() {
    let (right, wrong) = (authority(), authority());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    replace(&file, &right.pem());
    let tls = Tls { server_name: Some(NAME.to_owned()), ca_file: Some(file.clone()), ..Tls::default() };
    let mut checked = target(secured(&right).await, Probe::Tls(Arc::new(tls)));
    (checked.check.interval, checked.check.timeout) =
        (Duration::from_millis(400), Duration::from_millis(390));
    let mut checking = Checking::of(&[checked]).await;
    let report = checking.report().await;
    assert_eq!(report.result, Ok(()));
    assert!(report.certificate_expires.is_some());
    replace(&file, &wrong.pem());
    checking.wait_for(|report| report.result == Err(CheckError::CertificateIssuer)).await;
    std::fs::remove_file(&file).unwrap();
    let report = checking.wait_for(|report| matches!(report.result, Err(CheckError::Authorities(_)))).await;
    let text = format!("{}: No such file or directory (os error 2)", file.display());
    assert_eq!(report.result, Err(CheckError::Authorities(text)));
    replace(&file, &right.pem());
    checking.wait_for(|report| report.result.is_ok()).await;
    // A new process is told all anew.
    signal_checker(Signal::SIGKILL);
    assert!(gone().await);
    while checking.reports.try_recv().is_ok() {}
    assert_eq!(checking.report().await.result, Ok(()));
}
