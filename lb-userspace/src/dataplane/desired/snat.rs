//! Places in `SNAT_ADDRESSES`: a listener's addresses stand in a row, and stay where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::SNAT_ADDRESSES;

use crate::dataplane::image::Image;

/// What stands where.
pub(super) struct SnatPlaces {
    addresses: BTreeMap<u8, IpAddr>,
    /// Of listeners, those before and those to come: not to be overwritten.
    busy: BTreeSet<u8>,
}

impl SnatPlaces {
    pub(super) fn new(previous: &Image) -> Self {
        let ranges = previous.listeners.values().filter_map(|l| l.snat);
        let busy = ranges.flat_map(|range| (0..range.count).map(move |i| range.first.wrapping_add(i)));
        Self { addresses: previous.snat_addresses.clone(), busy: busy.collect() }
    }

    /// The first place of these addresses in a row: where they stand already, else where nothing ever stood, else in the
    /// place of those that no listener uses. An address that was given up thus stays for the flows that have it, as
    /// long as there is room.
    pub(super) fn place(&mut self, wanted: &[IpAddr]) -> Option<u8> {
        let all = |fits: &dyn Fn(u8, IpAddr) -> bool| {
            let last = (SNAT_ADDRESSES as usize).checked_sub(wanted.len())?;
            (0..=last).find(|first| {
                let places = (*first..).map_while(|place| u8::try_from(place).ok());
                places.zip(wanted).all(|(place, address)| fits(place, *address))
            })
        };
        let first = all(&|place, address| self.addresses.get(&place) == Some(&address))
            .or_else(|| all(&|place, _| !self.addresses.contains_key(&place)))
            .or_else(|| all(&|place, _| !self.busy.contains(&place)))?;
        let first = u8::try_from(first).ok()?;
        for (place, address) in (first..=u8::MAX).zip(wanted) {
            self.addresses.insert(place, *address);
            self.busy.insert(place);
        }
        Some(first)
    }

    pub(super) fn into_addresses(self) -> BTreeMap<u8, IpAddr> {
        self.addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(numbers: impl IntoIterator<Item = u8>) -> Vec<IpAddr> {
        numbers.into_iter().map(|n| IpAddr::from([203, 0, 113, n])).collect()
    }

    #[test]
    fn the_same_addresses_have_one_place() {
        let mut places = SnatPlaces::new(&Image::default());
        assert_eq!(places.place(&addresses([1, 2])), Some(0));
        assert_eq!(places.place(&addresses([3])), Some(2));
        assert_eq!(places.place(&addresses([1, 2])), Some(0));
        assert_eq!(places.place(&addresses([2, 3])), Some(1));
        assert_eq!(places.place(&addresses([3, 2])), Some(3));
        assert_eq!(places.place(&[]), Some(0));
    }

    #[test]
    fn what_was_given_up_is_overwritten_last() {
        let previous =
            Image { snat_addresses: (0..=u8::MAX).zip(addresses(0..200)).collect(), ..Image::default() };
        let mut places = SnatPlaces::new(&previous);
        assert_eq!(places.place(&addresses(200..255)), Some(200));
        // One place is left that nothing ever stood in, and for two there are only those of nobody.
        assert_eq!(places.place(&addresses([255])), Some(255));
        assert_eq!(places.place(&addresses([254, 7])), Some(0));
        // Now 0, 1 and 200 to 255 are of listeners.
        assert_eq!(places.place(&addresses((0..199).rev())), None);
        assert_eq!(places.place(&addresses((0..198).rev())), Some(2));
        assert_eq!(places.place(&addresses([9, 8, 8])), None);
    }

    #[test]
    fn more_than_there_are_places_do_not_fit() {
        let many: Vec<IpAddr> =
            (0..257u16).map(|n| IpAddr::from([203, 0, (n >> 8) as u8, n as u8])).collect();
        assert_eq!(SnatPlaces::new(&Image::default()).place(&many), None);
        assert_eq!(SnatPlaces::new(&Image::default()).place(&many[1..]), Some(0));
    }
}
