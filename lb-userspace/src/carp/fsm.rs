//! Who is master: the CARP state machine of one vhid. Pure: time is a value, and what is to be done is returned.
//!
//! The transitions are those of OpenBSD where OpenBSD, FreeBSD and ucarp differ, with what makes one setting work with
//! all three at once:
//!
//! - *Timing.* An advertisement every `advbase + advskew/256` seconds; a master is down after `3 * advbase +
//!   advskew/256` seconds without one, as FreeBSD and ucarp have it, or after three intervals, as OpenBSD does
//!   ([`Dialect::OpenBsd`], and always where advbase is 0: the other formula would allow not one to be lost).
//! - *Demotion.* Sent in OpenBSD's field and, since the others ignore that, as an advskew of 240 and more too.
//! - *Ties.* Between two masters with equal timing the one whose source address is lower by ucarp's comparison stays. A
//!   BSD peer yields to any equal advertisement, so it yields to this one.
//! - *Giving way.* A master that gives way to a better one says so in one last advertisement, as ucarp does: the better one
//!   need not have heard it before, and announces the addresses again. A backup does not take over from somebody while it
//!   knows of one better than itself.
//! - *Families.* Any advertisement of a vhid with addresses of both families keeps its master alive: a timer for each
//!   family, as the BSDs have, would change masters every three seconds where one family is blocked.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::wire::BOW_OUT;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

/// Since some start, on a clock that only goes forward.
pub type Time = Duration;

/// After becoming master, when switches and neighbours are told again where the addresses are now.
const ANNOUNCE_AGAIN: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// A master answers a worse master at most this often: two that both think so must not flood the network.
const REASSERT_EVERY: Duration = Duration::from_millis(250);
/// What an operator's `demote` adds.
const OPERATOR: u8 = 128;
/// advskew of whoever is demoted is at least this, as FreeBSD's is at most.
const DEMOTED_SKEW: u8 = 240;
/// The largest one; 255 is for those who leave.
const LARGEST_SKEW: u8 = 254;
/// How much longer than advbase a restarted daemon that finds its addresses in place waits for another master. Together
/// with the last interval of its predecessor and its own start this stays below the three seconds after which another
/// one takes over. A master with an advskew above 128 may be overheard; it gives way to this one, which is faster.
const ADOPTION_SLACK: Duration = Duration::from_millis(500);

/// advbase and advskew; the smaller, the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timing {
    /// Seconds.
    pub base: u8,
    /// 1/256 seconds.
    pub skew: u8,
}

impl Timing {
    /// Between two advertisements. Both zero: 1/256 s, as OpenBSD does.
    #[must_use]
    pub fn interval(self) -> Duration {
        let parts = (u32::from(self.base) * 256 + u32::from(self.skew)).max(1);
        Duration::from_secs(1) * parts / 256
    }

    /// Without an advertisement for this long, a backup with this timing takes over.
    #[must_use]
    pub fn master_down(self, dialect: Dialect) -> Duration {
        match dialect {
            Dialect::Any if self.base > 0 => {
                Duration::from_secs(3) * u32::from(self.base)
                    + Duration::from_secs(1) * u32::from(self.skew) / 256
            }
            _ => 3 * self.interval(),
        }
    }

    fn is_bow_out(self) -> bool {
        (self.base, self.skew) == (BOW_OUT, BOW_OUT)
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "advbase {} advskew {}", self.base, self.skew)
    }
}

/// Whose master-down formula is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// FreeBSD's and ucarp's: works with all.
    #[default]
    Any,
    /// OpenBSD's: takes over in the right order among OpenBSD backups with large skews.
    OpenBsd,
}

/// What an operator configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub timing: Timing,
    /// Take over from a master that advertises more slowly.
    pub preempt: bool,
    /// How long such a master is left in peace first.
    pub preempt_delay: Duration,
    pub dialect: Dialect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The interface or its link is down.
    Init,
    Backup,
    /// Has the addresses.
    Master,
}

