//! The Internet checksum (RFC 1071), updated incrementally (RFC 1624) and folded late.
//!
//! One's complement sums do not depend on byte order, so they are taken over the bytes as they stand in memory and
//! written back the same way.

/// A one's complement sum that is not folded yet. Holds far more 16-bit words than any header has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    pub const ZERO: Self = Self(0);

    /// A word as it stands in memory, of 16 or 32 bits.
    #[must_use]
    #[inline(always)]
    pub const fn add(self, raw: u32) -> Self {
        Self(self.0 + raw as u64)
    }

    /// Takes a 32-bit word away.
    #[must_use]
    #[inline(always)]
    pub const fn sub(self, raw: u32) -> Self {
        Self(self.0 + !raw as u64)
    }

    /// Takes a 16-bit word away.
    #[must_use]
    #[inline(always)]
    pub const fn sub_half(self, raw: u16) -> Self {
        Self(self.0 + !raw as u64)
    }

    #[must_use]
    #[inline(always)]
    pub const fn add16(self, bytes: [u8; 2]) -> Self {
        Self(self.0 + u16::from_ne_bytes(bytes) as u64)
    }

    #[must_use]
    #[inline(always)]
    pub const fn add32(self, bytes: [u8; 4]) -> Self {
        Self(self.0 + u32::from_ne_bytes(bytes) as u64)
    }

    #[must_use]
    #[inline(always)]
    pub const fn sub16(self, bytes: [u8; 2]) -> Self {
        Self(self.0 + !u16::from_ne_bytes(bytes) as u64)
    }

    #[must_use]
    #[inline(always)]
    pub const fn sub32(self, bytes: [u8; 4]) -> Self {
        Self(self.0 + !u32::from_ne_bytes(bytes) as u64)
    }

    #[must_use]
    #[inline(always)]
    pub const fn add128(self, b: &[u8; 16]) -> Self {
        self.add32([b[0], b[1], b[2], b[3]])
            .add32([b[4], b[5], b[6], b[7]])
            .add32([b[8], b[9], b[10], b[11]])
            .add32([b[12], b[13], b[14], b[15]])
    }

    #[must_use]
    #[inline(always)]
    pub const fn sub128(self, b: &[u8; 16]) -> Self {
        self.sub32([b[0], b[1], b[2], b[3]])
            .sub32([b[4], b[5], b[6], b[7]])
            .sub32([b[8], b[9], b[10], b[11]])
            .sub32([b[12], b[13], b[14], b[15]])
    }

    #[must_use]
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Folded to 16 bits, as bytes in wire order.
    #[inline(always)]
    pub const fn fold(self) -> [u8; 2] {
        let s = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let s = (s & 0xffff) + (s >> 16);
        let s = (s & 0xffff) + (s >> 16);
        let s = (s & 0xffff) + (s >> 16);
        (s as u16).to_ne_bytes()
    }

    /// The checksum field for what was added: the complement of the folded sum.
    #[inline(always)]
    pub const fn checksum(self) -> [u8; 2] {
        let [a, b] = self.fold();
        [!a, !b]
    }
}

/// As [`updated`], with the field as it stands in memory.
#[inline(always)]
pub const fn updated_raw(field: u16, change: Sum) -> u16 {
    u16::from_ne_bytes(change.add(!field as u32).checksum())
}

/// A checksum field after `change` (new bytes added, old bytes subtracted): RFC 1624 equation 3.
#[inline(always)]
pub const fn updated(field: [u8; 2], change: Sum) -> [u8; 2] {
    let [a, b] = field;
    change.add16([!a, !b]).checksum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(words: &[u16]) -> [u8; 2] {
        words.iter().fold(Sum::ZERO, |sum, w| sum.add16(w.to_be_bytes())).checksum()
    }

    #[test]
    fn example_of_rfc_1071() {
        // Section 3: the sum of these is ddf2.
        let sum =
            [0x0001, 0xf203, 0xf4f5, 0xf6f7].iter().fold(Sum::ZERO, |s, w: &u16| s.add16(w.to_be_bytes()));
        assert_eq!(sum.fold(), [0xdd, 0xf2]);
    }

    #[test]
    fn example_of_rfc_1624() {
        // Section 4: the field that the older equation turned into ffff comes out as 0000.
        let change = Sum::ZERO.sub16([0x55, 0x55]).add16([0x32, 0x85]);
        assert_eq!(updated([0xdd, 0x2f], change), [0x00, 0x00]);
    }

    proptest! {
        #[test]
        fn incremental_equals_full_recompute(
            mut words in prop::collection::vec(any::<u16>(), 4..40),
            at in 0usize..40,
            new: u32,
        ) {
            let at = at % (words.len() - 1);
            // A header is never all zeros; there the two kinds of zero differ.
            words.push(0x4500);
            let field = full(&words);
            let mut change = Sum::ZERO;
            let [a, b, c, d] = new.to_be_bytes();
            change = change.sub16(words[at].to_be_bytes()).sub16(words[at + 1].to_be_bytes());
            change = change.add32([a, b, c, d]);
            words[at] = u16::from_be_bytes([a, b]);
            words[at + 1] = u16::from_be_bytes([c, d]);
            prop_assert_eq!(updated(field, change), full(&words));
        }
    }
}
