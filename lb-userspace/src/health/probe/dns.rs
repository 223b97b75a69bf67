//! One DNS query (RFC 1035): over UDP, and again over TCP where the answer was cut short (RFC 7766 section 5).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr as _;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::{Path, step, tcp};
use crate::config::Dns;
use crate::health::{CheckError, Stage};

/// More than any answer over UDP without EDNS may have (RFC 1035 section 4.2.1 says 512).
const DATAGRAM: usize = 4096;
/// A query that got lost is sent once more after this part of the time.
const AGAIN_AFTER: u32 = 2;

/// Asks, and judges the answer.
pub(super) async fn examine(path: Path, dns: &Dns) -> Result<(), CheckError> {
    let local = || CheckError::Local { stage: Stage::Answer, errno: libc::EINVAL };
    // The configuration has looked at both.
    let name = Name::from_ascii(&dns.query).map_err(|_| local())?;
    let record = RecordType::from_str(&dns.record).map_err(|_| local())?;
    let query = Query::query(name, record);
    let mut message = Message::new();
    message
        .set_id(rand::random())
        .set_message_type(MessageType::Query)
        .set_op_code(OpCode::Query)
        .set_recursion_desired(true)
        .add_query(query.clone());
    let asked = Asked { id: message.id(), query, bytes: message.to_vec().map_err(|_| local())? };
    if !dns.tcp {
        let answer = over_udp(path, &asked).await?;
        if !answer.truncated() {
            return judge(&answer, dns, record);
        }
    }
    judge(&over_tcp(path, &asked).await?, dns, record)
}

struct Asked {
    id: u16,
    query: Query,
    bytes: Vec<u8>,
}

/// How a message looks to somebody who has asked.
enum Heard {
    Answer(Box<Message>),
    /// To another question, or of somebody who guesses.
    Unrelated,
    Malformed,
}

impl Asked {
    fn hear(&self, bytes: &[u8]) -> Heard {
        if bytes.get(..2) != Some(&self.id.to_be_bytes()[..]) {
            return Heard::Unrelated;
        }
        match Message::from_vec(bytes) {
            Err(_) => Heard::Malformed,
            Ok(answer) if answer.message_type() != MessageType::Response => Heard::Unrelated,
            // Some servers leave the question out of an error (RFC 1035 section 4.1.1, format error).
            Ok(answer) if answer.queries().first().is_none_or(|query| *query == self.query) => {
                Heard::Answer(Box::new(answer))
            }
            Ok(_) => Heard::Unrelated,
        }
    }
}

async fn over_udp(path: Path, asked: &Asked) -> Result<Message, CheckError> {
    let socket = open(path).await.map_err(|error| CheckError::from_io(&error, Stage::Connect))?;
    let mut buffer = vec![0; DATAGRAM];
    for attempt in 1..=2 {
        step(Stage::Answer, path.deadline, socket.send(&asked.bytes)).await?;
        let left = path.deadline.saturating_duration_since(Instant::now());
        let until = if attempt == 1 { Instant::now() + left / AGAIN_AFTER } else { path.deadline };
        while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
            let length = received.map_err(|error| CheckError::from_io(&error, Stage::Answer))?;
            match asked.hear(&buffer[..length]) {
                Heard::Answer(answer) => return Ok(*answer),
                Heard::Malformed => return Err(CheckError::Malformed(Stage::Answer)),
                Heard::Unrelated => tokio::task::consume_budget().await,
            }
        }
    }
    Err(CheckError::Timeout(Stage::Answer))
}

/// Connected, so that only the server is heard, and ICMP errors are.
async fn open(path: Path) -> io::Result<UdpSocket> {
    let any = match path.address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((path.source.unwrap_or(any), 0)).await?;
    socket.connect(path.address).await?;
    Ok(socket)
}

/// With its length in front, in two bytes, big endian (RFC 1035 section 4.2.2).
async fn over_tcp(path: Path, asked: &Asked) -> Result<Message, CheckError> {
    let mut stream = tcp::connect(path).await?;
    let length = u16::try_from(asked.bytes.len()).unwrap_or_default();
    let framed = [&length.to_be_bytes()[..], &asked.bytes].concat();
    let answer = step(Stage::Answer, path.deadline, async {
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    })
    .await?;
    match asked.hear(&answer) {
        Heard::Answer(answer) => Ok(*answer),
        Heard::Unrelated | Heard::Malformed => Err(CheckError::Malformed(Stage::Answer)),
    }
}

fn judge(answer: &Message, dns: &Dns, record: RecordType) -> Result<(), CheckError> {
    let rcode = u16::from(answer.response_code());
    if !dns.rcodes.contains(&rcode) {
        return Err(CheckError::WrongRcode { rcode });
    }
    let Some(wanted) = dns.answer.as_deref().filter(|_| rcode == 0) else { return Ok(()) };
    let mut found = answer.answers().iter().filter(|found| found.record_type() == record);
    let same = found.any(|found| normal(&found.data().to_string()) == normal(wanted));
    if same { Ok(()) } else { Err(CheckError::NoSuchRecord) }
}

/// Names are the same in any case, and with or without their last dot.
fn normal(data: &str) -> String {
    let words = data.split_ascii_whitespace().map(|word| word.trim_matches('"').trim_end_matches('.'));
    words.collect::<Vec<_>>().join(" ").to_ascii_lowercase()
}
