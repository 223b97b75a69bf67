//! Services and servers by what they are called on the wire.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use lb_common::abi::FlowTuple;
use lb_common::abi::flow::{FlowState, FlowWord};
use lb_common::abi::net::Be16;
use lb_common::hash::HashKey;

use super::wire::Flow;
use crate::config::{Flows, Forward, Listen};
use crate::dataplane::image::{Id, Image, address_bytes, address_from};

/// What the other gateway knows of a flow's last packet is never older than this, or a quarter of the time after which
/// the flow is forgotten, if that is longer.
const LEAST_REFRESH: Duration = Duration::from_secs(8);

#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub listener: Id,
    pub address: IpAddr,
    /// 0: the port that the client used.
    pub port: u16,
    /// Its flows have an entry for their way back.
    pub reverse: bool,
}

#[derive(Clone, Copy, Debug)]
struct Service {
    listen: Listen,
    snat: bool,
    session_timeout: u32,
}

/// A picture of the maps, made anew when they change.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    key: HashKey,
    services: HashMap<Id, Service>,
    servers: HashMap<Id, Server>,
    /// By address and protocol.
    by_vip: HashMap<(IpAddr, u8), Vec<Id>>,
    by_server: HashMap<(Id, IpAddr, u16), Id>,
    snat: BTreeMap<u8, IpAddr>,
    timeouts: Flows,
}

/// Why a flow of the other gateway cannot be one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unknown {
    Service,
    Backend,
    SnatAddress,
}

/// What a flow of the other gateway is here.
#[derive(Clone, Copy, Debug)]
pub struct Resolved {
    pub tuple: FlowTuple,
    pub backend: Id,
    pub listen: Listen,
    pub server: Server,
    /// What the server sees in the client's place, with `snat`.
    pub local: Option<IpAddr>,
}

impl Directory {
    pub fn new(image: &Image, key: HashKey, timeouts: &Flows) -> Self {
        let mut directory =
            Self { key, timeouts: timeouts.clone(), snat: image.snat_addresses.clone(), ..Self::default() };
        for (&id, listener) in &image.listeners {
            let (listen, snat) = (listener.listen, listener.forward == Forward::Snat);
            let service = Service { listen, snat, session_timeout: listener.session_timeout };
            directory.services.insert(id, service);
            let vip = (listen.address, listen.protocol.wire().number());
            directory.by_vip.entry(vip).or_default().push(id);
        }
        for (&id, backend) in &image.backends {
            let crate::dataplane::image::Server { listener, address, port } = backend.server;
            let reverse = backend.reverse || backend.forward == Forward::Snat;
            directory.servers.insert(id, Server { listener, address, port, reverse });
            directory.by_server.insert((listener, address, port), id);
        }
        directory
    }

    /// Without what is about to be removed.
    #[must_use]
    pub fn without(mut self, gone: &dyn Fn(Id) -> bool) -> Self {
        self.servers.retain(|id, _| !gone(*id));
        self.by_server.retain(|_, id| !gone(*id));
        self
    }

    pub const fn key(&self) -> &HashKey {
        &self.key
    }

    pub fn listen(&self, listener: Id) -> Option<&Listen> {
        self.services.get(&listener).map(|service| &service.listen)
    }

    /// How old the other gateway's knowledge of this flow's last packet may become.
    pub fn refresh(&self, word: FlowWord) -> Duration {
        let timeout = match word.state() {
            FlowState::Established => {
                let server = self.servers.get(&word.backend());
                let service = server.and_then(|server| self.services.get(&server.listener));
                Duration::from_secs(service.map_or(0, |service| service.session_timeout).into())
            }
            FlowState::ClientClosed | FlowState::BackendClosed => self.timeouts.closing,
            FlowState::Closed => self.timeouts.closed,
            FlowState::Datagram => self.timeouts.datagram,
            FlowState::Direct => Duration::from_secs(3600),
            FlowState::Opening | FlowState::Answered => self.timeouts.opening,
            FlowState::Free | FlowState::Reverse => Duration::MAX,
        };
        (timeout / 4).max(LEAST_REFRESH)
    }

    /// A flow of ours as the other gateway understands it. `None` while it is not whole: its tuple is being written.
    pub fn describe(&self, word: FlowWord, tuple: &FlowTuple, age: u16, decided: bool) -> Option<Flow> {
        let service = self.services.get(&tuple.listener)?;
        let server = self.servers.get(&word.backend())?;
        let listen = &service.listen;
        if server.listener != tuple.listener {
            return None;
        }
        let needs_snat = service.snat && word.state() != FlowState::Direct;
        let snat = match tuple.snat_port.get() {
            0 if needs_snat => return None,
            port if needs_snat => {
                let address = self.snat.get(&u8::try_from(tuple.snat_index).ok()?)?;
                Some((*address, port))
            }
            _ => None,
        };
        Some(Flow {
            client: address_from(tuple.client),
            client_port: tuple.client_port.get(),
            vip: listen.address,
            vip_port: tuple.vip_port.get(),
            protocol: listen.protocol.wire().number(),
            server: server.address,
            server_port: server.port,
            snat,
            state: word.state(),
            moves: u8::try_from(word.moves()).unwrap_or(7),
            age,
            decided,
        })
    }

    /// What a flow of the other gateway is here.
    ///
    /// # Errors
    /// When something of it is not configured here.
    pub fn resolve(&self, flow: &Flow) -> Result<Resolved, Unknown> {
        let candidates = self.by_vip.get(&(flow.vip, flow.protocol)).ok_or(Unknown::Service)?;
        let listens_here = |id: &&Id| {
            let listen = self.listen(**id);
            listen.is_some_and(|listen| (listen.port..=listen.last_port).contains(&flow.vip_port))
        };
        // While a service changes its mode there are two with one address: the server tells which is meant.
        let mut listeners = candidates.iter().filter(listens_here).peekable();
        if listeners.peek().is_none() || flow.client.is_ipv4() != flow.vip.is_ipv4() {
            return Err(Unknown::Service);
        }
        let found = listeners.find_map(|id| {
            self.by_server.get(&(*id, flow.server, flow.server_port)).map(|backend| (*id, *backend))
        });
        let (listener, backend) = found.ok_or(Unknown::Backend)?;
        let (Some(service), Some(server)) = (self.services.get(&listener), self.servers.get(&backend)) else {
            return Err(Unknown::Backend);
        };
        let mut tuple = FlowTuple {
            client: address_bytes(flow.client),
            client_port: Be16::new(flow.client_port),
            vip_port: Be16::new(flow.vip_port),
            listener,
            ..FlowTuple::default()
        };
        let mut local = None;
        if service.snat && flow.state != FlowState::Direct {
            let (address, port) = flow.snat.ok_or(Unknown::SnatAddress)?;
            let index = self.snat.iter().find(|(_, known)| **known == address).map(|(index, _)| *index);
            tuple.snat_index = index.ok_or(Unknown::SnatAddress)?.into();
            tuple.snat_port = Be16::new(port);
            local = Some(address);
        }
        Ok(Resolved { tuple, backend, listen: service.listen, server: *server, local })
    }
}
