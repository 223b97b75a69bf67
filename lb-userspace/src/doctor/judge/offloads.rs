//! Cards that join packets before the program sees them.

use super::super::Finding;
use super::super::facts::Facts;
use crate::config::Config;

pub(super) const CHECK: &str = "offloads";

pub(super) fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let joining: Vec<&String> = config
        .interfaces
        .iter()
        .filter(|name| facts.interfaces.get(*name).is_some_and(|interface| interface.lro))
        .collect();
    if joining.is_empty() {
        return vec![Finding::ok(CHECK, "", "no interface joins packets that it receives (LRO)")];
    }
    let message =
        "joins packets that it receives (LRO); they are too large to be sent on, and XDP cannot take them";
    joining
        .into_iter()
        .map(|name| Finding::problem(CHECK, name, message, format!("ethtool -K {name} lro off")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::Severity::Problem;
    use super::super::support::{CONFIG, config, well, wrong};
    use super::*;

    #[test]
    fn joined_packets() {
        let config = config(CONFIG);
        let mut facts = well();
        assert_eq!(wrong(&judge(&config, &facts)), []);
        facts.interfaces.get_mut("ext").expect("ext").lro = true;
        assert_eq!(wrong(&judge(&config, &facts)), [(Problem, "ext", "ethtool -K ext lro off")]);
    }
}
