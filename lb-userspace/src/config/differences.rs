//! What differs between two configurations, in the words of `matapa check`.

use std::collections::BTreeSet;

use super::explain::{show_host, show_target, write_flows, write_pool, write_resolver, write_service};
use super::values::show_duration;
use super::{Backend, Config, Host, Pool, Service};

/// Of two configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Removed,
    Changed,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub kind: Kind,
    /// `service mail`, `backend mail/mx1`, `interfaces`
    pub subject: String,
    pub aspects: Vec<Aspect>,
}

/// What of it differs: with `from` and `to` it changed, with one of them it was removed or added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aspect {
    /// `listens on`, `weight`
    pub name: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

/// What `new` has, lacks, or has in another form than `old`; nothing when they are equal.
///
/// What an operator sees of it is compared. A difference in something that matapa check does not show, such as a
/// password, is told of without saying what it is.
pub fn differences(old: &Config, new: &Config) -> Vec<Difference> {
    let mut found = general(old, new);
    found.extend(named(
        "carp",
        &old.carp,
        &new.carp,
        |carp| carp.name.clone(),
        |carp| {
            let mut text = String::new();
            // Writing to a String cannot fail.
            let _ = super::carp::write(&mut text, carp);
            labelled(&text)
        },
    ));
    let policies = |config: &Config| config.services.iter().map(|s| policy(config, s)).collect::<Vec<_>>();
    let name = |policy: &Policy| policy.service.name.clone();
    found.extend(named("service", &policies(old), &policies(new), name, service_lines));
    for service in &new.services {
        let before = old.services.iter().find(|old| old.name == service.name);
        let before = before.map(|old_service| members(old, old_service));
        found.extend(backends(&service.name, &before.unwrap_or_default(), &members(new, service)));
    }
    found
}

fn general(old: &Config, new: &Config) -> Vec<Difference> {
    let lines = |config: &Config| -> Lines {
        let mut flows = String::new();
        // Writing to a String cannot fail.
        let _ = write_flows(&mut flows, &config.flows);
        let tunnel = format!("sources in {} and {}", config.tunnel.source4, config.tunnel.source6);
        let mut resolver = String::new();
        let _ = write_resolver(&mut resolver, &config.resolver);
        let seed = config.cluster.seed_file.as_ref().map(|path| path.display().to_string());
        let mut sync = String::new();
        let _ = super::cluster::write(&mut sync, &config.cluster);
        let sync = sync.lines().find(|line| line.starts_with("flows ")).map(str::to_owned);
        [
            ("interfaces", Some(config.interfaces.join(", "))),
            ("xdp_mode", Some(config.xdp_mode.to_string())),
            ("forward_without_daemon", config.forward_without_daemon.map(show_duration)),
            ("flows", Some(flows.trim_end().to_owned())),
            ("tunnel", Some(tunnel)),
            ("resolver", Some(resolver.trim_end().to_owned())),
            ("cluster seed", seed),
            ("cluster sync", sync),
        ]
        .into_iter()
        .filter_map(|(label, text)| Some((label.to_owned(), text?)))
        .collect()
    };
    let single = |aspect: Aspect| {
        let kind = match (&aspect.from, &aspect.to) {
            (None, _) => Kind::Added,
            (_, None) => Kind::Removed,
            _ => Kind::Changed,
        };
        let subject = aspect.name.clone();
        Difference { kind, subject, aspects: vec![Aspect { name: String::new(), ..aspect }] }
    };
    let mut found: Vec<Difference> =
        compare(&lines(old), &lines(new), false).into_iter().map(single).collect();
    let hidden = old.cluster != new.cluster && !found.iter().any(|one| one.subject.starts_with("cluster"));
    if hidden {
        found.push(Difference {
            kind: Kind::Changed,
            subject: "cluster".to_owned(),
            aspects: vec![unseen()],
        });
    }
    found
}

/// Labels and what stands beside them.
type Lines = Vec<(String, String)>;

/// Things with a name, in the order of the new ones; then those that are gone.
fn named<T: PartialEq>(
    noun: &str,
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> String,
    lines: impl Fn(&T) -> Lines,
) -> Vec<Difference> {
    let mut found = Vec::new();
    let subject = |item: &T| format!("{noun} {}", name(item));
    for item in new {
        let before = old.iter().find(|old| name(old) == name(item));
        let (kind, before_lines) = match before {
            Some(before) if before == item => continue,
            Some(before) => (Kind::Changed, lines(before)),
            None => (Kind::Added, Vec::new()),
        };
        let aspects = compare(&before_lines, &lines(item), before.is_some());
        if kind == Kind::Added || !aspects.is_empty() {
            found.push(Difference { kind, subject: subject(item), aspects });
        }
    }
    for item in old.iter().filter(|old| !new.iter().any(|new| name(new) == name(old))) {
        found.push(Difference { kind: Kind::Removed, subject: subject(item), aspects: Vec::new() });
    }
    found
}

