//! Why this gateway should rather not be master: numbers with owners, added up for each group of vhids.
//!
//! All vhids of a group carry the group's sum, so that they move to the other gateway together when one link fails.

use std::collections::BTreeMap;
use std::fmt;

/// Who demotes. Each has one number in a group, so that what is set twice is taken back at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The interface of this vhid is down or has no link.
    Link(String),
    /// Advertisements of this vhid cannot be sent.
    Sending(String),
    /// No backend of this service is up.
    Service(String),
    /// The flow table has not been fetched from the other gateway yet.
    Flows,
}

impl Owner {
    /// What it adds, unless there is a reason for something else. OpenBSD's numbers.
    #[must_use]
    pub const fn usual(&self) -> u8 {
        match self {
            Self::Link(_) | Self::Sending(_) | Self::Service(_) => 1,
            Self::Flows => 32,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(vhid) => write!(f, "link of {vhid} is down"),
            Self::Sending(vhid) => write!(f, "advertisements of {vhid} cannot be sent"),
            Self::Service(service) => write!(f, "no backend of service {service} is up"),
            Self::Flows => f.write_str("flows are not synchronised yet"),
        }
    }
}

/// Group, then owner.
#[derive(Clone, Debug, Default)]
pub struct Demotions(BTreeMap<String, BTreeMap<Owner, u8>>);

impl Demotions {
    /// 0 takes it back. True when this is something new.
    pub fn set(&mut self, group: &str, owner: Owner, by: u8) -> bool {
        let owners = self.0.entry(group.to_owned()).or_default();
        let old = if by == 0 { owners.remove(&owner) } else { owners.insert(owner, by) };
        old.unwrap_or(0) != by
    }

    /// Takes back what `unwanted` says, in all groups.
    pub fn retain(&mut self, mut wanted: impl FnMut(&str, &Owner) -> bool) {
        for (group, owners) in &mut self.0 {
            owners.retain(|owner, _| wanted(group, owner));
        }
    }

    /// As it fits into an advertisement.
    #[must_use]
    pub fn sum(&self, group: &str) -> u8 {
        self.owners(group).fold(0, |sum, (_, by)| sum.saturating_add(by))
    }

    pub fn owners(&self, group: &str) -> impl Iterator<Item = (&Owner, u8)> {
        self.0.get(group).into_iter().flatten().map(|(owner, by)| (owner, *by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_counted_once_each() {
        let mut demotions = Demotions::default();
        let link = |name: &str| Owner::Link(name.to_owned());
        assert!(demotions.set("carp", link("mail"), 1));
        assert!(!demotions.set("carp", link("mail"), 1));
        assert!(demotions.set("carp", Owner::Flows, 32));
        assert!(demotions.set("other", link("web"), 1));
        assert_eq!((demotions.sum("carp"), demotions.sum("other"), demotions.sum("third")), (33, 1, 0));
        assert!(demotions.set("carp", link("mail"), 0));
        assert!(!demotions.set("carp", link("mail"), 0));
        assert_eq!(demotions.sum("carp"), 32);
        demotions.retain(|group, owner| group == "other" || *owner != Owner::Flows);
        assert_eq!((demotions.sum("carp"), demotions.sum("other")), (0, 1));
    }

    #[test]
    fn the_sum_fits_into_a_byte() {
        let mut demotions = Demotions::default();
        demotions.set("g", Owner::Flows, 200);
        demotions.set("g", Owner::Link("a".to_owned()), 200);
        assert_eq!(demotions.sum("g"), 255);
    }
}
