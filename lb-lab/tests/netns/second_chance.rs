//! A thousand connections (more in a soak) while one of two servers is dead and no check tells: none fails, and none waits
//! longer than one retransmission.

use std::time::Duration;

use lb_lab::traffic::EchoServer;
use lb_lab::traffic::prober::{Attempt, Prober};
use lb_lab::{Netns, Shape};

use crate::modes::{ALL, NAT, SNAT, Way};
use crate::scale::scale;
use crate::support::{ECHO, ONE_RETRANSMISSION, Rig, servers};

/// So many connections over IPv4 and IPv6, one every two milliseconds.
fn connections(netns: &Netns, way: Way) -> Vec<Attempt> {
    let targets = [false, true].map(|v6| way.target(v6, ECHO)).to_vec();
    let prober = Prober::start(netns, targets, Duration::from_millis(2), Duration::from_secs(8)).unwrap();
    while prober.attempts().len() < scale().attempts {
        std::thread::sleep(Duration::from_millis(20));
    }
    prober.finish().unwrap()
}

fn check(rig: &Rig, what: &str) {
    for way in [NAT, SNAT] {
        let attempts = connections(rig.client(), way);
        let bad: Vec<_> = attempts.iter().filter(|attempt| !attempt.prompt(ONE_RETRANSMISSION)).collect();
        let when = |attempt: &Attempt| attempt.started - attempts[0].started;
        assert!(
            bad.is_empty(),
            "{way:?}, {what}: {} of {} failed or were slow: {:?}\n{}",
            bad.len(),
            attempts.len(),
            bad.iter().map(|attempt| (when(attempt), attempt.target, &attempt.result)).collect::<Vec<_>>(),
            lost(rig)
        );
        assert_eq!(servers(&attempts), ["mx2"], "{way:?}, {what}");
    }
}

/// Where packets may have been lost: Matapa's counters, the queues of the server that is alive, the interfaces.
fn lost(rig: &Rig) -> String {
    let counters = rig.matapa.cli(&["show", "counters"]).unwrap().stdout;
    let queues = rig.server(2).netns.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"));
    let interfaces = rig.gateway().netns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
    format!("{counters}\n{}\n{}", queues.unwrap().unwrap(), interfaces.unwrap().unwrap())
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn no_connection_fails_or_waits_while_a_server_is_dead() {
    let configure = |topology: &lb_lab::Topology| {
        let services = [NAT, SNAT].map(|way| way.service(topology, "echo", &format!(":{ECHO}/tcp"), ALL, ""));
        format!("interfaces = [\"ext\", \"int\"]\n{}", services.concat())
    };
    let shape = Shape { vips: 2, ..Shape::default() };
    let (rig, mut echoes) = Rig::shaped(shape, configure, |_, host| EchoServer::start(host, ECHO).unwrap());
    rig.server(1).unplug().unwrap();
    check(&rig, "silent");
    rig.server(1).plug().unwrap();
    drop(echoes.remove(0));
    check(&rig, "refusing");
    drop(echoes);
    rig.finish();
}
