//! The routes of the API, each a question to the control task.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio_stream::wrappers::BroadcastStream;

use crate::api::carp::{CarpChange, CarpStatus};
use crate::api::error::ApiError;
use crate::api::explain::{Explanation, Question};
use crate::api::socket::ControlSocket;
use crate::api::sync::SyncStatus;
use crate::api::trace::{DEFAULT_RATE, Filter, MOST_RATE};
use crate::api::types::{
    AdminState, BackendChange, Checks, Counters, Flows, ReloadOutcome, ReloadPlan, Status,
};
use crate::carp::fsm::Wish;
use crate::control::request::{ControlHandle, Request};
use crate::net::way;

/// Flows listed when the request does not say.
const DEFAULT_FLOWS: usize = 1_000;
/// More at once would hold up the control task.
const MOST_FLOWS: usize = 1_000_000;
/// How long requests that are being answered may take once the daemon stops.
const GRACE: Duration = Duration::from_secs(2);
/// So that events of the shutdown itself still arrive.
const LAST_EVENTS: Duration = Duration::from_millis(100);
/// A control task that does not answer within this is stuck.
const HEALTHY_WITHIN: Duration = Duration::from_secs(5);

/// Method, path and query of every route, for people who mistyped one.
const ROUTES: &[&str] = &[
    "GET /v1/status",
    "GET /v1/flows?limit=N&service=S",
    "GET /v1/checks?service=S",
    "GET /v1/counters",
    "GET /v1/events",
    "GET /v1/explain?source=A:P&destination=A:P/PROTOCOL&flags=F&interface=I&vlan=N",
    "GET /v1/trace?filter=WORDS&rate=N",
    "GET /v1/carp",
    "GET /v1/sync",
    "POST /v1/carp/{promote|demote|release}?name=N",
    "POST /v1/backends/{name}/{enable|disable|drain}?service=S",
    "GET /v1/reload",
    "POST /v1/reload",
    "POST /v1/poll",
    "GET /healthz",
];

#[derive(Clone, Debug)]
struct Api {
    control: ControlHandle,
    /// True once the daemon stops; ends the event streams, which would otherwise never end.
    closing: watch::Receiver<bool>,
}

/// Answers on `socket` until `shutdown` resolves, then finishes what it is answering.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve(
    socket: ControlSocket,
    control: ControlHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = socket.into_listener()?;
    let (close, closing) = watch::channel(false);
    let shutdown = async move {
        shutdown.await;
        close.send_replace(true);
    };
    serve_until(listener, router(control, closing), shutdown).await
}

/// Serves until `shutdown` resolves; what is being answered then has [`GRACE`] to finish.
pub(super) async fn serve_until<L>(
    listener: L,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()>
where
    L: Listener,
    L::Addr: Debug,
{
    let (close, mut closed) = watch::channel(false);
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        close.send_replace(true);
    });
    let overdue = async {
        // An error means that the sender is gone, which it only is after the server itself.
        let _ = closed.wait_for(|closing| *closing).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        done = server.into_future() => done,
        () = overdue => Ok(()),
    }
}

fn router(control: ControlHandle, closing: watch::Receiver<bool>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/checks", get(checks))
        .route("/v1/counters", get(counters))
        .route("/v1/events", get(events))
        .route("/v1/explain", get(explain))
        .route("/v1/trace", get(trace))
        .route("/v1/backends/{name}/{action}", post(set_admin))
        .route("/v1/carp", get(carp))
        .route("/v1/sync", get(sync))
        .route("/v1/carp/{action}", post(set_carp))
        .route("/v1/reload", get(plan_reload).post(reload))
        .route("/v1/poll", post(poll))
        .route("/healthz", get(healthz))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Api { control, closing })
}

async fn status(State(api): State<Api>) -> Result<Json<Status>, ApiError> {
    Ok(Json(api.control.ask(Request::Status).await?))
}

