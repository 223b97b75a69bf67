//! Shared addresses as the kernel takes them.

use std::process::Command;

use lb_userspace::carp::io::link::{Assigned, Netlink};
use nix::sched::{CloneFlags, unshare};

/// The kernel puts IPv6 addresses in force in a work queue, after it has said that they are there. One that is announced
/// before that gets its first answers from neighbours lost.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn an_address_that_was_put_on_is_received_at_once() {
    // In a network namespace of its own thread, which is gone with it.
    let test = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests run as root");
        for args in ["link add shared type veth peer name other", "link set other up", "link set shared up"] {
            let status = Command::new("ip").args(args.split(' ')).status().expect("ip runs");
            assert!(status.success(), "ip {args}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (netlink, _changes) = Netlink::open().expect("rtnetlink");
            let link = netlink.link("shared").await.expect("an answer").expect("the interface");
            for number in 1..=200 {
                let address = format!("2001:db8::{number:x}").parse().expect("an address");
                netlink.add(link.index, Assigned { address, prefix: 128 }, true).await.expect("it is put on");
                assert!(netlink.receives(address).await, "{address}, number {number}, is not received");
            }
        });
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}
