//! Jumbo frames: larger than a page, so the program sees their first part only.

use lb_lab::Shape;

use super::{NAT, Programs, checks, config};
use crate::support::Rig;

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn frames_of_nine_thousand_bytes_pass() {
    let shape = Shape { mtu: 9000, ..Shape::default() };
    let (rig, programs) = Rig::shaped(shape, |topology| config(topology, &[NAT]), Programs::start);
    checks::everything(&rig, &programs, NAT);
    drop(programs);
    rig.finish();
}
