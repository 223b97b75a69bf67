//! What `matapa show` prints: each screen a pure function of the API's answer.

use std::fmt::Write as _;
use std::net::SocketAddr;

use comfy_table::Cell;

use crate::api::types::{
    AdminState, BackendStatus, Checks, CounterValue, Counters, Flows, ServiceState, ServiceStatus, Status,
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
        let state = service_state(service.state);
        table.add_row(row(&service.id, "service", &service.name, String::new(), state));
        table.add_row(row(&"", "table", &service.pool, String::new(), pool_state(service)));
        for backend in &service.backends {
            let available =
                backend.availability_percent.map(|share| format!("{share:.2}%")).unwrap_or_default();
            table.add_row(row(&backend.id, "host", &backend.name, available, host_state(backend)));
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
            text(&service.pool),
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
                if backend.admin == AdminState::Enabled {
                    Cell::new(admin_word)
                } else {
                    word(admin_word, admin_meaning)
                },
                Cell::new(backend.flows),
                Cell::new(backend.packets),
                Cell::new(human_bytes(backend.bytes)),
                Cell::new(millis),
                text(backend.last_error.as_deref().or(backend.notice.as_deref()).unwrap_or_default()),
            ]);
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

fn pool_state(service: &ServiceStatus) -> Cell {
    let serving = |backend: &&BackendStatus| {
        backend.health == Health::Up && backend.admin == AdminState::Enabled && backend.weight > 0
    };
    match service.backends.iter().filter(serving).count() {
        0 => word("empty", Meaning::Bad),
        1 => word("active (1 host)", Meaning::Good),
        hosts => word(&format!("active ({hosts} hosts)"), Meaning::Good),
    }
}

fn host_state(backend: &BackendStatus) -> Cell {
    let (health_word, health_meaning) = health(backend.health);
    match backend.admin {
        AdminState::Enabled => word(health_word, health_meaning),
        AdminState::Disabled => word("disabled", Meaning::Notice),
        AdminState::Draining if backend.health == Health::Up => word("draining", Meaning::Notice),
        AdminState::Draining => word(&format!("draining ({health_word})"), Meaning::Bad),
    }
}

/// With the file's, if an operator has set another one.
fn weight(backend: &BackendStatus) -> String {
    let file = backend.configured_weight.map(|file| format!(" (file: {file})")).unwrap_or_default();
    format!("{}{file}", backend.weight)
}

fn address(backend: &BackendStatus) -> String {
    backend.port.map_or_else(
        || backend.address.to_string(),
        |port| SocketAddr::new(backend.address, port).to_string(),
    )
}
