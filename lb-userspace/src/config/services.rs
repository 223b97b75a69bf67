//! Reading services.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeTable;

use super::diagnostics::{At, Errors};
use super::document::{self, Known};
use super::forwarding::{self, Forwarding};
use super::known_keys::Place;
use super::pools::{self, PoolParts};
use super::values::{self, quote};
use super::{Listen, Scheduler, WhenEmpty, listen};

const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(600);
const SESSION_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(12 * 3600);
/// As with flows, the clock that a client's last flow is remembered by wraps after 18 hours.
const STICKY_TIMES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(12 * 3600);
const BACKUP_HOLDS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);
/// Flows a second.
pub(super) const DEFAULT_NEW_FLOW_LIMIT: u32 = 100_000;
const NEW_FLOW_LIMITS: RangeInclusive<u32> = 1..=10_000_000;

/// A service as read, with the places of its parts.
#[derive(Debug)]
pub(super) struct ServiceParts {
    pub(super) name: At<String>,
    pub(super) listen: Vec<At<Listen>>,
    /// Every listener of the file is in `listen`; else some were left out because of errors.
    pub(super) complete: bool,
    pub(super) pool: PoolRef,
    /// The name of a pool.
    pub(super) backup: Option<At<String>>,
    pub(super) backup_hold: Duration,
    pub(super) forwarding: Forwarding,
    pub(super) scheduler: Scheduler,
    pub(super) session_timeout: Duration,
    pub(super) sticky: Option<Duration>,
    pub(super) new_flow_limit: u32,
    pub(super) enabled: bool,
    pub(super) when_empty: WhenEmpty,
}

/// Where a service's backends are.
#[derive(Debug)]
pub(super) enum PoolRef {
    Named(At<String>),
    /// Listed in the service; in the pools under the service's name.
    Own,
    /// Nowhere, or in two places. Reported.
    Unclear,
}

/// `[services.NAME]`, and its pool if it lists its backends itself.
pub(super) fn read(
    errors: &mut Errors,
    name: At<&str>,
    table: &DeTable<'_>,
) -> (ServiceParts, Option<PoolParts>) {
    let known = Known::read(errors, Place::Service, table);
    let (listen, complete) = match known.get("listen") {
        Some(entry) => listen::read(errors, entry),
        None => {
            if known.lacks("listen") {
                let message = format!("service {} has no `listen`", quote(name.value));
                let help =
                    "add `listen = \"203.0.113.10:25\"`, with the address and port that clients connect to";
                errors.absent(name.span, message).help(help);
            }
            (Vec::new(), false)
        }
    };
    let (pool, own) = read_pool(errors, name, &known);
    let (backup, backup_hold) = read_backup(errors, &known);
    let forwarding = forwarding::read(errors, name, &known);
    let scheduler = known
        .get("scheduler")
        .and_then(|entry| document::word(errors, Place::Scheduler, entry, "write \"maglev\""))
        .map_or(Scheduler::Maglev, |word| match word {
            "source-hash" => Scheduler::SourceHash,
            "round-robin" => Scheduler::RoundRobin,
            "random" => Scheduler::Random,
            "least-connections" => Scheduler::LeastConnections,
            _ => Scheduler::Maglev,
        });
    let session_timeout = known
        .get("session_timeout")
        .and_then(|entry| values::duration(errors, entry, &SESSION_TIMEOUTS))
        .map_or(DEFAULT_SESSION_TIMEOUT, |at| at.value);
    let sticky = known
        .get("sticky")
        .and_then(|entry| values::duration(errors, entry, &STICKY_TIMES))
        .map(|at| at.value);
    let new_flow_limit = known
        .get("new_flow_limit")
        .and_then(|entry| document::integer(errors, entry, NEW_FLOW_LIMITS))
        .unwrap_or(DEFAULT_NEW_FLOW_LIMIT);
    let enabled = known.get("enabled").and_then(|entry| document::boolean(errors, entry)).unwrap_or(true);
    let when_empty = known
        .get("when_empty")
        .and_then(|entry| {
            document::word(errors, Place::WhenEmpty, entry, "write \"drop\", \"reset\" or \"pass\"")
        })
        .map_or(WhenEmpty::Drop, |word| match word {
            "reset" => WhenEmpty::Reset,
            "pass" => WhenEmpty::Pass,
            _ => WhenEmpty::Drop,
        });
    let service = ServiceParts {
        name: At { value: name.value.to_owned(), span: name.span },
        listen,
        complete,
        pool,
        backup,
        backup_hold,
        forwarding,
        scheduler,
        session_timeout,
        sticky,
        new_flow_limit,
        enabled,
        when_empty,
    };
    (service, own)
}

fn read_backup(errors: &mut Errors, known: &Known<'_>) -> (Option<At<String>>, Duration) {
    let hold = known.get("backup_hold");
    let time = hold.and_then(|entry| values::duration(errors, entry, &BACKUP_HOLDS));
    let time = time.map_or(Duration::ZERO, |at| at.value);
    let Some(backup) = known.get("backup") else {
        if let Some(entry) = hold.filter(|_| known.lacks("backup")) {
            let error = errors.at(entry.key.span, "`backup_hold` without `backup`");
            error.help("add `backup = \"NAME\"` with the name of a pool, or remove it");
        }
        return (None, time);
    };
    let help = "write `backup = \"NAME\"`, with [pools.NAME] elsewhere in the file";
    let named = document::text(errors, "backup", backup.value, "the name of a pool", help);
    (named.map(|named| At { value: named.value.to_owned(), span: named.span }), time)
}

fn read_pool(errors: &mut Errors, name: At<&str>, known: &Known<'_>) -> (PoolRef, Option<PoolParts>) {
    let pool = known.get("pool");
    let backends = known.get("backends");
    let Some(pool) = pool else {
        if backends.is_none() {
            if known.lacks("backends") && known.lacks("pool") {
                let message = format!("service {} has no backends", quote(name.value));
                let help = "add `backends = [\"198.51.100.11\", \"198.51.100.12\"]`, or `pool = \"NAME\"`";
                errors.absent(name.span, message).help(help);
            }
            // What stands beside them is still worth a look.
            pools::read_known(errors, name, known, true);
            return (PoolRef::Unclear, None);
        }
        return (PoolRef::Own, Some(pools::read_known(errors, name, known, true)));
    };

    let help = "write `pool = \"NAME\"`, with [pools.NAME] elsewhere in the file";
    let named = document::text(errors, "pool", pool.value, "the name of a pool", help);
    if let Some(backends) = backends {
        let first = pool.key.span.min(backends.key.span);
        let second = pool.key.span.max(backends.key.span);
        let message = format!("service {} has both `pool` and `backends`", quote(name.value));
        let error = errors.at(second, message);
        error.related(first, "the other").help("keep one: `backends` lists them here, `pool` names a list");
        pools::read_known(errors, name, known, true);
        return (PoolRef::Unclear, None);
    }
    for key in ["check", "on_down", "quorum", "hysteresis", "slow_start"] {
        if let Some(entry) = known.get(key) {
            let pool = named.map_or("NAME", |named| named.value).escape_debug();
            let message = format!("`{key}` belongs to the pool when a service names one");
            let error = errors.at(entry.key.span, message);
            error.help(format!("move it to [pools.{pool}], or list `backends` here instead of `pool`"));
        }
    }
    match named {
        Some(named) => (PoolRef::Named(At { value: named.value.to_owned(), span: named.span }), None),
        None => (PoolRef::Unclear, None),
    }
}
