//! The routes of the API, each a question to the control task.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use axum::{Json, Router, middleware};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Serialize;
use tokio::sync::watch;
use tokio_stream::wrappers::BroadcastStream;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::carp::{CarpChange, CarpStatus};
use crate::api::document::{
    self, AdminAction, BadConfiguration, CarpAction, Document, NotFound, Refused, ServiceAction, Unavailable,
};
use crate::api::error::ApiError;
use crate::api::explain::{Explanation, Question};
use crate::api::pools::{self, ServiceChange, WeightChange};
use crate::api::socket::ControlSocket;
use crate::api::sync::SyncStatus;
use crate::api::trace::{DEFAULT_RATE, Filter, MOST_RATE, TraceLine};
use crate::api::types::{
    AdminState, BackendChange, Checks, Counters, Event, Flows, PollOutcome, ReloadOutcome, ReloadPlan,
    Status, Wellbeing,
};
use crate::carp::fsm::Wish;
use crate::control::request::{ControlHandle, Refusal, Request};
use crate::net::way;

/// Flows listed when the request does not say.
const DEFAULT_FLOWS: usize = 1_000;
/// More at once would hold up the control task.
const MOST_FLOWS: usize = 1_000_000;
/// How long requests that are being answered may take once the daemon stops.
const GRACE: Duration = Duration::from_secs(2);
/// So that events of the shutdown itself still arrive.
const LAST_EVENTS: Duration = Duration::from_millis(100);
/// Refused on a read-only socket, though it is a question.
const TRACE: &str = "/v1/trace";
/// Bytes of a parameter's value.
const LONGEST_VALUE: usize = 4096;
/// Of an unknown parameter's name, so many characters are repeated.
const LONGEST_NAME: usize = 64;
/// A control task that does not answer within this is stuck.
const HEALTHY_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct Api {
    control: ControlHandle,
    /// True once the daemon stops; ends the event streams, which would otherwise never end.
    closing: watch::Receiver<bool>,
    document: Arc<Document>,
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
    serve_with(socket, control, shutdown, |router| router).await
}

/// As [`serve`], but answers questions only: whatever changes something is refused.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve_read_only(
    socket: ControlSocket,
    control: ControlHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_with(socket, control, shutdown, |router| router.layer(middleware::from_fn(only_questions))).await
}

async fn serve_with(
    socket: ControlSocket,
    control: ControlHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
    guard: impl FnOnce(Router) -> Router,
) -> io::Result<()> {
    let listener = socket.into_listener()?;
    let (close, closing) = watch::channel(false);
    let shutdown = async move {
        shutdown.await;
        close.send_replace(true);
    };
    serve_until(listener, guard(router(control, closing)), shutdown).await
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
    let (routes, document) = routes().split_for_parts();
    routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(without_body))
        .with_state(Api { control, closing, document: Arc::new(Document::new(&document)) })
}

/// Every route with its description.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(document::frame())
        .routes(routes!(status))
        .routes(routes!(flows))
        .routes(routes!(checks))
        .routes(routes!(counters))
        .routes(routes!(events))
        .routes(routes!(explain))
        .routes(routes!(trace))
        .routes(routes!(carp))
        .routes(routes!(sync))
        .routes(routes!(set_carp))
        .routes(routes!(set_admin))
        .routes(routes!(set_weight))
        .routes(routes!(set_service))
        .routes(routes!(plan_reload, reload))
        .routes(routes!(poll))
        .routes(routes!(describe))
        .routes(routes!(healthz))
        .routes(routes!(readyz))
}

/// What the API is, for programs: OpenAPI 3.1 as JSON, the same that `GET /v1/openapi.json` answers with.
pub fn description() -> String {
    Document::new(&routes().split_for_parts().1).json.clone()
}

#[utoipa::path(get, path = "/v1/status", summary = "Interfaces, services and backends",
    responses((status = 200, description = "Done", body = Status), Refused)
)]
async fn status(State(api): State<Api>, query: Pairs) -> Result<Json<Status>, ApiError> {
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::Status).await?))
}

#[utoipa::path(get, path = "/v1/flows", summary = "Connections in the flow table",
    params(
        ("limit" = Option<u32>, Query, description = "At most so many", maximum = 1_000_000, example = 100),
        ("service" = Option<String>, Query, description = "Only of this service", example = "mail")
    ),
    responses((status = 200, description = "Done", body = Flows), Refused, NotFound)
)]
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

