//! Datagrams and the records in them. All numbers are big-endian.
//!
//! A datagram is a header, a body and the HMAC-SHA256 of both:
//!
//! | bytes | |
//! |---|---|
//! | 4 | `MTPS` |
//! | 1 | version |
//! | 1 | kind: 1 hello, 2 records, 3 acknowledgement |
//! | 2 | length of the body |
//! | 8 | the sender's session |
//! | 8 | the receiver's session, as far as the sender knows; 0 when not |
//! | 8 | hello: 0; records: this batch's number; acknowledgement: the next number that is missing |
//!
//! Hello's body: a challenge (8), the answer to the receiver's challenge (8), places in the flow table (4).
//! Acknowledgement's body: a bit for each number after the missing one that has come, 32 bytes, lowest bit first.
//! A batch's body: how many of the receiver's batches the sender had taken when it made this one (8), then records, see
//! [`Record`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::flow::FlowState;
use subtle::ConstantTimeEq as _;

use super::key::{Key, digest};

pub const VERSION: u8 = 1;
/// The longest datagram: with IP and UDP headers it passes any usual link in one piece.
pub const LONGEST: usize = 1400;
/// Numbers that an acknowledgement tells of besides the missing one.
pub const ACKNOWLEDGED: u64 = 256;

const MAGIC: [u8; 4] = *b"MTPS";
const HEADER: usize = 32;
const DIGEST: usize = 32;
/// The most bytes of records in a batch.
pub const LONGEST_BODY: usize = LONGEST - HEADER - 8 - DIGEST;

/// Why a datagram was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refused {
    /// Not from the configured peer.
    Stranger,
    /// Too short, too long, or not ours at all.
    Malformed,
    /// The peer speaks another version.
    Version,
    /// Another key, or forged.
    Digest,
    /// Of a session that is not the current one: an old one, or one that has not proved itself yet.
    Session,
    /// A batch that has been taken already.
    Repeated,
    /// A batch far ahead of what is expected.
    Ahead,
}

impl Refused {
    pub const ALL: [Self; 7] = [
        Self::Stranger,
        Self::Malformed,
        Self::Version,
        Self::Digest,
        Self::Session,
        Self::Repeated,
        Self::Ahead,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Digest => "digest",
            Self::Session => "session",
            Self::Repeated => "repeated",
            Self::Ahead => "ahead",
        }
    }

    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Stranger => "datagrams from another address than sync.peer",
            Self::Malformed => "datagrams that are no flow synchronisation",
            Self::Version => "datagrams of another version: run the same version on both gateways",
            Self::Digest => "datagrams with a wrong digest: sync.key_file differs, or somebody forges them",
            Self::Session => "datagrams of another session than the current one",
            Self::Repeated => "batches that had been taken already",
            Self::Ahead => "batches too far ahead of those that are missing",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The sender's session.
    pub from: u64,
    /// The receiver's, 0 when it is not known.
    pub to: u64,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Zero stands for no challenge and no answer.
    Hello {
        challenge: u64,
        answer: u64,
        places: u32,
    },
    /// `seen`: how many of the receiver's batches the sender had taken when it made this one.
    Records {
        number: u64,
        seen: u64,
        records: Vec<u8>,
    },
    Acknowledgement {
        missing: u64,
        received: [u8; 32],
    },
}

impl Datagram {
    /// The bytes with their digest.
    #[must_use]
    pub fn seal(&self, key: &Key) -> Vec<u8> {
        let mut body = Vec::new();
        let (kind, number) = match &self.body {
            Body::Hello { challenge, answer, places } => {
                body.extend(challenge.to_be_bytes());
                body.extend(answer.to_be_bytes());
                body.extend(places.to_be_bytes());
                (1, 0)
            }
            Body::Records { number, seen, records } => {
                body.extend(seen.to_be_bytes());
                body.extend(records);
                (2, *number)
            }
            Body::Acknowledgement { missing, received } => {
                body.extend(received);
                (3, *missing)
            }
        };
        let mut bytes = Vec::with_capacity(HEADER + body.len() + DIGEST);
        bytes.extend(MAGIC);
        bytes.extend([VERSION, kind]);
        bytes.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(u64::to_be_bytes(number));
        bytes.extend(body);
        let digest = digest(key, &[&bytes]);
        bytes.extend(digest);
        bytes
    }

