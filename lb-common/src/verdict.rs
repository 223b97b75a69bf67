//! What becomes of a packet, and why. Every way out of the program has its own [`Reason`], which is its counter too.

/// What the program tells the driver to do.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the kernel's network stack.
    Pass,
    Drop,
    /// Out of the interface it came from.
    Transmit,
    /// Out of another interface.
    Redirect,
    /// Not the end: the way goes on in the stage whose number is in `ifindex`.
    Continue,
}

impl Action {
    /// The one with this discriminant, if a packet's way can end with it.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Pass),
            1 => Some(Self::Drop),
            2 => Some(Self::Transmit),
            3 => Some(Self::Redirect),
            _ => None,
        }
    }

    /// The name in the command line and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Transmit => "transmit",
            Self::Redirect => "redirect",
            Self::Continue => "continue",
        }
    }
}

/// The end of a packet's way. Eight bytes, so that a function returns it in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Where [`Action::Redirect`] leaves.
    pub ifindex: u32,
    pub action: Action,
    pub reason: Reason,
}

const _: () = assert!(size_of::<Verdict>() == 8);

/// What kind of end a [`Reason`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Forward,
    Pass,
    Drop,
    /// Not an end: something that happened on the way.
    Note,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Note => "note",
        }
    }
}

macro_rules! reasons {
    ($($name:ident = $text:literal, $kind:ident, $help:literal;)*) => {
        /// Why a packet left the program the way it did. The discriminant is the index in `COUNTERS`.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $help] $name,)*
        }

        impl Reason {
            /// All, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in metrics, command line and tests.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// One sentence for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)* }
            }

            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }
        }
    };
}

