//! Clients, gateway and servers on one segment: every packet leaves by the interface it came in on.

use lb_lab::Shape;

use super::{DSR, GUE_V4, GUE_V6, IPIP_V4, IPIP_V6, NAT, Programs, SNAT, VIPS, checks, config};
use crate::support::Rig;

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn modes_that_need_no_way_back_work_on_one_segment() {
    let shape = Shape { one_armed: true, vips: VIPS, vips_on_servers: true, ..Shape::default() };
    let ways = [SNAT, DSR, IPIP_V4, IPIP_V6, GUE_V4, GUE_V6];
    let (rig, programs) = Rig::shaped(shape, |topology| config(topology, &ways), Programs::start);
    for way in ways {
        checks::everything(&rig, &programs, way);
    }
    drop(programs);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn nat_works_on_one_segment_for_clients_from_elsewhere() {
    let shape = Shape { one_armed: true, clients_router: true, ..Shape::default() };
    let (rig, programs) = Rig::shaped(shape, |topology| config(topology, &[NAT]), Programs::start);
    checks::everything(&rig, &programs, NAT);
    drop(programs);
    rig.finish();
}
