//! What the program would do with a packet, in the names of the configuration.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::abi::flow::{FlowState, FlowTuple, FlowWord};
use lb_common::abi::net::{Be16, mapped};
use lb_common::abi::{Mode, Port, Tag};
use lb_common::env::{Reach, Step};
use lb_common::packet::eth::{EtherType, Macs};
use lb_common::verdict::{Action, Reason};
use log::debug;
use tokio::sync::mpsc;

use super::request::{Refusal, Reply};
use super::task::Control;
use crate::api::explain::{
    Carries, Choice, ExplainedBackend, ExplainedFlow, ExplainedHop, ExplainedListener, ExplainedPacket,
    Explanation, Mac, Question, Reached, flag_names, protocol_name,
};
use crate::config::Forward;
use crate::dataplane::flows::Clock;
use crate::dataplane::image::{Id, Image, address_bytes};
use crate::dataplane::kernel::explain::{Explainer, Outcome};
use crate::dataplane::snapshot::Readable as _;
use crate::net::packet;

/// What explains is kept for so long after the last question.
const KEPT: Duration = Duration::from_secs(60);

/// What explains: loaded at the first question, which takes a second, and given up when nobody asks any more.
#[derive(Debug)]
pub struct Explaining {
    explainer: Option<(Explainer, Instant)>,
    /// Those who asked while it is being loaded. Empty while it is not.
    waiting: Vec<Waiting>,
    loaded_to: mpsc::Sender<anyhow::Result<Explainer>>,
    loaded: mpsc::Receiver<anyhow::Result<Explainer>>,
}

#[derive(Debug)]
struct Waiting {
    question: Question,
    towards: Option<u32>,
    reply: Reply<Result<Explanation, Refusal>>,
}

impl Default for Explaining {
    fn default() -> Self {
        let (loaded_to, loaded) = mpsc::channel(1);
        Self { explainer: None, waiting: Vec::new(), loaded_to, loaded }
    }
}

impl Explaining {
    /// What was asked for, once it is loaded.
    pub async fn loaded(&mut self) -> Option<anyhow::Result<Explainer>> {
        self.loaded.recv().await
    }

    /// Gives up what nobody has asked for a while.
    pub fn rest(&mut self) {
        if self.explainer.as_ref().is_some_and(|(_, asked)| asked.elapsed() > KEPT) {
            debug!("nobody asks for explanations any more");
            self.explainer = None;
        }
    }
}

impl Control {
    /// Answers when there is what explains.
    pub(super) fn explain(
        &mut self,
        question: Question,
        towards: Option<u32>,
        reply: Reply<Result<Explanation, Refusal>>,
    ) {
        let waiting = Waiting { question, towards, reply };
        if let Some((explainer, _)) = self.explaining.explainer.take() {
            self.explain_with(explainer, [waiting]);
            return;
        }
        let first = self.explaining.waiting.is_empty();
        if first {
            let recipe = match self.dataplane.maps().explainer(&self.pins) {
                Ok(recipe) => recipe,
                Err(error) => {
                    let _ = waiting.reply.send(Err(Refusal::Failed(format!("{error:#}"))));
                    return;
                }
            };
            let to = self.explaining.loaded_to.clone();
            tokio::task::spawn_blocking(move || {
                // Nobody to tell when the daemon ends.
                let _ = to.blocking_send(Explainer::load(recipe));
            });
        }
        self.explaining.waiting.push(waiting);
    }

    pub(super) fn explainer_loaded(&mut self, loaded: anyhow::Result<Explainer>) {
        let waiting = std::mem::take(&mut self.explaining.waiting);
        match loaded {
            Ok(explainer) => self.explain_with(explainer, waiting),
            Err(error) => {
                for Waiting { reply, .. } in waiting {
                    let _ = reply.send(Err(Refusal::Failed(format!("{error:#}"))));
                }
            }
        }
    }

    fn explain_with(&mut self, mut explainer: Explainer, waiting: impl IntoIterator<Item = Waiting>) {
        for Waiting { question, towards, reply } in waiting {
            let _ = reply.send(self.explanation(&mut explainer, &question, towards));
        }
        self.explaining.explainer = Some((explainer, Instant::now()));
    }

    fn explanation(
        &mut self,
        explainer: &mut Explainer,
        question: &Question,
        towards: Option<u32>,
    ) -> Result<Explanation, Refusal> {
        let failed = |error: anyhow::Error| Refusal::Failed(format!("{error:#}"));
        let door = self.door(question, towards)?;
        let frame = packet::frame(question, &door.tags)
            .map_err(|error| Refusal::Invalid(format!("no such packet can be built: {error}")))?;
        let clock = self.clock().map_err(failed)?;
        let outcome = explainer.explain(self.dataplane.maps(), &frame, door.device).map_err(failed)?;
        Ok(self.put_together(question, &door, &outcome, clock))
    }

