//! Wrong requests, made at random from the description: each is refused with a text that helps, and changes nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use crate::api_fake::{Fake, raw};
use crate::{Operation, document, encoded, name, operations, schema, target};

/// How a good request is spoilt.
#[derive(Clone, Debug)]
enum Fault {
    UnknownParameter(String),
    Twice(Index),
    /// Of a parameter that must be a number.
    BadNumber(Index, String),
    /// Of any parameter, or of a name in the path.
    Oversized(Index, usize),
    Missing(Index),
    Method(&'static str),
    Body {
        kind: &'static str,
        content: Vec<u8>,
    },
    /// A name in the path that nothing has.
    NoSuchName(Index, String),
    /// A word beyond the path's end.
    Beyond(String),
    /// Bytes that are no text.
    NotText(Index),
}

fn fault() -> impl Strategy<Value = Fault> {
    let word = || "[a-z_]{1,12}";
    prop_oneof![
        "[a-zA-Z_]{1,100}".prop_map(Fault::UnknownParameter),
        any::<Index>().prop_map(Fault::Twice),
        (any::<Index>(), "(-[0-9]{1,5}|[1-9][0-9]{7,39}|[a-z]{1,8}|[0-9]\\.[0-9]|[^0-9+\\pC]\\PC{0,7}|)")
            .prop_map(|(at, text)| Fault::BadNumber(at, text)),
        (any::<Index>(), 4097usize..20_000).prop_map(|(at, length)| Fault::Oversized(at, length)),
        any::<Index>().prop_map(Fault::Missing),
        prop::sample::select(&["DELETE", "PUT", "PATCH", "OPTIONS", "GET", "POST", "BREW"][..])
            .prop_map(Fault::Method),
        (
            prop::sample::select(
                &["application/json", "text/xml", "application/x-www-form-urlencoded", "nonsense"][..]
            ),
            prop_oneof![
                Just(b"{}".to_vec()),
                Just(b"{\"state\":".to_vec()),
                prop::collection::vec(any::<u8>(), 1..2000)
            ]
        )
            .prop_map(|(kind, content)| Fault::Body { kind, content }),
        (any::<Index>(), "[g-z]{3,20}x").prop_map(|(at, name)| Fault::NoSuchName(at, name)),
        word().prop_map(Fault::Beyond),
        any::<Index>().prop_map(Fault::NotText),
    ]
}

/// A request that must be refused.
struct Wrong {
    head: String,
    body: Option<(&'static str, Vec<u8>)>,
    /// With one of these words in the text.
    says: Vec<String>,
    /// Not an operation at all, so nothing describes the status.
    elsewhere: bool,
}

/// The request with the fault; `None` where the operation has nothing that it could be done to.
fn spoil(operation: &Operation, allowed: &[String], fault: &Fault) -> Option<Wrong> {
    let mut method = operation.method.clone();
    let mut path = operation.filled();
    let mut query = operation.query();
    let parameters = operation.parameters("query");
    let in_path = operation.parameters("path");
    let mut body = None;
    let mut elsewhere = false;
    let pick = |at: &Index, of: usize| (of > 0).then(|| at.index(of));
    let says = match fault {
        Fault::UnknownParameter(text) => {
            if query.iter().any(|(known, _)| known == text) {
                return None;
            }
            query.push((text.clone(), "1".to_owned()));
            vec![format!("unknown parameter \"{}", text.chars().take(60).collect::<String>())]
        }
        Fault::Twice(at) => {
            let one = query[pick(at, query.len())?].clone();
            let says = format!("{} is given twice", one.0);
            query.push(one);
            vec![says]
        }
        Fault::BadNumber(at, text) => {
            let is_number = |parameter: &&Value| parameter["schema"].to_string().contains("integer");
            let numbers: Vec<String> = parameters.iter().filter(is_number).map(name).collect();
            let wanted = &numbers[pick(at, numbers.len())?];
            query.iter_mut().find(|(known, _)| known == wanted)?.1 = encoded(text);
            vec!["give a whole number from".to_owned()]
        }
        Fault::Oversized(at, length) => {
            let long = "x".repeat(*length);
            let place = pick(at, query.len() + in_path.len())?;
            if let Some((_, value)) = query.get_mut(place) {
                *value = long;
            } else {
                let parameter = &in_path[place - query.len()];
                path = operation.path.clone();
                for one in &in_path {
                    let value = if one == parameter { long.clone() } else { crate::example(one) };
                    path = path.replace(&format!("{{{}}}", name(one)), &value);
                }
            }
            vec!["bytes long".to_owned()]
        }
        Fault::Missing(at) => {
            let required: Vec<String> =
                parameters.iter().filter(|parameter| parameter["required"] == true).map(name).collect();
            let gone = required[pick(at, required.len())?].clone();
            query.retain(|(known, _)| *known != gone);
            vec![format!("{gone} is missing")]
        }
        Fault::Method(other) => {
            if allowed.iter().any(|allowed| allowed == other) {
                return None;
            }
            method = (*other).to_owned();
            elsewhere = true;
            vec![format!("does not take {other}; use {}", allowed.join(" or "))]
        }
        Fault::Body { kind, content } => {
            body = Some((*kind, content.clone()));
            vec!["takes no body".to_owned()]
        }
        Fault::NoSuchName(at, text) => {
            let parameter = &in_path[pick(at, in_path.len())?];
            path = operation.path.clone();
            for one in &in_path {
                let value = if one == parameter { text.clone() } else { crate::example(one) };
                path = path.replace(&format!("{{{}}}", name(one)), &value);
            }
            vec!["there is no".to_owned(), "it knows".to_owned()]
        }
        Fault::Beyond(word) => {
            path = format!("{path}/{word}/{word}/{word}");
            elsewhere = true;
            vec![format!("there is no {method} {path}")]
        }
        Fault::NotText(at) => {
            let place = pick(at, in_path.len())?;
            path = operation.path.clone();
            for (index, one) in in_path.iter().enumerate() {
                let value = if index == place { "%ff%fe".to_owned() } else { crate::example(one) };
                path = path.replace(&format!("{{{}}}", name(one)), &value);
            }
            vec!["UTF-8".to_owned()]
        }
    };
    Some(Wrong { head: format!("{method} {}", target(&path, &query)), body, says, elsewhere })
}

fn send(fake: &Fake, wrong: &Wrong) -> (u16, String) {
    let mut stream = UnixStream::connect(fake.socket()).expect("connected");
    let mut text = format!("{} HTTP/1.1\r\nHost: matapa\r\nConnection: close\r\n", wrong.head).into_bytes();
    if let Some((kind, content)) = &wrong.body {
        text.extend(format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n", content.len()).bytes());
        text.extend(content);
    } else {
        text.extend(b"\r\n");
    }
    stream.write_all(&text).expect("written");
    let mut answer = Vec::new();
    // A body that nobody reads may end the connection after the answer.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {}", wrong.head));
    (head.split(' ').nth(1).expect("a status").parse().expect("a number"), body.to_owned())
}

/// All that can be seen of the daemon.
fn state(fake: &Fake) -> (String, Vec<String>) {
    (raw(&fake.socket(), "GET /v1/status").2, fake.changes.lock().expect("the changes").clone())
}

#[test]
fn wrong_requests_are_refused_with_help_and_change_nothing() {
    let fake = Fake::start();
    let document = document(&fake);
    let before = state(&fake);
    let operations = operations(&document);
    let tried = RefCell::new(BTreeMap::<String, usize>::new());
    for operation in &operations {
        let allowed: Vec<String> = operations
            .iter()
            .filter(|other| other.path == operation.path)
            .map(|other| other.method.clone())
            .collect();
        let mut runner =
            TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
        let result = runner.run(&fault(), |fault| {
            let Some(wrong) = spoil(operation, &allowed, &fault) else { return Ok(()) };
            let kind = format!("{fault:?}");
            *tried
                .borrow_mut()
                .entry(kind.split(['(', ' ']).next().unwrap_or_default().to_owned())
                .or_default() += 1;
            let (status, body) = send(&fake, &wrong);
            let about =
                format!("{} {fault:?}: {status} {body}", wrong.head.chars().take(200).collect::<String>());
            prop_assert!((400..500).contains(&status), "{about}");
            let value: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {about}"));
            let error_schema = serde_json::json!({"$ref": "#/components/schemas/ErrorBody"});
            prop_assert_eq!(schema::faults(&document, &error_schema, &value), Vec::<String>::new());
            prop_assert!(wrong.elsewhere || operation.answer(status).is_some(), "not described: {about}");
            let text = value["error"].as_str().unwrap_or_default();
            prop_assert!(
                wrong.says.iter().any(|says| text.contains(says)),
                "{:?} is not in {about}",
                wrong.says
            );
            prop_assert!(text.len() < 1000, "it repeats too much: {about}");
            prop_assert_eq!(state(&fake), before.clone(), "{}", about);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{} {}: {error}", operation.method, operation.path));
    }
    let tried = tried.into_inner();
    assert_eq!(tried.len(), 10, "not every kind of fault was tried: {tried:?}");
    // A good request does change what is compared.
    assert_eq!(raw(&fake.socket(), "POST /v1/backends/mx1/drain").0, 200);
    let after = state(&fake);
    assert_ne!(after.0, before.0);
    assert_eq!(after.1, ["mail/mx1 Draining"]);
}
