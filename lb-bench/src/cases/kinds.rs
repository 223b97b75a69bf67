//! Kinds of packets that are rarer: fragments, tags, messages about others.

use std::net::Ipv4Addr;

use lb_common::verdict::Reason;

use super::{ALL, Expected, Flows, From, KINDS, List, Table, World, ends, verdict, vip4};
use crate::frames::{self, Client, Payload, flags};
use crate::network::{VLAN, client4, server4};

/// A router on the clients' side.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

impl List {
    pub(super) fn kinds(&mut self) {
        let [tcp, udp, ..] = KINDS;
        let to_backend = || ends(Reason::ToBackend, verdict::REDIRECT);

        let client = tcp.client(self.network());
        let opening = tcp.opening(client, vip4(0, 80));
        let data = frames::packet(client, vip4(0, 80), tcp.payload(flags::ACK), Client::Source);
        self.push(
            "to backend, TCP IPv4, VLAN tag",
            Flows::One,
            World::Main,
            frames::tagged(data, VLAN),
            to_backend(),
        );
        self.after(opening);

        let client = udp.client(self.network());
        let first = frames::first_fragment(client, vip4(0, 53));
        self.push("first fragment, UDP IPv4", Flows::One, World::Main, first, to_backend());
        self.after(udp.opening(client, vip4(0, 53)));
        let last = frames::last_fragment(client, vip4(0, 53));
        let expected = Expected { notes: vec![(Reason::FragmentFollowed, ALL)], ..to_backend() };
        self.push("later fragment, UDP IPv4", Flows::One, World::Main, last, expected);
        self.after(vec![first]);
        self.last(|case| case.table = Table::Renewed);

        let echo = frames::echo(client4(1), Ipv4Addr::new(203, 0, 113, 10));
        self.push("echo of a VIP", Flows::One, World::Main, echo, ends(Reason::EchoAnswered, verdict::TX));

        let client = udp.client(self.network());
        let (opening, vip) = (udp.opening(client, vip4(1, 53)), vip4(1, 53));
        // What the server got, and what the client got.
        let to_server = frames::packet(client, (server4(3), 53).into(), Payload::Udp, Client::None);
        let to_client = frames::packet(vip, client, Payload::Udp, Client::None);
        let (std::net::IpAddr::V4(from), std::net::IpAddr::V4(vip)) = (client.ip(), vip.ip()) else { return };
        let error = frames::unreachable(server4(3), from, &to_server);
        self.push(
            "ICMP error from a server, about UDP IPv4",
            Flows::One,
            World::Main,
            error,
            ends(Reason::ErrorToClient, verdict::REDIRECT),
        );
        self.after(opening.clone());
        self.last(|case| case.from = From::Server);
        let error = frames::unreachable(ROUTER, vip, &to_client);
        let expected = ends(Reason::ErrorToBackend, verdict::REDIRECT);
        self.push("ICMP error to a VIP, about UDP IPv4", Flows::One, World::Main, error, expected);
        self.after(opening);
    }
}
