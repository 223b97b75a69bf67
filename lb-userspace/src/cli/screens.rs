//! What `matapa show` prints: each screen a pure function of the API's answer.

use std::fmt::Write as _;
use std::net::SocketAddr;

use comfy_table::Cell;

use crate::api::pools::{PoolRole, PoolStatus};
use crate::api::types::{
    AdminState, BackendStatus, Checks, CounterValue, Counters, Flows, HostStatus, ServiceState,
    ServiceStatus, Status,
};
use crate::cli::exit::Failure;
use crate::cli::monitor::stamp;
use crate::cli::table::{
    Column::{Number, Prose, Text},
    Meaning, admin, clean, health, human_bytes, lines, status as word, table, text,
};
use crate::health::Health;

/// relayctl's `show summary`.
pub fn summary(status: &Status) -> String {
    if status.services.is_empty() {
        return nothing(status);
    }
    let mut table = table(&[Text("Id"), Text("Type"), Text("Name"), Text("Avlblty"), Text("Status")]);
    let row = |id: &dyn std::fmt::Display, kind: &str, name: &str, available: String, status: Cell| {
        [Cell::new(id), Cell::new(kind), text(name), Cell::new(available), status]
    };
    for service in &status.services {
        let uses_backup = service.state == ServiceState::Active && backup_in_use(service).is_some();
        let state = if uses_backup {
            word("active (using backup pool)", Meaning::Notice)
        } else {
            service_state(service.state)
        };
        table.add_row(row(&service.id, "service", &service.name, String::new(), state));
        for pool in &service.pools {
            table.add_row(row(&"", "table", &pool.name, String::new(), pool_state(service, pool)));
            for backend in service.backends.iter().filter(|backend| backend.pool == pool.name) {
                let available =
                    backend.availability_percent.map(|share| format!("{share:.2}%")).unwrap_or_default();
                table.add_row(row(&backend.id, "host", &backend.name, available, host_state(backend)));
            }
            for host in unresolved(service).filter(|host| host.pool == pool.name) {
                let state = word("unresolved", Meaning::Bad);
                table.add_row(row(&"", "host", &host.name, String::new(), state));
            }
        }
    }
    lines(&table)
}

/// Addresses, policy and traffic.
///
/// # Errors
/// When there is no service of this name.
pub fn services(status: &Status, only: Option<&str>) -> Result<String, Failure> {
    let chosen = choose(status, only)?;
    if chosen.is_empty() {
        return Ok(nothing(status));
    }
    let mut table = table(&[
        Text("Name"),
        Text("Status"),
        Prose("Listen"),
        Text("Forward"),
        Text("Scheduler"),
        Text("Pool"),
        Number("Flows"),
        Number("Packets"),
        Number("Bytes"),
    ]);
    for service in chosen {
        table.add_row([
            text(&service.name),
            service_state(service.state),
            text(&service.listen.join(", ")),
            text(&service.forward),
            text(&service.scheduler),
            text(&pools(service)),
            Cell::new(service.flows),
            Cell::new(service.packets),
            Cell::new(human_bytes(service.bytes)),
        ]);
    }
    Ok(lines(&table))
}

/// Health, traffic and last check.
///
/// # Errors
/// When there is no service of this name.
pub fn backends(status: &Status, only: Option<&str>) -> Result<String, Failure> {
    let chosen = choose(status, only)?;
    if chosen.is_empty() {
        return Ok(nothing(status));
    }
    let mut table = table(&[
        Text("Service"),
        Text("Name"),
        Text("Address"),
        Number("Weight"),
        Text("Health"),
        Text("Admin"),
        Number("Flows"),
        Number("Packets"),
        Number("Bytes"),
        Number("Check"),
        Prose("Error"),
    ]);
    for service in chosen {
        for backend in &service.backends {
            let (health_word, health_meaning) = health(backend.health);
            let (admin_word, admin_meaning) = admin(backend.admin);
            let millis = backend.last_check_millis.map(|millis| format!("{millis} ms")).unwrap_or_default();
            table.add_row([
                text(&service.name),
                text(&backend.name),
                Cell::new(address(backend)),
                Cell::new(weight(backend)),
                word(health_word, health_meaning),
                match backend.admin {
                    AdminState::Draining if backend.leaving => word("leaving", Meaning::Notice),
                    AdminState::Enabled if backend.standby => word("standby", Meaning::Notice),
                    AdminState::Enabled if backend.full => word("full", Meaning::Notice),
                    AdminState::Enabled => Cell::new(admin_word),
                    AdminState::Draining | AdminState::Disabled => word(admin_word, admin_meaning),
                },
                Cell::new(flows_of(backend)),
                Cell::new(backend.packets),
                Cell::new(human_bytes(backend.bytes)),
                Cell::new(millis),
                text(backend.last_error.as_deref().or(backend.notice.as_deref()).unwrap_or_default()),
            ]);
        }
        for host in unresolved(service) {
            let mut row = vec![Cell::new(""); 11];
            row[0] = text(&service.name);
            row[1] = text(&host.name);
            row[4] = word("unresolved", Meaning::Bad);
            row[10] = text(host.error.as_deref().unwrap_or("not answered yet"));
            table.add_row(row);
        }
    }
    Ok(lines(&table))
}

