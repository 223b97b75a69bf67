//! Names of ports, and names that Matapa takes.

use std::collections::HashSet;

/// For machines without /etc/services: what load balancers stand in front of.
const PORTS: &[(&str, u16)] = &[
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("domain", 53),
    ("http", 80),
    ("www", 80),
    ("kerberos", 88),
    ("pop3", 110),
    ("ntp", 123),
    ("imap", 143),
    ("snmp", 161),
    ("ldap", 389),
    ("https", 443),
    ("submissions", 465),
    ("smtps", 465),
    ("syslog", 514),
    ("submission", 587),
    ("ldaps", 636),
    ("imaps", 993),
    ("pop3s", 995),
    ("mysql", 3306),
    ("sip", 5060),
    ("postgresql", 5432),
];

/// The port of a service, as services(5) says: of TCP, else of another protocol.
pub(super) fn port(services: &str, name: &str) -> Option<u16> {
    let mut other = None;
    for line in services.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let (Some(first), Some(at)) = (words.next(), words.next()) else { continue };
        let Some((number, protocol)) = at.split_once('/') else { continue };
        let Ok(number) = number.parse() else { continue };
        if first != name && !words.any(|alias| alias == name) {
            continue;
        }
        if protocol == "tcp" {
            return Some(number);
        }
        other = other.or(Some(number));
    }
    other.or_else(|| PORTS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number))
}

/// Names that are given once.
#[derive(Debug, Default)]
pub(super) struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// The name itself, or the nearest that Matapa takes and that is not in use.
    pub(super) fn give(&mut self, wanted: &str) -> String {
        let mut name: String = wanted
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "_.-:".contains(c) { c } else { '-' })
            .take(56)
            .collect();
        if name.is_empty() {
            name.push('x');
        }
        let mut unique = name.clone();
        let mut number = 2;
        while !self.taken.insert(unique.clone()) {
            unique = format!("{name}-{number}");
            number += 1;
        }
        unique
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_names() {
        let services =
            "# a comment\nweb 8080/udp\nweb 8081/tcp www-cache # alias\nodd 9/sctp\nbroken\nx y/tcp\n";
        assert_eq!(port(services, "web"), Some(8081));
        assert_eq!(port(services, "www-cache"), Some(8081));
        assert_eq!(port(services, "odd"), Some(9));
        assert_eq!(port(services, "smtp"), Some(25));
        assert_eq!(port("", "nosuch"), None);
    }

    #[test]
    fn names_are_unique_and_plain() {
        let mut names = Names::default();
        assert_eq!(names.give("web"), "web");
        assert_eq!(names.give("web"), "web-2");
        assert_eq!(names.give("a b/\u{e9}"), "a-b--");
        assert_eq!(names.give(""), "x");
        assert_eq!(names.give(&"y".repeat(200)).len(), 56);
    }
}
