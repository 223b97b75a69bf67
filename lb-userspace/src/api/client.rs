//! The API from the other side: typed calls over the Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::carp::{CarpChange, CarpStatus};
use crate::api::explain::Explanation;
use crate::api::pools::{ServiceChange, WeightChange};
use crate::api::sync::SyncStatus;
use crate::api::types::{
    AdminState, BackendChange, Checks, Counters, ErrorBody, Flows, ReloadOutcome, ReloadPlan, Status,
};

/// A daemon that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);
/// Running every check, or applying a whole configuration, takes as long as its slowest part.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

/// Why a call failed. Each text is a whole sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the daemon at {}: {}; {}", socket.display(), text(source), advice(source))]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error(
        "the daemon at {} has not answered for {seconds} s; its log says why (journalctl -u matapa)",
        socket.display()
    )]
    Silent { socket: PathBuf, seconds: u64 },
    #[error("the daemon at {} went away", socket.display())]
    Lost { socket: PathBuf },
    /// The daemon said no.
    #[error("{}", body.error)]
    Refused { status: StatusCode, body: ErrorBody },
    #[error("what answers at {} is not a matapa daemon, or one of another version: {reason}", socket.display())]
    Foreign { socket: PathBuf, reason: String },
}

fn text(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "use sudo, or join the group that owns the socket",
        _ => "is 'matapa run' running? If it listens elsewhere, give --socket PATH",
    }
}

