//! The network falls into two halves, a gateway, a client and a server in each, and grows together again: one master,
//! and every neighbour knows it, within two intervals of advertisements.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_lab::topology::{EXT_V6, INT_V4, INT_V6};
use lb_lab::traffic::Prober;
use lb_lab::{Netns, wait_until};

use crate::carp_support::{SHARED, SLACK};
use crate::pair::{Pair, SETTLED, Wanted, targets};
use crate::scale::scale;
use crate::support::{ECHO, assert_prompt};

/// With advbase 1; and time for the machine, nothing of the protocol.
const TWO_INTERVALS: Duration = Duration::from_millis(2000).saturating_add(SLACK);
/// Bridges of the other half, and what is plugged into them.
const OTHER_HALF: [(&str, &str); 2] = [("ext", "client2"), ("int", "mx2")];

fn part(pair: &Pair) {
    for (segment, host) in OTHER_HALF {
        pair.gateways.gateway(2).mend_on(segment, &format!("{segment}-2")).unwrap();
        pair.gateways.topology.switch.ip(&format!("link set {host} master {segment}-2\n")).unwrap();
    }
}

fn heal(pair: &Pair) {
    for (segment, host) in OTHER_HALF {
        pair.gateways.gateway(2).mend(segment).unwrap();
        pair.gateways.topology.switch.ip(&format!("link set {host} master {segment}\n")).unwrap();
    }
}

/// What a machine knows of an address.
fn knows(pair: &Pair, netns: &Netns, address: IpAddr) -> String {
    let args = ["neigh", "show", &address.to_string()];
    pair.gateways
        .topology
        .run(netns, "ip", &args, Duration::from_secs(5))
        .unwrap()
        .expect("ip neigh")
        .unwrap()
}

/// Waits until each of the machines knows the addresses of its segment with the MAC addresses of that gateway.
fn wait_known(pair: &Pair, clients: &[usize], servers: &[usize], gateway: usize, limit: Duration) {
    let topology = &pair.gateways.topology;
    let ext = [IpAddr::from(SHARED), EXT_V6.into()];
    let int = [IpAddr::from(INT_V4), INT_V6.into()];
    let clients = clients.iter().map(|n| (&topology.clients[*n].netns, ext, 1));
    let servers = servers.iter().map(|n| (&topology.servers[*n].netns, int, 2));
    let start = Instant::now();
    for (netns, addresses, segment) in clients.chain(servers) {
        for address in addresses {
            let mac = format!("02:00:00:00:{segment:02x}:{:02x}", 250 + gateway);
            let left = limit.saturating_sub(start.elapsed());
            wait_until(&format!("{} to know {address} as {mac}", netns.name()), left, || {
                Ok(knows(pair, netns, address).contains(&mac).then_some(()))
            })
            .unwrap_or_else(|error| panic!("{error:#}: {}", knows(pair, netns, address)));
        }
    }
}

/// Everybody uses the addresses, so that there is something to know.
fn use_addresses(pair: &Pair) {
    let topology = &pair.gateways.topology;
    let ext = [IpAddr::from(SHARED), EXT_V6.into()];
    let int = [IpAddr::from(INT_V4), INT_V6.into()];
    let clients = topology.clients.iter().map(|host| (&host.netns, ext));
    let servers = topology.servers.iter().map(|host| (&host.netns, int));
    for (netns, address) in clients.chain(servers).flat_map(|(netns, all)| all.map(|one| (netns, one))) {
        let args = ["-c", "1", "-W", "2", &address.to_string()];
        topology.run(netns, "ping", &args, Duration::from_secs(5)).unwrap().expect("ping").unwrap();
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn healed_there_is_one_master_and_all_neighbours_know_it() {
    let wanted = Wanted { preempt_delay: "0s", ..Wanted::mode("nat") };
    let gateways = Pair::network(&wanted, 2);
    for (segment, _) in OTHER_HALF {
        let name = format!("{segment}-2");
        gateways
            .topology
            .switch
            .ip(&format!(
                "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {name} up\n"
            ))
            .unwrap();
    }
    let pair = Pair::start_in(gateways, wanted);
    let masters = || [pair.gateways.masters(SHARED.into()), pair.gateways.masters(INT_V4.into())];
    for round in 1..=scale().rounds {
        use_addresses(&pair);
        wait_known(&pair, &[0, 1], &[0, 1, 2], 1, SETTLED);
        part(&pair);
        wait_until("two masters", SETTLED, || Ok((masters() == [[1, 2], [1, 2]]).then_some(()))).unwrap();
        // The other half learns of its own master.
        wait_known(&pair, &[1], &[1], 2, SETTLED);
        use_addresses(&pair);
        wait_known(&pair, &[0], &[0, 2], 1, SETTLED);
        // And has time to use it.
        std::thread::sleep(Duration::from_millis(500 + 173 * round as u64 % 1000));
        let healed = Instant::now();
        heal(&pair);
        wait_until("one master", TWO_INTERVALS, || Ok((masters() == [[1], [1]]).then_some(())))
            .unwrap_or_else(|error| {
                panic!("{error:#}: {:?}\n{}\n{}", masters(), pair.first.log(), pair.second.log())
            });
        let one = healed.elapsed();
        wait_known(&pair, &[0, 1], &[0, 1, 2], 1, TWO_INTERVALS.saturating_sub(healed.elapsed()));
        println!("round {round}: one master after {one:?}, known to all after {:?}", healed.elapsed());
        for host in &pair.gateways.topology.clients {
            let every = Duration::from_millis(10);
            let prober = Prober::start(&host.netns, targets(ECHO), every, Duration::from_secs(8)).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            assert_prompt(&prober.finish().unwrap());
        }
        // And it stays so.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            assert_eq!(masters(), [[1], [1]]);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    pair.finish();
}
