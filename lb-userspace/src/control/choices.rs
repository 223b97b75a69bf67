//! Which backends each listener hands new flows to, of all that could take some: those of its pool or those of its
//! backup, of these the ones with the best priority, and each with the weight that its slow start has reached.
//!
//! Pure: the time comes in as a value. A service that has none of this is not in here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::config::{Config, Listen, Member, Quorum, Role, Service};
use crate::dataplane::image::serves;

/// Steps in which the weight of a backend rises after it has come up. Each costs a table.
pub const STEPS: u16 = 10;

/// What is known of one backend behind one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Up, enabled, and with a weight.
    pub well: bool,
    /// Well, but the packet path found it silent. It counts for the quorum: a suspicion is no verdict.
    pub suspect: bool,
    /// The full weight.
    pub weight: u16,
    /// Asked the first time: it took new flows before, so that its slow start, if it had one, is over.
    pub established: bool,
}

/// What a listener's new flows go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Using {
    Pool(Role),
    #[default]
    Nothing,
}

/// What a pool has to offer behind a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offer {
    /// Of the backends that count for the quorum.
    weight: u32,
    /// The best priority of a backend that can take flows.
    best: Option<u8>,
}

/// One listener's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Choice {
    using: Using,
    /// The priority that is used of it.
    priority: u8,
    /// Whether the pool and the backup have their quorums, once they have been looked at.
    quorate: [Option<bool>; 2],
    /// Since when the pool could be used again, while the backup still is.
    back: Option<Instant>,
    /// The backup is used because the pool was lost, not because it was first.
    lost: bool,
}

impl Choice {
    /// Takes in what the pools offer now. Says at what time it may be another choice without any news.
    fn step(
        &mut self,
        now: Instant,
        offers: [Offer; 2],
        quorums: [Quorum; 2],
        hold: Duration,
    ) -> Option<Instant> {
        let mut usable = [false; 2];
        for role in 0..2 {
            let Quorum { weight, hysteresis } = quorums[role];
            let needed = match self.quorate[role] {
                // The first time without a margin: nothing has swung yet.
                None => weight,
                Some(true) => weight.saturating_sub(hysteresis),
                Some(false) => weight.saturating_add(hysteresis),
            };
            let quorate = offers[role].weight >= needed;
            if quorate || self.quorate[role].is_some() {
                self.quorate[role] = Some(quorate);
            }
            usable[role] = quorate && offers[role].best.is_some();
        }
        let [pool, backup] = usable;
        let before = self.using;
        if !pool {
            self.back = None;
        }
        let mut until = None;
        self.using = match (pool, backup) {
            (false, false) => Using::Nothing,
            (false, true) => {
                self.lost |= before == Using::Pool(Role::Primary);
                Using::Pool(Role::Backup)
            }
            (true, true) if before == Using::Pool(Role::Backup) && self.lost && !hold.is_zero() => {
                let end = *self.back.get_or_insert(now) + hold;
                if now < end {
                    until = Some(end);
                    Using::Pool(Role::Backup)
                } else {
                    Using::Pool(Role::Primary)
                }
            }
            (true, _) => Using::Pool(Role::Primary),
        };
        if self.using == Using::Pool(Role::Primary) {
            (self.back, self.lost) = (None, false);
        }
        self.priority = match self.using {
            Using::Pool(role) => offers[role as usize].best.unwrap_or_default(),
            Using::Nothing => 0,
        };
        until
    }
}

/// The slow start of one backend behind one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ramp {
    /// It takes no flows.
    Out,
    /// Since when it does, and the steps that are done.
    Rising(Instant, u16),
    Whole,
}

impl Ramp {
    /// What it is now, and when it changes without any news.
    fn step(before: Option<Self>, seen: &Seen, now: Instant, whole: Duration) -> (Self, Option<Instant>) {
        if !seen.well || seen.suspect {
            return (Self::Out, None);
        }
        let since = match before {
            None if seen.established => return (Self::Whole, None),
            None | Some(Self::Out) => now,
            Some(Self::Rising(since, _)) => since,
            Some(Self::Whole) => return (Self::Whole, None),
        };
        let one = whole / u32::from(STEPS);
        let done = now.duration_since(since).as_nanos() / one.as_nanos().max(1);
        // The first share is there at once.
        let done = u16::try_from(done).unwrap_or(u16::MAX).saturating_add(1);
        if done >= STEPS {
            return (Self::Whole, None);
        }
        (Self::Rising(since, done), Some(since + one * u32::from(done)))
    }

    const fn steps(self) -> u16 {
        match self {
            Self::Rising(_, done) => done,
            Self::Out | Self::Whole => STEPS,
        }
    }
}

/// By service and listener. Looked up for each backend in each verdict, without making a key for it.
type ByListener<T> = BTreeMap<String, BTreeMap<Listen, T>>;

fn of<'a, T>(map: &'a ByListener<T>, service: &Service, listen: &Listen) -> Option<&'a T> {
    map.get(&service.name)?.get(listen)
}

fn put<T>(map: &mut ByListener<T>, service: &Service, listen: &Listen, value: T) {
    map.entry(service.name.clone()).or_default().insert(*listen, value);
}

