//! The CARP header, version 2: 36 bytes, the payload of IP protocol 112.
//!
//! There is no RFC; the layout is that of OpenBSD's `netinet/ip_carp.h`, which FreeBSD, NetBSD and ucarp share. Numbers
//! of more than one byte are in network byte order.
//!
//! ```text
//! 0        version (high nibble) and type (low nibble): 0x21
//! 1        vhid
//! 2        advskew
//! 3        length of what is authenticated in 32-bit words: 7
//! 4        demotion (OpenBSD), 0 elsewhere
//! 5        advbase
//! 6..8     Internet checksum (RFC 1071) over these 36 bytes, without a pseudo-header
//! 8..16    counter
//! 16..36   HMAC-SHA1
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol number. VRRP has the same (RFC 9568), and the same first byte.
pub const PROTOCOL: u8 = 112;
/// Where advertisements go over IPv4, unless to a peer (RFC 9568 section 1.6 names the group).
pub const GROUP4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
/// Where advertisements go over IPv6, unless to a peer.
pub const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// TTL or hop limit of every advertisement: a router would have lowered it, so it comes from the same segment.
pub const TTL: u8 = 255;
/// Bytes.
pub const LENGTH: usize = 36;

const VERSION: u8 = 2;
const ADVERTISEMENT: u8 = 1;
/// Counter and digest in 32-bit words.
const AUTH_WORDS: u8 = 7;
/// `advskew` and `advbase` of an advertisement by which a master says that it goes away.
pub const BOW_OUT: u8 = 255;

/// What an advertisement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub vhid: u8,
    pub advbase: u8,
    pub advskew: u8,
    /// Demotion of the sender; only OpenBSD and Matapa fill it in.
    pub demotion: u8,
    /// The sender's own number: constant (OpenBSD) or counting (FreeBSD, ucarp).
    pub counter: u64,
    pub digest: [u8; 20],
}

/// Why a packet of protocol 112 was not taken. Each is a counter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rejected {
    /// TTL or hop limit other than 255.
    Ttl,
    Length,
    /// VRRP in any version; not an error.
    Vrrp,
    Version,
    Kind,
    AuthLength,
    Checksum,
    /// No vhid of this interface.
    Vhid,
    /// Multicast where a peer is configured, or the other way round, or from somebody who is no peer.
    Destination,
    Digest,
    /// Our own, come back to us.
    Loop,
}

impl Rejected {
    pub const ALL: [Self; 11] = [
        Self::Ttl,
        Self::Length,
        Self::Vrrp,
        Self::Version,
        Self::Kind,
        Self::AuthLength,
        Self::Checksum,
        Self::Vhid,
        Self::Destination,
        Self::Digest,
        Self::Loop,
    ];

    /// The counter's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ttl => "carp_ttl",
            Self::Length => "carp_length",
            Self::Vrrp => "carp_vrrp",
            Self::Version => "carp_version",
            Self::Kind => "carp_type",
            Self::AuthLength => "carp_authlen",
            Self::Checksum => "carp_checksum",
            Self::Vhid => "carp_vhid",
            Self::Destination => "carp_destination",
            Self::Digest => "carp_digest",
            Self::Loop => "carp_loop",
        }
    }

    /// What it means to an operator, and what to do.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Ttl => "TTL is not 255: sent through a router, or forged",
            Self::Length => "not 36 bytes long: cut short, or not CARP",
            Self::Vrrp => "VRRP, which has the same protocol number; ignored",
            Self::Version => "a CARP version other than 2",
            Self::Kind => "not an advertisement",
            Self::AuthLength => "length of the authenticated part is not 7 words",
            Self::Checksum => "wrong checksum: damaged on the way",
            Self::Vhid => "a vhid that is not configured on this interface",
            Self::Destination => {
                "sent to a group where peers are configured, or to us where none are: both sides must do the same"
            }
            Self::Digest => "wrong digest: password or set of addresses differs from the sender's",
            Self::Loop => "our own advertisement came back: a loop in the network, or a replay",
        }
    }
}

impl Header {
    /// Whether the sender goes away.
    #[must_use]
    pub fn is_bow_out(&self) -> bool {
        (self.advbase, self.advskew) == (BOW_OUT, BOW_OUT)
    }

    #[must_use]
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION << 4 | ADVERTISEMENT;
        bytes[1] = self.vhid;
        bytes[2] = self.advskew;
        bytes[3] = AUTH_WORDS;
        bytes[4] = self.demotion;
        bytes[5] = self.advbase;
        bytes[8..16].copy_from_slice(&self.counter.to_be_bytes());
        bytes[16..].copy_from_slice(&self.digest);
        let checksum = !ones_complement_sum(&bytes);
        bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads the payload of an IP packet.
    ///
    /// # Errors
    /// When it is no sound CARP advertisement. VRRP is told apart by its length and by the field that CARP has 7 in.
    pub fn decode(ttl: u8, payload: &[u8]) -> Result<Self, Rejected> {
        if ttl != TTL {
            return Err(Rejected::Ttl);
        }
        if is_vrrp(payload) {
            return Err(Rejected::Vrrp);
        }
        let bytes: &[u8; LENGTH] = payload.try_into().map_err(|_| Rejected::Length)?;
        if bytes[0] >> 4 != VERSION {
            return Err(Rejected::Version);
        }
        if bytes[0] & 0xf != ADVERTISEMENT {
            return Err(Rejected::Kind);
        }
        if bytes[3] != AUTH_WORDS {
            return Err(Rejected::AuthLength);
        }
        // The sum over a message with its right checksum is all ones.
        if ones_complement_sum(bytes) != 0xffff {
            return Err(Rejected::Checksum);
        }
        let mut counter = [0; 8];
        counter.copy_from_slice(&bytes[8..16]);
        let mut digest = [0; 20];
        digest.copy_from_slice(&bytes[16..]);
        Ok(Self {
            vhid: bytes[1],
            advskew: bytes[2],
            demotion: bytes[4],
            advbase: bytes[5],
            counter: u64::from_be_bytes(counter),
            digest,
        })
    }
}

