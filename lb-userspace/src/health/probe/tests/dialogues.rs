//! The send-expect check.

use std::sync::Arc;

use super::certificates::{Authority, Fault};
use super::*;
use crate::config::{Pattern, Piece, SendExpect};

/// The text somewhere; with a star at its end, at the beginning.
fn pattern(text: &str) -> Pattern {
    let mut pieces = vec![Piece::Many];
    let start = text.strip_suffix('*');
    if start.is_some() {
        pieces.clear();
    }
    pieces.extend(start.unwrap_or(text).bytes().map(Piece::Byte));
    pieces.push(Piece::Many);
    Pattern { written: text.to_owned(), pieces }
}

fn dialogue(steps: &[(&str, &str)]) -> Probe {
    let step = |(send, expect): &(&str, &str)| crate::config::Step {
        send: send.as_bytes().to_vec(),
        expect: (!expect.is_empty()).then(|| pattern(expect)),
    };
    Probe::SendExpect(Arc::new(SendExpect { steps: steps.iter().map(step).collect(), tls: None }))
}

/// A server that says its lines in turn, after one of the client's each; the first at once. Returns what it heard.
async fn lines(mut peer: Peer, lines: &'static [&'static str]) -> String {
    let mut heard = String::new();
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            heard += &peer.hear().await;
        }
        peer.say(line).await;
    }
    peer.0.shutdown().await.unwrap();
    heard + &peer.rest().await
}

async fn check(steps: &[(&str, &str)], said: &'static [&'static str]) -> (Result<(), CheckError>, String) {
    let (address, server) = serve_on("127.0.0.1:0", move |peer| lines(peer, said)).await;
    let result = probe(&target(dialogue(steps), address, PATIENT)).await;
    (result, timeout(PATIENT, server).await.unwrap().unwrap())
}

#[tokio::test]
async fn several_steps() {
    let steps = [("", "220 "), ("EHLO x\r\n", "250 "), ("QUIT\r\n", "")];
    let (result, heard) =
        check(&steps, &["220-mx\r\n220 mx\r\n", "250-mx\r\n250 HELP\r\n", "221 bye\r\n"]).await;
    assert_eq!((result, heard.as_str()), (Ok(()), "EHLO x\r\nQUIT\r\n"));
    let (result, heard) = check(&[("PING\r\n", "+PONG")], &["", "+PONG\r\n"]).await;
    assert_eq!((result, heard.as_str()), (Ok(()), "PING\r\n"));
    // One answer may serve two steps, as long as nothing is sent between them.
    let (result, _) = check(&[("", "one"), ("", "two")], &["one two\r\n"]).await;
    assert_eq!(result, Ok(()));
}

#[tokio::test]
async fn what_came_earlier_is_no_answer() {
    let (result, _) = check(&[("", "220"), ("PING\r\n", "PONG")], &["220 hello, PONG\r\n", "-ERR\r\n"]).await;
    assert_eq!(result, Err(CheckError::Unexpected { step: 2, answer: "-ERR".to_owned() }));
}

#[tokio::test]
async fn wrong_answers() {
    let unexpected = |step, answer: &str| Err(CheckError::Unexpected { step, answer: answer.to_owned() });
    let (result, _) = check(&[("", "220")], &["421 \u{1b}[2Jbusy\r\n"]).await;
    assert_eq!(result, unexpected(1, "421 ?[2Jbusy"));
    let (result, _) = check(&[("", "220")], &[""]).await;
    assert_eq!(result, Err(Closed(Stage::Step(1))));
    // Known to be wrong before the server ends.
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move {
        peer.say("421 busy\r\n").await;
        peer.wait().await;
    })
    .await;
    let result = probe(&target(dialogue(&[("", "220*")]), address, PATIENT)).await;
    assert_eq!(result, unexpected(1, "421 busy"));
}

#[tokio::test]
async fn silent_slow_and_endless_servers() {
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move { peer.wait().await }).await;
    let result = probe(&target(dialogue(&[("", "220")]), address, HASTY)).await;
    assert_eq!(result, Err(Timeout(Stage::Step(1))));
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move {
        while peer.0.write_all(b"x").await.is_ok() {
            sleep(HASTY / 20).await;
        }
    })
    .await;
    let result = probe(&target(dialogue(&[("a", ""), ("", "220")]), address, HASTY)).await;
    assert_eq!(result, Err(Timeout(Stage::Step(2))));
    let (address, server) =
        serve_on(
            "127.0.0.1:0",
            |mut peer| async move { while peer.0.write_all(&[b'x'; 4096]).await.is_ok() {} },
        )
        .await;
    let result = probe(&target(dialogue(&[("", "220")]), address, PATIENT)).await;
    assert_eq!(result, Err(TooLong(Stage::Step(1))));
    timeout(PATIENT, server).await.unwrap().unwrap();
    // A server that never reads.
    let big = "x".repeat(4096);
    let steps: Vec<(&str, &str)> = (0..255).map(|_| (big.as_str(), "")).chain([("", "never")]).collect();
    let (address, _server) = serve_on("127.0.0.1:0", |peer| async move {
        sleep(PATIENT).await;
        drop(peer);
    })
    .await;
    let error = probe(&target(dialogue(&steps[..255]), address, HASTY)).await;
    assert!(matches!(error, Ok(()) | Err(Timeout(Stage::Step(_)))), "{error:?}");
}

#[tokio::test]
async fn over_tls() {
    let authority = Authority::new();
    let acceptor = authority.acceptor(Fault::None);
    let (address, server) = serve_on("127.0.0.1:0", move |peer| async move {
        let mut stream = acceptor.accept(peer.0).await.unwrap();
        let mut heard = [0; 6];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(b"+PONG\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        heard
    })
    .await;
    let Probe::SendExpect(plain) = dialogue(&[("PING\r\n", "+PONG")]) else { panic!() };
    let secure = SendExpect { tls: Some(authority.trusted()), ..SendExpect::clone(&plain) };
    let examined = examine(&target(Probe::SendExpect(Arc::new(secure)), address, PATIENT)).await;
    assert_eq!(examined.result, Ok(()));
    assert!(examined.certificate_expires.is_some());
    examined.farewell.unwrap().finish().await;
    assert_eq!(&server.await.unwrap(), b"PING\r\n");
}
