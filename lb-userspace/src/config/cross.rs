//! What the parts of a configuration mean together.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use super::diagnostics::{At, Errors};
use super::known_keys::nearest;
use super::pools::PoolParts;
use super::services::{PoolRef, ServiceParts};
use super::values::quote;
use super::{
    Backend, CheckKind, Config, Control, Flows, Forward, Listen, Pool, Protocol, Resolver, Service, Snat,
    Tunnel, XdpMode, backups, hosts, listeners, modes,
};

/// A document's parts, each of them read and none compared with another.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) interfaces: Vec<String>,
    pub(super) xdp_mode: XdpMode,
    pub(super) forward_without_daemon: Option<Duration>,
    pub(super) control: Control,
    pub(super) flows: Flows,
    pub(super) tunnel: Tunnel,
    pub(super) resolver: Resolver,
    /// In the order of the file.
    pub(super) pools: Vec<PoolParts>,
    /// In the order of the file.
    pub(super) services: Vec<ServiceParts>,
    pub(super) carp: Vec<super::Carp>,
    pub(super) cluster: super::Cluster,
    /// False when pools or services stand under a misspelt key.
    pub(super) sections_found: bool,
}

/// Compares the parts and puts them together; nothing when a reference could not be resolved.
pub(super) fn check(errors: &mut Errors, parts: Parts) -> Option<Config> {
    listeners::check(errors, &parts.services);
    modes::snat(errors, &parts.services, &parts.pools);
    duplicate_pools(errors, &parts);
    if !parts.sections_found {
        return None;
    }
    let resolved = resolve(errors, &parts);
    let backups = backups::resolve(errors, &parts);
    let pairs: Vec<(&ServiceParts, &PoolParts)> = parts
        .services
        .iter()
        .zip(&resolved)
        .filter_map(|(service, pool)| Some((service, &parts.pools[(*pool)?])))
        .collect();
    let reserves: Vec<(&ServiceParts, &PoolParts)> = parts
        .services
        .iter()
        .zip(&backups)
        .filter_map(|(service, backup)| Some((service, &parts.pools[(*backup)?])))
        .collect();
    families(errors, &pairs);
    loops(errors, &parts);
    for pairs in [&pairs, &reserves] {
        modes::kept_ports(errors, pairs);
        same_servers(errors, pairs);
        check_ports(errors, pairs);
        check_vias(errors, pairs);
        backups::quorums(errors, pairs);
    }
    backups::apart(errors, &pairs, &reserves);
    build(parts, resolved, backups)
}

/// Where each pool stands, by whether it is a service's own and by its name: the first one of those that share both.
pub(super) fn places(parts: &Parts) -> HashMap<(bool, &str), usize> {
    let mut places = HashMap::new();
    for (index, pool) in parts.pools.iter().enumerate() {
        places.entry((pool.own, pool.name.value.as_str())).or_insert(index);
    }
    places
}

/// A service's own pool bears the service's name.
fn duplicate_pools(errors: &mut Errors, parts: &Parts) {
    let places = places(parts);
    for own in parts.pools.iter().filter(|pool| pool.own) {
        let name = &own.name.value;
        if let Some(named) = places.get(&(false, name.as_str())).map(|index| &parts.pools[*index]) {
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
    let places = places(parts);
    let position = |own: bool, name: &str| places.get(&(own, name)).copied();
    let mut used: HashSet<&str> = HashSet::new();
    let mut unclear = false;
    let mut resolved = Vec::new();
    for service in &parts.services {
        // Whether it is there is asked with the other backups.
        used.extend(service.backup.as_ref().map(|name| name.value.as_str()));
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
            let name = quote(&pool.name.value);
            let help = format!("add `pool = {name}` or `backup = {name}` to a service, or remove the pool");
            errors.at(pool.name.span, message).help(help);
        }
    }
    resolved
}

/// The pool that was probably meant.
pub(super) fn unknown_pool<'a>(errors: &mut Errors, parts: &'a Parts, name: &At<String>) -> Option<&'a str> {
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

