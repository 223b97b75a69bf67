//! Flow synchronisation: connections go on through the other gateway.

use std::net::UdpSocket;
use std::time::Duration;

use lb_lab::matapa::types::EventKind;
use lb_lab::traffic::flows::{Dialect, Flow, Flows};
use lb_lab::traffic::udp::{Datagrams, UdpStream};
use lb_lab::wait_until;

use crate::carp_support::{carp, finish};
use crate::pair::{Pair, SETTLED, Wanted, key, sync, targets, wait_synchronised};
use crate::scale::scale;
use crate::support::ECHO;

/// TCP connections and UDP senders, by IPv4 and IPv6.
struct Held {
    tcp: Flows,
    udp: Vec<UdpStream>,
}

impl Held {
    fn open(pair: &Pair) -> Self {
        let pause = Duration::from_millis(200);
        let tcp = Flows::open(pair.client(), targets(ECHO), scale().held, Dialect::Echo, pause)
            .unwrap_or_else(|error| {
                panic!("{error:#}\n{}", pair.first.cli(&["show", "counters"]).unwrap().stdout)
            });
        // Several of each, so that both servers have some.
        let udp = targets(ECHO).into_iter().cycle().take(12);
        let udp = udp.map(|target| UdpStream::start(pair.client(), target, pause / 4).unwrap()).collect();
        Self { tcp, udp }
    }

    fn number(&self) -> u64 {
        (self.tcp.snapshot().len() + self.udp.len()) as u64
    }

    /// Every connection goes on. (TCP's next retransmission may be due as late as twice the interruption.)
    fn check_alive(&self, when: &str, pair: &Pair) {
        let before = self.tcp.snapshot();
        let mut last = None;
        wait_until("every connection to exchange something", Duration::from_secs(8), || {
            last = before
                .iter()
                .zip(self.tcp.snapshot())
                .find(|(before, now)| !now.alive() || now.exchanges <= before.exchanges + 1)
                .map(|(_, now)| now);
            Ok((last.is_none() || last.as_ref().is_some_and(|now| !now.alive())).then_some(()))
        })
        .unwrap_or_else(|error| {
            panic!("{when}: {error:#}: {last:?}\n{}\n{}", sync(&pair.second), pair.second.log())
        });
        assert!(last.is_none(), "{when}: {last:?}\n{}\n{}", sync(&pair.second), pair.second.log());
    }

    fn servers(flows: &[Flow]) -> usize {
        let mut names: Vec<_> = flows.iter().map(|flow| &flow.server).collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    }

    /// Every sender has had one server only, and both servers had some.
    fn finish(self) {
        assert_eq!(Self::servers(&self.tcp.snapshot()), 2);
        let results: Vec<Datagrams> = self.udp.into_iter().map(|one| one.finish().unwrap()).collect();
        for result in &results {
            assert_eq!(
                result.servers.len(),
                1,
                "datagrams of one socket went to several servers: {result:?}"
            );
            assert!(result.answered > 0 && result.doubled == 0, "{result:?}");
        }
        let mut names: Vec<_> = results.iter().flat_map(|result| result.servers.keys()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 2);
    }
}

