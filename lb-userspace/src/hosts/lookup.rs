//! Asking for the addresses of a name: of `/etc/hosts`, then of DNS servers.
//!
//! A resolver is made for each question, as both files may have changed, and it remembers nothing: how long an answer
//! holds is decided by [`super::answers`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::ResolveError;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfigGroup, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::name_server::TokioConnectionProvider;
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::{Semaphore, mpsc};

use super::{Outcome, Question, Reply};
use crate::config::Resolver;

/// For one question, whatever resolv.conf says of single attempts.
const LIMIT: Duration = Duration::from_secs(10);
/// For one server's answer, where resolv.conf does not say. There are three attempts.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Questions at a time.
const AT_ONCE: usize = 16;

/// Asks, each question in a task of its own, and hands the answers over.
#[derive(Clone, Debug)]
pub struct Asker {
    replies: mpsc::Sender<(String, Reply)>,
    free: Arc<Semaphore>,
}

impl Asker {
    /// And where the answers come, by the names that were asked for.
    pub fn new() -> (Self, mpsc::Receiver<(String, Reply)>) {
        let (replies, from) = mpsc::channel(64);
        (Self { replies, free: Arc::new(Semaphore::new(AT_ONCE)) }, from)
    }

    /// Returns at once. Must be called in a runtime.
    pub fn ask(&self, question: Question, settings: Resolver) {
        let Self { replies, free } = self.clone();
        tokio::spawn(async move {
            // It is never closed.
            let _turn = free.acquire_owned().await;
            let reply = look_up(&question, &settings).await;
            // Nobody waits when the daemon ends.
            let _ = replies.send((question.host, reply)).await;
        });
    }
}

/// Asks once, for as long as that takes.
pub async fn look_up(question: &Question, settings: &Resolver) -> Reply {
    let settings = settings.clone();
    // It reads files.
    let resolver = match tokio::task::spawn_blocking(move || resolver(&settings)).await {
        Ok(Ok(resolver)) => resolver,
        Ok(Err(text)) => return both(question, &Outcome::Failed(text)),
        Err(error) => return both(question, &Outcome::Failed(error.to_string())),
    };
    let ask = async |wanted: bool, kind: RecordType| {
        if wanted { Some(one(&resolver, &question.host, kind).await) } else { None }
    };
    let (v4, v6) =
        tokio::join!(ask(question.families.v4, RecordType::A), ask(question.families.v6, RecordType::AAAA));
    Reply { v4, v6 }
}

fn both(question: &Question, outcome: &Outcome) -> Reply {
    let of = |wanted: bool| wanted.then(|| outcome.clone());
    Reply { v4: of(question.families.v4), v6: of(question.families.v6) }
}

fn resolver(settings: &Resolver) -> Result<TokioResolver, String> {
    let (config, mut options) = if settings.servers.is_empty() {
        read_system_conf().map_err(|error| format!("cannot read /etc/resolv.conf: {error}"))?
    } else {
        let mut servers = NameServerConfigGroup::new();
        for server in &settings.servers {
            servers.merge(NameServerConfigGroup::from_ips_clear(&[server.ip()], server.port(), true));
        }
        let mut options = ResolverOpts::default();
        options.timeout = ATTEMPT;
        (ResolverConfig::from_parts(None, Vec::new(), servers), options)
    };
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Always;
    let mut builder = TokioResolver::builder_with_config(config, TokioConnectionProvider::default());
    *builder.options_mut() = options;
    Ok(builder.build())
}

async fn one(resolver: &TokioResolver, host: &str, kind: RecordType) -> Outcome {
    let asked = Instant::now();
    match tokio::time::timeout(LIMIT, resolver.lookup(host, kind)).await {
        Ok(Ok(lookup)) => found(&lookup, asked, kind),
        Ok(Err(error)) => failed(&error, host, kind),
        Err(_) => Outcome::Failed(format!("no answer for {host} {kind} within {} s", LIMIT.as_secs())),
    }
}

fn found(lookup: &Lookup, asked: Instant, kind: RecordType) -> Outcome {
    let addresses: Vec<IpAddr> =
        lookup.iter().filter_map(hickory_resolver::proto::rr::RData::ip_addr).collect();
    if addresses.is_empty() {
        return Outcome::Nothing(format!("{} has no {kind} record", lookup.query().name()));
    }
    // The least of the answer, aliases among it.
    let ttl = lookup.valid_until().saturating_duration_since(asked);
    Outcome::Addresses(addresses, ttl)
}

fn failed(error: &ResolveError, host: &str, kind: RecordType) -> Outcome {
    if error.is_nx_domain() {
        Outcome::Nothing(format!("there is no name {host}"))
    } else if error.is_no_records_found() && refused(error).is_none() {
        Outcome::Nothing(format!("{host} has no {kind} record"))
    } else {
        let text = refused(error)
            .map_or_else(|| error.to_string(), |code| format!("the DNS server answered {code}"));
        Outcome::Failed(format!("no answer for {host} {kind}: {text}"))
    }
}

/// The response code of an answer that is none.
fn refused(error: &ResolveError) -> Option<hickory_resolver::proto::op::ResponseCode> {
    use hickory_resolver::proto::ProtoErrorKind::NoRecordsFound;
    use hickory_resolver::proto::op::ResponseCode;
    match error.proto()?.kind() {
        NoRecordsFound { response_code, .. } if *response_code != ResponseCode::NoError => {
            Some(*response_code)
        }
        _ => None,
    }
}
