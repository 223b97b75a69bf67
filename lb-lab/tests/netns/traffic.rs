//! Real clients and servers through a service.

use std::collections::BTreeSet;
use std::time::Duration;

use lb_lab::traffic::http::HttpServer;
use lb_lab::traffic::smtp::{self, Sink};
use lb_lab::traffic::udp::{UdpEcho, UdpStream};
use lb_lab::traffic::{dns, http, iperf};

use crate::support::{ECHO, NO_CHECK, Rig, TCP_CHECK, interfaces, service, vips};

fn both() -> BTreeSet<String> {
    ["mx1", "mx2"].map(str::to_owned).into()
}

/// 100 requests each over IPv4 and IPv6: all answered, by both servers; a large answer arrives whole.
pub fn check_http(rig: &Rig) {
    for target in vips(80) {
        let mut seen = BTreeSet::new();
        for _ in 0..100 {
            let answer = http::get(rig.lab(), rig.client(), target, "/").unwrap();
            seen.insert(answer.expect(&format!("curl {target}")).unwrap().trim().to_owned());
        }
        assert_eq!(seen, both(), "{target}");
        let big = http::get(rig.lab(), rig.client(), target, "/big").unwrap();
        assert_eq!(big.expect("curl /big").unwrap().len(), 1 << 20, "{target}");
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn web_requests_reach_both_servers() {
    let config = interfaces() + &service("web", 80, "tcp", TCP_CHECK, &[1, 2]);
    let (rig, servers) = Rig::start(&config, |lab, host| HttpServer::start(lab, host, 80).unwrap());
    check_http(&rig);
    drop(servers);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn name_queries_over_udp_reach_both_servers() {
    // dnsmasq listens on TCP, too, which the check uses: it must name the port.
    let check = TCP_CHECK.replace("\"tcp\"", "\"tcp\", port = 53");
    let config = interfaces() + &service("dns", 53, "udp", &check, &[1, 2]);
    let (rig, servers) = Rig::start(&config, |lab, host| dns::DnsServer::start(lab, host, 53).unwrap());
    for target in vips(53) {
        let answers: Vec<_> = (0..50).map(|_| dns::query(rig.lab(), rig.client(), target).unwrap()).collect();
        let lost = answers.iter().filter(|answer| answer.is_none()).count();
        assert_eq!(lost, 0, "queries to {target} without an answer");
        assert_eq!(answers.into_iter().flatten().collect::<BTreeSet<_>>(), both(), "{target}");
    }
    drop(servers);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn datagrams_of_one_socket_stay_with_one_server() {
    let config = interfaces() + &service("echo", ECHO, "udp", NO_CHECK, &[1, 2]);
    let (rig, servers) = Rig::start(&config, |_, host| UdpEcho::start(host, ECHO).unwrap());
    for target in vips(ECHO) {
        let stream = UdpStream::start(rig.client(), target, Duration::from_millis(1)).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let result = stream.finish().unwrap();
        assert!(result.lost.is_empty() && result.doubled == 0, "{target}: {result:?}");
        assert_eq!(result.servers.len(), 1, "{target}: {result:?}");
    }
    drop(servers);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn bulk_data_flows_over_tcp_and_udp() {
    // One backend: iperf3's two connections must reach the same server.
    let config = interfaces()
        + &service("bulk", 5201, "tcp", NO_CHECK, &[1])
        + &service("bulk-udp", 5201, "udp", NO_CHECK, &[1]);
    let (rig, servers) = Rig::start(&config, |lab, host| iperf::server(lab, host, 5201).unwrap());
    for target in vips(5201) {
        for udp in [false, true] {
            let rate = iperf::measure(rig.lab(), rig.client(), target, udp, 2).unwrap();
            println!("iperf3 to {target}, udp {udp}: {:.0} Mbit/s", rate / 1e6);
            assert!(rate > 10e6, "{target}, udp {udp}: only {rate} bit/s");
        }
    }
    drop(servers);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn mail_in_parallel_sessions_arrives_once() {
    let check = TCP_CHECK.replace("\"tcp\"", "\"smtp\"");
    let config = interfaces() + &service("mail", 25, "tcp", &check, &[1, 2]);
    let (rig, sinks) = Rig::start(&config, |lab, host| Sink::start(lab, host, 25).unwrap());
    for (target, sender) in vips(25).into_iter().zip(["four", "six"]) {
        let limit = Duration::from_secs(20);
        let sent = smtp::send(rig.lab(), rig.client(), target, sender, (500, 20), limit).unwrap();
        sent.expect("smtp-source").unwrap();
        let mut numbers = BTreeSet::new();
        let mut count = 0;
        for sink in &sinks {
            let mut received = sink.received().unwrap();
            received.retain(|one| one.sender == sender);
            assert!(received.len() > 100, "one server got only {} of 500", received.len());
            assert!(smtp::all_from(&received, rig.topology.clients[0].address(target.is_ipv6())));
            count += received.len();
            numbers.extend(received.into_iter().map(|one| one.recipient));
        }
        assert_eq!((count, numbers.len()), (500, 500), "{target}");
    }
    drop(sinks);
    rig.finish();
}