async fn flows(State(api): State<Api>, query: Pairs) -> Result<Json<Flows>, ApiError> {
    let mut parameters = Parameters::new(query, &["limit", "service"])?;
    let limit = parameters.take("limit").map_or(Ok(DEFAULT_FLOWS), |text| limit(&text))?;
    let service = parameters.take("service");
    let flows = api.control.ask(|reply| Request::Flows { limit, service, reply }).await??;
    Ok(Json(flows))
}

fn limit(text: &str) -> Result<usize, ApiError> {
    text.parse().ok().filter(|limit| *limit <= MOST_FLOWS).ok_or_else(|| {
        ApiError::bad_request(format!("limit is {text:?}; give a whole number from 0 to {MOST_FLOWS}"))
    })
}

async fn checks(State(api): State<Api>, query: Pairs) -> Result<Json<Checks>, ApiError> {
    let service = Parameters::new(query, &["service"])?.take("service");
    Ok(Json(api.control.ask(|reply| Request::Checks { service, reply }).await??))
}

async fn counters(State(api): State<Api>) -> Result<Json<Counters>, ApiError> {
    Ok(Json(api.control.ask(Request::Counters).await?))
}

async fn explain(State(api): State<Api>, query: Pairs) -> Result<Json<Explanation>, ApiError> {
    let mut parameters = Parameters::new(query, &["source", "destination", "flags", "interface", "vlan"])?;
    let mut needed = |name: &str| {
        parameters.take(name).ok_or_else(|| {
            ApiError::bad_request(format!(
                "{name} is missing; such as /v1/explain?source=192.0.2.1:40000&destination=203.0.113.10:25/tcp"
            ))
        })
    };
    let (source, destination) = (needed("source")?, needed("destination")?);
    let [flags, interface, vlan] = ["flags", "interface", "vlan"].map(|name| parameters.take(name));
    let question =
        Question::parse(&source, &destination, flags.as_deref(), interface.as_deref(), vlan.as_deref())
            .map_err(ApiError::bad_request)?;
    let towards = match question.interface {
        Some(_) => None,
        // Without an answer the control task decides.
        None => way::towards(question.source).await.ok().flatten(),
    };
    Ok(Json(api.control.ask(|reply| Request::Explain { question, towards, reply }).await??))
}

async fn trace(State(api): State<Api>, query: Pairs) -> Result<Response, ApiError> {
    let mut parameters = Parameters::new(query, &["filter", "rate"])?;
    let words = parameters.take("filter").unwrap_or_default();
    let filter = Filter::parse(words.split_whitespace()).map_err(ApiError::bad_request)?;
    let rate = parameters.take("rate").map_or(Ok(DEFAULT_RATE), |text| rate(&text))?;
    let trace = api.control.ask(|reply| Request::Trace { filter, rate, reply }).await??;
    // It ends when the client goes away: with the body, the stream is dropped.
    let lines = stream::unfold(trace, |mut trace| async {
        let told = trace.lines.recv().await?;
        Some((line(&told), trace))
    });
    Ok(lines_until_closing(api, lines))
}

fn rate(text: &str) -> Result<u32, ApiError> {
    text.parse().ok().filter(|rate| (1..=MOST_RATE).contains(rate)).ok_or_else(|| {
        ApiError::bad_request(format!("rate is {text:?}; give a whole number from 1 to {MOST_RATE}"))
    })
}

async fn events(State(api): State<Api>) -> Response {
    let events = BroadcastStream::new(api.control.subscribe())
        // A reader that fell behind sees the gap in the event numbers.
        .map(|received| received.ok().and_then(|event| line(&event)));
    lines_until_closing(api, events)
}

/// An answer that goes on until one side ends it.
fn lines_until_closing(api: Api, lines: impl Stream<Item = Option<String>> + Send + 'static) -> Response {
    let mut closing = api.closing;
    let stop = async move {
        // An error means that the server is gone, so the stream ends as well.
        let _ = closing.wait_for(|closing| *closing).await;
        tokio::time::sleep(LAST_EVENTS).await;
    };
    let lines = lines.filter_map(std::future::ready).take_until(Box::pin(stop)).map(Ok::<_, Infallible>);
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lines)).into_response()
}