/// Line by line. `differ`: they are known to, so if no line does it is something that no line shows.
fn compare(old: &Lines, new: &Lines, differ: bool) -> Vec<Aspect> {
    let find = |lines: &Lines, label: &str| {
        lines.iter().find(|(known, _)| known == label).map(|(_, text)| text.clone())
    };
    let mut seen = BTreeSet::new();
    let labels = new.iter().chain(old).map(|(label, _)| label).filter(|label| seen.insert(*label));
    let mut aspects: Vec<Aspect> = labels
        .map(|label| Aspect { name: label.clone(), from: find(old, label), to: find(new, label) })
        .filter(|aspect| aspect.from != aspect.to)
        .collect();
    if differ && aspects.is_empty() {
        aspects.push(unseen());
    }
    aspects
}

fn unseen() -> Aspect {
    Aspect { name: "something that matapa check does not show".to_owned(), from: None, to: None }
}

/// A service without its backends, which are compared by themselves, and without the numbers of its pools, which are
/// other ones when others come and go.
#[derive(PartialEq)]
struct Policy {
    service: Service,
    pool: Pool,
    backup: Option<Pool>,
}

fn policy(config: &Config, service: &Service) -> Policy {
    let empty =
        |index: usize| Pool { backends: Vec::new(), hosts: Vec::new(), ..config.pools[index].clone() };
    Policy {
        pool: empty(service.pool),
        backup: service.backup.map(empty),
        service: Service { pool: 0, backup: service.backup.map(|_| 0), ..service.clone() },
    }
}

/// The backends of both pools as the file has them: those that a host has for now are not its.
fn members(config: &Config, service: &Service) -> Vec<(String, Lines)> {
    let pools = [Some(service.pool), service.backup].into_iter().flatten().map(|index| &config.pools[index]);
    let of = |pool: &Pool| {
        let written = pool.backends.iter().filter(|backend| backend.host.is_none());
        let backends = written.map(|backend| (backend.name.clone(), backend_lines(backend)));
        let hosts = pool.hosts.iter().map(|host| (host.name.clone(), host_lines(host)));
        backends.chain(hosts).collect::<Vec<_>>()
    };
    pools.flat_map(of).collect()
}

fn service_lines(policy: &Policy) -> Lines {
    let Policy { service, pool, backup } = policy;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_service(&mut text, service, pool, None);
    let mut lines = labelled(&text);
    if !service.enabled {
        lines.push(("enabled".to_owned(), "no".to_owned()));
    }
    if let Some(backup) = backup {
        let mut text = String::new();
        let _ = write_pool(&mut text, "backup", backup);
        lines.extend(labelled(&text).into_iter().map(|(label, text)| match label.as_str() {
            "backup" => (label, text),
            _ => (format!("backup's {label}"), text),
        }));
        lines.push(("backup hold".to_owned(), show_duration(service.backup_hold)));
    }
    // Not how many backends they have: there are none here.
    let names = [("pool", Some(pool)), ("backup", backup.as_ref())];
    for (label, pool) in names.into_iter().filter_map(|(label, pool)| Some((label, pool?))) {
        for (_, text) in lines.iter_mut().filter(|(known, _)| known == label) {
            text.clone_from(&pool.name);
        }
    }
    lines
}

/// The lines of an explanation: two spaces, a label, and a text that goes on in lines without one.
fn labelled(text: &str) -> Lines {
    /// Where the text of a line begins.
    const TEXT: usize = 14;
    let mut lines: Lines = Vec::new();
    for line in text.lines() {
        let Some((label, rest)) = line.split_at_checked(TEXT).filter(|_| line.starts_with("  ")) else {
            continue;
        };
        match (label.trim(), lines.last_mut()) {
            ("", Some((_, last))) => {
                last.push_str("; ");
                last.push_str(rest);
            }
            // A list below a line.
            _ if label.starts_with("    ") => {}
            (trimmed, _) if label.ends_with("  ") => lines.push((trimmed.to_owned(), rest.to_owned())),
            // One without a label.
            _ => lines.push(("also".to_owned(), line.trim().to_owned())),
        }
    }
    lines
}

fn backends(service: &str, old: &[(String, Lines)], new: &[(String, Lines)]) -> Vec<Difference> {
    let mut found = Vec::new();
    let subject = |name: &str| format!("backend {service}/{name}");
    for (name, lines) in new {
        let before = old.iter().find(|(old, _)| old == name).map(|(_, lines)| lines);
        let kind = if before.is_some() { Kind::Changed } else { Kind::Added };
        let aspects = compare(before.unwrap_or(&Lines::new()), lines, false);
        if !aspects.is_empty() {
            found.push(Difference { kind, subject: subject(name), aspects });
        }
    }
    for (name, _) in old.iter().filter(|(old, _)| !new.iter().any(|(new, _)| new == old)) {
        found.push(Difference { kind: Kind::Removed, subject: subject(name), aspects: Vec::new() });
    }
    found
}

fn backend_lines(backend: &Backend) -> Lines {
    let Backend { weight, priority, max_connections, enabled, .. } = backend;
    server_lines(show_target(backend), *weight, *priority, *max_connections, *enabled)
}

fn host_lines(host: &Host) -> Lines {
    let Host { weight, priority, max_connections, enabled, .. } = host;
    server_lines(show_host(host), *weight, *priority, *max_connections, *enabled)
}

