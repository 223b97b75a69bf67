//! What a gateway does not take from the other one, at the level of datagrams: it is counted, and nothing else happens.

use std::time::Duration;

use lb_userspace::dataplane::flows::Clock;
use lb_userspace::sync::directory::Directory;
use lb_userspace::sync::node::Node;
use lb_userspace::sync::task::{PlainFlows, SharedFlows as _};
use lb_userspace::sync::wire::{Body, Datagram, LONGEST, Refused, VERSION};

const CLOCK: Clock = Clock { now: 7, seconds_per_tick: 1.0 };
const LINES: usize = 16;

fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() | 1
}

/// A gateway that nobody has spoken to.
struct Gateway {
    node: Node,
    flows: PlainFlows,
}

impl Gateway {
    fn new(key: u8) -> Self {
        let flows = PlainFlows::new(LINES, 4);
        let places = usize::try_from(flows.table().capacity()).expect("a small number");
        Self { node: Node::new([key; 32], places, random), flows }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let now = Duration::from_secs(1);
        self.node.receive(now, bytes, &self.flows.table(), &Directory::default(), CLOCK);
    }

    fn refused(&self, reason: Refused) -> u64 {
        self.node.counts.refused.get(&reason).copied().unwrap_or(0)
    }

    /// What it says to somebody whom it does not know.
    fn hello(&mut self, second: u64) -> Vec<u8> {
        self.node.transmit(Duration::from_secs(second * 10)).expect("it greets again every so often")
    }
}

#[test]
fn another_version_is_counted_whatever_it_says_and_no_session_begins() {
    let (mut here, mut there) = (Gateway::new(1), Gateway::new(1));
    let hello = there.hello(1);
    for (sent, version) in (1..).zip([0, VERSION + 1, 99, u8::MAX]) {
        let mut other = hello.clone();
        other[4] = version;
        here.receive(&other);
        assert_eq!(here.refused(Refused::Version), sent);
    }
    assert_eq!(here.node.counts.refused.len(), 1, "{:?}", here.node.counts.refused);
    assert_eq!(here.node.session.peer(), None);
    assert_eq!(here.node.last_refused, Some(Refused::Version));
    assert_eq!(here.node.counts.sessions, 0);
}

#[test]
fn another_key_is_counted_and_no_session_begins() {
    let (mut here, mut there) = (Gateway::new(1), Gateway::new(2));
    for sent in 1..=5 {
        here.receive(&there.hello(sent));
        assert_eq!(here.refused(Refused::Digest), sent);
    }
    assert_eq!((here.node.session.peer(), here.node.counts.sessions), (None, 0));
}

#[test]
fn what_is_cut_or_too_long_is_no_datagram() {
    let (mut here, mut there) = (Gateway::new(1), Gateway::new(1));
    let hello = there.hello(1);
    for len in 0..hello.len() {
        here.receive(&hello[..len]);
    }
    here.receive(&[&hello[..], &vec![0; LONGEST]].concat());
    let (malformed, digest) = (here.refused(Refused::Malformed), here.refused(Refused::Digest));
    assert_eq!(malformed + digest, hello.len() as u64 + 1);
    assert!(malformed > 32);
    assert_eq!(here.node.session.peer(), None);
}

#[test]
fn records_of_nobody_s_session_are_refused() {
    let mut here = Gateway::new(1);
    let body = Body::Records { number: 1, seen: 0, records: vec![2] };
    here.receive(&Datagram { from: 5, to: 6, body }.seal(&[1; 32]));
    assert_eq!(here.refused(Refused::Session), 1);
    assert_eq!(here.node.counts.flows_received, 0);
}
