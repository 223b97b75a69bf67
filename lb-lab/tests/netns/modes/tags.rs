//! Frames with VLAN tags that mean nothing to this gateway keep them.

use std::net::SocketAddr;
use std::time::Duration;

use lb_lab::Shape;
use lb_lab::packets::{self, UDP};
use lb_lab::traffic::raw::FrameSocket;
use lb_lab::traffic::udp::{self, UdpEcho};

use super::NAT;
use crate::support::{ECHO, Rig};

/// The topology's: 02:00:00:00, the segment's number, the host's.
const CLIENT: [u8; 6] = [2, 0, 0, 0, 1, 2];
const GATEWAY_EXT: [u8; 6] = [2, 0, 0, 0, 1, 251];
const GATEWAY_INT: [u8; 6] = [2, 0, 0, 0, 2, 251];
const SERVER: [u8; 6] = [2, 0, 0, 0, 2, 11];
const LIMIT: Duration = Duration::from_secs(2);

/// A datagram after one hop: TTL 64 became 63.
fn hopped(source: SocketAddr, destination: SocketAddr, text: &[u8]) -> Vec<u8> {
    let datagram = packets::udp(source, destination, text);
    let mut packet = packets::ip(source.ip(), destination.ip(), UDP, None, &datagram);
    if source.is_ipv4() {
        packet[8] = 63;
        packet[10..12].fill(0);
        let sum = packets::checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[7] = 63;
    }
    packet
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn tags_are_kept_in_both_directions() {
    let configure = |topology: &lb_lab::Topology| {
        "interfaces = [\"ext\", \"int\"]\n".to_owned()
            + &NAT.service(topology, "echo", &format!(":{ECHO}/udp"), &[1], "")
    };
    let (rig, echoes) =
        Rig::shaped(Shape::default(), configure, |_, host| UdpEcho::start(host, ECHO).unwrap());
    let (client, server) = (&rig.topology.clients[0], rig.server(1));
    let at_client = FrameSocket::open(&client.netns, "eth0").unwrap();
    let at_server = FrameSocket::open(&server.netns, "eth0").unwrap();
    for v6 in [false, true] {
        let (vip, backend) = (NAT.target(v6, ECHO), SocketAddr::new(server.address(v6), ECHO));
        // Now both neighbours are known to the gateway.
        assert!(udp::ask(rig.client(), vip, b"untagged").unwrap().is_some());
        for (number, tags) in [&[(0x8100, 7)][..], &[(0x88a8, 8), (0x8100, 9)]].into_iter().enumerate() {
            let own = SocketAddr::new(client.address(v6), 40_000 + u16::try_from(number).unwrap());
            let packet = packets::ip(own.ip(), vip.ip(), UDP, None, &packets::udp(own, vip, b"question"));
            at_client.send(&packets::frame(GATEWAY_EXT, CLIENT, tags, &packet)).unwrap();
            let expected = packets::frame(SERVER, GATEWAY_INT, tags, &hopped(own, backend, b"question"));
            assert!(at_server.receive(LIMIT, |frame| frame == expected).is_some(), "IPv6 {v6}, {tags:?}");
            let packet =
                packets::ip(backend.ip(), own.ip(), UDP, None, &packets::udp(backend, own, b"answer"));
            at_server.send(&packets::frame(GATEWAY_INT, SERVER, tags, &packet)).unwrap();
            let expected = packets::frame(CLIENT, GATEWAY_EXT, tags, &hopped(vip, own, b"answer"));
            assert!(at_client.receive(LIMIT, |frame| frame == expected).is_some(), "IPv6 {v6}, {tags:?}");
        }
    }
    drop(echoes);
    rig.finish();
}
