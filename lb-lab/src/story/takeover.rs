//! Chapters 5 and 6: the master gateway loses power and comes back, in the middle of a large message and of a
//! bulk transfer that go on all the time.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use super::report::{bytes, millis, time};
use super::stage::{Load, ONE_RETRANSMISSION, PROMPT, Stage, bulk, run_for, slowest, vips};
use crate::process::wait_until;
use crate::traffic::prober::{Attempt, silence};
use crate::traffic::smtp::balance;
use crate::traffic::udp::UdpStream;
use crate::traffic::{Flows, LargeMail, Progress, Transfer};

const FLOWS: usize = 40;
/// Three advertisements that do not come, one a second, and 10/256 s each for the backup's advskew; and slack.
const TAKEOVER: Duration = Duration::from_millis(3200);
/// TCP repeats after its timeout, which is 0.2 s and the round trip, and then after twice the time each: here at the fifth
/// repetition, 31 timeouts, if the fourth one comes just before the takeover. A round trip on a busy machine is 0.06 s.
const NEXT_RETRANSMISSION: Duration = Duration::from_millis(31 * 260);
/// A return is between two packets, but for neighbours that are asked for once; and slack.
const RETURN: Duration = Duration::from_millis(500);
/// For the whole return: a start, the flows, and the delay of the configuration.
const RETURN_LIMIT: Duration = Duration::from_secs(20);
/// Bytes per second.
const MAIL_RATE: u32 = 1 << 20;
const BULK_RATE: u32 = 8 << 20;
/// The sender of the large message.
const LARGE: &str = "large";

/// What is under way through both chapters.
#[derive(Debug)]
pub(super) struct Crossing {
    mail: LargeMail,
    bulk: Transfer,
}

/// Chapter 5.
pub(super) fn leave(stage: &mut Stage) -> Result<Crossing> {
    stage
        .report
        .title("5. gw1, the master, loses power in the middle of a large message and of a bulk transfer");
    let netns = &stage.topology.client()?.netns;
    // One by IPv4, the other by IPv6.
    let crossing = Crossing {
        mail: LargeMail::start(netns, vips()[0], LARGE, MAIL_RATE)?,
        bulk: Transfer::start(netns, bulk()[1], BULK_RATE)?,
    };
    let watch = Watch::start(stage, "takeover")?;
    run_for(Duration::from_secs(1))?;
    all_through_gw1(stage, "until then all packets go through gw1")?;
    let (mail, transfer) = (crossing.mail.progress(), crossing.bulk.progress());
    let gateway = &stage.topology.gateways[0];
    let (death, clock) = (Instant::now(), SystemTime::now());
    let dead = stage.gw1.lose_power(gateway)?;
    stage.report.say(&format!(
        "kill -9 of all on gw1, its cables dead within {}; {} of the message and {} of the transfer are through",
        time(dead),
        bytes(mail.bytes),
        bytes(transfer.bytes)
    ));
    let took = stage.gw2.wait_carp_events("master", (death, clock), Duration::from_secs(10))?;
    stage.report.say(&format!("gw2 is master on both sides {} after the death", time(took)));
    stage.report.figure("takeover_millis", millis(took));
    watch.wait_moving()?;
    crossing.wait_moving(mail, transfer)?;
    run_for(Duration::from_secs(1))?;

    let seen = watch.finish()?;
    seen.forwarding(stage, "takeover", TAKEOVER);
    stage.report.promise(
        "no new connection fails",
        seen.failed() == 0 && !seen.attempts.is_empty(),
        seen.told(),
    );
    seen.open_ones(stage, NEXT_RETRANSMISSION);
    seen.mail(stage, "takeover")?;
    let (mail_now, transfer_now) = (crossing.mail.progress(), crossing.bulk.progress());
    stage.report.promise(
        "the large message and the transfer go on through gw2",
        [mail_now, transfer_now].iter().all(|one| one.longest_stall <= NEXT_RETRANSMISSION),
        format!(
            "{} and {} more; they stood still for {} and {}",
            bytes(mail_now.bytes - mail.bytes),
            bytes(transfer_now.bytes - transfer.bytes),
            time(mail_now.longest_stall),
            time(transfer_now.longest_stall)
        ),
    );
    Ok(crossing)
}

