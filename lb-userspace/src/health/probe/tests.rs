//! Probes against real servers in this process, and dialogues in virtual time.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::smtp::Dialogue;
use super::*;
use crate::config::{Check, Smtp};
use crate::health::CheckError::{Closed, Malformed, Refused, Timeout, TooLong, WrongReply};
use crate::health::Stage::{Connect, Ehlo, Greeting, Quit};

mod certificates;
mod dialogues;
mod names;
mod pings;
mod programs;
mod secured;
mod starttls;
mod web;

/// Longer than any of these tests should take on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);
/// For checks that are meant to time out.
const HASTY: Duration = Duration::from_millis(150);

const SMTP: Probe = Probe::Smtp(Smtp::Plain);

fn target(probe: Probe, address: SocketAddr, timeout: Duration) -> Target {
    let check = Check { interval: timeout.saturating_mul(2), timeout, fall: 1, ..Check::of(probe) };
    Target { address, check, via: None }
}

/// The server's side of a connection.
struct Peer(BufReader<TcpStream>);

impl Peer {
    async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line
    }

    /// Everything up to the client's close, which must be an orderly one.
    async fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).await.unwrap();
        rest
    }

    /// Until the client is gone, in whatever way.
    async fn wait(&mut self) {
        let mut sink = [0; 64];
        while self.0.read(&mut sink).await.is_ok_and(|length| length > 0) {}
    }
}

/// Serves one connection on a port of its own.
async fn serve_on<F, T>(
    local: &str,
    script: impl FnOnce(Peer) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<T>)
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let listener = TcpListener::bind(local).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(Peer(BufReader::new(stream))).await
    });
    (address, server)
}

/// Runs an SMTP check against `script` and returns both results.
async fn smtp<F, T>(
    limit: Duration,
    script: impl FnOnce(Peer) -> F + Send + 'static,
) -> (Result<(), CheckError>, T)
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let (address, server) = serve_on("127.0.0.1:0", script).await;
    let result = probe(&target(SMTP, address, limit)).await;
    (result, timeout(PATIENT, server).await.unwrap().unwrap())
}

/// A server that greets with `greeting` and then does its part; returns all that it heard.
async fn polite(greeting: &'static str, ehlo: &'static str, mut peer: Peer) -> Vec<String> {
    peer.say(greeting).await;
    let mut heard = vec![peer.hear().await];
    if heard[0].starts_with("EHLO") {
        peer.say(ehlo).await;
        heard.push(peer.hear().await);
    }
    peer.say("221 2.0.0 Bye\r\n").await;
    // The server closes its side first.
    peer.0.shutdown().await.unwrap();
    heard.push(peer.rest().await);
    heard
}

fn wrong(stage: Stage, code: u16, text: &str) -> Result<(), CheckError> {
    Err(WrongReply { stage, code, text: text.into() })
}

#[tokio::test]
async fn good_servers_in_all_forms() {
    let greetings = [
        "220 mx.example ESMTP\r\n",
        "220-mx.example\r\n220-no spam here\r\n220 ESMTP\r\n",
        "220\r\n",
        "220-\r\n220\r\n",
        "220 mx.example\n",
    ];
    let replies = [
        "250 mx.example\r\n",
        "250-mx.example\r\n250-SIZE 1000\r\n250 HELP\r\n",
        "250\r\n",
        "250-a\n250 b\n",
    ];
    for greeting in greetings {
        for reply in replies {
            let (result, heard) = smtp(PATIENT, move |peer| polite(greeting, reply, peer)).await;
            assert_eq!(result, Ok(()), "{greeting:?} {reply:?}");
            assert_eq!(heard, [&format!("EHLO {}\r\n", smtp::helo_name()), "QUIT\r\n", ""]);
        }
    }
}

#[tokio::test]
async fn ipv6() {
    let (address, server) = serve_on("[::1]:0", |peer| polite("220 six\r\n", "250 six\r\n", peer)).await;
    assert_eq!(probe(&target(SMTP, address, PATIENT)).await, Ok(()));
    assert_eq!(server.await.unwrap()[1], "QUIT\r\n");
}

