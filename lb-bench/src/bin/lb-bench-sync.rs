//! Measures flow synchronisation: two gateways in one process over loopback. Run by `cargo xtask bench sync`.

use std::fmt;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use lb_bench::report::write_json;
use lb_common::abi::FlowTuple;
use lb_common::abi::flow::{FlowState, FlowWord, WAYS};
use lb_common::abi::net::{Be16, mapped};
use lb_common::hash::{HashKey, flow4, ports};
use lb_userspace::api::types::AdminState;
use lb_userspace::config::{Flows, Forward, Listen, Protocol, Scheduler, WhenEmpty};
use lb_userspace::dataplane::flows::Clock;
use lb_userspace::dataplane::image::{BackendEntry, ByHand, Image, ListenerEntry, Server, Table, TableKind};
use lb_userspace::health::Health;
use lb_userspace::sync::directory::Directory;
use lb_userspace::sync::node::Node;
use lb_userspace::sync::task::{PlainFlows, SharedFlows as _};
use serde::Serialize;

const LISTENER: u32 = 1;
const BACKEND: u32 = 2;
const VIP: [u8; 4] = [203, 0, 113, 10];
const KEY: HashKey = HashKey { words: [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], seed: 0x5897_9323_8462_6433 };
const CLOCK: Clock = Clock { now: 100, seconds_per_tick: 1.0 };
/// As the daemon's default.
const INTERVAL: Duration = Duration::from_millis(50);
/// Of so many flows one is waited for.
const SAMPLED: u64 = 97;

#[derive(Debug, Parser)]
#[command(about = "Measures flow synchronisation; `cargo xtask bench sync` runs it")]
struct Arguments {
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Less of everything
    #[arg(long)]
    quick: bool,
}

/// One case.
#[derive(Debug, Serialize)]
struct Row {
    case: String,
    flows: u64,
    seconds: f64,
    flows_per_second: f64,
    /// From a flow's beginning until the other gateway has it, in milliseconds.
    lag_p50: Option<f64>,
    lag_p99: Option<f64>,
    /// Share of one CPU.
    sender_cpu_percent: f64,
    receiver_cpu_percent: f64,
    bytes: u64,
    resent: u64,
    /// What both ends together need besides their flow tables, at most, in MiB.
    memory_mib: f64,
    /// The same for each place of the tables, in bytes.
    memory_per_place: f64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lag = |lag: Option<f64>| lag.map_or_else(|| "-".to_owned(), |lag| format!("{lag:.1}"));
        write!(
            f,
            "{:<24} {:>9} {:>10.0} {:>9} {:>9} {:>8.1} {:>8.1} {:>8} {:>10.1} {:>11.1}",
            self.case,
            self.flows,
            self.flows_per_second,
            lag(self.lag_p50),
            lag(self.lag_p99),
            self.sender_cpu_percent,
            self.receiver_cpu_percent,
            self.resent,
            self.memory_mib,
            self.memory_per_place
        )
    }
}

