//! The dns check.

use std::str::FromStr as _;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, rdata};
use tokio::net::UdpSocket;

use super::*;
use crate::config::Dns;
use crate::health::Stage::Answer;

fn asks(record: &str, answer: Option<&str>) -> Dns {
    Dns {
        query: "www.example.".to_owned(),
        record: record.to_owned(),
        rcodes: vec![0],
        answer: answer.map(str::to_owned),
        tcp: false,
    }
}

fn reply(query: &Message) -> Message {
    let mut reply = Message::new();
    reply.set_id(query.id()).set_message_type(MessageType::Response).add_query(query.queries()[0].clone());
    reply
}

fn address(query: &Message, last: u8) -> Message {
    let mut answer = reply(query);
    let name = Name::from_str("www.example.").unwrap();
    answer.add_answer(Record::from_rdata(name, 60, RData::A(rdata::A::new(192, 0, 2, last))));
    answer
}

/// Answers datagrams with what `answers` makes of each query.
async fn serve(answers: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            for answer in answers(Message::from_vec(&buffer[..length]).unwrap()) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    (address, server)
}

async fn check(
    dns: Dns,
    limit: Duration,
    answers: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static,
) -> Result<(), CheckError> {
    let (address, server) = serve(answers).await;
    let result = probe(&target(Probe::Dns(Arc::new(dns)), address, limit)).await;
    server.abort();
    result
}

#[tokio::test]
async fn good_answers() {
    let good = |query: Message| vec![address(&query, 80).to_vec().unwrap()];
    assert_eq!(check(asks("A", None), PATIENT, good).await, Ok(()));
    assert_eq!(check(asks("A", Some("192.0.2.80")), PATIENT, good).await, Ok(()));
    let mail = |query: Message| {
        let mut answer = reply(&query);
        let name = Name::from_str("www.example.").unwrap();
        let exchange = Name::from_str("MX.example.").unwrap();
        answer.add_answer(Record::from_rdata(name, 60, RData::MX(rdata::MX::new(10, exchange))));
        vec![answer.to_vec().unwrap()]
    };
    for written in ["10 mx.example.", "10  MX.EXAMPLE"] {
        assert_eq!(check(asks("MX", Some(written)), PATIENT, mail).await, Ok(()), "{written}");
    }
    let text = |query: Message| {
        let mut answer = reply(&query);
        let name = Name::from_str("www.example.").unwrap();
        let data = RData::TXT(rdata::TXT::new(vec!["all is well".to_owned()]));
        answer.add_answer(Record::from_rdata(name, 60, data));
        vec![answer.to_vec().unwrap()]
    };
    for written in ["all is well", "\"all is well\""] {
        assert_eq!(check(asks("TXT", Some(written)), PATIENT, text).await, Ok(()), "{written}");
    }
    let missing = |query: Message| {
        let mut answer = reply(&query);
        answer.set_response_code(ResponseCode::NXDomain);
        vec![answer.to_vec().unwrap()]
    };
    assert_eq!(check(Dns { rcodes: vec![0, 3], ..asks("A", None) }, PATIENT, missing).await, Ok(()));
}

#[tokio::test]
async fn wrong_answers() {
    for (code, rcode) in
        [(ResponseCode::ServFail, 2), (ResponseCode::Refused, 5), (ResponseCode::NXDomain, 3)]
    {
        let bad = move |query: Message| {
            let mut answer = reply(&query);
            answer.set_response_code(code);
            vec![answer.to_vec().unwrap()]
        };
        assert_eq!(check(asks("A", None), PATIENT, bad).await, Err(CheckError::WrongRcode { rcode }));
    }
    let other = |query: Message| vec![address(&query, 81).to_vec().unwrap()];
    assert_eq!(check(asks("A", Some("192.0.2.80")), PATIENT, other).await, Err(CheckError::NoSuchRecord));
    let empty = |query: Message| vec![reply(&query).to_vec().unwrap()];
    assert_eq!(check(asks("A", Some("192.0.2.80")), PATIENT, empty).await, Err(CheckError::NoSuchRecord));
    let garbage = |query: Message| {
        let mut bytes = address(&query, 80).to_vec().unwrap();
        bytes.truncate(20);
        vec![bytes]
    };
    assert_eq!(check(asks("A", None), PATIENT, garbage).await, Err(Malformed(Answer)));
}

#[tokio::test]
async fn what_others_send_is_not_the_answer() {
    // Another number, another question, a query, and noise; then the answer.
    let noisy = |query: Message| {
        let mut other_id = address(&query, 80);
        other_id.set_id(query.id().wrapping_add(1)).set_response_code(ResponseCode::ServFail);
        let mut other_question = Message::new();
        other_question.set_id(query.id()).set_message_type(MessageType::Response);
        let mut question = query.queries()[0].clone();
        question.set_name(Name::from_str("other.example.").unwrap());
        other_question.add_query(question).set_response_code(ResponseCode::ServFail);
        let mut messages = [other_id, other_question, query.clone(), address(&query, 80)]
            .map(|message| message.to_vec().unwrap())
            .to_vec();
        messages.insert(0, b"x".to_vec());
        messages.insert(0, Vec::new());
        messages
    };
    assert_eq!(check(asks("A", Some("192.0.2.80")), PATIENT, noisy).await, Ok(()));
    let flood = |_query: Message| vec![b"noise".to_vec(); 200];
    assert_eq!(check(asks("A", None), HASTY, flood).await, Err(Timeout(Answer)));
}

#[tokio::test]
async fn silence_and_nobody() {
    assert_eq!(check(asks("A", None), HASTY, |_query| Vec::new()).await, Err(Timeout(Answer)));
    // The first query is lost.
    let count = std::sync::atomic::AtomicUsize::new(0);
    let second = move |query: Message| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => Vec::new(),
        _ => vec![address(&query, 80).to_vec().unwrap()],
    };
    assert_eq!(check(asks("A", None), Duration::from_secs(2), second).await, Ok(()));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    let result = probe(&target(Probe::Dns(Arc::new(asks("A", None))), address, PATIENT)).await;
    assert_eq!(result, Err(Refused));
}

/// Answers over UDP that there is more, and over TCP with `bytes` made of the query.
async fn truncated(answer: impl Fn(&Message) -> Vec<u8> + Send + 'static) -> Result<(), CheckError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(at).await.unwrap();
    let server = tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let mut short = reply(&Message::from_vec(&buffer[..length]).unwrap());
        short.set_truncated(true);
        socket.send_to(&short.to_vec().unwrap(), from).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut query = vec![0; usize::from(length)];
        stream.read_exact(&mut query).await.unwrap();
        stream.write_all(&answer(&Message::from_vec(&query).unwrap())).await.unwrap();
        sleep(HASTY * 3).await;
    });
    let result = probe(&target(Probe::Dns(Arc::new(asks("A", Some("192.0.2.80")))), at, HASTY * 2)).await;
    server.await.unwrap();
    result
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

#[tokio::test]
async fn answers_that_are_cut_short_are_asked_for_over_tcp() {
    assert_eq!(truncated(|query| framed(&address(query, 80).to_vec().unwrap())).await, Ok(()));
    assert_eq!(truncated(|_query| framed(b"garbage")).await, Err(Malformed(Answer)));
    // Half an answer, and then nothing.
    assert_eq!(truncated(|_query| vec![0xff, 0xff, 1, 2, 3]).await, Err(Timeout(Answer)));
}
