//! What the API asks, answered.

use std::collections::BTreeMap;

use log::warn;

use super::request::{Refusal, Request};
use super::status::{self, Sources};
use super::task::Control;
use crate::api::types::{Checks, CounterValue, Counters, Flows};
use crate::carp;
use crate::dataplane::snapshot::Readable as _;
use crate::net::held::Counts;

impl Control {
    pub(super) fn answer(&mut self, request: Request) {
        // Nobody to answer is no error: the client has gone.
        match request {
            Request::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Request::Readiness(reply) => {
                let _ = reply.send(self.unready());
            }
            Request::Flows { limit, service, reply } => {
                let _ = reply.send(self.flows(limit, service.as_deref()));
            }
            Request::Checks { service, reply } => {
                let _ = reply.send(self.checks(service.as_deref()));
            }
            Request::Counters(reply) => {
                let _ = reply.send(self.counters());
            }
            Request::Explain { question, towards, reply } => self.explain(question, towards, reply),
            Request::Trace { filter, rate, reply } => self.trace(filter, rate, reply),
            Request::SetAdmin { backend, service, state, reply } => {
                let _ = reply.send(self.set_admin(&backend, service.as_deref(), state));
            }
            Request::SetWeight { backend, service, weight, reply } => {
                let _ = reply.send(self.set_weight(&backend, service.as_deref(), weight));
            }
            Request::SetService { service, enabled, reply } => {
                let _ = reply.send(self.set_service(&service, enabled));
            }
            Request::Carp(reply) => self.carp.send(carp::task::Command::Status(reply)),
            Request::Sync(reply) => self.answer_sync(reply),
            Request::SetCarp { name, wish, reply } => {
                self.carp.send(carp::task::Command::Wish { name, wish, reply });
            }
            Request::Reload(reply) => {
                let _ = reply.send(self.reload());
            }
            Request::PlanReload(reply) => {
                let _ = reply.send(self.plan_reload());
            }
            Request::Poll(reply) => self.runner.poll(reply),
        }
    }

    pub(super) fn status(&self) -> crate::api::types::Status {
        status::status(&Sources {
            config: &self.config,
            config_file: &self.config_file.display().to_string(),
            state: &self.state,
            hosts: &self.hosts.answers,
            dataplane: &self.dataplane,
            attached: &self.attached,
            started: self.started,
        })
    }

    /// What keeps it from forwarding as configured.
    fn unready(&self) -> Vec<String> {
        let behind = self.behind.then(|| {
            "the kernel's maps are not up to date: a step failed, and is tried again every second".to_owned()
        });
        let bare = |name: &&String| !self.attached.iter().any(|attached| attached.name == **name);
        let missing = self.config.interfaces.iter().filter(bare);
        behind.into_iter().chain(missing.map(|name| format!("{name} does not carry the program"))).collect()
    }

    pub(super) fn flows(&mut self, limit: usize, service: Option<&str>) -> Result<Flows, Refusal> {
        if let Some(name) = service
            && !self.config.services.iter().any(|s| s.name == name)
        {
            return Err(Refusal::NotFound(status::no_such_backend(&self.config, "", service)));
        }
        if limit == 0 && service.is_none() {
            let capacity = self.dataplane.maps().flows().capacity();
            return Ok(Flows { total: self.swept.occupied, capacity, flows: Vec::new() });
        }
        let clock = self.clock().map_err(|error| Refusal::Failed(format!("{error:#}")))?;
        Ok(status::flows(&self.dataplane, clock, limit, service))
    }

    fn checks(&self, service: Option<&str>) -> Result<Checks, Refusal> {
        if let Some(name) = service
            && !self.config.services.iter().any(|s| s.name == name)
        {
            return Err(Refusal::NotFound(status::no_such_backend(&self.config, "", service)));
        }
        Ok(status::checks(&self.config, &self.state, service))
    }

    pub(super) fn counters(&self) -> Counters {
        let values = self.dataplane.maps().counters().unwrap_or_else(|error| {
            warn!("{error:#}");
            BTreeMap::new()
        });
        let mut counters: BTreeMap<_, _> = values
            .into_iter()
            .map(|(reason, value)| {
                let verdict = reason.kind().name().to_owned();
                (reason.name().to_owned(), CounterValue { value, verdict, help: reason.help().to_owned() })
            })
            .collect();
        let Counts { followed, expired, displaced } = self.held.counts();
        for (name, value, verdict, help) in [
            ("held_followed", followed, "note", "Held fragment taken after its first one had come."),
            ("held_expired", expired, "drop", "Held fragment whose first one did not come within a second."),
            ("held_displaced", displaced, "drop", "Held fragment that newer ones needed the room of."),
        ] {
            let (verdict, help) = (verdict.to_owned(), help.to_owned());
            counters.insert(name.to_owned(), CounterValue { value, verdict, help });
        }
        Counters { counters }
    }
}
