//! What packaging/matapa.service asks of the daemon: that it gets by with few privileges, and tells how it stands.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use lb_lab::traffic::EchoServer;
use lb_lab::wait_until;

use crate::support::{ECHO, Rig, TCP_CHECK, assert_prompt, binary, echo_config, root};

const LIMIT: Duration = Duration::from_secs(20);

/// `--bounding-set` of setpriv(1) for these capabilities.
fn bounding(capabilities: &str) -> String {
    let names = capabilities.split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase());
    names.fold("--bounding-set=-all".to_owned(), |all, name| format!("{all},+{name}"))
}

/// What a line of the unit says, without repetition.
fn setting(unit: &Path, key: &str) -> String {
    let text = std::fs::read_to_string(unit).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key} in {}", unit.display())).to_owned()
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn few_privileges_are_enough_and_the_service_manager_is_told() {
    let unit = root().join("packaging/matapa.service");
    let capabilities = setting(&unit, "CapabilityBoundingSet");
    let rig = Rig::prepare(&echo_config(TCP_CHECK), &["mx1", "mx2"]);
    let echo: Vec<EchoServer> =
        rig.topology.servers.iter().map(|server| EchoServer::start(server, ECHO).unwrap()).collect();
    let notify = rig.lab().directory().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let hear = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = rig.lab().command("setpriv").unwrap();
    command.arg("--no-new-privs").arg(bounding(&capabilities)).arg("--").arg(binary());
    command
        .env("MATAPA_PIN_DIR", rig.matapa.pins())
        .env("NOTIFY_SOCKET", &notify)
        .env("WATCHDOG_USEC", "30000000");
    command.arg("--socket").arg(rig.matapa.socket()).arg("run");
    command.arg("-c").arg(rig.lab().directory().join("gateway.toml"));
    let mut daemon = rig.lab().start(&rig.gateway().netns, "unit", command).unwrap();
    wait_until("the daemon to answer", LIMIT, || {
        daemon.check_running()?;
        Ok(rig.matapa.status().ok())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", daemon.log()));
    assert_eq!(hear(), "READY=1");
    // Every second.
    assert_eq!([hear(), hear()], ["WATCHDOG=1", "WATCHDOG=1"]);
    rig.matapa.wait_healthy(LIMIT).unwrap();
    assert_prompt(&rig.connect_echo());
    // Both load other instances of the program.
    for words in [
        &["explain", "192.0.2.2:40000", "203.0.113.10:7"][..],
        &["trace", "proto", "udp", "--duration", "1s"],
    ] {
        let done = rig.matapa.cli(words).unwrap();
        assert!(done.ok(), "{done:?}");
    }
    let log = daemon.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    daemon.terminate(LIMIT).unwrap();
    let last = std::iter::repeat_with(hear).take(10).find(|heard| heard != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    rig.matapa.detach().unwrap();
    rig.matapa.check_nothing_left().unwrap();
    drop((echo, daemon));
    rig.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn programs_of_checks_need_what_the_drop_in_allows() {
    let capabilities = |file: &str| setting(&root().join("packaging").join(file), "CapabilityBoundingSet");
    let unit = capabilities("matapa.service");
    let both = format!("{unit} {}", capabilities("exec-checks.conf"));
    let check =
        "type = \"exec\", command = \"/bin/true\", interval = \"300ms\", timeout = \"200ms\", rise = 1";
    let rig = Rig::prepare(&echo_config(&format!("check = {{ {check} }}")), &["mx1", "mx2"]);
    for (capabilities, number) in [(&unit, Some(83)), (&both, None)] {
        let mut command = rig.lab().command("setpriv").unwrap();
        command.arg("--no-new-privs").arg(bounding(capabilities)).arg("--").arg(binary());
        command.env("MATAPA_PIN_DIR", rig.matapa.pins()).arg("--socket").arg(rig.matapa.socket());
        command.arg("run").arg("-c").arg(rig.lab().directory().join("gateway.toml"));
        let mut daemon = rig.lab().start(&rig.gateway().netns, "unit", command).unwrap();
        let result = wait_until("a check's result", LIMIT, || {
            daemon.check_running()?;
            let Ok(checks) = rig.matapa.checks() else { return Ok(None) };
            Ok(checks.backends.first().and_then(|one| one.results.first().cloned()))
        });
        let result = result.unwrap_or_else(|error| panic!("{error:#}: {}", daemon.log()));
        assert_eq!(result.error_number, number, "{result:?}");
        daemon.terminate(LIMIT).unwrap();
    }
    rig.matapa.detach().unwrap();
    rig.remove();
}

/// Capabilities (capability.h) in the sets of all threads of a process: none is left to be inherited, and nothing gives
/// new ones.
fn assert_capabilities(pid: u32, permitted: &[u32], bounding: &[u32]) {
    let mask = |bits: &[u32]| bits.iter().map(|bit| 1 << bit).sum::<u64>();
    let tasks: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().collect();
    assert!(!tasks.is_empty());
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
        };
        for (name, wanted) in [
            ("CapInh", 0),
            ("CapPrm", mask(permitted)),
            ("CapEff", mask(permitted)),
            ("CapBnd", mask(bounding)),
            ("CapAmb", 0),
            ("NoNewPrivs", 1),
        ] {
            assert_eq!(field(name), wanted, "{name} of a thread:\n{status}");
        }
    }
}

/// The process that checks servers for the daemon.
fn checker(daemon: u32) -> u32 {
    let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let children = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap());
    let children: String = children.collect();
    let pids: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let [pid] = pids[..] else { panic!("{pids:?}") };
    pid
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_daemon_that_root_has_started_keeps_what_it_needs_only() {
    let mut rig = Rig::prepare(&echo_config(TCP_CHECK), &["mx1", "mx2"]);
    let echo: Vec<EchoServer> =
        rig.topology.servers.iter().map(|server| EchoServer::start(server, ECHO).unwrap()).collect();
    rig.matapa.start().unwrap();
    rig.matapa.wait_healthy(LIMIT).unwrap();
    let daemon = rig.matapa.status().unwrap().pid;
    // CHOWN, DAC_READ_SEARCH, KILL, SETGID, SETUID, NET_BIND_SERVICE, NET_ADMIN, NET_RAW, PERFMON, BPF.
    let needed = [0, 2, 5, 6, 7, 10, 12, 13, 38, 39];
    assert_capabilities(daemon, &needed, &needed);
    // NET_RAW. No program could be started that might get more.
    assert_capabilities(checker(daemon), &[13], &needed);
    drop(echo);
    rig.finish();
}