impl State {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Backup => "backup",
            Self::Master => "master",
        }
    }
}

/// An advertisement of another node that was found sound and authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub timing: Timing,
    pub demotion: u8,
    pub source: IpAddr,
    /// Where our own advertisements of that family come from.
    pub ours: Option<IpAddr>,
    /// False for IPv6 where there is IPv4 as well: the two families may disagree about who is lower.
    pub breaks_ties: bool,
}

/// What is to be sent: the header without its counter and digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    pub timing: Timing,
    pub demotion: u8,
}

/// What an operator wants regardless of what was configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Nothing special.
    #[default]
    Released,
    /// To be master before all who were not promoted.
    Promoted,
    /// To be master only if there is no other.
    Demoted,
}

impl Wish {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Promoted => "promoted",
            Self::Demoted => "demoted",
        }
    }
}

/// Why the state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    LinkUp,
    LinkDown,
    /// No advertisement for the master-down time.
    Silence(Duration),
    /// The master said that it goes away.
    BowOut(IpAddr),
    /// The master advertises so slowly that it would be taken for dead.
    TooSlow(IpAddr, Timing),
    /// The master is demoted more than this node.
    MoreDemoted(IpAddr, u8),
    /// The master advertises more slowly, and `preempt` is on.
    Preempted(IpAddr, Timing),
    /// Another master advertises faster.
    Faster(IpAddr, Timing),
    /// Another master advertises as fast and has the lower address.
    Tie(IpAddr),
    /// Another master is demoted less.
    LessDemoted(IpAddr, u8),
    OperatorPromoted,
    Stopped,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkUp => f.write_str("the link is up"),
            Self::LinkDown => f.write_str("the link is down"),
            Self::Silence(time) => write!(f, "no advertisement for {:.3} s", time.as_secs_f64()),
            Self::BowOut(source) => write!(f, "the master {source} goes away"),
            Self::TooSlow(source, timing) => {
                write!(f, "the master {source} advertises too slowly ({timing})")
            }
            Self::MoreDemoted(source, by) => write!(f, "the master {source} is demoted by {by}"),
            Self::Preempted(source, timing) => write!(f, "preempts the slower master {source} ({timing})"),
            Self::Faster(source, timing) => write!(f, "{source} advertises faster ({timing})"),
            Self::Tie(source) => write!(f, "{source} advertises as fast and has the lower address"),
            Self::LessDemoted(source, by) => write!(f, "the master {source} is demoted less (by {by})"),
            Self::OperatorPromoted => f.write_str("promoted by an operator"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send it over each family that the vhid has addresses of.
    Advertise(Advertisement),
    Changed {
        from: State,
        to: State,
        reason: Reason,
    },
    /// Tell the neighbours where the addresses are: gratuitous ARP, unsolicited neighbour advertisement.
    Announce,
    /// Send it as [`Action::Advertise`], but where the addresses have a MAC address of their own: neighbours know no other
    /// then, and a switch would learn of it here once more.
    GiveWay(Advertisement),
}

/// One vhid's state.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    wish: Wish,
    /// What the group of this vhid adds up to.
    group_demotion: u8,
    /// Backup that keeps the addresses it found in place until it is known whether there is another master.
    adopting: bool,
    /// Master: the next advertisement. Backup: when the master is taken for dead.
    deadline: Option<Time>,
    /// Master: the next repeated announcement, and which one it is.
    announce: Option<(Time, usize)>,
    last_reassert: Option<Time>,
    /// Backup: since when there has been a master that could be preempted.
    preemptible_since: Option<Time>,
    /// Backup: the last one heard that is better than this node, and when.
    better: Option<(IpAddr, Time)>,
}