    /// # Errors
    /// When the bytes are no datagram of this key.
    pub fn open(bytes: &[u8], key: &Key) -> Result<Self, Refused> {
        if bytes.len() < HEADER + DIGEST || bytes.len() > LONGEST || bytes[..4] != MAGIC {
            return Err(Refused::Malformed);
        }
        // Before the digest, which another version may have elsewhere. Nothing is done about it but to count it.
        if bytes[4] != VERSION {
            return Err(Refused::Version);
        }
        let (signed, signature) = bytes.split_at(bytes.len() - DIGEST);
        if !bool::from(digest(key, &[signed]).ct_eq(signature)) {
            return Err(Refused::Digest);
        }
        let mut reader = Reader(&signed[5..]);
        let datagram = reader.datagram().filter(|_| reader.0.is_empty());
        datagram.ok_or(Refused::Malformed)
    }
}

/// What a batch says. A place is one of the sender's flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Flow {
        place: u32,
        flow: Flow,
    },
    /// The flow that was at this place is gone.
    Gone {
        place: u32,
    },
    /// Everything has been told once.
    Complete,
}

/// A flow in words that mean the same everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub client: IpAddr,
    pub client_port: u16,
    pub vip: IpAddr,
    pub vip_port: u16,
    /// As in [`lb_common::abi::Protocol`].
    pub protocol: u8,
    pub server: IpAddr,
    /// 0: the port that the client used.
    pub server_port: u16,
    /// What stands for the client.
    pub snat: Option<(IpAddr, u16)>,
    pub state: FlowState,
    /// How often it was moved while it was opening.
    pub moves: u8,
    /// Seconds since its last packet.
    pub age: u16,
    /// What the two gateways say of it differs, and this is what counts.
    pub decided: bool,
}

const GONE: u8 = 1;
const COMPLETE: u8 = 2;
const FLOW: u8 = 3;

/// Bits of a flow's second byte.
const CLIENT6: u8 = 1;
const SERVER6: u8 = 2;
const SNAT: u8 = 4;
const DECIDED: u8 = 8;
const MOVES_SHIFT: u8 = 4;

impl Record {
    /// Whether it has room after what is there.
    pub fn put(&self, batch: &mut Vec<u8>) -> bool {
        let before = batch.len();
        match self {
            Self::Gone { place } => {
                batch.push(GONE);
                batch.extend(place.to_be_bytes());
            }
            Self::Complete => batch.push(COMPLETE),
            Self::Flow { place, flow } => {
                let mut bits = (flow.moves & 7) << MOVES_SHIFT;
                for (set, bit) in [
                    (flow.vip.is_ipv6(), CLIENT6),
                    (flow.server.is_ipv6(), SERVER6),
                    (flow.snat.is_some(), SNAT),
                    (flow.decided, DECIDED),
                ] {
                    bits |= if set { bit } else { 0 };
                }
                batch.extend([FLOW, bits, flow.state as u8, flow.protocol]);
                batch.extend(place.to_be_bytes());
                batch.extend(flow.age.to_be_bytes());
                put_end(batch, flow.client, flow.client_port);
                put_end(batch, flow.vip, flow.vip_port);
                put_end(batch, flow.server, flow.server_port);
                if let Some((address, port)) = flow.snat {
                    put_end(batch, address, port);
                }
            }
        }
        let fits = batch.len() <= LONGEST_BODY;
        if !fits {
            batch.truncate(before);
        }
        fits
    }

    /// The records of a batch. `None` when one cannot be read: nothing of such a batch is used.
    #[must_use]
    pub fn all(batch: &[u8]) -> Option<Vec<Self>> {
        let mut reader = Reader(batch);
        let mut records = Vec::new();
        while !reader.0.is_empty() {
            records.push(reader.record()?);
        }
        Some(records)
    }
}

