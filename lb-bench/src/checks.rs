//! What health checks cost: thousands of servers on loopback, checked by one core.
//!
//! Servers have a thread, checks one and a process, as in the daemon; each side is on a CPU of its own where there are two. With no jitter a target's checks
//! start on a grid, so that how late a start is shows by itself: against the target's most punctual one.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use lb_userspace::config::{Check, Http, Method, Probe, Smtp};
use lb_userspace::health::{self, Health, Report, Target, checker};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Before measuring, so that the checks are spread over the interval.
const WARM_UP: u32 = 2;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    pub backends: u32,
    pub interval: Duration,
    /// For how many intervals.
    pub intervals: u32,
    /// What becomes the process that checks when it is started with [`checker::WORD`].
    pub program: PathBuf,
}

/// A kind of check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Smtp,
    Http,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Smtp, Self::Http];

    fn probe(self) -> Probe {
        match self {
            Self::Tcp => Probe::Tcp,
            Self::Smtp => Probe::Smtp(Smtp::Plain),
            Self::Http => Probe::Http(
                Http {
                    method: Method::Get,
                    path: "/health".to_owned(),
                    host: None,
                    status: vec![(200, 200)],
                    body: Some("well".to_owned()),
                    tls: None,
                }
                .into(),
            ),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Smtp => "smtp",
            Self::Http => "http",
        })
    }
}

/// What was measured. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub check: String,
    pub backends: u32,
    pub checks: usize,
    pub checks_per_second: f64,
    pub failures: usize,
    /// Intervals in which a target's check did not start.
    pub missed: usize,
    /// How late checks started.
    pub late_p50: f64,
    pub late_p99: f64,
    pub late_max: f64,
    /// From the start of a check to its verdict.
    pub took_p50: f64,
    pub took_p99: f64,
    /// Of the process that checks and of the thread that hears its reports, as a share of one core.
    pub cpu_percent: f64,
    /// The same for each check, in microseconds.
    pub cpu_micros: f64,
}

impl Figures {
    pub const HEADINGS: &str = "check backends   checks/s failed missed  late p50      p99      max  took p50      p99    \
                                CPU %  CPU µs";
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<5} {:>8} {:>10.0} {:>6} {:>6} {:>9.2} {:>8.2} {:>8.2} {:>9.2} {:>8.2} {:>8.1} {:>7.1}",
            self.check,
            self.backends,
            self.checks_per_second,
            self.failures,
            self.missed,
            self.late_p50,
            self.late_p99,
            self.late_max,
            self.took_p50,
            self.took_p99,
            self.cpu_percent,
            self.cpu_micros
        )
    }
}

/// Checks so many servers in one way.
///
/// # Errors
/// When the machine does not let it.
pub fn run(kind: Kind, options: &Options) -> Result<Figures> {
    health::raise_descriptor_limit();
    let cpus = cpus()?;
    let (port_to, port) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = {
        let cpu = cpus.first().copied();
        std::thread::spawn(move || serve(kind, cpu, &port_to, stopped))
    };
    let port = port.recv().context("the servers do not start")??;
    let checker = {
        let (options, cpu) = (options.clone(), cpus.get(1).or(cpus.first()).copied());
        std::thread::spawn(move || check(kind, port, &options, cpu))
    };
    let figures = checker.join().map_err(|_| anyhow!("the checks broke off"))?;
    drop(stop);
    server.join().map_err(|_| anyhow!("the servers broke off"))?;
    figures
}

/// Those that this process may use.
fn cpus() -> Result<Vec<usize>> {
    let all = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    Ok((0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or_default()).collect())
}

/// Keeps this thread on one CPU.
fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(cpu).context("CPU number")?;
    sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")
}

/// All servers: one socket, on every address of 127.0.0.0/8.
fn serve(
    kind: Kind,
    cpu: Option<usize>,
    port: &std::sync::mpsc::Sender<Result<u16>>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let started = pin(cpu).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
            socket.listen(4096)
        })?;
        Ok((listener.local_addr()?.port(), runtime, listener))
    });
    // The other side waits for one answer.
    let (runtime, listener) = match started {
        Ok((number, runtime, listener)) => {
            let _ = port.send(Ok(number));
            (runtime, listener)
        }
        Err(error) => {
            let _ = port.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            () = accept(kind, listener) => {}
            _ = stopped => {}
        }
    });
}

async fn accept(kind: Kind, listener: TcpListener) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A client that goes is no concern of the server's.
                let _ = answer(kind, stream).await;
            });
        }
    }
}

