//! The kernel's maps and program.

pub mod attach;
mod epoch;
pub mod explain;
mod instance;
mod layout;
mod link;
pub mod load;
mod mapped;
pub mod moving;
mod pinned;
pub mod pins;
pub mod second;
pub mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap as AyaHashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::{Program, ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use lb_common::abi::{
    self, Backend, BackendFlags, BackendStats, Features, Listener, Port, Settings, SiblingKey, TableRef,
    VlanKey, map,
};
use lb_common::hash::HashKey;
use lb_common::verdict::Reason;

use super::endpoints::EndpointTable;
use super::flows::{Clock, FlowTable};
use super::image::{Id, Pace, TunnelSources};
use super::snapshot::Readable;
use super::{ApplyError, Capacity, Maps};
pub use epoch::RouteEpoch;
use instance::Instance;
use load::Constants;
use mapped::Mapped;
use pins::Pins;

/// What reads the program's trace.
pub type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// Words of [`BackendStats`].
const STATS_WORDS: usize = size_of::<BackendStats>() / 8;

/// The loaded program and its maps.
pub struct Kernel {
    siblings: AyaHashMap<MapData, [u8; size_of::<SiblingKey>()], Id>,
    vlans: AyaHashMap<MapData, [u8; size_of::<VlanKey>()], u32>,
    counters: PerCpuArray<MapData, u64>,
    stats: PerCpuArray<MapData, [u64; STATS_WORDS]>,
    settings: Arc<Mapped>,
    endpoints: Mapped,
    listeners: Mapped,
    listener_names: Mapped,
    backends: Mapped,
    backend_names: Mapped,
    tables: Mapped,
    flows: Arc<FlowMaps>,
    snat_addresses: Mapped,
    ports: Mapped,
    control: Mapped,
    own: Own,
    constants: Constants,
    held: Option<RingBuf<MapData>>,
    logger: Option<Logger>,
}

/// The programs, and what is known of where they come from.
struct Own {
    instance: Instance,
    fingerprint: String,
    /// Where they are pinned.
    dir: PathBuf,
    /// All stages are loaded.
    is_whole: bool,
    /// What they were loaded from, if they were by this daemon, and all at once.
    ebpf: Option<Ebpf>,
}

/// The maps of the flow table, for whoever follows it in a thread of its own.
#[derive(Debug)]
pub struct FlowMaps {
    words: Mapped,
    tuples: Mapped,
    live: Mapped,
}

impl FlowMaps {
    pub fn table(&self) -> FlowTable<'_> {
        FlowTable::new(self.words.words(), self.tuples.words(), self.live.words())
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("constants", &self.constants).finish_non_exhaustive()
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
        let program = &mut self.own.instance.clock;
        let mut out = [0; 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&[0; 64]),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .context("cannot ask the program for the time")?;
        Ok(Clock { now: result.return_value as u16, seconds_per_tick: tick().as_secs_f64() })
    }

    /// Runs the program on a frame as if it came in on the loopback interface, or on the one that `context` names:
    /// verdict and frame after it. For tests.
    ///
    /// # Errors
    /// When the kernel refuses to run the program.
    pub fn run(&mut self, frame: &[u8], context: Option<&[u8]>) -> anyhow::Result<(u32, Vec<u8>)> {
        test_run(&mut self.own.instance.program, frame, context)
    }

    /// How many instructions the verifier looked at: the program's true size.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn verified_instructions(&mut self) -> anyhow::Result<u32> {
        self.own
            .instance
            .program
            .info()?
            .verified_instruction_count()
            .context("the kernel does not say how many instructions it verified")
    }

    /// Names the interfaces to which packets may be redirected; all others are the kernel's. They are taken as without
    /// VLANs and addresses of their own.
    pub fn set_ports(&self, indexes: &[u32]) {
        let plain = |&index: &u32| Port { ifindex: index, device: index, ..Port::default() };
        self.write_ports(&indexes.iter().map(plain).collect::<Vec<_>>());
    }

    /// Says what is known of the interfaces to which packets may be redirected. Of two that share a place, the first is
    /// used.
    pub fn write_ports(&self, ports: &[Port]) {
        for place in 0..abi::PORTS {
            let port = ports.iter().find(|port| port.ifindex % abi::PORTS == place);
            self.ports.write(place as usize, &port.copied().unwrap_or_default(), 0);
        }
    }

    /// Says which interface the frames of a VLAN belong to; of others it is not known.
    ///
    /// # Errors
    /// When the kernel refuses it, such as for a full map.
    pub fn write_vlans(&mut self, vlans: &BTreeMap<VlanKey, u32>) -> Result<(), ApplyError> {
        let known: BTreeMap<[u8; 8], u32> =
            vlans.iter().map(|(key, index)| (bytemuck::must_cast(*key), *index)).collect();
        let stale: Vec<_> =
            self.vlans.keys().filter_map(Result::ok).filter(|key| !known.contains_key(key)).collect();
        for key in stale {
            remove(&mut self.vlans, map::VLANS, &key)?;
        }
        for (key, index) in known {
            self.vlans.insert(key, index, 0).map_err(|error| refused(map::VLANS, error))?;
        }
        Ok(())
    }

    /// The route epoch, for whoever follows the kernel's routes.
    pub fn route_epoch(&self) -> RouteEpoch {
        RouteEpoch::of(Arc::clone(&self.settings))
    }

    /// Runs the program on a frame as if it came in on the interface with index `ingress`, and does what it decides:
    /// the frame is sent, or goes to the kernel.
    ///
    /// # Errors
    /// When the kernel refuses, such as before Linux 5.18, or for an interface that is gone.
    pub fn run_live(&mut self, frame: &[u8], ingress: u32) -> anyhow::Result<()> {
        let len = u32::try_from(frame.len()).context("a frame of more than 4 GiB")?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u32; 6] = [0, len, 0, ingress, 0, 0];
        let program = &mut self.own.instance.program;
        program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                ctx_in: Some(bytemuck::bytes_of(&context)),
                repeat: 1,
                attrs: TestRunAttrs::new().xdp_live_frames(1),
                ..TestRunOptions::default()
            })
            .context("cannot run the program on a held fragment")?;
        Ok(())
    }

    /// Says whether flows are being moved here from another table: then a reply is taken as a client's also where its
    /// flow is not known.
    fn set_moving(&self, moving: bool) {
        self.change_first_setting(|[features, epoch]| {
            let others = features & !Features::MOVING.0;
            [if moving { others | Features::MOVING.0 } else { others }, epoch]
        });
    }

    /// Changes one of the two settings that share a word, which may be written from two sides.
    fn change_first_setting(&self, change: impl Fn([u32; 2]) -> [u32; 2]) {
        if let Some(word) = self.settings.element(0).first() {
            let change = |word: u64| Some(bytemuck::must_cast(change(bytemuck::must_cast(word))));
            // It always changes to something, so that there is no error.
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        }
    }

    /// Likewise for each program, by name.
    ///
    /// # Errors
    /// When the kernel does not say, or the programs are an earlier daemon's.
    pub fn verified_programs(&self) -> anyhow::Result<BTreeMap<String, u32>> {
        self.loaded_programs()?
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
        Ok(self.own.instance.program.fd()?)
    }

    /// Numbers of all maps that the loaded programs use.
    ///
    /// # Errors
    /// When the kernel does not say, or the programs are an earlier daemon's.
    pub fn map_ids(&self) -> anyhow::Result<BTreeSet<u32>> {
        let mut ids = BTreeSet::new();
        for (_, program) in self.loaded_programs()? {
            ids.extend(program.info()?.map_ids()?.context("the kernel does not say which maps it uses")?);
        }
        Ok(ids)
    }

    /// Those of the object that this instance uses.
    fn loaded_programs(&self) -> anyhow::Result<impl Iterator<Item = (&str, &Program)>> {
        let ebpf =
            self.own.ebpf.as_ref().context("the programs were not loaded all at once by this process")?;
        Ok(ebpf.programs().filter(|(_, program)| program.fd().is_ok()))
    }

    /// The number that the kernel gave to the first program when it was loaded.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn program_id(&self) -> anyhow::Result<u32> {
        Ok(self.own.instance.program.info()?.id())
    }

    /// All stages are there now, so that a later daemon can go on with them.
    pub fn completed(&mut self, pins: &Pins) {
        self.own.is_whole = true;
        self.keep_programs(pins);
    }

    /// Leaves the programs to later daemons, if they are all there, and no others. When that fails, a later daemon takes
    /// longer to start.
    fn keep_programs(&mut self, pins: &Pins) {
        let own = &mut self.own;
        let kept = || -> std::io::Result<PathBuf> {
            let mut dir = own.dir.clone();
            if own.is_whole && dir == pins.loading() {
                pins.end_loading(&own.fingerprint)?;
                dir = pins.instance(&own.fingerprint);
            }
            pins.keep_instance(Some(&dir))?;
            Ok(dir)
        };
        match kept() {
            Ok(dir) => own.dir = dir,
            Err(error) => log::warn!("the programs are not left to later daemons: {error}"),
        }
    }

    /// Says up to which time packets are forwarded, in nanoseconds of the monotonic clock, unless this is called again;
    /// 0: for ever.
    pub fn forward_until(&self, nanoseconds: u64) {
        if let Some(place) = self.control.element(0).last() {
            place.store(nanoseconds, Ordering::Relaxed);
        }
    }

    /// The flow table, for another thread.
    pub fn flow_maps(&self) -> Arc<FlowMaps> {
        Arc::clone(&self.flows)
    }

    /// Where the program puts fragments that came before the first one of their datagram.
    pub fn take_held(&mut self) -> Option<RingBuf<MapData>> {
        self.held.take()
    }

    /// What reads the program's trace, if it was loaded with tracing.
    pub fn take_logger(&mut self) -> Option<Logger> {
        self.logger.take()
    }
}

