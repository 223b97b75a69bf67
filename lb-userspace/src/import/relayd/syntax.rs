//! What a relayd.conf says, as far as Matapa has an equal for it.

use super::source::{Located, Place};

/// A whole configuration.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) tables: Vec<Table>,
    pub(super) redirects: Vec<Redirect>,
    /// What Matapa has no equal for, in the order of the file.
    pub(super) left_out: Vec<Note>,
}

/// Something an operator should know, with the place that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) place: Place,
    /// Without a full stop.
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: Located<String>,
    pub(super) disabled: bool,
    /// Default time limit of a check, milliseconds: the one in force where the table stands.
    pub(super) timeout: u64,
    pub(super) hosts: Vec<Host>,
}

#[derive(Debug)]
pub(super) struct Host {
    /// An address or a DNS name.
    pub(super) name: Located<String>,
    /// Failed checks that are overlooked.
    pub(super) retry: u32,
    pub(super) parent: Option<Place>,
    pub(super) priority: Option<Place>,
    pub(super) ttl: Option<Place>,
}

#[derive(Debug)]
pub(super) struct Redirect {
    pub(super) name: Located<String>,
    pub(super) disabled: Option<Place>,
    pub(super) sticky: Option<Place>,
    /// Seconds.
    pub(super) session_timeout: Option<Located<u64>>,
    pub(super) listeners: Vec<Listener>,
    /// The table in use, and the one for when it has no host up.
    pub(super) targets: Vec<Target>,
}

#[derive(Clone, Debug)]
pub(super) struct Listener {
    /// An address, a DNS name or an interface.
    pub(super) address: Located<String>,
    /// `tcp`, `udp`, or another one.
    pub(super) protocol: String,
    pub(super) first: u16,
    pub(super) last: u16,
    /// Only what comes in there.
    pub(super) interface: Option<Located<String>>,
}

impl Listener {
    pub(super) const fn is_range(&self) -> bool {
        self.first != self.last
    }
}

#[derive(Debug)]
pub(super) struct Target {
    pub(super) place: Place,
    /// `route to`: the server answers by itself.
    pub(super) route: bool,
    /// Index into [`Document::tables`].
    pub(super) table: usize,
    pub(super) port: Option<u16>,
    /// Milliseconds.
    pub(super) timeout: Option<u64>,
    /// Seconds, its own or the one for all.
    pub(super) interval: u64,
    pub(super) check: Located<Check>,
    pub(super) demote: Option<Place>,
    pub(super) mode: Option<Located<Mode>>,
    pub(super) key: Option<Place>,
    pub(super) interface: Option<Located<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    RoundRobin,
    Random,
    LeastStates,
    SourceHash,
    /// For relays only.
    Hash,
    /// For relays only.
    LoadBalance,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Icmp,
    Tcp,
    Tls,
    Http {
        tls: bool,
        path: String,
        host: Option<String>,
        expect: HttpExpect,
    },
    /// Something is sent, and a glob must match what comes back.
    Send {
        send: Option<String>,
        expect: String,
        tls: bool,
    },
    /// As [`Check::Send`], with hexadecimal digits, and a prefix that must match.
    Binary {
        send: Option<String>,
        expect: String,
        tls: bool,
    },
    /// Up if it exits with something greater than 0.
    Script(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HttpExpect {
    Code(u16),
    Digest,
}
