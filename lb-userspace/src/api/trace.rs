//! `GET /v1/trace`: what the program decides for the packets that a filter wants, as they come.

use std::net::IpAddr;

use lb_common::abi::net::{Be16, mapped};
use lb_common::abi::trace::TraceFilter;
use lb_common::verdict::Reason;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::explain::protocol_number;

/// Packets a second that are told of when the request does not say.
pub const DEFAULT_RATE: u32 = 1000;
/// More would hold up the daemon.
pub const MOST_RATE: u32 = 100_000;

/// Which packets are wanted: those for which everything holds. Addresses and ports are those that a packet comes in with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of either side.
    pub host: Option<Network>,
    pub source: Option<Network>,
    pub destination: Option<Network>,
    /// Of either side.
    pub port: Option<u16>,
    /// IANA's number.
    pub protocol: Option<u8>,
    pub service: Option<String>,
    pub reason: Option<Reason>,
    /// Only what is dropped.
    pub dropped: bool,
}

/// An address, or all that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    /// Bits.
    pub len: u8,
}

impl Network {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is neither an address nor a network; write 192.0.2.1 or 192.0.2.0/24, 2001:db8::/32"
            )
        };
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = len.map_or(Ok(most), |len| len.parse().map_err(|_| wrong()))?;
        if len > most {
            return Err(wrong());
        }
        Ok(Self { address, len })
    }

    /// Network and mask as two words each, as they stand in memory.
    fn words(&self) -> [[u64; 2]; 2] {
        let (bytes, len) = match self.address {
            IpAddr::V4(v4) => (mapped(v4.octets()), u32::from(self.len) + 96),
            IpAddr::V6(v6) => (v6.octets(), u32::from(self.len)),
        };
        let mask = u128::MAX.checked_shl(128 - len).unwrap_or(0);
        let network = u128::from_be_bytes(bytes) & mask;
        [network, mask].map(|number| bytemuck::must_cast(number.to_be_bytes()))
    }
}

/// The words of a filter, for people who mistyped one.
const WORDS: &str =
    "host ADDRESS, src ADDRESS, dst ADDRESS, port N, proto tcp|udp|N, service NAME, reason NAME, drop";

impl Filter {
    /// From its words: `host 192.0.2.1 port 25 drop`. No words: every packet.
    ///
    /// # Errors
    /// With a sentence that says what is wrong, and what to write instead.
    pub fn parse<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Self, String> {
        let mut filter = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "drop" {
                filter.dropped = true;
                continue;
            }
            if !["host", "src", "dst", "port", "proto", "service", "reason"].contains(&word) {
                return Err(format!("a filter has no word {word:?}; it knows {WORDS}"));
            }
            let value = words.next().ok_or_else(|| format!("nothing follows {word:?}; write {WORDS}"))?;
            let twice = match word {
                "host" => filter.host.replace(Network::parse(value)?).is_some(),
                "src" => filter.source.replace(Network::parse(value)?).is_some(),
                "dst" => filter.destination.replace(Network::parse(value)?).is_some(),
                "port" => filter.port.replace(port(value)?).is_some(),
                "proto" => filter.protocol.replace(protocol_number(value)?).is_some(),
                "service" => filter.service.replace(value.to_owned()).is_some(),
                _ => filter.reason.replace(reason(value)?).is_some(),
            };
            if twice {
                return Err(format!("{word} is given twice, and no packet would fit both"));
            }
        }
        Ok(filter)
    }

    /// The part of it that the program itself goes by.
    pub fn early(&self) -> TraceFilter {
        let words = |network: Option<Network>| network.map_or([[0; 2]; 2], |network| network.words());
        let [source, source_mask] = words(self.source);
        let [destination, destination_mask] = words(self.destination);
        let [host, host_mask] = words(self.host);
        TraceFilter {
            protocol: self.protocol.unwrap_or(0).into(),
            port: Be16::new(self.port.unwrap_or(0)),
            source,
            source_mask,
            destination,
            destination_mask,
            host,
            host_mask,
            ..TraceFilter::default()
        }
    }
}

