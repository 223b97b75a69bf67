//! Each route of the API, asked well and badly.

mod api_fake;

use std::io::{BufRead as _, BufReader, Write as _};

use api_fake::{Fake, exchange, raw};
use lb_userspace::api::carp::CarpStatus;
use lb_userspace::api::sync::SyncStatus;
use serde_json::Value;

fn json(fake: &Fake, request: &str) -> (u16, Value) {
    let (status, head, body) = raw(&fake.socket(), request);
    assert!(head.contains("content-type: application/json"), "{request}: {head}");
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{request}: {error}: {body}")))
}

#[test]
fn questions_are_answered() {
    let fake = Fake::start();
    let (status, body) = json(&fake, "GET /v1/status");
    assert_eq!((status, &body["services"][0]["backends"][1]["health"]), (200, &Value::from("down")));
    let (status, body) = json(&fake, "GET /v1/flows");
    assert_eq!((status, body["flows"].as_array().map(Vec::len)), (200, Some(3)));
    let (status, body) = json(&fake, "GET /v1/flows?limit=1&service=mail");
    assert_eq!((status, body["flows"].as_array().map(Vec::len)), (200, Some(1)));
    assert_eq!(body["total"], 3);
    let (status, body) = json(&fake, "GET /v1/flows?limit=0");
    assert_eq!((status, body["flows"].as_array().map(Vec::len)), (200, Some(0)));
    let (status, body) = json(&fake, "GET /v1/counters");
    assert_eq!((status, &body["counters"]["no_backend"]["value"]), (200, &Value::from(7)));
    let (status, body) = json(&fake, "GET /healthz");
    assert_eq!((status, &body["status"]), (200, &Value::from("ok")));
}

#[test]
fn commands_are_obeyed() {
    let fake = Fake::start();
    for (action, state) in [("enable", "enabled"), ("disable", "disabled"), ("drain", "draining")] {
        let (status, body) = json(&fake, &format!("POST /v1/backends/mx1/{action}"));
        assert_eq!((status, &body["state"], &body["backends"][0]), (200, &state.into(), &"mail/mx1".into()));
    }
    let (status, _) = json(&fake, "POST /v1/backends/mx%31/drain?service=mail");
    assert_eq!(status, 200);
    let (status, body) = json(&fake, "POST /v1/reload");
    assert_eq!((status, &body["operations"]), (200, &Value::from(3)));
    let (status, _) = json(&fake, "POST /v1/poll");
    assert_eq!(status, 200);
}

#[test]
fn refusals_say_what_to_do() {
    let fake = Fake::start();
    *fake.reload.lock().expect("the outcome") =
        Err(vec!["m.toml:1:1: a".to_owned(), "m.toml:2:1: b".to_owned()]);
    let requests = [
        "POST /v1/backends/mx9/drain",
        "POST /v1/backends/mx1/drain?service=web",
        "POST /v1/backends/mx1/explode",
        "POST /v1/backends/mx1/drain?servce=mail",
        "POST /v1/backends/%ff/drain",
        "POST /v1/backends/mx9/weight?value=1",
        "POST /v1/backends/mx1/weight",
        "POST /v1/backends/mx1/weight?value=1001",
        "POST /v1/backends/mx1/weight?weight=1",
        "POST /v1/services/web/disable",
        "POST /v1/services/mail/drain",
        "POST /v1/services/mail/disable?service=dns",
        "GET /v1/services/mail/disable",
        "GET /v1/flows?limit=many",
        "GET /v1/flows?limit=-1",
        "GET /v1/flows?limit=1000001",
        "GET /v1/flows?limit=1&limit=2",
        "GET /v1/flows?colour=red",
        "GET /v1/flows?service=web",
        "GET /v1/nothing",
        "GET /",
        "DELETE /v1/status",
        "PUT /v1/reload",
        "POST /v1/reload",
        "POST /v1/reload?dry_run=true",
        "GET /v1/reload",
        "GET /v1/poll",
    ];
    let answers: Vec<String> = requests
        .into_iter()
        .map(|request| {
            let (status, body) = json(&fake, request);
            format!("{request}\n  {status} {body}")
        })
        .collect();
    insta::assert_snapshot!("refusals", answers.join("\n"));
    let (_, head, _) = raw(&fake.socket(), "GET /v1/poll");
    assert!(head.contains("allow: post"), "{head}");
}

