//! What a ruleset of nftables does to one packet, as far as that can be told from its text
//! (libnftables-json(5)). Matches that depend on more than is known of the packet neither hold nor fail.

use serde_json::Value;

/// A packet whose fate is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    pub(super) v4: bool,
    /// Its number, and the names that nft may print for it.
    pub(super) protocol: u8,
    pub(super) protocol_names: &'a [&'a str],
    pub(super) destination: std::net::IpAddr,
    /// Where it comes in, or goes out.
    pub(super) interface: &'a str,
    /// It comes in; else this machine sends it.
    pub(super) incoming: bool,
}

/// Where a packet is dropped for certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Drop {
    /// `inet filter input`.
    pub(super) chain: String,
    /// Of the rule, for `nft delete rule`; `None` for the chain's policy.
    pub(super) handle: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Perhaps,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The packet goes on to the next rule.
    Continue,
    /// Back to the chain that jumped here.
    Return,
    Accept,
    /// Accepted under a condition that is not known.
    Perhaps,
    Drop(Option<u64>, String),
}

/// How deep chains may jump; the kernel's limit.
const DEEPEST: usize = 16;

/// The first chain that certainly drops the packet.
pub(super) fn fate(rules: &[Value], packet: &Packet<'_>) -> Option<Drop> {
    let hooks: &[&str] = if packet.incoming {
        &["ingress", "prerouting", "input"]
    } else {
        &["output", "postrouting", "egress"]
    };
    let mut bases: Vec<(usize, i64, &Value)> = Vec::new();
    for chain in objects(rules, "chain") {
        let Some(place) = hooks.iter().position(|hook| chain["hook"] == *hook) else { continue };
        // Chains of NAT see only the first packet of a connection, and drop none as a rule.
        if chain["type"] == "nat" || !concerns(chain, packet) {
            continue;
        }
        bases.push((place, chain["prio"].as_i64().unwrap_or_default(), chain));
    }
    bases.sort_by_key(|(place, priority, _)| (*place, *priority));
    for (_, _, chain) in bases {
        let name = name_of(chain);
        match walk(rules, chain, packet, 0) {
            Outcome::Drop(handle, at) => return Some(Drop { chain: at, handle }),
            Outcome::Continue | Outcome::Return if chain["policy"] == "drop" => {
                return Some(Drop { chain: name, handle: None });
            }
            _ => {}
        }
    }
    None
}

fn objects<'a>(rules: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    rules.iter().filter_map(move |object| object.get(kind))
}

fn name_of(chain: &Value) -> String {
    let word = |key: &str| chain[key].as_str().unwrap_or("?").to_owned();
    format!("{} {} {}", word("family"), word("table"), word("name"))
}

/// Whether a chain is of the packet's family, and on its interface if it is on one.
fn concerns(chain: &Value, packet: &Packet<'_>) -> bool {
    let family = match chain["family"].as_str() {
        Some("inet" | "netdev") => true,
        Some("ip") => packet.v4,
        Some("ip6") => !packet.v4,
        _ => false,
    };
    let device = match &chain["dev"] {
        Value::String(name) => name == packet.interface,
        Value::Array(names) => names.iter().any(|name| name == packet.interface),
        _ => true,
    };
    family && device
}

fn walk(rules: &[Value], chain: &Value, packet: &Packet<'_>, depth: usize) -> Outcome {
    let of_chain = |rule: &&Value| {
        ["family", "table"].iter().all(|key| rule[*key] == chain[*key]) && rule["chain"] == chain["name"]
    };
    let mut perhaps = false;
    for rule in objects(rules, "rule").filter(of_chain) {
        match rule_outcome(rules, rule, packet, chain, depth) {
            Outcome::Continue => {}
            Outcome::Perhaps => perhaps = true,
            // Something before may have accepted it.
            Outcome::Drop(..) if perhaps => return Outcome::Perhaps,
            other => return other,
        }
    }
    if perhaps { Outcome::Perhaps } else { Outcome::Continue }
}