#[utoipa::path(get, path = "/v1/checks", summary = "The last ten results of each check",
    params(("service" = Option<String>, Query, description = "Only of this service", example = "mail")),
    responses((status = 200, description = "Done", body = Checks), Refused, NotFound)
)]
async fn checks(State(api): State<Api>, query: Pairs) -> Result<Json<Checks>, ApiError> {
    let service = Parameters::new(query, &["service"])?.take("service");
    Ok(Json(api.control.ask(|reply| Request::Checks { service, reply }).await??))
}

#[utoipa::path(get, path = "/v1/counters", summary = "Why packets were forwarded, passed or dropped",
    responses((status = 200, description = "Done", body = Counters), Refused)
)]
async fn counters(State(api): State<Api>, query: Pairs) -> Result<Json<Counters>, ApiError> {
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::Counters).await?))
}

#[utoipa::path(get, path = "/v1/explain", summary = "What the loaded program would do with a packet",
    params(
        ("source" = String, Query, description = "ADDRESS:PORT, or an address alone for protocols without ports", example = "192.0.2.1:40000"),
        ("destination" = String, Query, description = "ADDRESS:PORT, with /tcp (the default) or /udp, or ADDRESS/icmp, /icmp6, /NUMBER", example = "203.0.113.10:25/tcp"),
        ("flags" = Option<String>, Query, description = "TCP's flags with commas: syn, ack, fin, rst, or none", example = "syn"),
        ("interface" = Option<String>, Query, description = "Where it comes in; unless given, where the way to the source goes out", example = "eth0"),
        ("vlan" = Option<String>, Query, description = "A VLAN's number, or two as OUTER,INNER", example = "10")
    ),
    responses((status = 200, description = "Done", body = Explanation), Refused, NotFound)
)]
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

#[utoipa::path(get, path = "/v1/trace", summary = "What the program decides for packets, one JSON object for each line, until one side ends it",
    params(
        ("filter" = Option<String>, Query, description = "Words that must all hold: host ADDRESS, src ADDRESS, dst ADDRESS, port N, proto P, service NAME, reason NAME, drop", example = "service mail"),
        ("rate" = Option<u32>, Query, description = "Tell of at most so many packets a second", minimum = 1, example = 1000)
    ),
    responses((status = 200, description = "Done", body = TraceLine, content_type = "application/x-ndjson"), Refused, NotFound)
)]
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

#[utoipa::path(get, path = "/v1/events", summary = "Events as they happen, one JSON object for each line, until one side ends it",
    responses((status = 200, description = "Done", body = Event, content_type = "application/x-ndjson"), Refused)
)]
async fn events(State(api): State<Api>, query: Pairs) -> Result<Response, ApiError> {
    Parameters::new(query, &[])?;
    let events = BroadcastStream::new(api.control.subscribe())
        // A reader that fell behind sees the gap in the event numbers.
        .map(|received| received.ok().and_then(|event| line(&event)));
    Ok(lines_until_closing(api, events))
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

#[utoipa::path(post, path = "/v1/backends/{name}/{action}", summary = "Enable, disable or drain a backend",
    params(
        ("name" = String, Path, description = "The backend", example = "mx1"),
        ("action" = AdminAction, Path, description = "What to do with it", example = "drain"),
        ("service" = Option<String>, Query, description = "In this service only", example = "mail")
    ),
    responses((status = 200, description = "Done", body = BackendChange), Refused, NotFound)
)]
async fn set_admin(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Pairs,
) -> Result<Json<BackendChange>, ApiError> {
    let Path((backend, action)) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let (backend, action) =
        (short_enough("the backend's name", backend)?, short_enough("the action", action)?);
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

#[utoipa::path(post, path = "/v1/backends/{name}/weight", summary = "Give a backend another share of the new connections",
    params(
        ("name" = String, Path, description = "The backend", example = "mx1"),
        ("value" = String, Query, description = "0 to 1000, or `file` for what the file says", example = "5"),
        ("service" = Option<String>, Query, description = "In this service only", example = "mail")
    ),
    responses((status = 200, description = "Done", body = WeightChange), Refused, NotFound)
)]
async fn set_weight(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Pairs,
) -> Result<Json<WeightChange>, ApiError> {
    let Path(backend) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let backend = short_enough("the backend's name", backend)?;
    let mut parameters = Parameters::new(query, &["value", "service"])?;
    let value = parameters.take("value").ok_or_else(|| {
        ApiError::bad_request("value is missing; such as /v1/backends/mx1/weight?value=5".to_owned())
    })?;
    let weight = pools::weight(&value).map_err(ApiError::bad_request)?;
    let service = parameters.take("service");
    let change = api.control.ask(|reply| Request::SetWeight { backend, service, weight, reply }).await??;
    Ok(Json(change))
}

