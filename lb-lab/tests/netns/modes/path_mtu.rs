//! Path MTU discovery: whoever sends too large packets learns it, whatever is between the ends.

use lb_lab::traffic::path::{self, Probe};
use lb_lab::{Host, Router, Shape};

use super::{
    BULK, DSR, GUE_V4, GUE_V6, IPIP_V4, IPIP_V6, NAT, Programs, SNAT, WEB, Way, checks, config, one_segment,
};
use crate::support::{ECHO, Rig};

const NARROW: u16 = 1400;

/// What `host` has learned about the way to `peer`; forgotten afterwards by both ends.
fn learned(rig: &Rig, host: &Host, peer: std::net::IpAddr) -> Option<u16> {
    path::learned_mtu(rig.lab(), &host.netns, peer).unwrap()
}

fn forget(rig: &Rig) {
    for host in rig.topology.clients.iter().chain(&rig.topology.servers) {
        host.forget_paths().unwrap();
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn both_ends_learn_the_path_mtu_through_a_translated_service() {
    let shape = Shape { clients_router: true, servers_router: true, vips: 2, ..Shape::default() };
    let (rig, programs) = Rig::shaped(shape, |topology| config(topology, &[NAT, SNAT]), Programs::start);
    let (client, server) = (&rig.topology.clients[0], rig.server(1));
    for way in [NAT, SNAT] {
        for v6 in [false, true] {
            let vip = way.target(v6, BULK).ip();
            let peer = way.seen_client(&rig.topology, v6);
            // A router before the client tells the server, whose packets seem to come from the service.
            let near = rig.topology.clients_router.as_ref().unwrap();
            narrow_check(&rig, near, way, v6, true);
            assert_eq!(learned(&rig, server, peer), Some(NARROW), "{way:?}: the server about {peer}");
            forget(&rig);
            // A router before the server tells the client, who has sent to the service.
            let far = rig.topology.servers_router.as_ref().unwrap();
            narrow_check(&rig, far, way, v6, false);
            assert_eq!(learned(&rig, client, vip), Some(NARROW), "{way:?}: the client about {vip}");
            forget(&rig);
        }
    }
    drop(programs);
    rig.finish();
}

/// Bulk data passes a router that takes only small packets, whose complaint the program has translated.
fn narrow_check(rig: &Rig, router: &Router, way: Way, v6: bool, back: bool) {
    let name = if back { "error_to_backend" } else { "error_to_client" };
    let before = checks::counter(rig, name);
    router.narrow(Some(NARROW)).unwrap();
    checks::transfer(&rig.topology, way, v6, back);
    checks::wait_counter(rig, name, before);
    router.narrow(None).unwrap();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_gateway_tells_how_much_fits_into_a_tunnel() {
    let shape = one_segment();
    let ways = [DSR, IPIP_V4, IPIP_V6, GUE_V4, GUE_V6];
    let (rig, programs) = Rig::shaped(shape, |topology| config(topology, &ways), Programs::start);
    rig.topology.answer_directly().unwrap();
    let client = &rig.topology.clients[0];
    let router = rig.topology.clients_router.as_ref().unwrap();
    for way in ways {
        for v6 in [false, true] {
            let vip = way.target(v6, BULK).ip();
            let before = checks::counter(&rig, "too_big_answered");
            checks::transfer(&rig.topology, way, v6, false);
            let expected = way.tunnels().then(|| 1500 - way.overhead());
            assert_eq!(learned(&rig, client, vip), expected, "{way:?}: the client about {vip}");
            if way.tunnels() {
                checks::wait_counter(&rig, "too_big_answered", before);
            }
            forget(&rig);
            // What a router tells the service about an answer reaches the server that sent it.
            let before = checks::counter(&rig, "error_to_backend");
            router.narrow(Some(NARROW)).unwrap();
            checks::transfer(&rig.topology, way, v6, true);
            checks::wait_counter(&rig, "error_to_backend", before);
            router.narrow(None).unwrap();
            let about = learned(&rig, rig.server(1), client.address(v6));
            assert_eq!(about, Some(NARROW), "{way:?}: the server about the client");
            forget(&rig);
            // A tunnel is one hop.
            let hops =
                [router.far_address(v6), rig.topology.gateway_address(v6), vip].map(|hop| hop.to_string());
            for (probe, port) in [(Probe::Udp, ECHO), (Probe::Tcp, WEB)] {
                let seen = path::trace(rig.lab(), rig.client(), (vip, port).into(), probe).unwrap();
                assert_eq!(seen, hops, "{way:?}, {probe:?}");
            }
        }
    }
    drop(programs);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_gateway_answers_packets_that_its_own_link_does_not_take() {
    let shape = Shape { vips: 2, ..Shape::default() };
    let (rig, programs) = Rig::shaped(shape, |topology| config(topology, &[NAT, SNAT]), Programs::start);
    rig.gateway().set_mtu("int", NARROW).unwrap();
    // Its neighbours know that; their frames would be too large for it, too.
    for host in &rig.topology.servers {
        host.netns.ip(&format!("link set eth0 mtu {NARROW}\n")).unwrap();
    }
    let client = &rig.topology.clients[0];
    for way in [NAT, SNAT] {
        for v6 in [false, true] {
            let before = checks::counter(&rig, "too_big_answered");
            let vip = way.target(v6, ECHO).ip();
            checks::bulk(&rig.topology, way, v6);
            // Servers ask for segments that fit; a datagram is as large as it is.
            checks::do_not_fragment(&rig.topology, way.target(v6, ECHO), 1450);
            checks::wait_counter(&rig, "too_big_answered", before);
            assert_eq!(learned(&rig, client, vip), Some(NARROW), "{way:?}");
            checks::large_datagrams(&rig.topology, way, v6);
            forget(&rig);
        }
    }
    drop(programs);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_route_that_takes_less_is_told_without_the_tunnels_header() {
    let shape = Shape { clients_router: false, servers_router: true, ..one_segment() };
    let ways = [IPIP_V4, IPIP_V6, GUE_V4, GUE_V6];
    let (rig, programs) = Rig::shaped(shape, |topology| config(topology, &ways), Programs::start);
    let router = rig.topology.servers_router.as_ref().unwrap();
    // The router would tell the tunnel's source, which is nobody: the gateway has to know by itself.
    router.narrow(Some(NARROW)).unwrap();
    for (subnet, v6) in [("198.18.2.0/24", false), ("2001:db8:65::/64", true)] {
        let via = router.near_address(v6);
        rig.gateway().netns.ip(&format!("route replace {subnet} via {via} mtu lock {NARROW}\n")).unwrap();
    }
    for way in ways {
        for v6 in [false, true] {
            let vip = way.target(v6, BULK).ip();
            checks::transfer(&rig.topology, way, v6, false);
            let expected = Some(NARROW - way.overhead());
            assert_eq!(learned(&rig, &rig.topology.clients[0], vip), expected, "{way:?}: about {vip}");
            forget(&rig);
        }
    }
    drop(programs);
    rig.finish();
}
