//! The XDP programs that send packets at the client, and count them at both ends.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_common::packet::checksum::Sum;
use lb_lab::{Netns, wait_until};
use nix::net::if_::if_nametoindex;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::histogram::Histogram;
use super::layout::{BUCKETS, BURST, Counted, FRAME, PORT, Sent, Source as Setup, map, sink};
use super::network::{CLIENT, CLIENT_MAC, Cpus, EXT_MAC, SENDS, VIP, first, looking};

/// Names the object; `cargo xtask` sets it.
pub const VARIABLE: &str = "MATAPA_TRAFFIC_OBJECT";
/// The first flow's port.
const FIRST_PORT: u16 = 1024;
/// How many flows are sent, each by its own port.
pub const FLOWS: u32 = 4096;
/// Frames that are handed on together.
const BATCH: u32 = 64;

/// Where the object is when nobody names it.
pub fn object() -> PathBuf {
    match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/matapa-traffic.o"),
    }
}

fn load(object: &Path, program: &str) -> Result<Ebpf> {
    let bytes = std::fs::read(object).with_context(|| {
        format!("cannot read {}; `cargo xtask bench peers` and `cargo xtask test` build it", object.display())
    })?;
    let mut ebpf = EbpfLoader::new().load(&bytes).context("the kernel refused the maps of the traffic")?;
    xdp(&mut ebpf, program)?.load().with_context(|| format!("the kernel refused the program {program}"))?;
    Ok(ebpf)
}

fn xdp<'e>(ebpf: &'e mut Ebpf, program: &str) -> Result<&'e mut Xdp> {
    let found = ebpf.program_mut(program).with_context(|| format!("there is no program {program}"))?;
    found.try_into().with_context(|| format!("{program} is no XDP program"))
}

fn take<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the traffic's programs have no map {name}"))?;
    T::try_from(map).with_context(|| format!("the map {name} is of another kind"))
}

/// Sends UDP packets of [`FLOWS`] flows to [`VIP`].
pub struct Source {
    ebpf: Ebpf,
    setup: Array<MapData, [u8; size_of::<Setup>()]>,
    sent: Array<MapData, [u8; size_of::<Sent>()]>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl Source {
    /// # Errors
    /// When the object is not built, or the kernel refuses it.
    pub fn load(object: &Path) -> Result<Self> {
        install_wake()?;
        let mut ebpf = load(object, "source")?;
        let (setup, sent) = (take(&mut ebpf, map::SOURCE)?, take(&mut ebpf, map::SENT)?);
        Ok(Self { ebpf, setup, sent })
    }

    /// Packets so far.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn sent(&self) -> Result<u64> {
        let sent: Sent = bytemuck::must_cast(self.sent.get(&0, 0).context("cannot read SENT")?);
        Ok(sent.packets)
    }

    /// At least one packet of each flow, slowly enough that none is lost.
    ///
    /// # Errors
    /// When the kernel refuses to send.
    pub fn each_flow_once(&mut self, client: &Netns, cpus: Cpus) -> Result<()> {
        self.prepare(Some(10_000))?;
        let goal = self.sent()? + u64::from(FLOWS);
        self.sending(client, cpus, || {
            wait_until("a packet of each flow to be sent", Duration::from_secs(5), || {
                Ok((self.sent()? >= goal).then_some(()))
            })
        })
    }

    /// `interval`: nanoseconds from one packet to the next; `None`: as fast as can be.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn prepare(&mut self, interval: Option<u64>) -> Result<()> {
        let setup = Setup {
            frame: frame(CLIENT, VIP),
            interval: interval.unwrap_or(0),
            port: FIRST_PORT.into(),
            mask: FLOWS - 1,
        };
        self.setup.set(0, bytemuck::must_cast::<Setup, [u8; _]>(setup), 0).context("cannot write SOURCE")
    }

    /// On the calling thread, which is in the client's namespace.
    fn send(&self, batch: u32) -> Result<()> {
        let ingress = if_nametoindex("client").context("there is no interface client")?;
        // `struct xdp_md` of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u8; 24] = bytemuck::must_cast([0, FRAME as u32, 0, ingress, 0, 0]);
        let program = self.ebpf.program("source").context("there is no program source")?;
        let program: &Xdp = program.try_into()?;
        let outcome = program.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME]),
            ctx_in: Some(&context),
            // Setting up and taking down costs tens of milliseconds: it goes on until a signal.
            repeat: i32::MAX as u32,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        });
        match outcome {
            Err(ProgramError::SyscallError(error)) if error.io_error.kind() == ErrorKind::Interrupted => {
                Ok(())
            }
            outcome => outcome.map(drop).context("the kernel refuses to send packets"),
        }
    }

    /// Sends from the ends' CPU, as was prepared, while `work` runs.
    ///
    /// # Errors
    /// Those of `work`, and when the kernel refuses to send.
    pub fn sending<T: Send>(
        &self,
        client: &Netns,
        cpus: Cpus,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let setup: Setup = bytemuck::must_cast(self.setup.get(&0, 0).context("cannot read SOURCE")?);
        // At a rate a burst is handed on as soon as it is there.
        let batch = if setup.interval == 0 { BATCH } else { BURST as u32 };
        let (stop, sender) = (AtomicBool::new(false), AtomicI32::new(0));
        let sending = || {
            client.run(|| {
                Cpus::keep(0, cpus.ends)?;
                first(0, SENDS)?;
                sender.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    self.send(batch)?;
                }
                Ok(())
            })?
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(sending);
            let done = looking(work);
            stop.store(true, Ordering::Relaxed);
            while !thread.is_finished() {
                // Again, as the first one may come between two calls.
                wake(sender.load(Ordering::Relaxed));
                std::thread::sleep(Duration::from_millis(2));
            }
            let sent = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent.and(done)
        })
    }
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// A signal ends the kernel's sending, and nothing else.
fn install_wake() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.context("cannot install a handler for SIGUSR1")?;
    Ok(())
}

