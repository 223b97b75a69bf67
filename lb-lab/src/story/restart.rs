//! Chapter 4: the daemon on the master is killed and started again; the packet path must not notice.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::report::{millis, time};
use super::stage::{Load, PROMPT, Stage, describe, run_for, since, slowest};
use crate::matapa::types::EventKind;
use crate::traffic::smtp::balance;

const FLOWS: usize = 40;
/// The other gateway takes over two seconds after the death at the earliest, and a daemon that starts listens for other
/// masters for one and a half before it advertises.
const ABSENCE: Duration = Duration::from_millis(300);
const SETTLED: Duration = Duration::from_secs(15);

pub(super) fn tell(stage: &mut Stage) -> Result<()> {
    stage
        .report
        .title("4. The daemon on gw1, the master, is killed in the middle of mail, and started again");
    let load = stage.load("kill9", FLOWS)?;
    run_for(Duration::from_secs(1))?;
    let old = stage.gw1.matapa.status()?;
    let killed = Instant::now();
    stage.gw1.matapa.kill()?;
    stage.report.say(&format!("kill -9 {}; nothing is in charge now", old.pid));
    run_for(ABSENCE)?;
    stage.gw1.restart()?;
    let started = Instant::now();
    let new = stage.gw1.matapa.status()?;
    stage.report.say(&format!("matapa runs again after {}", time(started - killed)));
    run_for(Duration::from_millis(1500))?;

    let adopted = stage.gw1.monitor.seen().into_iter().find_map(|seen| match seen.event.kind {
        EventKind::Adopted { services, flows } => Some((services, flows)),
        _ => None,
    });
    let counted = stage.gw1.matapa.status()?.service("mail").map_or(0, |mail| mail.flows);
    let Load { prober, mailer, flows } = load;
    let attempts = prober.finish()?;
    let flows = flows.snapshot();
    let result = balance(&mailer.finish()?, &stage.received()?);

    let all = since(&attempts, killed);
    let alone: Vec<_> = all.iter().filter(|one| one.started < started).cloned().collect();
    let failed = all.iter().filter(|attempt| !attempt.prompt(PROMPT)).count();
    stage.report.promise(
        "no new connection fails while the daemon is away or returns",
        failed == 0 && !alone.is_empty(),
        format!(
            "{failed} of {}; {} while it was away ({}); slowest {}",
            all.len(),
            alone.len(),
            describe(&alone),
            time(slowest(&all))
        ),
    );
    let alive = flows.iter().filter(|flow| flow.alive()).count();
    let wait = flows.iter().map(|flow| flow.longest_wait).max().unwrap_or_default();
    stage.report.promise(
        "open connections do not notice",
        alive == FLOWS && wait < PROMPT,
        format!("{alive} of {FLOWS} live on, longest wait for an answer {}", time(wait)),
    );
    stage.report.promise(
        "no message fails or is lost",
        result.failed == 0 && result.lost == 0 && result.sent > 0,
        format!("{} of {}", result.failed + result.lost, result.sent),
    );
    let words = adopted.map_or_else(
        || format!("{counted} flows counted after the restart"),
        |(services, flows)| format!("{services} service, {flows} flows taken over; {counted} counted now"),
    );
    stage.report.promise(
        "the new daemon adopts the flows of the old one",
        new.pid != old.pid && counted >= FLOWS as u64,
        words,
    );
    // On a slow machine the other gateway may have taken over.
    stage.gw1.wait_carp("master", SETTLED)?;
    stage.gw2.wait_carp("backup", SETTLED)?;
    stage.report.figure("restart_mail", &result);
    stage.report.figure("restart_slowest_millis", millis(slowest(&all)));
    Ok(())
}