fn rule_outcome(rules: &[Value], rule: &Value, packet: &Packet<'_>, chain: &Value, depth: usize) -> Outcome {
    let mut certain = true;
    for statement in rule["expr"].as_array().into_iter().flatten() {
        let Some((kind, content)) = statement.as_object().and_then(|object| object.iter().next()) else {
            certain = false;
            continue;
        };
        let outcome = match kind.as_str() {
            "match" => {
                match holds(content, packet) {
                    Holds::Yes => {}
                    Holds::No => return Outcome::Continue,
                    Holds::Perhaps => certain = false,
                }
                continue;
            }
            "counter" | "log" | "comment" | "notrack" | "mangle" | "meta" | "ct" => continue,
            "accept" => Outcome::Accept,
            "drop" | "reject" => Outcome::Drop(rule["handle"].as_u64(), name_of(chain)),
            "return" => Outcome::Return,
            "jump" | "goto" if depth < DEEPEST => {
                let target = objects(rules, "chain").find(|other| {
                    ["family", "table"].iter().all(|key| other[*key] == chain[*key])
                        && other["name"] == content["target"]
                });
                let inner = target.map_or(Outcome::Continue, |target| walk(rules, target, packet, depth + 1));
                match inner {
                    Outcome::Return | Outcome::Continue if kind == "goto" => Outcome::Return,
                    Outcome::Return => Outcome::Continue,
                    other => other,
                }
            }
            "vmap" => mapped(content, packet, rule, chain),
            // Limits, maps, sets that are filled at run time, extensions of iptables.
            _ => Outcome::Perhaps,
        };
        return match outcome {
            Outcome::Continue => Outcome::Continue,
            // Whether a rule is reached is not known: a drop may not happen, an accept may.
            Outcome::Drop(..) | Outcome::Return if !certain => Outcome::Continue,
            Outcome::Accept if !certain => Outcome::Perhaps,
            other => other,
        };
    }
    Outcome::Continue
}

/// A verdict for each of some values; jumps in it are not followed.
fn mapped(content: &Value, packet: &Packet<'_>, rule: &Value, chain: &Value) -> Outcome {
    let Some(pairs) = content["data"]["set"].as_array() else { return Outcome::Perhaps };
    let mut unknown = false;
    for pair in pairs {
        let verdict = &pair[1];
        match compare(&content["key"], &pair[0], packet) {
            Some(false) => {}
            None => unknown |= verdict.get("drop").is_none(),
            Some(true) if verdict.get("accept").is_some() => return Outcome::Accept,
            Some(true) if verdict.get("drop").is_some() => {
                return Outcome::Drop(rule["handle"].as_u64(), name_of(chain));
            }
            Some(true) => return Outcome::Perhaps,
        }
    }
    if unknown { Outcome::Perhaps } else { Outcome::Continue }
}

fn holds(content: &Value, packet: &Packet<'_>) -> Holds {
    let Some(equal) = compare(&content["left"], &content["right"], packet) else { return Holds::Perhaps };
    match content["op"].as_str() {
        Some("==" | "in") if equal => Holds::Yes,
        Some("==" | "in") => Holds::No,
        Some("!=") if equal => Holds::No,
        Some("!=") => Holds::Yes,
        _ => Holds::Perhaps,
    }
}

