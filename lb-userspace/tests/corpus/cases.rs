//! The cases: read from testdata/corpus, run, and compared with what they expect.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::flow::{FlowState, FlowWord};
use lb_common::abi::{BackendStats, FlowTuple};
use lb_common::hash::{flow4, flow6, ports};
use lb_common::verdict::{Action, Kind, Reason};
use lb_userspace::config::Protocol;
use lb_userspace::dataplane::image::{Id, Image, address_bytes, address_from};
use serde::Deserialize;

use super::frame::{self, show};
use super::machine::{Engine, Machine, Outcome, Place};
use super::world::{KEY, State, States, World, testdata};

/// Fewer than this, and the directory was not read.
pub const FEWEST: usize = 800;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    world: String,
    case: Vec<Entry>,
}

/// A case as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    state_before: States,
    #[serde(default)]
    before: Vec<String>,
    #[serde(default)]
    state: States,
    packet: String,
    /// The packet is cut to each of these lengths: a case for each.
    cuts: Option<Vec<usize>>,
    verdict: String,
    reason: String,
    frame: Option<String>,
    #[serde(default)]
    counters: BTreeMap<String, u64>,
    backend: Option<String>,
    moved_away: Option<String>,
    flows: Option<Vec<String>>,
    host_only: Option<String>,
}

/// A frame and the interface it comes in on.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub ingress: String,
    pub frame: Vec<u8>,
}

/// What happens before the packet in question.
#[derive(Clone, Debug)]
enum Before {
    /// A frame, with the reason that it must have.
    Frame(Arrival, Option<Reason>),
    /// A backend's state changes.
    State(String, State),
}

#[derive(Clone, Debug)]
pub struct Case {
    /// File and name.
    pub label: String,
    state_before: States,
    before: Vec<Before>,
    state: States,
    pub packet: Arrival,
    action: Action,
    /// The interface that a redirected frame leaves by.
    interface: Option<String>,
    /// `None`: what the packet is.
    frame: Option<Vec<u8>>,
    counters: BTreeMap<Reason, u64>,
    backend: Option<String>,
    /// From which the flow was moved away.
    moved_away: Option<String>,
    flows: Option<BTreeSet<String>>,
    /// Why the kernel cannot run it.
    pub host_only: Option<String>,
}

/// The cases of one world.
#[derive(Debug)]
pub struct Chapter {
    pub world: World,
    pub cases: Vec<Case>,
}