    /// Where the packet comes in.
    fn door(&self, question: &Question, towards: Option<u32>) -> Result<Door, Refusal> {
        let carriers: Vec<u32> = self.attached.iter().map(|attached| attached.index).collect();
        let ports = self.interfaces.borrow().table(&carriers).ports;
        let of = |index: u32| {
            // The interfaces themselves are known in any case.
            let bare = || {
                carriers.contains(&index).then(|| Port { ifindex: index, device: index, ..Port::default() })
            };
            ports.iter().find(|port| port.ifindex == index).copied().or_else(bare)
        };
        let given = match &question.interface {
            Some(name) => {
                let found = nix::net::if_::if_nametoindex(name.as_str()).ok().and_then(of);
                let port = found.ok_or_else(|| {
                    let names: Vec<_> = self.attached.iter().map(|a| a.name.as_str()).collect();
                    Refusal::NotFound(format!("the program is not on {name}; it is on {}", names.join(", ")))
                })?;
                Some(port)
            }
            None => towards.and_then(of),
        };
        let Some(port) = given.or_else(|| carriers.first().copied().and_then(of)) else {
            return Err(Refusal::Failed("the program is on no interface".to_owned()));
        };
        let mut tags: Vec<Tag> = port.tags.iter().take(port.tag_count as usize).copied().collect();
        let own = |number: &u16| Tag { ether_type: EtherType::VLAN.0, control: Be16::new(*number) };
        tags.extend(question.vlans.iter().map(own));
        if tags.len() > 2 {
            return Err(Refusal::Invalid(
                "the program looks at no packet with more than two VLAN tags".to_owned(),
            ));
        }
        Ok(Door { device: port.device, tags })
    }

    fn put_together(&self, question: &Question, door: &Door, outcome: &Outcome, clock: Clock) -> Explanation {
        let image = self.dataplane.image();
        let mut explanation = Explanation {
            packet: packet_of(question, door),
            listener: None,
            from_backend: false,
            flow: None,
            choice: None,
            backend: None,
            mode: None,
            stands_for_client: None,
            next_hop: None,
            action: outcome.action.name().to_owned(),
            reason: outcome.reason.name().to_owned(),
            verdict: outcome.reason.kind().name().to_owned(),
            meaning: outcome.reason.help().to_owned(),
        };
        let mut place = None;
        let mut listener = None;
        for &(step, first, second) in &outcome.steps {
            match step {
                Step::Listener => {
                    listener = Some(first);
                    explanation.listener = listener_of(image, first);
                }
                Step::FromBackend | Step::Reverse => {
                    explanation.from_backend = true;
                    explanation.backend = backend_of(image, first);
                    if let Some(entry) = image.backends.get(&first) {
                        listener = Some(entry.server.listener);
                        explanation.mode = Some(entry.forward.to_string());
                    }
                    if step == Step::Reverse {
                        place = second.checked_sub(1);
                    }
                }
                Step::Flow => {
                    let word = match place {
                        Some(place) => self.dataplane.maps().flows().at(place as usize),
                        None => listener.and_then(|id| self.word_of(question, explanation.from_backend, id)),
                    };
                    explanation.flow = Some(known_flow(image, first, second, word, clock));
                    if explanation.backend.is_none() {
                        explanation.backend = backend_of(image, first);
                    }
                }
                Step::NoFlow => {
                    explanation.flow =
                        Some(ExplainedFlow { known: false, state: None, idle_seconds: None, backend: None });
                }
                Step::Picked => {
                    let slots = listener.map_or(0, |id| self.dataplane.maps().table_ref(id).size());
                    explanation.choice = Some(Choice::Scheduler { slot: first, slots });
                    explanation.backend = backend_of(image, second);
                }
                Step::Stuck => {
                    explanation.choice = Some(Choice::Sticky);
                    explanation.backend = backend_of(image, first);
                }
                Step::Moved if first != second => {
                    explanation.choice = Some(Choice::SecondChance { silent: name_of(image, first) });
                    explanation.backend = backend_of(image, second);
                }
                Step::Fragment => {
                    explanation.choice = Some(Choice::Fragment);
                    explanation.from_backend = second != 0;
                    explanation.backend = backend_of(image, first);
                }
                Step::Mode => {
                    explanation.mode = u8::try_from(first).ok().and_then(mode_name);
                    explanation.backend = backend_of(image, second);
                }
                Step::Snat => {
                    let address =
                        u8::try_from(second).ok().and_then(|index| image.snat_addresses.get(&index));
                    explanation.stands_for_client =
                        address.zip(u16::try_from(first).ok()).map(|(ip, port)| SocketAddr::new(*ip, port));
                }
                Step::Routed => explanation.next_hop = next_hop(first, second, outcome),
                Step::Full if second != 0 => {
                    explanation.choice = Some(Choice::Room { full: name_of(image, first) });
                    explanation.backend = backend_of(image, second);
                }
                Step::Moved | Step::IcmpError | Step::Tags | Step::Full | Step::Done => {}
            }
        }
        // The first stage sends known flows of `nat` without a word about it.
        if explanation.mode.is_none()
            && matches!(outcome.reason, Reason::ToBackend | Reason::ToBackendByKernel)
        {
            explanation.mode = Some(Forward::Nat.to_string());
        }
        explanation
    }

