//! Several pools, weights by hand, services that are taken out of use, slow starts: as clients see them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::matapa::types::EventKind;
use lb_lab::traffic::prober::{Attempt, shares};
use lb_lab::traffic::{Dialect, EchoServer, Flows, Prober};
use lb_lab::wait_until;

use crate::support::{ECHO, PROMPT, Rig, TCP_CHECK, assert_prompt, interfaces, servers, vips};

const DETECTION: Duration = Duration::from_secs(3);

/// `mx1` and `mx2` with these lines, and `mx3` behind them, for a service with those.
fn config(pool: &str, service: &str) -> String {
    let mut text = interfaces();
    for (name, lines, numbers) in [("mx", pool, 1..=2), ("spool", "", 3..=3)] {
        writeln!(text, "[pools.{name}]\n{TCP_CHECK}\n{lines}\nbackends = [").unwrap();
        for number in numbers {
            let host = number + 10;
            writeln!(text, "  {{ name = \"mx{number}\", address = \"198.51.100.{host}\" }},").unwrap();
            writeln!(text, "  {{ name = \"mx{number}-v6\", address = \"2001:db8:64::{host}\" }},").unwrap();
        }
        text.push_str("]\n");
    }
    let vips = vips(ECHO);
    writeln!(text, "[services.echo]\nlisten = [\"{}\", \"{}\"]", vips[0], vips[1]).unwrap();
    writeln!(text, "pool = \"mx\"\nbackup = \"spool\"\n{service}").unwrap();
    text
}

fn rig(pool: &str, service: &str) -> (Rig, Vec<EchoServer>) {
    let serve = |_: &_, host: &_| EchoServer::start(host, ECHO).unwrap();
    Rig::start_with(&config(pool, service), &["mx1", "mx2", "mx3"], serve)
}

const POOL: [&str; 4] = ["mx1", "mx1-v6", "mx2", "mx2-v6"];
const BACKUP: [&str; 2] = ["mx3", "mx3-v6"];

fn unplug_pool(rig: &Rig) {
    for number in [1, 2] {
        rig.server(number).unplug().unwrap();
    }
    rig.matapa.wait_up(&BACKUP, DETECTION).unwrap();
}

fn plug_pool(rig: &Rig) {
    for number in [1, 2] {
        rig.server(number).plug().unwrap();
    }
    rig.matapa.wait_up(&[POOL, ["mx3", "mx3-v6", "", ""]].concat(), Duration::from_secs(5)).unwrap();
}

fn open(rig: &Rig) -> Flows {
    Flows::open(rig.client(), vips(ECHO), 30, Dialect::Echo, Duration::from_millis(50)).unwrap()
}

/// Every connection exchanges something from now on.
fn assert_goes_on(flows: &Flows) {
    let before = flows.snapshot();
    wait_until("every connection to go on", Duration::from_secs(3), || {
        let now = flows.snapshot();
        let goes_on = |(old, new): (&lb_lab::traffic::flows::Flow, &lb_lab::traffic::flows::Flow)| {
            new.alive() && new.exchanges > old.exchanges
        };
        Ok(before.iter().zip(&now).all(goes_on).then_some(()))
    })
    .unwrap();
}

fn cli(rig: &Rig, line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    rig.matapa.cli(&words).unwrap().expect(line).unwrap()
}

fn restart(rig: &mut Rig) {
    rig.matapa.kill().unwrap();
    rig.matapa.start().unwrap();
}

/// Over IPv4 alone, so that one weight tells the share.
fn share_of_mx1(rig: &Rig, time: Duration) -> f64 {
    let attempts = Rig::connect(rig.client(), vec![vips(ECHO)[0]], time);
    assert_prompt(&attempts);
    let mine = shares(&attempts).get(&Some("mx1".to_owned())).copied().unwrap_or_default();
    mine as f64 / attempts.len() as f64
}

