//! Whatever the bytes: no panic, and the same answer each time.

use std::path::Path;

use lb_userspace::config::{self, Config, Diagnostics};
use proptest::prelude::*;

const GOOD: [&str; 7] = [
    include_str!("config/good/smallest.toml"),
    include_str!("config/good/full.toml"),
    include_str!("config/good/udp.toml"),
    include_str!("config/good/dotted.toml"),
    include_str!("config/good/modes.toml"),
    include_str!("config/good/ranges.toml"),
    include_str!("config/good/one_server_two_ways.toml"),
];

/// Parses twice, and uses everything the result offers.
fn exercise(source: &str) -> Result<Config, Diagnostics> {
    let file = Path::new("m.toml");
    let result = config::parse(source, file);
    assert_eq!(result, config::parse(source, file));
    match &result {
        Ok(config) => {
            assert!(config.services.iter().all(|service| service.pool < config.pools.len()));
            assert!(!config::explain(config).is_empty());
        }
        Err(errors) => {
            assert!(errors.iter().count() > 0);
            assert_eq!(errors.lines().len(), errors.iter().count());
            assert!(errors.lines().iter().all(|line| !line.contains('\n')), "{:?}", errors.lines());
            errors.render(true);
            errors.render(false);
        }
    }
    result
}

/// Pieces of the language, to get further than random text does.
fn fragments() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "interfaces",
        "services",
        "pools",
        "control",
        "mail",
        "listen",
        "backends",
        "check",
        "pool",
        "weight",
        "type",
        "interval",
        "timeout",
        "port",
        "=",
        "=",
        "=",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        "\n",
        "\n",
        "\n",
        "#",
        "\"",
        "'",
        "\"\"\"",
        "\r\n",
        " ",
        "\"tcp\"",
        "\"10s\"",
        "\"198.51.100.11\"",
        "\"203.0.113.10:25\"",
        "\"203.0.113.10:8000-8100\"",
        "\"203.0.113.10/any\"",
        "forward",
        "\"snat\"",
        "\"gue\"",
        "snat",
        "addresses",
        "[flows]",
        "capacity",
        "[tunnel]",
        "source4",
        "\"172.16.0.0/16\"",
        "[services.mail]",
        "[pools.mx]",
        "[[services]]",
        "1",
        "-1",
        "0x10",
        "1e9",
        "true",
        "2026-01-01",
        "\u{e9}",
        "\u{1F6AA}",
        "\\u0000",
        "\u{feff}",
        "\u{202e}",
        "\0",
        "\t",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = exercise(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_fragments(source in fragments()) {
        let _ = exercise(&source);
    }

    #[test]
    fn mutated_files(
        which in 0..GOOD.len(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0..12usize, "\\PC{0,4}|[\\n\"'\\[\\]{}=.,#]"), 1..6),
    ) {
        let mut chars: Vec<char> = GOOD[which].chars().collect();
        for (at, length, text) in cuts {
            let start = at.index(chars.len());
            let end = (start + length).min(chars.len());
            chars.splice(start..end, text.chars());
        }
        let _ = exercise(&chars.into_iter().collect::<String>());
    }

    #[test]
    fn swapped_lines(which in 0..GOOD.len(), seed in prop::collection::vec(any::<prop::sample::Index>(), 1..8)) {
        let mut lines: Vec<&str> = GOOD[which].lines().collect();
        for index in seed {
            let line = lines.remove(index.index(lines.len()));
            lines.insert(index.index(lines.len()), line);
        }
        let _ = exercise(&lines.join("\n"));
    }

    /// As if each listener were compared with each other one.
    #[test]
    fn overlapping_listeners(
        ports in prop::collection::vec((1..60u16, 0..12u16), 1..8),
    ) {
        let ports: Vec<(u16, u16)> = ports.into_iter().map(|(first, more)| (first, first + more)).collect();
        let listen: Vec<String> =
            ports.iter().map(|(first, last)| format!("'203.0.113.10:{first}-{last}'")).collect();
        let source = format!(
            "interfaces = ['eth0']\n[services.a]\nlisten = [{}]\nbackends = ['198.51.100.11']\n",
            listen.join(", ")
        );
        let overlap = ports.iter().enumerate().any(|(index, (first, last))| {
            ports[..index].iter().any(|(other_first, other_last)| first <= other_last && other_first <= last)
        });
        prop_assert_eq!(exercise(&source).is_err(), overlap);
    }
}

#[test]
fn good_files_are_good() {
    for source in GOOD {
        exercise(source).unwrap();
    }
}
