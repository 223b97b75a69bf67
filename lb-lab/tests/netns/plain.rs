//! The networks themselves, with Linux alone in the gateway's place: what fails here is not Matapa's fault.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lb_lab::decap::{Decapsulator, GUE_PORT, Wrapping};
use lb_lab::packets::{self, EXPERIMENT, UDP};
use lb_lab::topology::{VIP_V4, VIP_V6};
use lb_lab::traffic::http::{self, HttpServer};
use lb_lab::traffic::path::{self, Probe};
use lb_lab::traffic::raw::{self, FrameSocket, PacketSender, RawEcho};
use lb_lab::traffic::udp::{self, UdpEcho};
use lb_lab::{Lab, Plan, Shape, Topology, kernel_errors, wait_until};

use crate::modes::{BULK, DSR, NAT, Programs, SNAT, checks, one_segment, two_segments};
use crate::support::ECHO;

fn network(shape: Shape) -> Topology {
    Topology::build_shaped(Lab::new().unwrap(), &Plan::default(), shape).unwrap()
}

/// Destination NAT to one server or the other by chance, and for [`SNAT`]'s addresses source NAT, by nftables.
fn translate(topology: &Topology) {
    let [one, two] = [&topology.servers[0], topology.servers.last().unwrap()];
    let (nat4, nat6) = (NAT.target(false, 0).ip(), NAT.target(true, 0).ip());
    let (snat4, snat6) = (SNAT.target(false, 0).ip(), SNAT.target(true, 0).ip());
    let rules = format!(
        "table inet lab {{
            chain in {{
                type nat hook prerouting priority dstnat;
                ip daddr {snat4} ct mark set 1
                ip6 daddr {snat6} ct mark set 1
                ip daddr {{ {nat4}, {snat4} }} tcp dport {BULK} dnat ip to {v4}
                ip6 daddr {{ {nat6}, {snat6} }} tcp dport {BULK} dnat ip6 to {v6}
                ip daddr {{ {nat4}, {snat4} }} meta l4proto {{ tcp, udp }} \
                    dnat ip to numgen random mod 2 map {{ 0: {v4}, 1: {other4} }}
                ip6 daddr {{ {nat6}, {snat6} }} meta l4proto {{ tcp, udp }} \
                    dnat ip6 to numgen random mod 2 map {{ 0: {v6}, 1: {other6} }}
            }}
            chain out {{
                type nat hook postrouting priority srcnat;
                ct mark 1 masquerade
            }}
        }}",
        v4 = one.v4,
        v6 = one.v6,
        other4 = two.v4,
        other6 = two.v6,
    );
    let gateway = &topology.gateways[0].netns;
    topology.run(gateway, "nft", &[&rules], Duration::from_secs(10)).unwrap().expect("nft").unwrap();
}

