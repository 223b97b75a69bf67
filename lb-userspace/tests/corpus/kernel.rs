//! The loaded program in a network namespace that is built like a world: the routing table and the neighbours are real.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lb_common::abi::BackendStats;
use lb_common::abi::trace::TraceFilter;
use lb_common::env::Step;
use lb_common::verdict::{Action, Reason};
use lb_userspace::dataplane::image::Id;
use lb_userspace::dataplane::kernel::explain::Explainer;
use lb_userspace::dataplane::kernel::load::{Geometry, Programs, load_new};
use lb_userspace::dataplane::kernel::pins::Pins;
use lb_userspace::dataplane::kernel::tracer::{Events, Tracer};
use lb_userspace::dataplane::kernel::{Kernel, Logger};
use lb_userspace::net::watch::EpochWriter as _;
use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare};
use nix::unistd::Pid;

use super::corpus::machine::{Engine, Host, Machine, Outcome, Ran};
use super::corpus::show::show;
use super::corpus::world::{CAPACITY, KEY, Refuse, World};

/// The program's test run (BPF_PROG_TEST_RUN).
#[derive(Debug)]
pub struct TestRun;

impl Machine<TestRun> {
    /// What the flow table's clock says.
    pub fn time(&mut self) -> u16 {
        self.dataplane.maps_mut().clock().expect("the program tells the time").now
    }
}

impl Machine<Host> {
    /// Sets the flow table's clock, which stands still otherwise.
    pub fn set_time(&mut self, now: u16) {
        self.dataplane.maps_mut().now = now;
    }
}

impl Engine for TestRun {
    type Maps = Kernel;

    fn run(&self, kernel: &mut Kernel, ingress: u32, frame: &[u8]) -> Ran {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, frame.len() as u32, 0, ingress, 0, 0].map(u32::to_ne_bytes).concat();
        let (verdict, frame) =
            kernel.run(frame, Some(&context)).unwrap_or_else(|e| panic!("test run: {e:#}"));
        Ran { action: action(verdict), ifindex: None, frame }
    }

    fn counters(kernel: &Kernel) -> BTreeMap<Reason, u64> {
        kernel.counters().unwrap_or_else(|e| panic!("{e:#}"))
    }

    fn stats(kernel: &Kernel, backend: Id) -> BackendStats {
        kernel.stats(backend).unwrap_or_else(|e| panic!("{e:#}"))
    }
}

/// The same program behind the gate that tells of packets: of all, or of none.
#[derive(Debug)]
pub struct Traced {
    tracer: RefCell<Tracer>,
    events: RefCell<Events>,
    all: bool,
}

impl Engine for Traced {
    type Maps = Kernel;

    fn run(&self, _: &mut Kernel, ingress: u32, frame: &[u8]) -> Ran {
        let context = [0, frame.len() as u32, 0, ingress, 0, 0].map(u32::to_ne_bytes).concat();
        let mut tracer = self.tracer.borrow_mut();
        let (verdict, after) =
            tracer.run(frame, Some(&context)).unwrap_or_else(|e| panic!("test run: {e:#}"));
        let action = action(verdict);
        let mut events = self.events.borrow_mut();
        let told: Vec<_> = std::iter::from_fn(|| events.take()).collect();
        assert_eq!(events.lost(), 0, "events were lost");
        assert_eq!(told.len(), usize::from(self.all), "{}", show(frame));
        if let Some(event) = told.first() {
            // Each packet says how it ends, and that is how it ends.
            let last = event.steps[event.count as usize - 1];
            assert_eq!((last[0], last[2]), (Step::Done.number(), action as u32), "{}", show(frame));
            assert_eq!((event.ingress, event.len as usize), (ingress, frame.len()), "{}", show(frame));
        }
        Ran { action, ifindex: None, frame: after }
    }

    fn counters(kernel: &Kernel) -> BTreeMap<Reason, u64> {
        TestRun::counters(kernel)
    }

    fn stats(kernel: &Kernel, backend: Id) -> BackendStats {
        TestRun::stats(kernel, backend)
    }
}

/// What the program has returned.
fn action(verdict: u32) -> Action {
    match verdict {
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Transmit,
        4 => Action::Redirect,
        other => panic!("the program returned {other}"),
    }
}

