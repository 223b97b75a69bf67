//! Whatever is done to other services, and to the daemon itself, a service that nobody touches loses no packet.
//!
//! The operations are drawn by a seed, which is printed; `MATAPA_SEED` repeats a run. What is done to the other service
//! must be seen there, so that the test knows that the operations are done at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_lab::topology::{VIP_V4, VIP_V6};
use lb_lab::traffic::prober::Attempt;
use lb_lab::traffic::udp::{UdpEcho, UdpStream};
use lb_lab::traffic::{Dialect, EchoServer, Flows, Prober};
use lb_lab::wait_until;

use crate::moving::next_layout;
use crate::scale::scale;
use crate::support::{ECHO, PROMPT, Rig, assert_prompt, interfaces, service, vips};

/// The service that things are done to.
const BUSY: u16 = 8007;
/// One that comes and goes.
const EXTRA: u16 = 8008;
const CHECK: &str = r#"check = { type = "tcp", interval = "500ms", timeout = "400ms", rise = 1, fall = 3 }"#;
const SEED: &str = "MATAPA_SEED";

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{SEED} is no number: {text:?}")),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        println!("{SEED}={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound as u64) as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    configured: bool,
    takes_flows: bool,
    /// What the file says.
    weight: usize,
}

/// What has been done so far.
#[derive(Clone, Debug)]
struct Wanted {
    /// Of the busy service, by number.
    servers: BTreeMap<u8, Server>,
    enabled: bool,
    extra: bool,
    capacity: u32,
}

impl Wanted {
    fn new() -> Self {
        let server = Server { configured: true, takes_flows: true, weight: 1 };
        Self {
            servers: (1..=3).map(|n| (n, server)).collect(),
            enabled: true,
            extra: false,
            capacity: 65_536,
        }
    }

    fn config(&self) -> String {
        let mut backends = String::new();
        for (number, server) in self.servers.iter().filter(|(_, server)| server.configured) {
            let (host, weight) = (number + 10, server.weight);
            for (suffix, address) in
                [("", format!("198.51.100.{host}")), ("-v6", format!("2001:db8:64::{host}"))]
            {
                let _ = writeln!(
                    backends,
                    "  {{ name = \"mx{number}{suffix}\", address = \"{address}\", weight = {weight} }},"
                );
            }
        }
        let extra = if self.extra { service("extra", EXTRA, "tcp", "", &[1, 2, 3]) } else { String::new() };
        format!(
            "{}[flows]\ncapacity = {}\nclosed = \"2s\"\n{}{}{extra}\n[services.busy]\n\
             listen = [\"{VIP_V4}:{BUSY}/tcp\", \"[{VIP_V6}]:{BUSY}/tcp\"]\n{CHECK}\nbackends = [\n{backends}]\n",
            interfaces(),
            self.capacity,
            service("steady", ECHO, "tcp", CHECK, &[1, 2, 3]),
            service("steady-udp", ECHO, "udp", "", &[1, 2, 3]),
        )
    }

    /// Names of the busy service's servers that get new connections.
    fn open(&self) -> Vec<String> {
        let open =
            self.servers.iter().filter(|(_, server)| self.enabled && server.configured && server.takes_flows);
        open.map(|(number, _)| format!("mx{number}")).collect()
    }
}

/// Connections that nobody touches, and those of the busy service.
struct Traffic {
    steady: Flows,
    streams: Vec<UdpStream>,
    prober: Prober,
}

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

/// A short series of connections; each may take so long.
fn connect(rig: &Rig, port: u16, limit: Duration) -> Vec<Attempt> {
    let prober = Prober::start(rig.client(), vips(port), Duration::from_millis(4), limit);
    pause(150);
    prober.unwrap().finish().unwrap()
}

