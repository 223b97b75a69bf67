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
    Check,
    XdpMode,
    OnDown,
    Forward,
    Scheduler,
    CheckType,
    Protocol,
}

use Place::{
    Backend, Check, CheckType, Control, Forward, OnDown, Pool, Protocol, Scheduler, Service, Top, XdpMode,
};

impl Place {
    /// Whether the words are keys; else they are values.
    const fn holds_keys(self) -> bool {
        matches!(self, Top | Control | Pool | Backend | Service | Check)
    }

    /// For messages: where a key stands, or what a value is.
    const fn describe(self) -> &'static str {
        match self {
            Top => "at the top level",
            Control => "in [control]",
            Pool => "in a pool",
            Backend => "in a backend",
            Service => "in a service",
            Check => "in a check",
            XdpMode => "xdp_mode",
            OnDown => "on_down",
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

const ONE_GATEWAY: &str = "remove it and run one gateway";
const CHECK_KEY: &str =
    "remove it, or use what the tcp and smtp checks offer: interval, timeout, rise, fall, port";
const CHECK_TYPE: &str = "use \"tcp\" or \"smtp\"";
const FORWARD: &str = "use \"nat\", or leave it out";
const SCHEDULER: &str = "use \"maglev\", or leave it out";

const WORDS: &[(Place, &str, Support)] = &[
    (Top, "interfaces", Now),
    (Top, "xdp_mode", Now),
    (Top, "control", Now),
    (Top, "pools", Now),
    (Top, "services", Now),
    (Top, "cluster", Later(ONE_GATEWAY)),
    (Top, "carp", Later("remove it and give the gateway its addresses with ip(8)")),
    (Control, "socket", Now),
    (Control, "metrics", Now),
    (Pool, "backends", Now),
    (Pool, "check", Now),
    (Pool, "on_down", Now),
    (Pool, "quorum", Later("remove it; a service is active while one backend is up")),
    (Backend, "name", Now),
    (Backend, "address", Now),
    (Backend, "port", Now),
    (Backend, "weight", Now),
    (Backend, "check", Later("move it to the pool; its backends are all checked alike")),
    (Backend, "backup", Later("remove it, or give the backend weight = 0")),
    (Service, "listen", Now),
    (Service, "pool", Now),
    (Service, "backends", Now),
    (Service, "check", Now),
    (Service, "on_down", Now),
    (Service, "forward", Now),
    (Service, "scheduler", Now),
    (Service, "session_timeout", Now),
    (Service, "second_chance", Now),
    (Service, "backup", Later("remove it, or add its backends to the pool")),
    (Service, "quorum", Later("remove it; a service is active while one backend is up")),
    (Service, "sticky", Later("remove it; a connection stays with its backend anyway")),
    (Service, "new_flow_limit", Later("remove it")),
    (Check, "type", Now),
    (Check, "interval", Now),
    (Check, "timeout", Now),
    (Check, "rise", Now),
    (Check, "fall", Now),
    (Check, "port", Now),
    (Check, "starttls", Now),
    (Check, "jitter", Later("remove it")),
    (Check, "tls", Later(CHECK_KEY)),
    (Check, "path", Later(CHECK_KEY)),
    (Check, "host", Later(CHECK_KEY)),
    (Check, "status", Later(CHECK_KEY)),
    (Check, "body", Later(CHECK_KEY)),
    (Check, "steps", Later(CHECK_KEY)),
    (Check, "send", Later(CHECK_KEY)),
    (Check, "expect", Later(CHECK_KEY)),
    (Check, "command", Later(CHECK_KEY)),
    (Check, "query", Later(CHECK_KEY)),
    (Check, "through_vip", Later(CHECK_KEY)),
    (XdpMode, "auto", Now),
    (XdpMode, "native", Now),
    (XdpMode, "generic", Now),
    (OnDown, "reset", Now),
    (OnDown, "keep", Now),
    (Forward, "nat", Now),
    (Forward, "snat", Later(FORWARD)),
    (Forward, "dsr", Later(FORWARD)),
    (Forward, "ipip", Later(FORWARD)),
    (Forward, "gue", Later(FORWARD)),
    (Scheduler, "maglev", Now),
    (Scheduler, "source-hash", Now),
    (Scheduler, "round-robin", Now),
    (Scheduler, "random", Now),
    (Scheduler, "least-connections", Later(SCHEDULER)),
    (CheckType, "tcp", Now),
    (CheckType, "smtp", Now),
    (CheckType, "tls", Later(CHECK_TYPE)),
    (CheckType, "http", Later(CHECK_TYPE)),
    (CheckType, "https", Later(CHECK_TYPE)),
    (CheckType, "send-expect", Later(CHECK_TYPE)),
    (CheckType, "icmp", Later(CHECK_TYPE)),
    (CheckType, "dns", Later(CHECK_TYPE)),
    (CheckType, "exec", Later(CHECK_TYPE)),
    (Protocol, "tcp", Now),
    (Protocol, "udp", Now),
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
