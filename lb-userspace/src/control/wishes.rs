//! What an operator wants of backends and services, against what the file says. Pure.

use std::collections::BTreeMap;

use crate::api::types::AdminState;
use crate::config::{Backend, Config, Service};
use crate::dataplane::image::ByHand;

/// Only what differs from the file: what an operator sets to what the file says is given back to the file, and follows
/// it from then on.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    admin: ByBackend<AdminState>,
    weights: ByBackend<u16>,
    /// Whether services are enabled.
    services: BTreeMap<String, bool>,
}

const fn by_file(backend: &Backend) -> AdminState {
    if backend.enabled { AdminState::Enabled } else { AdminState::Disabled }
}

/// By service and backend. Looked up for each backend in each verdict, without making a key for it.
#[derive(Clone, Debug)]
struct ByBackend<T>(BTreeMap<String, BTreeMap<String, T>>);

impl<T> Default for ByBackend<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Copy> ByBackend<T> {
    fn get(&self, service: &Service, backend: &Backend) -> Option<T> {
        self.0.get(&service.name)?.get(&backend.name).copied()
    }

    /// `None`: nothing any more.
    fn set(&mut self, service: &Service, backend: &Backend, value: Option<T>) {
        match value {
            Some(value) => {
                self.0.entry(service.name.clone()).or_default().insert(backend.name.clone(), value);
            }
            None => {
                self.0.get_mut(&service.name).and_then(|backends| backends.remove(&backend.name));
            }
        }
    }

    fn retain(&mut self, config: &Config, wanted: impl Fn(&Backend, T) -> bool) {
        self.0.retain(|name, backends| {
            let service = config.services.iter().find(|service| service.name == *name);
            let backend = |name: &str| config.backend(service?, name);
            backends.retain(|name, value| backend(name).is_some_and(|backend| wanted(backend, *value)));
            !backends.is_empty()
        });
    }
}

impl Wishes {
    /// What holds for a backend.
    pub fn admin(&self, service: &Service, backend: &Backend) -> AdminState {
        match self.admin.get(service, backend).unwrap_or_else(|| by_file(backend)) {
            // Its host has this address no longer.
            AdminState::Enabled if backend.leaving => AdminState::Draining,
            state => state,
        }
    }

    /// The full share of new flows that a backend gets.
    pub fn weight(&self, service: &Service, backend: &Backend) -> u16 {
        self.weights.get(service, backend).unwrap_or(backend.weight)
    }

    /// Whether the service takes new flows.
    pub fn enabled(&self, service: &Service) -> bool {
        self.services.get(&service.name).copied().unwrap_or(service.enabled)
    }

    /// What is not the file's.
    pub fn by_hand(&self, service: &Service, backend: &Backend) -> ByHand {
        let admin = self.admin.get(service, backend).is_some();
        ByHand { admin, weight: self.weights.get(service, backend) }
    }

    /// Likewise of a service.
    pub fn service_by_hand(&self, service: &Service) -> Option<bool> {
        self.services.get(&service.name).copied()
    }

    /// True when it is something new.
    pub fn set_admin(&mut self, service: &Service, backend: &Backend, state: AdminState) -> bool {
        let before = self.admin(service, backend);
        self.admin.set(service, backend, Some(state).filter(|state| *state != by_file(backend)));
        before != state
    }

    /// `None`: what the file says. True when it is something new.
    pub fn set_weight(&mut self, service: &Service, backend: &Backend, weight: Option<u16>) -> bool {
        let before = self.weight(service, backend);
        self.weights.set(service, backend, weight.filter(|weight| *weight != backend.weight));
        before != self.weight(service, backend)
    }

    /// True when it is something new.
    pub fn set_enabled(&mut self, service: &Service, enabled: bool) -> bool {
        let before = self.enabled(service);
        if enabled == service.enabled {
            self.services.remove(&service.name);
        } else {
            self.services.insert(service.name.clone(), enabled);
        }
        before != enabled
    }

    /// Forgets what `config` no longer has, and what it now says itself.
    pub fn retain(&mut self, config: &Config) {
        let service = |name: &str| config.services.iter().find(|service| service.name == name);
        self.admin.retain(config, |backend, state| by_file(backend) != state);
        self.weights.retain(config, |backend, weight| backend.weight != weight);
        self.services.retain(|name, enabled| service(name).is_some_and(|s| s.enabled != *enabled));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(service: &str, backend: &str) -> Config {
        let text = format!(
            "interfaces = ['eth0']\n[services.mail]\nlisten = '203.0.113.10:25'\n{service}\n\
             backends = [{{ name = 'mx1', address = '198.51.100.11'{backend} }}, '198.51.100.12']\n"
        );
        match crate::config::parse(&text, Path::new("m.toml")) {
            Ok(config) => config,
            Err(errors) => panic!("{:?}", errors.lines()),
        }
    }

    fn parts(config: &Config) -> (&Service, &Backend) {
        (&config.services[0], &config.pools[0].backends[0])
    }

    #[test]
    fn what_is_set_to_what_the_file_says_follows_the_file() {
        let (plain, changed) = (config("", ""), config("enabled = false", ", weight = 7, enabled = false"));
        let (service, backend) = parts(&plain);
        let mut wishes = Wishes::default();
        assert!(wishes.set_weight(service, backend, Some(3)) && wishes.set_enabled(service, false));
        assert!(wishes.set_admin(service, backend, AdminState::Draining));
        assert!(!wishes.set_weight(service, backend, Some(3)) && !wishes.set_enabled(service, false));
        assert_eq!(wishes.by_hand(service, backend), ByHand { admin: true, weight: Some(3) });
        assert_eq!(wishes.service_by_hand(service), Some(false));
        // Another file changes nothing of it, except where it says the same.
        wishes.retain(&changed);
        let (service, backend) = parts(&changed);
        assert_eq!(wishes.weight(service, backend), 3);
        assert_eq!(wishes.admin(service, backend), AdminState::Draining);
        assert_eq!(wishes.service_by_hand(service), None);
        wishes.retain(&plain);
        assert!(wishes.enabled(parts(&plain).0), "the file says so again");
        // Given back.
        let (service, backend) = parts(&plain);
        assert!(wishes.set_weight(service, backend, None) && !wishes.set_weight(service, backend, None));
        assert!(wishes.set_admin(service, backend, AdminState::Enabled));
        let (service, backend) = parts(&changed);
        assert_eq!(wishes.weight(service, backend), 7);
        assert_eq!(wishes.admin(service, backend), AdminState::Disabled);
        assert!(!wishes.enabled(service));
    }

    #[test]
    fn what_the_file_disables_is_enabled_by_hand() {
        let config = config("enabled = false", ", enabled = false");
        let (service, backend) = parts(&config);
        let mut wishes = Wishes::default();
        assert_eq!(wishes.by_hand(service, backend), ByHand::default());
        assert!(wishes.set_admin(service, backend, AdminState::Enabled) && wishes.set_enabled(service, true));
        assert!(wishes.enabled(service) && wishes.by_hand(service, backend).admin);
        wishes.retain(&config);
        assert_eq!(wishes.admin(service, backend), AdminState::Enabled);
        assert_eq!(wishes.service_by_hand(service), Some(true));
    }
}
