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
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::watch;
use tokio_stream::wrappers::BroadcastStream;

use crate::api::error::ApiError;
use crate::api::socket::ControlSocket;
use crate::api::types::{AdminState, BackendChange, Counters, Event, Flows, ReloadOutcome, Status};
use crate::control::request::{ControlHandle, Request};

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
    "GET /v1/counters",
    "GET /v1/events",
    "POST /v1/backends/{name}/{enable|disable|drain}?service=S",
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
        .route("/v1/counters", get(counters))
        .route("/v1/events", get(events))
        .route("/v1/backends/{name}/{action}", post(set_admin))
        .route("/v1/reload", post(reload))
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

async fn counters(State(api): State<Api>) -> Result<Json<Counters>, ApiError> {
    Ok(Json(api.control.ask(Request::Counters).await?))
}

async fn events(State(api): State<Api>) -> Response {
    let mut closing = api.closing;
    let stop = async move {
        // An error means that the server is gone, so the stream ends as well.
        let _ = closing.wait_for(|closing| *closing).await;
        tokio::time::sleep(LAST_EVENTS).await;
    };
    let lines = BroadcastStream::new(api.control.subscribe())
        // A reader that fell behind sees the gap in the event numbers.
        .filter_map(|received| std::future::ready(received.ok().and_then(|event| line(&event))))
        .take_until(Box::pin(stop))
        .map(Ok::<_, Infallible>);
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lines)).into_response()
}

fn line(event: &Event) -> Option<String> {
    match serde_json::to_string(event) {
        Ok(mut text) => {
            text.push('\n');
            Some(text)
        }
        Err(error) => {
            log::error!("event {} cannot be written as JSON: {error}", event.number);
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

async fn reload(State(api): State<Api>) -> Result<Json<ReloadOutcome>, ApiError> {
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
                let known = known.join(", ");
                return Err(ApiError::bad_request(format!("unknown parameter {name:?}; known: {known}")));
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
