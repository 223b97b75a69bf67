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

    /// As if each pool and each server were compared with each one before it.
    #[test]
    fn pools_and_servers_that_are_the_same_or_not_there(
        pools in prop::collection::vec(servers(), 1..4),
        services in prop::collection::vec(uses(), 1..4),
    ) {
        let mut source = "interfaces = ['eth0']\n".to_owned();
        for (index, pool) in pools.iter().enumerate() {
            source += &format!("[pools.p{index}]\nbackends = {}\n", list(pool));
        }
        for (index, (uses, backup)) in services.iter().enumerate() {
            let what = match uses {
                Uses::Named(pool) => format!("pool = 'p{pool}'"),
                Uses::Own(servers) => format!("backends = {}", list(servers)),
            };
            let backup = backup.map_or_else(String::new, |pool| format!("\nbackup = 'p{pool}'"));
            source += &format!("[services.{}]\nlisten = '203.0.113.{index}:25'\n{what}{backup}\n", SERVICES[index]);
        }
        let lines = exercise(&source).err().map(|errors| errors.lines()).unwrap_or_default();
        let found = |text: &str| lines.iter().filter(|line| line.contains(text)).count();

        let owned = services.iter().filter_map(|(uses, _)| match uses {
            Uses::Own(servers) => Some(servers),
            Uses::Named(_) => None,
        });
        let (mut twice, mut named) = (0, 0);
        for servers in pools.iter().chain(owned) {
            for (index, (address, port, name)) in servers.iter().enumerate() {
                let before = &servers[..index];
                if before.iter().any(|(other, other_port, _)| (other, other_port) == (address, port)) {
                    twice += 1;
                } else if before.iter().any(|(.., other)| other == name) {
                    named += 1;
                }
            }
        }
        prop_assert_eq!(found("is in this pool twice"), twice, "{}", source);
        prop_assert_eq!(found("two backends of this pool are named"), named, "{}", source);
        let is_there = |pool: &usize| *pool < pools.len();
        let (mut missing, mut itself, mut doubled) = (0, 0, 0);
        let mut used = Vec::new();
        for (index, (uses, backup)) in services.iter().enumerate() {
            let of_its_name = (0..pools.len()).find(|pool| SERVICES[index] == format!("p{pool}"));
            match uses {
                Uses::Named(pool) => {
                    missing += usize::from(!is_there(pool));
                    itself += usize::from(*backup == Some(*pool));
                    // Of what is not there, the nearest is meant.
                    used.push(if is_there(pool) { *pool } else { 0 });
                }
                Uses::Own(_) => {
                    doubled += usize::from(of_its_name.is_some());
                    used.extend(of_its_name);
                }
            }
            missing += usize::from(backup.is_some_and(|pool| !is_there(&pool)));
            used.extend(*backup);
        }
        prop_assert_eq!(found("there is no pool"), missing, "{}", source);
        prop_assert_eq!(found("cannot be its own backup"), itself, "{}", source);
        prop_assert_eq!(found("there is one already"), doubled, "{}", source);
        let unused = (0..pools.len()).filter(|pool| !used.contains(pool)).count();
        prop_assert_eq!(found("is used by no service"), unused, "{}", source);
    }
}

/// Last byte of the address, port, name.
type Listed = (u8, Option<u16>, &'static str);

/// What a service's servers are.
#[derive(Clone, Debug)]
enum Uses {
    /// By the number in its name.
    Named(usize),
    Own(Vec<Listed>),
}

/// Of the services, two of which may be called like a pool.
const SERVICES: [&str; 3] = ["p0", "s", "p1"];

fn servers() -> impl Strategy<Value = Vec<Listed>> {
    let port = prop_oneof![Just(None), Just(Some(25)), Just(Some(2525))];
    prop::collection::vec((1..5u8, port, prop::sample::select(vec!["a", "b", "c", "d", "e"])), 1..5)
}

fn uses() -> impl Strategy<Value = (Uses, Option<usize>)> {
    let uses = prop_oneof![(0..4usize).prop_map(Uses::Named), servers().prop_map(Uses::Own)];
    (uses, prop::option::of(0..4usize))
}

fn list(servers: &[Listed]) -> String {
    let one = |(address, port, name): &Listed| {
        let port = port.map_or_else(String::new, |port| format!(", port = {port}"));
        format!("{{ name = '{name}', address = '198.51.100.{address}'{port} }}")
    };
    format!("[{}]", servers.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[test]
fn good_files_are_good() {
    for source in GOOD {
        exercise(source).unwrap();
    }
}