    /// What the flow table has of the packet's flow.
    fn word_of(&self, question: &Question, from_backend: bool, listener: Id) -> Option<FlowWord> {
        let image = self.dataplane.image();
        let listen = image.listeners.get(&listener)?.listen;
        let (source_port, destination_port) = question.ports();
        let (client, client_port, vip_port) = if from_backend {
            // A range keeps its ports.
            let vip_port = if listen.is_range() { source_port } else { listen.port };
            (question.destination, destination_port, vip_port)
        } else {
            (question.source, source_port, destination_port)
        };
        let client = match client {
            IpAddr::V4(v4) => mapped(v4.octets()),
            IpAddr::V6(_) => address_bytes(client),
        };
        let tuple = FlowTuple {
            client,
            client_port: Be16::new(client_port),
            vip_port: Be16::new(vip_port),
            listener,
            ..FlowTuple::default()
        };
        self.dataplane.maps().flows().find(&tuple, image, &self.dataplane.maps().hash_key())
    }
}

/// Where the packet comes in: the interface that has the program, and the tags it has there.
#[derive(Debug)]
struct Door {
    device: u32,
    tags: Vec<Tag>,
}

fn packet_of(question: &Question, door: &Door) -> ExplainedPacket {
    let (source_port, destination_port, flags) = match question.carries {
        Carries::Tcp { source, destination, flags } => (Some(source), Some(destination), flag_names(flags)),
        Carries::Udp { source, destination } => (Some(source), Some(destination), Vec::new()),
        Carries::Ping | Carries::Other(_) => (None, None, Vec::new()),
    };
    ExplainedPacket {
        source: question.source,
        destination: question.destination,
        source_port,
        destination_port,
        protocol: protocol_name(question.protocol()),
        flags,
        interface: interface_name(door.device),
        vlans: door.tags.iter().map(|tag| tag.control.get()).collect(),
    }
}

fn listener_of(image: &Image, id: Id) -> Option<ExplainedListener> {
    let entry = image.listeners.get(&id)?;
    Some(ExplainedListener {
        service: entry.service.clone(),
        listen: entry.listen.to_string(),
        scheduler: entry.scheduler.to_string(),
    })
}

fn backend_of(image: &Image, id: Id) -> Option<ExplainedBackend> {
    let entry = image.backends.get(&id)?;
    Some(ExplainedBackend {
        service: image.listeners.get(&entry.server.listener)?.service.clone(),
        name: entry.name.clone(),
        address: entry.server.address,
        port: (entry.server.port != 0).then_some(entry.server.port),
        health: entry.health,
        admin: entry.admin,
        suspect: entry.suspect,
    })
}

/// `SERVICE/BACKEND`
fn name_of(image: &Image, id: Id) -> String {
    backend_of(image, id)
        .map_or_else(|| "a backend that is gone".to_owned(), |b| format!("{}/{}", b.service, b.name))
}

fn known_flow(image: &Image, id: Id, state: u32, word: Option<FlowWord>, clock: Clock) -> ExplainedFlow {
    let state = u8::try_from(state).map_or(FlowState::Free, FlowState::from_bits);
    ExplainedFlow {
        known: true,
        state: Some(state.name().to_owned()),
        // A packet may have come a moment after the clock was read.
        idle_seconds: word.map(|word| {
            let ticks = clock.now.wrapping_sub(word.time()).cast_signed().max(0);
            (f64::from(ticks) * clock.seconds_per_tick) as u64
        }),
        backend: Some(name_of(image, id)),
    }
}

fn mode_name(mode: u8) -> Option<String> {
    Forward::from_mode(Mode(mode)).map(|forward| forward.to_string())
}

fn next_hop(reach: u32, ifindex: u32, outcome: &Outcome) -> Option<ExplainedHop> {
    let reach = Reach::from_number(reach)?;
    let reached = match reach {
        Reach::Known => Reached::Known,
        Reach::NeighbourUnknown => Reached::NeighbourUnknown,
        Reach::Elsewhere => Reached::Elsewhere,
        Reach::TooBig => Reached::TooBig,
        Reach::NotForwarded => Reached::NotForwarded,
        Reach::Refused => Reached::Refused,
        Reach::ForwardingDisabled => Reached::ForwardingDisabled,
        // A daemon is alive that asks.
        Reach::Unsupported | Reach::Abandoned => Reached::Unsupported,
    };
    let known = reach == Reach::Known;
    let sent = known
        && matches!(outcome.action, Action::Transmit | Action::Redirect)
        && matches!(
            outcome.reason,
            Reason::ToBackend | Reason::ToClient | Reason::ErrorToBackend | Reason::ErrorToClient
        );
    let macs = outcome.frame.get(..size_of::<Macs>()).map(bytemuck::pod_read_unaligned::<Macs>);
    Some(ExplainedHop {
        reach: reached,
        interface: (known || reach == Reach::Elsewhere).then(|| interface_name(ifindex)),
        mac: macs.filter(|_| sent).map(|macs| Mac(macs.destination).to_string()),
    })
}

/// The interface's name, or its number when it is gone.
pub(super) fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .map_or_else(|_| index.to_string(), |name| name.to_string_lossy().into_owned())
}
