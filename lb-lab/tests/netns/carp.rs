//! Shared addresses: with the real ucarp, and between two Matapas.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use lb_lab::topology::{INT_V4, VIP_V4};
use lb_lab::traffic::{EchoServer, Prober};
use lb_lab::{Lab, Netns, Plan, Topology, wait_until};

use crate::carp_support::{
    Gateways, MASTER_DOWN, PASSWORD, SHARED, SLACK, SOUND, Setting, all_rejected, altered, carp, finish,
    rejected, send, start, with_bit,
};
use crate::scale::scale;
use crate::support::{ECHO, TCP_CHECK, interfaces};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// For things that take as long as the protocol says, and starting programs.
const SETTLED: Duration = Duration::from_secs(6);
/// How long ucarp takes for what it is told: it looks twice a second. Not told, it takes four.
const TOLD: Duration = Duration::from_secs(2);
/// What happens at once.
const PROMPT: Duration = Duration::from_millis(700);

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn ucarp_and_matapa_replace_each_other() {
    let gateways = Gateways::new(2);
    // Matapa is preferred. Both orders of starting.
    let mut matapa = gateways.matapa(1, &Setting::skew(10).config());
    for round in 0..scale().rounds * 2 {
        let ucarp = if round % 2 == 0 {
            start(&mut matapa);
            gateways.wait_master(1, SETTLED);
            gateways.ucarp(2, 100, PASSWORD, SHARED)
        } else {
            let ucarp = gateways.ucarp(2, 100, PASSWORD, SHARED);
            gateways.wait_master(2, SETTLED);
            start(&mut matapa);
            ucarp
        };
        gateways.wait_master(1, SETTLED);
        gateways.stays_master(1, Duration::from_millis(1500));
        // Told that Matapa goes, ucarp takes over at once; and gives back.
        matapa.stop().unwrap();
        let took = gateways.wait_master(2, TOLD);
        start(&mut matapa);
        gateways.wait_master(1, SETTLED);
        // Not told, it takes its master-down time. The dead daemon's address stays where it is.
        matapa.kill().unwrap();
        let start_of_silence = Instant::now();
        wait_until("ucarp to be master", SETTLED, || {
            Ok(gateways.masters(SHARED.into()).contains(&2).then_some(()))
        })
        .unwrap();
        let silence = start_of_silence.elapsed();
        println!("round {round}: ucarp took over after {took:?} when told, {silence:?} when not");
        start(&mut matapa);
        gateways.wait_master(1, SETTLED);
        assert!(carp(&matapa)["vhids"][0]["received"].as_u64().unwrap() > 0);
        matapa.stop().unwrap();
        drop(ucarp);
        gateways.gateway(2).netns.ip(&format!("addr flush dev ext to {SHARED}/32\n")).unwrap();
    }
    start(&mut matapa);
    finish(matapa);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn matapa_replaces_a_dead_ucarp() {
    let gateways = Gateways::new(2);
    let matapa = gateways.started(1, &Setting::skew(100).config());
    for _ in 0..scale().rounds {
        let mut ucarp = gateways.ucarp(2, 10, PASSWORD, SHARED);
        gateways.wait_master(2, SETTLED);
        gateways.stays_master(2, Duration::from_secs(2));
        ucarp.kill().unwrap();
        gateways.gateway(2).netns.ip(&format!("addr flush dev ext to {SHARED}/32\n")).unwrap();
        let took = gateways.wait_master(1, SETTLED);
        println!("Matapa took over after {took:?}");
        assert!(took <= Duration::from_millis(3000 + 1000 * 100 / 256) + SLACK, "{took:?}");
    }
    finish(matapa);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn equal_ones_agree_on_one() {
    // ucarp breaks ties by addresses; .251 is lower than .252.
    let gateways = Gateways::new(2);
    let matapa = gateways.started(1, &Setting::skew(50).config());
    let ucarp = gateways.ucarp(2, 50, PASSWORD, SHARED);
    gateways.wait_master(1, SETTLED);
    gateways.part(2);
    wait_until("two masters", SETTLED, || Ok((gateways.masters(SHARED.into()) == [1, 2]).then_some(())))
        .unwrap();
    gateways.heal(2);
    gateways.wait_master(1, SETTLED);
    drop(ucarp);
    finish(matapa);

    gateways.gateway(2).netns.ip(&format!("addr flush dev ext to {SHARED}/32\n")).unwrap();
    let ucarp = gateways.ucarp(1, 50, PASSWORD, SHARED);
    let matapa = gateways.started(2, &Setting::skew(50).config());
    gateways.wait_master(1, SETTLED);
    gateways.part(2);
    wait_until("two masters", SETTLED, || Ok((gateways.masters(SHARED.into()) == [1, 2]).then_some(())))
        .unwrap();
    gateways.heal(2);
    gateways.wait_master(1, SETTLED);
    drop(ucarp);
    finish(matapa);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn who_has_another_password_or_other_addresses_is_not_heard() {
    let gateways = Gateways::new(2);
    let two = Setting { addresses: format!("\"{SHARED}/24\", \"192.0.2.9/24\""), ..Setting::skew(100) };
    for (setting, password) in [(Setting::skew(100), "hate"), (two, PASSWORD)] {
        let matapa = gateways.started(1, &setting.config());
        let ucarp = gateways.ucarp(2, 10, password, SHARED);
        wait_until("both to be masters", SETTLED, || {
            Ok((gateways.masters(SHARED.into()) == [1, 2]).then_some(()))
        })
        .unwrap();
        wait_until("wrong digests", SETTLED, || Ok((rejected(&matapa, "carp_digest") >= 2).then_some(())))
            .unwrap();
        assert_eq!(carp(&matapa)["vhids"][0]["received"], 0);
        assert!(
            matapa.log().contains("wrong digest: password or set of addresses differs"),
            "{}",
            matapa.log()
        );
        drop(ucarp);
        gateways.gateway(2).netns.ip(&format!("addr flush dev ext to {SHARED}/32\n")).unwrap();
        finish(matapa);
    }
    gateways.remove();
}

/// In portions that a socket's buffer holds.
fn send_slowly(netns: &Netns, payloads: &[Vec<u8>]) {
    for few in payloads.chunks(50) {
        send(netns, GROUP, 255, few);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn each_bad_packet_has_its_own_counter() {
    let gateways = Gateways::new(1);
    // The vector's address set; slower than the vector's sender, so that it stays backup.
    let setting = Setting { addresses: "\"10.1.1.252/24\"".to_owned(), ..Setting::skew(200) };
    let matapa = gateways.started(1, &setting.config());
    let client = &gateways.topology.clients[0].netns;
    let heard = || carp(&matapa)["vhids"][0]["received"].as_u64().unwrap();
    let sound = [SOUND.to_vec()];
    send(client, GROUP, 255, &sound);
    wait_until("the sound packet", PROMPT, || Ok((heard() == 1).then_some(()))).unwrap();

    let mut damaged = SOUND.to_vec();
    damaged[30] ^= 0x40;
    let own = Ipv4Addr::new(192, 0, 2, 1);
    let vrrp = [0x21, 42, 100, 1, 0, 1, 0, 0, 10, 1, 1, 252, 0, 0, 0, 0, 0, 0, 0, 0];
    let table: [(&str, Ipv4Addr, u32, Vec<u8>); 11] = [
        ("carp_ttl", GROUP, 254, SOUND.to_vec()),
        ("carp_ttl", GROUP, 1, SOUND.to_vec()),
        ("carp_length", GROUP, 255, SOUND[..35].to_vec()),
        ("carp_length", GROUP, 255, [&SOUND[..], &[0; 4]].concat()),
        ("carp_vrrp", GROUP, 255, vrrp.to_vec()),
        ("carp_version", GROUP, 255, altered(&[(0, 0x11)])),
        ("carp_type", GROUP, 255, altered(&[(0, 0x23)])),
        ("carp_authlen", GROUP, 255, altered(&[(3, 6)])),
        ("carp_checksum", GROUP, 255, damaged),
        ("carp_vhid", GROUP, 255, altered(&[(1, 43)])),
        ("carp_digest", GROUP, 255, altered(&[(15, 2)])),
    ];
    let check = |reason: &str, to, ttl, payload: Vec<u8>| {
        let before = rejected(&matapa, reason);
        send(client, to, ttl, &[payload]);
        wait_until(reason, PROMPT, || Ok((rejected(&matapa, reason) == before + 1).then_some(()))).unwrap();
    };
    for (reason, to, ttl, payload) in table {
        check(reason, to, ttl, payload);
    }
    check("carp_destination", own, 255, SOUND.to_vec());
    assert_eq!(heard(), 1);

    // Every length, and every bit wrong by itself: damaged on the way, and with a right checksum. What is not
    // authenticated would be heard then, as the protocol has it.
    let all = |reason: &str, payloads: &[Vec<u8>]| {
        let before = rejected(&matapa, reason);
        send_slowly(client, payloads);
        wait_until(reason, PROMPT, || {
            Ok((rejected(&matapa, reason) == before + payloads.len() as u64).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {} of {payloads:?}", rejected(&matapa, reason) - before));
    };
    let bits = |from: usize, to: usize, summed| -> Vec<Vec<u8>> {
        (from..to).map(|bit| with_bit(bit, summed)).collect()
    };
    all("carp_length", &(0..SOUND.len()).map(|len| SOUND[..len].to_vec()).collect::<Vec<_>>());
    all("carp_checksum", &bits(8, 24, false));
    all("carp_checksum", &bits(32, SOUND.len() * 8, false));
    all("carp_type", &bits(0, 4, true));
    all("carp_version", &bits(5, 8, true));
    all("carp_vhid", &bits(8, 16, true));
    // These two have the first byte and the length of VRRP: of version 3 with seven addresses, of version 2 with five.
    all("carp_vrrp", &[bits(4, 5, true), bits(25, 26, true)].concat());
    all("carp_authlen", &[bits(24, 25, true), bits(26, 32, true)].concat());
    all("carp_digest", &bits(64, SOUND.len() * 8, true));
    assert_eq!(heard(), 1);

    // Noise of all lengths, from a generator that is the same in every run, and the sound packet with bytes of it: each
    // counted once.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let noise: Vec<Vec<u8>> = (0..scale().packets)
        .map(|n| match n % 4 {
            0 => (0..=n % 100).map(|_| byte()).collect(),
            1 => SOUND.iter().chain(&[0; 64]).copied().take(37 + n % 60).collect(),
            _ => {
                let mut bytes = SOUND;
                // One byte is wrong whatever comes after.
                bytes[12] ^= byte() | 1;
                for _ in 0..=n % 7 {
                    bytes[usize::from(byte()) % 12] = byte();
                }
                bytes.to_vec()
            }
        })
        .collect();
    let before = all_rejected(&matapa);
    send_slowly(client, &noise);
    wait_until("all the noise to be rejected", PROMPT, || {
        Ok((all_rejected(&matapa) == before + noise.len() as u64).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {} of {}", all_rejected(&matapa) - before, noise.len()));
    println!("{} packets were each rejected under one counter", all_rejected(&matapa));
    send(client, GROUP, 255, &sound);
    wait_until("the sound packet after the noise", PROMPT, || Ok((heard() == 2).then_some(()))).unwrap();
    finish(matapa);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_pair_fails_over_in_time_and_returns() {
    let gateways = Gateways::new(2);
    let v6: IpAddr = "2001:db8:c1::1".parse().unwrap();
    let addresses = format!("\"{SHARED}/24\", \"{v6}/64\"");
    let setting = |advskew| Setting { addresses: addresses.clone(), ..Setting::skew(advskew) };
    let mut first = gateways.started(1, &setting(0).config());
    gateways.wait_master(1, SETTLED);
    let second = gateways.started(2, &setting(1).config());
    for _ in 0..scale().rounds {
        gateways.wait_master(1, SETTLED);
        assert_eq!(gateways.masters(v6), [1]);
        for address in [SHARED.into(), v6] {
            gateways.ping(address);
            assert!(gateways.client_knows(address).contains("02:00:00:00:01:fb"));
        }
        // Power is lost.
        let monitor = second.monitor().unwrap();
        std::thread::sleep(PROMPT);
        let clock = std::time::SystemTime::now();
        let since = Instant::now();
        gateways.part(1);
        first.kill().unwrap();
        let seen = monitor
            .wait_carp("master", since, SETTLED)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", second.log()));
        let took = seen.after(clock);
        println!("failover after {took:?}");
        assert!(took <= MASTER_DOWN + SLACK, "{took:?}");
        assert!(took >= MASTER_DOWN - Duration::from_millis(1100), "{took:?}");
        // The client has learned it without asking.
        for address in [SHARED.into(), v6] {
            wait_until(&format!("the client to learn {address}"), Duration::from_millis(2500), || {
                Ok(gateways.client_knows(address).contains("02:00:00:00:01:fc").then_some(()))
            })
            .unwrap_or_else(|error| panic!("{error:#}: {}", gateways.client_knows(address)));
            gateways.ping(address);
        }
        gateways.heal(1);
        start(&mut first);
        gateways.wait_master(1, SETTLED);
        // A bow-out is immediate, and so is the return with preempt.
        let clock = std::time::SystemTime::now();
        let since = Instant::now();
        first.stop().unwrap();
        let seen = monitor.wait_carp("master", since, SETTLED).unwrap();
        let took = seen.after(clock);
        println!("bow-out after {took:?}");
        assert!(took <= Duration::from_millis(300), "{took:?}");
        start(&mut first);
    }
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_fastest_timing() {
    let gateways = Gateways::new(2);
    let setting = |advskew| Setting { advbase: 0, ..Setting::skew(advskew) };
    let mut first = gateways.started(1, &setting(10).config());
    let second = gateways.started(2, &setting(20).config());
    for _ in 0..scale().rounds {
        gateways.wait_master(1, SETTLED);
        let monitor = second.monitor().unwrap();
        std::thread::sleep(PROMPT);
        let clock = std::time::SystemTime::now();
        let since = Instant::now();
        gateways.part(1);
        first.kill().unwrap();
        let seen = monitor.wait_carp("master", since, SETTLED).unwrap();
        let took = seen.after(clock);
        println!("failover after {took:?}");
        // Three times 20/256 s.
        assert!(took <= Duration::from_millis(235) + SLACK, "{took:?}");
        gateways.heal(1);
        start(&mut first);
    }
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn parted_both_are_masters_and_healed_one_is() {
    let gateways = Gateways::new(3);
    let running: Vec<_> = (1..=3)
        .map(|n| gateways.started(n, &Setting::skew(u8::try_from(n).unwrap() * 20).config()))
        .collect();
    gateways.wait_master(1, SETTLED);
    for _ in 0..scale().rounds {
        gateways.part(1);
        wait_until("a second master", SETTLED, || {
            Ok((gateways.masters(SHARED.into()) == [1, 2]).then_some(()))
        })
        .unwrap();
        let before = carp(&running[0])["vhids"][0]["transitions"].clone();
        gateways.heal(1);
        let took = gateways.wait_master(1, SETTLED);
        println!("healed after {took:?}");
        assert!(took <= Duration::from_millis(1100) + SLACK, "{took:?}");
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(gateways.masters(SHARED.into()), [1]);
        assert_eq!(carp(&running[0])["vhids"][0]["transitions"], before, "the better one gave way");
    }
    running.into_iter().for_each(finish);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn one_lost_link_moves_the_whole_group() {
    let gateways = Gateways::new(2);
    let config = |advskew| {
        let outside = Setting::skew(advskew);
        let inside = Setting { addresses: "\"198.51.100.1/24\"".to_owned(), ..outside.clone() };
        outside.table("outside", "ext", 42) + &inside.table("inside", "int", 43)
    };
    let first = gateways.started(1, &config(0));
    gateways.wait_master(1, SETTLED);
    let second = gateways.started(2, &config(100));
    let inside: IpAddr = [198, 51, 100, 1].into();
    let both = |number| {
        wait_until(&format!("both to be on gw{number}"), SETTLED, || {
            let on = [number];
            Ok((gateways.masters(SHARED.into()) == on && gateways.masters(inside) == on).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", first.log(), second.log()));
    };
    both(1);
    for _ in 0..scale().rounds {
        gateways.topology.switch.ip("link set gw1-ext down\n").unwrap();
        let start = Instant::now();
        wait_until("the other to move", PROMPT, || Ok((gateways.masters(inside) == [2]).then_some(())))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", first.log()));
        println!("the other address moved after {:?}", start.elapsed());
        both(2);
        assert_eq!(carp(&first)["groups"][0]["demotion"], 1);
        assert_eq!(carp(&first)["vhids"][0]["state"], "init");
        gateways.topology.switch.ip("link set gw1-ext up\n").unwrap();
        both(1);
    }
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn operators_decide_and_commands_are_told() {
    let gateways = Gateways::new(2);
    let told = gateways.lab().directory().join("told");
    let script = gateways.lab().directory().join("notify");
    // Slow, to show that the protocol does not wait for it.
    let text = format!("#!/bin/sh\nsleep 4\necho \"$1 $2 $MATAPA_CARP_VHID\" >> {}\n", told.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let more = format!("notify = \"{}\"", script.display());
    let first = gateways.started(1, &Setting { more, ..Setting::skew(0) }.config());
    gateways.wait_master(1, SETTLED);
    let second =
        gateways.started(2, &Setting { more: "preempt = false".to_owned(), ..Setting::skew(100) }.config());
    std::thread::sleep(Duration::from_secs(1));
    let command = |matapa: &lb_lab::matapa::Matapa, action: &str| {
        matapa.cli(&["carp", action, "mail"]).unwrap().expect("matapa carp").unwrap();
    };
    command(&first, "demote");
    gateways.wait_master(2, PROMPT);
    assert_eq!(carp(&first)["vhids"][0]["demotion"], 128);
    // Without preempt, released it stays backup.
    command(&first, "release");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(gateways.masters(SHARED.into()), [2]);
    command(&first, "promote");
    gateways.wait_master(1, PROMPT);
    assert_eq!(carp(&first)["vhids"][0]["wish"], "promoted");
    command(&second, "promote");
    // Both promoted: they agree all the same.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(gateways.masters(SHARED.into()).len(), 1);
    command(&second, "release");
    gateways.wait_master(1, SETTLED);
    let expected = "mail backup 42\nmail master 42\nmail backup 42\nmail master 42\n";
    wait_until("the commands", Duration::from_secs(25), || {
        Ok(std::fs::read_to_string(&told).is_ok_and(|told| told.starts_with(expected)).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", std::fs::read_to_string(&told)));
    let unknown = first.cli(&["carp", "demote", "web"]).unwrap();
    assert!(unknown.stderr.contains("there is no carp web; there is mail"), "{}", unknown.stderr);
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn peers_by_unicast_hear_nobody_else() {
    let gateways = Gateways::new(2);
    let setting = |advskew, peer: u8| Setting {
        more: format!("preempt = true\npeers = [\"192.0.2.{peer}\"]"),
        ..Setting::skew(advskew)
    };
    let mut first = gateways.started(1, &setting(0, 252).config());
    let second = gateways.started(2, &setting(50, 251).config());
    gateways.wait_master(1, SETTLED);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(gateways.masters(SHARED.into()), [1]);
    assert!(carp(&second)["vhids"][0]["received"].as_u64().unwrap() > 0);
    first.stop().unwrap();
    gateways.wait_master(2, PROMPT);
    start(&mut first);
    gateways.wait_master(1, SETTLED);
    let client = &gateways.topology.clients[0].netns;
    send(client, GROUP, 255, &[SOUND.to_vec()]);
    wait_until("the stranger", PROMPT, || Ok((rejected(&second, "carp_destination") == 1).then_some(())))
        .unwrap();
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_killed_master_that_is_back_in_time_stays_master() {
    let gateways = Gateways::new(2);
    let mut first = gateways.started(1, &Setting { more: String::new(), ..Setting::skew(0) }.config());
    gateways.wait_master(1, SETTLED);
    let second = gateways.started(2, &Setting { more: String::new(), ..Setting::skew(100) }.config());
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..scale().rounds {
        let before = carp(&second)["vhids"][0]["transitions"].clone();
        first.kill().unwrap();
        start(&mut first);
        for _ in 0..30 {
            assert_eq!(gateways.masters(SHARED.into()), [1], "{}", first.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(carp(&first)["vhids"][0]["state"], "master");
        assert_eq!(carp(&second)["vhids"][0]["transitions"], before);
    }
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_reload_changes_addresses_and_keeps_the_master() {
    // A single gateway would have the shared address for its own.
    let gateways = Gateways::new(2);
    let matapa = gateways.started(1, &Setting::skew(0).config());
    gateways.wait_master(1, SETTLED);
    let other: IpAddr = [192, 0, 2, 9].into();
    matapa
        .write_config(&Setting { addresses: format!("\"{other}/24\""), ..Setting::skew(0) }.config())
        .unwrap();
    matapa.reload().unwrap();
    wait_until("the other address alone", PROMPT, || {
        Ok((gateways.masters(other) == [1] && gateways.masters(SHARED.into()).is_empty()).then_some(()))
    })
    .unwrap();
    assert_eq!(carp(&matapa)["vhids"][0]["state"], "master");
    // Somebody takes it off: it comes back.
    gateways.gateway(1).netns.ip(&format!("addr del {other}/24 dev ext\n")).unwrap();
    wait_until("the address to come back", PROMPT, || Ok((gateways.masters(other) == [1]).then_some(())))
        .unwrap();
    // A file that is refused changes nothing.
    matapa.write_config(&Setting { password: "12345678901234567890", ..Setting::skew(0) }.config()).unwrap();
    assert_eq!(matapa.cli(&["reload"]).unwrap().code(), Some(3));
    assert_eq!(gateways.masters(other), [1]);
    finish(matapa);
    assert_eq!(gateways.masters(other), Vec::<usize>::new(), "it was left behind");
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn with_the_virtual_mac_neighbours_notice_nothing() {
    const MAC: &str = "00:00:5e:00:01:2a";
    let gateways = Gateways::new(2);
    let v6: IpAddr = "2001:db8:c1::1".parse().unwrap();
    let setting = |advskew| Setting {
        addresses: format!("\"{SHARED}/24\", \"{v6}/64\""),
        more: "preempt = true\nmac = \"virtual\"".to_owned(),
        ..Setting::skew(advskew)
    };
    let mut first = gateways.started(1, &setting(0).config());
    let second = gateways.started(2, &setting(50).config());
    for _ in 0..scale().rounds {
        gateways.wait_master(1, SETTLED);
        let both = [IpAddr::from(SHARED), v6];
        for address in both {
            gateways.ping(address);
            assert!(gateways.client_knows(address).contains(MAC), "{}", gateways.client_knows(address));
        }
        first.stop().unwrap();
        gateways.wait_master(2, PROMPT);
        // The client's frames find the new master at once.
        for address in both {
            gateways.ping(address);
            assert!(gateways.client_knows(address).contains(MAC), "{}", gateways.client_knows(address));
        }
        start(&mut first);
        gateways.wait_master(1, SETTLED);
        both.into_iter().for_each(|address| gateways.ping(address));
        // Two masters have the same MAC address and must hear each other all the same.
        gateways.part(1);
        wait_until("two masters", SETTLED, || Ok((gateways.masters(SHARED.into()) == [1, 2]).then_some(())))
            .unwrap();
        gateways.heal(1);
        gateways.wait_master(1, SETTLED);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(gateways.masters(SHARED.into()), [1]);
        both.into_iter().for_each(|address| gateways.ping(address));
    }
    finish(first);
    finish(second);
    for number in [1, 2] {
        let links = gateways.topology.run(
            &gateways.gateway(number).netns,
            "ip",
            &["-o", "link", "show", "type", "macvlan"],
            Duration::from_secs(5),
        );
        assert_eq!(links.unwrap().stdout, "", "a device is left");
    }
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn demoted_with_nobody_else_it_keeps_its_addresses() {
    let gateways = Gateways::new(2);
    let matapa = gateways.started(1, &Setting::skew(0).config());
    gateways.wait_master(1, SETTLED);
    matapa.cli(&["carp", "demote"]).unwrap().expect("matapa carp demote").unwrap();
    for _ in 0..30 {
        assert_eq!(gateways.masters(SHARED.into()), [1]);
        std::thread::sleep(Duration::from_millis(100));
    }
    // ucarp, which knows no demotion, takes over from a demoted one by its advskew.
    let ucarp = gateways.ucarp(2, 200, PASSWORD, SHARED);
    gateways.wait_master(2, SETTLED);
    matapa.cli(&["carp", "release"]).unwrap().expect("matapa carp release").unwrap();
    gateways.wait_master(1, SETTLED);
    drop(ucarp);
    finish(matapa);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn only_ipv6_with_peers_and_a_virtual_mac() {
    let gateways = Gateways::new(2);
    let shared: IpAddr = "2001:db8:c1::1".parse().unwrap();
    let setting = |advskew, peer: u16| Setting {
        addresses: format!("\"{shared}/64\""),
        more: format!("preempt = true\nmac = \"virtual\"\npeers = [\"2001:db8:c1::{peer}\"]"),
        ..Setting::skew(advskew)
    };
    let wait = |number: usize, limit| {
        wait_until(&format!("gw{number} to be master"), limit, || {
            Ok((gateways.masters(shared) == [number]).then_some(()))
        })
        .unwrap();
        gateways.ping(shared);
    };
    let mut first = gateways.started(1, &setting(0, 252).config());
    wait(1, SETTLED);
    let second = gateways.started(2, &setting(50, 251).config());
    std::thread::sleep(Duration::from_secs(5));
    wait(1, PROMPT);
    first.stop().unwrap();
    wait(2, PROMPT);
    start(&mut first);
    wait(1, SETTLED);
    finish(first);
    finish(second);
    gateways.remove();
}

/// A pair as `docs/high-availability.md` describes it.
fn a_service_survives(mac: &str) {
    let lab = Lab::new().unwrap();
    let gateways = Gateways { topology: Topology::build(lab, &Plan::pair()).unwrap() };
    let echo: Vec<_> =
        gateways.topology.servers.iter().map(|host| EchoServer::start(host, ECHO).unwrap()).collect();
    let config = |advskew| {
        let more = format!("preempt = true\npreempt_delay = \"2s\"\nmac = \"{mac}\"");
        let outside = Setting {
            addresses: format!("\"{SHARED}/24\", \"{VIP_V4}/32\""),
            more,
            ..Setting::skew(advskew)
        };
        let inside = Setting { addresses: format!("\"{INT_V4}/24\""), ..outside.clone() };
        interfaces()
            + &outside.table("outside", "ext", 42)
            + &inside.table("inside", "int", 43)
            + &format!(
                "[pools.echo]\n{TCP_CHECK}\nbackends = [\"198.51.100.11\", \"198.51.100.12\"]\n\n\
                 [services.echo]\nlisten = \"{VIP_V4}:{ECHO}\"\npool = \"echo\"\n"
            )
    };
    let mut first = gateways.started(1, &config(0));
    gateways.wait_master(1, SETTLED);
    let second = gateways.started(2, &config(100));
    second.wait_healthy(Duration::from_secs(5)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    // The servers vanish for the first gateway alone: the second takes over, and gives back.
    let netns = &gateways.gateway(1).netns;
    let nowhere = "198.51.100.99";
    netns
        .ip(&format!("route add 198.51.100.11 via {nowhere}\nroute add 198.51.100.12 via {nowhere}\n"))
        .unwrap();
    gateways.wait_master(2, SETTLED);
    let owners = carp(&first)["groups"][0]["owners"].to_string();
    assert!(owners.contains("no backend of service echo is up"), "{owners}");
    netns.ip("route del 198.51.100.11\nroute del 198.51.100.12\n").unwrap();
    gateways.wait_master(1, Duration::from_secs(10));
    for _ in 0..scale().rounds {
        let target = vec![std::net::SocketAddr::new(VIP_V4.into(), ECHO)];
        let client = &gateways.topology.clients[0].netns;
        let prober =
            Prober::start(client, target, Duration::from_millis(50), Duration::from_secs(12)).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        ["ext", "int"].into_iter().for_each(|device| gateways.gateway(1).cut(device).unwrap());
        first.kill().unwrap();
        std::thread::sleep(Duration::from_secs(5));
        ["ext", "int"].into_iter().for_each(|device| gateways.gateway(1).mend(device).unwrap());
        start(&mut first);
        gateways.wait_master(1, Duration::from_secs(10));
        std::thread::sleep(Duration::from_secs(3));
        let attempts = prober.finish().unwrap();
        let failed: Vec<_> = attempts.iter().filter(|one| one.result.is_err()).collect();
        assert!(
            failed.is_empty(),
            "{} of {} failed: {:?}\n{}\n{}",
            failed.len(),
            attempts.len(),
            failed[0],
            first.log(),
            second.log()
        );
        let slow = attempts.iter().filter(|one| !one.prompt(Duration::from_millis(900))).count();
        println!("{slow} of {} connections had to wait for the takeover", attempts.len());
    }
    drop(echo);
    finish(first);
    finish(second);
    gateways.remove();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_service_survives_its_gateway() {
    a_service_survives("interface");
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_service_survives_its_gateway_with_virtual_macs() {
    a_service_survives("virtual");
}
