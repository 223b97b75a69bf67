//! A changed configuration file, applied while traffic flows.

use std::time::Duration;

use lb_lab::traffic::{Dialect, EchoServer, Flows};
use lb_lab::wait_until;

use crate::support::{ECHO, Rig, TCP_CHECK, assert_prompt, echo_config, interfaces, servers, service, vips};

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn removing_one_server_disturbs_no_connection_to_the_others() {
    let all = interfaces() + &service("echo", ECHO, "tcp", TCP_CHECK, &[1, 2, 3]);
    let (rig, echo) =
        Rig::start_with(&all, &["mx1", "mx2", "mx3"], |_, host| EchoServer::start(host, ECHO).unwrap());
    let flows =
        Flows::open(rig.client(), vips(ECHO), 300, Dialect::Echo, Duration::from_millis(100)).unwrap();
    let others = |flows: &Flows| -> Vec<_> {
        flows.snapshot().into_iter().filter(|flow| flow.server.as_deref() != Some("mx3")).collect()
    };
    let before = others(&flows);
    assert!(before.len() >= 120, "only {} connections go to mx1 and mx2", before.len());
    for numbers in [&[1, 2][..], &[1, 2, 3], &[1, 2]] {
        rig.matapa.write_config(&(interfaces() + &service("echo", ECHO, "tcp", TCP_CHECK, numbers))).unwrap();
        rig.matapa.reload().unwrap();
        let prober = rig.prober();
        std::thread::sleep(Duration::from_millis(500));
        assert_prompt(&prober.finish().unwrap());
    }
    assert_eq!(servers(&rig.connect_echo()), ["mx1", "mx2"]);
    for (old, new) in before.iter().zip(others(&flows)) {
        assert!(new.alive() && new.exchanges > old.exchanges, "{new:?}");
        assert!(new.longest_wait < Duration::from_millis(900), "{new:?}");
    }
    drop((flows, echo));
    rig.finish();
}