impl Machine {
    /// In [`State::Init`] until the link is said to be up. `adopting`: the addresses are on the interface already, left
    /// by a daemon that died as master.
    #[must_use]
    pub fn new(settings: Settings, adopting: bool) -> Self {
        Self {
            settings,
            state: State::Init,
            wish: Wish::Released,
            group_demotion: 0,
            adopting,
            deadline: None,
            announce: None,
            last_reassert: None,
            preemptible_since: None,
            better: None,
        }
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    #[must_use]
    pub fn wish(&self) -> Wish {
        self.wish
    }

    /// Whether the addresses belong on the interface.
    #[must_use]
    pub fn holds_addresses(&self) -> bool {
        self.state == State::Master || (self.state == State::Backup && self.adopting)
    }

    /// As sent in advertisements.
    #[must_use]
    pub fn demotion(&self) -> u8 {
        match self.wish {
            Wish::Released => self.group_demotion,
            Wish::Promoted => 0,
            Wish::Demoted => self.group_demotion.saturating_add(OPERATOR),
        }
    }

    /// As sent in advertisements: what is configured, made worse by demotion and better by an operator's wish.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let Timing { base, skew } = self.settings.timing;
        if self.wish == Wish::Promoted {
            // Faster than anything with the same base.
            return if base > 0 {
                Timing { base: base - 1, skew: LARGEST_SKEW }
            } else {
                Timing { base, skew: 0 }
            };
        }
        if self.demotion() == 0 {
            return self.settings.timing;
        }
        // Those who are demoted keep their order among themselves.
        let above = u32::from(skew) * u32::from(LARGEST_SKEW - DEMOTED_SKEW) / u32::from(LARGEST_SKEW);
        let skew = DEMOTED_SKEW.saturating_add(u8::try_from(above).unwrap_or(0)).min(LARGEST_SKEW);
        Timing { base, skew }
    }