impl Maps for Kernel {
    fn write_features(&mut self, features: Features) {
        self.change_first_setting(|[_, epoch]| [features.0, epoch]);
    }

    fn write_tunnel(&mut self, tunnel: &TunnelSources) {
        let mut settings = Settings::default();
        tunnel.write_to(&mut settings);
        // All but the first word. A packet in between may get a source of the old network with bits of the new one.
        let words: [u64; size_of::<Settings>() / 8] = bytemuck::must_cast(settings);
        for (place, word) in self.settings.element(0).iter().zip(words).skip(1) {
            place.store(word, Ordering::Relaxed);
        }
    }

    fn write_snat_address(&mut self, index: u8, address: [u8; 16]) {
        self.snat_addresses.write(index.into(), &address, 0);
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

    fn put_sibling(&mut self, key: SiblingKey, backend: Id) -> Result<(), ApplyError> {
        let put = self.siblings.insert(bytemuck::must_cast::<_, [u8; 8]>(key), backend, 0);
        put.map_err(|error| refused(map::SIBLINGS, error))
    }

    fn remove_sibling(&mut self, key: SiblingKey) -> Result<(), ApplyError> {
        remove(&mut self.siblings, map::SIBLINGS, &bytemuck::must_cast(key))
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
}

impl Readable for Kernel {
    fn capacity(&self) -> Capacity {
        self.constants.geometry.capacity
    }

    fn hash_key(&self) -> HashKey {
        self.constants.key
    }

    fn endpoints(&self) -> EndpointTable<'_> {
        EndpointTable::new(self.endpoints.words())
    }

    fn table_ref(&self, id: Id) -> TableRef {
        TableRef(self.listeners.element(id as usize).first().map_or(0, |place| place.load(Ordering::Acquire)))
    }

    fn flows(&self) -> FlowTable<'_> {
        self.flows.table()
    }

