//! For how long nothing is forwarded when the master dies, as a client counts it.

use std::time::{Duration, Instant};

use lb_lab::traffic::udp::UdpStream;
use lb_lab::wait_until;

use crate::pair::{Pair, Wanted, targets};
use crate::scale::scale;
use crate::support::ECHO;

/// Between two datagrams.
const EVERY: Duration = Duration::from_millis(5);

/// From the first datagram without an answer to the last one.
fn interruption(lost: &[Duration]) -> Duration {
    match lost {
        [first, .., last] => *last - *first + EVERY,
        [_] => EVERY,
        [] => Duration::ZERO,
    }
}

fn interrupted_for(wanted: Wanted, promised: Duration) {
    let mut pair = Pair::start(wanted);
    let mut worst = Duration::ZERO;
    for round in 1..=scale().takeovers {
        let streams: Vec<_> = targets(ECHO)
            .into_iter()
            .map(|target| UdpStream::start(pair.client(), target, EVERY).unwrap())
            .collect();
        // The death comes at another moment between two advertisements in each round.
        std::thread::sleep(Duration::from_millis(700 + 137 * round as u64 % 1000));
        let dead = Instant::now();
        pair.kill_first();
        pair.wait_second();
        let took = dead.elapsed();
        std::thread::sleep(Duration::from_secs(1));
        let mut times = Vec::new();
        for stream in streams {
            let result = stream.finish().unwrap();
            assert_eq!(
                result.servers.len(),
                1,
                "another server answers after the death: {:?}",
                result.servers
            );
            assert_eq!(result.doubled, 0, "datagrams were forwarded twice");
            times.push(interruption(&result.lost));
        }
        println!("round {round}: interrupted for {times:?} (IPv4, IPv6), the addresses moved after {took:?}");
        let longest = times.into_iter().max().unwrap();
        assert!(!longest.is_zero(), "the death was no interruption");
        assert!(longest <= promised, "{longest:?}\n{}", pair.second.log());
        worst = worst.max(longest);
        pair.revive_first();
    }
    println!("longest of {}: {worst:?}", scale().takeovers);
    pair.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_death_interrupts_forwarding_for_3200_ms_at_most() {
    let wanted = Wanted { advskew: [0, 1], preempt_delay: "1s", ..Wanted::mode("nat") };
    interrupted_for(wanted, Duration::from_millis(3200));
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn with_the_fastest_timing_for_700_ms_at_most() {
    let wanted = Wanted { advbase: 0, advskew: [10, 20], preempt_delay: "1s", ..Wanted::mode("nat") };
    interrupted_for(wanted, Duration::from_millis(700));
}

/// Stopped in good order, the gateway says that it goes.
#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn going_and_returning_interrupts_hardly_anything() {
    let mut pair = Pair::start(Wanted { preempt_delay: "1s", ..Wanted::mode("snat") });
    for round in 1..=scale().rounds {
        let streams: Vec<_> = targets(ECHO)
            .into_iter()
            .map(|target| UdpStream::start(pair.client(), target, EVERY).unwrap())
            .collect();
        std::thread::sleep(Duration::from_millis(500));
        pair.first.stop().unwrap();
        wait_until("the second gateway alone to be master", Duration::from_secs(2), || {
            Ok((pair.gateways.masters(pair.shared()) == [2]).then_some(()))
        })
        .unwrap();
        std::thread::sleep(Duration::from_millis(500));
        pair.revive_first();
        std::thread::sleep(Duration::from_secs(1));
        for stream in streams {
            let result = stream.finish().unwrap();
            println!("round {round}: {} of {} datagrams lost", result.lost.len(), result.sent);
            assert_eq!(result.servers.len(), 1, "another server answers: {:?}", result.servers);
            assert!(result.lost.len() <= 40, "lost at {:?}", result.lost);
        }
    }
    pair.finish();
}
