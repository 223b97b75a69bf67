//! An operator's words about backends and services, taken in and put into effect.

use log::info;

use super::request::Refusal;
use super::status;
use super::task::Control;
use crate::api::pools::{ChangedWeight, ServiceChange, WeightChange};
use crate::api::types::{AdminState, BackendChange, EventKind};

impl Control {
    pub(super) fn set_admin(
        &mut self,
        backend: &str,
        service: Option<&str>,
        state: AdminState,
    ) -> Result<BackendChange, Refusal> {
        let matching = self.matching(backend, service)?;
        let services = self.service_states();
        let mut changed = Vec::new();
        for index in matching {
            let service = &self.config.services[index];
            let Some(of_service) = self.config.backend(service, backend) else { continue };
            if self.state.wishes.set_admin(service, of_service, state) {
                changed.push(service.name.clone());
            }
        }
        self.runner.set_targets(self.state.targets(&self.config));
        self.converge();
        self.tell_services(&services);
        for service in &changed {
            info!("{service}/{backend} is now {state:?}");
            self.emit(EventKind::Admin { service: service.clone(), backend: backend.to_owned(), state });
        }
        Ok(BackendChange { state, backends: changed.into_iter().map(|s| format!("{s}/{backend}")).collect() })
    }

    /// `None`: what the file says.
    pub(super) fn set_weight(
        &mut self,
        backend: &str,
        service: Option<&str>,
        weight: Option<u16>,
    ) -> Result<WeightChange, Refusal> {
        let matching = self.matching(backend, service)?;
        let services = self.service_states();
        let (mut backends, mut events) = (Vec::new(), Vec::new());
        for index in matching {
            let service = &self.config.services[index];
            let Some(of_service) = self.config.backend(service, backend) else { continue };
            let wishes = &mut self.state.wishes;
            let changed = wishes.set_weight(service, of_service, weight);
            let weight = wishes.weight(service, of_service);
            let by_hand = wishes.by_hand(service, of_service).weight.is_some();
            backends.push(ChangedWeight {
                backend: format!("{}/{backend}", service.name),
                weight,
                configured_weight: by_hand.then_some(of_service.weight),
                changed,
            });
            if changed {
                let (service, backend) = (service.name.clone(), backend.to_owned());
                info!("{service}/{backend} has weight {weight} now");
                events.push(EventKind::Weight { service, backend, weight, by_hand });
            }
        }
        self.converge();
        self.tell_services(&services);
        events.into_iter().for_each(|event| self.emit(event));
        Ok(WeightChange { backends })
    }

    pub(super) fn set_service(&mut self, service: &str, enabled: bool) -> Result<ServiceChange, Refusal> {
        let Some(found) = self.config.services.iter().find(|one| one.name == service) else {
            return Err(Refusal::NotFound(status::no_such_backend(&self.config, "", Some(service))));
        };
        let services = self.service_states();
        let changed = self.state.wishes.set_enabled(found, enabled);
        self.converge();
        self.tell_services(&services);
        Ok(ServiceChange { service: service.to_owned(), enabled, changed })
    }

    /// The services, by their places in the configuration, that have a backend of this name.
    fn matching(&self, backend: &str, service: Option<&str>) -> Result<Vec<usize>, Refusal> {
        let services = self.config.services.iter().enumerate();
        let matching: Vec<usize> = services
            .filter(|(_, one)| service.is_none_or(|wanted| wanted == one.name))
            .filter(|(_, one)| self.config.backend(one, backend).is_some())
            .map(|(index, _)| index)
            .collect();
        if matching.is_empty() {
            return Err(Refusal::NotFound(status::no_such_backend(&self.config, backend, service)));
        }
        Ok(matching)
    }
}