/// Whether the packet has the value; `None` where that is not known.
fn compare(left: &Value, right: &Value, packet: &Packet<'_>) -> Option<bool> {
    if let Some(payload) = left.get("payload") {
        let (protocol, field) =
            (payload["protocol"].as_str()?, payload["field"].as_str().unwrap_or_default());
        return match (protocol, field) {
            ("ip", _) if !packet.v4 => Some(false),
            ("ip6", _) if packet.v4 => Some(false),
            ("ip", "protocol") | ("ip6", "nexthdr") => any(right, &|value| is_protocol(value, packet)),
            ("ip" | "ip6", "daddr") => any(right, &|value| is_address(value, packet)),
            ("tcp" | "udp" | "icmp" | "icmpv6" | "sctp" | "dccp" | "th", _) => Some(false),
            _ => None,
        };
    }
    if let Some(meta) = left.get("meta") {
        return match meta["key"].as_str()? {
            "l4proto" => any(right, &|value| is_protocol(value, packet)),
            "iif" | "iifname" if packet.incoming => any(right, &|value| is_interface(value, packet)),
            "oif" | "oifname" if !packet.incoming => any(right, &|value| is_interface(value, packet)),
            "nfproto" => any(right, &|value| Some(value == if packet.v4 { "ipv4" } else { "ipv6" })),
            _ => None,
        };
    }
    if left.get("ct").is_some_and(|ct| ct["key"] == "state") {
        // What goes to a group has no answers, so to connection tracking it is always the first of its kind.
        return any(right, &|value| match value.as_str()? {
            "established" | "related" if packet.destination.is_multicast() => Some(false),
            "invalid" | "untracked" => Some(false),
            _ => None,
        });
    }
    None
}

/// Whether any of a set holds, or the only one.
fn any(right: &Value, test: &dyn Fn(&Value) -> Option<bool>) -> Option<bool> {
    let set = right.get("set").unwrap_or(right);
    match set {
        Value::Array(items) => {
            let answers: Vec<Option<bool>> = items.iter().map(test).collect();
            if answers.contains(&Some(true)) {
                Some(true)
            } else if answers.iter().all(|answer| *answer == Some(false)) {
                Some(false)
            } else {
                None
            }
        }
        // A named set.
        Value::String(name) if name.starts_with('@') => None,
        one => test(one),
    }
}

fn is_protocol(value: &Value, packet: &Packet<'_>) -> Option<bool> {
    match value {
        Value::Number(number) => Some(number.as_u64() == Some(u64::from(packet.protocol))),
        Value::String(name) => Some(packet.protocol_names.contains(&name.as_str())),
        _ => None,
    }
}

fn is_interface(value: &Value, packet: &Packet<'_>) -> Option<bool> {
    let name = value.as_str()?;
    Some(match name.strip_suffix('*') {
        Some(prefix) => packet.interface.starts_with(prefix),
        None => packet.interface == name,
    })
}

