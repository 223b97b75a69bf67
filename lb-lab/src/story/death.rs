//! Chapters 2 and 7: a server dies at once and silently, in the middle of mail.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use super::report::{millis, time};
use super::stage::{Load, ONE_RETRANSMISSION, PROMPT, Stage, describe, run_for, since, slowest};
use crate::process::wait_until;
use crate::traffic::flows::Flow;
use crate::traffic::prober::{Attempt, Failure};
use crate::traffic::smtp::balance;

const FLOWS: usize = 40;
const DETECTION_LIMIT: Duration = Duration::from_secs(10);
/// Two intervals of a second, half a second of timeout, and some slack.
const TWO_CHECKS: Duration = Duration::from_millis(2800);
/// From the verdict to the last reset.
const RESETS: Duration = Duration::from_secs(1);

/// Who dies, and who stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Victim {
    pub title: &'static str,
    /// Among the servers, from 0.
    number: usize,
    name: &'static str,
    name_v6: &'static str,
    other: &'static str,
}

pub(super) const MX1: Victim = Victim {
    title: "2. mx1 loses power in the middle of mail",
    number: 0,
    name: "mx1",
    name_v6: "mx1-v6",
    other: "mx2",
};
pub(super) const MX2: Victim = Victim {
    title: "7. mx2, the other server, loses power in the middle of mail",
    number: 1,
    name: "mx2",
    name_v6: "mx2-v6",
    other: "mx1",
};

pub(super) fn tell(stage: &mut Stage, victim: Victim) -> Result<()> {
    let Victim { title, number, name, name_v6, .. } = victim;
    stage.report.title(title);
    let load = stage.load(&format!("death-{name}"), FLOWS)?;
    run_for(Duration::from_secs(1))?;
    let before = load.flows.snapshot();
    let doomed = before.iter().filter(|flow| victim.has(flow)).count();

    let (death, clock) = (Instant::now(), SystemTime::now());
    stage.topology.servers[number].unplug()?;
    stage.sinks[number].kill()?;
    let silent = death.elapsed();
    stage.report.say(&format!(
        "{name} is off the network within {}, with {doomed} of {FLOWS} open connections",
        time(silent)
    ));

    let mut detected = death;
    let mut detections = Vec::new();
    for station in [&stage.gw1, &stage.gw2] {
        let mut detection = Duration::ZERO;
        for name in [name, name_v6] {
            let seen = station.monitor.wait_health(name, "down", death, DETECTION_LIMIT)?;
            detection = detection.max(seen.after(clock));
            detected = detected.max(seen.at);
        }
        detections.push(detection);
    }
    let detection = detections[0];
    stage.report.figure(&format!("{name}_detection_millis"), millis(detection));
    stage.report.promise(
        "a dead server is found by two checks, by both gateways",
        detections.iter().all(|detection| *detection <= TWO_CHECKS),
        format!("gw1 {} after the death, gw2 {}", time(detection), time(detections[1])),
    );
    let ended = wait_until("the connections to end", Duration::from_secs(15), || {
        let gone =
            load.flows.snapshot().iter().filter(|flow| victim.has(flow)).all(|flow| flow.end.is_some());
        Ok(gone.then_some(()))
    });
    run_for(Duration::from_millis(1500))?;

    let Load { prober, mailer, flows } = load;
    let attempts = prober.finish()?;
    let mails = mailer.finish()?;
    victim.connections(stage, &attempts, death + silent, detected);
    victim.open_ones(stage, &flows.snapshot(), death, detection, ended.is_ok());

    let result = balance(&mails, &stage.received()?);
    stage.report.promise(
        "no message that was accepted is lost",
        result.lost == 0 && result.accepted > 0,
        format!("{} sent, {} accepted, {} lost", result.sent, result.accepted, result.lost),
    );
    let later: Vec<_> = mails.iter().filter(|mail| mail.started >= death + silent).collect();
    let failed = later.iter().filter(|mail| mail.error.is_some()).count();
    stage.report.promise(
        "mail begun after the death is accepted, all of it",
        failed == 0 && !later.is_empty(),
        format!("{failed} of {} failed; {} cut off by the death itself", later.len(), result.failed - failed),
    );
    stage.report.figure(&format!("{name}_death_mail"), &result);
    Ok(())
}