fn port(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|port| *port != 0);
    number.ok_or_else(|| format!("{text:?} is no port; write a number from 1 to 65535"))
}

fn reason(text: &str) -> Result<Reason, String> {
    let found = Reason::ALL.iter().find(|reason| reason.name() == text);
    found.copied().ok_or_else(|| {
        let near = Reason::ALL
            .iter()
            .max_by(|a, b| strsim::jaro(a.name(), text).total_cmp(&strsim::jaro(b.name(), text)));
        let near = near.map(|reason| format!("; did you mean {}?", reason.name())).unwrap_or_default();
        format!("there is no reason {text:?}{near} (`matapa show counters --all` lists them)")
    })
}

/// One line of `GET /v1/trace?filter=WORDS&rate=N` (newline-delimited JSON, as they come).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TraceLine {
    /// Seconds since the epoch, with fraction.
    pub time: f64,
    /// The interface that it came in on.
    pub interface: String,
    /// The outer VLAN tag's number.
    pub vlan: Option<u16>,
    /// `None` when it is not IP; so for the next ones.
    #[schema(value_type = Option<String>)]
    pub source: Option<IpAddr>,
    #[schema(value_type = Option<String>)]
    pub destination: Option<IpAddr>,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, `icmp6` or a number.
    pub protocol: Option<String>,
    /// Of TCP, in tcpdump's letters: `S`, `S.`, `.`, `P.`, `F.`, `R`.
    pub flags: String,
    /// A later fragment, without ports.
    pub fragment: bool,
    /// Bytes of the frame.
    pub length: u32,
    pub service: Option<String>,
    pub backend: Option<String>,
    /// `pass`, `drop`, `transmit` (out of the interface it came from) or `redirect` (out of another one).
    pub action: String,
    /// The counter that the packet moved.
    pub reason: String,
    /// How it came to that, in words.
    pub steps: Vec<String>,
    /// Packets before this one that were wanted, and came too fast to be told of.
    pub missed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Filter, String> {
        Filter::parse(text.split_whitespace())
    }

    #[test]
    fn filters_are_read_and_become_words_of_the_program() {
        assert_eq!(parse(""), Ok(Filter::default()));
        let filter =
            parse("host 192.0.2.0/24 port 25 proto tcp reason no_backend drop service mail").expect("good");
        assert_eq!(filter.protocol, Some(6));
        assert_eq!(filter.reason, Some(Reason::NoBackend));
        assert_eq!((filter.dropped, filter.service.as_deref()), (true, Some("mail")));
        let early = filter.early();
        assert_eq!((early.protocol, early.port.get(), early.used), (6, 25, 0));
        assert_eq!(bytemuck::bytes_of(&early.host)[10..], [0xff, 0xff, 192, 0, 2, 0]);
        assert_eq!(bytemuck::bytes_of(&early.host_mask)[10..], [0xff, 0xff, 255, 255, 255, 0]);
        assert_eq!(early.source_mask, [0; 2]);
        let early = parse("src 2001:db8::1 dst ::/0").expect("good").early();
        assert_eq!(bytemuck::bytes_of(&early.source)[..4], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(early.source_mask, [u64::MAX; 2]);
        assert_eq!(early.destination_mask, [0; 2]);
    }

    #[test]
    fn what_is_no_filter_is_refused_with_advice() {
        for (text, says) in [
            ("hots 192.0.2.1", "no word \"hots\"; it knows host"),
            ("host", "nothing follows \"host\""),
            ("host mx1", "neither an address nor a network"),
            ("src 192.0.2.0/33", "192.0.2.0/24"),
            ("port 0", "from 1 to 65535"),
            ("proto sctp", "no protocol \"sctp\""),
            ("reason no_backed", "did you mean no_backend?"),
            ("host 192.0.2.1 host 192.0.2.2", "host is given twice"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
    }
}
