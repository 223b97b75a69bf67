//! Whether anybody is in charge.

use super::super::Finding;
use super::super::facts::Facts;
use crate::config::Config;

pub(super) const CHECK: &str = "daemon";

pub(super) fn judge(_: &Config, facts: &Facts) -> Vec<Finding> {
    let daemon = &facts.daemon;
    match (&daemon.unreachable, &daemon.status) {
        (Some(reason), _) => {
            let message = format!(
                "{reason}; packets are forwarded if an earlier one left its program, and dead servers are not found"
            );
            vec![Finding::problem(CHECK, "", message, "systemctl start matapa, or `matapa run`")]
        }
        (None, Some(status)) => {
            let message = format!("runs as process {} for {} s", status.pid, status.uptime_seconds);
            vec![Finding::ok(CHECK, "", message)]
        }
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::support::{CONFIG, config, well, wrong};
    use super::*;

    #[test]
    fn one_that_does_not_answer_is_a_problem() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.daemon.unreachable = Some("cannot reach the daemon".to_owned());
        facts.daemon.status = None;
        assert_eq!(wrong(&judge(&config, &facts)).len(), 1);
    }
}
