//! Chapter 3: the server returns, is drained by an operator, and is used again.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::report::{millis, time};
use super::stage::{Load, PROMPT, Stage, describe, run_for, since, slowest};
use crate::process::wait_until;
use crate::traffic::Prober;
use crate::traffic::smtp::balance;

const FLOWS: usize = 20;
const BACK_LIMIT: Duration = Duration::from_secs(10);
/// One check interval, one check, and the change itself.
const BACK: Duration = Duration::from_secs(3);
const NAMES: [&str; 2] = ["mx1", "mx1-v6"];

pub(super) fn tell(stage: &mut Stage) -> Result<()> {
    stage.report.title("3. mx1 returns, and is then drained by hand");
    let (back, load) = returns(stage)?;
    stage.report.promise(
        "a server that returns is used again without a hand",
        back <= BACK,
        format!("{} after its mail server was there again", time(back)),
    );
    stage.report.figure("return_millis", millis(back));

    for name in NAMES {
        for station in [&stage.gw1, &stage.gw2] {
            station.matapa.backend("drain", name, "mail")?;
        }
    }
    let drained = Instant::now();
    stage.report.say("matapa backend drain mx1, mx1-v6; on both gateways");
    let before = load.flows.snapshot();
    run_for(Duration::from_millis(1500))?;
    let after = load.flows.snapshot();
    let status = stage.gw1.matapa.status()?;
    let counted: u64 = NAMES.iter().filter_map(|name| status.backend(name)).map(|one| one.flows).sum();
    let own = after.iter().filter(|flow| flow.server.as_deref() == Some("mx1")).count();
    let busy = before
        .iter()
        .zip(&after)
        .filter(|(old, new)| {
            new.server.as_deref() == Some("mx1") && new.alive() && new.exchanges > old.exchanges
        })
        .count();
    stage.report.promise(
        "connections to a drained server go on",
        busy == own && own > 0,
        format!("{busy} of {own} still exchange; matapa counts {counted} flows there"),
    );

    for name in NAMES {
        for station in [&stage.gw1, &stage.gw2] {
            station.matapa.backend("enable", name, "mail")?;
        }
    }
    let enabled = Instant::now();
    let first = first_mx1(&load.prober, enabled, Duration::from_secs(5));
    let Load { prober, mailer, flows: _flows } = load;
    let attempts = prober.finish()?;
    let while_drained: Vec<_> =
        since(&attempts, drained).into_iter().filter(|attempt| attempt.started < enabled).collect();
    let during: Vec<_> = while_drained
        .iter()
        // Begun while the commands to enable were running.
        .filter(|attempt| attempt.started + Duration::from_millis(150) < enabled)
        .cloned()
        .collect();
    stage.report.promise(
        "a drained server gets no new connection",
        during.iter().all(|attempt| attempt.server() == Some("mx2")) && !during.is_empty(),
        describe(&during),
    );
    let failed = attempts.iter().filter(|attempt| !attempt.prompt(PROMPT)).count();
    let result = balance(&mailer.finish()?, &stage.received()?);
    stage.report.promise(
        "return, drain and re-enabling cost no connection and no message",
        failed == 0 && result.failed == 0 && result.lost == 0,
        format!(
            "{failed} of {} connections (slowest {}), {} of {} messages",
            attempts.len(),
            time(slowest(&attempts)),
            result.failed + result.lost,
            result.sent
        ),
    );
    stage.report.promise(
        "an enabled server is used again at once",
        first.as_ref().is_ok_and(|took| *took < Duration::from_secs(1)),
        first.as_ref().map_or_else(|error| format!("{error:#}"), |took| time(*took)),
    );
    stage.report.figure("drain_mail", &result);
    Ok(())
}

/// Plugs mx1 in again, and measures the time to its first connection.
fn returns(stage: &mut Stage) -> Result<(Duration, Load)> {
    let netns = &stage.topology.client()?.netns;
    let prober =
        Prober::start(netns, super::stage::vips(), Duration::from_millis(10), Duration::from_secs(10))?;
    stage.topology.servers[0].plug()?;
    stage.sinks[0].restart()?;
    let there = Instant::now();
    for name in NAMES {
        stage.gw1.monitor.wait_health(name, "up", there, BACK_LIMIT)?;
    }
    let back = first_mx1(&prober, there, BACK_LIMIT)?;
    stage.report.say(&format!("mx1 is up; its first new connection came after {}", time(back)));
    drop(prober);
    // Connections of both families to both servers, before the draining.
    Ok((back, stage.load("drain", FLOWS)?))
}

/// The time from `from` to the first connection that mx1 took.
fn first_mx1(prober: &Prober, from: Instant, limit: Duration) -> Result<Duration> {
    wait_until("a new connection to mx1", limit, || {
        let attempts = since(&prober.attempts(), from);
        let first =
            attempts.iter().filter(|attempt| attempt.server() == Some("mx1")).min_by_key(|one| one.started);
        Ok(first.map(|attempt| attempt.started - from))
    })
}
