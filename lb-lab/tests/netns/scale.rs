//! How much the tests do: little in every run, much in `cargo xtask soak`, by the same code.

use std::sync::LazyLock;

/// Rounds of the long forms; absent: the short forms.
const VARIABLE: &str = "MATAPA_ROUNDS";

/// Numbers that a long run has larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// How often what can go wrong by chance is repeated.
    pub rounds: usize,
    /// How often the time is taken that a takeover takes.
    pub takeovers: usize,
    /// TCP transfers that a gateway's death meets.
    pub transfers: usize,
    /// Bytes of each.
    pub transfer_bytes: u64,
    /// Whether they meet it after every change of the servers, or after one.
    pub every_change: bool,
    /// Connections held while something happens to their gateway.
    pub held: usize,
    /// Connections made while a server is dead.
    pub attempts: usize,
    /// Connections held while operations are done to others.
    pub churn_connections: usize,
    /// How many operations.
    pub operations: usize,
    /// Damaged packets.
    pub packets: usize,
    /// Transitions of servers' health that are timed.
    pub transitions: u8,
}

const SHORT: Scale = Scale {
    rounds: 1,
    takeovers: 2,
    transfers: 10,
    transfer_bytes: 2 << 20,
    every_change: false,
    held: 40,
    attempts: 1000,
    churn_connections: 200,
    operations: 25,
    packets: 400,
    transitions: 5,
};

const LONG: Scale = Scale {
    rounds: 20,
    takeovers: 20,
    transfers: 50,
    transfer_bytes: 20 << 20,
    every_change: true,
    held: 200,
    attempts: 10_000,
    churn_connections: 500,
    operations: 100,
    packets: 20_000,
    transitions: 20,
};

/// The one of this run.
pub fn scale() -> Scale {
    static SCALE: LazyLock<Scale> = LazyLock::new(|| {
        let Ok(rounds) = std::env::var(VARIABLE) else { return SHORT };
        let rounds = rounds.parse().unwrap_or_else(|_| panic!("{VARIABLE} is no number: {rounds:?}"));
        Scale { rounds, takeovers: rounds, ..LONG }
    });
    *SCALE
}
