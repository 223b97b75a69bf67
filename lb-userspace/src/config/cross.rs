//! What the parts of a configuration mean together.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::diagnostics::{At, Errors};
use super::known_keys::nearest;
use super::pools::PoolParts;
use super::services::{PoolRef, ServiceParts};
use super::values::quote;
use super::{Backend, Config, Control, Listen, Pool, Protocol, Service, XdpMode};

/// A document's parts, each of them read and none compared with another.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) interfaces: Vec<String>,
    pub(super) xdp_mode: XdpMode,
    pub(super) control: Control,
    /// In the order of the file.
    pub(super) pools: Vec<PoolParts>,
    /// In the order of the file.
    pub(super) services: Vec<ServiceParts>,
    /// False when pools or services stand under a misspelt key.
    pub(super) sections_found: bool,
}

/// Compares the parts and puts them together; nothing when a reference could not be resolved.
pub(super) fn check(errors: &mut Errors, parts: Parts) -> Option<Config> {
    duplicate_listeners(errors, &parts.services);
    duplicate_pools(errors, &parts);
    if !parts.sections_found {
        return None;
    }
    let resolved = resolve(errors, &parts);
    let pairs: Vec<(&ServiceParts, &PoolParts)> = parts
        .services
        .iter()
        .zip(&resolved)
        .filter_map(|(service, pool)| Some((service, &parts.pools[(*pool)?])))
        .collect();
    families(errors, &pairs);
    loops(errors, &parts);
    shared_servers(errors, &pairs);
    check_ports(errors, &pairs);
    build(parts, resolved)
}

fn duplicate_listeners(errors: &mut Errors, services: &[ServiceParts]) {
    let mut seen: HashMap<Listen, (&ServiceParts, &At<Listen>)> = HashMap::new();
    for service in services {
        for listen in &service.listen {
            let Some((first_service, first)) = seen.get(&listen.value) else {
                seen.insert(listen.value, (service, listen));
                continue;
            };
            let label = if first_service.name.value == service.name.value {
                "first here".to_owned()
            } else {
                format!("service {}", quote(&first_service.name.value))
            };
            let error = errors.at(listen.span, format!("{} is listened on twice", listen.value));
            error.related(first.span, label).help("remove one, or give it another port or protocol");
        }
    }
}

/// A service's own pool bears the service's name.
fn duplicate_pools(errors: &mut Errors, parts: &Parts) {
    for own in parts.pools.iter().filter(|pool| pool.own) {
        let name = &own.name.value;
        if let Some(named) = parts.pools.iter().find(|pool| !pool.own && pool.name.value == *name) {
            let shown = quote(name);
            let message =
                format!("service {shown} lists backends, which makes a pool {shown}; there is one already");
            let error = errors.at(own.name.span, message);
            error.related(named.name.span, "the pool");
            error.help(format!("use it with `pool = {shown}` instead of `backends`, or rename one of them"));
        }
    }
}

/// The pool of each service. Reports pools that do not exist, and pools that nobody uses.
fn resolve(errors: &mut Errors, parts: &Parts) -> Vec<Option<usize>> {
    let position = |own: bool, name: &str| {
        parts.pools.iter().position(|pool| pool.own == own && pool.name.value == name)
    };
    let mut used: HashSet<&str> = HashSet::new();
    let mut unclear = false;
    let mut resolved = Vec::new();
    for service in &parts.services {
        let pool = match &service.pool {
            PoolRef::Unclear => {
                unclear = true;
                None
            }
            PoolRef::Own => {
                // Where both exist, which one is meant has been asked already.
                used.insert(&service.name.value);
                position(true, &service.name.value)
            }
            PoolRef::Named(name) => {
                used.insert(&name.value);
                let index = position(false, &name.value);
                if index.is_none() {
                    used.extend(unknown_pool(errors, parts, name));
                }
                index
            }
        };
        resolved.push(pool);
    }
    // A service whose pool is not known may be the one that uses it, and without any service there is another error.
    if !unclear && !parts.services.is_empty() {
        for pool in parts.pools.iter().filter(|pool| !pool.own && !used.contains(pool.name.value.as_str())) {
            let message = format!("pool {} is used by no service", quote(&pool.name.value));
            let help = format!("add `pool = {}` to a service, or remove the pool", quote(&pool.name.value));
            errors.at(pool.name.span, message).help(help);
        }
    }
    resolved
}

/// The pool that was probably meant.
fn unknown_pool<'a>(errors: &mut Errors, parts: &'a Parts, name: &At<String>) -> Option<&'a str> {
    let names = || parts.pools.iter().filter(|pool| !pool.own).map(|pool| pool.name.value.as_str());
    let near = nearest(&name.value, names());
    let help = match near {
        Some(near) => format!("did you mean {}?", quote(near)),
        None if names().next().is_none() => {
            format!("add [pools.{}] with `backends`", name.value.escape_debug())
        }
        None => {
            let all: Vec<String> = names().map(quote).collect();
            format!("there is {}", all.join(", "))
        }
    };
    errors.at(name.span, format!("there is no pool {}", quote(&name.value))).help(help);
    near
}

const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Packets keep their family on the way through NAT.
fn families(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    for (service, pool) in pairs.iter().filter(|(_, pool)| pool.complete) {
        for listen in &service.listen {
            let family = family(listen.value.address);
            let same =
                |backend: &&At<Backend>| backend.value.address.is_ipv4() == listen.value.address.is_ipv4();
            if pool.backends.iter().any(|backend| same(&backend)) {
                continue;
            }
            let message = format!(
                "{} has no backend: none in pool {} is {family}",
                listen.value,
                quote(&pool.name.value)
            );
            let error = errors.at(listen.span, message);
            if let Some(backend) = pool.backends.first() {
                error.related(backend.span, "the pool's first backend");
            }
            error.help(format!("add an {family} backend to the pool, or remove this address"));
        }
    }
}