fn connections_survive(forward: &'static str) {
    let mut pair = Pair::start(Wanted::mode(forward));
    let held = Held::open(&pair);
    // Now the scheduler alone would choose another server for half of them.
    pair.drain(1);
    std::thread::sleep(Duration::from_millis(500));
    let known = pair.second.flows().unwrap();
    assert!(known.total >= held.number(), "{known:?}\n{}", sync(&pair.second));
    pair.kill_first();
    pair.wait_second();
    held.check_alive("after the death", &pair);
    // Back again: the first gateway gets everything before it may be master, and they go on through it.
    pair.revive_first();
    held.check_alive("after the return", &pair);
    held.finish();
    pair.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_nat() {
    connections_survive("nat");
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_snat() {
    connections_survive("snat");
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_dsr() {
    connections_survive("dsr");
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_survive_their_gateway_with_ipip() {
    connections_survive("ipip");
}

/// Synchronisation begins, changes and ends with a reload, and no connection notices.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_reload_begins_changes_and_ends_synchronisation() {
    let mut pair = Pair::start(Wanted { peers: [None, None], ..Wanted::mode("snat") });
    assert_eq!(sync(&pair.second)["configured"], false);
    let held = Held::open(&pair);
    pair.drain(1);
    std::thread::sleep(Duration::from_millis(500));
    assert!(pair.second.flows().unwrap().total < held.number(), "it knows them without being told");
    let masters = |pair: &Pair, when: &str| {
        assert_eq!(pair.gateways.masters(pair.shared()), [1], "a reload moved the addresses ({when})");
    };
    // A key that cannot be read is refused, and nothing is changed.
    let mut wanted = Wanted::mode("snat");
    pair.second.write_config(&wanted.config(2, &pair.gateways.lab().directory().join("none.key"))).unwrap();
    let refused = pair.second.cli(&["reload"]).unwrap();
    assert!(!refused.ok() && refused.stderr.contains("nothing was changed"), "{}", refused.stderr);
    assert_eq!(sync(&pair.second)["configured"], false);

    for (when, extra) in [("added", ""), ("changed", ", port = 9999, interval = \"20ms\"")] {
        wanted.sync = extra.to_owned();
        pair.wanted = wanted.clone();
        pair.reload();
        wait_until("all flows to be there", SETTLED, || {
            Ok((pair.second.flows()?.total >= held.number()).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{when}: {error:#}\n{}", sync(&pair.second)));
        pair.wait_ready();
        masters(&pair, when);
        held.check_alive(when, &pair);
    }
    // Another key, first on one side: it is refused, and both have it in the end.
    pair.key = key(pair.gateways.lab(), "new.key", '7');
    pair.first.write_config(&pair.wanted.config(1, &pair.key)).unwrap();
    pair.first.reload().unwrap();
    wait_until("the new key to be refused", SETTLED, || {
        Ok(sync(&pair.second)["refused"]["digest"]["value"].as_u64().filter(|count| *count > 0))
    })
    .unwrap();
    pair.reload();
    pair.wait_ready();
    masters(&pair, "another key");
    // Ended, what has been told stays.
    pair.wanted.peers = [None, None];
    pair.reload();
    assert_eq!(sync(&pair.second)["configured"], false);
    assert!(pair.second.flows().unwrap().total >= held.number());
    masters(&pair, "removed");
    held.check_alive("removed", &pair);
    pair.kill_first();
    pair.wait_second();
    held.check_alive("after the death", &pair);
    held.finish();
    pair.finish();
}

/// A gateway with another key learns nothing, is counted, and does not wait for ever.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn another_key_is_refused() {
    let wanted = Wanted::mode("nat");
    let gateways = Pair::network(&wanted, 1);
    let (one, other) = (key(gateways.lab(), "one.key", '5'), key(gateways.lab(), "other.key", '6'));
    let first = gateways.started(1, &wanted.config(1, &one));
    let second = gateways.started(2, &wanted.config(2, &other));
    let owners = carp(&second)["groups"][0]["owners"].to_string();
    assert!(owners.contains("flows are not synchronised yet"), "{owners}");
    wait_until("datagrams to be refused", SETTLED, || {
        let refused = sync(&second)["refused"]["digest"]["value"].as_u64();
        Ok(refused.filter(|count| *count > 0))
    })
    .unwrap();
    assert_eq!(sync(&second)["state"], "waiting");
    let shown = second.cli(&["show", "sync"]).unwrap().stdout;
    assert!(shown.contains("digest"), "{shown}");
    wait_until("the gateway to go on alone", Duration::from_secs(10), || {
        let owners = carp(&second)["groups"][0]["owners"].to_string();
        Ok((!owners.contains("flows are not synchronised yet")).then_some(()))
    })
    .unwrap();
    finish(first);
    finish(second);
    gateways.remove();
}

/// A later Matapa on the other side, whose datagrams have another version.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn another_version_is_refused_and_named() {
    let wanted = Wanted::mode("nat");
    let gateways = Pair::network(&wanted, 1);
    let key = key(gateways.lab(), "sync.key", '5');
    let first = gateways.started(1, &wanted.config(1, &key));
    let socket = gateways.gateway(2).netns.run(|| UdpSocket::bind("198.51.100.252:9754")).unwrap().unwrap();
    let mut datagram = b"MTPS\x02\x01\0\x14".to_vec();
    datagram.resize(84, 9);
    let refused = |reason: &str| sync(&first)["refused"][reason]["value"].as_u64().unwrap();
    for sent in 1..=3 {
        socket.send_to(&datagram, "198.51.100.251:9754").unwrap();
        wait_until("the version to be refused", SETTLED, || Ok((refused("version") == sent).then_some(())))
            .unwrap();
    }
    assert_eq!(sync(&first)["state"], "other_version");
    let shown = first.cli(&["show", "sync"]).unwrap().stdout;
    assert!(shown.contains("other version") && shown.contains("version"), "{shown}");
    assert!(first.log().contains("speaks another version of flow synchronisation"), "{}", first.log());
    // One that is none of ours, and one from a stranger.
    socket.send_to(b"hello", "198.51.100.251:9754").unwrap();
    wait_until("noise to be refused", SETTLED, || Ok((refused("malformed") == 1).then_some(()))).unwrap();
    let stranger = &gateways.topology.servers[0].netns;
    let stranger = stranger.run(|| UdpSocket::bind("198.51.100.11:9754")).unwrap().unwrap();
    stranger.send_to(&datagram, "198.51.100.251:9754").unwrap();
    wait_until("a stranger to be refused", SETTLED, || Ok((refused("stranger") == 1).then_some(()))).unwrap();
    assert_eq!(refused("version"), 3);
    drop((socket, stranger));
    // The right one comes: all is well.
    let second = gateways.started(2, &wanted.config(2, &key));
    wait_synchronised(&first);
    wait_synchronised(&second);
    finish(first);
    finish(second);
    gateways.remove();
}

/// Clients answer only the first of two who ask where their connections stand, and a backup would be told nothing.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn connections_of_a_dead_server_are_reset_by_the_master_alone() {
    let pair = Pair::start(Wanted::mode("nat"));
    // They say nothing by themselves while it lasts.
    let pause = Duration::from_secs(60);
    let flows = Flows::open(pair.client(), targets(ECHO), scale().held, Dialect::Echo, pause).unwrap();
    let monitors = [&pair.first, &pair.second].map(|matapa| matapa.monitor().unwrap());
    std::thread::sleep(Duration::from_secs(1));
    let of_mx1 = |flow: &Flow| flow.server.as_deref().is_some_and(|name| name.starts_with("mx1"));
    assert!(flows.snapshot().iter().any(of_mx1), "{:?}", flows.snapshot());
    let death = std::time::Instant::now();
    pair.gateways.topology.servers[0].unplug().unwrap();
    for monitor in &monitors {
        monitor.wait_health("mx1", "down", death, SETTLED).unwrap();
    }
    wait_until("the connections to mx1 to be reset", Duration::from_secs(3), || {
        let left = flows.snapshot().into_iter().filter(|flow| of_mx1(flow) && flow.end.is_none()).count();
        Ok((left == 0).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", pair.first.log(), pair.second.log()));
    std::thread::sleep(Duration::from_secs(1));
    let asked = monitors.each_ref().map(|monitor| {
        monitor.seen().iter().any(|seen| matches!(seen.event.kind, EventKind::FlowsReset { .. }))
    });
    assert_eq!(asked, [true, false], "{}", pair.second.log());
    drop((flows, monitors));
    pair.finish();
}
