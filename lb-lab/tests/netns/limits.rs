//! Servers that may have few connections.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lb_lab::traffic::{Dialect, EchoServer, Flows};
use lb_lab::wait_until;

use crate::support::{ECHO, NO_CHECK, Rig, interfaces, vips};

const SOON: Duration = Duration::from_secs(6);

/// Over IPv4 alone, so that one limit tells of one listener.
fn config(most: [u32; 2]) -> String {
    format!(
        "{}[flows]\nclosing = \"1s\"\nclosed = \"1s\"\n[services.echo]\nlisten = \"{}\"\nwhen_empty = \"reset\"\n{NO_CHECK}\n\
         backends = [\n  {{ name = \"mx1\", address = \"198.51.100.11\", max_connections = {} }},\n  \
         {{ name = \"mx2\", address = \"198.51.100.12\", max_connections = {} }},\n]\n",
        interfaces(),
        vip(),
        most[0],
        most[1]
    )
}

fn vip() -> SocketAddr {
    vips(ECHO)[0]
}

fn open(rig: &Rig, count: usize) -> Flows {
    Flows::open(rig.client(), vec![vip()], count, Dialect::Echo, Duration::from_millis(50)).unwrap()
}

/// How many of them each server has.
fn places(flows: &Flows) -> [usize; 2] {
    let flows = flows.snapshot();
    ["mx1", "mx2"].map(|name| flows.iter().filter(|flow| flow.server.as_deref() == Some(name)).count())
}

fn refused(rig: &Rig) -> bool {
    let outcome = rig.client().run(|| TcpStream::connect_timeout(&vip(), Duration::from_secs(2))).unwrap();
    outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn live(rig: &Rig) -> [u64; 2] {
    let status = rig.matapa.status().unwrap();
    ["mx1", "mx2"].map(|name| status.backend(name).unwrap().flows)
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_full_server_gets_no_new_connections_until_it_has_room() {
    let (mut rig, echoes) = Rig::start(&config([3, 20]), |_, host| EchoServer::start(host, ECHO).unwrap());
    let first = open(&rig, 20);
    assert_eq!(places(&first), [3, 17]);
    let screen = rig.matapa.cli(&["show", "backends"]).unwrap().expect("show backends").unwrap();
    assert!(screen.contains("3 (max 3)") && screen.contains("full"), "{screen}");
    let status = rig.matapa.status().unwrap();
    let [mx1, mx2] = ["mx1", "mx2"].map(|name| status.backend(name).unwrap());
    assert!(mx1.full && !mx2.full && mx1.max_connections == Some(3), "{mx1:?} {mx2:?}");

    // Then the other one is, and nobody is left.
    let second = open(&rig, 3);
    assert_eq!(places(&second), [0, 3]);
    assert!(refused(&rig));
    assert_eq!(live(&rig), [3, 20]);

    // A new daemon leaves it at that.
    rig.matapa.kill().unwrap();
    assert!(refused(&rig));
    rig.matapa.start().unwrap();
    assert!(refused(&rig));

    // A smaller limit cuts nothing, a larger one gives room at once.
    rig.matapa.write_config(&config([1, 20])).unwrap();
    rig.matapa.reload().unwrap();
    assert!(refused(&rig));
    assert_eq!(places(&first), [3, 17]);
    assert!(first.snapshot().iter().all(lb_lab::traffic::flows::Flow::alive));
    rig.matapa.write_config(&config([5, 20])).unwrap();
    rig.matapa.reload().unwrap();
    let third = open(&rig, 2);
    assert_eq!(places(&third), [2, 0]);
    assert!(refused(&rig));

    // And so does the end of connections.
    drop(second);
    wait_until("room", SOON, || Ok((live(&rig)[1] == 17).then_some(()))).unwrap();
    let fourth = open(&rig, 3);
    assert_eq!(places(&fourth), [0, 3]);
    assert!(first.snapshot().iter().chain(&third.snapshot()).all(lb_lab::traffic::flows::Flow::alive));
    drop((first, third, fourth, echoes));
    rig.finish();
}