/// Chapter 6.
pub(super) fn come_back(stage: &mut Stage, crossing: Crossing) -> Result<()> {
    stage.report.title("6. gw1 comes back, while the message and the transfer go on");
    let watch = Watch::start(stage, "return")?;
    run_for(Duration::from_secs(1))?;
    let (plugged, clock) = (Instant::now(), SystemTime::now());
    // A machine that starts has its own addresses and no others.
    stage.topology.replace_cables(&stage.topology.gateways[0])?;
    stage.gw1.restart()?;
    stage.report.say(&format!("gw1 has power and runs matapa again after {}", time(plugged.elapsed())));
    let (flows, received, early) = wait_until("gw1 to have all flows", RETURN_LIMIT, || {
        let sync = stage.gw1.matapa.sync()?;
        if !sync.received_all {
            return Ok(None);
        }
        let early = !stage.gw1.matapa.carp()?.vhids.iter().any(|vhid| vhid.state == "master");
        Ok(Some((sync.flows_received, plugged.elapsed(), early)))
    })?;
    let took = stage.gw1.wait_carp_events("master", (plugged, clock), RETURN_LIMIT)?;
    stage.gw2.wait_carp("backup", RETURN_LIMIT)?;
    stage.report.promise(
        "gw1 gets the flows of gw2, all of them, before it is master",
        early && received < took && flows >= FLOWS as u64,
        format!("{flows} flows, {} after its return", time(received)),
    );
    stage.report.promise(
        "gw1 is master again without a hand (preempt)",
        took <= RETURN_LIMIT,
        format!("{} after its return; gw2 is backup", time(took)),
    );
    stage.report.figure("preempt_millis", millis(took));
    // Neighbours may ignore the first announcement, and the second comes after a second.
    run_for(Duration::from_millis(1500))?;
    all_through_gw1(stage, "all packets go through gw1 again")?;

    let seen = watch.finish()?;
    seen.forwarding(stage, "return", RETURN);
    // One that is asked for through one gateway and answered through the other, in the milliseconds between the two
    // sides' moving, is not known there yet.
    let worst = slowest(&seen.attempts);
    stage.report.promise(
        "no new connection fails, none waits for more than one retransmission",
        seen.failed() == 0 && worst <= ONE_RETRANSMISSION && !seen.attempts.is_empty(),
        seen.told(),
    );
    seen.open_ones(stage, PROMPT);
    seen.mail(stage, "return")?;
    crossing.finish(stage)
}

/// Looks for a second which gateway forwards what.
fn all_through_gw1(stage: &mut Stage, promise: &str) -> Result<()> {
    let count = |stage: &Stage| Ok::<_, anyhow::Error>((stage.gw1.forwarded()?, stage.gw2.forwarded()?));
    let before = count(stage)?;
    run_for(Duration::from_secs(1))?;
    let after = count(stage)?;
    let (first, second) = (after.0 - before.0, after.1 - before.1);
    stage.report.promise(
        promise,
        first > 0 && second == 0,
        format!("{first} in a second, {second} through gw2"),
    );
    Ok(())
}

impl Crossing {
    /// Waits until more of both is through than was.
    fn wait_moving(&self, mail: Progress, bulk: Progress) -> Result<()> {
        // Beyond what was under way and acknowledged at the moment of the death.
        let enough = |now: Progress, then: Progress| now.bytes > then.bytes + (256 << 10);
        wait_until("the large message and the transfer to go on", NEXT_RETRANSMISSION * 2, || {
            let both = enough(self.mail.progress(), mail) && enough(self.bulk.progress(), bulk);
            Ok(both.then_some(()))
        })
    }

    /// Both end, and are compared with what the servers have.
    fn finish(self, stage: &mut Stage) -> Result<()> {
        let (mail_stall, bulk_stall) =
            (self.mail.progress().longest_stall, self.bulk.progress().longest_stall);
        let taken = self.mail.finish();
        let mut dumps = Vec::new();
        for sink in &stage.sinks {
            dumps.extend(sink.dumps(LARGE)?);
        }
        let whole = taken.as_ref().is_ok_and(|taken| dumps.len() == 1 && taken.is_whole(&dumps[0]));
        let figures = match &taken {
            Ok(taken) if whole => {
                format!(
                    "{} by IPv4, 250 by {}, all {} lines there",
                    bytes(taken.bytes),
                    taken.server,
                    taken.lines
                )
            }
            Ok(taken) => {
                format!("250 by {}, but {} messages there, of other lines", taken.server, dumps.len())
            }
            Err(error) => format!("{error:#}"),
        };
        stage.report.promise("the large message is accepted and arrives whole, once", whole, figures);
        let transferred = self.bulk.finish();
        let whole = transferred.as_ref().is_ok_and(|one| one.whole() && one.bytes > 0);
        let figures = match &transferred {
            Ok(one) if whole => {
                format!("{} bytes by IPv6, {} has the same SHA-256", one.bytes, one.server)
            }
            Ok(one) => format!("sent {}; {} has {}", one.sent, one.server, one.received),
            Err(error) => format!("{error:#}"),
        };
        stage.report.promise("the bulk transfer arrives whole", whole, figures);
        stage.report.figure("large_message_longest_stall_millis", millis(mail_stall));
        stage.report.figure("bulk_transfer_longest_stall_millis", millis(bulk_stall));
        Ok(())
    }
}