/// New connections go where they should, and nowhere else.
fn check_busy(rig: &Rig, wanted: &Wanted, what: &str) {
    let open = wanted.open();
    // Where nothing answers, no longer than it takes to see that.
    let attempts = connect(rig, BUSY, if open.is_empty() { PROMPT / 3 } else { 3 * PROMPT });
    if open.is_empty() {
        assert!(attempts.iter().all(|one| one.result.is_err()), "after {what}: {wanted:?}: {attempts:?}");
        return;
    }
    assert_prompt(&attempts);
    let names = |attempts: &[Attempt]| -> BTreeSet<String> {
        attempts.iter().filter_map(|one| one.server().map(str::to_owned)).collect()
    };
    let open: BTreeSet<String> = open.into_iter().collect();
    let mut seen = names(&attempts);
    // One with a small weight may have been left out by chance.
    for _ in 0..10 {
        if seen.is_superset(&open) {
            break;
        }
        seen.extend(names(&connect(rig, BUSY, 3 * PROMPT)));
    }
    assert_eq!(seen, open, "after {what}: {wanted:?}");
}

fn restart(rig: &mut Rig) {
    rig.matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
}

fn reload(rig: &Rig, wanted: &Wanted) {
    rig.matapa.write_config(&wanted.config()).unwrap();
    rig.matapa.reload().unwrap_or_else(|error| panic!("{error:#}\n{}", rig.matapa.log()));
    wait_until("the servers to be up", Duration::from_secs(5), || {
        let status = rig.matapa.status()?;
        let mut all = status.services.iter().flat_map(|one| &one.backends);
        Ok(all.all(|one| one.health == "up" || one.admin == "disabled").then_some(()))
    })
    .unwrap();
}

/// Connections of the busy service that must be gone: those of a server that was taken out of the file.
fn check_ended(rig: &Rig, busy: &Flows, server: &str) {
    let of = |flows: &Flows| flows.snapshot().into_iter().filter(|one| one.server.as_deref() == Some(server));
    let before: Vec<_> = of(busy).map(|one| one.exchanges).collect();
    assert!(!before.is_empty(), "no connection to {server} that could end");
    pause(400);
    let after: Vec<_> = of(busy).map(|one| one.exchanges).collect();
    // What was on its way may have come.
    let went_on = before.iter().zip(&after).filter(|(old, new)| **new > **old + 2).count();
    assert_eq!(went_on, 0, "connections to {server}, which is in no file any more\n{}", rig.matapa.log());
}

/// One operation; says what it was.
fn operate(rig: &mut Rig, wanted: &mut Wanted, random: &mut Random, busy: &Flows) -> String {
    let number = 1 + random.below(3) as u8;
    let name = format!("mx{number}");
    let both = [name.clone(), format!("{name}-v6")];
    let server = wanted.servers[&number];
    match random.below(9) {
        0 => {
            for server in wanted.servers.values_mut() {
                server.weight = 1 + random.below(3);
            }
            reload(rig, wanted);
            "reload with other weights".to_owned()
        }
        1 | 2 if server.configured => {
            let action = if !server.takes_flows { "enable" } else { ["drain", "disable"][random.below(2)] };
            both.iter().for_each(|one| rig.matapa.backend(action, one, "busy").unwrap());
            wanted.servers.get_mut(&number).unwrap().takes_flows = action == "enable";
            if action == "enable" {
                let all = |rig: &Rig| {
                    rig.matapa.status().map(|status| {
                        let busy = status.service("busy").unwrap().backends.clone();
                        busy.iter().all(|one| one.health == "up" || one.admin == "disabled")
                    })
                };
                wait_until("the server to be up", Duration::from_secs(5), || Ok(all(rig)?.then_some(())))
                    .unwrap();
            }
            format!("{action} {name}")
        }
        3 => {
            wanted.enabled = !wanted.enabled;
            let action = if wanted.enabled { "enable" } else { "disable" };
            rig.matapa.cli(&["service", action, "busy"]).unwrap().expect("matapa service").unwrap();
            format!("{action} the busy service")
        }
        4 => {
            wanted.extra = !wanted.extra;
            reload(rig, wanted);
            let attempts = connect(rig, EXTRA, if wanted.extra { 3 * PROMPT } else { PROMPT / 3 });
            if wanted.extra {
                assert_prompt(&attempts);
            } else {
                assert!(attempts.iter().all(|one| one.result.is_err()), "{attempts:?}");
            }
            format!("reload with the extra service: {}", wanted.extra)
        }
        5 if wanted.servers.values().filter(|one| one.configured).count() > 2 || !server.configured => {
            let had = busy.snapshot().iter().any(|one| one.alive() && one.server.as_deref() == Some(&name));
            let now = Server { configured: !server.configured, takes_flows: true, weight: 1 };
            wanted.servers.insert(number, now);
            reload(rig, wanted);
            if !now.configured && had {
                check_ended(rig, busy, &name);
            }
            format!("reload, {name} in the file: {}", now.configured)
        }
        6 => {
            rig.matapa.kill().unwrap();
            pause(random.below(300) as u64);
            restart(rig);
            "kill and start".to_owned()
        }
        7 => {
            wanted.capacity = [16_384, 32_768, 65_536, 1 << 18][random.below(4)];
            rig.matapa.kill().unwrap();
            rig.matapa.write_config(&wanted.config()).unwrap();
            restart(rig);
            format!("kill and start with a table for {} flows", wanted.capacity)
        }
        _ => {
            let weight = (1 + random.below(4)).to_string();
            for one in both.iter().filter(|_| server.configured) {
                let args = ["backend", "weight", one, &weight, "--service", "busy"];
                rig.matapa.cli(&args).unwrap().expect("matapa backend weight").unwrap();
            }
            format!("weight {weight} for {name}")
        }
    }
}

