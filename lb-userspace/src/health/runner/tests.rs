//! The runner with scripted checks in virtual time, and once with real ones.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::Smtp;
use crate::health::Health::{Down, Unknown, Up};

const INTERVAL: Duration = Duration::from_secs(10);
/// With it no target's second check follows so soon that it gets in the way.
const SEED: u64 = 1;

fn target_at(address: SocketAddr, interval: Duration) -> Target {
    let timeout = interval / 5;
    Target {
        via: None,
        address,
        check: Check { interval, timeout, rise: 2, fall: 3, ..Check::of(Probe::Smtp(Smtp::Plain)) },
    }
}

fn target(number: u16) -> Target {
    target_at(SocketAddr::from(([192, 0, 2, 1], number)), INTERVAL)
}

/// Answers checks; the port says whose.
#[derive(Debug, Default)]
struct Servers {
    /// Ports that refuse.
    refusing: Mutex<HashSet<u16>>,
    /// Starts of checks.
    started: Mutex<Vec<(u16, Instant)>>,
    running: Mutex<HashSet<u16>>,
    most_running: AtomicUsize,
    takes: Duration,
}

impl Servers {
    fn taking(takes: Duration) -> Arc<Self> {
        Arc::new(Self { takes, ..Self::default() })
    }

    async fn answer(&self, port: u16) -> Examined {
        self.started.lock().unwrap().push((port, Instant::now()));
        let now_running = {
            let mut running = self.running.lock().unwrap();
            assert!(running.insert(port), "two checks of one target at a time");
            running.len()
        };
        self.most_running.fetch_max(now_running, Ordering::Relaxed);
        sleep(self.takes).await;
        self.running.lock().unwrap().remove(&port);
        let refuses = self.refusing.lock().unwrap().contains(&port);
        Examined::verdict(if refuses { Err(CheckError::Refused) } else { Ok(()) })
    }

    fn starts(&self, port: u16) -> usize {
        self.started.lock().unwrap().iter().filter(|(started, _)| *started == port).count()
    }

    fn refuse(&self, port: u16) {
        self.refusing.lock().unwrap().insert(port);
    }

    fn accept(&self, port: u16) {
        self.refusing.lock().unwrap().remove(&port);
    }

    fn runner(self: &Arc<Self>, room: usize, limit: usize) -> (Runner, mpsc::Receiver<Report>) {
        let (reports, inbox) = mpsc::channel(room);
        let servers = Arc::clone(self);
        let runner = spawn_with(reports, limit, SEED, move |target: Arc<Target>| {
            let servers = Arc::clone(&servers);
            async move { servers.answer(target.address.port()).await }
        });
        (runner, inbox)
    }
}

async fn next(inbox: &mut mpsc::Receiver<Report>) -> Report {
    timeout(Duration::from_secs(60), inbox.recv()).await.expect("a report").expect("a runner")
}

/// Health before and after the next report.
async fn step(inbox: &mut mpsc::Receiver<Report>) -> (Health, Health) {
    let report = next(inbox).await;
    (report.previous, report.health)
}

#[tokio::test(start_paused = true)]
async fn a_server_goes_up_and_down_by_its_counts() {
    let servers = Servers::taking(Duration::from_millis(20));
    let (runner, mut inbox) = servers.runner(16, 10);
    let start = Instant::now();
    runner.set_targets(vec![(target(1), Unknown)]);
    let first = next(&mut inbox).await;
    assert_eq!((first.previous, first.health, first.result), (Unknown, Up, Ok(())));
    assert_eq!(first.latency, Duration::from_millis(20));
    assert_eq!(start.elapsed(), Duration::from_millis(20), "checked and reported at once");
    servers.refuse(1);
    assert_eq!(step(&mut inbox).await, (Up, Up));
    let detection = Instant::now();
    assert_eq!(step(&mut inbox).await, (Up, Up));
    assert_eq!(step(&mut inbox).await, (Up, Down));
    assert!(detection.elapsed() <= INTERVAL * 22 / 10);
    servers.accept(1);
    assert_eq!(step(&mut inbox).await, (Down, Down));
    assert_eq!(step(&mut inbox).await, (Down, Up));
}

#[tokio::test(start_paused = true)]
async fn a_last_known_state_stands_until_results_change_it() {
    let servers = Servers::taking(Duration::ZERO);
    servers.refuse(1);
    let (runner, mut inbox) = servers.runner(16, 10);
    runner.set_targets(vec![(target(1), Up)]);
    assert_eq!(step(&mut inbox).await, (Up, Up));
    assert_eq!(step(&mut inbox).await, (Up, Up));
    assert_eq!(step(&mut inbox).await, (Up, Down));
}

