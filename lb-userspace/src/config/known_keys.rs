//! Every word the configuration knows, now or later, in one table.

use super::diagnostics::{Errors, Span};
use super::values::quote;

/// Where a word stands: a kind of table for keys, a key for its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Top,
    Control,
    Pool,
    Backend,
    Service,
    Snat,
    Flows,
    Tunnel,
    Resolver,
    Check,
    Step,
    Carp,
    Cluster,
    Sync,
    XdpMode,
    Family,
    OnDown,
    WhenEmpty,
    Forward,
    Scheduler,
    CheckType,
    Protocol,
    CarpDialect,
    CarpMac,
    Method,
    Transport,
    Via,
}

use Place::{
    Backend, Carp, CarpDialect, CarpMac, Check, CheckType, Cluster, Control, Family, Flows, Forward, Method,
    OnDown, Pool, Protocol, Resolver, Scheduler, Service, Snat, Step, Sync, Top, Transport, Tunnel, Via,
    WhenEmpty, XdpMode,
};

impl Place {
    /// Whether the words are keys; else they are values.
    const fn holds_keys(self) -> bool {
        matches!(
            self,
            Top | Control
                | Pool
                | Backend
                | Service
                | Snat
                | Flows
                | Tunnel
                | Resolver
                | Check
                | Step
                | Carp
                | Cluster
                | Sync
        )
    }

    /// For messages: where a key stands, or what a value is.
    const fn describe(self) -> &'static str {
        match self {
            Top => "at the top level",
            Control => "in [control]",
            Pool => "in a pool",
            Backend => "in a backend",
            Service => "in a service",
            Snat => "in `snat`",
            Flows => "in [flows]",
            Tunnel => "in [tunnel]",
            Resolver => "in [resolver]",
            Check => "in a check",
            Step => "in a step",
            Carp => "in a carp table",
            Cluster => "in [cluster]",
            Sync => "in `sync`",
            CarpDialect => "dialect",
            CarpMac => "mac",
            Method => "method",
            Transport => "transport",
            Via => "via",
            XdpMode => "xdp_mode",
            Family => "family",
            OnDown => "on_down",
            WhenEmpty => "when_empty",
            Forward => "forward",
            Scheduler => "scheduler",
            CheckType => "check type",
            Protocol => "protocol",
        }
    }
}

/// Whether a word does something yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Support {
    Now,
    /// Planned. What to do until then.
    Later(&'static str),
}

use Support::{Later, Now};

