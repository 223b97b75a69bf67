//! Maglev consistent hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4), with weights.
//!
//! Each backend has its own permutation of the slots, made from its identity alone; in turns, each takes the next
//! free slot of its permutation. So every backend gets its share, and when one leaves, nearly only its own slots
//! change hands. The identity is the address and port, never a number of ours: two gateways with the same key build
//! the same table.

/// Table sizes offered, all prime as the permutations need.
pub const SIZES: [u32; 10] = [65_537, 32_771, 16_411, 8_209, 4_099, 2_053, 1_031, 521, 257, 131];

/// How many slots are searched for another backend: so many runs of so many slots, spread over the table. In a row,
/// turns differ most; but a backend's slots of a Maglev table may lie close together.
const RUNS: u32 = 8;
const RUN: u32 = 8;

/// The backend to try after `current`. Some slots from a flow's own on name the backends in an order of the flow's
/// own; the next in that order follows, and after the last one the first. So each is tried once before any is tried
/// again, whichever was first: with round robin that is not the slot's own. `current` when there is no other in
/// sight.
#[inline(always)]
pub fn next(slot_at: impl Fn(u32) -> Option<u32>, size: u32, slot: u32, current: u32) -> u32 {
    let own = slot_at(slot).unwrap_or(current);
    // Which were named already, by the low bits of their numbers: of two that are alike in these, one may be left out.
    let mut named = 0u64;
    let mut passed = false;
    for step in 0..RUNS * RUN {
        // Rounded up by adding: `div_ceil` asks for a remainder, and the verifier would follow each turn of the loop on both
        // ways out of that.
        let far = step / RUN * (size.wrapping_add(RUNS - 1) / RUNS) + step % RUN;
        // A rotation may be shorter than the search, and what follows it is another listener's.
        let Some(id) = slot.wrapping_add(far).checked_rem(size).and_then(&slot_at) else { break };
        let bit = 1 << (id & 63);
        if passed && named & bit == 0 {
            return id;
        }
        named |= bit;
        passed |= id == current;
    }
    own
}

/// The turns of weighted round robin, spread evenly: each turn goes to the candidate that is furthest behind its
/// share. As many slots as the weights add up to once their common divisor is taken out, or about `limit` where that
/// is more. `None` when no candidate has a weight.
#[cfg(any(test, feature = "std"))]
pub fn rotation(candidates: &[Candidate], limit: u32) -> Option<Vec<u32>> {
    fn gcd(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let mut order: Vec<u32> = (0..).zip(candidates).filter(|(_, c)| c.weight > 0).map(|(i, _)| i).collect();
    order.sort_by_key(|&i| candidates[i as usize].identity);
    let weight = |i: u32| u32::from(candidates[i as usize].weight);
    let divisor = order.iter().copied().map(weight).reduce(gcd)?;
    let sum: u32 = order.iter().copied().map(weight).sum();
    // Weights so different that they do not fit are rounded; nobody loses all turns.
    let scale = (sum / divisor).div_ceil(limit.max(1)) * divisor;
    let shares: Vec<i64> = order.iter().map(|&i| i64::from((weight(i) / scale).max(1))).collect();
    let all: i64 = shares.iter().sum();
    let mut credit = vec![0i64; shares.len()];
    let turns = (0..all).map(|_| {
        for (credit, share) in credit.iter_mut().zip(&shares) {
            *credit += share;
        }
        let next = (0..credit.len()).max_by_key(|&i| (credit[i], std::cmp::Reverse(i))).unwrap_or(0);
        credit[next] -= all;
        order[next]
    });
    Some(turns.collect())
}

/// A backend as the table sees it.
#[cfg(any(test, feature = "std"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Address (IPv4 as mapped) and port in network byte order.
    pub identity: [u8; 18],
    /// Share relative to the others; 0 gets no slot.
    pub weight: u16,
}

#[cfg(any(test, feature = "std"))]
fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

#[cfg(any(test, feature = "std"))]
fn identity_hash(seed: u64, identity: &[u8; 18]) -> u64 {
    identity.chunks(6).fold(mix(seed), |h, chunk| {
        let word = chunk.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        mix(h ^ word)
    })
}

