//! Steps in words, for people who want to know what a reload would do.

use lb_common::abi::Features;

use super::Op;
use crate::dataplane::image::{BackendEntry, Id, Image};

/// What a step does. Names come from the images before and after the whole plan, as it may be about things that are
/// only in one of them.
pub fn words(op: &Op, actual: &Image, desired: &Image) -> String {
    let names = Names { actual, desired };
    match op {
        Op::PutFeatures(features) => {
            let known = [(Features::RANGES, "ranges of ports"), (Features::ANY_PROTOCOL, "every protocol")];
            let wanted: Vec<&str> =
                known.iter().filter(|(feature, _)| features.has(*feature)).map(|(_, word)| *word).collect();
            let wanted = if wanted.is_empty() { "nothing special".to_owned() } else { wanted.join(" and ") };
            format!("have packets looked up for {wanted}")
        }
        Op::PutTunnel(_) => "write the sources of tunnels".to_owned(),
        Op::PutSnatAddress(place, address) => format!("write snat address {address} in place {place}"),
        Op::PutBackend(id, entry) => format!("write backend {} ({})", names.backend(*id), standing(entry)),
        Op::LinkBackend(id, 0) => format!("end the chain of backends at {}", names.backend(*id)),
        Op::LinkBackend(id, next) => {
            format!("chain backend {} to {}", names.backend(*id), names.backend(*next))
        }
        Op::PutSibling(key, id) => {
            format!("let sticky clients of {} find {}", names.listener(key.listener), names.backend(*id))
        }
        Op::PutListener(id, _) => format!("write listener {}", names.listener(*id)),
        Op::PutTable(id, table) => {
            let members: Vec<String> =
                table.members.iter().map(|(id, weight)| format!("{} x{weight}", names.short(*id))).collect();
            let members =
                if members.is_empty() { "nobody: no new flows".to_owned() } else { members.join(", ") };
            format!("build and swap the table of {} ({members})", names.listener(*id))
        }
        Op::LinkListener(id, 0) => format!("end the chain of listeners at {}", names.listener(*id)),
        Op::LinkListener(id, next) => {
            format!("chain listener {} to {}", names.listener(*id), names.listener(*next))
        }
        Op::PutEndpoint(endpoint, _) => format!("lead packets by {endpoint}"),
        Op::RemoveEndpoint(endpoint) => format!("lead no more packets by {endpoint}"),
        Op::RemoveListener(id) => format!("remove listener {}", names.listener(*id)),
        Op::RemoveSibling(key) => {
            format!("forget server {} of {} for sticky clients", key.server, names.listener(key.listener))
        }
        Op::RemoveBackend(id) => format!("remove backend {} and forget its flows", names.backend(*id)),
    }
}

/// What makes it take new flows, or not.
fn standing(entry: &BackendEntry) -> String {
    let health = match entry.health {
        crate::health::Health::Unknown => "health unknown",
        crate::health::Health::Up => "up",
        crate::health::Health::Down => "down",
    };
    let admin = match entry.admin {
        crate::api::types::AdminState::Enabled => "",
        crate::api::types::AdminState::Draining => ", draining",
        crate::api::types::AdminState::Disabled => ", disabled",
    };
    let suspect = if entry.suspect { ", no new flows for now" } else { "" };
    let most = entry.max_flows.map(|most| format!(", at most {most} connections")).unwrap_or_default();
    format!("weight {}{most}, {health}{admin}{suspect}", entry.weight)
}

struct Names<'a> {
    actual: &'a Image,
    desired: &'a Image,
}

impl Names<'_> {
    /// `mail 203.0.113.10:25/tcp`
    fn listener(&self, id: Id) -> String {
        let entry = self.desired.listeners.get(&id).or_else(|| self.actual.listeners.get(&id));
        entry.map_or_else(|| format!("number {id}"), |entry| format!("{} {}", entry.service, entry.listen))
    }

    fn entry(&self, id: Id) -> Option<&BackendEntry> {
        self.desired.backends.get(&id).or_else(|| self.actual.backends.get(&id))
    }

    /// `mx1 of mail 203.0.113.10:25/tcp`
    fn backend(&self, id: Id) -> String {
        self.entry(id).map_or_else(
            || format!("number {id}"),
            |entry| format!("{} of {}", entry.name, self.listener(entry.server.listener)),
        )
    }

    fn short(&self, id: Id) -> String {
        self.entry(id).map_or_else(|| format!("number {id}"), |entry| entry.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;
    use crate::dataplane::desired::desired;
    use crate::dataplane::plan::plan;
    use crate::dataplane::worlds::{AllUp, CAPACITY};

    fn image(text: &str, previous: &Image) -> Image {
        let config = parse(text, Path::new("m.toml")).expect("a good configuration");
        desired(&config, &AllUp, previous, CAPACITY).expect("it fits")
    }

    #[test]
    fn each_step_names_what_it_is_about() {
        let old = "interfaces = [\"eth0\"]\n[services.mail]\nlisten = \"203.0.113.10:25\"\n\
            backends = [\"198.51.100.11\", \"198.51.100.12\"]\n";
        let new = "interfaces = [\"eth0\"]\n[services.mail]\nlisten = \"203.0.113.10:25\"\n\
            backends = [\"198.51.100.12\", \"198.51.100.13\"]\n[services.web]\n\
            listen = \"203.0.113.10:8000-8100/tcp\"\nbackends = [\"198.51.100.13\"]\nsticky = \"5m\"\n";
        let empty = Image::default();
        let before = image(old, &empty);
        let after = image(new, &before);
        let told = |from: &Image, to: &Image| -> Vec<String> {
            plan(from, to).iter().map(|op| words(op, from, to)).collect()
        };
        insta::assert_snapshot!("steps_there", told(&before, &after).join("\n"));
        insta::assert_snapshot!("steps_back", told(&after, &image(old, &after)).join("\n"));
    }
}