fn line(value: &impl Serialize) -> Option<String> {
    match serde_json::to_string(value) {
        Ok(mut text) => {
            text.push('\n');
            Some(text)
        }
        Err(error) => {
            log::error!("a line cannot be written as JSON: {error}");
            None
        }
    }
}

async fn set_admin(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Pairs,
) -> Result<Json<BackendChange>, ApiError> {
    let Path((backend, action)) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let state = match action.as_str() {
        "enable" => AdminState::Enabled,
        "disable" => AdminState::Disabled,
        "drain" => AdminState::Draining,
        _ => {
            let error = format!("a backend cannot be told to {action:?}; it knows enable, disable and drain");
            return Err(ApiError::new(StatusCode::NOT_FOUND, error));
        }
    };
    let service = Parameters::new(query, &["service"])?.take("service");
    let change = api.control.ask(|reply| Request::SetAdmin { backend, service, state, reply }).await??;
    Ok(Json(change))
}

async fn carp(State(api): State<Api>) -> Result<Json<CarpStatus>, ApiError> {
    Ok(Json(api.control.ask(Request::Carp).await?))
}

async fn sync(State(api): State<Api>) -> Result<Json<SyncStatus>, ApiError> {
    Ok(Json(api.control.ask(Request::Sync).await?))
}

async fn set_carp(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Pairs,
) -> Result<Json<CarpChange>, ApiError> {
    let Path(action) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let wish = match action.as_str() {
        "promote" => Wish::Promoted,
        "demote" => Wish::Demoted,
        "release" => Wish::Released,
        _ => {
            let error = format!("carp cannot be told to {action:?}; it knows promote, demote and release");
            return Err(ApiError::new(StatusCode::NOT_FOUND, error));
        }
    };
    let name = Parameters::new(query, &["name"])?.take("name");
    let change = api.control.ask(|reply| Request::SetCarp { name, wish, reply }).await??;
    Ok(Json(change))
}

async fn plan_reload(State(api): State<Api>, query: Pairs) -> Result<Json<ReloadPlan>, ApiError> {
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::PlanReload).await??))
}

async fn reload(State(api): State<Api>, query: Pairs) -> Result<Json<ReloadOutcome>, ApiError> {
    // Whoever writes ?dry_run=true must not get a reload.
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::Reload).await??))
}

async fn poll(State(api): State<Api>) -> Result<Response, ApiError> {
    api.control.ask(Request::Poll).await?;
    Ok(Json(json!({})).into_response())
}

async fn healthz(State(api): State<Api>) -> Result<Response, ApiError> {
    match tokio::time::timeout(HEALTHY_WITHIN, api.control.ask(Request::Status)).await {
        Ok(answer) => {
            answer?;
            Ok(Json(json!({ "status": "ok" })).into_response())
        }
        Err(_) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the control task has not answered for {} s", HEALTHY_WITHIN.as_secs()),
        )),
    }
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let mut error =
        ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {}; there are", uri.path()));
    error.body.details = ROUTES.iter().map(|&route| route.to_owned()).collect();
    error
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let reads = ROUTES.iter().filter_map(|route| route.strip_prefix("GET "));
    let right = if reads.filter_map(|route| route.split('?').next()).any(|route| route == path) {
        "GET"
    } else {
        "POST"
    };
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}; use {right}"))
}

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The query of a request, each name known and given once.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn new(pairs: Pairs, known: &[&str]) -> Result<Self, ApiError> {
        let Query(pairs) = pairs.map_err(|error| ApiError::bad_request(error.body_text()))?;
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() {
                    "there are none".to_owned()
                } else {
                    format!("known: {}", known.join(", "))
                };
                return Err(ApiError::bad_request(format!("unknown parameter {name:?}; {known}")));
            }
            if pairs.iter().take(index).any(|(earlier, _)| earlier == name) {
                return Err(ApiError::bad_request(format!("{name} is given twice")));
            }
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(index).1)
    }
}
