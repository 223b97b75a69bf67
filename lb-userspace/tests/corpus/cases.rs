//! The cases: read from testdata/corpus, run, and compared with what they expect.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::flow::{FlowState, FlowWord};
use lb_common::abi::{BackendStats, FlowTuple};
use lb_common::verdict::{Action, Kind, Reason};
use lb_userspace::config::Protocol;
use lb_userspace::dataplane::image::{Id, Image, address_from};
use serde::Deserialize;

use super::checksums;
use super::frame::{self, Ends};
use super::machine::{Engine, Machine, Outcome, Place};
use super::show::show;
use super::world::{State, States, World, flow_hash, testdata};

/// Fewer than this, and the directory was not read.
pub const FEWEST: usize = 2500;

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
        let forwards = matches!(
            end,
            Reason::ToBackend | Reason::ToClient | Reason::ToBackendByKernel | Reason::ToClientByKernel
        );
        if forwards != self.backend.is_some() {
            return Err("`backend` belongs to a client's or a backend's packet that is forwarded, and to nothing else".into());
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
        self.prepare(machine, world)?;
        let (ingress, frame) = self.arrives(world);
        Ok(machine.run(ingress, frame))
    }

    /// The packet: the number of the interface that it comes in on, and the frame.
    pub fn arrives(&self, world: &World) -> (u32, &[u8]) {
        (index(world, &self.packet), &self.packet.frame)
    }

    /// Everything up to the packet itself.
    pub fn prepare<E: Engine>(&self, machine: &mut Machine<E>, world: &World) -> Result<(), String> {
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
        Ok(())
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
        if checksums::wrong(&self.packet.frame).is_empty() {
            for place in checksums::wrong(&outcome.ran.frame) {
                problems.push(format!("came with right checksums, and leaves with a wrong one: {place}"));
            }
        }
        for (id, live, found) in outcome.miscounted() {
            let name = image.backends.get(&id).map_or("nobody", |b| &b.name);
            problems
                .push(format!("{name} ({id}) has {live} live flows by its count, {found} in the flow table"));
        }
        self.stats_problem(outcome, image, &mut problems);
        let named = |places: &[Place]| -> BTreeSet<_> {
            places.iter().map(|p| flow_text(p, places, image, world.flow_lines)).collect()
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
    let mut ether_type = 12;
    while matches!(at(ether_type), 0x8100 | 0x88a8) {
        ether_type += 4;
    }
    if at(ether_type) == 0x86dd { at(ether_type + 6) + 40 } else { at(ether_type + 4) }
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

/// A flow in words: `tcp 192.0.2.1:40000 > 203.0.113.10:25 mx1 established`; with `snat`, and what stands for the
/// client: `via 198.51.100.1:5000`. The record of its way back has the same words, and `reverse` for a state. What is in
/// the flow table must lie where the hash says, and a flow and its way back must name each other.
fn flow_text(place: &Place, all: &[Place], image: &Image, lines: u32) -> String {
    let (index, word, tuple) = place;
    let word = FlowWord(*word);
    let Some(listener) = image.listeners.get(&tuple.listener) else {
        return format!("a flow of listener {} that is not there", tuple.listener);
    };
    let Some(backend) = image.backends.get(&word.backend()) else {
        return format!("a flow of backend {} that is not there", word.backend());
    };
    let FlowTuple { client, client_port, vip_port, snat_port, snat_index, .. } = *tuple;
    let (wire, name) = match listener.listen.protocol {
        Protocol::Tcp => (6, "tcp"),
        Protocol::Udp => (17, "udp"),
        Protocol::Any => (255, "any"),
    };
    let end = |address: IpAddr, port: u16| match wire {
        255 => address.to_string(),
        _ => SocketAddr::new(address, port).to_string(),
    };
    let mut ends = Ends {
        client: address_from(client),
        vip: listener.listen.address,
        client_port: client_port.get(),
        vip_port: vip_port.get(),
        protocol: wire,
    };
    let mut text = format!(
        "{name} {} > {} {} {}",
        end(ends.client, ends.client_port),
        end(ends.vip, ends.vip_port),
        backend.name,
        state_name(word.state())
    );
    if word.moves() > 0 {
        text += &format!(" moved={}", word.moves());
    }
    if snat_port.get() != 0 {
        let address = u8::try_from(snat_index).ok().and_then(|index| image.snat_addresses.get(&index));
        let Some(address) = address else {
            return format!("{text} via address {snat_index} that is not there");
        };
        text += &format!(" via {}", end(*address, snat_port.get()));
        (ends.client, ends.client_port) = if word.state() == FlowState::Reverse {
            (*address, snat_port.get())
        } else {
            (ends.client, ends.client_port)
        };
    }
    if word.state() == FlowState::Reverse {
        ends.vip = backend.server.address;
        ends.vip_port = if backend.server.port == 0 { ends.vip_port } else { backend.server.port };
    }
    let hash = flow_hash(&ends);
    if hash.fingerprint() != word.fingerprint() || hash.line(lines) as usize != index / 8 {
        text += " in a wrong place";
    }
    let partner = all.iter().find(|(at, ..)| Some(*at) == (tuple.partner as usize).checked_sub(1));
    let paired = partner.is_some_and(|(_, other, back)| {
        let other = FlowWord(*other);
        let ways = [word, other].iter().filter(|w| w.state() == FlowState::Reverse).count();
        ways == 1 && back.partner as usize == index + 1 && other.backend() == word.backend()
    });
    let wants = backend.reverse && word.state() != FlowState::Direct;
    match (wants, paired, tuple.partner) {
        (true, true, _) | (false, _, 0) => {}
        (true, false, _) => text += " without a partner",
        (false, ..) => text += " with a partner",
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