/// Whether a payload is a VRRP advertisement of its right length for the addresses it counts.
///
/// Version 2 (RFC 3768): 0x21, VRID, priority, number of addresses, authentication type (0 to 2), interval, checksum,
/// addresses, and 8 bytes of authentication data. Version 3 (RFC 9568): 0x31, without those 8 bytes; addresses of 4 or
/// 16 bytes. A CARP advertisement has the length of a VRRPv2 one with five addresses, but says 7.
fn is_vrrp(payload: &[u8]) -> bool {
    let [first, _, _, count, ..] = payload else { return false };
    let count = usize::from(*count);
    match first {
        0x21 => payload.len() == 16 + 4 * count && count != usize::from(AUTH_WORDS),
        0x31 => payload.len() == 8 + 4 * count || payload.len() == 8 + 16 * count,
        _ => false,
    }
}

/// RFC 1071, before it is inverted. The length is even.
fn ones_complement_sum(bytes: &[u8; LENGTH]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    // At most 18 words: the second fold carries one at most.
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0xffff)
}

/// The group of an address family.
#[must_use]
pub fn group(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { GROUP4.into() } else { GROUP6.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// vhid 42, password `love`, 10.1.1.252, advbase 1, advskew 0, counter 1.
    pub const VECTOR: [u8; LENGTH] = [
        0x21, 0x2a, 0x00, 0x07, 0x00, 0x01, 0x63, 0xa2, 0, 0, 0, 0, 0, 0, 0, 1, 0xbe, 0xd0, 0x6b, 0x84, 0x2d,
        0xc2, 0xfc, 0xed, 0xe3, 0x8f, 0x51, 0x39, 0xbf, 0x18, 0xd9, 0x84, 0xf1, 0x27, 0x67, 0x96,
    ];

    fn with_checksum(mut bytes: [u8; LENGTH]) -> [u8; LENGTH] {
        bytes[6..8].copy_from_slice(&[0, 0]);
        let sum = !ones_complement_sum(&bytes);
        bytes[6..8].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn the_vector_is_read_and_written() {
        let header = Header::decode(TTL, &VECTOR).unwrap();
        assert_eq!((header.vhid, header.advbase, header.advskew, header.demotion), (42, 1, 0, 0));
        assert_eq!(header.counter, 1);
        assert_eq!(header.encode(), VECTOR);
    }

    #[test]
    fn each_fault_has_its_own_reason() {
        let change = |at: usize, value: u8| {
            let mut bytes = VECTOR;
            bytes[at] = value;
            with_checksum(bytes)
        };
        assert_eq!(Header::decode(254, &VECTOR), Err(Rejected::Ttl));
        assert_eq!(Header::decode(TTL, &VECTOR[..35]), Err(Rejected::Length));
        assert_eq!(Header::decode(TTL, &[VECTOR.as_slice(), &[0]].concat()), Err(Rejected::Length));
        assert_eq!(Header::decode(TTL, &[]), Err(Rejected::Length));
        assert_eq!(Header::decode(TTL, &change(0, 0x11)), Err(Rejected::Version));
        assert_eq!(Header::decode(TTL, &change(0, 0x22)), Err(Rejected::Kind));
        assert_eq!(Header::decode(TTL, &change(3, 8)), Err(Rejected::AuthLength));
        let mut damaged = VECTOR;
        damaged[20] ^= 1;
        assert_eq!(Header::decode(TTL, &damaged), Err(Rejected::Checksum));
    }

    #[test]
    fn vrrp_is_no_damaged_carp() {
        // One address each; version 3 also with the length of CARP.
        let v2 = [0x21, 10, 100, 1, 0, 1, 0, 0, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let v3 = [0x31, 10, 100, 1, 0, 100, 0, 0, 192, 0, 2, 1];
        let mut v3_six = [0; 24];
        v3_six[..4].copy_from_slice(&[0x31, 10, 100, 1]);
        let mut five = [0; LENGTH];
        five[..4].copy_from_slice(&[0x21, 10, 100, 5]);
        for packet in [&v2[..], &v3, &v3_six, &five] {
            assert_eq!(Header::decode(TTL, packet), Err(Rejected::Vrrp), "{packet:x?}");
        }
    }

    #[test]
    fn names_are_distinct() {
        for (index, one) in Rejected::ALL.iter().enumerate() {
            assert!(Rejected::ALL[..index].iter().all(|other| other.name() != one.name()));
            assert!(!one.help().is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_comes_is_judged(ttl: u8, payload in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(header) = Header::decode(ttl, &payload) {
                prop_assert_eq!(header.encode().to_vec(), payload);
            }
        }

        #[test]
        fn what_is_written_is_read(
            vhid: u8, advbase: u8, advskew: u8, demotion: u8, counter: u64, digest: [u8; 20],
        ) {
            let header = Header { vhid, advbase, advskew, demotion, counter, digest };
            prop_assert_eq!(Header::decode(TTL, &header.encode()), Ok(header));
        }

        #[test]
        fn one_wrong_bit_is_noticed(bit in 0..LENGTH * 8) {
            let mut bytes = VECTOR;
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(TTL, &bytes).is_err());
        }
    }
}
