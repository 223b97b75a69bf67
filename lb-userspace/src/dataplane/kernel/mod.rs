//! The kernel's maps and program.

pub mod attach;
mod link;
pub mod load;
mod mapped;
pub mod pins;
mod snapshot;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap as AyaHashMap, MapData, MapError, PerCpuArray};
use aya::programs::{Program, ProgramFd, TestRun as _, TestRunOptions};
use lb_common::abi::net::Be16;
use lb_common::abi::{
    self, Backend, BackendFlags, BackendStats, Endpoint4, Endpoint6, Listener, Side, TableRef, map,
};
use lb_common::hash::HashKey;
use lb_common::verdict::Reason;

use super::flows::{Clock, FlowTable};
use super::image::Id;
use super::{ApplyError, Capacity, Maps};
use crate::config::Protocol;
use mapped::Mapped;

/// What reads the program's trace.
pub type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// Words of [`BackendStats`].
const STATS_WORDS: usize = size_of::<BackendStats>() / 8;

/// The loaded program and its maps.
pub struct Kernel {
    endpoints4: AyaHashMap<MapData, [u8; size_of::<Endpoint4>()], Id>,
    endpoints6: AyaHashMap<MapData, [u8; size_of::<Endpoint6>()], Id>,
    counters: PerCpuArray<MapData, u64>,
    stats: PerCpuArray<MapData, [u64; STATS_WORDS]>,
    listeners: Mapped,
    listener_names: Mapped,
    backends: Mapped,
    backend_names: Mapped,
    tables: Mapped,
    flows: Mapped,
    tuples: Mapped,
    ports: Mapped,
    control: Mapped,
    capacity: Capacity,
    key: HashKey,
    tick_shift: u32,
    logger: Option<Logger>,
    ebpf: Ebpf,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl Kernel {
    /// The sums over all CPUs of why packets went where they went.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counters(&self) -> anyhow::Result<BTreeMap<Reason, u64>> {
        Reason::ALL
            .iter()
            .map(|&reason| {
                let per_cpu =
                    self.counters.get(&u32::from(reason as u8), 0).context("cannot read COUNTERS")?;
                Ok((reason, per_cpu.iter().sum()))
            })
            .collect()
    }

