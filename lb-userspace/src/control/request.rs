//! What the API asks of the control task.

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::api::carp::{CarpChange, CarpStatus};
use crate::api::explain::{Explanation, Question};
use crate::api::pools::{ServiceChange, WeightChange};
use crate::api::sync::SyncStatus;
use crate::api::trace::Filter;
use crate::api::types::{
    AdminState, BackendChange, Checks, Counters, Event, Flows, ReloadOutcome, ReloadPlan, Status,
};
use crate::carp::fsm::Wish;
use crate::control::tracing::Trace;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such thing; the text names the ones that exist.
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense as it stands.
    #[error("{0}")]
    Invalid(String),
    /// The configuration file has errors; nothing was changed. One `file:line:column: text` each.
    #[error("the configuration was refused and nothing was changed")]
    Configuration(Vec<String>),
    /// The kernel or the system said no.
    #[error("{0}")]
    Failed(String),
}

pub(super) type Reply<T> = oneshot::Sender<T>;

/// A question or command for the control task, with the place for its answer.
#[derive(Debug)]
pub enum Request {
    Status(Reply<Status>),
    /// What keeps it from forwarding as configured, one sentence each; nothing when all is well.
    Readiness(Reply<Vec<String>>),
    Flows {
        limit: usize,
        service: Option<String>,
        reply: Reply<Result<Flows, Refusal>>,
    },
    /// The latest results of each backend's checks.
    Checks {
        service: Option<String>,
        reply: Reply<Result<Checks, Refusal>>,
    },
    Counters(Reply<Counters>),
    /// What the program would do with a packet. `towards`: the interface by which the kernel sends to its source.
    Explain {
        question: Question,
        towards: Option<u32>,
        reply: Reply<Result<Explanation, Refusal>>,
    },
    /// What the program decides for packets, as they come; at most so many a second are told of.
    Trace {
        filter: Filter,
        rate: u32,
        reply: Reply<Result<Trace, Refusal>>,
    },
    SetAdmin {
        backend: String,
        service: Option<String>,
        state: AdminState,
        reply: Reply<Result<BackendChange, Refusal>>,
    },
    /// `None`: the weight in the file.
    SetWeight {
        backend: String,
        service: Option<String>,
        weight: Option<u16>,
        reply: Reply<Result<WeightChange, Refusal>>,
    },
    SetService {
        service: String,
        enabled: bool,
        reply: Reply<Result<ServiceChange, Refusal>>,
    },
    Carp(Reply<CarpStatus>),
    Sync(Reply<SyncStatus>),
    /// Of the vhid of this name, or of all.
    SetCarp {
        name: Option<String>,
        wish: Wish,
        reply: Reply<Result<CarpChange, Refusal>>,
    },
    Reload(Reply<Result<ReloadOutcome, Refusal>>),
    /// What a reload would do.
    PlanReload(Reply<Result<ReloadPlan, Refusal>>),
    /// Run all checks now; answered when each has a result.
    Poll(Reply<()>),
}

/// The control task as others see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<Event>,
}

impl ControlHandle {
    pub fn new(requests: mpsc::Sender<Request>, events: broadcast::Sender<Event>) -> Self {
        Self { requests, events }
    }

    /// Sends what `make` builds around a reply channel and waits for the answer.
    ///
    /// # Errors
    /// When the control task has ended.
    pub async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        let gone = || Refusal::Failed("the daemon is shutting down".to_owned());
        let (reply, answer) = oneshot::channel();
        self.requests.send(make(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Events from now on. A reader that falls behind misses the oldest.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}