/// What shows how it goes.
struct Watch {
    load: Load,
    datagrams: Vec<UdpStream>,
}

/// What was seen.
struct Sight {
    attempts: Vec<Attempt>,
    flows: Flows,
    mails: Vec<crate::traffic::smtp::Mail>,
    /// The longest time without an answer to a datagram, of both families.
    silence: Duration,
    lost: usize,
    sent: u64,
}

impl Watch {
    fn start(stage: &Stage, tag: &str) -> Result<Self> {
        Ok(Self { load: stage.load(tag, FLOWS)?, datagrams: stage.datagrams()? })
    }

    /// Waits until every connection that is open has got an answer again.
    fn wait_moving(&self) -> Result<()> {
        let before = self.load.flows.snapshot();
        wait_until("the open connections to go on", NEXT_RETRANSMISSION * 2, || {
            let now = self.load.flows.snapshot();
            let moved =
                before.iter().zip(&now).all(|(old, new)| !new.alive() || new.exchanges > old.exchanges + 1);
            Ok(moved.then_some(()))
        })
    }

    fn finish(self) -> Result<Sight> {
        let Load { prober, mailer, flows } = self.load;
        let (mut silence, mut lost, mut sent) = (Duration::ZERO, 0, 0);
        for stream in self.datagrams {
            let datagrams = stream.finish()?;
            silence = silence.max(datagrams.silence);
            lost += datagrams.lost.len();
            sent += datagrams.sent;
        }
        Ok(Sight { attempts: prober.finish()?, flows, mails: mailer.finish()?, silence, lost, sent })
    }
}

impl Sight {
    fn failed(&self) -> usize {
        self.attempts.iter().filter(|attempt| attempt.result.is_err()).count()
    }

    fn told(&self) -> String {
        let waited = self.attempts.iter().filter(|attempt| !attempt.prompt(PROMPT)).count();
        format!(
            "{} opened, {} failed, {waited} had to wait, at most {}",
            self.attempts.len(),
            self.failed(),
            time(slowest(&self.attempts))
        )
    }

    /// The time without forwarding: none of what was tried every few milliseconds came through.
    fn forwarding(&self, stage: &mut Stage, what: &str, limit: Duration) {
        let new = silence(&self.attempts);
        stage.report.promise(
            &format!("new connections are without forwarding for at most {}", time(limit)),
            new <= limit && !self.attempts.is_empty(),
            time(new),
        );
        stage.report.promise(
            &format!("what is open is without forwarding for at most {}", time(limit)),
            self.silence <= limit && self.sent > 0,
            format!("{}; {} of {} datagrams lost", time(self.silence), self.lost, self.sent),
        );
        stage.report.figure(&format!("{what}_silence_new_millis"), millis(new));
        stage.report.figure(&format!("{what}_silence_open_millis"), millis(self.silence));
        stage.report.figure(&format!("{what}_slowest_connection_millis"), millis(slowest(&self.attempts)));
    }

    fn open_ones(&self, stage: &mut Stage, limit: Duration) {
        let flows = self.flows.snapshot();
        let alive = flows.iter().filter(|flow| flow.alive()).count();
        let wait = flows.iter().map(|flow| flow.longest_wait).max().unwrap_or_default();
        stage.report.promise(
            "open connections go on",
            alive == FLOWS && wait <= limit,
            format!("{alive} of {FLOWS} live on, longest wait for an answer {}", time(wait)),
        );
    }

    fn mail(&self, stage: &mut Stage, what: &str) -> Result<()> {
        let result = balance(&self.mails, &stage.received()?);
        stage.report.promise(
            "no message fails or is lost",
            result.failed == 0 && result.lost == 0 && result.sent > 0,
            format!("{} of {}", result.failed + result.lost, result.sent),
        );
        stage.report.figure(&format!("{what}_mail"), &result);
        Ok(())
    }
}