/// Those that nobody touches lost nothing.
fn check_steady(traffic: Traffic, log: &str) {
    let Traffic { steady, streams, prober } = traffic;
    let attempts = prober.finish().unwrap();
    let slow = attempts.iter().filter(|one| !one.prompt(PROMPT)).count();
    assert_eq!(slow, 0, "of {} connections were slow or failed\n{log}", attempts.len());
    for stream in streams {
        let seen = stream.finish().unwrap();
        assert!(seen.lost.is_empty(), "{} of {} lost, at {:?}\n{log}", seen.lost.len(), seen.sent, seen.lost);
        assert_eq!(seen.servers.len(), 1, "a flow changed its server: {:?}", seen.servers);
    }
    for flow in steady.snapshot() {
        assert!(flow.alive() && flow.longest_wait < PROMPT, "{flow:?}\n{log}");
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn what_nobody_touches_loses_no_packet() {
    let (connections, operations) = (scale().churn_connections, scale().operations);
    let mut random = Random::seeded();
    let mut wanted = Wanted::new();
    let (mut rig, serving) = Rig::start_with(&wanted.config(), &["mx1", "mx2", "mx3"], |_, host| {
        let servers = [ECHO, BUSY, EXTRA].map(|port| EchoServer::start(host, port).unwrap());
        (servers, UdpEcho::start(host, ECHO).unwrap())
    });
    let open = |rig: &Rig, port, count| {
        Flows::open(rig.client(), vips(port), count, Dialect::Echo, Duration::from_millis(100)).unwrap()
    };
    let steady = open(&rig, ECHO, connections);
    let mut busy = open(&rig, BUSY, 30);
    let stream =
        |target: SocketAddr| UdpStream::start(rig.client(), target, Duration::from_millis(2)).unwrap();
    let traffic = Traffic {
        steady,
        streams: vips(ECHO).into_iter().map(stream).collect(),
        prober: Prober::start(rig.client(), vips(ECHO), Duration::from_millis(10), Duration::from_secs(8))
            .unwrap(),
    };
    let start = Instant::now();
    let mut done = BTreeMap::<String, usize>::new();
    for turn in 1..=operations {
        let began = Instant::now();
        let what = operate(&mut rig, &mut wanted, &mut random, &busy);
        check_busy(&rig, &wanted, &what);
        println!("{turn:3} {what} [{} ms]", began.elapsed().as_millis());
        *done.entry(what.split(' ').next().unwrap().to_owned()).or_default() += 1;
        // New ones, so that there is always something that can be hit.
        if wanted.open().len() == 3 {
            busy = open(&rig, BUSY, 30);
        }
    }
    // Not back from there: once, as the last of all.
    rig.matapa.kill().unwrap();
    rig.matapa.set_binary(&next_layout());
    restart(&mut rig);
    check_busy(&rig, &wanted, "another layout of the maps");
    pause(300);
    println!("{done:?} with {connections} connections in {} s", start.elapsed().as_secs());
    check_steady(traffic, &rig.matapa.log());
    drop((busy, serving));
    rig.finish();
}