#[tokio::test]
async fn a_server_that_refuses_in_its_greeting_hears_quit() {
    for (greeting, code, text) in [
        ("421 4.3.2 too busy\r\n", 421, "4.3.2 too busy"),
        ("554-no\r\n554 service\r\n", 554, "no"),
        ("450\r\n", 450, ""),
        ("250 confused\r\n", 250, "confused"),
    ] {
        let (result, heard) = smtp(PATIENT, move |peer| polite(greeting, "", peer)).await;
        assert_eq!(result, wrong(Greeting, code, text));
        assert_eq!(heard, ["QUIT\r\n", ""]);
    }
}

#[tokio::test]
async fn a_server_that_refuses_ehlo_hears_quit() {
    for (reply, code, text) in [
        ("500 what?\r\n", 500, "what?"),
        ("502 \x1b[2Jno\r\n", 502, "?[2Jno"),
        ("421-bye\r\n421 bye\r\n", 421, "bye"),
        ("220 stuck\r\n", 220, "stuck"),
    ] {
        let (result, heard) = smtp(PATIENT, move |peer| polite("220 hello\r\n", reply, peer)).await;
        assert_eq!(result, wrong(Ehlo, code, text));
        assert_eq!(heard[1..], ["QUIT\r\n", ""]);
    }
}

#[tokio::test]
async fn a_server_that_refuses_and_closes() {
    let (result, ()) = smtp(PATIENT, |mut peer| async move { peer.say("421 full\r\n").await }).await;
    assert_eq!(result, wrong(Greeting, 421, "full"));
}

#[tokio::test]
async fn a_strange_answer_to_quit() {
    let (result, rest) = smtp(PATIENT, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.hear().await;
        peer.say("250 hello\r\n").await;
        peer.hear().await;
        peer.say("502 never\r\n").await;
        peer.0.shutdown().await.unwrap();
        peer.rest().await
    })
    .await;
    assert_eq!(result, wrong(Quit, 502, "never"));
    assert_eq!(rest, "", "QUIT is said once");
}

#[tokio::test]
async fn a_server_that_stays_after_quit_does_not_hold_the_check() {
    let (result, rest) = smtp(PATIENT, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.hear().await;
        peer.say("250 hello\r\n").await;
        peer.hear().await;
        peer.say("221 bye\r\n").await;
        peer.rest().await
    })
    .await;
    assert_eq!((result, rest.as_str()), (Ok(()), ""));
}

#[tokio::test]
async fn the_verdict_does_not_wait_for_the_close() {
    let (address, server) = serve_on("127.0.0.1:0", |mut peer| async move {
        peer.say("554 no\r\n").await;
        // Neither answers QUIT nor closes until the client has gone.
        peer.rest().await
    })
    .await;
    let examined = examine(&target(SMTP, address, PATIENT)).await;
    assert_eq!(examined.result, wrong(Greeting, 554, "no"));
    assert!(!server.is_finished());
    examined.farewell.unwrap().finish().await;
    assert_eq!(server.await.unwrap(), "QUIT\r\n");
}

#[tokio::test]
async fn silence() {
    let (result, ()) = smtp(HASTY, |mut peer| async move { peer.wait().await }).await;
    assert_eq!(result, Err(Timeout(Greeting)));
    let (result, ()) = smtp(HASTY, |mut peer| async move {
        peer.say("220-there is\r\n220-more to").await;
        peer.wait().await;
    })
    .await;
    assert_eq!(result, Err(Timeout(Greeting)));
    let (result, ()) = smtp(HASTY, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.wait().await;
    })
    .await;
    assert_eq!(result, Err(Timeout(Ehlo)));
    let (result, ()) = smtp(HASTY, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.hear().await;
        peer.say("250 hello\r\n").await;
        peer.wait().await;
    })
    .await;
    assert_eq!(result, Err(Timeout(Quit)));
}

