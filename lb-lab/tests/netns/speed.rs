//! From a verdict on a server to the packet path.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lb_lab::matapa::types::EventKind;
use lb_lab::topology::VIP_V4;

use crate::scale::scale;
use crate::support::{ECHO, Rig, interfaces};

const ADDRESSES: u8 = 100;
const FIRST: u8 = 101;
/// Microseconds.
const LIMIT: u64 = 5000;

/// One service on `backends` addresses of one machine.
fn config(backends: u8) -> String {
    let check = r#"{ type = "tcp", interval = "200ms", timeout = "150ms", rise = 1, fall = 1 }"#;
    let mut text = interfaces() + &format!("\n[pools.echo]\ncheck = {check}\nbackends = [\n");
    for number in FIRST..FIRST + backends {
        writeln!(text, "  {{ name = \"b{number}\", address = \"198.51.100.{number}\" }},").unwrap();
    }
    text + &format!("]\n\n[services.echo]\nlisten = \"{VIP_V4}:{ECHO}\"\npool = \"echo\"\n")
}

/// Backends go down and up, one by one. Returns what it took in each case, in order.
fn transitions(backends: u8) -> Vec<u64> {
    let mut rig = Rig::prepare(&config(backends), &["mx1"]);
    let netns = rig.server(1).netns.clone();
    let addresses: String = (FIRST..FIRST + ADDRESSES)
        .map(|number| format!("addr add 198.51.100.{number}/24 dev eth0\n"))
        .collect();
    netns.ip(&addresses).unwrap();
    let listener = netns.run(|| TcpListener::bind(("0.0.0.0", ECHO))).unwrap().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&stop);
    listener.set_nonblocking(true).unwrap();
    let server = std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            if listener.accept().is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    rig.matapa.start().unwrap();
    rig.matapa.wait_healthy(Duration::from_secs(5)).unwrap();
    let monitor = rig.matapa.monitor().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut took = Vec::new();
    for number in (0..scale().transitions).map(|turn| FIRST + turn % backends) {
        for (action, health) in [("del", "down"), ("add", "up")] {
            let start = Instant::now();
            netns.ip(&format!("addr {action} 198.51.100.{number}/24 dev eth0\n")).unwrap();
            let name = format!("b{number}");
            let limit = Duration::from_secs(3);
            let change = monitor.wait_health(&name, health, start, limit).unwrap();
            let applied = monitor
                .wait("the packet path", change.at, limit, |kind| matches!(kind, EventKind::Applied { .. }))
                .unwrap();
            if let EventKind::Applied { micros, operations } = applied.event.kind {
                assert!(operations > 0);
                took.push(micros);
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
    drop((netns, monitor));
    rig.finish();
    took.sort_unstable();
    took
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_verdict_reaches_the_packet_path_within_five_milliseconds() {
    for backends in [2, 100] {
        let took = transitions(backends);
        println!("{backends} backends: {took:?} microseconds");
        let median = took[took.len() / 2];
        assert!(median < LIMIT, "with {backends} backends the median is {median} of {took:?}");
    }
}