#[utoipa::path(post, path = "/v1/services/{name}/{action}", summary = "Enable or disable a service",
    params(
        ("name" = String, Path, description = "The service", example = "mail"),
        ("action" = ServiceAction, Path, description = "What to do with it", example = "disable")
    ),
    responses((status = 200, description = "Done", body = ServiceChange), Refused, NotFound)
)]
async fn set_service(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Pairs,
) -> Result<Json<ServiceChange>, ApiError> {
    let Path((service, action)) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let (service, action) =
        (short_enough("the service's name", service)?, short_enough("the action", action)?);
    let enabled = match action.as_str() {
        "enable" => true,
        "disable" => false,
        _ => {
            let error = format!("a service cannot be told to {action:?}; it knows enable and disable");
            return Err(ApiError::new(StatusCode::NOT_FOUND, error));
        }
    };
    Parameters::new(query, &[])?;
    let change = api.control.ask(|reply| Request::SetService { service, enabled, reply }).await??;
    Ok(Json(change))
}

#[utoipa::path(get, path = "/v1/carp", summary = "Shared addresses",
    responses((status = 200, description = "Done", body = CarpStatus), Refused)
)]
async fn carp(State(api): State<Api>, query: Pairs) -> Result<Json<CarpStatus>, ApiError> {
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::Carp).await?))
}

#[utoipa::path(get, path = "/v1/sync", summary = "Flow synchronisation with the other gateway",
    responses((status = 200, description = "Done", body = SyncStatus), Refused)
)]
async fn sync(State(api): State<Api>, query: Pairs) -> Result<Json<SyncStatus>, ApiError> {
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::Sync).await?))
}

#[utoipa::path(post, path = "/v1/carp/{action}", summary = "Decide who has the shared addresses",
    params(
        ("action" = CarpAction, Path, description = "What to be", example = "release"),
        ("name" = Option<String>, Query, description = "Only of this carp", example = "mail")
    ),
    responses((status = 200, description = "Done", body = CarpChange), Refused, NotFound)
)]
async fn set_carp(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Pairs,
) -> Result<Json<CarpChange>, ApiError> {
    let Path(action) = path.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let action = short_enough("the action", action)?;
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

#[utoipa::path(get, path = "/v1/reload", summary = "What a reload would change; nothing is done",
    responses((status = 200, description = "Done", body = ReloadPlan), Refused, BadConfiguration)
)]
async fn plan_reload(State(api): State<Api>, query: Pairs) -> Result<Json<ReloadPlan>, ApiError> {
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::PlanReload).await??))
}

#[utoipa::path(post, path = "/v1/reload", summary = "Apply the configuration file again",
    responses((status = 200, description = "Done", body = ReloadOutcome), Refused, BadConfiguration)
)]
async fn reload(State(api): State<Api>, query: Pairs) -> Result<Json<ReloadOutcome>, ApiError> {
    // Whoever writes ?dry_run=true must not get a reload.
    Parameters::new(query, &[])?;
    Ok(Json(api.control.ask(Request::Reload).await??))
}

#[utoipa::path(post, path = "/v1/poll", summary = "Run all checks now; answered when each has a result",
    responses((status = 200, description = "Done", body = PollOutcome), Refused)
)]
async fn poll(State(api): State<Api>, query: Pairs) -> Result<Json<PollOutcome>, ApiError> {
    Parameters::new(query, &[])?;
    api.control.ask(Request::Poll).await?;
    Ok(Json(PollOutcome {}))
}

#[utoipa::path(get, path = "/v1/openapi.json", summary = "This description",
    responses((status = 200, description = "Done", body = serde_json::Value), Refused)
)]
async fn describe(State(api): State<Api>, query: Pairs) -> Result<Response, ApiError> {
    Parameters::new(query, &[])?;
    Ok(([(header::CONTENT_TYPE, "application/json")], api.document.json.clone()).into_response())
}

#[utoipa::path(get, path = "/healthz", summary = "Whether the daemon lives: its control task answers",
    responses((status = 200, description = "Done", body = Wellbeing), Refused, Unavailable)
)]
async fn healthz(State(api): State<Api>, query: Pairs) -> Result<Json<Wellbeing>, ApiError> {
    Parameters::new(query, &[])?;
    in_time(api.control.ask(Request::Readiness)).await?;
    Ok(Json(Wellbeing { status: "ok".to_owned() }))
}