#[tokio::test]
async fn a_server_that_closes_early() {
    let (result, ()) = smtp(PATIENT, |_peer| async {}).await;
    assert_eq!(result, Err(Closed(Greeting)));
    let (result, ()) = smtp(PATIENT, |mut peer| async move { peer.say("220 he").await }).await;
    assert_eq!(result, Err(Closed(Greeting)));
    let (result, ()) = smtp(PATIENT, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.hear().await;
    })
    .await;
    assert_eq!(result, Err(Closed(Ehlo)));
    let (result, ()) = smtp(PATIENT, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.hear().await;
        peer.say("250 hello\r\n").await;
        peer.hear().await;
    })
    .await;
    assert_eq!(result, Err(Closed(Quit)));
}

#[tokio::test]
async fn a_server_that_resets() {
    let (result, ()) = smtp(PATIENT, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.hear().await;
        socket2::SockRef::from(peer.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    assert_eq!(result, Err(Closed(Ehlo)));
}

#[tokio::test]
async fn endless_senders() {
    // Each sends until the client is gone.
    async fn flood(mut peer: Peer, first: &'static [u8], again: &'static [u8]) -> usize {
        peer.say(first).await;
        let mut sent = first.len();
        while peer.0.write_all(again).await.is_ok() {
            sent += again.len();
        }
        sent
    }
    for (first, again) in [
        (&b"220 "[..], &[b'x'; 4096][..]),
        (b"220-", &[b'x'; 4096]),
        (b"", b"220-still greeting\r\n"),
        (b"", b"220-\r\n"),
    ] {
        let (result, _sent) = smtp(PATIENT, move |peer| flood(peer, first, again)).await;
        assert_eq!(result, Err(TooLong(Greeting)));
    }
}

#[tokio::test]
async fn garbage() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2p1\r\n"[..],
        b"\x00\x01\x02\x03",
        b"\xff\xfd\x18\xff\xfd\x20",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\r\n",
        b"220x\r\n",
        b"220-a\r\n221 b\r\n",
    ] {
        let (result, ()) = smtp(PATIENT, move |mut peer| async move {
            peer.say(bytes).await;
            peer.wait().await;
        })
        .await;
        assert_eq!(result, Err(Malformed(Greeting)), "{:?}", String::from_utf8_lossy(bytes));
    }
    let (result, ()) = smtp(PATIENT, |mut peer| async move {
        peer.say("220 hello\r\n").await;
        peer.hear().await;
        peer.say("What?\r\n").await;
        peer.wait().await;
    })
    .await;
    assert_eq!(result, Err(Malformed(Ehlo)));
}

#[tokio::test]
async fn refused() {
    // Bound, so that nobody else gets the port, but nothing listens.
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let local: SocketAddr = local.parse().unwrap();
        let socket = if local.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.bind(local).unwrap();
        let address = socket.local_addr().unwrap();
        for kind in [Probe::Tcp, SMTP] {
            assert_eq!(probe(&target(kind, address, PATIENT)).await, Err(Refused));
        }
    }
}

#[tokio::test]
async fn no_answer_to_the_syn() {
    // A full queue: the kernel drops further SYNs.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let result = loop {
        // Stops at the first connection that the queue has no place for.
        let path = Path { address, source: None, deadline: Instant::now() + HASTY };
        match tcp::connect(path).await {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100);
    };
    assert_eq!(result, Timeout(Connect));
    assert_eq!(probe(&target(Probe::Tcp, address, HASTY)).await, Err(Timeout(Connect)));
}

#[tokio::test]
async fn tcp_opens_and_closes() {
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let (address, server) = serve_on(local, |mut peer| async move {
            // A greeting that nobody reads must not make the close an abortive one.
            peer.say("220 hello\r\n").await;
            peer.rest().await
        })
        .await;
        assert_eq!(probe(&target(Probe::Tcp, address, PATIENT)).await, Ok(()));
        assert_eq!(server.await.unwrap(), "");
    }
}

