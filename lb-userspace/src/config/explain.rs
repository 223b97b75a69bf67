//! A configuration in words, for `matapa check`.

use std::fmt::Write;
use std::net::SocketAddr;

use super::values::show_duration;
use super::{Backend, Check, Config, OnDown, Pool, Service};

/// Says in a few lines what a configuration does: equal configurations give equal text.
pub fn explain(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_config(&mut text, config);
    text
}

fn write_config(out: &mut String, config: &Config) -> std::fmt::Result {
    let listeners: usize = config.services.iter().map(|service| service.listen.len()).sum();
    let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    writeln!(
        out,
        "{} with {} and {}, on {} {} (XDP mode {})",
        count(config.services.len(), "service"),
        count(listeners, "listener"),
        count(backends, "backend"),
        if config.interfaces.len() == 1 { "interface" } else { "interfaces" },
        config.interfaces.join(", "),
        config.xdp_mode
    )?;
    let metrics = match config.control.metrics {
        Some(address) => format!("metrics on http://{address}/metrics"),
        None => "no metrics".to_owned(),
    };
    writeln!(out, "control socket {}, {metrics}", config.control.socket.display())?;
    for service in &config.services {
        write_service(out, service, &config.pools[service.pool])?;
    }
    Ok(())
}

fn write_service(out: &mut String, service: &Service, pool: &Pool) -> std::fmt::Result {
    writeln!(out, "\nservice {}", service.name)?;
    let listen: Vec<String> = service.listen.iter().map(ToString::to_string).collect();
    writeln!(out, "  listens on  {}", listen.join(", "))?;
    writeln!(
        out,
        "  forwards    by {}, {} picks the backend, idle connections are forgotten after {}",
        service.forward,
        service.scheduler,
        show_duration(service.session_timeout)
    )?;
    if !service.second_chance {
        writeln!(
            out,
            "  a repeated attempt to connect stays with its silent backend (second_chance = false)"
        )?;
    }
    match &pool.check {
        Some(check) => writeln!(out, "  checks      {}", show_check(check))?,
        None => writeln!(out, "  checks      nothing: backends are taken as up")?,
    }
    let on_down = match pool.on_down {
        OnDown::Reset => "its connections are reset",
        OnDown::Keep => "its connections are kept",
    };
    writeln!(out, "  on down     {on_down}")?;
    writeln!(out, "  pool        {}, {}", pool.name, count(pool.backends.len(), "backend"))?;
    // An unnamed backend's name is where it is.
    let target = |backend: &Backend| Some(show_target(backend)).filter(|target| *target != backend.name);
    let targets: Vec<String> =
        pool.backends.iter().map(|backend| target(backend).unwrap_or_default()).collect();
    let names = pool.backends.iter().map(|backend| backend.name.len()).max().unwrap_or_default();
    let addresses = targets.iter().map(String::len).max().unwrap_or_default();
    let gap = if addresses == 0 { "" } else { "  " };
    for (backend, target) in pool.backends.iter().zip(&targets) {
        let weight = match backend.weight {
            0 => "weight 0 (no new connections)".to_owned(),
            weight => format!("weight {weight}"),
        };
        writeln!(out, "    {:names$}{gap}{target:addresses$}  {weight}", backend.name)?;
    }
    Ok(())
}

fn show_check(check: &Check) -> String {
    let port = check.port.map(|port| format!(" port {port}")).unwrap_or_default();
    format!(
        "{}{port} every {}, timeout {}; up after {}, down after {}",
        check.kind,
        show_duration(check.interval),
        show_duration(check.timeout),
        count(check.rise as usize, "success"),
        count(check.fall as usize, "failure"),
    )
}

fn show_target(backend: &Backend) -> String {
    match backend.port {
        Some(port) => SocketAddr::new(backend.address, port).to_string(),
        None => backend.address.to_string(),
    }
}

fn count(number: usize, noun: &str) -> String {
    let plural = match noun {
        _ if number == 1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {noun}{plural}")
}
