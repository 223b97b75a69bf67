//! The configuration's values as text, in the words of the file.

use std::fmt;

use super::{CheckKind, Forward, Listen, Method, OnDown, Prefix, Protocol, Scheduler, XdpMode};

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
words!(CheckKind {
    Tcp = "tcp",
    Tls = "tls",
    Http = "http",
    Https = "https",
    Smtp = "smtp",
    SendExpect = "send-expect",
    Icmp = "icmp",
    Dns = "dns",
    Exec = "exec",
});
words!(Method { Get = "GET", Head = "HEAD" });
words!(Protocol { Tcp = "tcp", Udp = "udp", Any = "any" });
words!(Forward { Nat = "nat", Snat = "snat", Dsr = "dsr", Ipip = "ipip", Gue = "gue" });
words!(Scheduler {
    Maglev = "maglev",
    SourceHash = "source-hash",
    RoundRobin = "round-robin",
    Random = "random",
    LeastConnections = "least-connections",
});

/// `203.0.113.10:25/tcp`, `[2001:db8::10]:8000-8100/tcp`, `203.0.113.10/any`
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, port, last_port, protocol } = *self;
        if protocol == Protocol::Any {
            return f.pad(&format!("{address}/{protocol}"));
        }
        let first = std::net::SocketAddr::new(address, port);
        f.pad(&if last_port == port {
            format!("{first}/{protocol}")
        } else {
            format!("{first}-{last_port}/{protocol}")
        })
    }
}

/// `172.16.0.0/16`
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.len))
    }
}
