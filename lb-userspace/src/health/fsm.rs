//! When a server goes up or down. Pure: no clock, no I/O.

use super::{CheckError, Health};

/// What one check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Success,
    Failure,
    /// The check could not be made; it says nothing about the server.
    Inconclusive,
}

impl From<&Result<(), CheckError>> for Outcome {
    fn from(result: &Result<(), CheckError>) -> Self {
        match result {
            Ok(()) => Self::Success,
            Err(error) if error.is_inconclusive() => Self::Inconclusive,
            Err(_) => Self::Failure,
        }
    }
}

/// The health of one target.
///
/// The first result of a target that was never checked decides alone, as in relayd: waiting for `rise` or
/// `fall` results would only keep a new server out, or its state unknown, for longer. After that it takes
/// `rise` successes in a row to go up and `fall` failures in a row to go down. A target that starts with a
/// last known state, after a restart of the daemon, is treated as if it had been watched all the time.
///
/// An inconclusive check changes nothing, and does not interrupt a run either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fsm {
    health: Health,
    rise: u32,
    fall: u32,
    /// Results in a row that contradict `health`. Less than the number that changes it.
    against: u32,
}

impl Fsm {
    /// Starts with `initial`. `rise` and `fall` count results; 0 is taken as 1.
    #[must_use]
    pub fn new(initial: Health, rise: u32, fall: u32) -> Self {
        Self { health: initial, rise: rise.max(1), fall: fall.max(1), against: 0 }
    }

    #[must_use]
    pub fn health(&self) -> Health {
        self.health
    }

    /// Whether the latest conclusive result contradicts the health: more of the like would change it.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.against > 0
    }

    /// Takes in one result and returns the health after it.
    pub fn observe(&mut self, outcome: Outcome) -> Health {
        let (says, needed) = match outcome {
            Outcome::Success => (Health::Up, self.rise),
            Outcome::Failure => (Health::Down, self.fall),
            Outcome::Inconclusive => return self.health,
        };
        if self.health == says {
            self.against = 0;
        } else if self.health == Health::Unknown || self.against + 1 >= needed {
            self.health = says;
            self.against = 0;
        } else {
            self.against += 1;
        }
        self.health
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Health::{Down, Unknown, Up};
    use super::Outcome::{Failure, Inconclusive, Success};
    use super::*;

    #[test]
    fn every_transition() {
        // Health, results in a row against it, result; then both after it. rise 2, fall 3.
        let table = [
            (Unknown, 0, Success, Up, 0),
            (Unknown, 0, Failure, Down, 0),
            (Unknown, 0, Inconclusive, Unknown, 0),
            (Up, 0, Success, Up, 0),
            (Up, 0, Failure, Up, 1),
            (Up, 0, Inconclusive, Up, 0),
            (Up, 1, Success, Up, 0),
            (Up, 1, Failure, Up, 2),
            (Up, 1, Inconclusive, Up, 1),
            (Up, 2, Success, Up, 0),
            (Up, 2, Failure, Down, 0),
            (Up, 2, Inconclusive, Up, 2),
            (Down, 0, Success, Down, 1),
            (Down, 0, Failure, Down, 0),
            (Down, 0, Inconclusive, Down, 0),
            (Down, 1, Success, Up, 0),
            (Down, 1, Failure, Down, 0),
            (Down, 1, Inconclusive, Down, 1),
        ];
        for (health, against, outcome, health_after, against_after) in table {
            let mut fsm = Fsm { health, rise: 2, fall: 3, against };
            assert_eq!(fsm.observe(outcome), health_after, "{health:?} {against} {outcome:?}");
            assert_eq!(fsm.is_changing(), against_after > 0);
            assert_eq!(fsm, Fsm { health: health_after, rise: 2, fall: 3, against: against_after });
        }
    }

    #[test]
    fn counts_of_zero_are_one() {
        let mut fsm = Fsm::new(Up, 0, 0);
        assert_eq!(fsm.observe(Failure), Down);
        assert_eq!(fsm.observe(Success), Up);
    }

    #[test]
    fn the_largest_counts_do_not_overflow() {
        let mut fsm = Fsm { health: Up, rise: 1, fall: u32::MAX, against: u32::MAX - 1 };
        assert_eq!(fsm.observe(Failure), Down);
    }

    #[test]
    fn results_become_outcomes() {
        assert_eq!(Outcome::from(&Ok(())), Success);
        assert_eq!(Outcome::from(&Err(CheckError::Refused)), Failure);
        let no_descriptor = CheckError::Local { stage: super::super::Stage::Connect, errno: libc::EMFILE };
        assert_eq!(Outcome::from(&Err(no_descriptor)), Inconclusive);
    }

    /// The health after `history`, said in another way: look at the run that ends it.
    fn reference(initial: Health, rise: u32, fall: u32, history: &[Outcome]) -> Health {
        let mut health = initial;
        for end in 1..=history.len() {
            let conclusive: Vec<_> =
                history[..end].iter().copied().filter(|&outcome| outcome != Inconclusive).collect();
            let Some(&last) = conclusive.last() else { continue };
            let run = conclusive.iter().rev().take_while(|&&outcome| outcome == last).count();
            let needed = if last == Success { rise } else { fall }.max(1) as usize;
            if health == Unknown || run >= needed {
                health = if last == Success { Up } else { Down };
            }
        }
        health
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(
            initial in prop::sample::select(vec![Unknown, Up, Down]),
            rise in 0_u32..5,
            fall in 0_u32..5,
            history in prop::collection::vec(prop::sample::select(vec![Success, Failure, Inconclusive]), 0..60),
        ) {
            let mut fsm = Fsm::new(initial, rise, fall);
            for (index, &outcome) in history.iter().enumerate() {
                let health = fsm.observe(outcome);
                prop_assert_eq!(health, fsm.health());
                prop_assert_eq!(health, reference(initial, rise, fall, &history[..=index]));
            }
        }
    }
}
