//! Every kind of check against a real server of its kind: good, wrong, and gone.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_lab::matapa::types::{BackendChecks, EventKind};
use lb_lab::topology::VIP_V4;
use lb_lab::traffic::dns::DnsServer;
use lb_lab::traffic::http::HttpServer;
use lb_lab::traffic::postfix::Postfix;
use lb_lab::traffic::smtp::Sink;
use lb_lab::traffic::tls::{Certificate, TlsServer};
use lb_lab::{Lab, wait_until};

use crate::support::{Rig, interfaces};

const LIMIT: Duration = Duration::from_secs(8);
const PACE: &str = "interval = \"300ms\", timeout = \"250ms\", rise = 1, fall = 1, jitter = \"0%\"";

/// A service for each check of mx1; `v6` are those that check its IPv6 address.
fn config(checks: &[(&str, &str)]) -> String {
    let mut text = interfaces();
    for (number, (name, check)) in checks.iter().enumerate() {
        let port = 1000 + number;
        let backend = if name.ends_with("-v6") { "2001:db8:64::11" } else { "198.51.100.11" };
        let vip = if name.ends_with("-v6") {
            format!("[{}]", lb_lab::topology::VIP_V6)
        } else {
            VIP_V4.to_string()
        };
        let pace = if check.contains("interval =") { "" } else { PACE };
        let comma = if pace.is_empty() { "" } else { ", " };
        writeln!(
            text,
            "[services.{name}]\nlisten = \"{vip}:{port}\"\nbackends = [{{ name = \"{name}\", address = \"{backend}\" }}]\n\
             check = {{ {check}{comma}{pace} }}"
        )
        .unwrap();
    }
    text
}

/// A gateway and mx1, with the daemon running.
fn start<T>(checks: &[(&str, &str)], serve: impl FnOnce(&Rig) -> T) -> (Rig, T) {
    let mut rig = Rig::prepare(&config(checks), &["mx1"]);
    let serving = serve(&rig);
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    (rig, serving)
}

/// The number of the newest result; 0: success.
fn newest(backend: &BackendChecks) -> Option<u16> {
    backend.results.first().map(|result| result.error_number.unwrap_or(0))
}

