//! What a service's way of forwarding asks of its listeners and backends.

use std::collections::HashMap;
use std::net::IpAddr;

use super::diagnostics::{At, Errors, Span};
use super::forwarding::{SnatParts, rewrites};
use super::pools::PoolParts;
use super::services::ServiceParts;
use super::values::quote;
use super::{Forward, Listen, Protocol, hosts};

/// Sources of all services together.
const MOST_SNAT_ADDRESSES: usize = 255;

/// Whether a listener of a service with this mode uses a backend: only a tunnel carries one family in the other.
pub(super) const fn uses(mode: Forward, vip: IpAddr, backend: IpAddr) -> bool {
    matches!(mode, Forward::Ipip | Forward::Gue) || vip.is_ipv4() == backend.is_ipv4()
}

pub(super) const fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Where packets are not rewritten, the server gets the port that the client wrote.
pub(super) fn kept_ports(errors: &mut Errors, pairs: &[(&ServiceParts, &PoolParts)]) {
    for (service, pool) in pairs {
        let mode = service.forwarding.mode;
        if rewrites(mode.value) {
            continue;
        }
        let keeps = |port: u16, used: &dyn Fn(IpAddr) -> bool| {
            service.listen.iter().find(|listen| {
                let Listen { address, port: first, last_port, protocol } = listen.value;
                used(address) && protocol != Protocol::Any && (first, last_port) != (port, port)
            })
        };
        for backend in &pool.backends {
            let Some(port) = backend.value.port else { continue };
            if let Some(listen) = keeps(port, &|vip| uses(mode.value, vip, backend.value.address)) {
                let shown = backend.value.address.to_string();
                kept_port(errors, &mode, listen, At { value: &shown, span: backend.span }, port);
            }
        }
        for host in &pool.hosts {
            let Some(port) = host.value.port else { continue };
            if let Some(listen) = keeps(port, &|vip| hosts::may_serve(&host.value, mode.value, vip)) {
                kept_port(errors, &mode, listen, At { value: &host.value.host, span: host.span }, port);
            }
        }
    }
}

fn kept_port(errors: &mut Errors, mode: &At<Forward>, listen: &At<Listen>, backend: At<&str>, port: u16) {
    let message = format!(
        "backend {} cannot have port {port} behind {}: {} does not rewrite packets, so it gets the client's port",
        backend.value, listen.value, mode.value
    );
    let error = errors.at(backend.span, message);
    error.related(listen.span, "the port that stays");
    error.help("leave the backend's port out, or use `forward = \"nat\"` or \"snat\"");
}

/// What sources of the gateway's own ask for: flows with ports, a source of each family, and addresses that are
/// nothing else.
pub(super) fn snat(errors: &mut Errors, services: &[ServiceParts], pools: &[PoolParts]) {
    let mut taken: HashMap<IpAddr, (Span, String)> = HashMap::new();
    for service in services {
        for listen in &service.listen {
            let what = || (listen.span, format!("the address of service {}", quote(&service.name.value)));
            taken.entry(listen.value.address).or_insert_with(what);
        }
    }
    for backend in pools.iter().flat_map(|pool| &pool.backends) {
        taken.entry(backend.value.address).or_insert_with(|| (backend.span, "a backend".to_owned()));
    }
    let mut total = 0;
    for service in services.iter().filter(|service| service.forwarding.mode.value == Forward::Snat) {
        snat_without_ports(errors, service);
        let Some(snat) = &service.forwarding.snat else { continue };
        snat_addresses(errors, snat, &taken);
        snat_families(errors, service, snat);
        let before = total;
        total += snat.addresses.len();
        if before <= MOST_SNAT_ADDRESSES && total > MOST_SNAT_ADDRESSES {
            let message = format!("the services have {total} snat addresses up to here");
            let help = format!("write at most {MOST_SNAT_ADDRESSES} in all services together");
            errors.at(snat.span, message).help(help);
        }
    }
}

fn snat_without_ports(errors: &mut Errors, service: &ServiceParts) {
    for listen in service.listen.iter().filter(|listen| listen.value.protocol == Protocol::Any) {
        let message =
            format!("{} cannot be forwarded by snat, which tells flows by their ports", listen.value);
        let error = errors.at(listen.span, message);
        error.related(service.forwarding.mode.span, "snat");
        error.help("use another mode for it, in a service of its own");
    }
}

/// An answer to an address that is a VIP or a server's would be taken for something else.
fn snat_addresses(errors: &mut Errors, snat: &SnatParts, taken: &HashMap<IpAddr, (Span, String)>) {
    for address in &snat.addresses {
        if let Some((span, what)) = taken.get(&address.value) {
            let message = format!("snat address {} is {what}", address.value);
            let error = errors.at(address.span, message);
            error.related(*span, "here").help("write an address of this gateway that nothing else here has");
        }
    }
}

fn snat_families(errors: &mut Errors, service: &ServiceParts, snat: &SnatParts) {
    for (v4, example) in [(true, "198.51.100.1"), (false, "2001:db8:64::1")] {
        let has = snat.addresses.iter().any(|address| address.value.is_ipv4() == v4);
        let listen = service.listen.iter().find(|listen| listen.value.address.is_ipv4() == v4);
        if let Some(listen) = listen.filter(|_| snat.complete && !has) {
            let family = family(listen.value.address);
            let message = format!("`addresses` has no {family} address for {}", listen.value);
            let error = errors.at(snat.span, message);
            error.related(listen.span, family);
            error.help(format!("add an {family} address of this gateway, such as \"{example}\""));
        }
    }
}
