//! The http and https checks.

use std::sync::Arc;

use super::certificates::{Authority, Fault};
use super::*;
use crate::config::{Http, Method};
use crate::health::Stage::{Body, Response};

fn plain() -> Http {
    let status = vec![(200, 299)];
    Http { method: Method::Get, path: "/".to_owned(), host: None, status, body: None, tls: None }
}

fn with_body() -> Http {
    Http { body: Some("all is well".to_owned()), ..plain() }
}

/// Reads a request's head, says `answer`, and closes its side; returns the head, and whether the end was in order.
async fn answered(mut peer: Peer, answer: Vec<u8>) -> (String, bool) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let line = peer.hear().await;
        assert!(!line.is_empty(), "the client is gone after {head:?}");
        head.push_str(&line);
    }
    // A client that has its verdict may be gone.
    let _ = peer.0.write_all(&answer).await;
    let _ = peer.0.shutdown().await;
    let mut rest = String::new();
    (head, peer.0.read_to_string(&mut rest).await.is_ok())
}

async fn ask(http: Http, answer: impl Into<Vec<u8>>) -> (Result<(), CheckError>, (String, bool)) {
    let answer = answer.into();
    let (address, server) = serve_on("127.0.0.1:0", move |peer| answered(peer, answer)).await;
    let result = probe(&target(Probe::Http(Arc::new(http)), address, PATIENT)).await;
    (result, timeout(PATIENT, server).await.unwrap().unwrap())
}