/// Builds a table of `size` slots (a prime); each holds the index of a candidate. `None` when no candidate has a
/// weight.
///
/// The result depends on the set of candidates, not on their order (the indices do, of course).
#[cfg(any(test, feature = "std"))]
pub fn build(candidates: &[Candidate], size: u32, seed: u64) -> Option<Vec<u32>> {
    struct Permutation {
        index: u32,
        next: u32,
        skip: u32,
        weight: u32,
        credit: u32,
    }

    let mut order: Vec<u32> = (0..).zip(candidates).filter(|(_, c)| c.weight > 0).map(|(i, _)| i).collect();
    order.sort_by_key(|&i| candidates[i as usize].identity);
    let mut permutations: Vec<Permutation> = order
        .into_iter()
        .map(|index| {
            let candidate = &candidates[index as usize];
            let h = identity_hash(seed, &candidate.identity);
            Permutation {
                index,
                next: (u64::from((h >> 32) as u32) % u64::from(size)) as u32,
                skip: (u64::from(h as u32) % u64::from(size - 1)) as u32 + 1,
                weight: u32::from(candidate.weight),
                credit: 0,
            }
        })
        .collect();
    let heaviest = permutations.iter().map(|p| p.weight).max()?;

    let mut table = vec![0; size as usize];
    // Most of the time goes into looking whether slots are taken, nearly all of which are at the end: as bits they stay
    // in the nearest cache.
    let mut taken = vec![0u64; size.div_ceil(64) as usize];
    let mut free = size;
    loop {
        for p in &mut permutations {
            // A turn for each full share of the heaviest one's weight.
            p.credit += p.weight;
            if p.credit < heaviest {
                continue;
            }
            p.credit -= heaviest;
            while taken[p.next as usize / 64] >> (p.next % 64) & 1 == 1 {
                // Both are less than the size; a division would take longer than all else here.
                let next = p.next + p.skip;
                p.next = if next < size { next } else { next - size };
            }
            taken[p.next as usize / 64] |= 1 << (p.next % 64);
            table[p.next as usize] = p.index;
            free -= 1;
            if free == 0 {
                return Some(table);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(n: u8, weight: u16) -> Candidate {
        let mut identity = [0; 18];
        identity[15] = n;
        identity[17] = 25;
        Candidate { identity, weight }
    }

    fn shares(table: &[u32], n: usize) -> Vec<usize> {
        let mut shares = vec![0; n];
        for &i in table {
            shares[i as usize] += 1;
        }
        shares
    }

    #[test]
    fn every_backend_is_within_two_percent_of_its_share() {
        for n in [1usize, 2, 3, 10, 100] {
            let candidates: Vec<_> = (0..n).map(|i| candidate(i as u8, 1)).collect();
            let table = build(&candidates, 65_537, 7).unwrap();
            let fair = 65_537.0 / n as f64;
            for share in shares(&table, n) {
                assert!((share as f64 - fair).abs() <= fair * 0.02, "{share} of {fair} with {n} backends");
            }
        }
    }

    #[test]
    fn weights_are_shares() {
        let candidates = [candidate(1, 1), candidate(2, 2), candidate(3, 7), candidate(4, 0)];
        let table = build(&candidates, 65_537, 7).unwrap();
        let shares = shares(&table, 4);
        assert_eq!(shares[3], 0);
        for (share, weight) in shares.iter().zip([1.0, 2.0, 7.0]) {
            let fair = 65_537.0 * weight / 10.0;
            assert!((*share as f64 - fair).abs() <= fair * 0.02, "{share} of {fair}");
        }
    }

    #[test]
    fn one_of_ten_leaves_and_at_most_one_percent_of_the_other_slots_move() {
        let ten: Vec<_> = (0..10).map(|i| candidate(i, 1)).collect();
        let before = build(&ten, 65_537, 7).unwrap();
        for leaver in 0..10u32 {
            let mut nine = ten.clone();
            nine[leaver as usize].weight = 0;
            let after = build(&nine, 65_537, 7).unwrap();
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != leaver && b != a).count();
            assert!(moved <= 655, "{moved} slots moved when backend {leaver} left");
        }
    }

    #[test]
    fn turns_are_spread_and_exact() {
        let candidates = [candidate(1, 2), candidate(2, 4), candidate(3, 0), candidate(4, 6)];
        let turns = rotation(&candidates, 65_537).unwrap();
        assert_eq!(shares(&turns, 4), [1, 2, 0, 3]);
        assert!(turns.windows(3).all(|w| w[0] != w[1] || w[1] != w[2]), "{turns:?}");
        assert_eq!(rotation(&candidates[2..3], 10), None);
        let uneven = rotation(&[candidate(1, 1000), candidate(2, 999), candidate(3, 1)], 131).unwrap();
        assert!(uneven.len() <= 132 && uneven.contains(&2), "{}", uneven.len());
    }

    #[test]
    fn everyone_is_tried_before_anyone_is_tried_again() {
        for n in 1..=5u32 {
            let candidates: Vec<_> = (0..n as u8).map(|i| candidate(i, 1)).collect();
            let size = 1031;
            let table = build(&candidates, size, 7).unwrap();
            let turns = rotation(&candidates, size).unwrap();
            for (table, size) in [(table, size), (turns, n)] {
                let at = |i: u32| {
                    assert!(i < size, "slot {i} of {size}");
                    Some(table[i as usize])
                };
                for slot in 0..size {
                    let seen: Vec<u32> = (0..n).collect();
                    for &first in &seen {
                        let mut tried = vec![first];
                        for _ in 1..seen.len() {
                            tried.push(next(at, size, slot, tried[tried.len() - 1]));
                        }
                        assert_eq!(next(at, size, slot, tried[tried.len() - 1]), first);
                        tried.sort_unstable();
                        assert_eq!(tried, seen);
                    }
                }
            }
        }
    }

    #[test]
    fn after_one_that_is_not_in_the_table_the_slots_own_is_tried() {
        let table = build(&[candidate(1, 1), candidate(2, 1)], 131, 7).unwrap();
        let at = |i: u32| table.get(i as usize).copied();
        for slot in 0..131u32 {
            assert_eq!(next(at, 131, slot, 77), table[slot as usize]);
        }
    }

    #[test]
    fn of_two_the_other_is_tried_and_of_one_the_same() {
        for n in [1, 2u32] {
            let table = build(&(0..n as u8).map(|i| candidate(i, 1)).collect::<Vec<_>>(), 131, 7).unwrap();
            let at = |i: u32| table.get(i as usize).copied();
            for slot in 0..131u32 {
                let first = table[slot as usize];
                let second = next(at, 131, slot, first);
                assert_eq!(second != first, n == 2);
                assert_eq!(next(at, 131, slot, second), first);
            }
        }
    }

    /// Two gateways choose alike only if both fill the table alike, of whatever version they are.
    #[test]
    fn the_table_stays_what_it_was_in_earlier_versions() {
        let candidates: Vec<_> = (0..100).map(|i| candidate(i, u16::from(i % 5))).collect();
        let digest = |size, seed| {
            let table = build(&candidates, size, seed).unwrap();
            table.iter().fold(0u64, |digest, slot| mix(digest ^ u64::from(*slot)))
        };
        assert_eq!(
            [digest(65_537, 7), digest(131, u64::MAX)],
            [115_773_359_379_684_923, 7_696_242_158_227_949_817]
        );
    }

    #[test]
    fn nobody_with_a_weight_is_no_table() {
        assert_eq!(build(&[], 131, 7), None);
        assert_eq!(build(&[candidate(1, 0)], 131, 7), None);
    }

    proptest! {
        #[test]
        fn order_does_not_matter(weights in prop::collection::vec(0u16..5, 1..12), rotate in 0usize..12, seed: u64) {
            let candidates: Vec<_> =
                weights.iter().enumerate().map(|(i, &w)| candidate(i as u8, w)).collect();
            let mut rotated = candidates.clone();
            rotated.rotate_left(rotate % weights.len());
            let name = |table: Option<Vec<u32>>, of: &[Candidate]| {
                table.map(|t| t.iter().map(|&i| of[i as usize].identity).collect::<Vec<_>>())
            };
            prop_assert_eq!(
                name(build(&candidates, 521, seed), &candidates),
                name(build(&rotated, 521, seed), &rotated)
            );
        }
    }
}