/// Of all listeners whose service has a backup, a quorum, priorities or a slow start.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    listeners: ByListener<Choice>,
    /// By listener, and name of the backend.
    ramps: ByListener<BTreeMap<String, Ramp>>,
    /// When something changes without any news.
    next: Option<Instant>,
    /// How often listeners went from one pool to another, or to none, by service.
    switches: BTreeMap<String, u64>,
    /// Services whose pools in use have changed since [`Choices::news`] was asked.
    news: BTreeSet<String>,
}

/// Whether there is anything to choose.
pub(super) fn chooses(config: &Config, service: &Service) -> bool {
    let pool = &config.pools[service.pool];
    service.backup.is_some()
        || pool.quorum != Quorum::default()
        || !pool.slow_start.is_zero()
        || pool.backends.iter().any(|backend| backend.priority != 0)
}

impl Choices {
    /// Chooses anew. `see` is asked for each backend behind each listener, and told whether it is for the first time.
    pub fn settle(
        &mut self,
        config: &Config,
        now: Instant,
        mut see: impl FnMut(&Service, &Listen, &Member<'_>, bool) -> Seen,
    ) {
        let before = std::mem::take(self);
        self.switches = before.switches;
        self.news = before.news;
        for service in config.services.iter().filter(|service| chooses(config, service)) {
            for listen in &service.listen {
                let old_ramps = of(&before.ramps, service, listen);
                let (mut offers, mut ramps) = ([Offer::default(); 2], BTreeMap::new());
                for member in config.members(service).filter(|one| serves(service, listen, one.backend)) {
                    let known = old_ramps.and_then(|ramps| ramps.get(&member.backend.name)).copied();
                    let seen = see(service, listen, &member, known.is_none());
                    let offer = &mut offers[member.role as usize];
                    if seen.well {
                        offer.weight = offer.weight.saturating_add(seen.weight.into());
                    }
                    if seen.well && !seen.suspect {
                        let best = offer.best.unwrap_or(u8::MAX);
                        offer.best = Some(best.min(member.backend.priority));
                    }
                    if !member.pool.slow_start.is_zero() {
                        let (ramp, until) = Ramp::step(known, &seen, now, member.pool.slow_start);
                        ramps.insert(member.backend.name.clone(), ramp);
                        self.wake(until);
                    }
                }
                let backup = service.backup.map(|index| config.pools[index].quorum);
                let quorums = [config.pools[service.pool].quorum, backup.unwrap_or_default()];
                let old = of(&before.listeners, service, listen);
                let mut choice = old.copied().unwrap_or_default();
                let until = choice.step(now, offers, quorums, service.backup_hold);
                self.wake(until);
                if choice.using != old.map_or(Using::Nothing, |old| old.using) {
                    self.news.insert(service.name.clone());
                    if old.is_some_and(|old| old.using != Using::Nothing) {
                        *self.switches.entry(service.name.clone()).or_default() += 1;
                    }
                }
                put(&mut self.listeners, service, listen, choice);
                if !ramps.is_empty() {
                    put(&mut self.ramps, service, listen, ramps);
                }
            }
        }
        if !self.switches.is_empty() {
            let names: BTreeSet<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
            self.switches.retain(|name, _| names.contains(name.as_str()));
        }
    }

    fn wake(&mut self, at: Option<Instant>) {
        self.next = [self.next, at].into_iter().flatten().min();
    }

    /// What an earlier daemon used: its listener's table had backends of these pools.
    pub fn restore(&mut self, service: &Service, listen: &Listen, used: [bool; 2]) {
        let [pool, backup] = used;
        let using = match (pool, backup) {
            (true, _) => Using::Pool(Role::Primary),
            (false, true) => Using::Pool(Role::Backup),
            (false, false) => return,
        };
        let lost = using == Using::Pool(Role::Backup);
        let quorate = used.map(|used| used.then_some(true));
        let choice = Choice { using, quorate, lost, ..Choice::default() };
        put(&mut self.listeners, service, listen, choice);
    }

    /// Whether it is time to choose anew.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| now >= next)
    }

    /// Whether a backend is left out for now because others are used.
    pub fn stands_by(&self, service: &Service, listen: &Listen, member: &Member<'_>) -> bool {
        let Some(choice) = of(&self.listeners, service, listen) else {
            return member.role == Role::Backup;
        };
        choice.using != Using::Pool(member.role) || choice.priority != member.backend.priority
    }

    /// Whether a listener hands new flows to this pool of its service.
    pub fn uses(&self, service: &Service, listen: &Listen, role: Role) -> bool {
        let choice = of(&self.listeners, service, listen);
        choice.map_or(role == Role::Primary, |choice| choice.using == Using::Pool(role))
    }

    /// How much of its weight a backend has, in [`STEPS`].
    pub fn steps(&self, service: &Service, listen: &Listen, member: &Member<'_>) -> u16 {
        let ramps = of(&self.ramps, service, listen);
        ramps.and_then(|ramps| ramps.get(&member.backend.name)).map_or(STEPS, |ramp| ramp.steps())
    }

    /// How often listeners of the service went from one pool to another, or to none.
    pub fn switches(&self, service: &str) -> u64 {
        self.switches.get(service).copied().unwrap_or_default()
    }

    /// Services whose listeners use other pools than when this was asked last.
    pub fn news(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.news)
    }
}

#[cfg(test)]
mod tests;
