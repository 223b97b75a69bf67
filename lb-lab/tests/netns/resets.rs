//! `on_down = "reset"`: both ends of a dead server's connections learn that they are over, from segments that
//! their own kernels accept.

use std::collections::HashSet;
use std::time::Duration;

use lb_lab::traffic::prober::Failure;
use lb_lab::traffic::{Dialect, EchoServer, Flows};
use lb_lab::{Netns, Shape, wait_until};

use crate::modes::{ALL, NAT, SNAT, Way};
use crate::support::{ECHO, Rig};

/// What the checks ask, beside the service: so a server can fail its check and be alive.
const HEALTH: u16 = 9;
const FLOWS: usize = 20;
const LIMIT: Duration = Duration::from_secs(4);

/// Connections of `port` that a machine holds to be established, as a server.
///
/// Told apart by their addresses: while other connections come and go, the kernel's listing can have a line
/// twice, as a read that goes on counts lines from the beginning again.
fn established(netns: &Netns, port: u16) -> usize {
    let tables = netns
        .run(|| {
            ["tcp", "tcp6"]
                .map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap())
        })
        .unwrap();
    // `  1: LOCAL:PORT REMOTE:PORT STATE`, in hexadecimal; state 1 is established (tcp_states.h).
    let local = format!(":{port:04X}");
    let ours = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (at, from, state) = (words.next()?, words.next()?, words.next()?);
        (at.ends_with(&local) && state == "01").then(|| (at.to_owned(), from.to_owned()))
    };
    tables.iter().flat_map(|table| table.lines()).filter_map(ours).collect::<HashSet<_>>().len()
}

fn check(way: Way) {
    let check = format!(
        r#"check = {{ type = "tcp", port = {HEALTH}, interval = "200ms", timeout = "150ms", rise = 1, fall = 2 }}"#
    );
    let configure = |topology: &lb_lab::Topology| {
        let service = way.service(topology, "echo", &format!(":{ECHO}/tcp"), ALL, &check);
        format!("interfaces = [\"ext\", \"int\"]\n{service}")
    };
    let shape = Shape { vips: 2, ..Shape::default() };
    let (rig, mut servers) = Rig::shaped(shape, configure, |_, host| {
        (EchoServer::start(host, ECHO).unwrap(), Some(EchoServer::start(host, HEALTH).unwrap()))
    });
    // They say next to nothing: nobody but the gateway may end them.
    let targets = [false, true].map(|v6| way.target(v6, ECHO)).to_vec();
    let flows = Flows::open(rig.client(), targets, FLOWS, Dialect::Echo, Duration::from_secs(60)).unwrap();
    let on = |name: &str| flows.snapshot().iter().filter(|flow| flow.server.as_deref() == Some(name)).count();
    let (first, second) = (on("mx1"), on("mx2"));
    assert!(first > 0 && second > 0, "all connections went to one server");
    assert_eq!([1, 2].map(|server| established(&rig.server(server).netns, ECHO)), [first, second]);
    // Alive, but its check fails.
    servers[0].1 = None;
    rig.matapa.wait_up(&["mx2", "mx2-v6"], LIMIT).unwrap();
    wait_until("the server's ends to be reset", LIMIT, || {
        Ok((established(&rig.server(1).netns, ECHO) == 0).then_some(()))
    })
    .unwrap();
    wait_until("the clients' ends to be reset", LIMIT, || {
        Ok(flows.snapshot().iter().filter(|flow| flow.end.is_some()).count().eq(&first).then_some(()))
    })
    .unwrap();
    for flow in flows.snapshot() {
        match flow.end {
            Some((_, why)) => assert_eq!((flow.server.as_deref(), why), (Some("mx1"), Failure::Reset)),
            None => assert_eq!(flow.server.as_deref(), Some("mx2")),
        }
    }
    assert_eq!(established(&rig.server(2).netns, ECHO), second, "of the other server");
    drop((flows, servers));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn both_ends_are_reset_with_nat() {
    check(NAT);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn both_ends_are_reset_with_snat() {
    check(SNAT);
}
