//! The hash of a flow: keyed, so that a client cannot aim at a line of the flow table or at a backend.
//!
//! NH from UMAC (RFC 4418 section 5.2.2; Black et al., CRYPTO 1999): without the key, the chance that two given inputs
//! collide is 2^-32 at most. It needs one 32-bit multiplication for each eight bytes, which is what BPF is good
//! at, where SipHash would cost some twenty nanoseconds. A bijective finalizer (David Stafford's variant 13 of
//! MurmurHash3's) then spreads the entropy over all bits.

use bytemuck::{Pod, Zeroable};

use crate::abi::endpoint::ENDPOINT_WAYS;
use crate::abi::{Be16, Side};

/// The secret. Two gateways with the same key choose the same backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct HashKey {
    pub words: [u32; 10],
    pub seed: u64,
}

const _: () = assert!(size_of::<HashKey>() == 48);

/// Where the secret comes from: a [`HashKey`], or constants of a loaded program, which are read a word at a time.
pub trait Key {
    /// `at` is below 10.
    fn word(&self, at: usize) -> u32;
    fn seed(&self) -> u64;
}

impl Key for HashKey {
    fn word(&self, at: usize) -> u32 {
        self.words[at]
    }

    fn seed(&self) -> u64 {
        self.seed
    }
}

/// The 64-bit hash of a flow; each use takes its own bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash(pub u64);

impl FlowHash {
    /// The line of a flow table of `lines` lines.
    #[inline(always)]
    pub const fn line(self, lines: u32) -> u32 {
        (((self.0 >> 32) * lines as u64) >> 32) as u32
    }

    /// The slot of a Maglev table of `size` slots.
    #[inline(always)]
    pub const fn slot(self, size: u32) -> u32 {
        (((self.0 & 0xffff_ffff) * size as u64) >> 32) as u32
    }

    /// 24 bits, never 0: a free place has that.
    #[inline(always)]
    pub const fn fingerprint(self) -> u32 {
        let bits = self.0 as u32 & 0xff_ffff;
        // One exactly where `bits` is 0, without a branch.
        bits | bits.wrapping_sub(1) >> 31
    }
}

/// The 64-bit hash of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointHash(pub u64);

impl EndpointHash {
    /// The line of a table of `lines` lines, a power of two of at most 2^24.
    #[inline(always)]
    pub const fn line(self, lines: u32) -> u32 {
        (self.0 >> 40) as u32 & lines.wrapping_sub(1)
    }

    /// The way of its line that it takes when that is free, so that it is looked for there first.
    #[inline(always)]
    pub const fn way(self) -> usize {
        self.0 as usize & (ENDPOINT_WAYS - 1)
    }

    /// 40 bits.
    #[inline(always)]
    pub const fn fingerprint(self) -> u64 {
        self.0 & 0xff_ffff_ffff
    }
}

#[inline(always)]
const fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn pair<K: Key>(key: &K, at: usize, a: u32, b: u32) -> u64 {
    u64::from(a.wrapping_add(key.word(at))).wrapping_mul(u64::from(b.wrapping_add(key.word(at + 1))))
}

#[inline(always)]
fn finish<K: Key>(key: &K, sum: u64) -> FlowHash {
    let mut h = sum ^ key.seed();
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    FlowHash(h ^ (h >> 31))
}

/// Both ports in one word, as the hash takes them. Ports in host order.
#[inline(always)]
pub const fn ports(client: u16, vip: u16) -> u32 {
    (client as u32) << 16 | vip as u32
}

/// The hash of an IPv4 endpoint. Port and protocol as they stand in a map.
#[inline(always)]
pub fn endpoint4<K: Key>(key: &K, side: Side, addr: &[u8; 4], port: Be16, protocol: u8) -> EndpointHash {
    endpoint4_word(key, side, word(addr, 0), port, protocol)
}

/// The same with the address as a number.
#[inline(always)]
pub fn endpoint4_word<K: Key>(key: &K, side: Side, addr: u32, port: Be16, protocol: u8) -> EndpointHash {
    EndpointHash(finish(key, pair(key, 0, addr, endpoint_word(side, port, protocol))).0)
}

/// The hash of an IPv6 endpoint.
#[inline(always)]
pub fn endpoint6<K: Key>(key: &K, side: Side, addr: &[u8; 16], port: Be16, protocol: u8) -> EndpointHash {
    endpoint6_words(key, side, [long(addr, 0), long(addr, 8)], port, protocol)
}

