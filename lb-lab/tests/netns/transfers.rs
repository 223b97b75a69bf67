//! Power is lost on the master while bytes are under way: every transfer ends with all of them.

use std::time::{Duration, Instant};

use lb_lab::traffic::Transfers;

use crate::pair::{BULK, Pair, Wanted, sync, targets};
use crate::scale::scale;

/// What happens to the servers between the beginning of the transfers and the death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// A server that has half of them gets no new connections.
    Drained,
    /// A reload adds a server: it would get a third of them if they were new.
    Joined,
    /// A reload takes a server away that has none of them, and would choose anew for some others.
    Left,
}

const ALL: [Change; 4] = [Change::Nothing, Change::Drained, Change::Joined, Change::Left];

fn transfers_survive(forward: &'static str, short: Change) {
    let scale = scale();
    let mut pair = Pair::start(Wanted::mode(forward));
    for change in ALL.into_iter().filter(|change| scale.every_change || *change == short) {
        let before = if change == Change::Left { vec![1, 2, 3] } else { vec![1, 2] };
        if pair.wanted.servers != before {
            pair.wanted.servers = before;
            pair.reload();
        }
        if change == Change::Left {
            pair.drain(3);
        }
        // So long that the death meets all of them, and their end comes soon after the takeover.
        let time = if scale.every_change { Duration::from_secs(12) } else { Duration::from_secs(4) };
        let start = Instant::now();
        let transfers =
            Transfers::start(pair.client(), &targets(BULK), scale.transfers, scale.transfer_bytes, time)
                .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.first.log()));
        match change {
            Change::Nothing => {}
            Change::Drained => pair.drain(1),
            Change::Joined => {
                pair.wanted.servers = vec![1, 2, 3];
                pair.reload();
            }
            Change::Left => {
                pair.wanted.servers = vec![1, 2];
                pair.reload();
            }
        }
        transfers.wait_part(0.2, Duration::from_secs(20)).unwrap();
        let held = |server: &str| {
            transfers.snapshot().iter().filter(|one| one.server.as_deref() == Some(server)).count()
        };
        assert!(held("mx1") > 0 && held("mx2") > 0, "one server has all of them");
        let known = pair.second.flows().unwrap().total;
        let under_way = transfers.snapshot().iter().filter(|one| one.end.is_none()).count();
        assert_eq!(under_way, scale.transfers, "some have ended before the death");
        pair.kill_first();
        let all = transfers.wait_end(Duration::from_secs(120)).unwrap_or_else(|error| {
            panic!("{error:#}\n{}\n{}", sync(&pair.second), pair.second.log());
        });
        let bad: Vec<_> = all.iter().filter(|one| one.end != Some(Ok(()))).collect();
        assert!(
            bad.is_empty(),
            "{forward}, {change:?}: {} of {} failed, the other gateway knew of {known}: {:?}\n{}\n{}",
            bad.len(),
            all.len(),
            bad[0],
            sync(&pair.second),
            pair.second.log()
        );
        assert!(known >= scale.transfers as u64, "the other gateway knew of {known}");
        let pause = all.iter().map(|one| one.longest_pause).max().unwrap();
        println!(
            "{forward}, {change:?}: {} transfers of {} MiB ({} to mx1, {} to mx2) arrived whole in {:.1} s; \
             the longest pause was {:.2} s",
            all.len(),
            scale.transfer_bytes >> 20,
            held("mx1"),
            held("mx2"),
            start.elapsed().as_secs_f64(),
            pause.as_secs_f64()
        );
        // Of the first gateway's death: it takes a master's silence to notice it.
        assert!(pause >= Duration::from_secs(1), "the death was no interruption:\n{}", pair.second.log());
        if scale.every_change {
            pair.revive_first();
            if change == Change::Drained {
                pair.enable(1);
            }
        }
    }
    pair.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn transfers_survive_their_gateway_with_nat() {
    transfers_survive("nat", Change::Nothing);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn transfers_survive_their_gateway_with_snat() {
    transfers_survive("snat", Change::Joined);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn transfers_survive_their_gateway_with_dsr() {
    transfers_survive("dsr", Change::Left);
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn transfers_survive_their_gateway_with_ipip() {
    transfers_survive("ipip", Change::Drained);
}
