//! Services for whatever is neither TCP nor UDP.

use lb_lab::packets::EXPERIMENT;
use lb_lab::traffic::raw::{self, RawEcho};

use super::{ALL, DSR, GUE_V6, IPIP_V4, NAT, Way, one_segment};
use crate::support::Rig;

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn other_protocols_reach_one_server_and_come_back() {
    let shape = one_segment();
    let ways = [NAT, DSR, IPIP_V4, GUE_V6];
    let configure = |topology: &lb_lab::Topology| {
        let services = ways.map(|way| way.service(topology, "any", "/any", ALL, "")).concat();
        format!("interfaces = [\"int\"]\n{services}")
    };
    let (rig, servers) = Rig::shaped(shape, configure, |_, host| {
        let decapsulator = lb_lab::decap::Decapsulator::start(&host.netns).unwrap();
        (RawEcho::start(host, EXPERIMENT).unwrap(), decapsulator)
    });
    check(&rig, NAT);
    rig.topology.answer_directly().unwrap();
    for way in [DSR, IPIP_V4, GUE_V6] {
        check(&rig, way);
    }
    drop(servers);
    rig.finish();
}

fn check(rig: &Rig, way: Way) {
    for v6 in [false, true] {
        let (source, target) = (rig.topology.clients[0].address(v6), way.target(v6, 0).ip());
        let ask = |text: &str| raw::ask(rig.client(), source, target, EXPERIMENT, text).unwrap();
        let first = ask("first").unwrap_or_else(|| panic!("{way:?}: no answer from {target}"));
        for number in 0..5 {
            assert_eq!(ask(&number.to_string()).as_ref(), Some(&first), "{way:?}: {target}");
        }
    }
}