#[tokio::test]
async fn an_endless_timeout_is_no_panic() {
    let (address, _server) = serve_on("127.0.0.1:0", |_peer| async {}).await;
    let mut forever = target(Probe::Tcp, address, PATIENT);
    forever.check.timeout = Duration::MAX;
    assert_eq!(probe(&forever).await, Ok(()));
}

const SESSION: [&[u8]; 3] = [b"220-slow\r\n220 slow\r\n", b"250-slow\r\n250 slow\r\n", b"221 slow\r\n"];

/// Holds the dialogue with a server that pauses before each byte, in virtual time. Returns the verdict and
/// when it fell.
async fn slowly(pause: Duration, limit: Duration) -> (Result<(), CheckError>, Duration) {
    let (client, mut server) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        for (index, reply) in SESSION.iter().enumerate() {
            if index > 0 {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.push(server.read_u8().await?);
                }
            }
            for &byte in *reply {
                sleep(pause).await;
                server.write_u8(byte).await?;
            }
        }
        Ok::<(), io::Error>(())
    });
    let start = Instant::now();
    let result = Dialogue::new(client).converse("gw.example", start + limit).await;
    (result, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn slow_but_in_time() {
    let bytes = u32::try_from(SESSION.concat().len()).unwrap();
    let pause = Duration::from_millis(20);
    let (result, took) = slowly(pause, pause * (bytes + 1)).await;
    assert_eq!((result, took), (Ok(()), pause * bytes));
}

#[tokio::test(start_paused = true)]
async fn a_byte_now_and_then_does_not_extend_the_timeout() {
    let pause = Duration::from_millis(100);
    let limit = Duration::from_millis(2050);
    // Every reply comes within the limit, all together do not: the greeting is over after 2.0 s.
    let (result, took) = slowly(pause, limit).await;
    assert_eq!((result, took), (Err(Timeout(Ehlo)), limit));
    let (result, took) = slowly(pause, Duration::from_millis(1950)).await;
    assert_eq!((result, took), (Err(Timeout(Greeting)), Duration::from_millis(1950)));
    let (result, took) = slowly(pause, Duration::from_millis(4500)).await;
    assert_eq!((result, took), (Err(Timeout(Quit)), Duration::from_millis(4500)));
}

#[tokio::test]
async fn a_slow_server_on_a_socket() {
    let (result, ()) = smtp(PATIENT, |mut peer| async move {
        for reply in SESSION {
            for byte in reply {
                peer.say([*byte]).await;
                sleep(Duration::from_millis(1)).await;
            }
            peer.hear().await;
        }
    })
    .await;
    assert_eq!(result, Ok(()));
    let (result, ()) = smtp(HASTY, |mut peer| async move {
        while peer.0.write_all(b"220-\r\n").await.is_ok() {
            sleep(HASTY / 10).await;
        }
    })
    .await;
    assert_eq!(result, Err(Timeout(Greeting)));
}

#[tokio::test(start_paused = true)]
async fn replies_sent_ahead_are_taken_in_turn() {
    let (client, mut server) = tokio::io::duplex(4096);
    server.write_all(&SESSION.concat()).await.unwrap();
    let deadline = Instant::now() + HASTY;
    assert_eq!(Dialogue::new(client).converse("gw.example", deadline).await, Ok(()));
    let mut heard = [0; 64];
    let length = server.read(&mut heard).await.unwrap();
    assert_eq!(&heard[..length], b"EHLO gw.example\r\nQUIT\r\n");
}

#[tokio::test(start_paused = true)]
async fn the_farewell_is_bounded() {
    let (client, mut server) = tokio::io::duplex(1 << 20);
    server.write_all(&SESSION.concat()).await.unwrap();
    server.write_all(&vec![b'x'; 200_000]).await.unwrap();
    let mut dialogue = Dialogue::new(client);
    dialogue.converse("gw.example", Instant::now() + HASTY).await.unwrap();
    // Gives up after so many bytes, although the server neither closes nor stops.
    dialogue.leave().await;
}
