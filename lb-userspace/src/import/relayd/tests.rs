//! Whatever a file says, reading it ends, and what comes of it is a configuration or nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use proptest::prelude::*;

use super::{Imported, Options, Surroundings, import};
use crate::config::{self, Diagnostics};

fn run(text: &str, files: &HashMap<String, String>) -> Result<Imported, Vec<Diagnostics>> {
    let surroundings = Surroundings {
        read: &|name| files.get(name).cloned().ok_or_else(|| "there is no such file".to_owned()),
        port: &|name| super::service_port("", name),
        addresses: &|name| if name == "named" { vec![IpAddr::from([198, 51, 100, 9])] } else { Vec::new() },
    };
    import("relayd.conf", text, &Options::default(), &surroundings)
}

fn judge(text: &str, files: &HashMap<String, String>) {
    let Ok(imported) = run(text, files) else { return };
    let loaded = config::parse(&imported.text, Path::new("imported.toml"));
    assert_eq!(loaded.is_ok(), imported.usable, "{text}\n---\n{}\n{loaded:?}", imported.text);
}

fn errors(text: &str, files: &[(&str, &str)]) -> String {
    let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let errors = run(text, &files).expect_err("an error");
    errors.iter().flat_map(Diagnostics::lines).collect::<Vec<_>>().join("\n")
}

#[test]
fn files_that_include_each_other_are_refused() {
    assert!(errors("include \"a\"", &[("a", "include \"a\"")]).contains("a:1:9: a includes itself"));
    let circle = errors("include \"a\"", &[("a", "include 'b'"), ("b", "\ninclude 'a'")]);
    assert!(circle.contains("b:2:9: a includes itself"), "{circle}");
    let own = errors("include \"relayd.conf\"", &[("relayd.conf", "")]);
    assert!(own.contains("includes itself"), "{own}");
}

#[test]
fn includes_have_a_depth_and_a_number() {
    let deep: Vec<(String, String)> =
        (0..40).map(|number| (format!("f{number}"), format!("include \"f{}\"", number + 1))).collect();
    let deep: Vec<(&str, &str)> = deep.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert!(errors("include \"f0\"", &deep).contains("too deep"));
    // Two of the next in each: 2^14 in all.
    let wide: Vec<(String, String)> = (0..14)
        .map(|number| (format!("f{number}"), format!("include \"f{0}\"\ninclude \"f{0}\"", number + 1)))
        .chain([("f14".to_owned(), String::new())])
        .collect();
    let wide: Vec<(&str, &str)> = wide.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert!(errors("include \"f0\"", &wide).contains("too many"));
}

#[test]
fn macros_cannot_make_a_flood() {
    let text = format!("a = \"{}\"\n{}", "x ".repeat(2000), "$a ".repeat(2000));
    assert!(errors(&text, &[]).contains("more than 1000000 words"));
}

const WORDS: &[&str] = &[
    "table",
    "<a>",
    "<b>",
    "<",
    ">",
    "{",
    "}",
    "\n",
    "\n",
    "\n",
    " ",
    ",",
    "disable",
    "10.0.0.1",
    "10.0.0.2",
    "2001:db8::1",
    "named",
    "unknown",
    "retry 2",
    "parent 1",
    "priority 3",
    "ip ttl 5",
    "redirect",
    "\"r 1\"",
    "r2",
    "listen on",
    "203.0.113.1",
    "2001:db8::10",
    "127.0.0.1",
    "port 80",
    "port 8000:8010",
    "port smtp",
    "tcp",
    "udp",
    "interface em0",
    "forward to",
    "route to",
    "check",
    "icmp",
    "http \"/\" code 200",
    "https \"/\" host x digest abc",
    "send nothing expect \"220 *\"",
    "binary send 0a expect 0b tls",
    "script \"/x\"",
    "mode",
    "source-hash key",
    "roundrobin",
    "least-states",
    "loadbalance",
    "hash",
    "sticky-address",
    "session timeout 5",
    "pftag x",
    "match",
    "demote g",
    "timeout 300",
    "interval 5",
    "include \"inc\"",
    "relay x {",
    "protocol",
    "router",
    "x = \"1 2\"",
    "$x",
    "$undefined",
    "#",
    "\\\n",
    "\\",
    "\"",
    "'",
    "log state changes",
    "prefork 5",
    "=",
    "0",
    "-1",
    "99999999999",
];

/// Mostly whole statements, so that some get as far as the loader.
fn statements() -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec![
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.1 retry 3",
        "2001:db8::1",
        "named",
        "nowhere",
        "203.0.113.1",
    ]);
    let table = (prop::sample::select(vec!["a", "b", "c"]), prop::collection::vec(host, 0..4), any::<bool>());
    let table = table.prop_map(|(name, hosts, disabled)| {
        format!("table <{name}> {}{{ {} }}\n", if disabled { "disable " } else { "" }, hosts.join(", "))
    });
    let listen = prop::sample::select(vec![
        "listen on 203.0.113.1 port 80",
        "listen on 203.0.113.1 port 80",
        "listen on 203.0.113.2 udp port 53",
        "listen on 2001:db8::10 port 8000:8010",
        "listen on named port 25",
        "listen on em0 port 25",
        "listen on 127.0.0.1 port 25",
        "disable",
        "sticky-address",
        "session timeout 99999999",
        "listen on 203.0.113.3 gre port 1",
    ]);
    let target = prop::sample::select(vec![
        "forward to <a> check tcp",
        "forward to <b> port 8080 mode random check icmp",
        "forward to <a> check send nothing expect \"220*\" interval 60 timeout 59999",
        "route to <c> check http \"/\" code 200 interface em1",
        "forward to <c> check script \"/bin/true\" mode loadbalance",
        "forward to <a> check tcp interval 0",
        "forward to <b> check tcp timeout 0 interval 1",
    ]);
    let redirect = (
        prop::sample::select(vec!["r", "s", "t u"]),
        prop::collection::vec(listen, 1..4),
        prop::collection::vec(target, 1..3),
    );
    let redirect = redirect.prop_map(|(name, listen, targets)| {
        format!("redirect \"{name}\" {{\n{}\n{}\n}}\n", listen.join("\n"), targets.join("\n"))
    });
    (prop::collection::vec(table, 1..4), prop::collection::vec(redirect, 1..4))
        .prop_map(|(tables, redirects)| tables.concat() + &redirects.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_text_is_read_to_its_end(text in any::<String>(), included in any::<String>()) {
        judge(&text, &HashMap::from([("inc".to_owned(), included)]));
    }

    #[test]
    fn random_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        judge(&String::from_utf8_lossy(&bytes), &HashMap::new());
    }

    #[test]
    fn random_words_are_read_to_their_end(
        words in prop::collection::vec(prop::sample::select(WORDS), 0..60),
        included in prop::collection::vec(prop::sample::select(WORDS), 0..20),
    ) {
        judge(&words.join(" "), &HashMap::from([("inc".to_owned(), included.join(" "))]));
    }

    #[test]
    fn what_comes_of_statements_is_what_the_loader_takes(text in statements()) {
        judge(&text, &HashMap::new());
    }
}