/// The server has power again, and is used by both gateways.
pub(super) fn revive(stage: &mut Stage, victim: Victim) -> Result<()> {
    stage.topology.servers[victim.number].plug()?;
    stage.sinks[victim.number].restart()?;
    for station in [&stage.gw1, &stage.gw2] {
        station.wait_healthy()?;
    }
    stage.report.say(&format!("{} is up again", victim.name));
    Ok(())
}

impl Victim {
    fn has(self, flow: &Flow) -> bool {
        flow.server.as_deref() == Some(self.name)
    }

    /// New connections: none fails, none waits longer than one retransmission, soon none waits at all.
    fn connections(self, stage: &mut Stage, attempts: &[Attempt], death: Instant, detected: Instant) {
        let Self { name, other, .. } = self;
        let new = since(attempts, death);
        let failed = new.iter().filter(|attempt| attempt.result.is_err()).count();
        let held = new.iter().filter(|attempt| !attempt.prompt(PROMPT)).count();
        let worst = slowest(&new);
        stage.report.promise(
            "no new connection fails, none waits for more than one retransmission",
            failed == 0 && worst <= ONE_RETRANSMISSION && !new.is_empty(),
            format!("{} opened, {failed} failed, {held} had to wait, at most {}", new.len(), time(worst)),
        );
        let survivor = |attempt: &Attempt| attempt.prompt(PROMPT) && attempt.server() == Some(other);
        let last = new.iter().rev().find(|attempt| !survivor(attempt));
        let settled = last.map_or(Duration::ZERO, |attempt| attempt.started - death);
        stage
            .report
            .say(&format!("{} after the death every new connection went to {other} at once", time(settled)));
        stage.report.figure(&format!("{name}_settled_millis"), millis(settled));
        stage.report.figure(&format!("{name}_slowest_connection_millis"), millis(worst));
        let after = since(attempts, detected + Duration::from_millis(50));
        stage.report.promise(
            "after the detection every new connection succeeds at once",
            after.iter().all(survivor) && !after.is_empty(),
            format!("{}, at most {}", describe(&after), time(slowest(&after))),
        );
    }

    /// Connections that were open: to the dead server they end by a reset, to the other they never notice.
    fn open_ones(self, stage: &mut Stage, flows: &[Flow], death: Instant, detection: Duration, ended: bool) {
        let Self { name, other, .. } = self;
        let dead: Vec<&Flow> = flows.iter().filter(|flow| self.has(flow)).collect();
        let ends = || dead.iter().filter_map(|flow| flow.end.as_ref());
        let longest = ends().map(|(at, _)| at.saturating_duration_since(death)).max().unwrap_or_default();
        let resets = ends().filter(|(_, failure)| *failure == Failure::Reset).count();
        stage.report.promise(
            &format!("connections to {name} are reset as soon as it is found down"),
            ended && resets == dead.len() && longest <= detection + RESETS && !dead.is_empty(),
            format!("{resets} of {} reset, the last {} after the death", dead.len(), time(longest)),
        );
        stage.report.figure(&format!("{name}_last_reset_millis"), millis(longest));
        let others: Vec<&Flow> = flows.iter().filter(|flow| !self.has(flow)).collect();
        let alive = others.iter().filter(|flow| flow.alive()).count();
        let wait = others.iter().map(|flow| flow.longest_wait).max().unwrap_or_default();
        stage.report.promise(
            &format!("connections to {other} are not disturbed"),
            alive == others.len() && wait < PROMPT,
            format!("{alive} of {} live on, longest wait for an answer {}", others.len(), time(wait)),
        );
    }
}