    /// When [`Machine::on_timer`] is to be called, at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let announce = self.announce.map(|(at, _)| at);
        self.deadline.into_iter().chain(announce).min()
    }

    fn advertisement(&self) -> Action {
        Action::Advertise(Advertisement { timing: self.timing(), demotion: self.demotion() })
    }

    fn adoption(&self) -> Duration {
        Duration::from_secs(u64::from(self.timing().base)) + ADOPTION_SLACK
    }

    fn master_down(&self) -> Duration {
        self.timing().master_down(self.settings.dialect)
    }

    /// The interface is up and has a link, or not.
    pub fn on_link(&mut self, now: Time, up: bool) -> Vec<Action> {
        match (up, self.state) {
            (true, State::Init) => {
                let adopting = self.adopting;
                let actions = self.become_backup(now, Reason::LinkUp);
                if adopting {
                    self.adopting = true;
                    self.deadline = Some(now + self.adoption());
                }
                actions
            }
            (false, State::Backup | State::Master) => self.become_init(Reason::LinkDown),
            _ => Vec::new(),
        }
    }

    /// The group's demotion. A master tells it at once, so that a better node need not wait.
    pub fn set_demotion(&mut self, now: Time, demotion: u8) -> Vec<Action> {
        if self.group_demotion == demotion {
            return Vec::new();
        }
        let before = (self.demotion(), self.timing());
        self.group_demotion = demotion;
        if self.state == State::Master && before != (self.demotion(), self.timing()) {
            return self.advertise_now(now);
        }
        Vec::new()
    }

    /// An operator's wish.
    pub fn set_wish(&mut self, now: Time, wish: Wish) -> Vec<Action> {
        if self.wish == wish {
            return Vec::new();
        }
        self.wish = wish;
        match (wish, self.state) {
            (_, State::Init) => Vec::new(),
            (Wish::Promoted, State::Backup) => self.become_master(now, Reason::OperatorPromoted),
            (Wish::Demoted, State::Master) => {
                // As at an end, so that also a peer takes over that heeds neither demotion nor a slower master. Until one
                // is heard, the addresses stay: there may be none.
                self.deadline = Some(now + self.timing().interval());
                vec![bow_out(self.demotion())]
            }
            (_, State::Master) => self.advertise_now(now),
            (_, State::Backup) => Vec::new(),
        }
    }

    /// Other settings from a reload. The state stays.
    pub fn set_settings(&mut self, now: Time, settings: Settings) -> Vec<Action> {
        if self.settings == settings {
            return Vec::new();
        }
        self.settings = settings;
        match self.state {
            State::Init => Vec::new(),
            State::Backup => {
                self.deadline = Some(now + self.master_down());
                Vec::new()
            }
            State::Master => self.advertise_now(now),
        }
    }

    /// The daemon stops or forgets the vhid: the others need not wait for its silence.
    pub fn stop(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.state == State::Master {
            actions.push(bow_out(self.demotion()));
        }
        self.adopting = false;
        if self.state != State::Init {
            actions.extend(self.become_init(Reason::Stopped));
        }
        actions
    }

    pub fn on_packet(&mut self, now: Time, heard: &Heard) -> Vec<Action> {
        match self.state {
            State::Init => Vec::new(),
            State::Backup => self.heard_as_backup(now, heard),
            State::Master => self.heard_as_master(now, heard),
        }
    }

    fn heard_as_backup(&mut self, now: Time, heard: &Heard) -> Vec<Action> {
        // Whoever advertises is master, or was until now.
        self.adopting = false;
        let Heard { timing: theirs, demotion: their_demotion, source, .. } = *heard;
        if theirs.is_bow_out() {
            return self.become_master(now, Reason::BowOut(source));
        }
        let (ours, our_demotion) = (self.timing(), self.demotion());
        let (mine, theirs_is) = ((our_demotion, ours.interval()), (their_demotion, theirs.interval()));
        match self.better {
            // When a network grows together again, a worse master is heard that is about to give way.
            Some((best, at)) if theirs_is > mine && best != source && now < at + self.master_down() => {
                return Vec::new();
            }
            _ => self.better = (theirs_is < mine).then_some((source, now)),
        }
        if their_demotion > our_demotion {
            return self.become_master(now, Reason::MoreDemoted(source, their_demotion));
        }
        if ours.interval() < theirs.interval() && their_demotion == our_demotion {
            let since = *self.preemptible_since.get_or_insert(now);
            let promoted = self.wish == Wish::Promoted;
            if promoted || (self.settings.preempt && now >= since + self.settings.preempt_delay) {
                return self.become_master(now, Reason::Preempted(source, theirs));
            }
        } else {
            self.preemptible_since = None;
        }
        let base = Duration::from_secs(3) * u32::from(ours.base);
        if ours.base > 0 && base < theirs.interval() {
            return self.become_master(now, Reason::TooSlow(source, theirs));
        }
        self.deadline = Some(now + self.master_down());
        Vec::new()
    }

    fn heard_as_master(&mut self, now: Time, heard: &Heard) -> Vec<Action> {
        let Heard { timing: theirs, demotion: their_demotion, source, .. } = *heard;
        if !theirs.is_bow_out() {
            let speed = self.timing().interval().cmp(&theirs.interval());
            match their_demotion.cmp(&self.demotion()) {
                Ordering::Less => {
                    return self.give_way(now, Reason::LessDemoted(source, their_demotion), source);
                }
                Ordering::Equal => match speed {
                    Ordering::Greater => return self.give_way(now, Reason::Faster(source, theirs), source),
                    Ordering::Equal if heard.breaks_ties && yields_tie(heard) => {
                        return self.give_way(now, Reason::Tie(source), source);
                    }
                    Ordering::Equal if !heard.breaks_ties => return Vec::new(),
                    Ordering::Equal | Ordering::Less => {}
                },
                Ordering::Greater => {}
            }
        }
        self.reassert(now)
    }

    /// A better master was heard, which may not have heard this one: it must learn of it to announce the addresses again.
    fn give_way(&mut self, now: Time, reason: Reason, to: IpAddr) -> Vec<Action> {
        let last = Action::GiveWay(Advertisement { timing: self.timing(), demotion: self.demotion() });
        let tie = matches!(reason, Reason::Tie(_));
        let mut actions = self.become_backup(now, reason);
        self.better = Some((to, now));
        // A BSD that is as fast would give way as well; and one a little slower would be preempted by a third that is.
        if !tie {
            // When the addresses are gone, so that nothing is answered any more after the others have been told.
            actions.push(last);
        }
        actions
    }

    /// Another, worse master was heard, which may have announced the addresses as its own.
    fn reassert(&mut self, now: Time) -> Vec<Action> {
        if let Some(again) = self.last_reassert.map(|last| last + REASSERT_EVERY)
            && now < again
        {
            // Not yet, but earlier than usual.
            self.deadline = self.deadline.map(|deadline| deadline.min(again));
            self.announce = Some((again, 0));
            return Vec::new();
        }
        self.last_reassert = Some(now);
        let mut actions = self.advertise_now(now);
        actions.push(Action::Announce);
        self.announce = Some((now + ANNOUNCE_AGAIN[0], 0));
        actions
    }

    /// Time has come to what [`Machine::next_deadline`] said. Packets that had arrived by then are to be given first.
    pub fn on_timer(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            match self.state {
                State::Master => actions.extend(self.advertise_on_time(now)),
                State::Backup => {
                    let waited = if self.adopting { self.adoption() } else { self.master_down() };
                    actions.extend(self.become_master(now, Reason::Silence(waited)));
                }
                State::Init => self.deadline = None,
            }
        }
        if let Some((at, step)) = self.announce
            && at <= now
        {
            actions.push(Action::Announce);
            let next = step + 1;
            self.announce = ANNOUNCE_AGAIN.get(next).map(|pause| (now + *pause - ANNOUNCE_AGAIN[step], next));
        }
        actions
    }

    fn advertise_now(&mut self, now: Time) -> Vec<Action> {
        self.deadline = Some(now + self.timing().interval());
        vec![self.advertisement()]
    }

    /// The next one an interval after the time of this one, even if that was a little late.
    fn advertise_on_time(&mut self, now: Time) -> Vec<Action> {
        let interval = self.timing().interval();
        let on_time = self.deadline.unwrap_or(now) + interval;
        self.deadline = Some(if on_time > now { on_time } else { now + interval });
        vec![self.advertisement()]
    }

    fn become_master(&mut self, now: Time, reason: Reason) -> Vec<Action> {
        let from = self.enter(State::Master);
        self.announce = Some((now + ANNOUNCE_AGAIN[0], 0));
        let mut actions = vec![Action::Changed { from, to: State::Master, reason }];
        actions.extend(self.advertise_now(now));
        actions.push(Action::Announce);
        actions
    }

    fn become_backup(&mut self, now: Time, reason: Reason) -> Vec<Action> {
        let from = self.enter(State::Backup);
        self.deadline = Some(now + self.master_down());
        vec![Action::Changed { from, to: State::Backup, reason }]
    }

    fn become_init(&mut self, reason: Reason) -> Vec<Action> {
        let from = self.enter(State::Init);
        vec![Action::Changed { from, to: State::Init, reason }]
    }

    fn enter(&mut self, state: State) -> State {
        self.deadline = None;
        self.announce = None;
        self.last_reassert = None;
        self.preemptible_since = None;
        self.better = None;
        self.adopting = false;
        std::mem::replace(&mut self.state, state)
    }
}

fn bow_out(demotion: u8) -> Action {
    Action::Advertise(Advertisement { timing: Timing { base: BOW_OUT, skew: BOW_OUT }, demotion })
}

/// ucarp compares IPv4 addresses as integers in the order of its own processor, which is little-endian: the last octet
/// decides first. IPv6 addresses, which it does not know, are compared from the front.
fn yields_tie(heard: &Heard) -> bool {
    match (heard.source, heard.ours) {
        (IpAddr::V4(theirs), Some(IpAddr::V4(ours))) => {
            u32::from_le_bytes(theirs.octets()) < u32::from_le_bytes(ours.octets())
        }
        (IpAddr::V6(theirs), Some(IpAddr::V6(ours))) => theirs.octets() < ours.octets(),
        _ => true,
    }
}
