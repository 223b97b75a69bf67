//! Value of `LIVE`: how many live flows a backend has, and how many it may have.

/// The number of live flows, which both sides add to, plus 2^32 times the most there may be. A sum, so that either can be
/// changed without looking at the other; the number is below zero for a moment when a flow ends before its beginning was
/// counted, and is found out even then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live(pub u64);

impl Live {
    /// What to add to have another limit.
    pub const fn change(old: u32, new: u32) -> u64 {
        (new.wrapping_sub(old) as u64) << 32
    }

    #[inline(always)]
    pub const fn signed(self) -> i64 {
        self.0 as i32 as i64
    }

    /// Live flows.
    #[inline(always)]
    pub const fn flows(self) -> u64 {
        let flows = self.signed();
        if flows < 0 { 0 } else { flows as u64 }
    }

    /// The most live flows with which it still gets no new one. Means something with
    /// [`super::BackendFlags::LIMITED`] only.
    #[inline(always)]
    pub const fn limit(self) -> u32 {
        (self.0.wrapping_sub(self.signed() as u64) >> 32) as u32
    }

    #[inline(always)]
    pub const fn is_full(self) -> bool {
        self.flows() >= self.limit() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_limit_do_not_disturb_each_other() {
        for limit in [0, 1, 100, 64 << 20, u32::MAX] {
            for flows in [-2i64, -1, 0, 1, 99, 100, 64 << 20] {
                let word = Live(Live::change(0, limit).wrapping_add(flows as u64));
                assert_eq!((word.signed(), word.limit()), (flows, limit));
                assert_eq!(word.flows(), flows.max(0) as u64);
                assert_eq!(word.is_full(), flows.max(0) >= i64::from(limit));
                let other = Live(word.0.wrapping_add(Live::change(limit, 7)));
                assert_eq!((other.signed(), other.limit()), (flows, 7));
            }
        }
    }
}