/// Packets keep their family on their way, except inside a tunnel.
fn families(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    for (service, pool) in pairs.iter().filter(|(service, pool)| service.forwarding.clear && pool.complete) {
        let mode = service.forwarding.mode.value;
        for listen in &service.listen {
            let vip = listen.value.address;
            if pool.backends.iter().any(|backend| modes::uses(mode, vip, backend.value.address))
                || pool.hosts.iter().any(|host| hosts::may_serve(&host.value, mode, vip))
            {
                continue;
            }
            let family = modes::family(vip);
            let message = format!(
                "{} has no backend: none in pool {} is {family}",
                listen.value,
                quote(&pool.name.value)
            );
            let error = errors.at(listen.span, message);
            let first =
                pool.backends.iter().map(|at| at.span).chain(pool.hosts.iter().map(|at| at.span)).min();
            if let Some(span) = first {
                error.related(span, "the pool's first backend");
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

/// A backend without a port and one that names the listener's are the same server to it.
fn same_servers(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    for (service, pool) in pairs {
        let mode = service.forwarding.mode.value;
        for listen in &service.listen {
            let mut seen: HashMap<(IpAddr, u16), &At<Backend>> = HashMap::new();
            for backend in &pool.backends {
                let Backend { address, port, .. } = backend.value;
                if !modes::uses(mode, listen.value.address, address) {
                    continue;
                }
                let port = match listen.value.protocol {
                    Protocol::Any => 0,
                    Protocol::Tcp | Protocol::Udp => port.unwrap_or(listen.value.port),
                };
                let Some(first) = seen.get(&(address, port)) else {
                    seen.insert((address, port), backend);
                    continue;
                };
                // The same port, or none, twice in a pool is reported where the pool is read.
                if first.value.port != backend.value.port {
                    same_server_twice(errors, listen, first, backend, port);
                }
            }
        }
    }
}

fn same_server_twice(
    errors: &mut Errors,
    listen: &At<Listen>,
    first: &At<Backend>,
    second: &At<Backend>,
    port: u16,
) {
    let address = second.value.address;
    let any = listen.value.protocol == Protocol::Any;
    let port = if any { String::new() } else { format!(" port {port}") };
    let message = format!("{} would reach {address}{port} twice", listen.value);
    let error = errors.at(second.span, message);
    error.related(first.span, "first here");
    if any {
        error.related(listen.span, "this has no ports");
        error.help("remove one of the two backends");
    } else {
        error.related(listen.span, "a backend without a port gets this one");
        error.help("remove one of the two backends, or give it another port");
    }
}

/// Most kinds of check are TCP connections; a port that no TCP traffic goes to says nothing to them. DNS may use either,
/// but not do without.
fn check_ports(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    for (service, pool) in pairs {
        let Some(check) = pool.check.as_ref().filter(|check| check.value.port.is_none()) else { continue };
        let kind = check.value.kind();
        let needs = match kind {
            _ if kind.uses_tcp() => "TCP port",
            CheckKind::Dns => "port",
            _ => continue,
        };
        let name = quote(&service.name.value);
        let any = service.listen.iter().find(|at| at.value.protocol == Protocol::Any);
        let udp_only = service.complete && service.listen.iter().all(|at| at.value.protocol == Protocol::Udp);
        let (listen, message, label) = match (any, service.listen.first()) {
            (Some(any), _) => {
                let message = format!(
                    "a {kind} check needs a {needs}, and {} of service {name} has no ports",
                    any.value
                );
                (any, message, "no ports")
            }
            (None, Some(first)) if udp_only && kind.uses_tcp() => {
                (first, format!("a {kind} check needs a {needs}, and service {name} has only UDP"), "UDP")
            }
            (None, _) => continue,
        };
        let error = errors.at(check.span, message);
        error.related(listen.span, label);
        error.help(format!(
            "write `check = {{ type = \"{kind}\", port = N }}` with a {needs} of the servers, \
             or remove the check"
        ));
    }
}

/// Only where packets go to the VIP on the server is there one to ask for; and only TCP is asked for.
fn check_vias(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    for (service, pool) in pairs {
        let Some(check) = pool.check.as_ref().filter(|check| check.value.via_vip) else { continue };
        let (name, mode) = (quote(&service.name.value), service.forwarding.mode);
        let direct = matches!(mode.value, Forward::Dsr | Forward::Ipip | Forward::Gue);
        if service.forwarding.clear && !direct {
            let message = format!(
                "a check cannot go via the VIP: by {} packets of service {name} do not either",
                mode.value
            );
            let error = errors.at(check.span, message);
            error.related(mode.span, "the service");
            error.help("remove `via`: the check goes where packets go already");
        } else if service.complete && service.listen.iter().all(|at| at.value.protocol != Protocol::Tcp) {
            let message = format!("a check via the VIP needs a TCP listener, and service {name} has none");
            errors
                .at(check.span, message)
                .help("remove `via`, or give the service a pool with another check");
        }
    }
}

fn build(parts: Parts, resolved: Vec<Option<usize>>, backups: Vec<Option<usize>>) -> Option<Config> {
    let resolved: Vec<usize> = resolved.into_iter().collect::<Option<_>>()?;
    if parts.services.iter().zip(&backups).any(|(service, found)| service.backup.is_some() && found.is_none())
    {
        return None;
    }
    let families = hosts::families(&parts, &resolved, &backups);
    let pools = parts
        .pools
        .into_iter()
        .zip(families)
        .map(|(pool, families)| Pool {
            name: pool.name.value,
            check: pool.check.map(|check| check.value),
            on_down: pool.on_down,
            quorum: pool.quorum,
            slow_start: pool.slow_start,
            backends: pool.backends.into_iter().map(|backend| backend.value).collect(),
            hosts: pool.hosts.into_iter().map(|host| host.value.within(families)).collect(),
        })
        .collect();
    let services = parts
        .services
        .into_iter()
        .zip(resolved.into_iter().zip(backups))
        .map(|(service, (pool, backup))| Service {
            name: service.name.value,
            listen: service.listen.into_iter().map(|listen| listen.value).collect(),
            pool,
            backup,
            backup_hold: service.backup_hold,
            forward: service.forwarding.mode.value,
            scheduler: service.scheduler,
            session_timeout: service.session_timeout,
            second_chance: service.forwarding.second_chance,
            sticky: service.sticky,
            new_flow_limit: service.new_flow_limit,
            snat: service.forwarding.snat.map(|snat| Snat {
                addresses: snat.addresses.into_iter().map(|address| address.value).collect(),
                first_port: snat.ports.0,
                last_port: snat.ports.1,
            }),
            gue_port: service.forwarding.gue_port,
            enabled: service.enabled,
            when_empty: service.when_empty,
        })
        .collect();
    Some(Config {
        interfaces: parts.interfaces,
        xdp_mode: parts.xdp_mode,
        forward_without_daemon: parts.forward_without_daemon,
        control: parts.control,
        flows: parts.flows,
        tunnel: parts.tunnel,
        resolver: parts.resolver,
        pools,
        services,
        carp: parts.carp,
        cluster: parts.cluster,
    })
}
