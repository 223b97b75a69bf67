//! `GET /v1/explain`: what the loaded program would do with a packet, and why.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::packet::tcp::TcpFlags;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::types::AdminState;
use crate::health::Health;

/// A packet, as a person describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub carries: Carries,
    /// The interface that it comes in on; `None`: the one towards `source`.
    pub interface: Option<String>,
    /// VLAN numbers, from the outside in: two at most.
    pub vlans: Vec<u16>,
}

/// What is above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    Tcp {
        source: u16,
        destination: u16,
        flags: TcpFlags,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    /// An echo request of the version of IP that it is in.
    Ping,
    /// Any other protocol, by IANA's number.
    Other(u8),
}

/// The flags that can be asked about, by their names.
pub const FLAGS: [(&str, TcpFlags); 4] =
    [("syn", TcpFlags::SYN), ("ack", TcpFlags::ACK), ("fin", TcpFlags::FIN), ("rst", TcpFlags::RST)];

/// IANA's numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

impl Question {
    /// From words: `192.0.2.1:40000`, `203.0.113.10:25/tcp`, and perhaps `syn,ack`, `eth0`, `10,20`.
    ///
    /// # Errors
    /// With a sentence that says what is wrong, and what to write instead.
    pub fn parse(
        source: &str,
        destination: &str,
        flags: Option<&str>,
        interface: Option<&str>,
        vlan: Option<&str>,
    ) -> Result<Self, String> {
        let (to, protocol) = match destination.rsplit_once('/') {
            Some((to, protocol)) => (to, Some(protocol_number(protocol)?)),
            None => (destination, None),
        };
        if source.contains('/') {
            return Err(format!("the protocol belongs to the destination: {source:?} must be ADDRESS:PORT"));
        }
        let (from, from_port) = end(source)?;
        let (to, to_port) = end(to)?;
        if from.is_ipv4() != to.is_ipv4() {
            return Err(format!("{from} and {to} are not of the same version of IP"));
        }
        let flags = flags.map(tcp_flags).transpose()?;
        let Some(number) = protocol.or_else(|| to_port.map(|_| TCP)) else {
            return Err(format!(
                "{to} has no port; add one, or a protocol without ports, such as {to}/icmp or {to}/47"
            ));
        };
        if flags.is_some() && number != TCP {
            return Err("flags are for TCP only".to_owned());
        }
        let both = || match (from_port, to_port) {
            (Some(source), Some(destination)) => Ok((source, destination)),
            (None, _) => {
                Err(format!("{from} has no port; write one, such as {}", SocketAddr::new(from, 40_000)))
            }
            (_, None) => Err(format!("{to} has no port; write one, such as {}", SocketAddr::new(to, 25))),
        };
        let carries = match number {
            TCP => {
                let (source, destination) = both()?;
                Carries::Tcp { source, destination, flags: flags.unwrap_or(TcpFlags::SYN) }
            }
            UDP => {
                let (source, destination) = both()?;
                Carries::Udp { source, destination }
            }
            number => {
                if from_port.or(to_port).is_some() {
                    return Err("this protocol has no ports; leave them out".to_owned());
                }
                if number == if to.is_ipv4() { ICMP } else { ICMP6 } {
                    Carries::Ping
                } else {
                    Carries::Other(number)
                }
            }
        };
        let vlans = vlan.map_or(Ok(Vec::new()), vlans)?;
        Ok(Self { source: from, destination: to, carries, interface: interface.map(str::to_owned), vlans })
    }

    /// IANA's number of what it carries.
    pub const fn protocol(&self) -> u8 {
        match self.carries {
            Carries::Tcp { .. } => TCP,
            Carries::Udp { .. } => UDP,
            Carries::Ping => {
                if self.destination.is_ipv4() {
                    ICMP
                } else {
                    ICMP6
                }
            }
            Carries::Other(number) => number,
        }
    }

    /// Source and destination, 0 where there are none.
    pub const fn ports(&self) -> (u16, u16) {
        match self.carries {
            Carries::Tcp { source, destination, .. } | Carries::Udp { source, destination } => {
                (source, destination)
            }
            Carries::Ping | Carries::Other(_) => (0, 0),
        }
    }
}