    /// What was forwarded for a backend since the maps were made.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn stats(&self, backend: Id) -> anyhow::Result<BackendStats> {
        let per_cpu = self.stats.get(&backend, 0).context("cannot read BACKEND_STATS")?;
        let sum =
            per_cpu.iter().fold([0u64; STATS_WORDS], |sum, cpu| std::array::from_fn(|i| sum[i] + cpu[i]));
        Ok(bytemuck::must_cast(sum))
    }

    /// Sets a backend's statistics to zero, for a new backend with a used number.
    fn clear_stats(&mut self, backend: Id) {
        let zeros = aya::util::nr_cpus().ok().map(|n| vec![[0u64; STATS_WORDS]; n]);
        let values = zeros.and_then(|zeros| aya::maps::PerCpuValues::try_from(zeros).ok());
        if let Some(values) = values
            && let Err(error) = self.stats.set(backend, values, 0)
        {
            log::warn!("the statistics of backend number {backend} do not start at zero: {error}");
        }
    }

    /// The flow table's clock, asked of the program itself.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn clock(&mut self) -> anyhow::Result<Clock> {
        let program = load::xdp(&mut self.ebpf, abi::CLOCK_PROGRAM)?;
        let mut out = [0; 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&[0; 64]),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .context("cannot ask the program for the time")?;
        Ok(Clock { now: result.return_value as u16, seconds_per_tick: self.seconds_per_tick() })
    }

    fn seconds_per_tick(&self) -> f64 {
        f64::from(1 << self.tick_shift) / f64::from(hertz())
    }

    /// Runs the program on a frame as if it came in on the loopback interface, or on the one that `context` names:
    /// verdict and frame after it. For tests.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn run(&mut self, frame: &[u8], context: Option<&[u8]>) -> anyhow::Result<(u32, Vec<u8>)> {
        let program = load::xdp(&mut self.ebpf, abi::PROGRAM)?;
        let mut out = vec![0; frame.len() + 256];
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: context,
            ..TestRunOptions::default()
        })?;
        let len = result.data_size_out as usize;
        out.truncate(len);
        Ok((result.return_value, out))
    }

    /// How many instructions the verifier looked at: the program's true size.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn verified_instructions(&mut self) -> anyhow::Result<u32> {
        self.program(abi::PROGRAM)?
            .info()?
            .verified_instruction_count()
            .context("the kernel does not say how many instructions it verified")
    }

    /// Names the interfaces to which packets may be redirected; all others are the kernel's.
    pub fn set_ports(&self, indexes: &[u32]) {
        for place in 0..abi::PORTS {
            let index = indexes.iter().find(|index| *index % abi::PORTS == place);
            if let Some(word) = self.ports.element(place as usize).first() {
                word.store(u64::from(index.copied().unwrap_or(0)), Ordering::Relaxed);
            }
        }
    }

    /// Likewise for each program, by name.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn verified_programs(&self) -> anyhow::Result<BTreeMap<String, u32>> {
        self.ebpf
            .programs()
            .map(|(name, program)| {
                let count = program.info()?.verified_instruction_count();
                let count = count.context("the kernel does not say how many instructions it verified")?;
                Ok((name.to_owned(), count))
            })
            .collect()
    }

    /// The loaded program, to be put into a program array.
    ///
    /// # Errors
    /// When it is not loaded.
    pub fn program_fd(&self) -> anyhow::Result<&ProgramFd> {
        Ok(self.program(abi::PROGRAM)?.fd()?)
    }

    fn program(&self, name: &str) -> anyhow::Result<&Program> {
        self.ebpf.program(name).with_context(|| format!("the object has no program {name}"))
    }

    /// Says in the maps that a daemon is alive, at this many nanoseconds of the monotonic clock.
    pub fn heartbeat(&self, nanoseconds: u64) {
        if let Some(place) = self.control.element(0).last() {
            place.store(nanoseconds, Ordering::Relaxed);
        }
    }

    /// What reads the program's trace, if it was loaded with tracing.
    pub fn take_logger(&mut self) -> Option<Logger> {
        self.logger.take()
    }

    /// Removes endpoints that lead nowhere: what a daemon that died between two steps left.
    pub fn remove_dangling(&mut self, image: &super::image::Image) {
        let dangling = |side: u8, id: &Id| {
            (side == Side::Vip as u8 && !image.listeners.contains_key(id))
                || (side == Side::Backend as u8 && !image.backends.contains_key(id))
        };
        remove_where(&mut self.endpoints4, |key, id| {
            dangling(bytemuck::must_cast::<_, Endpoint4>(key).side, id)
        });
        remove_where(&mut self.endpoints6, |key, id| {
            dangling(bytemuck::must_cast::<_, Endpoint6>(key).side, id)
        });
    }

    fn slot(&self, index: u32) -> Id {
        let words = self.tables.element((index / 2) as usize);
        let pair = words.first().map_or(0, |w| w.load(Ordering::Acquire));
        let pair: [Id; 2] = bytemuck::must_cast(pair);
        pair[(index % 2) as usize]
    }
}

impl Maps for Kernel {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn hash_key(&self) -> HashKey {
        self.key
    }

    fn put_endpoint(
        &mut self,
        side: Side,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        value: Id,
    ) -> Result<(), ApplyError> {
        let port = Be16::new(port);
        match address {
            IpAddr::V4(v4) => {
                let key: [u8; 8] =
                    bytemuck::must_cast(Endpoint4::new(side, v4.octets(), port, protocol.wire()));
                self.endpoints4.insert(key, value, 0).map_err(|e| refused(map::ENDPOINTS4, e))
            }
            IpAddr::V6(v6) => {
                let key: [u8; 20] =
                    bytemuck::must_cast(Endpoint6::new(side, v6.octets(), port, protocol.wire()));
                self.endpoints6.insert(key, value, 0).map_err(|e| refused(map::ENDPOINTS6, e))
            }
        }
    }