const WORDS: &[(Place, &str, Support)] = &[
    (Top, "interfaces", Now),
    (Top, "xdp_mode", Now),
    (Top, "forward_without_daemon", Now),
    (Top, "control", Now),
    (Top, "flows", Now),
    (Top, "tunnel", Now),
    (Top, "resolver", Now),
    (Top, "pools", Now),
    (Top, "services", Now),
    (Top, "cluster", Now),
    (Top, "carp", Now),
    (Control, "socket", Now),
    (Control, "group", Now),
    (Control, "read_only_socket", Now),
    (Control, "read_only_group", Now),
    (Control, "metrics", Now),
    (Pool, "backends", Now),
    (Pool, "check", Now),
    (Pool, "on_down", Now),
    (Pool, "quorum", Now),
    (Pool, "hysteresis", Now),
    (Pool, "slow_start", Now),
    (Backend, "name", Now),
    (Backend, "address", Now),
    (Backend, "host", Now),
    (Backend, "family", Now),
    (Backend, "port", Now),
    (Backend, "weight", Now),
    (Backend, "max_connections", Now),
    (Backend, "enabled", Now),
    (Backend, "check", Later("move it to the pool; its backends are all checked alike")),
    (
        Backend,
        "backup",
        Later("give it a larger `priority`, or put it into a pool that the service names as `backup`"),
    ),
    (Backend, "priority", Now),
    (Service, "listen", Now),
    (Service, "pool", Now),
    (Service, "backends", Now),
    (Service, "check", Now),
    (Service, "on_down", Now),
    (Service, "forward", Now),
    (Service, "snat", Now),
    (Service, "gue_port", Now),
    (Service, "scheduler", Now),
    (Service, "session_timeout", Now),
    (Service, "second_chance", Now),
    (Service, "sticky", Now),
    (Service, "new_flow_limit", Now),
    (Service, "enabled", Now),
    (Service, "when_empty", Now),
    (Service, "backup", Now),
    (Service, "backup_hold", Now),
    (Service, "quorum", Now),
    (Service, "hysteresis", Now),
    (Service, "slow_start", Now),
    (Snat, "addresses", Now),
    (Snat, "ports", Now),
    (Flows, "capacity", Now),
    (Flows, "opening", Now),
    (Flows, "closing", Now),
    (Flows, "closed", Now),
    (Flows, "udp", Now),
    (Tunnel, "source4", Now),
    (Tunnel, "source6", Now),
    (Resolver, "servers", Now),
    (Resolver, "min_ttl", Now),
    (Resolver, "max_ttl", Now),
    (Check, "type", Now),
    (Check, "interval", Now),
    (Check, "timeout", Now),
    (Check, "rise", Now),
    (Check, "fall", Now),
    (Check, "port", Now),
    (Check, "starttls", Now),
    (Check, "fast_interval", Now),
    (Check, "down_interval", Now),
    (Check, "jitter", Now),
    (Check, "source", Now),
    (Check, "tls", Now),
    (Check, "server_name", Now),
    (Check, "verify", Now),
    (Check, "ca_file", Now),
    (Check, "expiry_warning_days", Now),
    (Check, "path", Now),
    (Check, "host", Now),
    (Check, "method", Now),
    (Check, "status", Now),
    (Check, "body", Now),
    (Check, "steps", Now),
    (Check, "send", Now),
    (Check, "send_hex", Now),
    (Check, "expect", Now),
    (Check, "expect_hex", Now),
    (Check, "expect_glob", Now),
    (Check, "query", Now),
    (Check, "record", Now),
    (Check, "rcode", Now),
    (Check, "answer", Now),
    (Check, "transport", Now),
    (Check, "command", Now),
    (Check, "user", Now),
    (Check, "via", Now),
    (Step, "send", Now),
    (Step, "send_hex", Now),
    (Step, "expect", Now),
    (Step, "expect_hex", Now),
    (Step, "expect_glob", Now),
    (Carp, "interface", Now),
    (Carp, "vhid", Now),
    (Carp, "addresses", Now),
    (Carp, "password", Now),
    (Carp, "password_file", Now),
    (Carp, "advbase", Now),
    (Carp, "advskew", Now),
    (Carp, "preempt", Now),
    (Carp, "preempt_delay", Now),
    (Carp, "peers", Now),
    (Carp, "notify", Now),
    (Carp, "group", Now),
    (Carp, "dialect", Now),
    (Carp, "mac", Now),
    (Cluster, "seed_file", Now),
    (Cluster, "sync", Now),
    (Sync, "interface", Now),
    (Sync, "peer", Now),
    (Sync, "port", Now),
    (Sync, "key_file", Now),
    (Sync, "interval", Now),
    (CarpMac, "interface", Now),
    (CarpMac, "virtual", Now),
    (CarpDialect, "any", Now),
    (CarpDialect, "openbsd", Now),
    (XdpMode, "auto", Now),
    (XdpMode, "native", Now),
    (XdpMode, "generic", Now),
    (Family, "any", Now),
    (Family, "ipv4", Now),
    (Family, "ipv6", Now),
    (OnDown, "reset", Now),
    (OnDown, "keep", Now),
    (WhenEmpty, "drop", Now),
    (WhenEmpty, "reset", Now),
    (WhenEmpty, "pass", Now),
    (Forward, "nat", Now),
    (Forward, "snat", Now),
    (Forward, "dsr", Now),
    (Forward, "ipip", Now),
    (Forward, "gue", Now),
    (Scheduler, "maglev", Now),
    (Scheduler, "source-hash", Now),
    (Scheduler, "round-robin", Now),
    (Scheduler, "random", Now),
    (Scheduler, "least-connections", Now),
    (CheckType, "tcp", Now),
    (CheckType, "smtp", Now),
    (CheckType, "tls", Now),
    (CheckType, "http", Now),
    (CheckType, "https", Now),
    (CheckType, "send-expect", Now),
    (CheckType, "icmp", Now),
    (CheckType, "dns", Now),
    (CheckType, "exec", Now),
    (Method, "GET", Now),
    (Method, "HEAD", Now),
    (Transport, "udp", Now),
    (Transport, "tcp", Now),
    (Via, "server", Now),
    (Via, "vip", Now),
    (Protocol, "tcp", Now),
    (Protocol, "udp", Now),
    (Protocol, "any", Now),
];