/// A backend that is a service address: its packets would come back to the gateway.
fn loops(errors: &mut Errors, parts: &Parts) {
    let mut vips: HashMap<IpAddr, (&ServiceParts, &At<Listen>)> = HashMap::new();
    for service in &parts.services {
        for listen in &service.listen {
            vips.entry(listen.value.address).or_insert((service, listen));
        }
    }
    for backend in parts.pools.iter().flat_map(|pool| &pool.backends) {
        if let Some((service, listen)) = vips.get(&backend.value.address) {
            let (address, service) = (backend.value.address, quote(&service.name.value));
            let message = format!(
                "backend {address} is the address of service {service}, so packets would go in a circle"
            );
            let error = errors.at(backend.span, message);
            error.related(listen.span, "the service's address").help("write the server's own address");
        }
    }
}

/// Who reaches a server's address and port.
struct Way<'a> {
    service: &'a ServiceParts,
    listen: &'a At<Listen>,
    backend: &'a At<Backend>,
}

/// The source of a reply tells which service it belongs to; so a server's port can be reached by one way only.
fn shared_servers(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    let mut ways: HashMap<(IpAddr, u16, Protocol), Way<'_>> = HashMap::new();
    let mut seen: HashSet<Listen> = HashSet::new();
    for (service, pool) in pairs {
        for listen in &service.listen {
            // One that is there twice is reported as that.
            if !seen.insert(listen.value) {
                continue;
            }
            // One error for two listeners, however many backends they share.
            let mut reported: HashSet<Listen> = HashSet::new();
            let family =
                |backend: &&At<Backend>| backend.value.address.is_ipv4() == listen.value.address.is_ipv4();
            for backend in pool.backends.iter().filter(family) {
                let port = backend.value.port.unwrap_or(listen.value.port);
                let key = (backend.value.address, port, listen.value.protocol);
                let way = Way { service, listen, backend };
                let Some(first) = ways.get(&key) else {
                    ways.insert(key, way);
                    continue;
                };
                if first.listen.span == listen.span {
                    // The same port, or none, twice in a pool is reported where the pool is read.
                    if first.backend.value.port != backend.value.port {
                        same_server_twice(errors, first, &way, port);
                    }
                } else if reported.insert(first.listen.value) {
                    two_ways(errors, first, &way, port);
                }
            }
        }
    }
}

fn same_server_twice(errors: &mut Errors, first: &Way<'_>, second: &Way<'_>, port: u16) {
    let (address, listen) = (second.backend.value.address, second.listen.value);
    let message = format!("{listen} would reach {address} port {port} twice");
    let error = errors.at(second.backend.span, message);
    error
        .related(first.backend.span, "first here")
        .related(second.listen.span, "a backend without a port gets this one");
    error.help("remove one of the two backends, or give it another port");
}

fn two_ways(errors: &mut Errors, first: &Way<'_>, second: &Way<'_>, port: u16) {
    let address = second.backend.value.address;
    let (new, old) = (second.listen.value, first.listen.value);
    let message = format!("not yet supported: {new} and {old} reach the same server, {address} port {port}");
    let label = if first.service.name.value == second.service.name.value {
        "the other address".to_owned()
    } else {
        format!("service {}", quote(&first.service.name.value))
    };
    let error = errors.at(second.listen.span, message);
    error.related(first.listen.span, label);
    error.help(
        "the way back is told by backend address and port: give one of them other servers, or other ports on these",
    );
}

/// Both kinds of check are TCP connections; a port that only UDP traffic goes to says nothing to them.
fn check_ports(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    for (service, pool) in pairs {
        let udp_only = service.complete && service.listen.iter().all(|at| at.value.protocol == Protocol::Udp);
        let (Some(check), Some(listen), true) = (&pool.check, service.listen.first(), udp_only) else {
            continue;
        };
        if check.value.port.is_none() {
            let kind = check.value.kind;
            let name = quote(&service.name.value);
            let message = format!("a {kind} check needs a TCP port, and service {name} has only UDP");
            let error = errors.at(check.span, message);
            error.related(listen.span, "UDP");
            error.help(format!(
                "write `check = {{ type = \"{kind}\", port = N }}` with a TCP port of the servers, \
                 or remove the check"
            ));
        }
    }
}

fn build(parts: Parts, resolved: Vec<Option<usize>>) -> Option<Config> {
    let resolved: Vec<usize> = resolved.into_iter().collect::<Option<_>>()?;
    let pools = parts
        .pools
        .into_iter()
        .map(|pool| Pool {
            name: pool.name.value,
            check: pool.check.map(|check| check.value),
            on_down: pool.on_down,
            backends: pool.backends.into_iter().map(|backend| backend.value).collect(),
        })
        .collect();
    let services = parts
        .services
        .into_iter()
        .zip(resolved)
        .map(|(service, pool)| Service {
            name: service.name.value,
            listen: service.listen.into_iter().map(|listen| listen.value).collect(),
            pool,
            forward: service.forward,
            scheduler: service.scheduler,
            session_timeout: service.session_timeout,
            second_chance: service.second_chance,
        })
        .collect();
    Some(Config {
        interfaces: parts.interfaces,
        xdp_mode: parts.xdp_mode,
        control: parts.control,
        pools,
        services,
    })
}