/// Attempts that are given up soon.
fn try_to_connect(rig: &Rig, targets: Vec<SocketAddr>) -> Vec<Attempt> {
    let limit = Duration::from_millis(700);
    let prober = Prober::start(rig.client(), targets, Duration::from_millis(20), limit).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    prober.finish().unwrap()
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_backup_takes_new_connections_and_keeps_them_when_the_pool_returns() {
    let (mut rig, echoes) = rig("", "");
    let monitor = rig.matapa.monitor().unwrap();
    assert_eq!(servers(&rig.connect_echo()), ["mx1", "mx2"]);
    let start = Instant::now();
    unplug_pool(&rig);
    let told = |wanted: &[&str], wanted_backup: bool| {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        move |kind: &EventKind| matches!(kind, EventKind::Pools { service, using, backup } if service == "echo" && *using == wanted && *backup == wanted_backup)
    };
    monitor.wait("the backup", start, DETECTION, told(&["spool"], true)).unwrap();
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx3"]);
    assert!(cli(&rig, "show").contains("active (using backup pool)"), "{}", cli(&rig, "show"));

    // A new daemon goes on with what is in use.
    let flows = open(&rig);
    restart(&mut rig);
    assert_eq!(servers(&rig.connect_echo()), ["mx3"]);
    assert_goes_on(&flows);

    // The way back, while somebody connects all the time.
    let monitor = rig.matapa.monitor().unwrap();
    let prober = rig.prober();
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    plug_pool(&rig);
    monitor.wait("the pool", start, DETECTION, told(&["mx"], false)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let attempts = prober.finish().unwrap();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx1", "mx2", "mx3"], "until then mx3");
    assert_eq!(servers(&rig.connect_echo()), ["mx1", "mx2"]);
    assert_goes_on(&flows);
    assert!(flows.snapshot().iter().all(|flow| flow.server.as_deref() == Some("mx3")));
    drop((monitor, flows, echoes));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_pool_must_be_there_for_a_while_before_connections_return() {
    let (rig, echoes) = rig("", "backup_hold = \"3s\"");
    unplug_pool(&rig);
    let monitor = rig.matapa.monitor().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    plug_pool(&rig);
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx3"]);
    let returned = |kind: &EventKind| matches!(kind, EventKind::Pools { using, .. } if *using == ["mx"]);
    monitor.wait("the pool", start, Duration::from_secs(8), returned).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(servers(&rig.connect_echo()), ["mx1", "mx2"]);
    drop((monitor, echoes));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_weight_by_hand_moves_new_connections_and_outlives_reload_and_restart() {
    let (mut rig, echoes) = rig("", "");
    let second = Duration::from_secs(1);
    let share = share_of_mx1(&rig, second);
    assert!((0.25..0.75).contains(&share), "{share}");
    let flows = open(&rig);
    assert_eq!(cli(&rig, "backend weight mx1 19"), "echo/mx1: weight 19 (file: 1)\n");
    let share = share_of_mx1(&rig, second);
    assert!(share > 0.8, "{share}");
    cli(&rig, "backend weight mx1 0");
    assert_eq!(share_of_mx1(&rig, second / 2), 0.0);
    rig.matapa.reload().unwrap();
    assert_eq!(share_of_mx1(&rig, second / 2), 0.0);
    restart(&mut rig);
    assert_eq!(share_of_mx1(&rig, second / 2), 0.0);
    assert!(cli(&rig, "show backends").contains("0 (file: 1)"));
    assert_goes_on(&flows);
    assert_eq!(cli(&rig, "backend weight mx1 file"), "echo/mx1: weight 1\n");
    let share = share_of_mx1(&rig, second);
    assert!((0.25..0.75).contains(&share), "{share}");
    drop((flows, echoes));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_disabled_service_takes_no_new_connections_and_keeps_its_own() {
    let (mut rig, echoes) = rig("", "");
    let flows = open(&rig);
    assert_eq!(cli(&rig, "service disable echo"), "echo: disabled\n");
    let refused = |rig: &Rig| {
        let attempts = try_to_connect(rig, vips(ECHO));
        assert!(attempts.len() > 5 && attempts.iter().all(|one| !one.prompt(PROMPT)), "{attempts:?}");
        assert_eq!(rig.matapa.status().unwrap().service("echo").unwrap().state, "disabled");
    };
    refused(&rig);
    rig.matapa.reload().unwrap();
    refused(&rig);
    restart(&mut rig);
    refused(&rig);
    assert_goes_on(&flows);
    assert_eq!(cli(&rig, "service enable echo"), "echo: enabled\n");
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx1", "mx2"]);
    assert_goes_on(&flows);
    // As the file says.
    rig.matapa.write_config(&config("", "enabled = false")).unwrap();
    rig.matapa.reload().unwrap();
    refused(&rig);
    assert_goes_on(&flows);
    drop((flows, echoes));
    rig.finish();
}

/// No backend is in its slow start, which takes ten seconds.
fn wait_whole(rig: &Rig) {
    wait_until("the end of the slow starts", Duration::from_secs(12), || {
        Ok((!cli(rig, "show backends").contains("1 at ")).then_some(()))
    })
    .unwrap();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_server_that_comes_up_gets_its_share_little_by_little() {
    let (rig, echoes) = rig("slow_start = \"10s\"", "");
    // At the start all rise alike: each has its half.
    let share = share_of_mx1(&rig, Duration::from_millis(800));
    assert!((0.2..0.8).contains(&share), "{share}");
    wait_whole(&rig);
    rig.server(1).unplug().unwrap();
    rig.matapa.wait_up(&[&POOL[2..], &BACKUP].concat(), DETECTION).unwrap();
    rig.server(1).plug().unwrap();
    rig.matapa.wait_up(&[POOL, ["mx3", "mx3-v6", "", ""]].concat(), Duration::from_secs(5)).unwrap();
    let share = share_of_mx1(&rig, Duration::from_millis(900));
    assert!(share < 0.3, "{share}");
    assert!(cli(&rig, "show backends").contains("1 at "), "{}", cli(&rig, "show backends"));
    wait_whole(&rig);
    let share = share_of_mx1(&rig, Duration::from_millis(900));
    assert!((0.3..0.7).contains(&share), "{share}");
    drop(echoes);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_service_without_servers_refuses_at_once_if_it_is_told_to() {
    let (rig, echoes) = rig("", "when_empty = \"reset\"");
    let connect = |address: SocketAddr| {
        let start = Instant::now();
        let limit = Duration::from_secs(2);
        let outcome = rig.client().run(|| std::net::TcpStream::connect_timeout(&address, limit)).unwrap();
        (outcome.map_err(|error| error.kind()).map(drop), start.elapsed())
    };
    for vip in vips(ECHO) {
        assert_eq!(connect(vip).0, Ok(()), "{vip}");
    }
    let flows = open(&rig);
    cli(&rig, "service disable echo");
    for (when_empty, expected) in
        [("reset", std::io::ErrorKind::ConnectionRefused), ("drop", std::io::ErrorKind::TimedOut)]
    {
        rig.matapa.write_config(&config("", &format!("when_empty = \"{when_empty}\""))).unwrap();
        rig.matapa.reload().unwrap();
        for vip in vips(ECHO) {
            let (outcome, time) = connect(vip);
            assert_eq!(outcome, Err(expected), "{vip} {when_empty}");
            assert!(when_empty == "drop" || time < PROMPT, "{vip} {time:?}");
        }
        assert_goes_on(&flows);
    }
    let counters = rig.matapa.counters().unwrap().counters;
    assert!(counters["no_backend_refused"].value == 2 && counters["no_backend"].value >= 2, "{counters:?}");
    drop((flows, echoes));
    rig.finish();
}
