//! What is known of the servers, and what is wanted of them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::api::types::AdminState;
use crate::config::{Backend, Config, Listen, Service};
use crate::dataplane::desired::Verdicts;
use crate::dataplane::image::Image;
use crate::health::{Health, Report, Target};

/// What the checks of one target have found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub health: Health,
    pub checks: u64,
    pub checks_up: u64,
    pub last_error: Option<String>,
    pub last_latency: Option<Duration>,
}

/// A backend of a service, by their names.
pub type Name = (String, String);

/// Health of each target, and the state an operator gave a backend.
#[derive(Clone, Debug, Default)]
pub struct State {
    checked: BTreeMap<Target, Checked>,
    admin: BTreeMap<Name, AdminState>,
}

impl State {
    /// What an earlier daemon left in the maps: operators' wishes, and the last known health of the servers of
    /// `config`.
    pub fn restore(config: &Config, image: &Image) -> Self {
        let mut state = Self::default();
        for backend in image.backends.values() {
            if let Some(listener) = image.listeners.get(&backend.server.listener)
                && backend.admin != AdminState::Enabled
            {
                state.admin.insert((listener.service.clone(), backend.name.clone()), backend.admin);
            }
        }
        for (target, listen, backend) in targets_with_use(config) {
            let port = backend.port.unwrap_or(listen.port);
            let known = image.listener_at(listen).and_then(|id| {
                image
                    .backends_of(id)
                    .find(|(_, b)| (b.server.address, b.server.port) == (backend.address, port))
            });
            if let Some((_, known)) = known {
                state.checked.entry(target).or_default().health = known.health;
            }
        }
        state
    }

    /// Forgets the servers and backends that `config` no longer has.
    pub fn retain(&mut self, config: &Config) {
        let mut targets: Vec<Target> = targets_with_use(config).map(|(target, ..)| target).collect();
        targets.sort();
        self.checked.retain(|target, _| targets.binary_search(target).is_ok());
        self.admin.retain(|(service, backend), _| {
            config.services.iter().any(|s| {
                s.name == *service && config.pools[s.pool].backends.iter().any(|b| b.name == *backend)
            })
        });
    }

    /// What is to be checked, with the health that is known so far. Backends that are disabled are not checked.
    pub fn targets(&self, config: &Config) -> Vec<(Target, Health)> {
        let mut targets: Vec<_> = config
            .services
            .iter()
            .flat_map(|service| {
                uses(config, service)
                    .filter(|(_, _, backend)| self.admin(service, backend) != AdminState::Disabled)
                    .map(|(target, ..)| target)
            })
            .collect();
        targets.sort();
        targets.dedup();
        targets
            .into_iter()
            .map(|target| {
                let health = self.checked.get(&target).map_or(Health::Unknown, |c| c.health);
                (target, health)
            })
            .collect()
    }

    /// Takes in a check's result. True when it changes the target's health.
    pub fn report(&mut self, report: &Report) -> bool {
        let checked = self.checked.entry(report.target.clone()).or_default();
        let changed = checked.health != report.health;
        checked.health = report.health;
        checked.last_latency = Some(report.latency);
        checked.checks += 1;
        match &report.result {
            Ok(()) => {
                checked.checks_up += 1;
                checked.last_error = None;
            }
            Err(error) => checked.last_error = Some(error.to_string()),
        }
        changed
    }

    /// What the checks say of a backend behind a listener; `None` without a check.
    pub fn checked(
        &self,
        config: &Config,
        service: &Service,
        listen: &Listen,
        backend: &Backend,
    ) -> Option<&Checked> {
        self.checked.get(&target(config, service, listen, backend)?)
    }

    /// Sets what an operator wants of a backend. True when it is something new.
    pub fn set_admin(&mut self, name: Name, state: AdminState) -> bool {
        let old = match state {
            AdminState::Enabled => self.admin.remove(&name),
            other => self.admin.insert(name, other),
        };
        old.unwrap_or_default() != state
    }
}

impl Verdicts for State {
    fn health(&self, config: &Config, service: &Service, listen: &Listen, backend: &Backend) -> Health {
        match target(config, service, listen, backend) {
            Some(target) => self.checked.get(&target).map_or(Health::Unknown, |c| c.health),
            None => Health::Up,
        }
    }

    fn admin(&self, service: &Service, backend: &Backend) -> AdminState {
        self.admin.get(&(service.name.clone(), backend.name.clone())).copied().unwrap_or_default()
    }
}

/// The target that tells the health of a backend behind a listener; `None` without a check.
pub fn target(config: &Config, service: &Service, listen: &Listen, backend: &Backend) -> Option<Target> {
    let check = config.pools[service.pool].check.as_ref()?;
    Some(Target::new(backend.address, backend.port.unwrap_or(listen.port), check))
}

/// Every target of a service with the listener and backend it is for.
pub fn uses<'c>(
    config: &'c Config,
    service: &'c Service,
) -> impl Iterator<Item = (Target, &'c Listen, &'c Backend)> {
    service.listen.iter().flat_map(move |listen| {
        config.pools[service.pool]
            .backends
            .iter()
            .filter(|b| b.address.is_ipv4() == listen.address.is_ipv4())
            .filter_map(move |backend| Some((target(config, service, listen, backend)?, listen, backend)))
    })
}

fn targets_with_use(config: &Config) -> impl Iterator<Item = (Target, &Listen, &Backend)> {
    config.services.iter().flat_map(|service| uses(config, service))
}

#[cfg(test)]
mod tests;