async fn answer(kind: Kind, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    match kind {
        Kind::Tcp => {}
        Kind::Smtp => {
            stream.write_all(b"220 bench.example ESMTP\r\n").await?;
            for reply in [&b"250 bench.example\r\n"[..], b"221 bye\r\n"] {
                // A line comes in one piece here.
                if stream.read(&mut buffer).await? == 0 {
                    return Ok(());
                }
                stream.write_all(reply).await?;
            }
            return stream.shutdown().await;
        }
        Kind::Http => {
            if stream.read(&mut buffer).await? == 0 {
                return Ok(());
            }
            let page = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nall is well\n";
            stream.write_all(page).await?;
            return stream.shutdown().await;
        }
    }
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// The clocks of what checks: this thread, and the process that it has started.
struct CpuClocks([ClockId; 2]);

impl CpuClocks {
    fn find() -> Result<Self> {
        let children = std::fs::read_to_string("/proc/thread-self/children")?;
        let pids: Vec<i32> = children.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [pid] = pids[..] else { bail!("{} processes were started, not one that checks", pids.len()) };
        let process = clock_getcpuclockid(Pid::from_raw(pid)).context("clock_getcpuclockid")?;
        Ok(Self([ClockId::CLOCK_THREAD_CPUTIME_ID, process]))
    }

    fn read(&self) -> Result<Duration> {
        let read = |clock: &ClockId| Ok(Duration::from(clock_gettime(*clock).context("clock_gettime")?));
        self.0.iter().map(read).sum()
    }
}

fn check(kind: Kind, port: u16, options: &Options, cpu: Option<usize>) -> Result<Figures> {
    pin(cpu)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let check = Check {
            interval: options.interval,
            timeout: options.interval * 9 / 10,
            jitter: 0,
            ..Check::of(kind.probe())
        };
        let target = |number: u32| {
            let [_, b, c, d] = number.to_be_bytes();
            Target::new(IpAddr::from([127, b + 1, c, d]), port, &check)
        };
        // The last and the first address of a /24 are as good as any other here.
        let targets = (1..=options.backends).map(|number| (target(number), Health::Unknown)).collect();
        // As in the daemon.
        let (reports, mut inbox) = mpsc::channel(1024);
        let runner = checker::spawn(reports, options.program.clone());
        runner.set_targets(targets);
        let begin = Instant::now() + options.interval * WARM_UP;
        receive(&mut inbox, begin, |_| {}).await?;
        let clocks = CpuClocks::find()?;
        let (start, cpu) = (Instant::now(), clocks.read()?);
        let mut all: Vec<Seen> = Vec::new();
        receive(&mut inbox, start + options.interval * options.intervals, |report| all.push(report.into()))
            .await?;
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), clocks.read()?.saturating_sub(cpu));
        drop(runner);
        figures(kind, options, &all, seconds, cpu)
    })
}

/// Hands on the reports that come until `end`.
async fn receive(
    inbox: &mut mpsc::Receiver<Report>,
    end: Instant,
    mut take: impl FnMut(&Report),
) -> Result<()> {
    loop {
        match tokio::time::timeout_at(end.into(), inbox.recv()).await {
            Ok(Some(report)) => take(&report),
            Ok(None) => bail!("the checks ended"),
            Err(_elapsed) => return Ok(()),
        }
    }
}

/// What counts of a report.
#[derive(Clone, Copy, Debug)]
struct Seen {
    server: IpAddr,
    started: SystemTime,
    took: Duration,
    good: bool,
}

impl From<&Report> for Seen {
    fn from(report: &Report) -> Self {
        Self {
            server: report.target.address.ip(),
            started: report.at - report.latency,
            took: report.latency,
            good: report.result.is_ok(),
        }
    }
}

fn figures(kind: Kind, options: &Options, all: &[Seen], seconds: f64, cpu: Duration) -> Result<Figures> {
    let interval = options.interval.as_secs_f64();
    let mut starts: HashMap<IpAddr, Vec<f64>> = HashMap::new();
    for seen in all {
        let since = seen.started.duration_since(SystemTime::UNIX_EPOCH).context("the clock")?;
        starts.entry(seen.server).or_default().push(since.as_secs_f64());
    }
    let silent = usize::try_from(options.backends)? - starts.len();
    let mut missed = silent * usize::try_from(options.intervals)?;
    let mut late = Vec::new();
    for starts in starts.values() {
        // Slots since the first start; a gap of two intervals has one slot that was missed.
        let mut slot = 0.0;
        let mut offsets = vec![0.0];
        for pair in starts.windows(2) {
            let slots = ((pair[1] - pair[0]) / interval).round().max(1.0);
            missed += slots as usize - 1;
            slot += slots;
            offsets.push(pair[1] - starts[0] - slot * interval);
        }
        let punctual = offsets.iter().copied().fold(f64::INFINITY, f64::min);
        late.extend(offsets.iter().map(|offset| (offset - punctual) * 1000.0));
    }
    let mut took: Vec<f64> = all.iter().map(|seen| seen.took.as_secs_f64() * 1000.0).collect();
    late.sort_by(f64::total_cmp);
    took.sort_by(f64::total_cmp);
    let part = |sorted: &[f64], percent: usize| {
        sorted
            .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    Ok(Figures {
        check: kind.to_string(),
        backends: options.backends,
        checks: all.len(),
        checks_per_second: all.len() as f64 / seconds,
        failures: all.iter().filter(|seen| !seen.good).count(),
        missed,
        late_p50: part(&late, 50),
        late_p99: part(&late, 99),
        late_max: part(&late, 100),
        took_p50: part(&took, 50),
        took_p99: part(&took, 99),
        cpu_percent: cpu.as_secs_f64() / seconds * 100.0,
        cpu_micros: cpu.as_secs_f64() * 1e6 / all.len().max(1) as f64,
    })
}
