//! What is said of single packets, before they come and while they do.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use lb_lab::topology::{VIP_V4, VIP_V6};
use lb_lab::traffic::EchoServer;
use lb_lab::traffic::udp::{UdpEcho, UdpStream};
use lb_lab::{Process, wait_until};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{ECHO, NO_CHECK, Rig, assert_prompt, echo_config, interfaces, service};

/// `matapa explain --json`.
fn explain(rig: &Rig, source: SocketAddr, destination: &str, more: &[&str]) -> Value {
    let source = source.to_string();
    let mut args = vec!["explain", &source, destination, "--json"];
    args.extend(more);
    let text = rig.matapa.cli(&args).unwrap().expect("matapa explain").unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Connects from this very address and port; says which server greets.
fn connect(rig: &Rig, source: SocketAddr, target: SocketAddr) -> (TcpStream, String) {
    let stream = rig.client().run(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&source.into()).unwrap();
        socket.connect_timeout(&target.into(), Duration::from_secs(3)).unwrap();
        TcpStream::from(socket)
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut greeting = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut greeting).unwrap();
    (stream, greeting.trim().to_owned())
}

fn client(rig: &Rig, v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(rig.topology.clients[0].address(v6), port)
}

fn vip(v6: bool) -> IpAddr {
    if v6 { VIP_V6.into() } else { VIP_V4.into() }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_connection_goes_where_it_was_said_to_go() {
    let config = interfaces()
        + &service("echo", ECHO, "tcp", NO_CHECK, &[1, 2])
        + &service("echo-udp", ECHO, "udp", NO_CHECK, &[1, 2]);
    let (rig, echoes) = Rig::start(&config, |_, host| {
        (EchoServer::start(host, ECHO).unwrap(), UdpEcho::start(host, ECHO).unwrap())
    });
    // Neighbours are known after that, and no packet comes by itself any more.
    assert_prompt(&rig.connect_echo());
    std::thread::sleep(Duration::from_millis(500));
    let mut open = Vec::new();
    let mut greeted = std::collections::BTreeSet::new();
    for (number, v6) in (0..12).map(|number| (number, number % 2 == 1)) {
        let source = client(&rig, v6, 41_000 + number);
        let target = SocketAddr::new(vip(v6), ECHO);
        let (counters, flows) = (rig.matapa.counters().unwrap().counters, rig.matapa.flows().unwrap());
        let told = explain(&rig, source, &target.to_string(), &[]);
        // The neighbours ask for each other now and then.
        for (name, counter) in rig.matapa.counters().unwrap().counters {
            assert!(
                name == "not_ip" || name == "other_protocol" || counter.value == counters[&name].value,
                "{name}"
            );
        }
        assert_eq!(rig.matapa.flows().unwrap().total, flows.total, "a flow was recorded");
        assert_eq!(told["reason"], "to_backend", "{told}");
        assert_eq!(told["action"], "redirect", "{told}");
        assert_eq!(told["flow"]["known"], false, "{told}");
        assert_eq!(told["packet"]["interface"], "ext", "{told}");
        assert_eq!(told["next_hop"]["interface"], "int", "{told}");
        assert_eq!(told["mode"], "nat", "{told}");
        let named = told["backend"]["name"].as_str().unwrap().to_owned();
        let (stream, server) = connect(&rig, source, target);
        assert_eq!(named.trim_end_matches("-v6"), server, "{told}");
        let known = explain(&rig, source, &target.to_string(), &["--ack"]);
        assert_eq!(known["flow"]["known"], true, "{known}");
        assert_eq!(known["flow"]["state"], "established", "{known}");
        assert!(known["flow"]["idle_seconds"].as_u64().unwrap() <= 2, "{known}");
        assert_eq!(known["backend"]["name"], named, "{known}");
        // And back again, from the server.
        let address = rig.server(if server == "mx1" { 1 } else { 2 }).address(v6);
        let back = explain(&rig, SocketAddr::new(address, ECHO), &source.to_string(), &["--ack"]);
        assert_eq!(back["reason"], "to_client", "{back}");
        assert_eq!(back["from_backend"], true, "{back}");
        assert_eq!(back["flow"]["state"], "established", "{back}");
        assert_eq!(back["packet"]["interface"], "int", "{back}");
        greeted.insert(server);
        open.push(stream);
    }
    assert_eq!(greeted.len(), 2, "one server only: {greeted:?}");
    let udp = explain(&rig, client(&rig, false, 5000), &format!("{VIP_V4}:{ECHO}/udp"), &[]);
    assert_eq!(
        (udp["reason"].as_str(), udp["listener"]["service"].as_str()),
        (Some("to_backend"), Some("echo-udp"))
    );
    let none = explain(&rig, client(&rig, false, 5000), &format!("{VIP_V4}:9"), &["--interface", "ext"]);
    assert_eq!((none["reason"].as_str(), none["action"].as_str()), (Some("no_service"), Some("pass")));
    let text = rig.matapa.cli(&["explain", "192.0.2.2:1", &format!("{VIP_V4}:{ECHO}")]).unwrap();
    let text = text.expect("matapa explain").unwrap();
    assert!(text.contains("It is for the service echo"), "{text}");
    drop((open, echoes));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn questions_that_make_no_sense_are_refused() {
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    for (args, code, says) in [
        (vec!["explain", "192.0.2.2", "203.0.113.10:7"], 2, "has no port"),
        (vec!["explain", "192.0.2.2:1", "203.0.113.10:7", "--interface", "lo"], 1, "it is on ext, int"),
        (vec!["explain", "192.0.2.2:1", "203.0.113.10:7", "--vlan", "9999"], 2, "from 1 to 4094"),
    ] {
        let finished = rig.matapa.cli(&args).unwrap();
        assert_eq!(finished.code(), Some(code), "{args:?}: {finished:?}");
        assert!(format!("{finished:?}").contains(says), "{args:?}: {finished:?}");
    }
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
}

/// A running `matapa trace --json`.
struct Trace(Process);

impl Trace {
    /// Returns when packets are traced.
    fn start(rig: &Rig, label: &str, words: &[&str]) -> Self {
        let command = rig.matapa.command(&[&["trace", "--json"], words].concat()).unwrap();
        let trace = Self(rig.lab().start(&rig.gateway().netns, label, command).unwrap());
        wait_for_program(rig, "matapa_trace");
        trace
    }

    fn lines(&self) -> Vec<Value> {
        self.0.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of which all these are true.
    fn wait(&self, wanted: &[(&str, Value)]) -> Value {
        wait_until(&format!("a line with {wanted:?}"), Duration::from_secs(5), || {
            let fits = |line: &Value| wanted.iter().all(|(key, value)| line[*key] == *value);
            Ok(self.lines().into_iter().find(fits))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.0.log()))
    }
}

/// Number and name of the program on an interface of the gateway.
fn program(rig: &Rig, interface: &str) -> (u32, String) {
    let args = ["-details", "link", "show", "dev", interface];
    let text = rig.topology.run(&rig.gateway().netns, "ip", &args, Duration::from_secs(5)).unwrap();
    let text = text.expect("ip link show").unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != "prog/xdp").skip(1);
    let mut next = |key: &str| {
        assert_eq!(words.next(), Some(key), "{text}");
        words.next().unwrap().to_owned()
    };
    (next("id").parse().unwrap(), next("name"))
}

fn wait_for_program(rig: &Rig, name: &str) {
    for interface in ["ext", "int"] {
        wait_until(&format!("{name} on {interface}"), Duration::from_secs(10), || {
            Ok((program(rig, interface).1 == name).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    }
}

/// Names of the pins.
fn pins(rig: &Rig) -> Vec<String> {
    let entries = std::fs::read_dir(rig.matapa.pins()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_trace_shows_a_connection_and_leaves_nothing_behind() {
    let (rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    assert_prompt(&rig.connect_echo());
    let plain = ["ext", "int"].map(|interface| program(&rig, interface));
    assert_eq!(plain[0].1, "matapa_xdp");
    let before = pins(&rig);
    let mut trace = Trace::start(&rig, "trace", &["service", "echo"]);
    let other = Trace::start(&rig, "other", &["dst", "192.0.2.0/24", "port", "41007"]);
    for (port, v6) in [(41_007, false), (41_008, true)] {
        let source = client(&rig, v6, port);
        let (stream, server) = connect(&rig, source, SocketAddr::new(vip(v6), ECHO));
        drop(stream);
        let name = if v6 { format!("{server}-v6") } else { server };
        let client = source.ip().to_string();
        let syn = trace.wait(&[
            ("source", client.clone().into()),
            ("source_port", port.into()),
            ("destination", vip(v6).to_string().into()),
            ("flags", "S".into()),
            ("reason", "to_backend".into()),
        ]);
        assert_eq!((&syn["backend"], &syn["service"]), (&name.clone().into(), &"echo".into()), "{syn}");
        assert_eq!((&syn["interface"], &syn["action"]), (&"ext".into(), &"redirect".into()), "{syn}");
        assert_eq!(syn["steps"][0], "for the service echo", "{syn}");
        let answer = trace.wait(&[
            ("destination", client.clone().into()),
            ("destination_port", port.into()),
            ("flags", "S.".into()),
            ("reason", "to_client".into()),
        ]);
        assert_eq!((&answer["backend"], &answer["interface"]), (&name.into(), &"int".into()), "{answer}");
        trace.wait(&[("source_port", port.into()), ("flags", ".".into()), ("reason", "to_backend".into())]);
    }
    // Only what its filter wants.
    let lines = other.lines();
    assert!(!lines.is_empty(), "nothing of the other trace");
    for line in lines {
        assert_eq!(
            (&line["destination_port"], &line["interface"]),
            (&41_007.into(), &"int".into()),
            "{line}"
        );
    }
    // Flows and counters are those of any packet.
    let counters = rig.matapa.counters().unwrap().counters;
    assert!(counters["to_backend"].value > 0 && counters["to_client"].value > 0);
    // One of two ends, the other goes on; killed, it says nothing.
    drop(other);
    std::thread::sleep(Duration::from_millis(500));
    wait_for_program(&rig, "matapa_trace");
    trace.0.kill().unwrap();
    wait_for_program(&rig, "matapa_xdp");
    assert_eq!(["ext", "int"].map(|interface| program(&rig, interface)), plain);
    wait_until("the pins of before", Duration::from_secs(3), || Ok((pins(&rig) == before).then_some(())))
        .unwrap();
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn traces_end_by_count_and_by_time_and_outlast_a_reload() {
    let config = interfaces()
        + &service("echo", ECHO, "tcp", NO_CHECK, &[1, 2])
        + &service("echo-udp", ECHO, "udp", NO_CHECK, &[1, 2]);
    let (rig, servers) = Rig::start(&config, |_, host| {
        (EchoServer::start(host, ECHO).unwrap(), UdpEcho::start(host, ECHO).unwrap())
    });
    let stream =
        UdpStream::start(rig.client(), SocketAddr::new(vip(false), ECHO), Duration::from_millis(2)).unwrap();
    let prober = rig.prober();
    for _ in 0..2 {
        let counted = rig.matapa.cli(&["trace", "service", "echo", "proto", "tcp", "--count", "7"]).unwrap();
        let text = counted.expect("matapa trace --count").unwrap();
        assert_eq!(text.lines().count(), 7, "{text}");
        wait_for_program(&rig, "matapa_xdp");
    }
    let timed =
        rig.matapa.cli(&["trace", "proto", "udp", "--duration", "2s", "--rate", "5", "--json"]).unwrap();
    let text = timed.expect("matapa trace --duration").unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Five at once, and five a second.
    assert!((6..=16).contains(&lines.len()), "{text}");
    let missed: u64 = lines.iter().map(|line| line["missed"].as_u64().unwrap()).sum();
    assert!(missed > 100, "{missed} of some hundred packets a second were not told of");
    // The other mode is another attachment, and the trace goes on over it.
    let trace = Trace::start(&rig, "trace", &["service", "echo"]);
    rig.matapa.write_config(&("xdp_mode = \"generic\"\n".to_owned() + &config)).unwrap();
    rig.matapa.reload().unwrap();
    wait_for_program(&rig, "matapa_trace");
    let before = trace.lines().len();
    wait_until("further packets", Duration::from_secs(3), || {
        Ok((trace.lines().len() > before + 10).then_some(()))
    })
    .unwrap();
    drop(trace);
    wait_for_program(&rig, "matapa_xdp");
    let result = stream.finish().unwrap();
    assert!(result.sent > 500, "only {} sent", result.sent);
    let lost = result.lost.len();
    // To change the mode the program is taken off for a moment.
    assert!(lost * 50 < result.sent as usize, "{lost} of {} lost", result.sent);
    assert!(prober.finish().unwrap().len() > 50);
    drop(servers);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn swapping_programs_loses_no_packet() {
    let config = interfaces()
        + &service("echo", ECHO, "tcp", NO_CHECK, &[1, 2])
        + &service("echo-udp", ECHO, "udp", NO_CHECK, &[1, 2]);
    let (rig, servers) = Rig::start(&config, |_, host| {
        (EchoServer::start(host, ECHO).unwrap(), UdpEcho::start(host, ECHO).unwrap())
    });
    assert_prompt(&rig.connect_echo());
    let stream =
        UdpStream::start(rig.client(), SocketAddr::new(vip(false), ECHO), Duration::from_millis(1)).unwrap();
    let prober = rig.prober();
    for _ in 0..3 {
        let trace = Trace::start(&rig, "trace", &["port", "9"]);
        std::thread::sleep(Duration::from_millis(300));
        drop(trace);
        wait_for_program(&rig, "matapa_xdp");
        std::thread::sleep(Duration::from_millis(300));
    }
    let result = stream.finish().unwrap();
    assert!(result.sent > 500, "only {} sent", result.sent);
    assert!(result.lost.is_empty(), "{} of {} lost: {:?}", result.lost.len(), result.sent, result.lost);
    assert_prompt(&prober.finish().unwrap());
    drop(servers);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_daemon_that_is_killed_while_it_traces_forwards_on_and_starts_plain() {
    let (mut rig, echo) = Rig::echo(&echo_config(NO_CHECK));
    let trace = Trace::start(&rig, "trace", &["service", "echo"]);
    rig.matapa.kill().unwrap();
    assert_eq!(program(&rig, "ext").1, "matapa_trace");
    // For those that are traced and for those that are not.
    assert_prompt(&rig.connect_echo());
    drop(trace);
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    wait_for_program(&rig, "matapa_xdp");
    assert_prompt(&rig.connect_echo());
    let stages: Vec<_> = pins(&rig).into_iter().filter(|name| name.starts_with("stages")).collect();
    assert_eq!(stages, ["stages"]);
    let trace = Trace::start(&rig, "trace", &["port", "9"]);
    rig.matapa.kill().unwrap();
    assert_prompt(&rig.connect_echo());
    drop(trace);
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    wait_for_program(&rig, "matapa_xdp");
    // Stopped properly it leaves the plain program.
    let trace = Trace::start(&rig, "trace", &["service", "echo"]);
    assert!(rig.matapa.stop().unwrap().success());
    assert_eq!(program(&rig, "int").1, "matapa_xdp");
    drop(trace);
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.matapa.start().unwrap();
    rig.finish();
}
