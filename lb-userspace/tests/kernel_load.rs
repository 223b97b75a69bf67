//! The program loads.

use std::path::PathBuf;

use lb_common::abi::{Be16, Side};
use lb_userspace::dataplane::Capacity;
use lb_userspace::dataplane::kernel::load::{Geometry, load};
use lb_userspace::dataplane::kernel::pins::Pins;
use lb_userspace::dataplane::snapshot::Readable as _;

/// Pins that do not outlive the test, however it ends.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_verifier_accepts_the_program_and_the_clock_runs() {
    let dir = Removed(format!("/sys/fs/bpf/matapa-test-{}", std::process::id()).into());
    let pins = Pins::open(&dir.0).unwrap();
    let capacity = Capacity { listeners: 64, backends: 256, table_slots: 1 << 18 };
    let mut loaded = load(&pins, Geometry { capacity, flow_lines: 1024 }, None, false)
        .unwrap_or_else(|e| panic!("{e:#}\n{e:?}"));
    assert!(!loaded.adopted);
    let _ = (Side::Vip, Be16::new(1));
    let clock = loaded.kernel.clock().unwrap();
    println!("clock {clock:?}, {} instructions", loaded.kernel.verified_instructions().unwrap());
    assert_eq!(loaded.kernel.capacity(), capacity);
    drop(loaded);
    pins.remove_all().unwrap();
    assert!(!dir.0.exists());
}
