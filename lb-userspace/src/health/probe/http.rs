//! One HTTP/1.1 request (RFC 9112). Redirects are not followed: where they lead may be another server.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use super::find::Finder;
use super::{Examined, FAREWELL_BYTES, Path, tcp, tls};
use crate::config::{Http, Method};
use crate::health::error::excerpt;
use crate::health::{CheckError, Stage};

/// The longest status line with its header fields, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The most header fields.
const MAX_FIELDS: usize = 100;
/// How much of a body is searched, in bytes.
pub(super) const MAX_BODY: usize = 1 << 20;

/// Asks, judges the answer, and leaves.
pub(super) async fn examine(path: Path, http: &Http) -> Examined {
    match &http.tls {
        None => match tcp::connect(path).await {
            Ok(stream) => ask(stream, http, path).await,
            Err(error) => error.into(),
        },
        Some(tls) => match tls::connect(path, tls, http.host.as_deref()).await {
            Ok(secured) => {
                ask(secured.stream, http, path).await.with_certificate(secured.certificate_expires)
            }
            Err(error) => error.into(),
        },
    }
}

async fn ask<S>(stream: S, http: &Http, path: Path) -> Examined
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = match request(http, path.address) {
        Ok(request) => request,
        Err(error) => return error.into(),
    };
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
    // Sends nothing yet.
    let (mut sender, connection) = match builder.handshake(TokioIo::new(stream)).await {
        Ok(parts) => parts,
        Err(error) => return failure(&error, Stage::Response).into(),
    };
    let mut driven = Driven(Some(Box::pin(connection)));
    let answer = driven.drive(sender.send_request(request), path.deadline, Stage::Response).await;
    let mut response =
        match answer.and_then(|answer| answer.map_err(|error| failure(&error, Stage::Response))) {
            Ok(response) => response,
            Err(error) => return error.into(),
        };
    let result = match judge_status(&response, http) {
        Ok(()) => match &http.body {
            Some(text) => search(&mut driven, &mut response, text, path.deadline).await,
            None => Ok(()),
        },
        Err(error) => Err(error),
    };
    Examined::verdict(result).with_farewell(async move {
        // The server is to send the rest, if there is little, so that it logs no broken connection.
        let mut left = FAREWELL_BYTES;
        let read = async move {
            while let Some(Ok(frame)) = response.frame().await
                && left > 0
            {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            }
        };
        let _ = driven.alongside(read).await;
        drop(sender);
        driven.end().await;
    })
}

fn request(http: &Http, address: SocketAddr) -> Result<Request<Empty<Bytes>>, CheckError> {
    let usual = if http.tls.is_some() { 443 } else { 80 };
    let host = http.host.clone().unwrap_or_else(|| match address {
        SocketAddr::V4(v4) if v4.port() == usual => v4.ip().to_string(),
        SocketAddr::V6(v6) if v6.port() == usual => format!("[{}]", v6.ip()),
        other => other.to_string(),
    });
    Request::builder()
        .method(match http.method {
            Method::Get => hyper::Method::GET,
            Method::Head => hyper::Method::HEAD,
        })
        .uri(&http.path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("matapa/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::new())
        // The configuration has looked at path and host.
        .map_err(|_| CheckError::Local { stage: Stage::Response, errno: libc::EINVAL })
}

fn judge_status(response: &Response<Incoming>, http: &Http) -> Result<(), CheckError> {
    let code = response.status().as_u16();
    if http.status.iter().any(|(first, last)| (*first..=*last).contains(&code)) {
        return Ok(());
    }
    let reason = response.extensions().get::<hyper::ext::ReasonPhrase>();
    let reason = reason.map(hyper::ext::ReasonPhrase::as_bytes).filter(|reason| !reason.is_empty());
    let usual = || response.status().canonical_reason().unwrap_or_default().as_bytes();
    let text = excerpt(reason.unwrap_or_else(usual));
    Err(CheckError::WrongReply { stage: Stage::Response, code, text })
}

/// Reads the body until it has `text`.
async fn search<C>(
    driven: &mut Driven<C>,
    response: &mut Response<Incoming>,
    text: &str,
    deadline: Instant,
) -> Result<(), CheckError>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut finder = Finder::new(text.as_bytes());
    let mut length = 0;
    while let Some(frame) = driven.drive(response.frame(), deadline, Stage::Body).await? {
        let frame = frame.map_err(|error| failure(&error, Stage::Body))?;
        let Some(data) = frame.data_ref() else { continue };
        let searched = &data[..data.len().min(MAX_BODY - length)];
        if finder.push(searched) {
            return Ok(());
        }
        length += searched.len();
        if length == MAX_BODY {
            return Err(CheckError::TooLong(Stage::Body));
        }
    }
    Err(CheckError::NoSuchText)
}

/// A connection, which only moves on while it is polled.
struct Driven<C>(Option<Pin<Box<C>>>);

impl<C: Future<Output = hyper::Result<()>>> Driven<C> {
    async fn drive<T>(
        &mut self,
        action: impl Future<Output = T>,
        deadline: Instant,
        stage: Stage,
    ) -> Result<T, CheckError> {
        timeout_at(deadline, self.alongside(action)).await.map_err(|_elapsed| CheckError::Timeout(stage))
    }

    async fn alongside<T>(&mut self, action: impl Future<Output = T>) -> T {
        let mut action = std::pin::pin!(action);
        poll_fn(|context| {
            // What goes wrong with it, the action hears of.
            let _ = self.poll(context);
            action.as_mut().poll(context)
        })
        .await
    }

    /// Until it is closed.
    async fn end(&mut self) {
        poll_fn(|context| self.poll(context)).await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(connection) = &mut self.0 else { return Poll::Ready(()) };
        let polled = connection.as_mut().poll(context).map(drop);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

/// What an error of the connection means.
fn failure(error: &hyper::Error, stage: Stage) -> CheckError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            // hyper's own word for bytes that are no chunk.
            if io.kind() == io::ErrorKind::InvalidInput {
                return CheckError::Malformed(stage);
            }
            return CheckError::from_io(io, stage);
        }
        source = cause.source();
    }
    if error.is_parse_too_large() {
        CheckError::TooLong(stage)
    } else if error.is_parse() {
        CheckError::Malformed(stage)
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        CheckError::Closed(stage)
    } else {
        // A message where none may be, or the like.
        CheckError::Malformed(stage)
    }
}