reasons! {
    ToBackend = "to_backend", Forward, "A client's packet was rewritten and sent to its backend.";
    ToClient = "to_client", Forward, "A backend's packet was rewritten and sent to its client.";
    ToBackendByKernel = "to_backend_by_kernel", Forward,
        "A client's packet was rewritten and left to the kernel, which finds the backend's MAC address first, or sends it by an interface without the program.";
    ToClientByKernel = "to_client_by_kernel", Forward,
        "A backend's packet was rewritten and left to the kernel, which finds the client's MAC address first, or sends it by an interface without the program.";
    ClientReset = "client_reset", Forward,
        "A client's packet for a backend that is down was answered with a RST, so that the client connects anew.";
    BackendReset = "backend_reset", Forward,
        "The packet of a backend that is held to be down was answered with a RST, so that its end of the connection closes too.";
    EchoAnswered = "echo_answered", Forward, "A ping to a VIP was answered.";
    ErrorToBackend = "error_to_backend", Forward,
        "An ICMP error about a backend's packet was sent to the backend, with the addresses that it knows.";
    ErrorToClient = "error_to_client", Forward,
        "An ICMP error about a client's packet was sent to the client, with the addresses that it knows.";
    HopsAnswered = "hops_answered", Forward,
        "A packet's TTL or hop limit ended here, and its sender was told by ICMP.";
    TooBigAnswered = "too_big_answered", Forward,
        "A packet was larger than the way to its backend takes, and its sender was told by ICMP how large it may be.";
    NoBackendRefused = "no_backend_refused", Forward,
        "For a service of which no backend can take a new flow, and which wants its clients told: answered with a RST or an ICMP error.";

    NotIp = "not_ip", Pass, "Neither IPv4 nor IPv6, such as ARP or a VLAN tag.";
    NoService = "no_service", Pass, "Not for a service: left to the kernel untouched.";
    OtherProtocol = "other_protocol", Pass, "Neither TCP nor UDP, and for no service that takes all protocols.";
    Fragment = "fragment", Pass, "A fragment of a datagram that is for no service, or of a ping.";
    ExtensionHeader = "extension_header", Pass, "IPv6 with extension headers that are malformed, unknown or too many.";
    UnrelatedError = "unrelated_error", Pass, "An ICMP error that quotes no packet of a known flow.";
    HopsExhausted = "hops_exhausted", Pass,
        "TTL or hop limit of a backend's packet does not allow another hop: the kernel answers.";
    TooBig = "too_big", Pass, "A backend's packet is larger than the way to its client takes: the kernel answers.";
    ReplyToGateway = "reply_to_gateway", Pass, "From a backend to the gateway itself, such as the answer to a check.";
    ReplyNotOurs = "reply_not_ours", Pass, "From a backend to a host that connected to the backend's own address.";
    NoBackendPassed = "no_backend_passed", Pass,
        "For a service of which no backend can take a new flow, and which leaves it to the kernel then.";
    TruncatedFrame = "truncated_frame", Pass, "Too short for an Ethernet header.";
    TruncatedIp = "truncated_ip", Pass, "Too short for the IP header that its EtherType promises.";
    MalformedIp = "malformed_ip", Pass, "IP version, header length or total length contradict each other or the frame.";
    TruncatedTransport = "truncated_transport", Pass, "Too short for the ports of TCP or UDP.";

    MalformedTcp = "malformed_tcp", Drop, "For a service, with a TCP header that does not fit into the packet.";
    MalformedUdp = "malformed_udp", Drop, "For a service, with a UDP length that does not fit the packet.";
    UdpWithoutChecksum = "udp_without_checksum", Drop, "For a service, UDP over IPv6 without the checksum it must have.";
    NoBackend = "no_backend", Drop, "For a service of which no backend can take a new flow.";
    BackendGone = "backend_gone", Drop,
        "A client's RST, or its segment without an acknowledgment, for a backend that is down: there is nothing to answer.";
    RefusalHeld = "refusal_held", Drop,
        "A backend refused a connection, and the client was not told: another backend gets its next attempt.";
    LateAnswer = "late_answer", Drop,
        "A backend answered an attempt to connect after it had been offered to another backend.";
    NoRoute = "no_route", Drop, "The gateway has no route to the backend, or the backend is the gateway itself.";
    ForwardingDisabled = "forwarding_disabled", Drop,
        "Forwarding is switched off on the interface the packet came in on (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding).";
    UnusableRoute = "unusable_route", Drop, "The route to the backend needs an encapsulation that XDP cannot do.";
    StaleRecord = "stale_record", Drop, "The maps contradicted each other; only seen while they are being repaired.";
    FragmentHeld = "fragment_held", Drop,
        "A fragment came before the first one of its datagram: the daemon holds it, and sends it on after that.";
    SnatExhausted = "snat_exhausted", Drop,
        "For a service with `snat`, a new flow for which no port of the service's addresses is free.";
    SnatUnrecorded = "snat_unrecorded", Drop,
        "For a service with `snat`, a new flow that could not be recorded: its answers would not find their way back.";
    EncapsulationFailed = "encapsulation_failed", Drop, "There was no room in front of the packet for another header.";
    WriteFailed = "write_failed", Drop, "The packet could not be rewritten although its length allowed it.";

    SecondChance = "second_chance", Note,
        "A client repeated its attempt to connect, and it was offered to another backend.";
    FlowEvicted = "flow_evicted", Note, "A new flow took the place of another one in a full line of the flow table.";
    FlowNotRecorded = "flow_not_recorded", Note, "A new flow found its line of the flow table full of better ones.";
    FlowSuppressed = "flow_suppressed", Note,
        "A new flow beyond its service's limit was not recorded; the scheduler's table alone decides.";
    FragmentFollowed = "fragment_followed", Note, "A later fragment went the way of the first one of its datagram.";
    FlowCollision = "flow_collision", Note, "A flow has the fingerprint of another service's flow and was not recorded.";

    // Later ones come last: when flows move to new maps, counters keep their places.
    NoDaemon = "no_daemon", Drop,
        "For a service or from one of its servers, while no daemon has been alive for longer than `forward_without_daemon`.";
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    #[inline(always)]
    pub const fn pass(self) -> Verdict {
        Verdict { ifindex: 0, action: Action::Pass, reason: self }
    }

    #[inline(always)]
    pub const fn drop(self) -> Verdict {
        Verdict { ifindex: 0, action: Action::Drop, reason: self }
    }

    /// Out of the interface `ifindex`, for a packet that came in on `ingress`.
    #[inline(always)]
    pub const fn send(self, ifindex: u32, ingress: u32) -> Verdict {
        let action = if ifindex == ingress { Action::Transmit } else { Action::Redirect };
        Verdict { ifindex, action, reason: self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_for_metrics() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::COUNT);
    }
}
