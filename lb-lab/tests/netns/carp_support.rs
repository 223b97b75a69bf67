//! Gateways that share addresses: Matapa's and ucarp's, and packets that are not quite right.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_lab::matapa::Matapa;
use lb_lab::topology::EXT_V4;
use lb_lab::{Gateway, Lab, Netns, Plan, Process, Topology, wait_until};
use serde_json::Value;

use crate::support::binary;

/// With advbase 1 and advskew 0.
pub const MASTER_DOWN: Duration = Duration::from_secs(3);
/// For processes to start and be scheduled on a busy machine; nothing of the protocol.
pub const SLACK: Duration = Duration::from_millis(200);
pub const PASSWORD: &str = "love";
/// The address that is shared on the clients' segment.
pub const SHARED: Ipv4Addr = EXT_V4;

/// What differs between the configurations of the tests.
#[derive(Clone, Debug)]
pub struct Setting {
    pub advbase: u8,
    pub advskew: u8,
    pub password: &'static str,
    pub addresses: String,
    /// Further lines of the table.
    pub more: String,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            advbase: 1,
            advskew: 0,
            password: PASSWORD,
            addresses: format!("\"{SHARED}/24\""),
            more: "preempt = true".to_owned(),
        }
    }
}

impl Setting {
    pub fn skew(advskew: u8) -> Self {
        Self { advskew, ..Self::default() }
    }

    /// A configuration with nothing else.
    pub fn config(&self) -> String {
        self.table("mail", "ext", 42)
    }

    pub fn table(&self, name: &str, interface: &str, vhid: u8) -> String {
        let Self { advbase, advskew, password, addresses, more } = self;
        format!(
            "[carp.{name}]\ninterface = \"{interface}\"\nvhid = {vhid}\naddresses = [{addresses}]\n\
             password = \"{password}\"\nadvbase = {advbase}\nadvskew = {advskew}\n{more}\n\n"
        )
    }
}

/// Gateways without servers, and a client.
pub struct Gateways {
    pub topology: Topology,
}

impl Gateways {
    pub fn new(number: usize) -> Self {
        let lab = Lab::new().unwrap();
        let gateways = (1..=number).map(|n| format!("gw{n}")).collect();
        let plan = Plan { gateways, servers: vec![], ..Plan::default() };
        Self { topology: Topology::build(Arc::clone(&lab), &plan).unwrap() }
    }

    pub fn lab(&self) -> &Arc<Lab> {
        &self.topology.lab
    }

    /// Numbered from 1.
    pub fn gateway(&self, number: usize) -> &Gateway {
        &self.topology.gateways[number - 1]
    }

    /// Not started.
    pub fn matapa(&self, number: usize, config: &str) -> Matapa {
        Matapa::with_config(self.lab(), self.gateway(number), &binary(), config).unwrap()
    }

    pub fn started(&self, number: usize, config: &str) -> Matapa {
        let mut matapa = self.matapa(number, config);
        start(&mut matapa);
        matapa
    }