/// A daemon, by the path of its socket. Each call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    /// Where to ask instead when this user may not use `socket`.
    fallback: Option<PathBuf>,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), fallback: None }
    }

    /// Asks at `read_only` where only that is permitted.
    #[must_use]
    pub fn or_read_only(self, read_only: impl Into<PathBuf>) -> Self {
        Self { fallback: Some(read_only.into()), ..self }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let refused = match UnixStream::connect(&self.socket).await {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
            other => return other,
        };
        match &self.fallback {
            // What is wrong with the first one is what there is to mend.
            Some(read_only) => UnixStream::connect(read_only).await.map_err(|_| refused),
            None => Err(refused),
        }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// # Errors
    /// When the daemon cannot be reached or refuses; so for each call below.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.parse(&self.status_json().await?)
    }

    /// The daemon's own text, for scripts.
    pub async fn status_json(&self) -> Result<Bytes, ClientError> {
        self.call(Method::GET, "/v1/status", PATIENCE).await
    }

    pub async fn flows(&self, limit: usize, service: Option<&str>) -> Result<Flows, ClientError> {
        self.parse(&self.flows_json(limit, service).await?)
    }

    pub async fn flows_json(&self, limit: usize, service: Option<&str>) -> Result<Bytes, ClientError> {
        let mut path = format!("/v1/flows?limit={limit}");
        if let Some(service) = service {
            path = format!("{path}&service={}", percent_encoded(service));
        }
        self.call(Method::GET, &path, PATIENCE).await
    }

    pub async fn checks(&self, service: Option<&str>) -> Result<Checks, ClientError> {
        self.parse(&self.checks_json(service).await?)
    }

    pub async fn checks_json(&self, service: Option<&str>) -> Result<Bytes, ClientError> {
        let path = match service {
            Some(service) => format!("/v1/checks?service={}", percent_encoded(service)),
            None => "/v1/checks".to_owned(),
        };
        self.call(Method::GET, &path, PATIENCE).await
    }

    pub async fn counters(&self) -> Result<Counters, ClientError> {
        self.parse(&self.counters_json().await?)
    }

    pub async fn counters_json(&self) -> Result<Bytes, ClientError> {
        self.call(Method::GET, "/v1/counters", PATIENCE).await
    }

    /// What the program would do with a packet; `parameters` as in the query of `GET /v1/explain`.
    pub async fn explain_json(&self, parameters: &[(&str, &str)]) -> Result<Bytes, ClientError> {
        self.call(Method::GET, &with_query("/v1/explain", parameters), LONG_PATIENCE).await
    }

    pub async fn explain(&self, parameters: &[(&str, &str)]) -> Result<Explanation, ClientError> {
        self.parse(&self.explain_json(parameters).await?)
    }

    /// Enables, drains or disables a backend, in one service or in all that use it.
    pub async fn set_admin(
        &self,
        backend: &str,
        service: Option<&str>,
        state: AdminState,
    ) -> Result<BackendChange, ClientError> {
        let action = match state {
            AdminState::Enabled => "enable",
            AdminState::Draining => "drain",
            AdminState::Disabled => "disable",
        };
        let mut path = format!("/v1/backends/{}/{action}", percent_encoded(backend));
        if let Some(service) = service {
            path = format!("{path}?service={}", percent_encoded(service));
        }
        self.parse(&self.call(Method::POST, &path, PATIENCE).await?)
    }

    /// Sets the weight of a backend (`file`: to what the file says), in one service or in all that use it.
    pub async fn set_weight(
        &self,
        backend: &str,
        service: Option<&str>,
        value: &str,
    ) -> Result<WeightChange, ClientError> {
        let path = format!("/v1/backends/{}/weight", percent_encoded(backend));
        let service = service.map(|service| ("service", service));
        let parameters: Vec<_> = [Some(("value", value)), service].into_iter().flatten().collect();
        self.parse(&self.call(Method::POST, &with_query(&path, &parameters), PATIENCE).await?)
    }

    /// Enables or disables a service.
    pub async fn set_service(&self, service: &str, enabled: bool) -> Result<ServiceChange, ClientError> {
        let action = if enabled { "enable" } else { "disable" };
        let path = format!("/v1/services/{}/{action}", percent_encoded(service));
        self.parse(&self.call(Method::POST, &path, PATIENCE).await?)
    }

    pub async fn reload(&self) -> Result<ReloadOutcome, ClientError> {
        self.parse(&self.reload_json().await?)
    }

    pub async fn reload_json(&self) -> Result<Bytes, ClientError> {
        self.call(Method::POST, "/v1/reload", LONG_PATIENCE).await
    }

    /// What a reload would do. Nothing is changed.
    pub async fn plan_reload(&self) -> Result<ReloadPlan, ClientError> {
        self.parse(&self.plan_reload_json().await?)
    }

    pub async fn plan_reload_json(&self) -> Result<Bytes, ClientError> {
        self.call(Method::GET, "/v1/reload", LONG_PATIENCE).await
    }

    /// Runs all checks now and waits for their results.
    pub async fn poll(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/poll", LONG_PATIENCE).await.map(drop)
    }

    /// Whether it forwards as configured; otherwise refused, with what is missing.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.call(Method::GET, "/readyz", PATIENCE).await.map(drop)
    }

    pub async fn carp(&self) -> Result<CarpStatus, ClientError> {
        self.parse(&self.carp_json().await?)
    }

    pub async fn carp_json(&self) -> Result<Bytes, ClientError> {
        self.call(Method::GET, "/v1/carp", PATIENCE).await
    }

    pub async fn sync(&self) -> Result<SyncStatus, ClientError> {
        self.parse(&self.sync_json().await?)
    }

    pub async fn sync_json(&self) -> Result<Bytes, ClientError> {
        self.call(Method::GET, "/v1/sync", PATIENCE).await
    }

    /// `promote`, `demote` or `release`, of one vhid or of all.
    pub async fn set_carp(&self, action: &str, name: Option<&str>) -> Result<CarpChange, ClientError> {
        let name = name.map(|name| format!("?name={}", percent_encoded(name))).unwrap_or_default();
        self.parse(&self.call(Method::POST, &format!("/v1/carp/{action}{name}"), PATIENCE).await?)
    }

    /// Events from now on.
    pub async fn events(&self) -> Result<EventLines, ClientError> {
        self.lines("/v1/events", PATIENCE).await
    }

    /// Packets from now on, each line the JSON of a [`crate::api::trace::TraceLine`].
    pub async fn trace(&self, filter: &str, rate: u32) -> Result<EventLines, ClientError> {
        let path = with_query("/v1/trace", &[("filter", filter), ("rate", &rate.to_string())]);
        self.lines(&path, LONG_PATIENCE).await
    }

    async fn lines(&self, path: &str, patience: Duration) -> Result<EventLines, ClientError> {
        let response = self.in_time(patience, self.send(Method::GET, path)).await?;
        let response = self.accepted(response).await?;
        Ok(EventLines { socket: self.socket.clone(), body: response.into_body(), buffer: Vec::new() })
    }

    async fn call(&self, method: Method, path: &str, patience: Duration) -> Result<Bytes, ClientError> {
        self.in_time(patience, async {
            let response = self.send(method, path).await?;
            let response = self.accepted(response).await?;
            self.body(response).await
        })
        .await
    }

    async fn in_time<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(patience, call).await.unwrap_or_else(|_| {
            Err(ClientError::Silent { socket: self.socket.clone(), seconds: patience.as_secs() })
        })
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, ClientError> {
        let stream = self
            .connect()
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        tokio::spawn(async move {
            // What goes wrong here the request or its body reports as well.
            if let Err(error) = connection.await {
                log::debug!("connection to the daemon: {error}");
            }
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "matapa")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.foreign(error.to_string()))?;
        sender.send_request(request).await.map_err(|error| self.broken(&error))
    }

    async fn accepted(&self, response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = self.body(response).await?;
        match serde_json::from_slice(&bytes) {
            Ok(body) => Err(ClientError::Refused { status, body }),
            Err(_) => Err(self.foreign(format!("it answered {status}"))),
        }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        Ok(response.into_body().collect().await.map_err(|error| self.broken(&error))?.to_bytes())
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|error| self.foreign(error.to_string()))
    }

    fn broken(&self, error: &hyper::Error) -> ClientError {
        if error.is_parse() {
            self.foreign(error.to_string())
        } else {
            ClientError::Lost { socket: self.socket.clone() }
        }
    }

    fn foreign(&self, reason: String) -> ClientError {
        ClientError::Foreign { socket: self.socket.clone(), reason }
    }
}

/// The lines of the event stream, each the JSON of one [`crate::api::types::Event`].
#[derive(Debug)]
pub struct EventLines {
    socket: PathBuf,
    body: Incoming,
    buffer: Vec<u8>,
}

impl EventLines {
    /// The next line, without its end. Waits as long as it takes.
    ///
    /// # Errors
    /// When the daemon went away; the stream has no other end.
    pub async fn next(&mut self) -> Result<String, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).take(end).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            let lost = || ClientError::Lost { socket: self.socket.clone() };
            let frame = self.body.frame().await.ok_or_else(lost)?.map_err(|_| lost())?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

/// A path with these parameters.
fn with_query(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut text = path.to_owned();
    for (separator, (name, value)) in std::iter::once('?').chain(std::iter::repeat('&')).zip(parameters) {
        text.push(separator);
        text.push_str(name);
        text.push('=');
        text.push_str(&percent_encoded(value));
    }
    text
}

/// Everything but RFC 3986's unreserved characters as `%XX`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            encoded.push('%');
            encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
            encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn names_survive_a_url() {
        assert_eq!(percent_encoded("mx-1.example"), "mx-1.example");
        assert_eq!(percent_encoded("a/b c?é"), "a%2Fb%20c%3F%C3%A9");
    }
}
