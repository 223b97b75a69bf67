//! The API against its own description: what is described is served, and what is wrong is refused.

#[path = "../api_fake/mod.rs"]
mod api_fake;
mod schema;
mod wrong;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use api_fake::{Fake, raw};
use serde_json::Value;

fn document(fake: &Fake) -> Value {
    let (status, _, body) = raw(&fake.socket(), "GET /v1/openapi.json");
    assert_eq!(status, 200);
    serde_json::from_str(&body).expect("JSON")
}

/// One method of one path.
#[derive(Clone, Debug)]
struct Operation {
    /// In capitals.
    method: String,
    path: String,
    described: Value,
}

fn operations(document: &Value) -> Vec<Operation> {
    let paths = document["paths"].as_object().expect("paths");
    let of = |(path, item): (&String, &Value)| -> Vec<Operation> {
        let methods = item.as_object().expect("an object").iter();
        methods
            .map(|(method, described)| Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                described: described.clone(),
            })
            .collect()
    };
    paths.iter().flat_map(of).collect()
}

impl Operation {
    fn parameters(&self, place: &str) -> Vec<Value> {
        let all = self.described["parameters"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|parameter| parameter["in"] == place).collect()
    }

    /// The path with its examples.
    fn filled(&self) -> String {
        let mut path = self.path.clone();
        for parameter in self.parameters("path") {
            path = path.replace(&format!("{{{}}}", name(&parameter)), &example(&parameter));
        }
        path
    }

    /// Names and examples of the query's parameters.
    fn query(&self) -> Vec<(String, String)> {
        self.parameters("query").iter().map(|parameter| (name(parameter), example(parameter))).collect()
    }

    /// What is described for this status.
    fn answer(&self, status: u16) -> Option<&Value> {
        self.described["responses"].get(status.to_string())
    }
}

fn name(parameter: &Value) -> String {
    parameter["name"].as_str().expect("a name").to_owned()
}

fn example(parameter: &Value) -> String {
    match &parameter["example"] {
        Value::String(text) => encoded(text),
        Value::Number(number) => number.to_string(),
        other => panic!("{} has no example: {other}", parameter["name"]),
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

fn target(path: &str, query: &[(String, String)]) -> String {
    let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

#[test]
fn what_is_described_is_served() {
    let fake = Fake::start();
    let document = document(&fake);
    let operations = operations(&document);
    assert!(operations.len() >= 15, "{operations:?}");
    for operation in operations {
        let what = format!("{} {}", operation.method, operation.path);
        let answer = operation.answer(200).unwrap_or_else(|| panic!("{what} describes no success"));
        let (kind, content) = answer["content"].as_object().expect("content").iter().next().expect("a type");
        // Once as short as it can be, and once with all parameters.
        let required: Vec<String> = operation
            .parameters("query")
            .iter()
            .filter(|parameter| parameter["required"] == true)
            .map(name)
            .collect();
        let all = operation.query();
        let short = all.iter().filter(|(name, _)| required.contains(name)).cloned().collect::<Vec<_>>();
        for query in [short, all] {
            // The fake traces this service only.
            if operation.path == "/v1/trace" && query.is_empty() {
                continue;
            }
            let request = format!("{} {}", operation.method, target(&operation.filled(), &query));
            let (status, head, lines) = ask(&fake, &request, kind);
            assert_eq!(status, 200, "{request}: {lines:?}");
            assert!(head.contains(&format!("content-type: {kind}")), "{request}: {head}");
            assert!(!lines.is_empty());
            for line in lines {
                let value: Value =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                assert_eq!(schema::faults(&document, &content["schema"], &value), [""; 0], "{request}");
            }
        }
    }
}

/// Asks and gives status, head, and the answer; of one that does not end, as many lines as there are events.
fn ask(fake: &Fake, request: &str, kind: &str) -> (u16, String, Vec<String>) {
    if kind == "application/json" {
        let (status, head, body) = raw(&fake.socket(), request);
        return (status, head, vec![body]);
    }
    let mut stream = UnixStream::connect(fake.socket()).expect("connected");
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: matapa\r\n\r\n").as_bytes()).expect("written");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    let status = head[0].split(' ').nth(1).expect("a status").parse().expect("a number");
    let wanted = if request.contains("events") {
        let events = api_fake::events();
        let wanted = events.len();
        for event in events {
            fake.events.send(event).expect("a reader");
        }
        wanted
    } else {
        3
    };
    (
        status,
        head.join("\n").to_lowercase(),
        lines.filter(|line| line.starts_with('{')).take(wanted).collect(),
    )
}

#[test]
fn the_parameters_that_are_described_are_those_that_are_known() {
    let fake = Fake::start();
    for operation in operations(&document(&fake)) {
        let request = format!("{} {}?no_such=1", operation.method, operation.filled());
        let (status, _, body) = raw(&fake.socket(), &request);
        assert_eq!(status, 400, "{request}");
        let names: Vec<String> = operation.query().into_iter().map(|(name, _)| name).collect();
        let wanted = match names.as_slice() {
            [] => "unknown parameter \\\"no_such\\\"; there are none".to_owned(),
            names => format!("unknown parameter \\\"no_such\\\"; known: {}", names.join(", ")),
        };
        assert!(body.contains(&wanted), "{request}: {body} is not {wanted}");
    }
}

#[test]
fn the_command_prints_what_the_daemon_serves() {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_matapa")).arg("openapi").output().expect("it runs");
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed, document(&Fake::start()));
}
