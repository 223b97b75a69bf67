//! The program loads, once, and all of it.

#![expect(clippy::unwrap_used, reason = "a test ends with what goes wrong")]

use std::path::{Path, PathBuf};

use lb_common::abi::{Be16, Side};
use lb_userspace::dataplane::Capacity;
use lb_userspace::dataplane::kernel::load::{Geometry, Loaded, Programs, load};
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
    let mut loaded = load(&pins, Geometry { capacity, flow_lines: 1024 }, None, Programs::All)
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

const GEOMETRY: Geometry =
    Geometry { capacity: Capacity { listeners: 64, backends: 256, table_slots: 1 << 18 }, flow_lines: 1024 };

/// The only directory of loaded programs.
fn programs(dir: &Path) -> PathBuf {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_one = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("programs-");
    let found: Vec<_> = entries.filter(is_one).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn programs_that_are_the_same_are_not_loaded_again_and_others_are() {
    let dir = Removed(format!("/sys/fs/bpf/matapa-again-{}", std::process::id()).into());
    let pins = Pins::open(&dir.0).unwrap();
    let start = |geometry, kind| load(&pins, geometry, None, kind).unwrap_or_else(|e| panic!("{e:#}\n{e:?}"));
    let mut first = start(GEOMETRY, Programs::All);
    let id = first.kernel.program_id().unwrap();
    drop(start(GEOMETRY, Programs::All));
    assert_ne!(start(GEOMETRY, Programs::All).kernel.program_id().unwrap(), id, "not yet left to others");
    // The last of these has taken the place where the first one was.
    first = start(GEOMETRY, Programs::All);
    let id = first.kernel.program_id().unwrap();
    first.kernel.completed(&pins);
    drop(first);

    let mut second = start(GEOMETRY, Programs::All);
    assert!(second.adopted);
    assert_eq!(second.kernel.program_id().unwrap(), id);
    // They do what they did: the clock's program runs, and the first one finds its stages.
    let clock = second.kernel.clock().unwrap();
    assert!(clock.seconds_per_tick > 0.0);
    let (verdict, frame) = second.kernel.run(&[0xff; 60], None).unwrap();
    assert_eq!((verdict, frame.len()), (2, 60), "passed");
    second.kernel.completed(&pins);
    drop(second);

    // Made from something else.
    std::fs::rename(programs(&dir.0), dir.0.join("programs-0123456789abcdef0123456789abcdef")).unwrap();
    let mut third = start(GEOMETRY, Programs::All);
    let other = third.kernel.program_id().unwrap();
    assert_ne!(other, id);
    third.kernel.completed(&pins);
    drop(third);

    // Broken: what is missing is loaded anew.
    std::fs::remove_file(programs(&dir.0).join("HELD")).unwrap();
    let mut fourth = start(GEOMETRY, Programs::All);
    assert_ne!(fourth.kernel.program_id().unwrap(), other);
    fourth.kernel.completed(&pins);
    let id = fourth.kernel.program_id().unwrap();
    drop(fourth);

    // One that logs is another one, and leaves nothing to those that do not.
    assert_ne!(start(GEOMETRY, Programs::Traced).kernel.program_id().unwrap(), id);
    assert_eq!(start(GEOMETRY, Programs::All).kernel.program_id().unwrap(), id);
    // And other maps need other programs.
    let larger = Geometry { flow_lines: 2048, ..GEOMETRY };
    assert_ne!(start(larger, Programs::All).kernel.program_id().unwrap(), id);
    pins.remove_all().unwrap();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn stages_that_come_later_leave_packets_alone_until_they_are_there() {
    /// VLAN 5, IPv6 with a hop-by-hop header: through three stages.
    fn frame() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x81, 0, 0, 5, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 0, 64]);
        frame.extend([0x20; 32]);
        frame.extend([59, 0, 1, 4, 0, 0, 0, 0]);
        frame
    }
    let dir = Removed(format!("/sys/fs/bpf/matapa-later-{}", std::process::id()).into());
    let pins = Pins::open(&dir.0).unwrap();
    let first = Programs::First(&["matapa_xdp", "matapa_tagged"]);
    let mut loaded = load(&pins, GEOMETRY, None, first).unwrap_or_else(|e| panic!("{e:#}\n{e:?}"));
    let counted = |loaded: &mut Loaded| loaded.kernel.counters().unwrap().values().sum::<u64>();
    assert_eq!(loaded.kernel.run(&frame(), None).unwrap(), (2, frame()), "passed, with its tag");
    assert_eq!(counted(&mut loaded), 0, "by no stage");
    let rest = loaded.rest.take().expect("the other stages");
    rest.load().unwrap_or_else(|e| panic!("{e:#}\n{e:?}"));
    assert_eq!(loaded.kernel.run(&frame(), None).unwrap(), (2, frame()), "for no service");
    assert_eq!(counted(&mut loaded), 1, "by its own stage");
    loaded.kernel.completed(&pins);
    let id = loaded.kernel.program_id().unwrap();
    drop(loaded);
    let mut again = load(&pins, GEOMETRY, None, first).unwrap_or_else(|e| panic!("{e:#}\n{e:?}"));
    assert!(again.rest.is_none());
    assert_eq!(again.kernel.program_id().unwrap(), id);
    let before = counted(&mut again);
    again.kernel.run(&frame(), None).unwrap();
    assert_eq!(counted(&mut again), before + 1, "its own stage is still there");
    drop(again);
    pins.remove_all().unwrap();
}