fn remove(topology: Topology) {
    let id = topology.lab.id().to_owned();
    drop(topology);
    assert_eq!(Lab::leftovers(&id), Vec::<String>::new());
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn routers_show_up_in_traces_and_tell_the_path_mtu() {
    let shape = Shape { clients_router: true, servers_router: true, vips: 2, ..Shape::default() };
    let plan = Plan { servers: vec!["mx1".to_owned()], ..Plan::default() };
    let topology = Topology::build_shaped(Lab::new().unwrap(), &plan, shape).unwrap();
    translate(&topology);
    let (client, server) = (&topology.clients[0], &topology.servers[0]);
    let web = HttpServer::start(&topology.lab, server, 80).unwrap();
    let echo = UdpEcho::start(server, ECHO).unwrap();
    let near = topology.clients_router.as_ref().unwrap();
    let far = topology.servers_router.as_ref().unwrap();
    for vip in [IpAddr::from(VIP_V4), VIP_V6.into()] {
        let v6 = vip.is_ipv6();
        // To netfilter an error about a translated packet comes from the service, whoever sends it.
        let way: Vec<String> =
            [near.far_address(v6), vip, vip, vip].iter().map(ToString::to_string).collect();
        // Pings are not translated: the gateway itself answers.
        let short = [way[0].clone(), vip.to_string()];
        for (probe, port, way) in
            [(Probe::Udp, ECHO, &way[..]), (Probe::Tcp, 80, &way), (Probe::Icmp, 0, &short)]
        {
            let seen = path::trace(&topology.lab, &client.netns, (vip, port).into(), probe).unwrap();
            assert_eq!(seen, way, "{probe:?}");
        }
        for size in [56, 4000] {
            path::ping(&topology.lab, &client.netns, vip, size).unwrap().expect("ping").unwrap();
        }
        let target = SocketAddr::new(vip, 80);
        for router in [near, far] {
            router.narrow(Some(1400)).unwrap();
            assert_eq!(path::learned_mtu(&topology.lab, &server.netns, client.address(v6)).unwrap(), None);
            let page =
                http::get(&topology.lab, &client.netns, target, "/big").unwrap().expect("curl").unwrap();
            assert_eq!(page.len(), 1 << 20);
            let learned = path::learned_mtu(&topology.lab, &server.netns, client.address(v6)).unwrap();
            assert_eq!(learned, Some(1400), "{vip} past {}", router.name);
            router.narrow(None).unwrap();
            server.forget_paths().unwrap();
        }
    }
    drop((web, echo));
    remove(topology);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn tunnels_end_on_the_servers() {
    let shape = Shape { one_armed: true, servers_router: true, vips_on_servers: true, ..Shape::default() };
    let topology = network(shape);
    let (client, server) = (&topology.clients[0], &topology.servers[0]);
    let echo = UdpEcho::start(server, ECHO).unwrap();
    let decapsulator = Decapsulator::start(&server.netns).unwrap();
    let sender = PacketSender::new(&client.netns).unwrap();
    for gue in [false, true] {
        for outer_v6 in [false, true] {
            for inner_v6 in [false, true] {
                let wrapping = Wrapping { gue, outer_v6, inner_v6 };
                let any = (client.address(inner_v6), 0);
                let socket = client.netns.run(|| std::net::UdpSocket::bind(any)).unwrap().unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let vip = SocketAddr::new(if inner_v6 { VIP_V6.into() } else { VIP_V4.into() }, ECHO);
                let own = socket.local_addr().unwrap();
                let inner = packets::ip(own.ip(), vip.ip(), UDP, None, &packets::udp(own, vip, b"hello"));
                let (from, to) = (client.address(outer_v6), server.address(outer_v6));
                let outer = if gue {
                    let datagram = packets::udp((from, 50_000).into(), (to, GUE_PORT).into(), &inner);
                    packets::ip(from, to, UDP, None, &datagram)
                } else {
                    packets::ip(from, to, if inner_v6 { 41 } else { 4 }, None, &inner)
                };
                sender.send(to, &outer).unwrap();
                let mut buffer = [0; 64];
                let (count, from) =
                    socket.recv_from(&mut buffer).unwrap_or_else(|why| panic!("{wrapping:?}: {why}"));
                assert_eq!((&buffer[..count], from), (&b"hello mx1"[..], vip), "{wrapping:?}");
                assert_eq!(decapsulator.packets(wrapping), 1);
            }
        }
    }
    assert_eq!(kernel_errors::of(&server.netns).unwrap(), [].into());
    drop((echo, decapsulator));
    remove(topology);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn packets_made_by_hand_are_answered() {
    let topology = network(Shape::default());
    let (client, server) = (&topology.clients[0], &topology.servers[0]);
    let (udp_echo, raw_echo) =
        (UdpEcho::start(server, ECHO).unwrap(), RawEcho::start(server, EXPERIMENT).unwrap());
    let sender = PacketSender::new(&client.netns).unwrap();
    let frames = FrameSocket::open(&server.netns, "eth0").unwrap();
    for v6 in [false, true] {
        let (from, to) = (client.address(v6), server.address(v6));
        let answer = raw::ask(&client.netns, from, to, EXPERIMENT, "hello").unwrap();
        assert_eq!(answer.as_deref(), Some("mx1"), "{to}");
        let text = vec![b'x'; 4000];
        let answer = udp::ask(&client.netns, (to, ECHO).into(), &text).unwrap();
        assert_eq!(answer.as_deref(), Some("mx1"), "{to}");
        // The last part first.
        let socket = client.netns.run(|| std::net::UdpSocket::bind((from, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let datagram = packets::udp(socket.local_addr().unwrap(), (to, ECHO).into(), &text);
        for part in packets::fragments(from, to, UDP, 77, &datagram, 1400).iter().rev() {
            sender.send(to, part).unwrap();
        }
        let count = socket.recv(&mut vec![0; 65_536]).unwrap();
        assert_eq!(count, 4004);
        // A wrong checksum is noticed, and nothing else was wrong before.
        assert_eq!(kernel_errors::of(&server.netns).unwrap().len(), usize::from(v6));
        let mut datagram = packets::udp((from, 9).into(), (to, ECHO).into(), b"wrong");
        datagram[6] ^= 1;
        sender.send(to, &packets::ip(from, to, UDP, None, &datagram)).unwrap();
        wait_until("the wrong checksum to be counted", Duration::from_secs(1), || {
            Ok((kernel_errors::of(&server.netns)?.len() > usize::from(v6)).then_some(()))
        })
        .unwrap();
        // Tags stay on the frame through the gateway's segment and are seen as they were sent.
        let packet = packets::ip(from, to, EXPERIMENT, None, b"tagged");
        for tags in [&[(0x8100, 7)][..], &[(0x88a8, 8), (0x8100, 9)]] {
            let tagged = packets::frame([0x02, 0, 0, 0, 2, 11], [0x02, 0, 0, 0, 2, 12], tags, &packet);
            FrameSocket::open(&topology.servers[1].netns, "eth0").unwrap().send(&tagged).unwrap();
            assert!(frames.receive(Duration::from_secs(1), |frame| frame == tagged).is_some(), "{tags:?}");
        }
    }
    drop((udp_echo, raw_echo));
    remove(topology);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn large_frames_pass() {
    let topology = network(Shape { mtu: 9000, vips: 2, ..Shape::default() });
    let lab = Arc::clone(&topology.lab);
    translate(&topology);
    let programs: Vec<_> = topology.servers.iter().map(|host| Programs::start(&lab, host)).collect();
    for v6 in [false, true] {
        let server = topology.servers[0].address(v6);
        path::ping(&lab, &topology.clients[0].netns, server, 8900).unwrap().expect("ping").unwrap();
        checks::traffic(&topology, NAT, v6);
    }
    checks::no_broken_packets(&topology);
    drop((programs, lab));
    remove(topology);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn netfilter_passes_the_checks_of_translated_services() {
    let shape = Shape { clients_router: true, servers_router: true, vips: 2, ..Shape::default() };
    let topology = network(shape);
    translate(&topology);
    let lab = Arc::clone(&topology.lab);
    let programs: Vec<_> = topology.servers.iter().map(|host| Programs::start(&lab, host)).collect();
    for way in [NAT, SNAT] {
        for v6 in [false, true] {
            checks::traffic(&topology, way, v6);
        }
    }
    two_segments::a_server_reaches_its_own_service(&topology);
    checks::no_broken_packets(&topology);
    drop((programs, lab));
    remove(topology);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn servers_that_have_the_services_addresses_answer_directly() {
    let shape = one_segment();
    let plan = Plan { servers: vec!["mx1".to_owned()], ..Plan::default() };
    let topology = Topology::build_shaped(Lab::new().unwrap(), &plan, shape).unwrap();
    topology.answer_directly().unwrap();
    let (client, server) = (&topology.clients[0], &topology.servers[0]);
    let gateway = &topology.gateways[0].netns;
    let programs = Programs::start(&topology.lab, server);
    for v6 in [false, true] {
        // The gateway routes to the server instead of having the address.
        let (vip, via) = (DSR.target(v6, 0).ip(), server.address(v6));
        let length = if v6 { 128 } else { 32 };
        gateway.ip(&format!("addr del {vip}/{length} dev int\nroute add {vip} via {via}\n")).unwrap();
        checks::traffic(&topology, DSR, v6);
        let router = topology.clients_router.as_ref().unwrap();
        for (probe, port) in [(Probe::Udp, ECHO), (Probe::Tcp, 80)] {
            let seen = path::trace(&topology.lab, &client.netns, (vip, port).into(), probe).unwrap();
            // Which of the gateway's addresses the kernel takes over IPv6 is its choice.
            assert_eq!(seen.len(), 3, "{probe:?}: {seen:?}");
            assert_eq!([&seen[0], &seen[2]], [&router.far_address(v6).to_string(), &vip.to_string()]);
        }
        router.narrow(Some(1400)).unwrap();
        checks::transfer(&topology, DSR, v6, true);
        let learned = path::learned_mtu(&topology.lab, &server.netns, client.address(v6)).unwrap();
        assert_eq!(learned, Some(1400));
        router.narrow(None).unwrap();
    }
    checks::no_broken_packets(&topology);
    drop(programs);
    remove(topology);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_narrow_link_of_the_gateway_is_learned() {
    let topology = network(Shape { vips: 2, ..Shape::default() });
    translate(&topology);
    topology.gateways[0].set_mtu("int", 1400).unwrap();
    let lab = Arc::clone(&topology.lab);
    let echoes: Vec<_> = topology.servers.iter().map(|host| UdpEcho::start(host, ECHO).unwrap()).collect();
    for v6 in [false, true] {
        let target = NAT.target(v6, ECHO);
        checks::do_not_fragment(&topology, target, 1450);
        let client = &topology.clients[0].netns;
        wait_until("the client to learn the MTU", Duration::from_secs(2), || {
            Ok((path::learned_mtu(&lab, client, target.ip())? == Some(1400)).then_some(()))
        })
        .unwrap();
    }
    drop((echoes, lab));
    remove(topology);
}