/// The last results of each check, the newest first.
pub fn checks(checks: &Checks) -> String {
    if checks.backends.is_empty() {
        return "no backend is checked\n".to_owned();
    }
    let mut table = table(&[
        Text("Service"),
        Text("Name"),
        Text("Check"),
        Text("Health"),
        Text("Time"),
        Number("Took"),
        Number("No"),
        Prose("Result"),
    ]);
    let mut certificates = String::new();
    for backend in &checks.backends {
        let (health_word, health_meaning) = health(backend.health);
        let mut head = vec![
            text(&backend.service),
            text(&backend.backend),
            text(&format!("{} {}", backend.check, backend.address)),
            word(health_word, health_meaning),
        ];
        if backend.results.is_empty() {
            table.add_row(head.split_off(0));
        }
        for result in &backend.results {
            let mut row = if head.is_empty() { vec![Cell::new(""); 4] } else { head.split_off(0) };
            row.extend([
                Cell::new(stamp(result.time)),
                Cell::new(format!("{} ms", result.millis)),
                Cell::new(result.error_number.map(|number| number.to_string()).unwrap_or_default()),
                match &result.error {
                    Some(error) => text(error),
                    None => word("success", Meaning::Good),
                },
            ]);
            table.add_row(row);
        }
        if let Some(expires) = backend.certificate_expires {
            let name = clean(&backend.backend).into_owned();
            // Writing to a String cannot fail.
            let _ = writeln!(
                certificates,
                "the certificate of {}/{name} ends {}",
                clean(&backend.service),
                stamp(expires)
            );
        }
    }
    let gap = if certificates.is_empty() { "" } else { "\n" };
    lines(&table) + gap + &certificates
}

/// The flow table, and how full it is.
pub fn flows(flows: &Flows) -> String {
    let mut output = String::new();
    if !flows.flows.is_empty() {
        let mut table = table(&[
            Text("Service"),
            Text("Proto"),
            Text("Client"),
            Text("VIP"),
            Text("Backend"),
            Text("Server"),
            Text("State"),
            Number("Idle"),
        ]);
        for flow in &flows.flows {
            table.add_row([
                text(&flow.service),
                text(&flow.protocol),
                Cell::new(flow.client),
                Cell::new(flow.vip),
                text(&flow.backend),
                Cell::new(flow.server),
                text(&flow.state),
                Cell::new(format!("{} s", flow.idle_seconds)),
            ]);
        }
        output = lines(&table);
        output.push('\n');
    }
    let shown = flows.flows.len();
    let Flows { total, capacity, .. } = flows;
    // Writing to a String cannot fail.
    let _ = if u64::try_from(shown).is_ok_and(|shown| shown < *total) {
        writeln!(output, "{shown} of {total} flows shown (--limit N for more); room for {capacity}")
    } else {
        writeln!(output, "{total} {}; room for {capacity}", if *total == 1 { "flow" } else { "flows" })
    };
    output
}

/// Why packets went where they went: what happened most first, then, with `all`, what never happened.
pub fn counters(counters: &Counters, all: bool) -> String {
    let mut chosen: Vec<(&String, &CounterValue)> =
        counters.counters.iter().filter(|(_, counter)| all || counter.value > 0).collect();
    chosen.sort_by(|(left_name, left), (right_name, right)| {
        right.value.cmp(&left.value).then_with(|| left_name.cmp(right_name))
    });
    if chosen.is_empty() {
        return "no packets counted yet; --all shows every counter\n".to_owned();
    }
    let mut table = table(&[Text("Counter"), Number("Packets"), Text("Verdict"), Prose("Meaning")]);
    for (name, counter) in chosen {
        table.add_row([
            text(name),
            Cell::new(counter.value),
            match counter.verdict.as_str() {
                "drop" => word("drop", Meaning::Notice),
                other => text(other),
            },
            text(&counter.help),
        ]);
    }
    lines(&table)
}