#[test]
fn the_read_only_socket_answers_and_changes_nothing() {
    let fake = Fake::start();
    let ask = |request: &str| raw(&fake.read_only_socket(), request);
    let before = raw(&fake.socket(), "GET /v1/status").2;
    for question in ["GET /v1/status", "GET /v1/reload", "GET /v1/flows", "GET /readyz", "HEAD /v1/status"] {
        assert_eq!(ask(question).0, 200, "{question}");
    }
    let answers: Vec<String> = [
        "POST /v1/backends/mx1/drain",
        "POST /v1/reload",
        "POST /v1/poll",
        "POST /v1/carp/demote",
        "DELETE /v1/status",
        "GET /v1/trace?filter=service+mail",
    ]
    .into_iter()
    .map(|request| {
        let (status, _, body) = ask(request);
        assert_eq!(status, 403, "{request}: {body}");
        format!("{request}\n  {body}")
    })
    .collect();
    insta::assert_snapshot!("read_only", answers.join("\n"));
    assert_eq!(raw(&fake.socket(), "GET /v1/status").2, before);
    assert_eq!(*fake.changes.lock().expect("the changes"), [""; 0]);
}

#[test]
fn readiness_names_what_is_missing() {
    let fake = Fake::start();
    let (status, body) = json(&fake, "GET /readyz");
    assert_eq!((status, &body["status"]), (200, &Value::from("ready")));
    *fake.reload.lock().expect("the outcome") = Err(Vec::new());
    let (status, body) = json(&fake, "GET /readyz");
    assert_eq!(status, 503);
    assert_eq!(body["details"][0], "eth1 does not carry the program");
    // It lives all the same.
    assert_eq!(json(&fake, "GET /healthz").0, 200);
}

#[test]
fn garbage_does_not_end_the_server() {
    let fake = Fake::start();
    let mut stream = std::os::unix::net::UnixStream::connect(fake.socket()).expect("connected");
    stream.write_all(b"\x00\xff garbage\r\n\r\n").expect("written");
    drop(stream);
    assert_eq!(raw(&fake.socket(), "GET /healthz").0, 200);
}

#[test]
fn events_arrive_as_they_happen_and_end_with_the_daemon() {
    let mut fake = Fake::start();
    let mut stream = std::os::unix::net::UnixStream::connect(fake.socket()).expect("connected");
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: matapa\r\n\r\n").expect("written");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let head: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    assert!(head.iter().any(|line| line == "content-type: application/x-ndjson"), "{head:?}");
    let mut json = lines.by_ref().filter(|line| line.starts_with('{'));
    for event in api_fake::events() {
        let number = event.number;
        fake.events.send(event).expect("a reader");
        let line: Value = serde_json::from_str(&json.next().expect("an event")).expect("JSON");
        assert_eq!(line["number"], number);
    }
    let started = std::time::Instant::now();
    fake.stop();
    assert!(started.elapsed() < std::time::Duration::from_secs(1), "an open stream held up the shutdown");
    assert_eq!(json.next(), None);
    assert!(!fake.socket().exists(), "the socket is left behind");
}

#[test]
fn metrics_are_for_prometheus() {
    let fake = Fake::start();
    let get = |path: &str| exchange(std::net::TcpStream::connect(fake.metrics).expect("connected"), path);
    let (status, head, body) = get("GET /metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    // Families list their labels in no order.
    let mut families: Vec<String> = Vec::new();
    let mut samples: Vec<&str> = Vec::new();
    for line in body.lines() {
        if line.starts_with('#') {
            samples.sort_unstable();
            families.extend(samples.drain(..).map(str::to_owned));
            families.push(line.to_owned());
        } else {
            samples.push(line);
        }
    }
    insta::assert_snapshot!("metrics", families.join("\n"));
    assert_eq!(get("GET /elsewhere").0, 404);
    assert_eq!(get("POST /metrics").0, 405);
}

#[test]
fn names_cannot_break_out_of_their_label() {
    let mut status = api_fake::status();
    status.services[0].name = "a\"} 1\nb\\".to_owned();
    let flows = lb_userspace::api::types::Flows { total: 0, capacity: 0, flows: Vec::new() };
    let text = lb_userspace::api::metrics::render(
        &status,
        &api_fake::counters(),
        &flows,
        &CarpStatus::default(),
        &SyncStatus::default(),
    )
    .expect("text");
    assert!(text.contains(r#"matapa_service_up{service="a\"} 1\nb\\"} 1"#), "{text}");
}

#[tokio::test]
async fn a_taken_metrics_address_is_named() {
    let fake = Fake::start();
    let error = lb_userspace::api::metrics::bind(fake.metrics).await.expect_err("it is taken").to_string();
    assert!(error.contains(&fake.metrics.to_string()) && error.contains("control.metrics"), "{error}");
}
