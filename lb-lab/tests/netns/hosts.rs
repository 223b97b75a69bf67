//! Servers by their host names, which change while traffic flows.

use std::time::{Duration, Instant};

use lb_lab::matapa::types::{EventKind, HostStatus};
use lb_lab::traffic::{Dialect, EchoServer, Flows, NameServer};
use lb_lab::wait_until;

use crate::support::{ECHO, Rig, TCP_CHECK, assert_prompt, interfaces, servers, vips};

const PORT: u16 = 5353;
const HOST: &str = "mx.lab.example";
const MX1: &[&str] = &["198.51.100.11", "2001:db8:64::11"];
const MX2: &[&str] = &["198.51.100.12", "2001:db8:64::12"];
/// A TTL of a second, and a second of the daemon's.
const SOON: Duration = Duration::from_secs(6);

fn config() -> String {
    let vips = vips(ECHO);
    format!(
        "{}[resolver]\nservers = [\"198.51.100.13:{PORT}\"]\nmin_ttl = \"1s\"\n[flows]\nclosing = \"3s\"\n[services.echo]\n\
         listen = [\"{}\", \"{}\"]\nbackends = [\"{HOST}\"]\n{TCP_CHECK}\n",
        interfaces(),
        vips[0],
        vips[1]
    )
}

fn start() -> (Rig, Vec<EchoServer>) {
    let mut rig = Rig::prepare(&config(), &["mx1", "mx2", "ns"]);
    let echoes =
        rig.topology.servers[..2].iter().map(|host| EchoServer::start(host, ECHO).unwrap()).collect();
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    (rig, echoes)
}

fn serve(rig: &Rig, addresses: &[&str]) -> NameServer {
    NameServer::start(rig.lab(), rig.server(3), PORT, &[(HOST, addresses)]).unwrap()
}

fn host(rig: &Rig) -> HostStatus {
    rig.matapa.status().unwrap().service("echo").unwrap().hosts[0].clone()
}

/// The service has these backends and no others, all of them up.
fn wait_backends(rig: &Rig, addresses: &[&str]) {
    let mut wanted: Vec<String> = addresses.iter().map(|address| format!("{HOST}-{address}")).collect();
    wanted.sort_unstable();
    wait_until("the backends of the name", SOON, || {
        let status = rig.matapa.status()?;
        let backends = &status.service("echo").unwrap().backends;
        let mut names: Vec<&str> = backends.iter().map(|backend| backend.name.as_str()).collect();
        names.sort_unstable();
        let up = backends.iter().all(|backend| backend.health == "up");
        Ok((names == wanted && up).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
}

fn assert_goes_on(flows: &Flows, server: &str) {
    let before = flows.snapshot();
    wait_until("every connection to go on", Duration::from_secs(3), || {
        let now = flows.snapshot();
        Ok(before
            .iter()
            .zip(&now)
            .all(|(old, new)| new.alive() && new.exchanges > old.exchanges)
            .then_some(()))
    })
    .unwrap();
    assert!(flows.snapshot().iter().all(|flow| flow.server.as_deref() == Some(server)));
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_name_that_moves_takes_new_connections_along_and_leaves_the_old_ones_alone() {
    let (mut rig, echoes) = start();
    // Nobody answers yet: the daemon runs, says so, and asks again.
    let monitor = rig.matapa.monitor().unwrap();
    wait_until("the complaint", Duration::from_secs(15), || Ok(host(&rig).error)).unwrap();
    assert_eq!(rig.matapa.status().unwrap().service("echo").unwrap().state, "down");
    let screen = rig.matapa.cli(&["show", "backends"]).unwrap().expect("show backends").unwrap();
    assert!(screen.contains("unresolved"), "{screen}");
    let start = Instant::now();
    let mut names = serve(&rig, MX1);
    let found = |kind: &EventKind| matches!(kind, EventKind::Resolved { added, .. } if added.len() == 2);
    monitor.wait("the addresses", start, Duration::from_secs(20), found).unwrap();
    wait_backends(&rig, MX1);
    assert_eq!(servers(&rig.connect_echo()), ["mx1"]);

    let file = rig.lab().directory().join(format!("{}.toml", rig.matapa.gateway()));
    let check = ["check", "--resolve", "-c", file.to_str().unwrap()];
    let text = rig.matapa.cli(&check).unwrap().expect("check --resolve").unwrap();
    assert!(text.contains("mx.lab.example is 198.51.100.11, 2001:db8:64::11"), "{text}");

    let flows = Flows::open(rig.client(), vips(ECHO), 30, Dialect::Echo, Duration::from_millis(50)).unwrap();
    let prober = rig.prober();
    names.set(&[(HOST, MX2)]).unwrap();
    wait_until("the move", SOON, || {
        let host = host(&rig);
        let texts = |all: &[std::net::IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        Ok((texts(&host.addresses) == MX2 && texts(&host.leaving) == MX1).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx2"]);
    assert_goes_on(&flows, "mx1");
    // Nobody who connected meanwhile found nothing.
    let attempts = prober.finish().unwrap();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx1", "mx2"]);
    let screen = rig.matapa.cli(&["show", "backends"]).unwrap().expect("show backends").unwrap();
    assert!(screen.contains("leaving"), "{screen}");

    // A new daemon finds in the maps what the name had.
    rig.matapa.kill().unwrap();
    rig.matapa.start().unwrap();
    assert_goes_on(&flows, "mx1");
    std::thread::sleep(Duration::from_secs(3));
    assert_goes_on(&flows, "mx1");
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    assert_eq!(servers(&attempts), ["mx2"]);

    // With the last connection the old addresses go.
    drop(flows);
    wait_until("the old addresses to go", Duration::from_secs(20), || {
        Ok(host(&rig).leaving.is_empty().then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{:?}\n{}", rig.matapa.flows(), rig.matapa.log()));
    wait_backends(&rig, MX2);
    drop((monitor, names, echoes));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn without_an_answer_the_last_addresses_stay() {
    let (rig, echoes) = start();
    let mut names = serve(&rig, &[MX1, MX2].concat());
    rig.matapa.reload().unwrap();
    wait_backends(&rig, &[MX1, MX2].concat());
    assert_eq!(servers(&rig.connect_echo()), ["mx1", "mx2"]);
    let monitor = rig.matapa.monitor().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let goes_on = || {
        wait_until("the complaint", Duration::from_secs(20), || Ok(host(&rig).error)).unwrap();
        let attempts = rig.connect_echo();
        assert_prompt(&attempts);
        assert_eq!(servers(&attempts), ["mx1", "mx2"]);
        assert_eq!(host(&rig).addresses.len(), 4);
    };

    // The record is lost.
    let start = Instant::now();
    names.set(&[]).unwrap();
    let lost = |kind: &EventKind| matches!(kind, EventKind::Unresolved { reason, .. } if reason.contains("there is no name"));
    monitor.wait("the loss", start, SOON, lost).unwrap();
    goes_on();

    // It comes back, and the server goes.
    let start = Instant::now();
    names.set(&[(HOST, &[MX1, MX2].concat())]).unwrap();
    let back = |kind: &EventKind| matches!(kind, EventKind::Resolved { added, gone, .. } if added.is_empty() && gone.is_empty());
    monitor.wait("the answer", start, Duration::from_secs(10), back).unwrap();
    names.stop().unwrap();
    goes_on();
    let attempts = rig.connect_echo();
    assert_prompt(&attempts);
    drop((monitor, echoes));
    rig.finish();
}
