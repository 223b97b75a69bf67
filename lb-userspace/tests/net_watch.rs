//! The daemon hears of what changes in the kernel.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lb_userspace::net::ports::Interfaces;
use lb_userspace::net::watch::{EpochWriter, spawn};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::watch;

#[derive(Clone, Default)]
struct Cell(Arc<AtomicU32>);

impl EpochWriter for Cell {
    fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, epoch: u32) {
        self.0.store(epoch, Ordering::Release);
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {args}");
}

async fn until(what: &str, cell: &Cell, met: impl Fn(u32) -> bool) -> u32 {
    for _ in 0..300 {
        let epoch = cell.get();
        if met(epoch) {
            return epoch;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: the epoch is still {}", cell.get());
}

/// In a network namespace of its own thread, which is gone with it.
fn in_namespace(test: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests run as root");
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_epoch_follows_routes_rules_and_neighbours() {
    in_namespace(async {
        let cell = Cell::default();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (to, known) = watch::channel(Interfaces::default());
        let task = spawn(cell.clone(), to, async {
            let _ = stopped.await;
        })
        .expect("it starts");
        let epoch = until("at the start", &cell, |epoch| epoch != 0).await;

        ip("link add a0 type veth peer name a1");
        ip("link set a0 up");
        ip("link set a1 up");
        ip("address add 10.9.0.1/24 dev a0");
        let epoch = until("interfaces", &cell, |new| new != 0 && new != epoch).await;
        ip("route add 10.8.0.0/16 via 10.9.0.9");
        let epoch = until("a route", &cell, |new| new != 0 && new != epoch).await;
        ip("neighbour replace 10.9.0.9 lladdr 02:00:00:00:00:09 dev a0 nud permanent");
        until("a neighbour", &cell, |new| new != 0 && new != epoch).await;

        ip("rule add fwmark 7 table 100");
        until("a rule", &cell, |epoch| epoch == 0).await;
        ip("rule del fwmark 7 table 100");
        until("no rule", &cell, |epoch| epoch != 0).await;
        ip("route add 10.7.0.0/16 nexthop via 10.9.0.9 nexthop via 10.9.0.10");
        until("several next hops", &cell, |epoch| epoch == 0).await;
        ip("route del 10.7.0.0/16");
        until("a single one", &cell, |epoch| epoch != 0).await;

        let index = nix::net::if_::if_nametoindex("a0").expect("the interface");
        assert_eq!(known.borrow().table(&[index]).ports[0].addr4, [10, 9, 0, 1]);
        stop.send(()).expect("it runs");
        task.await.expect("it ends");
        assert_eq!(cell.get(), 0);
    });
}