/// What a daemon shows, without what time changes.
fn shown(rig: &Rig) -> serde_json::Value {
    let mut status: serde_json::Value = rig.matapa.show("summary").unwrap();
    let mut volatile = vec![&mut status];
    while let Some(value) = volatile.pop() {
        match value {
            serde_json::Value::Object(fields) => {
                for changing in [
                    "uptime_seconds",
                    "checks",
                    "checks_up",
                    "last_check_millis",
                    "availability_percent",
                    "packets",
                    "bytes",
                    "flows",
                ] {
                    fields.remove(changing);
                }
                volatile.extend(fields.values_mut());
            }
            serde_json::Value::Array(items) => volatile.extend(items),
            _ => {}
        }
    }
    status
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_dry_run_tells_what_a_reload_then_does_and_changes_nothing() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let before = shown(&rig);
    let more = echo_config(TCP_CHECK) + &service("more", 8007, "tcp", TCP_CHECK, &[1, 2]);
    rig.matapa.write_config(&more).unwrap();
    let text = rig.matapa.cli(&["reload", "--dry-run"]).unwrap();
    assert_eq!(text.code(), Some(0), "{text:?}");
    assert!(text.stdout.contains("added    service more\n"), "{text:?}");
    assert!(text.stdout.ends_with("Nothing was changed.\n"), "{text:?}");
    let plan = |rig: &Rig| -> serde_json::Value {
        let answer = rig.matapa.cli(&["reload", "--dry-run", "--json"]).unwrap();
        serde_json::from_str(&answer.stdout).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    };
    let told = plan(&rig)["operations"].as_array().unwrap().len();
    assert!(told > 4, "only {told} operations for a new service");
    assert_eq!(shown(&rig), before);
    let refused = Rig::connect(rig.client(), vips(8007), Duration::from_millis(300));
    assert!(refused.iter().all(|attempt| attempt.result.is_err()), "{refused:?}");
    // A file with errors: which, and exit status 3.
    rig.matapa.write_config(&more.replace("listen =", "lisen =")).unwrap();
    let answer = rig.matapa.cli(&["reload", "--dry-run"]).unwrap();
    assert_eq!(answer.code(), Some(3), "{answer:?}");
    assert!(answer.stderr.contains("did you mean `listen`?"), "{answer:?}");
    assert_eq!(shown(&rig), before);
    // A reload then does as many steps as were told, and another one has none.
    rig.matapa.write_config(&more).unwrap();
    let done = rig.matapa.cli(&["reload", "--json"]).unwrap();
    let done: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(done["operations"], told);
    assert_ne!(shown(&rig), before);
    let rest = plan(&rig);
    assert_eq!(rest["changes"], serde_json::json!([]), "{rest}");
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_new_service_works_and_a_removed_one_does_not() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let second: Vec<_> =
        rig.topology.servers.iter().map(|host| EchoServer::start(host, 8007).unwrap()).collect();
    let more = echo_config(TCP_CHECK) + &service("more", 8007, "tcp", TCP_CHECK, &[1, 2]);
    rig.matapa.write_config(&more).unwrap();
    rig.matapa.reload().unwrap();
    rig.matapa.wait_healthy(Duration::from_secs(3)).unwrap();
    let quick = Duration::from_millis(300);
    assert_prompt(&Rig::connect(rig.client(), vips(8007), quick));
    rig.matapa.write_config(&echo_config(TCP_CHECK)).unwrap();
    rig.matapa.reload().unwrap();
    let attempts = Rig::connect(rig.client(), vips(8007), quick);
    assert!(attempts.iter().all(|attempt| attempt.result.is_err()), "{attempts:?}");
    assert_prompt(&rig.connect_echo());
    drop((second, echo));
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn an_interface_is_added_and_removed_under_load() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.gateway()
        .netns
        .ip("link add spare type veth peer name spare-end\nlink set spare up\nlink set spare-end up\n")
        .unwrap();
    let prober = rig.prober();
    let more = echo_config(TCP_CHECK).replace("\"int\"]", "\"int\", \"spare\"]");
    for (config, attached) in [(&more, true), (&echo_config(TCP_CHECK), false)] {
        rig.matapa.write_config(config).unwrap();
        rig.matapa.reload().unwrap();
        assert_eq!(rig.matapa.attached("spare").unwrap(), attached);
        assert_eq!(rig.matapa.status().unwrap().interfaces.len(), if attached { 3 } else { 2 });
        assert!(rig.matapa.attached("ext").unwrap() && rig.matapa.attached("int").unwrap());
        std::thread::sleep(Duration::from_millis(200));
    }
    // One that does not exist is refused, by its name, and changes nothing.
    rig.matapa.write_config(&more.replace("spare", "nosuch0")).unwrap();
    let answer = rig.matapa.cli(&["reload"]).unwrap();
    assert_eq!(answer.code(), Some(1), "{answer:?}");
    assert!(answer.stderr.contains("nosuch0"), "{answer:?}");
    assert_prompt(&prober.finish().unwrap());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_mode_that_the_driver_refuses_changes_nothing() {
    let generic = "xdp_mode = \"generic\"\n".to_owned() + &echo_config(TCP_CHECK);
    let (rig, echo) = Rig::echo(&generic);
    // A bridge takes programs in generic mode only.
    rig.gateway().netns.ip("link add spare type bridge\nlink set spare up\n").unwrap();
    let with_bridge = generic.replace("\"int\"]", "\"int\", \"spare\"]");
    rig.matapa.write_config(&with_bridge).unwrap();
    rig.matapa.reload().unwrap();
    rig.matapa.write_config(&with_bridge.replace("generic", "native")).unwrap();
    let answer = rig.matapa.cli(&["reload"]).unwrap();
    assert_eq!(answer.code(), Some(1), "{answer:?}");
    assert!(answer.stderr.contains("spare") && answer.stderr.contains("nothing was changed"), "{answer:?}");
    assert!(rig.matapa.attached("ext").unwrap() && rig.matapa.attached("int").unwrap());
    let status = rig.matapa.status().unwrap();
    assert!(status.interfaces.iter().all(|one| one.mode == "generic"), "{status:?}");
    assert_prompt(&rig.connect_echo());
    // Where all agree, the mode changes.
    rig.matapa.write_config(&generic.replace("generic", "native")).unwrap();
    rig.matapa.reload().unwrap();
    let status = rig.matapa.status().unwrap();
    assert!(status.interfaces.iter().all(|one| one.mode == "native"), "{status:?}");
    assert_prompt(&rig.connect_echo());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn another_check_takes_no_server_out_of_rotation() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let prober = rig.prober();
    for interval in ["300ms", "250ms", "200ms", "400ms"] {
        rig.matapa.write_config(&echo_config(TCP_CHECK).replace("200ms", interval)).unwrap();
        rig.matapa.reload().unwrap();
        let status = rig.matapa.status().unwrap();
        assert!(status.services[0].backends.iter().all(|one| one.health == "up"), "{status:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_prompt(&prober.finish().unwrap());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_drained_server_stays_drained() {
    let (mut rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    rig.matapa.backend("drain", "mx1", "echo").unwrap();
    rig.matapa.backend("drain", "mx1-v6", "echo").unwrap();
    let more = echo_config(TCP_CHECK) + &service("more", 8007, "tcp", "", &[1]);
    rig.matapa.write_config(&more).unwrap();
    rig.matapa.reload().unwrap();
    assert_eq!(servers(&rig.connect_echo()), ["mx2"]);
    rig.matapa.kill().unwrap();
    rig.matapa.start().unwrap();
    rig.matapa.reload().unwrap();
    let status = rig.matapa.status().unwrap();
    for name in ["mx1", "mx1-v6"] {
        let of = |service: &str| {
            let service = status.service(service).unwrap();
            service.backends.iter().find(|one| one.name == name).unwrap().admin.clone()
        };
        assert_eq!((of("echo"), of("more")), ("draining".to_owned(), "enabled".to_owned()));
    }
    assert_eq!(servers(&rig.connect_echo()), ["mx2"]);
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_bad_file_changes_nothing() {
    let (rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let prober = rig.prober();
    let bad = echo_config(TCP_CHECK).replace("pool = \"echo\"", "pool = \"ecko\"\nshceduler = \"maglev\"");
    rig.matapa.write_config(&bad).unwrap();
    let answer = rig.matapa.cli(&["reload"]).unwrap();
    assert!(matches!(answer.code(), Some(1 | 3)), "{answer:?}");
    for word in ["ecko", "shceduler"] {
        assert!(answer.stderr.contains(word), "{word} is not named: {}", answer.stderr);
    }
    std::thread::sleep(Duration::from_millis(500));
    assert_prompt(&prober.finish().unwrap());
    assert_eq!(servers(&rig.connect_echo()), ["mx1", "mx2"]);
    assert!(rig.matapa.status().unwrap().service("echo").is_some());
    drop(echo);
    rig.finish();
}

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn a_hangup_reloads_and_the_log_has_every_error() {
    let (mut rig, echo) = Rig::echo(&echo_config(TCP_CHECK));
    let bad = echo_config(TCP_CHECK).replace("pool = \"echo\"", "pool = \"ecko\"\nshceduler = \"maglev\"");
    rig.matapa.write_config(&bad).unwrap();
    rig.matapa.hangup().unwrap();
    wait_until("the errors in the log", Duration::from_secs(2), || {
        let log = rig.matapa.log();
        Ok(["ecko", "shceduler", "nothing was changed"].iter().all(|word| log.contains(word)).then_some(()))
    })
    .unwrap();
    assert!(rig.matapa.status().unwrap().service("echo").is_some());
    rig.matapa.write_config(&(echo_config(TCP_CHECK) + &service("more", 8007, "tcp", "", &[1]))).unwrap();
    rig.matapa.hangup().unwrap();
    wait_until("the new service", Duration::from_secs(2), || {
        Ok(rig.matapa.status()?.service("more").is_some().then_some(()))
    })
    .unwrap();
    drop(echo);
    rig.finish();
}