fn server_lines(target: String, weight: u16, priority: u8, most: Option<u32>, enabled: bool) -> Lines {
    let lines = [
        ("address", Some(target)),
        ("weight", Some(weight.to_string())),
        ("priority", (priority != 0).then(|| priority.to_string())),
        ("max_connections", most.map(|most| most.to_string())),
        ("enabled", (!enabled).then(|| "no".to_owned())),
    ];
    lines.into_iter().filter_map(|(label, text)| Some((label.to_owned(), text?))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    const BASE: &str = "interfaces = [\"eth0\"]\n\
        [pools.mx]\nbackends = [{ name = \"mx1\", address = \"198.51.100.11\" }, \
        { name = \"mx2\", address = \"198.51.100.12\", weight = 2 }]\ncheck = \"smtp\"\n\
        [services.mail]\nlisten = \"203.0.113.10:25\"\npool = \"mx\"\n\
        [carp.mail]\ninterface = \"eth0\"\nvhid = 10\naddresses = [\"203.0.113.10/24\"]\npassword = \"secret\"\n";

    fn config(text: &str) -> Config {
        parse(text, Path::new("m.toml")).unwrap_or_else(|error| panic!("{:?}: {text}", error.lines()))
    }

    /// The differences after these replacements, one line each.
    fn told(replacements: &[(&str, &str)]) -> Vec<String> {
        let mut text = BASE.to_owned();
        for (from, to) in replacements {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        let found = differences(&config(BASE), &config(&text));
        let line = |one: &Difference| {
            let aspects: Vec<String> = one
                .aspects
                .iter()
                .map(|a| format!(" | {}: {:?} -> {:?}", a.name, a.from.as_deref(), a.to.as_deref()))
                .collect();
            format!("{:?} {}{}", one.kind, one.subject, aspects.concat())
        };
        found.iter().map(line).collect()
    }

    #[test]
    fn equal_configurations_have_none() {
        assert_eq!(told(&[]), [""; 0]);
        // Written in another way, and the same.
        assert_eq!(told(&[("\"203.0.113.10:25\"", "[\"203.0.113.10:25/tcp\"]")]), [""; 0]);
    }

    #[test]
    fn a_backend_that_changes_comes_or_goes_is_told_by_its_service() {
        assert_eq!(
            told(&[("weight = 2", "weight = 3")]),
            [r#"Changed backend mail/mx2 | weight: Some("2") -> Some("3")"#]
        );
        assert_eq!(
            told(&[(
                "\"mx1\", address = \"198.51.100.11\"",
                "\"mx3\", address = \"198.51.100.13\", port = 2525"
            )]),
            [
                r#"Added backend mail/mx3 | address: None -> Some("198.51.100.13:2525") | weight: None -> Some("1")"#,
                "Removed backend mail/mx1",
            ]
        );
    }

    #[test]
    fn a_host_is_told_as_the_file_has_it() {
        let host =
            ("{ name = \"mx1\", address = \"198.51.100.11\" }", "{ host = \"mx.example.com\", port = 2525 }");
        assert_eq!(
            told(&[host]),
            [
                "Added backend mail/mx.example.com:2525 | address: None -> Some(\"IPv4 addresses of mx.example.com \
                 port 2525\") | weight: None -> Some(\"1\")",
                "Removed backend mail/mx1",
            ]
        );
        // What it has for now is not the file's.
        let mut resolved = config(BASE);
        let backend =
            Backend { host: Some("mx.example.com".to_owned()), ..resolved.pools[0].backends[0].clone() };
        resolved.pools[0].backends.push(Backend { name: "mx-198.51.100.13".to_owned(), ..backend });
        assert_eq!(differences(&config(BASE), &resolved), []);
    }

    #[test]
    fn a_service_is_told_in_the_words_of_check() {
        let found = told(&[("pool = \"mx\"", "pool = \"mx\"\nscheduler = \"round-robin\"\nsticky = \"5m\"")]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("Changed service mail | forwards: "), "{found:?}");
        assert!(found[0].contains("maglev picks") && found[0].contains("round-robin picks"), "{found:?}");
        assert!(found[0].contains(" | sticky: None -> Some("), "{found:?}");
        let found = told(&[("services.mail", "services.post")]);
        assert!(
            found[0].starts_with("Added service post | listens on: None -> Some(\"203.0.113.10:25/tcp\")")
        );
        assert_eq!(found[1], "Removed service mail");
        assert!(found[2].starts_with("Added backend post/mx1 "), "{found:?}");
    }

    #[test]
    fn the_rest_is_told_and_secrets_are_not() {
        let found = told(&[("\"eth0\"]", "\"eth0\", \"eth1\"]"), ("vhid = 10", "vhid = 11")]);
        assert_eq!(found[0], r#"Changed interfaces | : Some("eth0") -> Some("eth0, eth1")"#);
        assert!(found[1].starts_with("Changed carp mail | as: "), "{found:?}");
        let found = told(&[("secret", "hidden")]);
        assert_eq!(found, ["Changed carp mail | something that matapa check does not show: None -> None"]);
    }
}