#[tokio::test(start_paused = true)]
async fn equal_targets_are_checked_once() {
    let servers = Servers::taking(Duration::ZERO);
    let (runner, mut inbox) = servers.runner(16, 10);
    runner.set_targets(vec![(target(1), Up), (target(1), Unknown), (target(1), Down)]);
    assert_eq!(step(&mut inbox).await, (Up, Up), "the first counts");
    sleep(INTERVAL * 100).await;
    let starts = servers.starts(1);
    // The channel has room for 16 reports; nobody reads them, so checking waits.
    assert!(starts <= 19, "{starts}");
}

#[tokio::test(start_paused = true)]
async fn checks_keep_to_the_interval() {
    let servers = Servers::taking(Duration::from_millis(1500));
    let (runner, mut inbox) = servers.runner(1024, 1000);
    runner.set_targets((1..=50).map(|number| (target(number), Unknown)).collect());
    let end = Instant::now() + INTERVAL * 20;
    while Instant::now() < end {
        next(&mut inbox).await;
    }
    for port in 1..=50 {
        let starts = servers.starts(port);
        assert!((20..=22).contains(&starts), "{starts}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_set_disturbs_only_what_changed() {
    let servers = Servers::taking(Duration::from_millis(10));
    let (runner, mut inbox) = servers.runner(16, 10);
    runner.set_targets(vec![(target(1), Unknown), (target(2), Unknown)]);
    next(&mut inbox).await;
    next(&mut inbox).await;

    let start = Instant::now();
    // The health given for a target that stays is not looked at.
    runner.set_targets(vec![(target(3), Unknown), (target(2), Down)]);
    let report = next(&mut inbox).await;
    assert_eq!((report.target, start.elapsed()), (target(3), Duration::from_millis(10)));
    let report = loop {
        let report = next(&mut inbox).await;
        if report.target == target(2) {
            break report;
        }
    };
    assert_eq!((report.previous, report.health), (Up, Up));
    sleep(INTERVAL * 3).await;
    assert_eq!(servers.starts(1), 1);
    assert!(servers.starts(2) >= 3);

    // Another interval makes it another target.
    runner.set_targets(vec![]);
    let other = target_at(target(2).address, INTERVAL * 2);
    runner.set_targets(vec![(other.clone(), Unknown)]);
    let report = loop {
        let report = next(&mut inbox).await;
        if report.target == other {
            break report;
        }
    };
    assert_eq!(report.previous, Unknown);
}

#[tokio::test(start_paused = true)]
async fn results_of_removed_targets_are_discarded() {
    let servers = Servers::taking(Duration::from_secs(1));
    let (runner, mut inbox) = servers.runner(16, 10);
    runner.set_targets(vec![(target(1), Unknown), (target(2), Unknown)]);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(servers.starts(1), 1);
    runner.set_targets(vec![(target(2), Unknown)]);
    for _ in 0..5 {
        assert_eq!(next(&mut inbox).await.target, target(2));
    }
    assert_eq!(servers.starts(1), 1);
}

#[tokio::test(start_paused = true)]
async fn a_poll_checks_all_now() {
    let servers = Servers::taking(Duration::from_millis(100));
    let (runner, mut inbox) = servers.runner(64, 10);
    let poll = || {
        let (done, answer) = oneshot::channel();
        runner.poll(done);
        answer
    };
    // Nothing to check.
    poll().await.unwrap();

    runner.set_targets((1..=3).map(|number| (target(number), Unknown)).collect());
    // New targets are checked once for both reasons.
    let start = Instant::now();
    poll().await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_millis(100));
    for _ in 0..3 {
        assert_eq!(inbox.try_recv().unwrap().previous, Unknown);
    }
    let checked = servers.started.lock().unwrap().len();
    let start = Instant::now();
    poll().await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(100));
    assert!(servers.started.lock().unwrap().len() >= checked + 2);
    for _ in 0..3 {
        inbox.try_recv().unwrap();
    }

    // A target that goes is not waited for.
    let answer = poll();
    tokio::task::yield_now().await;
    runner.set_targets(vec![]);
    answer.await.unwrap();

    // Nor is anything when the runner goes.
    runner.set_targets(vec![(target(4), Unknown)]);
    let answer = poll();
    tokio::task::yield_now().await;
    drop(runner);
    assert!(answer.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_poll_is_answered_after_its_reports_are_sent() {
    let servers = Servers::taking(Duration::ZERO);
    let (runner, mut inbox) = servers.runner(1, 10);
    runner.set_targets((1..=3).map(|number| (target(number), Unknown)).collect());
    let (done, mut answer) = oneshot::channel();
    runner.poll(done);
    for _ in 0..2 {
        sleep(INTERVAL).await;
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        next(&mut inbox).await;
    }
    // The third is in the channel.
    answer.await.unwrap();
    next(&mut inbox).await;
}

#[tokio::test(start_paused = true)]
async fn the_number_of_checks_at_a_time_is_bounded() {
    let servers = Servers::taking(Duration::from_millis(100));
    let (runner, mut inbox) = servers.runner(1024, 8);
    runner.set_targets((1..=100).map(|number| (target(number), Unknown)).collect());
    let start = Instant::now();
    let mut seen = HashSet::new();
    for _ in 0..100 {
        seen.insert(next(&mut inbox).await.target);
    }
    assert_eq!(servers.most_running.load(Ordering::Relaxed), 8);
    assert!(seen.len() >= 90, "{}", seen.len());
    assert!(start.elapsed() >= Duration::from_millis(1200));
}

#[tokio::test(start_paused = true)]
async fn programs_that_hang_hold_up_none_but_each_other() {
    let (reports, mut inbox) = mpsc::channel(1024);
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let runner = spawn_with(reports, 100, SEED, {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        move |target: Arc<Target>| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                if let Probe::Exec(_) = target.check.probe {
                    most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    sleep(INTERVAL / 2).await;
                    running.fetch_sub(1, Ordering::Relaxed);
                }
                Examined::verdict(Ok(()))
            }
        }
    });
    let exec = crate::config::Exec { command: vec!["/bin/true".to_owned()], user: None };
    let program = |number| {
        let Target { address, check, via } = target(number);
        Target { address, check: Check { probe: Probe::Exec(Arc::new(exec.clone())), ..check }, via }
    };
    let targets = (1..=200).map(program).chain((201..=250).map(target));
    runner.set_targets(targets.map(|target| (target, Unknown)).collect());
    let start = Instant::now();
    for _ in 0..50 {
        assert!(next(&mut inbox).await.target.address.port() > 200);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    for _ in 0..400 {
        next(&mut inbox).await;
    }
    assert_eq!(most.load(Ordering::Relaxed), MAX_PROGRAMS);
}

#[tokio::test(start_paused = true)]
async fn a_change_in_sight_is_looked_at_faster() {
    let servers = Servers::taking(Duration::ZERO);
    let (runner, mut inbox) = servers.runner(16, 10);
    let mut watched = target(1);
    watched.check.fast_interval = Some(INTERVAL / 10);
    watched.check.down_interval = Some(INTERVAL * 3);
    watched.check.jitter = 0;
    runner.set_targets(vec![(watched, Unknown)]);
    assert_eq!(step(&mut inbox).await, (Unknown, Up));
    assert_eq!(step(&mut inbox).await, (Up, Up));
    servers.refuse(1);
    let mut last = Instant::now();
    let mut gap = || std::mem::replace(&mut last, Instant::now()).elapsed();
    let near = |gap: Duration, wanted: Duration| gap.abs_diff(wanted) <= Duration::from_millis(2);
    assert_eq!(step(&mut inbox).await, (Up, Up));
    assert!(near(gap(), INTERVAL));
    assert_eq!(step(&mut inbox).await, (Up, Up));
    assert!(near(gap(), INTERVAL / 10));
    assert_eq!(step(&mut inbox).await, (Up, Down));
    assert!(near(gap(), INTERVAL / 10));
    assert_eq!(step(&mut inbox).await, (Down, Down));
    assert!(near(gap(), INTERVAL * 3));
    servers.accept(1);
    assert_eq!(step(&mut inbox).await, (Down, Down));
    assert!(near(gap(), INTERVAL * 3));
    assert_eq!(step(&mut inbox).await, (Down, Up));
    assert!(near(gap(), INTERVAL / 10));
    assert_eq!(step(&mut inbox).await, (Up, Up));
    assert!(near(gap(), INTERVAL));
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_holds_up_checks_but_not_commands() {
    let servers = Servers::taking(Duration::from_millis(10));
    let (runner, mut inbox) = servers.runner(2, 100);
    runner.set_targets((1..=20).map(|number| (target(number), Unknown)).collect());
    sleep(INTERVAL * 50).await;
    let started = servers.started.lock().unwrap().len();
    assert!(started <= 42, "{started}");
    // Reports of removed targets are taken back, apart from those sent, which makes room for another check.
    runner.set_targets(vec![(target(99), Unknown)]);
    sleep(INTERVAL).await;
    assert_eq!(servers.starts(99), 1);
    next(&mut inbox).await;
    next(&mut inbox).await;
    assert_eq!(next(&mut inbox).await.target, target(99));
}

#[tokio::test(start_paused = true)]
async fn checks_end_with_the_runner_or_its_receiver() {
    let servers = Servers::taking(Duration::from_secs(1));
    let (runner, mut inbox) = servers.runner(16, 10);
    runner.set_targets(vec![(target(1), Unknown)]);
    sleep(Duration::from_millis(500)).await;
    drop(runner);
    assert!(inbox.recv().await.is_none());
    sleep(INTERVAL * 3).await;
    assert_eq!(servers.starts(1), 1);

    let servers = Servers::taking(Duration::from_secs(1));
    let (runner, inbox) = servers.runner(16, 10);
    runner.set_targets(vec![(target(1), Unknown)]);
    sleep(Duration::from_millis(500)).await;
    drop(inbox);
    sleep(INTERVAL * 3).await;
    assert_eq!(servers.starts(1), 1);
    runner.set_targets(vec![]);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_is_tried_again() {
    let (reports, mut inbox) = mpsc::channel(16);
    let calls = Arc::new(AtomicUsize::new(0));
    let runner = spawn_with(reports, 10, SEED, move |_target: Arc<Target>| {
        let calls = Arc::clone(&calls);
        async move {
            assert!(calls.fetch_add(1, Ordering::Relaxed) > 0, "the panic of this test");
            Examined::verdict(Ok(()))
        }
    });
    runner.set_targets(vec![(target(1), Unknown)]);
    let (done, answer) = oneshot::channel();
    runner.poll(done);
    answer.await.unwrap();
    assert_eq!(step(&mut inbox).await, (Unknown, Up));
}

#[tokio::test(start_paused = true)]
async fn a_local_error_changes_nothing() {
    let (reports, mut inbox) = mpsc::channel(16);
    let runner = spawn_with(reports, 10, SEED, move |_target: Arc<Target>| async move {
        let error = CheckError::Local { stage: crate::health::Stage::Connect, errno: libc::EMFILE };
        Examined::verdict(Err(error))
    });
    runner.set_targets(vec![(target(1), Up)]);
    for _ in 0..10 {
        assert_eq!(step(&mut inbox).await, (Up, Up));
    }
}

#[test]
fn descriptors_are_left_to_others() {
    assert!((1..=MAX_CONCURRENT).contains(&concurrency()));
}

/// Real time and sockets: a mail server that is stopped and started again.
#[tokio::test]
async fn a_mail_server_dies_and_returns() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = Arc::new(Notify::new());
    let server = tokio::spawn({
        let healthy = Arc::clone(&healthy);
        let seen = Arc::clone(&seen);
        async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                seen.notify_one();
                let greeting: &[u8] = if healthy.load(Ordering::SeqCst) {
                    b"220 ok\r\n250 ok\r\n221 ok\r\n"
                } else {
                    b"421 no\r\n"
                };
                stream.write_all(greeting).await.unwrap();
                let mut sink = Vec::new();
                // The client ends its part with QUIT and then waits for the close.
                while !sink.ends_with(b"QUIT\r\n") {
                    if tokio::io::AsyncReadExt::read_buf(&mut stream, &mut sink).await.unwrap() == 0 {
                        break;
                    }
                }
            }
        }
    });
    let (reports, mut inbox) = mpsc::channel(64);
    let runner = spawn(reports);
    let watched = target_at(address, Duration::from_millis(500));
    runner.set_targets(vec![(watched, Unknown)]);
    assert_eq!(step(&mut inbox).await, (Unknown, Up));
    seen.notified().await;

    healthy.store(false, Ordering::SeqCst);
    let poll = async || {
        let (done, answer) = oneshot::channel();
        runner.poll(done);
        answer.await.unwrap();
    };
    let mut failures = 0;
    loop {
        poll().await;
        let report = next(&mut inbox).await;
        if let Err(error) = report.result {
            assert_eq!(error.number(), 31);
            failures += 1;
        }
        if report.health == Down {
            break;
        }
    }
    assert_eq!(failures, 3);

    healthy.store(true, Ordering::SeqCst);
    while next(&mut inbox).await.health != Up {}

    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    loop {
        let report = next(&mut inbox).await;
        if report.health == Down {
            assert_eq!(report.result, Err(CheckError::Refused));
            break;
        }
    }
}
