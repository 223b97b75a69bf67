//! The configuration's values as text, in the words of the file.

use std::fmt;

use super::{CheckKind, Forward, Listen, OnDown, Protocol, Scheduler, XdpMode};

macro_rules! words {
    ($type:ty { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $type {
            /// The word the configuration uses for it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words!(XdpMode { Auto = "auto", Native = "native", Generic = "generic" });
words!(OnDown { Reset = "reset", Keep = "keep" });
words!(CheckKind { Tcp = "tcp", Smtp = "smtp" });
words!(Protocol { Tcp = "tcp", Udp = "udp" });
words!(Forward { Nat = "nat" });
words!(Scheduler {
    Maglev = "maglev",
    SourceHash = "source-hash",
    RoundRobin = "round-robin",
    Random = "random"
});

/// `203.0.113.10:25/tcp`, `[2001:db8::10]:25/tcp`
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = std::net::SocketAddr::new(self.address, self.port);
        f.pad(&format!("{address}/{}", self.protocol))
    }
}