fn choose<'a>(status: &'a Status, only: Option<&str>) -> Result<Vec<&'a ServiceStatus>, Failure> {
    let Some(wanted) = only else { return Ok(status.services.iter().collect()) };
    let found: Vec<_> = status.services.iter().filter(|service| service.name == wanted).collect();
    if found.is_empty() {
        let names: Vec<_> = status.services.iter().map(|service| service.name.as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Failure::failed(clean(&format!("there is no service {wanted:?}; there are {names}"))));
    }
    Ok(found)
}

fn nothing(status: &Status) -> String {
    format!("no services in {}\n", clean(&status.config_file))
}

fn service_state(state: ServiceState) -> Cell {
    match state {
        ServiceState::Active => word("active", Meaning::Good),
        ServiceState::Down => word("down", Meaning::Bad),
        ServiceState::Disabled => word("disabled", Meaning::Notice),
    }
}

/// The pools of a service, the one in use first.
fn pools(service: &ServiceStatus) -> String {
    let backup = service.pools.iter().find(|pool| pool.role == PoolRole::Backup);
    match (backup_in_use(service), backup) {
        (Some(used), _) => format!("{} (backup of {})", used.name, service.pool),
        (None, Some(backup)) => format!("{} (backup: {})", service.pool, backup.name),
        (None, None) => service.pool.clone(),
    }
}

fn backup_in_use(service: &ServiceStatus) -> Option<&PoolStatus> {
    service.pools.iter().find(|pool| pool.role == PoolRole::Backup && pool.active)
}

fn pool_state(service: &ServiceStatus, pool: &PoolStatus) -> Cell {
    let hosts = match pool.well {
        1 => "1 host".to_owned(),
        hosts => format!("{hosts} hosts"),
    };
    match pool.well {
        0 => word("empty", Meaning::Bad),
        _ if service.state == ServiceState::Disabled => word("disabled", Meaning::Notice),
        _ if pool.active => word(&format!("active ({hosts})"), Meaning::Good),
        _ if pool.well_weight < u64::from(pool.quorum) + u64::from(pool.hysteresis) => {
            let text = format!("no quorum ({hosts}, weight {} of {})", pool.well_weight, pool.quorum);
            word(&text, Meaning::Bad)
        }
        _ => word(&format!("standby ({hosts})"), Meaning::Notice),
    }
}

fn host_state(backend: &BackendStatus) -> Cell {
    let (health_word, health_meaning) = health(backend.health);
    match backend.admin {
        AdminState::Enabled if backend.standby && backend.health == Health::Up => {
            word("up (standby)", Meaning::Notice)
        }
        AdminState::Enabled if backend.full && backend.health == Health::Up => {
            word("up (full)", Meaning::Notice)
        }
        AdminState::Enabled => word(health_word, health_meaning),
        AdminState::Disabled => word("disabled", Meaning::Notice),
        AdminState::Draining if backend.leaving => word("leaving", Meaning::Notice),
        AdminState::Draining if backend.health == Health::Up => word("draining", Meaning::Notice),
        AdminState::Draining => word(&format!("draining ({health_word})"), Meaning::Bad),
    }
}

/// With the most there may be of each listener.
fn flows_of(backend: &BackendStatus) -> String {
    let most = backend.max_connections.map(|most| format!(" (max {most})")).unwrap_or_default();
    format!("{}{most}", backend.flows)
}

/// Host names that no backend has come of.
fn unresolved(service: &ServiceStatus) -> impl Iterator<Item = &HostStatus> {
    service.hosts.iter().filter(|host| host.addresses.is_empty() && host.leaving.is_empty())
}

/// With what a slow start has reached of it, and the file's, if an operator has set another one.
fn weight(backend: &BackendStatus) -> String {
    let file = backend.configured_weight.map(|file| format!(" (file: {file})")).unwrap_or_default();
    let part = backend.ramp_percent.map(|percent| format!(" at {percent}%")).unwrap_or_default();
    format!("{}{part}{file}", backend.weight)
}

fn address(backend: &BackendStatus) -> String {
    backend.port.map_or_else(
        || backend.address.to_string(),
        |port| SocketAddr::new(backend.address, port).to_string(),
    )
}