    fn remove_endpoint(
        &mut self,
        side: Side,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Result<(), ApplyError> {
        let port = Be16::new(port);
        let (map, result) = match address {
            IpAddr::V4(v4) => {
                let key: [u8; 8] =
                    bytemuck::must_cast(Endpoint4::new(side, v4.octets(), port, protocol.wire()));
                (map::ENDPOINTS4, self.endpoints4.remove(&key))
            }
            IpAddr::V6(v6) => {
                let key: [u8; 20] =
                    bytemuck::must_cast(Endpoint6::new(side, v6.octets(), port, protocol.wire()));
                (map::ENDPOINTS6, self.endpoints6.remove(&key))
            }
        };
        match result {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(refused(map, error)),
        }
    }

    fn write_listener(&mut self, id: Id, record: &Listener, service: &str) {
        self.listener_names.write(id as usize, &name_bytes(service), 0);
        self.listeners.write(id as usize, record, 0);
    }

    fn write_table_ref(&mut self, id: Id, table: TableRef) {
        if let Some(place) = self.listeners.element(id as usize).first() {
            place.store(table.0, Ordering::Release);
        }
    }

    fn table_ref(&self, id: Id) -> TableRef {
        TableRef(self.listeners.element(id as usize).first().map_or(0, |place| place.load(Ordering::Acquire)))
    }

    fn write_backend(&mut self, id: Id, record: &Backend, name: &str) {
        /// The word with the flags: the record counts while they say VALID.
        const FLAGS: usize = 2;
        let before: Backend = self.backends.read(id as usize);
        if !before.flags.has(BackendFlags::VALID) {
            self.clear_stats(id);
        }
        self.backend_names.write(id as usize, &name_bytes(name), 0);
        if !record.flags.has(BackendFlags::VALID)
            && let Some(place) = self.backends.element(id as usize).get(FLAGS)
        {
            place.store(0, Ordering::Release);
        }
        self.backends.write(id as usize, record, FLAGS);
    }

    fn write_slots(&mut self, offset: u32, slots: &[Id]) {
        let start = (offset / 2) as usize;
        for (i, pair) in slots.chunks(2).enumerate() {
            let pair = [pair[0], pair.get(1).copied().unwrap_or(0)];
            if let Some(place) = self.tables.element(start + i).first() {
                place.store(bytemuck::must_cast(pair), Ordering::Release);
            }
        }
    }

    fn flows(&self) -> FlowTable<'_> {
        FlowTable::new(self.flows.words(), self.tuples.words())
    }
}

/// Removes the entries of an endpoint map that fit; one that cannot be removed is only told of.
fn remove_where<const LEN: usize>(
    map: &mut AyaHashMap<MapData, [u8; LEN], Id>,
    fits: impl Fn([u8; LEN], &Id) -> bool,
) where
    [u8; LEN]: aya::Pod,
{
    let found: Vec<_> = map.iter().filter_map(Result::ok).filter(|(key, id)| fits(*key, id)).collect();
    for (key, _) in found {
        if let Err(error) = map.remove(&key) {
            log::warn!("an endpoint that leads nowhere stays: {error}");
        }
    }
}

fn refused(map: &'static str, error: MapError) -> ApplyError {
    ApplyError::Map { map, source: Box::new(error) }
}

fn name_bytes(name: &str) -> [u8; abi::NAME_LEN] {
    let mut bytes = [0; abi::NAME_LEN];
    let len = name.len().min(abi::NAME_LEN);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

/// Jiffies per second: the kernel tells by the resolution of its coarse clocks, which is one jiffy.
pub fn hertz() -> u32 {
    let resolution = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    let nanoseconds = resolution.map_or(0, |r| r.tv_nsec());
    if nanoseconds <= 0 { 250 } else { (1_000_000_000 / nanoseconds) as u32 }
}