fn put_end(batch: &mut Vec<u8>, address: IpAddr, port: u16) {
    match address {
        IpAddr::V4(v4) => batch.extend(v4.octets()),
        IpAddr::V6(v6) => batch.extend(v6.octets()),
    }
    batch.extend(port.to_be_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn end(&mut self, v6: bool) -> Option<(IpAddr, u16)> {
        let address = if v6 {
            IpAddr::V6(Ipv6Addr::from(self.take::<16>()?))
        } else {
            IpAddr::V4(Ipv4Addr::from(self.take::<4>()?))
        };
        Some((address, self.take().map(u16::from_be_bytes)?))
    }

    /// From the kind on.
    fn datagram(&mut self) -> Option<Datagram> {
        let kind = self.byte()?;
        let len = usize::from(self.take().map(u16::from_be_bytes)?);
        let (from, to, number) = (self.long()?, self.long()?, self.long()?);
        if len != self.0.len() || from == 0 {
            return None;
        }
        let body = match kind {
            1 => Body::Hello {
                challenge: self.long()?,
                answer: self.long()?,
                places: self.take().map(u32::from_be_bytes)?,
            },
            2 => Body::Records { number, seen: self.long()?, records: std::mem::take(&mut self.0).to_vec() },
            3 => Body::Acknowledgement { missing: number, received: self.take()? },
            _ => return None,
        };
        Some(Datagram { from, to, body })
    }

    fn record(&mut self) -> Option<Record> {
        match self.byte()? {
            GONE => Some(Record::Gone { place: self.take().map(u32::from_be_bytes)? }),
            COMPLETE => Some(Record::Complete),
            FLOW => {
                let [bits, state, protocol] = self.take()?;
                let place = self.take().map(u32::from_be_bytes)?;
                let age = self.take().map(u16::from_be_bytes)?;
                let state = FlowState::from_bits(state);
                if matches!(state, FlowState::Free | FlowState::Reverse) {
                    return None;
                }
                let has = |bit: u8| bits & bit != 0;
                let (client, client_port) = self.end(has(CLIENT6))?;
                let (vip, vip_port) = self.end(has(CLIENT6))?;
                let (server, server_port) = self.end(has(SERVER6))?;
                let snat = if has(SNAT) { Some(self.end(has(SERVER6))?) } else { None };
                let moves = bits >> MOVES_SHIFT & 7;
                let flow = Flow {
                    client,
                    client_port,
                    vip,
                    vip_port,
                    protocol,
                    server,
                    server_port,
                    snat,
                    state,
                    moves,
                    age,
                    decided: has(DECIDED),
                };
                Some(Record::Flow { place, flow })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: Key = [7; 32];

    fn flow() -> Flow {
        Flow {
            client: "192.0.2.7".parse().unwrap(),
            client_port: 40_000,
            vip: "203.0.113.10".parse().unwrap(),
            vip_port: 25,
            protocol: 6,
            server: "198.51.100.11".parse().unwrap(),
            server_port: 2525,
            snat: Some(("198.51.100.1".parse().unwrap(), 1024)),
            state: FlowState::Established,
            moves: 5,
            age: 17,
            decided: true,
        }
    }

    #[test]
    fn records_survive_the_way() {
        let v6 = Flow {
            client: "2001:db8::7".parse().unwrap(),
            vip: "2001:db8::10".parse().unwrap(),
            snat: None,
            decided: false,
            ..flow()
        };
        let records = [
            Record::Flow { place: 3, flow: flow() },
            Record::Gone { place: u32::MAX },
            Record::Flow { place: 4, flow: v6 },
            Record::Complete,
        ];
        let mut batch = Vec::new();
        assert!(records.iter().all(|record| record.put(&mut batch)));
        assert_eq!(Record::all(&batch).unwrap(), records);
        assert!(
            (0..batch.len()).filter(|len| Record::all(&batch[..*len]).is_some()).count() <= records.len()
        );
        let record = Record::Flow { place: 3, flow: flow() };
        while record.put(&mut batch) {}
        assert!(batch.len() <= LONGEST_BODY && batch.len() > LONGEST_BODY - 40);
        let body = Body::Records { number: 1, seen: 0, records: batch };
        assert!(Datagram { from: 1, to: 2, body }.seal(&KEY).len() <= LONGEST);
    }

    #[test]
    fn refusals_have_reasons() {
        let body = Body::Hello { challenge: 1, answer: 2, places: 3 };
        let bytes = Datagram { from: 9, to: 0, body }.seal(&KEY);
        assert!(Datagram::open(&bytes, &KEY).is_ok());
        assert_eq!(Datagram::open(&bytes, &[8; 32]), Err(Refused::Digest));
        assert_eq!(Datagram::open(&bytes[..40], &KEY), Err(Refused::Malformed));
        let mut other = bytes.clone();
        other[4] = 2;
        assert_eq!(Datagram::open(&other, &KEY), Err(Refused::Version));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_changed_bit_is_noticed(at in 0usize..100, bit in 0u8..8) {
            let body = Body::Acknowledgement { missing: 5, received: [3; 32] };
            let mut bytes = Datagram { from: 1, to: 2, body }.seal(&KEY);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Datagram::open(&bytes, &KEY).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            let _ = Record::all(&bytes);
            let _ = Datagram::open(&bytes, &KEY);
        }
    }
}