#[utoipa::path(get, path = "/readyz", summary = "Whether it forwards as configured: the maps are up to date and every interface has the program",
    responses((status = 200, description = "Done", body = Wellbeing), Refused, Unavailable)
)]
async fn readyz(State(api): State<Api>, query: Pairs) -> Result<Json<Wellbeing>, ApiError> {
    Parameters::new(query, &[])?;
    let details = in_time(api.control.ask(Request::Readiness)).await?;
    if details.is_empty() {
        return Ok(Json(Wellbeing { status: "ready".to_owned() }));
    }
    let mut error =
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not everything is forwarded as configured");
    error.body.details = details;
    Err(error)
}

/// For questions that tell whether it lives at all.
async fn in_time<T>(answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, ApiError> {
    match tokio::time::timeout(HEALTHY_WITHIN, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the control task has not answered for {} s", HEALTHY_WITHIN.as_secs()),
        )),
    }
}

async fn unknown_route(State(api): State<Api>, method: Method, uri: Uri) -> ApiError {
    let mut error =
        ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {}; there are", uri.path()));
    error.body.details = api.document.routes.iter().map(ToString::to_string).collect();
    error
}

async fn wrong_method(State(api): State<Api>, method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    let right = api.document.methods(path).join(" or ");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}; use {right}"))
}

/// A question changes nothing, and a trace puts another program on the interfaces.
async fn only_questions(request: axum::extract::Request, next: middleware::Next) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    if [Method::GET, Method::HEAD].contains(method) && path != TRACE {
        return next.run(request).await;
    }
    let error = format!(
        "{method} {path} is refused here: this socket only answers questions; what changes something goes to \
         control.socket, for which you must be root or in its group"
    );
    ApiError::new(StatusCode::FORBIDDEN, error).into_response()
}

/// Everything is said by path and query: a body would be meant for something that does not happen.
async fn without_body(request: axum::extract::Request, next: middleware::Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (method, path) = (request.method(), request.uri().path());
    let error = format!("{method} {path} takes no body: put everything into the path and the query");
    ApiError::bad_request(error).into_response()
}

fn short_enough(what: &str, text: String) -> Result<String, ApiError> {
    if text.len() > LONGEST_VALUE {
        let length = text.len();
        let error = format!("{what} is {length} bytes long; none has more than {LONGEST_VALUE}");
        return Err(ApiError::bad_request(error));
    }
    Ok(text)
}

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The query of a request, each name known and given once.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn new(pairs: Pairs, known: &[&str]) -> Result<Self, ApiError> {
        let Query(pairs) = pairs.map_err(|error| ApiError::bad_request(error.body_text()))?;
        for (index, (name, value)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() {
                    "there are none".to_owned()
                } else {
                    format!("known: {}", known.join(", "))
                };
                let name = name.chars().take(LONGEST_NAME).collect::<String>();
                return Err(ApiError::bad_request(format!("unknown parameter {name:?}; {known}")));
            }
            if pairs.iter().take(index).any(|(earlier, _)| earlier == name) {
                return Err(ApiError::bad_request(format!("{name} is given twice")));
            }
            if value.len() > LONGEST_VALUE {
                let length = value.len();
                return Err(ApiError::bad_request(format!(
                    "{name} is {length} bytes long; nothing it can mean has more than {LONGEST_VALUE}"
                )));
            }
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The router does not list its routes, but it prints them. `/` is where its fallback for all else hangs.
    #[test]
    fn every_route_of_the_router_is_described() {
        let (router, document) = routes().split_for_parts();
        let printed = format!("{router:?}");
        let served: BTreeSet<&str> = printed
            .split('"')
            .filter(|text| text.len() > 1 && text.starts_with('/') && !text.contains("__private"))
            .collect();
        let described: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
        assert_eq!(served, described);
        assert!(served.len() > 10, "{served:?}");
    }

    #[test]
    fn methods_are_those_of_the_path() {
        let document = Document::new(&routes().split_for_parts().1);
        assert_eq!(document.methods("/v1/reload"), ["GET", "POST"]);
        assert_eq!(document.methods("/v1/backends/mx1/drain"), ["POST"]);
        assert_eq!(document.methods("/v1/carp"), ["GET"]);
    }
}