/// Waits until the newest results have these numbers, and the health goes with them.
fn expect(rig: &Rig, wanted: &[(&str, u16)]) {
    let mut last = String::new();
    wait_until("the checks to find what is there", LIMIT, || {
        let checks = rig.matapa.checks()?;
        last.clear();
        let mut right = true;
        for (name, number) in wanted {
            let backend = checks.backends.iter().find(|one| one.backend == *name).expect("a check");
            let health = if *number == 0 { "up" } else { "down" };
            let good = newest(backend) == Some(*number) && backend.health == health;
            if !good {
                writeln!(
                    last,
                    "{name}: wanted {number}, {} with {:?}",
                    backend.health,
                    backend.results.first()
                )?;
            }
            right &= good;
        }
        Ok(right.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{last}\n{}", rig.matapa.log()));
}

fn all(names: &[&'static str], number: u16) -> Vec<(&'static str, u16)> {
    names.iter().map(|name| (*name, number)).collect()
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn http_checks_of_nginx() {
    let checks = [
        ("tcp", "type = \"tcp\", port = 80"),
        ("good", "type = \"http\", port = 80"),
        ("head", "type = \"http\", port = 80, method = \"HEAD\", status = 200"),
        ("text", "type = \"http\", port = 80, body = \"mx1\""),
        ("good-v6", "type = \"http\", port = 80, body = \"mx1\", source = \"2001:db8:64::1\""),
        ("big", "type = \"http\", port = 80, path = \"/big\""),
        ("missing", "type = \"http\", port = 80, path = \"/nope\""),
        ("missing-is-good", "type = \"http\", port = 80, path = \"/nope\", status = [200, \"400-404\"]"),
        ("other-text", "type = \"http\", port = 80, body = \"mx2\""),
        ("too-long", "type = \"http\", port = 80, path = \"/big\", body = \"y\""),
        ("no-tls", "type = \"tls\", port = 80"),
        ("no-https", "type = \"https\", port = 80"),
        ("nobody", "type = \"http\", port = 81"),
    ];
    let (rig, mut nginx) = start(&checks, |rig| HttpServer::start(rig.lab(), rig.server(1), 80).unwrap());
    let good = ["tcp", "good", "head", "text", "good-v6", "big", "missing-is-good"];
    expect(&rig, &all(&good, 0));
    expect(
        &rig,
        &[
            ("missing", 36),
            ("other-text", 73),
            ("too-long", 57),
            ("no-tls", 61),
            ("no-https", 61),
            ("nobody", 1),
        ],
    );
    // Stopped, it still has the kernel accept connections for it.
    nginx.process.signal(libc::SIGSTOP).unwrap();
    expect(&rig, &[("tcp", 0), ("good", 16), ("text", 16), ("no-tls", 15)]);
    nginx.process.signal(libc::SIGCONT).unwrap();
    expect(&rig, &all(&good, 0));
    nginx.process.kill().unwrap();
    expect(&rig, &all(&good, 1));
    let results: Vec<usize> =
        rig.matapa.checks().unwrap().backends.iter().map(|one| one.results.len()).collect();
    assert!(results.iter().all(|count| (3..=10).contains(count)), "{results:?}");
    let table = rig.matapa.cli(&["show", "backends", "--checks"]).unwrap().expect("the table").unwrap();
    assert!(table.contains("wrong reply while waiting for the HTTP response: 404 Not Found"), "{table}");
    drop(nginx);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn tls_checks_of_openssl() {
    let lab = Lab::new().unwrap();
    let certificate = Certificate::make(&lab, "mx1.example", 5).unwrap();
    let ca = format!("ca_file = \"{}\"", certificate.authority.display());
    let named = format!("port = 443, server_name = \"mx1.example\", {ca}");
    let slow = "interval = \"2s\", timeout = \"1500ms\", fall = 1";
    let owned = [
        ("tls", format!("type = \"tls\", {named}, {slow}")),
        ("https", format!("type = \"https\", {named}, body = \"Cipher\", {slow}")),
        ("by-host", format!("type = \"https\", port = 443, host = \"mx1.example\", {ca}, {slow}")),
        ("any", format!("type = \"tls\", port = 443, verify = false, expiry_warning_days = 0, {slow}")),
        ("other-name", format!("type = \"tls\", port = 443, server_name = \"mx2.example\", {ca}, {slow}")),
        ("untrusted", format!("type = \"tls\", port = 443, server_name = \"mx1.example\", {slow}")),
    ];
    let checks: Vec<(&str, &str)> = owned.iter().map(|(name, check)| (*name, check.as_str())).collect();
    let mut rig = Rig::prepare(&config(&checks), &["mx1"]);
    let mut server = TlsServer::start(rig.lab(), rig.server(1), 443, &certificate).unwrap();
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    expect(&rig, &all(&["tls", "https", "by-host", "any"], 0));
    expect(&rig, &[("other-name", 65), ("untrusted", 66)]);
    // It ends within the fortnight that is warned of unless told otherwise.
    let log = rig.matapa.log();
    assert!(log.contains("tls/tls (198.51.100.11:443): the certificate ends in 4 days"), "{log}");
    assert!(!log.contains("any/any (198.51.100.11:443): the certificate"), "{log}");
    let table = rig.matapa.cli(&["show", "backends"]).unwrap().expect("the table").unwrap();
    assert!(table.contains("the certificate ends in 4 days"), "{table}");
    let checks = rig.matapa.checks().unwrap().backends;
    assert!(checks.iter().filter(|one| one.health == "up").all(|one| one.certificate_expires.is_some()));
    server.process.kill().unwrap();
    expect(&rig, &all(&["tls", "https", "by-host", "any"], 1));
    drop((server, lab));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_certificate_that_ends_soon_is_an_event() {
    let lab = Lab::new().unwrap();
    let certificate = Certificate::make(&lab, "mx1.example", 2).unwrap();
    let check = "type = \"tls\", port = 443, verify = false, interval = \"1s\", timeout = \"900ms\"";
    let mut rig = Rig::prepare(&config(&[("soon", check)]), &["mx1"]);
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    let monitor = rig.matapa.monitor().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let server = TlsServer::start(rig.lab(), rig.server(1), 443, &certificate).unwrap();
    monitor
        .wait(
            "the warning",
            start,
            LIMIT,
            |kind| matches!(kind, EventKind::Certificate { backend, days: 1, .. } if backend == "soon"),
        )
        .unwrap();
    drop((server, monitor, lab));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn dns_checks_of_dnsmasq() {
    let asks = "type = \"dns\", port = 53, query = \"who.lab.example\", record = \"TXT\"";
    let owned = [
        ("answer", format!("{asks}, answer = \"mx1\"")),
        ("answer-v6", format!("{asks}, answer = \"mx1\"")),
        ("tcp", format!("{asks}, answer = \"mx1\", transport = \"tcp\"")),
        ("any-answer", asks.to_owned()),
        ("other-answer", format!("{asks}, answer = \"mx2\"")),
        ("refused", "type = \"dns\", port = 53, query = \"www.example.com\", record = \"A\"".to_owned()),
        ("refused-is-good", "type = \"dns\", port = 53, rcode = \"REFUSED\"".to_owned()),
        ("nobody", "type = \"dns\", port = 54".to_owned()),
    ];
    let checks: Vec<(&str, &str)> = owned.iter().map(|(name, check)| (*name, check.as_str())).collect();
    let (rig, mut server) = start(&checks, |rig| DnsServer::start(rig.lab(), rig.server(1), 53).unwrap());
    let good = ["answer", "answer-v6", "tcp", "any-answer", "refused-is-good"];
    expect(&rig, &all(&good, 0));
    expect(&rig, &[("other-answer", 72), ("refused", 71), ("nobody", 1)]);
    server.process.signal(libc::SIGSTOP).unwrap();
    expect(&rig, &all(&good, 18));
    server.process.signal(libc::SIGCONT).unwrap();
    expect(&rig, &all(&good, 0));
    server.process.kill().unwrap();
    expect(&rig, &[("tcp", 1)]);
    // The kernel says so only so often to those that ask over UDP (icmp_ratelimit).
    wait_until("the others to be down", LIMIT, || {
        let backends = rig.matapa.checks()?.backends;
        let gone = |one: &BackendChecks| one.health == "down" && matches!(newest(one), Some(1 | 18));
        Ok(good.iter().all(|name| backends.iter().any(|one| one.backend == *name && gone(one))).then_some(()))
    })
    .unwrap();
    drop(server);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn mail_and_dialogue_checks_of_smtp_sink() {
    let steps = "steps = [{ expect_glob = \"220 mx1*\" }, { send = \"EHLO gw.example\\r\\n\", expect = \"250 \" }, \
                 { send_hex = \"51 55 49 54 0d 0a\", expect = \"221\" }]";
    let owned = [
        ("smtp", "type = \"smtp\", port = 25".to_owned()),
        ("smtp-v6", "type = \"smtp\", port = 25".to_owned()),
        ("no-starttls", "type = \"smtp\", port = 25, starttls = true".to_owned()),
        ("dialogue", format!("type = \"send-expect\", port = 25, {steps}")),
        ("banner", "type = \"send-expect\", port = 25, expect = \"ESMTP\"".to_owned()),
        ("other", "type = \"send-expect\", port = 25, expect_glob = \"+OK*\"".to_owned()),
    ];
    let checks: Vec<(&str, &str)> = owned.iter().map(|(name, check)| (*name, check.as_str())).collect();
    let (rig, mut sink) = start(&checks, |rig| Sink::start(rig.lab(), rig.server(1), 25).unwrap());
    let good = ["smtp", "smtp-v6", "dialogue", "banner"];
    expect(&rig, &all(&good, 0));
    expect(&rig, &[("no-starttls", 70), ("other", 74)]);
    sink.kill().unwrap();
    expect(&rig, &all(&good, 1));
    sink.restart().unwrap();
    expect(&rig, &all(&good, 0));
    drop(sink);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn checks_leave_no_error_in_postfix_log() {
    let lab = Lab::new().unwrap();
    let certificate = Certificate::make(&lab, "mx1.example", 30).unwrap();
    let named = format!("server_name = \"mx1.example\", ca_file = \"{}\"", certificate.authority.display());
    let pace = "interval = \"500ms\", timeout = \"450ms\", fall = 3";
    let owned = [
        ("plain", format!("type = \"smtp\", port = 25, {pace}")),
        ("secured", format!("type = \"smtp\", port = 25, starttls = true, {named}, {pace}")),
    ];
    let checks: Vec<(&str, &str)> = owned.iter().map(|(name, check)| (*name, check.as_str())).collect();
    let mut rig = Rig::prepare(&config(&checks), &["mx1"]);
    let postfix = Postfix::start(rig.lab(), rig.server(1), 25, &certificate).unwrap();
    let begin = postfix.log().len();
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    expect(&rig, &[("plain", 0), ("secured", 0)]);
    std::thread::sleep(Duration::from_secs(4));
    expect(&rig, &[("plain", 0), ("secured", 0)]);
    rig.matapa.stop().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let log = postfix.log()[begin..].to_owned();
    let plain = log.matches(" ehlo=1 quit=1 commands=2").count();
    let secured = log.matches(" ehlo=2 starttls=1 quit=1 commands=4").count();
    assert!(plain >= 6 && secured >= 6, "{plain} and {secured} sessions\n{log}");
    // The wait for the start was a bare connection; the last checks were cut off by the daemon's end.
    let own =
        |line: &&str| line.contains("lost connection after CONNECT") && line.contains("[198.51.100.11]");
    let bad = ["lost connection", "error", "warning", "timeout", "improper", "fatal", "alert"];
    let lines: Vec<&str> = log.lines().filter(|line| !own(line)).collect();
    let (whole, last) = lines.split_at(lines.len().saturating_sub(8));
    for line in whole {
        assert!(!bad.iter().any(|word| line.to_lowercase().contains(word)), "{line}\nlast: {last:#?}");
    }
    postfix.stop().unwrap();
    drop(lab);
    rig.matapa.detach().unwrap();
    rig.matapa.check_nothing_left().unwrap();
    rig.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn echo_requests() {
    let checks = [
        ("ping", "type = \"icmp\""),
        ("ping-v6", "type = \"icmp\""),
        ("from", "type = \"icmp\", source = \"198.51.100.1\""),
        ("nowhere", "type = \"icmp\", source = \"192.0.2.222\""),
    ];
    let (rig, ()) = start(&checks, |_| ());
    expect(&rig, &all(&["ping", "ping-v6", "from"], 0));
    let one = rig.matapa.checks().unwrap().backends;
    let nowhere = one.iter().find(|one| one.backend == "nowhere").unwrap();
    assert_eq!((nowhere.health.as_str(), newest(nowhere)), ("unknown", Some(90)), "{nowhere:?}");
    let ignore = |value| {
        let settings = [("ipv4/icmp_echo_ignore_all", value), ("ipv6/icmp/echo_ignore_all", value)];
        rig.server(1).netns.sysctl(&settings).unwrap();
    };
    ignore("1");
    expect(&rig, &all(&["ping", "ping-v6", "from"], 18));
    ignore("0");
    expect(&rig, &all(&["ping", "ping-v6", "from"], 0));
    rig.finish();
}

fn write_script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn programs_of_the_operator() {
    let lab = Lab::new().unwrap();
    // Where everybody may look.
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let state = directory.path().join("state");
    let file = |name: &str| directory.path().join(name).display().to_string();
    write_script(
        &directory.path().join("ask"),
        &format!("read code < {}; echo \"code $code for $1:$2\"; exit $code", state.display()),
    );
    write_script(&directory.path().join("whoami"), "test \"$(id -un)\" = nobody || { id; exit 5; }");
    write_script(&directory.path().join("hang"), &format!("sleep 1000 & echo $! >> {}; wait", file("pids")));
    write_script(&directory.path().join("whoelse"), "test \"$(id -un)\" = root || { id; exit 5; }");
    std::fs::write(&state, "0\n").unwrap();
    // Programs run as nobody.
    std::fs::write(file("pids"), "").unwrap();
    std::fs::set_permissions(file("pids"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let slow = "interval = \"1s\", timeout = \"900ms\", fall = 1";
    let mut owned = vec![
        (
            "ask".to_owned(),
            format!(
                "type = \"exec\", port = 25, command = [\"{}\", \"{{address}}\", \"{{port}}\"], {slow}",
                file("ask")
            ),
        ),
        (
            "whoami".to_owned(),
            format!("type = \"exec\", port = 25, command = \"{}\", {slow}", file("whoami")),
        ),
        (
            "whoelse".to_owned(),
            format!("type = \"exec\", port = 25, command = \"{}\", user = \"root\", {slow}", file("whoelse")),
        ),
        (
            "absent".to_owned(),
            format!("type = \"exec\", port = 25, command = \"{}\", {slow}", file("absent")),
        ),
        ("ping".to_owned(), "type = \"icmp\"".to_owned()),
    ];
    for number in 0..40 {
        // Not equal, or it would be one check.
        let check =
            format!("type = \"exec\", port = 25, command = [\"{}\", \"{number}\"], {slow}", file("hang"));
        owned.push((format!("hang{number}"), check));
    }
    let checks: Vec<(&str, &str)> =
        owned.iter().map(|(name, check)| (name.as_str(), check.as_str())).collect();
    let (rig, ()) = start(&checks, |_| ());
    expect(&rig, &[("ask", 0), ("whoami", 0), ("whoelse", 0), ("ping", 0), ("hang0", 110), ("hang39", 110)]);
    std::fs::write(&state, "3\n").unwrap();
    expect(&rig, &[("ask", 80), ("ping", 0)]);
    let now = rig.matapa.checks().unwrap().backends;
    let result = |name: &str| now.iter().find(|one| one.backend == name).unwrap().clone();
    assert_eq!(
        result("ask").results[0].error.as_deref(),
        Some("the command ended with exit code 3: code 3 for 198.51.100.11:25")
    );
    assert_eq!((result("absent").health.as_str(), newest(&result("absent"))), ("unknown", Some(190)));
    // Hanging programs do not hold up the others: ten results within ten intervals, and some time to start.
    let pings = wait_until("ten results", LIMIT, || {
        let backends = rig.matapa.checks()?.backends;
        Ok(backends.into_iter().find(|one| one.backend == "ping" && one.results.len() == 10))
    });
    let pings = pings.unwrap().results;
    let span = pings[0].time - pings[9].time;
    assert!(span < 5.0, "{span} s for ten checks");
    let (matapa, pids) = (rig, std::fs::read_to_string(file("pids")).unwrap());
    matapa.finish();
    // Neither do they outlive the daemon. A dead one may wait for init to take note.
    let runs = |pid: &&str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    let alive: Vec<&str> = pids.lines().filter(runs).collect();
    assert_eq!(alive, Vec::<&str>::new());
    drop(lab);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_change_in_sight_is_looked_at_faster() {
    let check = "type = \"tcp\", port = 25, interval = \"4s\", fast_interval = \"250ms\", timeout = \"200ms\", fall = 4";
    let (rig, mut sink) = start(&[("mail", check)], |rig| Sink::start(rig.lab(), rig.server(1), 25).unwrap());
    let monitor = rig.matapa.monitor().unwrap();
    expect(&rig, &[("mail", 0)]);
    let start = Instant::now();
    sink.kill().unwrap();
    monitor.wait_health("mail", "down", start, LIMIT).unwrap();
    // The first failure within an interval; the other three follow fast.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    let checks = rig.matapa.checks().unwrap().backends;
    let failures: Vec<f64> =
        checks[0].results.iter().filter(|one| one.error.is_some()).map(|one| one.time).collect();
    let fast = failures.windows(2).rev().take(3).map(|pair| pair[0] - pair[1]).fold(0.0, f64::max);
    assert!(fast < 0.6, "{failures:?}");
    drop((sink, monitor));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn equal_checks_of_several_services_are_made_once() {
    // Both services check port 25, so that what is asked does not depend on theirs.
    let check = "type = \"tcp\", port = 25, interval = \"200ms\", timeout = \"150ms\"";
    let (rig, sink) = start(&[("mail", check), ("submission", check)], |rig| {
        Sink::start(rig.lab(), rig.server(1), 25).unwrap()
    });
    expect(&rig, &[("mail", 0), ("submission", 0)]);
    let checks = rig.matapa.checks().unwrap().backends;
    let times = |name: &str| -> Vec<u64> {
        let backend = checks.iter().find(|one| one.backend == name).unwrap();
        backend.results.iter().map(|result| result.time.to_bits()).collect()
    };
    assert_eq!(times("mail"), times("submission"));
    drop(sink);
    rig.finish();
}