/// An address, and perhaps a port.
fn end(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(both) = text.parse::<SocketAddr>() {
        return Ok((both.ip(), Some(both.port())));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().map(|address| (address, None)).map_err(|_| {
        format!("{text:?} is not an address with a port; write 192.0.2.1:40000 or [2001:db8::1]:40000")
    })
}

/// IANA's number of a protocol by its name, or by the number itself.
///
/// # Errors
/// With a sentence that says what to write.
pub fn protocol_number(text: &str) -> Result<u8, String> {
    match text {
        "tcp" => Ok(TCP),
        "udp" => Ok(UDP),
        "icmp" => Ok(ICMP),
        "icmp6" | "icmpv6" => Ok(ICMP6),
        _ => text.parse().map_err(|_| {
            format!("there is no protocol {text:?}; write tcp, udp, icmp, icmp6 or a number to 255")
        }),
    }
}

/// The name that goes with a number, or the number itself.
pub fn protocol_name(number: u8) -> String {
    match number {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        ICMP => "icmp".to_owned(),
        ICMP6 => "icmp6".to_owned(),
        number => number.to_string(),
    }
}

fn tcp_flags(text: &str) -> Result<TcpFlags, String> {
    let mut flags = TcpFlags(0);
    for word in text.split([',', '+']).map(str::trim).filter(|word| !word.is_empty() && *word != "none") {
        let found = FLAGS.iter().find(|(name, _)| *name == word.to_ascii_lowercase());
        let (_, flag) = found.ok_or_else(|| {
            format!("there is no flag {word:?}; write syn, ack, fin or rst, several with commas, or none")
        })?;
        flags = flags.with(*flag);
    }
    Ok(flags)
}

fn vlans(text: &str) -> Result<Vec<u16>, String> {
    let numbers: Option<Vec<u16>> = text
        .split(',')
        .map(|word| word.trim().parse().ok().filter(|number| (1..=4094).contains(number)))
        .collect();
    numbers.filter(|numbers| numbers.len() <= 2).ok_or_else(|| {
        format!("{text:?} names no VLAN; write a number from 1 to 4094, or two as OUTER,INNER")
    })
}

/// The names of TCP's flags that can be asked about, of those that are set.
pub fn flag_names(flags: TcpFlags) -> Vec<String> {
    FLAGS.iter().filter(|(_, flag)| flags.has(*flag)).map(|(name, _)| (*name).to_owned()).collect()
}

/// The answer. What the packet did not come to is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub packet: ExplainedPacket,
    /// The listener that it is for.
    pub listener: Option<ExplainedListener>,
    /// It is a backend's own packet, such as an answer to a client.
    pub from_backend: bool,
    pub flow: Option<ExplainedFlow>,
    pub choice: Option<Choice>,
    /// Where it goes to, or comes from.
    pub backend: Option<ExplainedBackend>,
    /// `nat`, `snat`, `dsr`, `ipip` or `gue`.
    pub mode: Option<String>,
    /// With `snat`, what stands for the client.
    #[schema(value_type = Option<String>)]
    pub stands_for_client: Option<SocketAddr>,
    pub next_hop: Option<ExplainedHop>,
    /// `pass`, `drop`, `transmit` (out of the interface it came from) or `redirect` (out of another one).
    pub action: String,
    /// The counter that the packet would move.
    pub reason: String,
    /// `forward`, `pass` or `drop`.
    pub verdict: String,
    /// What the reason means.
    pub meaning: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedPacket {
    #[schema(value_type = String)]
    pub source: IpAddr,
    #[schema(value_type = String)]
    pub destination: IpAddr,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `icmp6` or a number.
    pub protocol: String,
    /// Of TCP.
    pub flags: Vec<String>,
    pub interface: String,
    /// From the outside in.
    pub vlans: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedListener {
    pub service: String,
    /// As in the configuration: `203.0.113.10:25/tcp`.
    pub listen: String,
    pub scheduler: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedFlow {
    /// Whether it is in the flow table.
    pub known: bool,
    /// As in `GET /v1/flows`.
    pub state: Option<String>,
    pub idle_seconds: Option<u64>,
    /// `SERVICE/BACKEND` that it is recorded with.
    pub backend: Option<String>,
}

/// How a backend was chosen for a flow without one, or another one for a flow that has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Choice {
    /// The scheduler picks a slot of the listener's table.
    Scheduler { slot: u32, slots: u32 },
    /// The client is remembered.
    Sticky,
    /// Second chance: this backend has not answered.
    SecondChance { silent: String },
    /// It follows the first fragment of its datagram.
    Fragment,
    /// The scheduler's choice has as many connections as it may, and this is the next with room.
    Room { full: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedBackend {
    pub service: String,
    pub name: String,
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// `None`: the port that the client uses.
    pub port: Option<u16>,
    pub health: Health,
    pub admin: AdminState,
    pub suspect: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedHop {
    pub reach: Reached,
    /// With `known`.
    pub interface: Option<String>,
    /// Likewise, of the next machine.
    pub mac: Option<String>,
}

/// What the routing table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reached {
    Known,
    /// The kernel must ask for its MAC address first.
    NeighbourUnknown,
    /// By an interface without the program.
    Elsewhere,
    TooBig,
    /// No route, or the gateway itself.
    NotForwarded,
    /// Blackhole, unreachable, prohibit.
    Refused,
    ForwardingDisabled,
    Unsupported,
}

/// A MAC address in the usual notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str, destination: &str) -> Result<Question, String> {
        Question::parse(source, destination, None, None, None)
    }

    #[test]
    fn packets_are_described_in_few_words() {
        let question = parse("192.0.2.1:40000", "203.0.113.10:25").expect("good");
        let syn = TcpFlags::SYN;
        assert_eq!(question.carries, Carries::Tcp { source: 40_000, destination: 25, flags: syn });
        let question = parse("[2001:db8::1]:5000", "[2001:db8::10]:53/udp").expect("good");
        assert_eq!(question.carries, Carries::Udp { source: 5000, destination: 53 });
        for (source, destination, number) in [
            ("192.0.2.1", "203.0.113.10/icmp", 1),
            ("2001:db8::1", "2001:db8::10/icmp6", 58),
            ("[2001:db8::1]", "[2001:db8::10]/47", 47),
        ] {
            assert_eq!(parse(source, destination).map(|q| q.protocol()), Ok(number), "{destination}");
        }
        let question = Question::parse(
            "192.0.2.1:1",
            "203.0.113.10:25/tcp",
            Some("syn,ack"),
            Some("eth0"),
            Some("10,20"),
        );
        let question = question.expect("good");
        let flags = TcpFlags::SYN.with(TcpFlags::ACK);
        assert_eq!(question.carries, Carries::Tcp { source: 1, destination: 25, flags });
        assert_eq!((question.interface.as_deref(), question.vlans), (Some("eth0"), vec![10, 20]));
    }

    #[test]
    fn what_is_no_packet_is_refused_with_advice() {
        for (source, destination, says) in [
            ("192.0.2.1:40000", "203.0.113.10", "203.0.113.10 has no port; add one, or a protocol"),
            ("192.0.2.1", "203.0.113.10:25", "such as 192.0.2.1:40000"),
            ("192.0.2.1:1", "203.0.113.10/udp", "203.0.113.10 has no port; write one"),
            ("192.0.2.1:1", "[2001:db8::10]:25", "not of the same version"),
            ("192.0.2.1:1/tcp", "203.0.113.10:25", "belongs to the destination"),
            ("192.0.2.1:1", "203.0.113.10:25/sctp", "there is no protocol \"sctp\""),
            ("192.0.2.1:1", "203.0.113.10:25/47", "has no ports"),
            ("mx1:25", "203.0.113.10:25", "\"mx1:25\" is not an address"),
        ] {
            let error = parse(source, destination).expect_err(destination);
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        let ask = |flags, vlan| Question::parse("192.0.2.1:1", "203.0.113.10:25/udp", flags, None, vlan);
        for (flags, vlan, says) in [
            (Some("syn"), None, "TCP only"),
            (Some("bogus"), None, "no flag \"bogus\""),
            (None, Some("0"), "from 1 to 4094"),
            (None, Some("1,2,3"), "OUTER,INNER"),
        ] {
            let error = ask(flags, vlan).expect_err(says);
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }
}