    fn pace(&self) -> Pace {
        pace()
    }

    fn settings(&self) -> Settings {
        self.settings.read(0)
    }

    fn snat_address(&self, index: u8) -> [u8; 16] {
        self.snat_addresses.read(index.into())
    }

    fn listener(&self, id: Id) -> Listener {
        self.listeners.read(id as usize)
    }

    fn service_name(&self, id: Id) -> String {
        name_from(&self.listener_names.bytes(id as usize))
    }

    fn backend(&self, id: Id) -> Backend {
        self.backends.read(id as usize)
    }

    fn backend_name(&self, id: Id) -> String {
        name_from(&self.backend_names.bytes(id as usize))
    }

    fn slot(&self, index: u32) -> Id {
        pair_of(&self.tables, index / 2)[(index % 2) as usize]
    }

    fn siblings(&self) -> Result<Vec<(SiblingKey, Id)>, ApplyError> {
        let entries = self.siblings.iter().map(|entry| {
            let (key, id) = entry.map_err(|error| refused(map::SIBLINGS, error))?;
            Ok((bytemuck::must_cast(key), id))
        });
        entries.collect()
    }
}

/// Runs a program on a frame: what it returns, and the frame after it. Nothing is sent.
fn test_run(program: &mut Xdp, frame: &[u8], context: Option<&[u8]>) -> anyhow::Result<(u32, Vec<u8>)> {
    // With room for tags and outer headers.
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

/// Removes an element of a hash map. One that is not there is none.
fn remove<const LEN: usize>(
    map: &mut AyaHashMap<MapData, [u8; LEN], u32>,
    name: &'static str,
    key: &[u8; LEN],
) -> Result<(), ApplyError>
where
    [u8; LEN]: aya::Pod,
{
    match map.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(refused(name, error)),
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

/// The way back from [`name_bytes`], of any length.
fn name_from(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The two slots in an element of `TABLES`.
fn pair_of(tables: &Mapped, index: u32) -> [Id; 2] {
    let words = tables.element(index as usize);
    bytemuck::must_cast(words.first().map_or(0, |word| word.load(Ordering::Acquire)))
}

/// How the program counts new flows on this machine.
fn pace() -> Pace {
    // Without the number all CPUs together may record as many as one alone.
    let cpus = aya::util::nr_cpus().map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX));
    Pace { cpus, tick: tick() }
}

/// A tick of the flow table's clock.
fn tick() -> Duration {
    Duration::from_secs(1 << load::tick_shift(hertz())) / hertz()
}

/// Jiffies per second: the kernel tells by the resolution of its coarse clocks, which is one jiffy.
pub fn hertz() -> u32 {
    let resolution = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    let nanoseconds = resolution.map_or(0, |r| r.tv_nsec());
    if nanoseconds <= 0 { 250 } else { (1_000_000_000 / nanoseconds) as u32 }
}