/// Calls `f` as [`in_namespace`] does, with all packets traced or with none of them.
pub fn in_tracing_namespace<T: Send>(
    world: &mut World,
    all: bool,
    f: impl FnOnce(&World, &mut Machine<Traced>) -> T + Send,
) -> T {
    in_pinned_namespace(world, false, |world, kernel, pins| {
        let recipe = kernel.tracer(&pins).unwrap_or_else(|e| panic!("{e:#}"));
        let (mut tracer, events) = Tracer::load(recipe).unwrap_or_else(|e| panic!("{e:#}\n{e:?}"));
        drop(pins);
        tracer.set_plain(&kernel).unwrap_or_else(|e| panic!("{e:#}"));
        if all {
            tracer.set_filter(0, &TraceFilter::default());
        }
        let engine = Traced { tracer: RefCell::new(tracer), events: RefCell::new(events), all };
        f(world, &mut Machine::new(engine, kernel))
    })
}

/// A pin directory that is gone when the test is, however it ends.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Ok(Some(pins)) = Pins::open_existing(&self.0)
            && let Err(error) = pins.remove_all()
        {
            println!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Calls `f` in a namespace that is built like `world`, with the program loaded. The world's interfaces get the
/// kernel's numbers. Everything is removed afterwards.
pub fn in_namespace<T: Send>(
    world: &mut World,
    f: impl FnOnce(&World, &mut Machine<TestRun>) -> T + Send,
) -> T {
    in_traced_namespace(world, false, |world, machine, _| f(world, machine))
}

/// The same, with tracing or without; `f` gets what reads the trace.
pub fn in_traced_namespace<T: Send>(
    world: &mut World,
    trace: bool,
    f: impl FnOnce(&World, &mut Machine<TestRun>, Option<Logger>) -> T + Send,
) -> T {
    in_pinned_namespace(world, trace, |world, mut kernel, pins| {
        // Its lock must be gone when the directory is removed.
        drop(pins);
        let logger = kernel.take_logger();
        f(world, &mut Machine::new(TestRun, kernel), logger)
    })
}

/// The same with what tells how the program comes to its verdicts.
pub fn in_explained_namespace<T: Send>(
    world: &mut World,
    f: impl FnOnce(&World, &mut Machine<TestRun>, &mut Explainer) -> T + Send,
) -> T {
    in_pinned_namespace(world, false, |world, kernel, pins| {
        let recipe = kernel.explainer(&pins).unwrap_or_else(|e| panic!("{e:#}"));
        let mut explainer = Explainer::load(recipe).unwrap_or_else(|e| panic!("{e:#}\n{e:?}"));
        drop(pins);
        f(world, &mut Machine::new(TestRun, kernel), &mut explainer)
    })
}

fn in_pinned_namespace<T: Send>(
    world: &mut World,
    trace: bool,
    f: impl FnOnce(&World, Kernel, Pins) -> T + Send,
) -> T {
    let run = || {
        // The namespace is this thread's and ends with it.
        stay_on_this_cpu();
        unshare(CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("cannot make a network namespace: {e}"));
        build(world);
        let dir = format!("/sys/fs/bpf/matapa-test-{}-{}", std::process::id(), world.name);
        let directory = Directory(dir.into());
        let pins = Pins::open(&directory.0).unwrap_or_else(|e| panic!("{e:#}"));
        let geometry = Geometry { capacity: CAPACITY, flow_lines: world.flow_lines };
        let programs = if trace { Programs::Traced } else { Programs::All };
        let mut loaded = load_new(&pins, geometry, KEY, programs).unwrap_or_else(|e| panic!("{e:#}"));
        let (ports, vlans) = world.ports();
        loaded.kernel.write_ports(&ports);
        loaded.kernel.write_vlans(&vlans).unwrap_or_else(|e| panic!("{e}"));
        // The ways of packets are remembered, as with routes that depend on nothing but the destination.
        loaded.kernel.route_epoch().set(1);
        f(world, loaded.kernel, pins)
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Each CPU takes turns of its own.
fn stay_on_this_cpu() {
    let cpu = sched_getcpu().unwrap_or_else(|e| panic!("which CPU is this? {e}"));
    let mut cpus = CpuSet::new();
    cpus.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus))
        .unwrap_or_else(|e| panic!("cannot stay on CPU {cpu}: {e}"));
}

fn build(world: &mut World) {
    let mut lines = Vec::new();
    // VLANs too: kernels without CONFIG_VLAN_8021Q are tested as well, and for the program a VLAN is what `VLANS` and
    // `PORTS` say, with routes of its own.
    for i in &world.interfaces {
        let mac: Vec<String> = i.mac.iter().map(|b| format!("{b:02x}")).collect();
        let (name, mtu, mac) = (&i.name, i.mtu, mac.join(":"));
        lines.push(format!(
            "link add {name} address {mac} mtu {mtu} type veth peer name {name}-far mtu {mtu}"
        ));
        lines.push(format!("link set {name} up"));
        lines.push(format!("link set {name}-far up"));
    }
    ip(&lines);

    setting("ipv4/conf/all/forwarding", "1");
    setting("ipv6/conf/all/forwarding", "1");
    for i in world.interfaces.iter().filter(|i| !i.forwarding) {
        setting(&format!("ipv4/conf/{}/forwarding", i.name), "0");
        setting(&format!("ipv6/conf/{}/forwarding", i.name), "0");
    }

    let mut lines = Vec::new();
    for i in &world.interfaces {
        for address in &i.addresses {
            let options = if address.address.is_ipv6() { " nodad" } else { " broadcast +" };
            lines.push(format!("address add {address} dev {}{options}", i.name));
        }
    }
    for n in &world.neighbours {
        let mac: Vec<String> = n.mac.iter().map(|b| format!("{b:02x}")).collect();
        for address in &n.addresses {
            lines.push(format!("neigh add {address} lladdr {} dev {} nud permanent", mac.join(":"), n.dev));
        }
    }
    for r in &world.routes {
        let kind = match r.refuse {
            None => "",
            Some(Refuse::Blackhole) => "blackhole ",
            Some(Refuse::Unreachable) => "unreachable ",
            Some(Refuse::Prohibit) => "prohibit ",
        };
        let mut line = format!("route add {kind}{}", r.to);
        if r.encapsulates {
            line += if r.to.address.is_ipv6() {
                " encap ip6 id 1 dst 2001:db8:64::11"
            } else {
                " encap ip id 1 dst 198.51.100.11"
            };
        }
        if let Some(via) = r.via {
            line += &format!(" via {via}");
        }
        if let Some(dev) = &r.dev {
            line += &format!(" dev {dev}");
        }
        if let Some(mtu) = r.mtu {
            // Locked: the kernel forwards by the interface's MTU otherwise (ip_forward_use_pmtu in ip-sysctl.rst).
            line += &format!(" mtu lock {mtu}");
        }
        lines.push(line);
    }
    ip(&lines);
    for i in &mut world.interfaces {
        let index = nix::net::if_::if_nametoindex(i.name.as_str());
        i.index = index.unwrap_or_else(|e| panic!("there is no interface {}: {e}", i.name));
    }
}

/// Of this thread's namespace.
fn setting(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Runs these commands of ip(8), all or none.
fn ip(lines: &[String]) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run ip(8): {e}"));
    let text = lines.join("\n") + "\n";
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(text.as_bytes()));
    let status = child.wait().unwrap_or_else(|e| panic!("ip(8): {e}"));
    assert!(status.success() && matches!(written, Some(Ok(()))), "ip(8) refused one of:\n{text}");
}

/// Everything in which the kernel and the host did not do the same. Where a redirected frame leaves, its source MAC
/// address tells.
pub fn differences(kernel: &Outcome, host: &Outcome) -> Vec<String> {
    let mut differences = Vec::new();
    if kernel.ran.action != host.ran.action {
        differences.push(format!("kernel {:?}, host {:?}", kernel.ran.action, host.ran.action));
    }
    if kernel.ran.frame != host.ran.frame {
        differences.push(format!("kernel {}\n    host {}", show(&kernel.ran.frame), show(&host.ran.frame)));
    }
    if kernel.counters != host.counters {
        differences.push(format!("counters: kernel {:?}, host {:?}", kernel.counters, host.counters));
    }
    if kernel.stats != host.stats {
        differences.push(format!("statistics: kernel {:?}, host {:?}", kernel.stats, host.stats));
    }
    if kernel.live != host.live {
        differences.push(format!("live flows: kernel {:?}, host {:?}", kernel.live, host.live));
    }
    if kernel.flows != host.flows {
        differences.push(format!("flows: kernel {:x?}\n    host {:x?}", kernel.flows, host.flows));
    }
    differences
}
