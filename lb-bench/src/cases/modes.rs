//! Every forwarding mode.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::verdict::Reason;

use super::{Flows, From, KINDS, Kind, List, World, ends, verdict, vip4, vip6};
use crate::frames::{self, Client, flags};
use crate::network::{server4, server6};

/// What stands for clients in `snat`.
const SNAT4: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);
const SNAT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0xfffe);
/// The only port of each service there, so that it is known what answers are to.
const SNAT_PORT: u16 = 5000;

/// A way to a server, and which of the servers and VIPs it has.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    forward: &'static str,
    /// The server has an address of the client's family.
    alike: bool,
    number: u8,
}

const MODES: [Mode; 6] = [
    Mode { name: "snat", forward: "snat", alike: true, number: 11 },
    Mode { name: "dsr", forward: "dsr", alike: true, number: 12 },
    Mode { name: "ipip", forward: "ipip", alike: true, number: 13 },
    Mode { name: "ipip to the other family", forward: "ipip", alike: false, number: 14 },
    Mode { name: "gue", forward: "gue", alike: true, number: 15 },
    Mode { name: "nat, shared server", forward: "nat", alike: true, number: 16 },
];
const SNAT: Mode = MODES[0];
const SHARED: Mode = MODES[5];

impl Mode {
    fn server(self, v6: bool) -> IpAddr {
        let n = u16::from(self.number);
        if v6 { server6(n).into() } else { server4(n).into() }
    }

    fn vip(self, kind: Kind, copy: u8) -> SocketAddr {
        let n = self.number + copy;
        if kind.v6 { vip6(u16::from(n), kind.port()) } else { vip4(n, kind.port()) }
    }
}

/// A service for each mode and kind of flow.
pub(super) fn configuration() -> String {
    let mut text = String::new();
    let mut service = |mode: Mode, kind: Kind, copy: u8| {
        let protocol = if kind.tcp { "tcp" } else { "udp" };
        let name = format!("{}{copy}-{protocol}-{}", mode.number, if kind.v6 { 6 } else { 4 });
        let (vip, server) = (mode.vip(kind, copy), mode.server(kind.v6 == mode.alike));
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "[services.s{name}]\nlisten = [\"{vip}/{protocol}\"]\nbackends = [\"{server}\"]\nforward = {:?}\n",
            mode.forward
        );
        if mode.forward == "snat" {
            let address: IpAddr = if kind.v6 { SNAT6.into() } else { SNAT4.into() };
            let _ = writeln!(
                text,
                "snat = {{ addresses = [\"{address}\"], ports = \"{SNAT_PORT}-{SNAT_PORT}\" }}"
            );
        }
    };
    for mode in MODES {
        for kind in KINDS {
            service(mode, kind, 0);
        }
    }
    for kind in KINDS {
        service(SHARED, kind, 1);
    }
    text
}

impl List {
    /// Packets of known flows in each mode.
    pub(super) fn modes(&mut self) {
        for mode in MODES {
            for kind in KINDS {
                let opening = kind.opening(kind.client(self.network()), mode.vip(kind, 0));
                let Some(data) = opening.last().copied() else { continue };
                let name = format!("to backend by {}, {}", mode.name, kind.name);
                let expected = ends(Reason::ToBackend, verdict::REDIRECT);
                self.push(name, Flows::One, World::Modes, data, expected);
                self.after(opening);
                if mode.number == SNAT.number {
                    // There is one port, and the first case has it.
                    let snat: IpAddr = if kind.v6 { SNAT6.into() } else { SNAT4.into() };
                    self.answer(mode, kind, (snat, SNAT_PORT).into(), Vec::new());
                }
            }
        }
        for kind in KINDS {
            let client = kind.client(self.network());
            self.answer(SHARED, kind, client, kind.opening(client, SHARED.vip(kind, 1)));
        }
    }

    fn answer(&mut self, mode: Mode, kind: Kind, to: SocketAddr, before: Vec<crate::layout::Setup>) {
        let from = SocketAddr::from((mode.server(kind.v6), kind.port()));
        let answer = frames::packet(from, to, kind.payload(flags::ACK), Client::None);
        let name = format!("from backend by {}, {}", mode.name, kind.name);
        self.push(name, Flows::One, World::Modes, answer, ends(Reason::ToClient, verdict::REDIRECT));
        self.after(before);
        self.last(|case| case.from = From::Server);
    }
}