/// Reads every case. Panics with a list of all that is wrong with the files.
pub fn load() -> Vec<Chapter> {
    let mut chapters: BTreeMap<String, Chapter> = BTreeMap::new();
    let mut problems = Vec::new();
    let mut labels = BTreeSet::new();
    let dir = testdata().join("corpus");
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    for path in paths {
        let theme = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file: File = match toml::from_str(&text) {
            Ok(file) => file,
            Err(error) => {
                problems.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        let chapter = chapters
            .entry(file.world.clone())
            .or_insert_with(|| Chapter { world: World::load(&file.world), cases: Vec::new() });
        for entry in file.case.iter().flat_map(Entry::each) {
            let label = format!("{theme}: {}", entry.name);
            if !labels.insert(label.clone()) {
                problems.push(format!("{label}: there are two cases of this name"));
            }
            match entry.read(&chapter.world, label.clone()) {
                Ok(case) => chapter.cases.push(case),
                Err(problem) => problems.push(format!("{label}: {problem}")),
            }
        }
    }
    assert!(problems.is_empty(), "the corpus has errors:\n{}", problems.join("\n"));
    let chapters: Vec<_> = chapters.into_values().collect();
    let cases = chapters.iter().map(|c| c.cases.len()).sum::<usize>();
    assert!(cases >= FEWEST, "{cases} cases in {}, where there should be {FEWEST} or more", dir.display());
    chapters
}

impl Entry {
    /// The cases that it stands for.
    fn each(&self) -> Vec<Self> {
        let Some(cuts) = &self.cuts else { return vec![self.clone()] };
        let cut = |len: &usize| Self {
            name: format!("{}, cut to {len} bytes", self.name),
            packet: format!("{} / cut {len}", self.packet),
            cuts: None,
            ..self.clone()
        };
        cuts.iter().map(cut).collect()
    }

    fn read(self, world: &World, label: String) -> Result<Case, String> {
        world.check_states(&self.state)?;
        world.check_states(&self.state_before)?;
        let mut before = Vec::new();
        for text in &self.before {
            if let Some(("state", rest)) = text.split_once(' ') {
                let (name, state) = changed_state(rest, world)?;
                before.push(Before::State(name, state));
                continue;
            }
            let (text, expected) = match text.rsplit_once("=>") {
                Some((text, name)) => (text, Some(reason(name.trim())?)),
                None => (text.as_str(), None),
            };
            before.push(Before::Frame(arrival(text, world)?, expected));
        }
        let packet = arrival(&self.packet, world).map_err(|e| format!("packet: {e}"))?;
        let (action, interface) = match self.verdict.split_once(' ') {
            None if self.verdict == "pass" => (Action::Pass, None),
            None if self.verdict == "drop" => (Action::Drop, None),
            None if self.verdict == "tx" => (Action::Transmit, None),
            Some(("redirect", name)) if world.interface(name).is_some() => {
                (Action::Redirect, Some(name.to_owned()))
            }
            _ => return Err(format!("verdict: not pass, drop, tx or redirect INTERFACE: {}", self.verdict)),
        };
        let ingress = world.interface(&packet.ingress).ok_or("no such interface")?;
        let expected = self.frame.map(|text| frame::build(&text, world.names(ingress))).transpose();
        let end = reason(&self.reason)?;
        let mut counters = BTreeMap::from([(end, 1)]);
        for (name, count) in &self.counters {
            counters.insert(reason(name)?, *count);
        }
        let forwards = end.kind() == Kind::Forward && end != Reason::ClientReset;
        if forwards != self.backend.is_some() {
            return Err("`backend` belongs to what is forwarded, and to nothing else".into());
        }
        Ok(Case {
            label,
            state_before: self.state_before,
            before,
            state: self.state,
            packet,
            action,
            interface,
            frame: expected.map_err(|e| format!("frame: {e}"))?,
            counters,
            backend: self.backend,
            moved_away: self.moved_away,
            flows: self.flows.map(|flows| flows.into_iter().collect()),
            host_only: self.host_only,
        })
    }
}

fn reason(name: &str) -> Result<Reason, String> {
    let found = Reason::ALL.iter().find(|r| r.name() == name);
    found.copied().ok_or_else(|| format!("there is no reason {name}"))
}

/// `BACKEND STATE`.
fn changed_state(text: &str, world: &World) -> Result<(String, State), String> {
    let (name, state) = text.split_once(' ').ok_or_else(|| format!("state {text}: of whom, and which?"))?;
    let state = State::named(state).ok_or_else(|| format!("there is no state {state}"))?;
    world.check_states(&States::from([(name.to_owned(), state)]))?;
    Ok((name.to_owned(), state))
}

/// `FRAME`, or `INTERFACE: FRAME`.
fn arrival(text: &str, world: &World) -> Result<Arrival, String> {
    let (ingress, text) = match text.split_once(": ") {
        Some((name, rest)) if world.interface(name).is_some() => (name, rest),
        _ => (world.ingress.as_str(), text),
    };
    let interface = world.interface(ingress).ok_or_else(|| format!("there is no interface {ingress}"))?;
    Ok(Arrival { ingress: ingress.to_owned(), frame: frame::build(text, world.names(interface))? })
}

impl Case {
    /// Runs it from an empty flow table. `Err`: what came before the packet went another way than it should.
    pub fn run<E: Engine>(&self, machine: &mut Machine<E>, world: &World) -> Result<Outcome, String> {
        let mut states = world.state.clone();
        states.extend(self.state_before.clone());
        machine.configure(world, &states);
        machine.align_turns(world);
        machine.forget_flows();
        for (number, before) in (1..).zip(&self.before) {
            let (arrival, expected) = match before {
                Before::Frame(arrival, expected) => (arrival, expected),
                Before::State(name, state) => {
                    states.insert(name.clone(), *state);
                    machine.configure(world, &states);
                    continue;
                }
            };
            let outcome = machine.run(index(world, arrival), &arrival.frame);
            let end = outcome.counters.keys().find(|r| r.kind() != Kind::Note);
            let right = match expected {
                Some(expected) => end == Some(expected),
                None => end.is_some_and(|r| r.kind() == Kind::Forward),
            };
            if !right {
                return Err(format!(
                    "number {number} before it: {:?}\n    {}",
                    outcome.counters,
                    show(&arrival.frame)
                ));
            }
        }
        if !self.state.is_empty() {
            states.extend(self.state.clone());
            machine.configure(world, &states);
        }
        Ok(machine.run(index(world, &self.packet), &self.packet.frame))
    }

    /// Everything in which the outcome is not what was expected.
    pub fn problems(&self, outcome: &Outcome, world: &World, image: &Image) -> Vec<String> {
        let mut problems = Vec::new();
        if outcome.ran.action != self.action {
            problems.push(format!("verdict {:?}, expected {:?}", outcome.ran.action, self.action));
        }
        let interface = self.interface.as_deref().and_then(|name| world.interface(name));
        if let (Some(got), Some(wanted)) = (outcome.ran.ifindex, interface)
            && got != wanted.index
        {
            let name = world.interfaces.iter().find(|i| i.index == got).map(|i| &i.name);
            problems.push(format!("redirected to {name:?} ({got}), expected {}", wanted.name));
        }
        if outcome.counters != self.counters {
            problems.push(format!("counters {:?}, expected {:?}", outcome.counters, self.counters));
        }
        let expected = self.frame.as_ref().unwrap_or(&self.packet.frame);
        if outcome.ran.frame != *expected {
            problems.push(difference(&outcome.ran.frame, expected));
        }
        self.stats_problem(outcome, image, &mut problems);
        let named = |places: &[Place]| -> BTreeSet<_> {
            places.iter().map(|p| flow_text(p, image, world.flow_lines)).collect()
        };
        let got = named(&outcome.flows);
        let expected = self.flows.clone().unwrap_or_else(|| named(&outcome.flows_before));
        if got != expected {
            problems.push(format!("flows after it\n      {got:?}, expected\n      {expected:?}"));
        }
        problems
    }

    fn stats_problem(&self, outcome: &Outcome, image: &Image, problems: &mut Vec<String>) {
        let name = |id: &Id| image.backends.get(id).map(|b| b.name.clone()).unwrap_or_default();
        let got: BTreeMap<_, _> = outcome.stats.iter().map(|(id, stats)| (name(id), *stats)).collect();
        let mut expected = BTreeMap::new();
        if let Some(backend) = &self.backend {
            let bytes = ip_len(&self.packet.frame);
            let to = self.counters.contains_key(&Reason::ToBackend)
                || self.counters.contains_key(&Reason::ToBackendByKernel);
            let stats = if to {
                BackendStats { to_packets: 1, to_bytes: bytes, ..BackendStats::default() }
            } else {
                BackendStats { from_packets: 1, from_bytes: bytes, ..BackendStats::default() }
            };
            expected.insert(backend.clone(), stats);
        }
        if let Some(backend) = &self.moved_away {
            let stats: &mut BackendStats = expected.entry(backend.clone()).or_default();
            stats.moved_away = 1;
        }
        if got != expected {
            problems.push(format!("statistics {got:?}, expected {expected:?}"));
        }
    }
}

/// The interface's number as this world has it now: in a namespace it is the kernel's.
fn index(world: &World, arrival: &Arrival) -> u32 {
    world.interface(&arrival.ingress).map_or(0, |i| i.index)
}

/// The length of the IP packet in a frame, by its own header.
fn ip_len(frame: &[u8]) -> u64 {
    let at = |at: usize| u64::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    if at(12) == 0x86dd { at(18) + 40 } else { at(16) }
}

fn difference(got: &[u8], expected: &[u8]) -> String {
    let differs: Vec<String> = (0..got.len().max(expected.len()))
        .filter(|at| got.get(*at) != expected.get(*at))
        .take(24)
        .map(|at| {
            let byte = |bytes: &[u8]| bytes.get(at).map_or("--".to_owned(), |b| format!("{b:02x}"));
            format!("{at}: {} not {}", byte(got), byte(expected))
        })
        .collect();
    format!("frame {}\n    expected {}\n    bytes {}", show(got), show(expected), differs.join(", "))
}

/// A flow in words: `tcp 192.0.2.1:40000 > 203.0.113.10:25 mx1 established`. What is in the flow table must lie where
/// the hash of its tuple says.
fn flow_text((index, word, tuple): &Place, image: &Image, lines: u32) -> String {
    let word = FlowWord(*word);
    let backend = image.backends.get(&word.backend());
    let Some(listener) = image.listeners.get(&tuple.listener) else {
        return format!("a flow of listener {} that is not there", tuple.listener);
    };
    let FlowTuple { client, client_port, vip_port, .. } = *tuple;
    let (vip, client) = (listener.listen.address, address_from(client));
    let (wire, name) = match listener.listen.protocol {
        Protocol::Tcp => (6, "tcp"),
        Protocol::Udp => (17, "udp"),
    };
    let ports = ports(client_port.get(), vip_port.get());
    let hash = match (client, vip) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => flow4(&KEY, &client.octets(), &vip.octets(), ports, wire),
        _ => flow6(&KEY, &address_bytes(client), &address_bytes(vip), ports, wire),
    };
    let mut text = format!(
        "{name} {} > {} {} {}",
        SocketAddr::new(client, client_port.get()),
        SocketAddr::new(vip, vip_port.get()),
        backend.map_or("nobody", |b| &b.name),
        state_name(word.state())
    );
    if word.moves() > 0 {
        text += &format!(" moved={}", word.moves());
    }
    if hash.fingerprint() != word.fingerprint() || hash.line(lines) as usize != index / 8 {
        text += " in a wrong place";
    }
    text
}

const fn state_name(state: FlowState) -> &'static str {
    match state {
        FlowState::ClientClosed => "client_closed",
        FlowState::BackendClosed => "backend_closed",
        other => other.name(),
    }
}

/// What goes wrong with the cases of a chapter; every failing case with all that is wrong with it.
pub fn report(failures: &[(String, Vec<String>)]) -> String {
    let mut text = String::new();
    for (label, problems) in failures {
        let _ = write!(text, "\n{label}\n  {}\n", problems.join("\n  "));
    }
    text
}
