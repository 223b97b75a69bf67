//! What a reload would do, without doing it.

use super::apply::{CAPACITY_STAYS, Prepared};
use super::request::Refusal;
use super::task::Control;
use crate::api::types::{ChangeKind, ChangedAspect, ConfigChange, ReloadPlan};
use crate::config::{Aspect, Difference, Kind, differences};
use crate::dataplane::plan::plan;
use crate::dataplane::plan::words::words;

impl Control {
    /// Reads the file, finds the differences and the steps, and touches nothing. Refuses what a reload would refuse
    /// before it begins.
    pub(super) fn plan_reload(&self) -> Result<ReloadPlan, Refusal> {
        let Prepared { config, image, .. } = self.prepare_reload()?;
        let actual = self.dataplane.image();
        let steps = plan(actual, &image);
        let stays = config.flows.capacity != self.config.flows.capacity;
        Ok(ReloadPlan {
            changes: differences(&self.config, &config).into_iter().map(ConfigChange::from).collect(),
            operations: steps.iter().map(|step| words(step, actual, &image)).collect(),
            warnings: stays.then(|| CAPACITY_STAYS.to_owned()).into_iter().collect(),
        })
    }
}

impl From<Difference> for ConfigChange {
    fn from(difference: Difference) -> Self {
        let change = match difference.kind {
            Kind::Added => ChangeKind::Added,
            Kind::Removed => ChangeKind::Removed,
            Kind::Changed => ChangeKind::Changed,
        };
        let aspect = |Aspect { name, from, to }| ChangedAspect { name, from, to };
        Self {
            change,
            subject: difference.subject,
            aspects: difference.aspects.into_iter().map(aspect).collect(),
        }
    }
}
