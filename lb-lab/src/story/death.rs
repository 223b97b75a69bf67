//! Chapter 2: a server dies at once and silently, in the middle of mail.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use super::report::{millis, time};
use super::stage::{Load, PROMPT, Stage, describe, run_for, since, slowest};
use crate::process::wait_until;
use crate::traffic::flows::Flow;
use crate::traffic::prober::{Attempt, Failure};
use crate::traffic::smtp::balance;

const FLOWS: usize = 40;
const DETECTION_LIMIT: Duration = Duration::from_secs(10);
/// The initial retransmission timeout of TCP is a second; the rest is the second server's answer.
const ONE_RETRANSMISSION: Duration = Duration::from_millis(1600);
/// Two intervals of a second, half a second of timeout, and some slack.
const TWO_CHECKS: Duration = Duration::from_millis(2800);
/// From the verdict to the last reset.
const RESETS: Duration = Duration::from_secs(1);

pub(super) fn tell(stage: &mut Stage) -> Result<()> {
    stage.report.title("2. mx1 loses power in the middle of mail");
    let load = stage.load("death", FLOWS)?;
    run_for(Duration::from_secs(1))?;
    let before = load.flows.snapshot();
    let doomed = before.iter().filter(|flow| on_mx1(flow)).count();

    let (death, clock) = (Instant::now(), SystemTime::now());
    stage.topology.servers[0].unplug()?;
    stage.sinks[0].kill()?;
    let silent = death.elapsed();
    stage.report.say(&format!(
        "mx1 is off the network within {}, with {doomed} of {FLOWS} open connections",
        time(silent)
    ));

    let down4 = stage.monitor.wait_health("mx1", "down", death, DETECTION_LIMIT)?;
    let down6 = stage.monitor.wait_health("mx1-v6", "down", death, DETECTION_LIMIT)?;
    let detection = down4.after(clock).max(down6.after(clock));
    let detected = down4.at.max(down6.at);
    stage.report.figure("detection_millis", millis(detection));
    stage.report.promise(
        "a dead server is found by two checks",
        detection <= TWO_CHECKS,
        format!("{} after the death", time(detection)),
    );
    let ended = wait_until("the connections to mx1 to end", Duration::from_secs(15), || {
        let gone = load.flows.snapshot().iter().filter(|flow| on_mx1(flow)).all(|flow| flow.end.is_some());
        Ok(gone.then_some(()))
    });
    run_for(Duration::from_millis(1500))?;

    let Load { prober, mailer, flows } = load;
    let attempts = prober.finish()?;
    let mails = mailer.finish()?;
    connections(stage, &attempts, death + silent, detected);
    open_ones(stage, &flows.snapshot(), death, detection, ended.is_ok());

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
    stage.report.figure("death_mail", &result);
    Ok(())
}

fn on_mx1(flow: &Flow) -> bool {
    flow.server.as_deref() == Some("mx1")
}

/// New connections: none fails, none waits longer than one retransmission, soon none waits at all.
fn connections(stage: &mut Stage, attempts: &[Attempt], death: Instant, detected: Instant) {
    let new = since(attempts, death);
    let failed = new.iter().filter(|attempt| attempt.result.is_err()).count();
    let held = new.iter().filter(|attempt| !attempt.prompt(PROMPT)).count();
    let worst = slowest(&new);
    stage.report.promise(
        "no new connection fails, none waits for more than one retransmission",
        failed == 0 && worst <= ONE_RETRANSMISSION && !new.is_empty(),
        format!("{} opened, {failed} failed, {held} had to wait, at most {}", new.len(), time(worst)),
    );
    let survivor = |attempt: &Attempt| attempt.prompt(PROMPT) && attempt.server() == Some("mx2");
    let last = new.iter().rev().find(|attempt| !survivor(attempt));
    let settled = last.map_or(Duration::ZERO, |attempt| attempt.started - death);
    stage.report.say(&format!("{} after the death every new connection went to mx2 at once", time(settled)));
    stage.report.figure("settled_millis", millis(settled));
    stage.report.figure("slowest_connection_millis", millis(worst));
    let after = since(attempts, detected + Duration::from_millis(50));
    stage.report.promise(
        "after the detection every new connection succeeds at once",
        after.iter().all(survivor) && !after.is_empty(),
        format!("{}, at most {}", describe(&after), time(slowest(&after))),
    );
}

/// Connections that were open: to mx1 they end by a reset, to mx2 they never notice.
fn open_ones(stage: &mut Stage, flows: &[Flow], death: Instant, detection: Duration, ended: bool) {
    let dead: Vec<&Flow> = flows.iter().filter(|flow| on_mx1(flow)).collect();
    let ends = || dead.iter().filter_map(|flow| flow.end.as_ref());
    let longest = ends().map(|(at, _)| at.saturating_duration_since(death)).max().unwrap_or_default();
    let resets = ends().filter(|(_, failure)| *failure == Failure::Reset).count();
    stage.report.promise(
        "connections to mx1 are reset as soon as it is found down",
        ended && resets == dead.len() && longest <= detection + RESETS && !dead.is_empty(),
        format!("{resets} of {} reset, the last {} after the death", dead.len(), time(longest)),
    );
    stage.report.figure("last_reset_millis", millis(longest));
    let others: Vec<&Flow> = flows.iter().filter(|flow| !on_mx1(flow)).collect();
    let alive = others.iter().filter(|flow| flow.alive()).count();
    let wait = others.iter().map(|flow| flow.longest_wait).max().unwrap_or_default();
    stage.report.promise(
        "connections to mx2 are not disturbed",
        alive == others.len() && wait < PROMPT,
        format!("{alive} of {} live on, longest wait for an answer {}", others.len(), time(wait)),
    );
}