#[tokio::test]
async fn the_request() {
    let http =
        Http { path: "/health?full=1".to_owned(), host: Some("www.example.com".to_owned()), ..plain() };
    let (result, (head, orderly)) = ask(http, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!((result, orderly), (Ok(()), true));
    assert!(head.starts_with("GET /health?full=1 HTTP/1.1\r\n"), "{head}");
    let lower = head.to_lowercase();
    for field in ["\r\nhost: www.example.com\r\n", "\r\nconnection: close\r\n", "\r\nuser-agent: matapa/"] {
        assert!(lower.contains(field), "{head}");
    }
    let (result, (head, _)) =
        ask(Http { method: Method::Head, ..plain() }, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            .await;
    assert_eq!(result, Ok(()));
    assert!(head.starts_with("HEAD / HTTP/1.1\r\n") && head.to_lowercase().contains("\r\nhost: 127.0.0.1:"));
}

#[tokio::test]
async fn status_codes() {
    let status = |code: u16, text: &str| Err(WrongReply { stage: Response, code, text: text.to_owned() });
    let http = Http { status: vec![(200, 204), (301, 301)], ..plain() };
    for (line, expected) in [
        ("HTTP/1.1 200 OK", Ok(())),
        ("HTTP/1.0 204 Nothing", Ok(())),
        ("HTTP/1.1 301 Moved", Ok(())),
        ("HTTP/1.1 205 Reset", status(205, "Reset")),
        ("HTTP/1.1 503 Service Unavailable", status(503, "Service Unavailable")),
        ("HTTP/1.1 404", status(404, "Not Found")),
        ("HTTP/1.1 500 \u{e9}", status(500, "Internal Server Error")),
    ] {
        let (result, _) = ask(http.clone(), format!("{line}\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(result, expected, "{line}");
    }
    // What comes before the answer is not the answer (RFC 9110 section 15.2).
    let (result, _) =
        ask(http, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(result, Ok(()));
}

#[tokio::test]
async fn bodies_in_all_forms() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n<p>all is well</p>",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nall is \r\n4\r\nwell\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nall\r\n8\r\n is well\r\n0\r\nA: b\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nall is well, until the end of the connection",
        // Found before the body ends.
        "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nall is well and so on",
    ] {
        assert_eq!(ask(with_body(), answer).await.0, Ok(()), "{answer:?}");
    }
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is bad!",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nall is\r\n0\r\n\r\n",
    ] {
        assert_eq!(ask(with_body(), answer).await.0, Err(CheckError::NoSuchText), "{answer:?}");
    }
}

#[tokio::test]
async fn answers_that_break_off() {
    assert_eq!(ask(plain(), "").await.0, Err(Closed(Response)));
    assert_eq!(ask(plain(), "HTTP/1.1 200 O").await.0, Err(Closed(Response)));
    assert_eq!(ask(plain(), "HTTP/1.1 200 OK\r\nServer: x\r\n").await.0, Err(Closed(Response)));
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nall is";
    assert_eq!(ask(with_body(), cut).await.0, Err(Closed(Body)));
    let cut = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nall is";
    assert_eq!(ask(with_body(), cut).await.0, Err(Closed(Body)));
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move {
        peer.hear().await;
        socket2::SockRef::from(peer.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let result = probe(&target(Probe::Http(Arc::new(plain())), address, PATIENT)).await;
    assert_eq!(result, Err(Closed(Response)));
}

#[tokio::test]
async fn garbage_instead_of_http() {
    for answer in [
        &b"220 mx.example ESMTP\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"<html>it works</html>\r\n",
    ] {
        let shown = String::from_utf8_lossy(answer).into_owned();
        assert_eq!(ask(plain(), answer).await.0, Err(Malformed(Response)), "{shown:?}");
    }
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nall is well\r\n0\r\n\r\n";
    assert_eq!(ask(with_body(), answer).await.0, Err(Malformed(Body)));
}

#[tokio::test]
async fn endless_answers() {
    // Each sends until the client is gone.
    async fn flood(mut peer: Peer, first: &'static [u8], again: &'static [u8]) {
        peer.hear().await;
        let mut sent = peer.0.write_all(first).await;
        while sent.is_ok() {
            sent = peer.0.write_all(again).await;
        }
    }
    for (first, again, error) in [
        (&b"HTTP/1.1 200 "[..], &[b'x'; 4096][..], TooLong(Response)),
        (b"HTTP/1.1 200 OK\r\nA: ", &[b'x'; 4096], TooLong(Response)),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", TooLong(Response)),
        (b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 4096], TooLong(Body)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\nmany\r\n", TooLong(Body)),
    ] {
        let (address, server) = serve_on("127.0.0.1:0", move |peer| flood(peer, first, again)).await;
        let result = probe(&target(Probe::Http(Arc::new(with_body())), address, PATIENT)).await;
        assert_eq!(result, Err(error), "{:?}", String::from_utf8_lossy(first));
        timeout(PATIENT, server).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn slow_answers() {
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move { peer.wait().await }).await;
    let check = |http: Http| Probe::Http(Arc::new(http));
    assert_eq!(probe(&target(check(plain()), address, HASTY)).await, Err(Timeout(Response)));
    let drip = |text: &'static [u8]| {
        move |mut peer: Peer| async move {
            peer.hear().await;
            for byte in text.iter().chain(std::iter::repeat(&b'x')) {
                if peer.0.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(2)).await;
            }
        }
    };
    let (address, _server) = serve_on("127.0.0.1:0", drip(b"HTTP/1.1 200 OK\r\nA: ")).await;
    assert_eq!(probe(&target(check(plain()), address, HASTY * 2)).await, Err(Timeout(Response)));
    let (address, _server) = serve_on("127.0.0.1:0", drip(b"HTTP/1.1 200 OK\r\n\r\n")).await;
    assert_eq!(probe(&target(check(with_body()), address, HASTY * 2)).await, Err(Timeout(Body)));
    let (address, _server) = serve_on("127.0.0.1:0", drip(b"HTTP/1.1 200 OK\r\n\r\nall is well")).await;
    assert_eq!(probe(&target(check(with_body()), address, PATIENT)).await, Ok(()));
}

#[tokio::test]
async fn the_verdict_does_not_wait_for_the_rest() {
    let (address, server) = serve_on("127.0.0.1:0", |mut peer| async move {
        while peer.hear().await != "\r\n" {}
        peer.say("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall ").await;
        peer.rest().await
    })
    .await;
    let examined = examine(&target(Probe::Http(Arc::new(plain())), address, PATIENT)).await;
    assert_eq!(examined.result, Ok(()));
    assert!(!server.is_finished());
    examined.farewell.unwrap().finish().await;
    server.await.unwrap();
}

#[tokio::test]
async fn over_tls() {
    let authority = Authority::new();
    let serve = |fault| {
        let acceptor = authority.acceptor(fault);
        serve_on("127.0.0.1:0", move |peer| async move {
            let Ok(mut stream) = acceptor.accept(peer.0).await else { return String::new() };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is well").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            String::from_utf8(head).unwrap()
        })
    };
    let (address, server) = serve(Fault::None).await;
    let http = Http { tls: Some(authority.trusted()), ..with_body() };
    let examined = examine(&target(Probe::Http(Arc::new(http.clone())), address, PATIENT)).await;
    assert_eq!(examined.result, Ok(()));
    assert!(examined.certificate_expires.is_some());
    examined.farewell.unwrap().finish().await;
    assert!(server.await.unwrap().starts_with("GET / HTTP/1.1\r\n"));
    let (address, _server) = serve(Fault::Expired).await;
    let result = probe(&target(Probe::Http(Arc::new(http)), address, PATIENT)).await;
    assert_eq!(result, Err(CheckError::CertificateExpired));
    // The name comes from the Host field.
    let (address, _server) = serve(Fault::OtherName).await;
    let tls = crate::config::Tls { server_name: None, ..authority.trusted() };
    let http = Http { host: Some("other.example:8443".to_owned()), tls: Some(tls), ..plain() };
    assert_eq!(probe(&target(Probe::Http(Arc::new(http)), address, PATIENT)).await, Ok(()));
}