fn wake(thread: i32) {
    if thread > 0 {
        // SAFETY: numbers; the thread is one of this process or has just ended, and then nobody is meant.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGUSR1) };
    }
}

/// The first flow's frame, with right checksums.
fn frame(source: Ipv4Addr, destination: Ipv4Addr) -> [u64; 8] {
    const IP: usize = 14;
    const UDP: usize = IP + 20;
    let mut words = [0; 8];
    let frame: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    frame[..6].copy_from_slice(&EXT_MAC);
    frame[6..12].copy_from_slice(&CLIENT_MAC);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[IP] = 0x45;
    frame[IP + 2..IP + 4].copy_from_slice(&((FRAME - IP) as u16).to_be_bytes());
    frame[IP + 8..IP + 10].copy_from_slice(&[64, 17]);
    frame[IP + 12..IP + 16].copy_from_slice(&source.octets());
    frame[IP + 16..IP + 20].copy_from_slice(&destination.octets());
    let header = sum(&frame[IP..UDP]).checksum();
    frame[IP + 10..IP + 12].copy_from_slice(&header);
    let length = ((FRAME - UDP) as u16).to_be_bytes();
    frame[UDP..UDP + 2].copy_from_slice(&FIRST_PORT.to_be_bytes());
    frame[UDP + 2..UDP + 4].copy_from_slice(&PORT.to_be_bytes());
    frame[UDP + 4..UDP + 6].copy_from_slice(&length);
    // Addresses, protocol and length once more (RFC 768).
    let whole = sum(&frame[IP + 12..FRAME]).add16([0, 17]).add16(length).checksum();
    frame[UDP + 6..UDP + 8].copy_from_slice(&whole);
    words
}

fn sum(bytes: &[u8]) -> Sum {
    bytes.chunks_exact(2).fold(Sum::ZERO, |sum, pair| sum.add16([pair[0], pair[1]]))
}

/// What a receiver does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Those of [`Source`] are counted, and tunnels end.
    Counts,
    /// All are forwarded by the kernel's routes, as a router would that is an XDP program.
    Routes,
}

/// Counts what arrives on one interface.
pub struct Receiver {
    ebpf: Ebpf,
    mode: Array<MapData, u32>,
    counted: PerCpuArray<MapData, [u8; size_of::<Counted>()]>,
    latencies: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

impl Receiver {
    /// Attaches it to an interface, for as long as it lives.
    ///
    /// # Errors
    /// When the object is not built, or the kernel refuses it.
    pub fn attach(object: &Path, netns: &Netns, device: &str, attached: Attached) -> Result<Self> {
        let mut ebpf = load(object, "receiver")?;
        let (mode, counted, latencies) =
            (take(&mut ebpf, map::SINK)?, take(&mut ebpf, map::COUNTED)?, take(&mut ebpf, map::LATENCIES)?);
        let mut receiver = Self { ebpf, mode, counted, latencies };
        receiver.set(if attached == Attached::Routes { sink::ROUTE } else { sink::DROP })?;
        let program = xdp(&mut receiver.ebpf, "receiver")?;
        netns
            .run(|| program.attach(device, XdpMode::Driver).context("the driver refuses"))?
            .with_context(|| format!("cannot count packets on {device}"))?;
        Ok(receiver)
    }

    /// What becomes of packets from now on, by [`super::layout::sink`].
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set(&mut self, mode: u32) -> Result<()> {
        self.mode.set(0, mode, 0).context("cannot write SINK")
    }

    /// What has arrived so far.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counted(&self) -> Result<Counted> {
        let values = self.counted.get(&0, 0).context("cannot read COUNTED")?;
        let mut all = Counted::default();
        for value in values.iter() {
            let one: Counted = bytemuck::must_cast(*value);
            all.packets += one.packets;
            all.answers += one.answers;
            all.unwrapped += one.unwrapped;
            all.routed += one.routed;
        }
        Ok(all)
    }

    /// Latencies so far.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn latencies(&self) -> Result<Histogram> {
        let mut histogram = Histogram::default();
        for bucket in 0..BUCKETS {
            let values = self.latencies.get(&bucket, 0).context("cannot read LATENCIES")?;
            histogram.add(bucket, values.iter().sum());
        }
        Ok(histogram)
    }
}

/// Waits until a count stands still, and returns it.
///
/// # Errors
/// When it cannot be read.
pub fn settled(mut count: impl FnMut() -> Result<u64>) -> Result<u64> {
    const LIMIT: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    let mut last = count()?;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = count()?;
        if now == last || begun.elapsed() > LIMIT {
            return Ok(now);
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_the_frame_are_right() {
        let words = frame(CLIENT, VIP);
        let frame: &[u8] = bytemuck::cast_slice(&words);
        assert_eq!(sum(&frame[14..34]).checksum(), [0, 0], "of the header");
        let length = &frame[38..40];
        let whole = sum(&frame[26..FRAME]).add16([0, 17]).add16([length[0], length[1]]);
        assert_eq!(whole.checksum(), [0, 0], "of the datagram");
        assert_eq!(&frame[FRAME..], [0; 4], "what is not sent");
    }
}