fn main() -> ExitCode {
    match bench(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    let seconds = if arguments.quick { 2 } else { 8 };
    let whole = if arguments.quick { 100_000 } else { 1_000_000 };
    println!(
        "{:<24} {:>9} {:>10} {:>9} {:>9} {:>8} {:>8} {:>8} {:>10} {:>11}",
        "case",
        "flows",
        "flows/s",
        "lag p50",
        "lag p99",
        "send %",
        "recv %",
        "resent",
        "memory MiB",
        "bytes/place"
    );
    let mut rows = Vec::new();
    for (case, rate, flows) in [
        ("10,000 new flows/s".to_owned(), Some(10_000), 10_000 * seconds),
        ("100,000 new flows/s".to_owned(), Some(100_000), 100_000 * seconds),
        (format!("transfer of {whole}"), None, whole),
    ] {
        let row = measure(case, rate, flows)?;
        println!("{row}");
        rows.push(row);
    }
    if let Some(path) = &arguments.json {
        write_json(path, &rows)?;
    }
    Ok(())
}

fn directory() -> Directory {
    let listen = Listen { address: VIP.into(), port: 25, last_port: 25, protocol: Protocol::Tcp };
    let mut image = Image::default();
    let listener = ListenerEntry {
        service: "bench".to_owned(),
        service_number: 1,
        listen,
        forward: Forward::Nat,
        session_timeout: 600,
        second_chance: true,
        new_flow_limit: 100_000,
        sticky_ticks: 0,
        snat: None,
        scheduler: Scheduler::Maglev,
        by_hand: None,
        when_empty: WhenEmpty::Drop,
        table: Table { kind: TableKind::Maglev, size: 131, members: [(BACKEND, 1)].into() },
        next: 0,
    };
    let backend = BackendEntry {
        name: "server".to_owned(),
        server: Server { listener: LISTENER, address: [198, 51, 100, 11].into(), port: 25 },
        number: 1,
        forward: Forward::Nat,
        gue_port: 0,
        weight: 1,
        max_flows: None,
        health: Health::Up,
        admin: AdminState::Enabled,
        by_hand: ByHand::default(),
        reset_when_down: true,
        suspect: false,
        standby: false,
        reverse: false,
        vip: None,
        next: 0,
    };
    image.listeners.insert(LISTENER, listener);
    image.backends.insert(BACKEND, backend);
    Directory::new(&image, KEY, &Flows::default())
}

/// Puts flow `number` into the table; says where its line begins, and its word. `None` when the line is full.
fn put(flows: &PlainFlows, lines: u32, number: u64) -> Option<(usize, FlowWord)> {
    let [a, b, c, d] = u32::try_from(number / 60_000).unwrap_or(0).wrapping_add(0x0a00_0000).to_be_bytes();
    let client = [a, b, c, d];
    let port = u16::try_from(number % 60_000).unwrap_or(0) + 1024;
    let hash = flow4(&KEY, &client, &VIP, ports(port, 25), 6);
    let first = hash.line(lines) as usize * WAYS;
    let place = (first..first + WAYS).find(|place| flows.word(*place).is_free())?;
    let word = FlowWord::new(hash.fingerprint(), BACKEND, FlowState::Established, CLOCK.now);
    let tuple = FlowTuple {
        client: mapped(client),
        client_port: Be16::new(port),
        vip_port: Be16::new(25),
        listener: LISTENER,
        ..FlowTuple::default()
    };
    flows.put(place, word, &tuple);
    Some((first, word))
}

/// Runs one end until it is told to stop; says what it cost and sent: CPU time, bytes, repeated batches.
fn end(
    socket: &UdpSocket,
    flows: &PlainFlows,
    stop: &AtomicBool,
    received: &AtomicU64,
) -> Result<(Duration, u64, u64)> {
    let directory = directory();
    let table = flows.table();
    let mut node = Node::new([9; 32], usize::try_from(table.capacity())?, rand_number);
    let started = Instant::now();
    let mut next_scan = Instant::now();
    let mut buffer = [0; 1500];
    socket.set_read_timeout(Some(Duration::from_millis(1)))?;
    while !stop.load(Ordering::Relaxed) {
        let now = started.elapsed();
        // The first waits for a moment, the others are there already.
        if let Ok(len) = socket.recv(&mut buffer) {
            node.receive(now, &buffer[..len], &table, &directory, CLOCK);
            socket.set_nonblocking(true)?;
            for _ in 0..256 {
                let Ok(len) = socket.recv(&mut buffer) else { break };
                node.receive(now, &buffer[..len], &table, &directory, CLOCK);
            }
            socket.set_nonblocking(false)?;
        }
        received.store(node.counts.flows_received, Ordering::Relaxed);
        if Instant::now() >= next_scan && node.session.has_room() {
            let begun = Instant::now();
            if node.scan(started.elapsed(), &table, &directory, CLOCK).0 {
                next_scan = Instant::now() + INTERVAL.max(begun.elapsed() * 9);
            }
        }
        while let Some(bytes) = node.transmit(started.elapsed()) {
            // Lost ones are sent again.
            let _ = socket.send(&bytes);
        }
    }
    let cpu = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok((Duration::from(cpu), node.counts.bytes_sent, node.session.resent))
}

/// What this process has in memory, as the kernel counts it.
mod memory {
    use anyhow::{Context as _, Result};

    /// Lets the kernel look for the most from now on; says what there is now, in bytes.
    pub fn begin() -> Result<u64> {
        // proc(5): 5 resets the peak.
        std::fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of memory")?;
        read("VmRSS:")
    }

    /// The most since then.
    pub fn most() -> Result<u64> {
        read("VmHWM:")
    }

    fn read(what: &str) -> Result<u64> {
        let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let number =
            line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
        Ok(number.with_context(|| format!("/proc/self/status has no {what}"))? * 1024)
    }
}

fn rand_number() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn measure(case: String, rate: Option<u64>, count: u64) -> Result<Row> {
    // A quarter full, so that lines hardly ever are.
    let lines = u32::try_from((count * 4 / WAYS as u64).next_power_of_two())?;
    let (a, b) = (PlainFlows::new(lines as usize, 8), PlainFlows::new(lines as usize, 8));
    let (one, other) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    one.connect(other.local_addr()?)?;
    other.connect(one.local_addr()?)?;
    for socket in [&one, &other] {
        nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))?;
    }
    let mut made = 0;
    if rate.is_none() {
        made = (0..count).filter_map(|number| put(&a, lines, number)).count() as u64;
    }
    // All pages of the tables are there now, and count no more.
    a.touch();
    b.touch();
    let before = memory::begin()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (received, nothing) = (Arc::new(AtomicU64::new(0)), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<Row> {
        let sender = scope.spawn(|| end(&one, &a, &stop, &nothing));
        let receiver = scope.spawn(|| end(&other, &b, &stop, &received));
        let started = Instant::now();
        let mut waiting: Vec<(usize, FlowWord, Instant)> = Vec::new();
        let mut lags = Vec::new();
        let mut number = 0;
        let limit = Duration::from_secs(120);
        while received.load(Ordering::Relaxed) < made
            || rate.is_some_and(|_| number < count)
            || !waiting.is_empty()
        {
            if let Some(rate) = rate {
                let due = count.min((started.elapsed().as_secs_f64() * rate as f64) as u64);
                while number < due {
                    if let Some((first, word)) = put(&a, lines, number) {
                        made += 1;
                        if number % SAMPLED == 0 {
                            waiting.push((first, word, Instant::now()));
                        }
                    }
                    number += 1;
                }
            }
            waiting.retain(|(first, word, since)| {
                let there = (*first..first + WAYS).any(|place| b.word(place) == *word);
                if there {
                    lags.push(since.elapsed().as_secs_f64() * 1000.0);
                }
                !there
            });
            if started.elapsed() > limit {
                stop.store(true, Ordering::Relaxed);
                bail!(
                    "{case}: {} of {made} flows came within {} s",
                    received.load(Ordering::Relaxed),
                    limit.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let elapsed = started.elapsed();
        stop.store(true, Ordering::Relaxed);
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<(Duration, u64, u64)>>| {
            thread.join().unwrap_or_else(|_| bail!("a thread ended abruptly"))
        };
        let (sender, receiver) = (join(sender)?, join(receiver)?);
        lags.sort_by(f64::total_cmp);
        let quantile =
            |share: usize| lags.get((lags.len() * share / 100).min(lags.len().saturating_sub(1))).copied();
        let memory = memory::most()?.saturating_sub(before) as f64;
        let percent = |cpu: Duration| cpu.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
        Ok(Row {
            case,
            flows: made,
            seconds: elapsed.as_secs_f64(),
            flows_per_second: made as f64 / elapsed.as_secs_f64(),
            lag_p50: quantile(50),
            lag_p99: quantile(99),
            sender_cpu_percent: percent(sender.0),
            receiver_cpu_percent: percent(receiver.0),
            bytes: sender.1,
            resent: sender.2,
            memory_mib: memory / f64::from(1 << 20),
            memory_per_place: memory / (2.0 * a.table().capacity() as f64),
        })
    })
}