    pub fn ucarp(&self, number: usize, advskew: u8, password: &str, address: Ipv4Addr) -> Process {
        let script = |name: &str, command: &str| -> PathBuf {
            use std::os::unix::fs::PermissionsExt as _;
            let path = self.lab().directory().join(name);
            std::fs::write(&path, format!("#!/bin/sh\nip addr {command} \"$2/24\" dev \"$1\"\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let mut command = self.lab().command("ucarp").unwrap();
        let own = format!("192.0.2.{}", 250 + number);
        command.args(["-i", "ext", "-s", &own, "-v", "42", "-p", password, "-a", &address.to_string()]);
        command.arg("-u").arg(script("ucarp-up", "add")).arg("-d").arg(script("ucarp-down", "del"));
        command.args(["-b", "1", "-k", &advskew.to_string(), "-P", "-n", "-z"]);
        self.lab().start(&self.gateway(number).netns, &format!("ucarp{number}"), command).unwrap()
    }

    /// Cuts a gateway's cable to the clients in the middle: its interface still has a link.
    pub fn part(&self, number: usize) {
        self.gateway(number).cut("ext").unwrap();
    }

    /// Undoes [`Gateways::part`].
    pub fn heal(&self, number: usize) {
        self.gateway(number).mend("ext").unwrap();
    }

    /// Gateways that have the address now.
    pub fn masters(&self, address: IpAddr) -> Vec<usize> {
        self.topology.masters(address).unwrap()
    }

    /// Waits until exactly this gateway has the shared address, and says how long that took.
    pub fn wait_master(&self, number: usize, limit: Duration) -> Duration {
        let start = Instant::now();
        let mut last = Vec::new();
        wait_until(&format!("gw{number} alone to be master"), limit, || {
            last = self.masters(SHARED.into());
            Ok((last == [number]).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}; masters are {last:?}"));
        start.elapsed()
    }

    /// For so long nobody else has the shared address, and this gateway does not lose it.
    pub fn stays_master(&self, number: usize, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            assert_eq!(self.masters(SHARED.into()), [number], "after {:?}", start.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the client has learned of an address.
    pub fn client_knows(&self, address: IpAddr) -> String {
        let client = &self.topology.clients[0].netns;
        let args = ["neigh", "show", &address.to_string()];
        self.topology.run(client, "ip", &args, Duration::from_secs(5)).unwrap().expect("ip neigh").unwrap()
    }

    /// One echo from the client, so that it knows the address.
    pub fn ping(&self, address: IpAddr) {
        let client = &self.topology.clients[0].netns;
        let args = ["-c", "1", "-W", "2", &address.to_string()];
        self.topology.run(client, "ping", &args, Duration::from_secs(5)).unwrap().expect("ping").unwrap();
    }

    /// Everything that was started must have been dropped.
    pub fn remove(self) {
        let id = self.lab().id().to_owned();
        drop(self);
        assert_eq!(Lab::leftovers(&id), Vec::<String>::new(), "the lab left something behind");
    }
}

pub fn start(matapa: &mut Matapa) {
    matapa.start().unwrap_or_else(|error| panic!("{error:#}\n{}", matapa.log()));
}

/// `matapa show carp --json`
pub fn carp(matapa: &Matapa) -> Value {
    matapa.show("carp").unwrap()
}

pub fn rejected(matapa: &Matapa, reason: &str) -> u64 {
    carp(matapa)["rejected"][reason]["value"].as_u64().unwrap()
}

/// Of all reasons.
pub fn all_rejected(matapa: &Matapa) -> u64 {
    let reasons = carp(matapa)["rejected"].clone();
    reasons.as_object().unwrap().values().map(|counter| counter["value"].as_u64().unwrap()).sum()
}

/// Stops the daemon and takes its maps away.
pub fn finish(mut matapa: Matapa) {
    matapa.stop().unwrap_or_else(|error| panic!("{error:#}\n{}", matapa.log()));
    matapa.detach().unwrap();
}

/// vhid 42, password `love`, 10.1.1.252, advbase 1, advskew 0, counter 1; sound in every way.
pub const SOUND: [u8; 36] = [
    0x21, 0x2a, 0x00, 0x07, 0x00, 0x01, 0x63, 0xa2, 0, 0, 0, 0, 0, 0, 0, 1, 0xbe, 0xd0, 0x6b, 0x84, 0x2d,
    0xc2, 0xfc, 0xed, 0xe3, 0x8f, 0x51, 0x39, 0xbf, 0x18, 0xd9, 0x84, 0xf1, 0x27, 0x67, 0x96,
];

/// With some bytes changed and the checksum made right again.
pub fn altered(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = SOUND.to_vec();
    for (at, value) in changes {
        bytes[*at] = *value;
    }
    bytes[6..8].fill(0);
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    bytes[6..8].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

/// [`SOUND`] with one bit turned, the lowest of the first byte being number 0; and the checksum made right again or not.
pub fn with_bit(bit: usize, summed: bool) -> Vec<u8> {
    let (at, value) = (bit / 8, SOUND[bit / 8] ^ (1 << (bit % 8)));
    if summed {
        return altered(&[(at, value)]);
    }
    let mut bytes = SOUND.to_vec();
    bytes[at] = value;
    bytes
}

/// Sends payloads of protocol 112 from a namespace's `eth0`.
pub fn send(netns: &Netns, to: Ipv4Addr, ttl: u32, payloads: &[Vec<u8>]) {
    netns
        .run(|| {
            let protocol = socket2::Protocol::from(112);
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(protocol)).unwrap();
            socket.bind_device(Some(b"eth0")).unwrap();
            socket.set_multicast_ttl_v4(ttl).unwrap();
            socket.set_ttl_v4(ttl).unwrap();
            let to = SocketAddrV4::new(to, 0).into();
            for payload in payloads {
                socket.send_to(payload, &to).unwrap();
            }
        })
        .unwrap();
}
