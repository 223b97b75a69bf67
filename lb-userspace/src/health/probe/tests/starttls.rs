//! The smtp check with STARTTLS, and over TLS from the start.

use std::sync::Arc;

use super::certificates::{Authority, Fault};
use super::*;
use crate::health::Stage::{Handshake, StartTls};

const EHLO: &str = "250-mx.example\r\n250-STARTTLS\r\n250 HELP\r\n";

/// What the server heard after the handshake, and whether the client's end was in order.
async fn secure_part(stream: &mut (impl AsyncRead + tokio::io::AsyncWrite + Unpin)) -> (String, bool) {
    let mut stream = BufReader::new(stream);
    let mut heard = String::new();
    stream.read_line(&mut heard).await.unwrap();
    stream.write_all(b"250-mx.example\r\n250 HELP\r\n").await.unwrap();
    stream.read_line(&mut heard).await.unwrap();
    stream.write_all(b"221 bye\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    let orderly = stream.read_to_string(&mut rest).await.is_ok() && rest.is_empty();
    (heard, orderly)
}

async fn check(
    authority: &Authority,
    fault: Fault,
) -> (Result<(), CheckError>, Option<SystemTime>, Option<(String, bool)>) {
    let acceptor = authority.acceptor(fault);
    let (address, server) = serve_on("127.0.0.1:0", move |mut peer| async move {
        peer.say("220-mx.example\r\n220 ESMTP\r\n").await;
        assert!(peer.hear().await.starts_with("EHLO "));
        peer.say(EHLO).await;
        assert_eq!(peer.hear().await, "STARTTLS\r\n");
        peer.say("220 2.0.0 Ready to start TLS\r\n").await;
        let mut stream = acceptor.accept(peer.0).await.ok()?;
        Some(secure_part(&mut stream).await)
    })
    .await;
    let smtp = Smtp::StartTls(Arc::new(authority.trusted()));
    let examined = examine(&target(Probe::Smtp(smtp), address, PATIENT)).await;
    if let Some(farewell) = examined.farewell {
        farewell.finish().await;
    }
    (examined.result, examined.certificate_expires, timeout(PATIENT, server).await.unwrap().unwrap())
}

#[tokio::test]
async fn a_session_that_is_secured() {
    let authority = Authority::new();
    let (result, expires, heard) = check(&authority, Fault::None).await;
    assert_eq!(result, Ok(()));
    assert!(expires.is_some());
    let (heard, orderly) = heard.unwrap();
    assert_eq!(heard, format!("EHLO {}\r\nQUIT\r\n", smtp::helo_name()));
    assert!(orderly);
}

#[tokio::test]
async fn a_certificate_that_is_not_good() {
    let authority = Authority::new();
    let (result, ..) = check(&authority, Fault::Expired).await;
    assert_eq!(result, Err(CheckError::CertificateExpired));
}

#[tokio::test]
async fn tls_from_the_start() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(Fault::None);
    let (address, server) = serve_on("127.0.0.1:0", move |peer| async move {
        let mut stream = acceptor.accept(peer.0).await.unwrap();
        stream.write_all(b"220 mx.example ESMTP\r\n").await.unwrap();
        secure_part(&mut stream).await
    })
    .await;
    let smtp = Smtp::Tls(Arc::new(authority.trusted()));
    assert_eq!(probe(&target(Probe::Smtp(smtp), address, PATIENT)).await, Ok(()));
    let (heard, orderly) = server.await.unwrap();
    assert!(heard.ends_with("QUIT\r\n") && orderly);
}

/// A server that never gets as far as the handshake; returns what it heard after EHLO.
async fn refused(ehlo: &'static str, starttls: &'static str) -> (Result<(), CheckError>, String) {
    let (address, server) = serve_on("127.0.0.1:0", move |mut peer| async move {
        peer.say("220 mx.example\r\n").await;
        peer.hear().await;
        peer.say(ehlo).await;
        let mut heard = peer.hear().await;
        if heard == "STARTTLS\r\n" && !starttls.is_empty() {
            peer.say(starttls).await;
            heard += &peer.hear().await;
        }
        peer.0.shutdown().await.unwrap();
        heard
    })
    .await;
    let smtp = Smtp::StartTls(Arc::default());
    let result = probe(&target(Probe::Smtp(smtp), address, PATIENT)).await;
    (result, timeout(PATIENT, server).await.unwrap().unwrap())
}

#[tokio::test]
async fn starttls_that_is_not_offered_or_refused() {
    let (result, heard) = refused("250-mx.example\r\n250 HELP\r\n", "").await;
    assert_eq!((result, heard.as_str()), (Err(CheckError::NoStartTls), "QUIT\r\n"));
    let (result, heard) = refused(EHLO, "454 4.7.0 TLS not available\r\n").await;
    let error = WrongReply { stage: StartTls, code: 454, text: "4.7.0 TLS not available".to_owned() };
    assert_eq!((result, heard.as_str()), (Err(error), "STARTTLS\r\nQUIT\r\n"));
    let (result, _) = refused(EHLO, "").await;
    assert_eq!(result, Err(Closed(StartTls)));
}

#[tokio::test]
async fn what_is_sent_ahead_of_the_handshake_is_not_taken_for_what_follows() {
    let (result, heard) = refused(EHLO, "220 go ahead\r\n250 injected\r\n").await;
    assert_eq!((result, heard.as_str()), (Err(Malformed(StartTls)), "STARTTLS\r\n"));
}

#[tokio::test]
async fn a_server_that_forgets_to_shake_hands() {
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move {
        peer.say("220 mx.example\r\n").await;
        peer.hear().await;
        peer.say(EHLO).await;
        peer.hear().await;
        peer.say("220 go ahead\r\n").await;
        peer.wait().await;
    })
    .await;
    let smtp = Smtp::StartTls(Arc::default());
    assert_eq!(probe(&target(Probe::Smtp(smtp), address, HASTY * 2)).await, Err(Timeout(Handshake)));
}
