//! Whether servers are there to take connections, as the daemon sees them.

use super::super::Finding;
use super::super::facts::Facts;
use super::count;
use crate::api::pools::PoolRole;
use crate::api::types::{AdminState, BackendStatus, ServiceState, ServiceStatus};
use crate::config::Config;
use crate::health::Health;

pub(super) const CHECK: &str = "servers";

pub(super) fn judge(_: &Config, facts: &Facts) -> Vec<Finding> {
    let services = facts.daemon.status.iter().flat_map(|status| &status.services);
    services.flat_map(service).collect()
}

fn service(service: &ServiceStatus) -> Vec<Finding> {
    let name = &service.name;
    let mut findings = Vec::new();
    if service.state == ServiceState::Down {
        let message = "no server takes new connections";
        findings.push(Finding::problem(CHECK, name, message, "matapa show backends"));
    }
    let backup = service.pools.iter().find(|pool| pool.role == PoolRole::Backup && pool.active);
    if let Some(backup) = backup {
        let message = format!("new connections go to its backup, pool {}", backup.name);
        findings.push(Finding::warning(CHECK, name, message, "matapa show"));
    }
    if service.state == ServiceState::Disabled {
        let message = "is disabled, and takes no new connections";
        findings.push(Finding::warning(CHECK, name, message, format!("matapa service enable {name}")));
    }
    for backend in &service.backends {
        if let Some((message, mend)) = trouble(backend) {
            findings.push(Finding::warning(CHECK, format!("{name}/{}", backend.name), message, mend));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, name, format!("{} up", count(service.backends.len(), "server"))));
    }
    findings
}

fn trouble(backend: &BackendStatus) -> Option<(String, String)> {
    match (backend.admin, backend.health) {
        (AdminState::Draining | AdminState::Disabled, _) => {
            let word = if backend.admin == AdminState::Draining { "being drained" } else { "disabled" };
            Some((format!("is {word}"), format!("matapa backend enable {}", backend.name)))
        }
        (AdminState::Enabled, Health::Down) => {
            let reason = backend.last_error.as_deref().unwrap_or("it failed its check");
            Some((format!("is down: {reason}"), "matapa monitor, and the server's own log".to_owned()))
        }
        (AdminState::Enabled, Health::Unknown) => {
            Some(("has not been checked yet".to_owned(), "matapa poll".to_owned()))
        }
        (AdminState::Enabled, Health::Up) if backend.suspect => {
            let message =
                "its check succeeds, but connections to it had to move to another server".to_owned();
            Some((message, format!("matapa trace host {} --count 20", backend.address)))
        }
        (AdminState::Enabled, Health::Up) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::{Problem, Warning};
    use super::super::support::{CONFIG, config, status, well, wrong};
    use super::*;

    #[test]
    fn what_the_daemon_knows_is_told() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.daemon.status = Some(status("down", "down"));
        let findings = judge(&config, &facts);
        let severities: Vec<_> = wrong(&findings).iter().map(|finding| (finding.0, finding.1)).collect();
        assert_eq!(severities, [(Problem, "mail"), (Warning, "mail/mx1"), (Warning, "mail/mx2")]);
        assert_eq!(findings[1].message, "is down: connection refused");
        let mut drained = status("active", "up");
        drained.services[0].backends[0].admin = AdminState::Draining;
        drained.services[0].backends[1].suspect = true;
        facts.daemon.status = Some(drained);
        let findings = judge(&config, &facts);
        assert_eq!(wrong(&findings)[0], (Warning, "mail/mx1", "matapa backend enable mx1"));
        assert_eq!(wrong(&findings).len(), 2);
    }
}
