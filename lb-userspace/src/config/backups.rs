//! What a service's two pools mean together, and how much of a pool must be there.

use std::collections::HashMap;

use super::cross::{Parts, places, unknown_pool};
use super::diagnostics::{At, Errors};
use super::pools::PoolParts;
use super::services::{PoolRef, ServiceParts};
use super::values::quote;
use super::{Backend, Host, Listen, Protocol, Quorum, modes};

/// The backup of each service, if it has one. Reports those that do not exist, and pools that would replace themselves.
pub(super) fn resolve(errors: &mut Errors, parts: &Parts) -> Vec<Option<usize>> {
    let mut resolved = Vec::new();
    let places = places(parts);
    for service in &parts.services {
        let Some(name) = &service.backup else {
            resolved.push(None);
            continue;
        };
        let found = places.get(&(false, name.value.as_str())).copied();
        if found.is_none() {
            unknown_pool(errors, parts, name);
        }
        let itself = matches!(&service.pool, PoolRef::Named(pool) if pool.value == name.value);
        if itself {
            let message = format!("pool {} cannot be its own backup", quote(&name.value));
            let error = errors.at(name.span, message);
            if let PoolRef::Named(pool) = &service.pool {
                error.related(pool.span, "the pool");
            }
            error.help("name another pool, or remove `backup`");
        }
        resolved.push(found.filter(|_| !itself));
    }
    resolved
}

/// A server that is in both pools of a service could not be told apart: by its name for those who command it, by its
/// address and port for the packets.
pub(super) fn apart(
    errors: &mut Errors,
    pairs: &[(&ServiceParts, &PoolParts)],
    reserves: &[(&ServiceParts, &PoolParts)],
) {
    let pools: HashMap<*const ServiceParts, &PoolParts> =
        pairs.iter().map(|(service, pool)| (std::ptr::from_ref(*service), *pool)).collect();
    for (service, backup) in reserves {
        let Some(pool) = pools.get(&std::ptr::from_ref(*service)) else { continue };
        for second in &backup.backends {
            let both = |what: &str| {
                format!("{what} is in the pool and in the backup of service {}", quote(&service.name.value))
            };
            let reaches = |first: &&At<Backend>| same_server(service, &first.value, &second.value);
            if let Some(first) = pool.backends.iter().find(reaches) {
                let error = errors.at(second.span, both(&format!("backend {}", second.value.address)));
                error.related(first.span, "in the pool").help("remove it from one of the two");
            } else if let Some(first) = pool.backends.iter().find(|one| one.value.name == second.value.name) {
                let error = errors.at(second.span, both(&format!("the name {}", quote(&second.value.name))));
                error.related(first.span, "in the pool").help("give each server a name of its own");
            }
        }
        for second in &backup.hosts {
            // Addresses that turn out to be in both are the pool's.
            let same = |first: &&At<Host>| {
                (&first.value.host, first.value.port) == (&second.value.host, second.value.port)
                    || first.value.name == second.value.name
            };
            if let Some(first) = pool.hosts.iter().find(same) {
                let message = format!(
                    "host {} is in the pool and in the backup of service {}",
                    quote(&second.value.name),
                    quote(&service.name.value)
                );
                let error = errors.at(second.span, message);
                error.related(first.span, "in the pool").help("remove it from one of the two");
            }
        }
    }
}

fn same_server(service: &ServiceParts, first: &Backend, second: &Backend) -> bool {
    first.address == second.address
        && service.listen.iter().any(|listen| {
            let port = |backend: &Backend| match listen.value.protocol {
                Protocol::Any => 0,
                Protocol::Tcp | Protocol::Udp => backend.port.unwrap_or(listen.value.port),
            };
            port(first) == port(second)
        })
}

/// A quorum that all backends together do not reach would never be there.
pub(super) fn quorums(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    // How many addresses a host name has is not known here.
    let countable = |pool: &PoolParts| pool.complete && pool.hosts.is_empty();
    for (service, pool) in pairs.iter().filter(|(_, pool)| countable(pool)) {
        let Quorum { weight, hysteresis } = pool.quorum;
        let needed = weight.saturating_add(hysteresis);
        if needed <= 1 {
            continue;
        }
        let mode = service.forwarding.mode.value;
        let all = |listen: &Listen| -> u32 {
            let used =
                pool.backends.iter().filter(|one| modes::uses(mode, listen.address, one.value.address));
            used.map(|one| u32::from(one.value.weight)).sum()
        };
        // None at all is another error, or a backup that is only for the other family.
        let short = |listen: &&At<Listen>| (1..needed).contains(&all(&listen.value));
        if let Some(listen) = service.listen.iter().find(short) {
            let more = if hysteresis == 0 { String::new() } else { format!(" with hysteresis {hysteresis}") };
            let message = format!(
                "pool {} can never have quorum {weight}{more} for {}: its backends there weigh {} in all",
                quote(&pool.name.value),
                listen.value,
                all(&listen.value)
            );
            let error = errors.at(pool.quorum_span, message);
            error.related(listen.span, "the listener");
            error.help("write a smaller `quorum`, or give the pool more backends or weight");
        }
    }
}