fn words(place: Place) -> impl Iterator<Item = (&'static str, Support)> {
    WORDS.iter().filter(move |word| word.0 == place).map(|word| (word.1, word.2))
}

/// The known word for `word` at `place`, or an error saying that it does nothing yet, or which words there are.
pub(super) fn known(errors: &mut Errors, place: Place, word: &str, span: Span) -> Option<&'static str> {
    let Some((known, support)) = words(place).find(|(known, _)| *known == word) else {
        unknown(errors, place, word, span);
        return None;
    };
    match support {
        Now => Some(known),
        Later(meanwhile) => {
            let message = if place == Top {
                format!("[{known}] is not yet supported")
            } else if place.holds_keys() {
                format!("`{known}` {} is not yet supported", place.describe())
            } else {
                format!("{} \"{known}\" is not yet supported", place.describe())
            };
            errors.at(span, message).help(meanwhile);
            None
        }
    }
}

fn unknown(errors: &mut Errors, place: Place, word: &str, span: Span) {
    let describe = place.describe();
    let message = if place.holds_keys() {
        format!("unknown key {} {describe}", quote(word))
    } else {
        format!("unknown {describe} {}", quote(word))
    };
    let help = match meant(place, word) {
        Some(near) if place.holds_keys() => format!("did you mean `{near}`?"),
        Some(near) => format!("did you mean \"{near}\"?"),
        None if place.holds_keys() => elsewhere(word).map_or_else(
            || format!("known here: {}", supported(place, '`')),
            |other| match other {
                Top => "it belongs at the top level, above the first [header]".to_owned(),
                _ => format!("it belongs {}", other.describe()),
            },
        ),
        None => format!("write {}", supported(place, '"')),
    };
    errors.at(span, message).help(help);
}

/// The known word nearest to an unknown one.
pub(super) fn meant(place: Place, word: &str) -> Option<&'static str> {
    // "sctp" is no misspelt "tcp".
    if place == Protocol {
        return None;
    }
    nearest(word, words(place).map(|(known, _)| known))
}

/// Another table that has this key: TOML keys after a header belong to that header, which is easily forgotten.
fn elsewhere(key: &str) -> Option<Place> {
    let known = |word: &&(Place, &str, Support)| word.0.holds_keys() && word.1 == key && word.2 == Now;
    WORDS.iter().find(known).map(|word| word.0)
}

fn supported(place: Place, mark: char) -> String {
    let words: Vec<String> = words(place)
        .filter(|(_, support)| *support == Now)
        .map(|(word, _)| format!("{mark}{word}{mark}"))
        .collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() && mark == '"' => format!("{} or {last}", rest.join(", ")),
        _ => words.join(", "),
    }
}

/// The candidate a person who wrote `word` most likely meant, if one is close enough.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words than any known one are no misspelling, and comparing costs their product.
    if word.len() > 128 {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| {
            (strsim::damerau_levenshtein(&word, &candidate.to_lowercase().replace('-', "_")), candidate)
        })
        .filter(|(distance, candidate)| {
            let length = word.chars().count().max(candidate.chars().count());
            *distance <= length.div_ceil(3) && *distance < length.min(candidate.chars().count())
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word() {
        let keys = || words(Service).map(|(word, _)| word);
        assert_eq!(nearest("lisen", keys()), Some("listen"));
        assert_eq!(nearest("session-timeout", keys()), Some("session_timeout"));
        assert_eq!(nearest("backend", keys()), Some("backends"));
        assert_eq!(nearest("Pool", keys()), Some("pool"));
        assert_eq!(nearest("x", keys()), None);
        assert_eq!(nearest("vhid", keys()), None);
    }

    #[test]
    fn what_comes_later_is_not_unknown() {
        for (place, word, support) in WORDS {
            let mut errors = Errors::default();
            let known = known(&mut errors, *place, word, Span::default());
            let lines = errors.finish("", std::path::Path::new("x")).lines().join(" ");
            match support {
                Now => assert_eq!((known, lines.as_str()), (Some(*word), "")),
                Later(meanwhile) => {
                    assert!(known.is_none());
                    assert!(lines.contains("is not yet supported") && lines.ends_with(meanwhile), "{lines}");
                }
            }
        }
    }

    #[test]
    fn no_word_twice() {
        for (index, word) in WORDS.iter().enumerate() {
            assert!(!WORDS[..index].iter().any(|other| (other.0, other.1) == (word.0, word.1)), "{word:?}");
        }
    }
}