fn is_address(value: &Value, packet: &Packet<'_>) -> Option<bool> {
    if let Some(prefix) = value.get("prefix") {
        let network: std::net::IpAddr = prefix["addr"].as_str()?.parse().ok()?;
        let length = u32::try_from(prefix["len"].as_u64()?).ok()?;
        return match (network, packet.destination) {
            (std::net::IpAddr::V4(network), std::net::IpAddr::V4(address)) => {
                Some((network.to_bits() ^ address.to_bits()).leading_zeros() >= length)
            }
            (std::net::IpAddr::V6(network), std::net::IpAddr::V6(address)) => {
                Some((network.to_bits() ^ address.to_bits()).leading_zeros() >= length)
            }
            _ => Some(false),
        };
    }
    let address: std::net::IpAddr = value.as_str()?.parse().ok()?;
    Some(address == packet.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CARP: Packet<'_> = Packet {
        v4: true,
        protocol: 112,
        protocol_names: &["vrrp", "carp"],
        destination: std::net::IpAddr::V4(std::net::Ipv4Addr::new(224, 0, 0, 18)),
        interface: "ext",
        incoming: true,
    };

    fn base(policy: &str) -> Value {
        json!({ "chain": { "family": "inet", "table": "filter", "name": "input", "type": "filter", "hook": "input",
                           "prio": 0, "policy": policy } })
    }

    fn rule(chain: &str, expr: &Value) -> Value {
        json!({ "rule": { "family": "inet", "table": "filter", "chain": chain, "handle": 4, "expr": expr } })
    }

    fn matches(left: &Value, right: &Value) -> Value {
        json!({ "match": { "op": "==", "left": left, "right": right } })
    }

    fn l4proto(value: &Value) -> Value {
        matches(&json!({ "meta": { "key": "l4proto" } }), value)
    }

    #[test]
    fn policies_and_rules() {
        let accept = json!({ "accept": null });
        let drop = json!({ "drop": null });
        let established = json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } },
                                             "right": ["established", "related"] } });
        let ssh = matches(&json!({ "payload": { "protocol": "tcp", "field": "dport" } }), &json!(22));
        let from =
            matches(&json!({ "payload": { "protocol": "ip", "field": "saddr" } }), &json!("192.0.2.2"));
        let chain = |policy: &str, rules: &[Value]| {
            let mut all = vec![base(policy)];
            all.extend(rules.iter().map(|expr| rule("input", expr)));
            fate(&all, &CARP).map(|drop| drop.handle)
        };
        assert_eq!(chain("accept", &[]), None);
        assert_eq!(chain("drop", &[]), Some(None));
        assert_eq!(chain("drop", &[json!([established, accept]), json!([ssh, accept])]), Some(None));
        assert_eq!(chain("drop", &[json!([l4proto(&json!("vrrp")), { "counter": null }, accept])]), None);
        assert_eq!(chain("drop", &[json!([l4proto(&json!({ "set": [112, "esp"] })), accept])]), None);
        assert_eq!(chain("drop", &[json!([from, accept])]), None, "it may be the other gateway");
        assert_eq!(chain("accept", &[json!([l4proto(&json!(112)), drop])]), Some(Some(4)));
        assert_eq!(chain("accept", &[json!([from, drop])]), None);
        assert_eq!(chain("accept", &[json!([l4proto(&json!("tcp")), drop])]), None);
        let vmap = json!({ "vmap": { "key": { "ct": { "key": "state" } }, "data": { "set": [
            ["established", { "accept": null }], ["related", { "accept": null }], ["invalid", { "drop": null }]] } } });
        assert_eq!(chain("drop", &[json!([vmap])]), Some(None));
        let interface = |name: &str| matches(&json!({ "meta": { "key": "iifname" } }), &json!(name));
        assert_eq!(chain("drop", &[json!([interface("ext"), accept])]), None);
        assert_eq!(chain("drop", &[json!([interface("in*"), accept])]), Some(None));
        let group = json!({ "prefix": { "addr": "224.0.0.0", "len": 4 } });
        let to = matches(&json!({ "payload": { "protocol": "ip", "field": "daddr" } }), &group);
        assert_eq!(chain("drop", &[json!([to, accept])]), None);
    }

    #[test]
    fn chains_that_jump() {
        let jump = |to: &str| json!([{ "jump": { "target": to } }]);
        let inner = |name: &str| json!({ "chain": { "family": "inet", "table": "filter", "name": name } });
        let all = [
            base("drop"),
            inner("carp"),
            rule("input", &jump("carp")),
            rule("carp", &json!([l4proto(&json!(112)), { "accept": null }])),
        ];
        assert_eq!(fate(&all, &CARP), None);
        let endless =
            [base("accept"), inner("carp"), rule("input", &jump("carp")), rule("carp", &jump("carp"))];
        assert_eq!(fate(&endless, &CARP), None);
        let back = [
            base("drop"),
            inner("carp"),
            rule("input", &jump("carp")),
            rule("carp", &json!([{ "return": null }])),
        ];
        assert_eq!(fate(&back, &CARP), Some(Drop { chain: "inet filter input".to_owned(), handle: None }));
    }

    #[test]
    fn other_families_and_directions() {
        let mut output = base("drop");
        output["chain"]["hook"] = json!("output");
        assert_eq!(fate(&[output.clone()], &CARP), None);
        assert!(fate(&[output], &Packet { incoming: false, ..CARP }).is_some());
        let mut v6 = base("drop");
        v6["chain"]["family"] = json!("ip6");
        assert_eq!(fate(&[v6], &CARP), None);
    }
}
