//! Which stages of the program have to be there before packets of a configuration's services are forwarded: those that TCP
//! and UDP take.

use lb_common::abi;
use lb_common::pipeline::Stage;

use crate::config::{Config, Forward, Protocol};

/// Names of the programs of these stages, in the order of their numbers. All others are for what is rare, such as fragments,
/// extension headers and errors, or for what the configuration does not have.
pub fn of(config: &Config) -> Vec<&'static str> {
    let listeners =
        config.services.iter().flat_map(|service| service.listen.iter().map(move |l| (service, l)));
    let mut wanted = vec![Stage::Entry, Stage::Tagged];
    // Two listeners may have a server in common, whose flows have an entry for the way back.
    let several = listeners.clone().count() > 1;
    for (service, listen) in listeners {
        let v6 = listen.address.is_ipv6();
        let mut add = |four: Stage, six: Stage| wanted.push(if v6 { six } else { four });
        add(Stage::Entry, Stage::V6);
        add(Stage::Out4, Stage::Out6);
        add(Stage::Refuse4, Stage::Refuse6);
        if listen.protocol == Protocol::Any {
            add(Stage::Any4, Stage::Any6);
        }
        if matches!(service.forward, Forward::Ipip | Forward::Gue) {
            add(Stage::Tunnel4, Stage::Tunnel6);
        } else {
            add(Stage::Send4, Stage::Send6);
        }
        if service.forward == Forward::Snat || service.forward == Forward::Nat && several {
            add(Stage::Back4, Stage::Back6);
            wanted.push(Stage::Record);
        }
    }
    let is_wanted = |stage: &&Stage| wanted.contains(stage);
    Stage::ALL.iter().filter(is_wanted).map(|stage| abi::STAGE_PROGRAMS[*stage as usize]).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn first(services: &str) -> Vec<&'static str> {
        let text = format!("interfaces = [\"eth0\"]\n{services}");
        of(&crate::config::parse(&text, Path::new("test.toml")).unwrap())
    }

    #[test]
    fn what_services_use_comes_first() {
        let one = "[services.a]\nlisten = \"203.0.113.10:25\"\nbackends = [\"198.51.100.11\"]\n";
        assert_eq!(
            first(one),
            ["matapa_xdp", "matapa_tagged", "matapa_out4", "matapa_send4", "matapa_refuse4"]
        );
        let six = "[services.b]\nlisten = \"[2001:db8::10]:25\"\nbackends = [\"2001:db8:1::11\"]\nforward = \"gue\"\n";
        assert_eq!(
            first(six),
            ["matapa_xdp", "matapa_v6", "matapa_tagged", "matapa_out6", "matapa_tunnel6", "matapa_refuse6"]
        );
        let both = first(&format!("{one}{six}"));
        assert!(
            ["matapa_v6", "matapa_back4", "matapa_record"].iter().all(|name| both.contains(name)),
            "{both:?}"
        );
        assert!(!both.contains(&"matapa_back6"), "no way back through here: {both:?}");
    }
}