/// The same with the address as two numbers.
#[inline(always)]
pub fn endpoint6_words<K: Key>(
    key: &K,
    side: Side,
    addr: [u64; 2],
    port: Be16,
    protocol: u8,
) -> EndpointHash {
    let sum = pair(key, 0, high(addr[0]), low(addr[0]))
        .wrapping_add(pair(key, 2, high(addr[1]), low(addr[1])))
        .wrapping_add(pair(key, 4, endpoint_word(side, port, protocol), 0));
    EndpointHash(finish(key, sum).0)
}

#[inline(always)]
const fn endpoint_word(side: Side, port: Be16, protocol: u8) -> u32 {
    (port.get() as u32) << 16 | (protocol as u32) << 8 | side as u32
}

#[inline(always)]
const fn high(long: u64) -> u32 {
    (long >> 32) as u32
}

#[inline(always)]
const fn low(long: u64) -> u32 {
    long as u32
}

#[inline(always)]
const fn long(bytes: &[u8; 16], at: usize) -> u64 {
    (word(bytes, at) as u64) << 32 | word(bytes, at + 4) as u64
}

/// The hash of an IPv4 flow.
#[inline(always)]
pub fn flow4<K: Key>(key: &K, client: &[u8; 4], vip: &[u8; 4], ports: u32, protocol: u8) -> FlowHash {
    flow4_words(key, word(client, 0), word(vip, 0), ports, protocol)
}

/// The same with the addresses as numbers.
#[inline(always)]
pub fn flow4_words<K: Key>(key: &K, client: u32, vip: u32, ports: u32, protocol: u8) -> FlowHash {
    let sum = pair(key, 0, client, vip);
    finish(key, sum.wrapping_add(pair(key, 2, ports, u32::from(protocol))))
}

/// The hash of an IPv6 flow.
#[inline(always)]
pub fn flow6<K: Key>(key: &K, client: &[u8; 16], vip: &[u8; 16], ports: u32, protocol: u8) -> FlowHash {
    flow6_words(key, [long(client, 0), long(client, 8)], [long(vip, 0), long(vip, 8)], ports, protocol)
}

/// The same with the addresses as two numbers each.
#[inline(always)]
pub fn flow6_words<K: Key>(key: &K, client: [u64; 2], vip: [u64; 2], ports: u32, protocol: u8) -> FlowHash {
    let sum = pair(key, 0, high(client[0]), high(vip[0]))
        .wrapping_add(pair(key, 2, low(client[0]), low(vip[0])))
        .wrapping_add(pair(key, 4, high(client[1]), high(vip[1])))
        .wrapping_add(pair(key, 6, low(client[1]), low(vip[1])))
        .wrapping_add(pair(key, 8, ports, u32::from(protocol)));
    finish(key, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey =
        HashKey { words: [0x9e37_79b9, 0x7f4a_7c15, 3, 4, 5, 6, 7, 8, 9, 10], seed: 0x0123_4567_89ab_cdef };

    #[test]
    fn every_part_of_the_tuple_counts() {
        let base = flow4(&KEY, &[192, 0, 2, 1], &[203, 0, 113, 10], ports(40_000, 25), 6);
        let others = [
            flow4(&KEY, &[192, 0, 2, 2], &[203, 0, 113, 10], ports(40_000, 25), 6),
            flow4(&KEY, &[192, 0, 2, 1], &[203, 0, 113, 11], ports(40_000, 25), 6),
            flow4(&KEY, &[192, 0, 2, 1], &[203, 0, 113, 10], ports(40_001, 25), 6),
            flow4(&KEY, &[192, 0, 2, 1], &[203, 0, 113, 10], ports(40_000, 26), 6),
            flow4(&KEY, &[192, 0, 2, 1], &[203, 0, 113, 10], ports(40_000, 25), 17),
            flow4(&HashKey { seed: 1, ..KEY }, &[192, 0, 2, 1], &[203, 0, 113, 10], ports(40_000, 25), 6),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn lines_and_slots_are_filled_evenly_by_neighbouring_clients() {
        const BUCKETS: usize = 64;
        let mut lines = [0u32; BUCKETS];
        let mut slots = [0u32; BUCKETS];
        for host in 0..64u8 {
            for port in 0..1000u16 {
                let h = flow4(&KEY, &[192, 0, 2, host], &[203, 0, 113, 10], ports(32_768 + port, 25), 6);
                lines[h.line(BUCKETS as u32) as usize] += 1;
                slots[h.slot(BUCKETS as u32) as usize] += 1;
            }
        }
        // 1000 expected in each; six standard deviations are 190.
        assert!(lines.iter().chain(&slots).all(|n| (810..1190).contains(n)), "{lines:?} {slots:?}");
    }
}
