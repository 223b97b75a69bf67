//! What survives a restart, a reload and an operator.

use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use super::*;
use crate::dataplane::Capacity;
use crate::dataplane::desired::desired;
use crate::health::CheckError;

const CAPACITY: Capacity = Capacity { listeners: 64, backends: 64, table_slots: 1 << 12 };

const BASE: &str = r#"
    interfaces = ["eth0"]
    [pools.mx]
    check = "tcp"
    backends = [{ name = "mx1", address = "198.51.100.11" }, { name = "mx2", address = "198.51.100.12" }]
    [services.mail]
    listen = ["203.0.113.10:25", "203.0.113.10:587"]
    pool = "mx"
    [services.web]
    listen = "203.0.113.10:80"
    backends = ["198.51.100.21"]
"#;

fn parsed(text: &str) -> Config {
    match crate::config::parse(text, Path::new("m.toml")) {
        Ok(config) => config,
        Err(errors) => panic!("{:?}", errors.lines()),
    }
}

/// True when it is something new.
fn set_admin(state: &mut State, config: &Config, (service, name): (&str, &str), admin: AdminState) -> bool {
    let service = config.services.iter().find(|one| one.name == service).unwrap();
    state.wishes.set_admin(service, config.backend(service, name).unwrap(), admin)
}

fn image(config: &Config, state: &State) -> Image {
    desired(config, state, &Image::default(), CAPACITY).unwrap()
}

/// The outcome of a check of this server's port.
fn report(config: &Config, address: &str, port: u16, health: Health) -> Report {
    let address: IpAddr = address.parse().unwrap();
    let check = config.pools[0].check.as_ref().unwrap();
    Report {
        target: Target::new(address, port, check),
        at: SystemTime::UNIX_EPOCH,
        latency: Duration::from_millis(3),
        result: if health == Health::Up { Ok(()) } else { Err(CheckError::Refused) },
        health,
        previous: Health::Unknown,
        certificate_expires: None,
    }
}

/// Health and admin state of each backend behind each listener.
fn verdicts(config: &Config, state: &State) -> Vec<(String, u16, Health, AdminState)> {
    let mut all = Vec::new();
    for service in &config.services {
        for listen in &service.listen {
            for member in config.members(service) {
                let health = state.health(service, listen, &member);
                let admin = state.admin(service, member.backend);
                all.push((member.backend.name.clone(), listen.port, health, admin));
            }
        }
    }
    all
}

#[test]
fn a_server_is_judged_port_by_port() {
    let config = parsed(BASE);
    let mut state = State::default();
    assert!(state.report(&report(&config, "198.51.100.11", 25, Health::Up)));
    assert!(state.report(&report(&config, "198.51.100.11", 587, Health::Down)));
    assert!(!state.report(&report(&config, "198.51.100.11", 587, Health::Down)));
    let health: Vec<_> = verdicts(&config, &state).into_iter().map(|(.., health, _)| health).collect();
    // mail 25: mx1, mx2; mail 587: mx1, mx2; web, which has no check and is taken as up.
    assert_eq!(health, [Health::Up, Health::Unknown, Health::Down, Health::Unknown, Health::Up]);
    let service = &config.services[0];
    let mx1 = config.members(service).next().unwrap();
    let checked = state.checked(&service.listen[1], &mx1).unwrap();
    assert_eq!((checked.checks, checked.checks_up), (2, 0));
    assert_eq!(checked.last_error, Some(CheckError::Refused));
    assert!(state.report(&report(&config, "198.51.100.11", 587, Health::Up)));
    let checked = state.checked(&service.listen[1], &mx1).unwrap();
    assert_eq!((checked.checks, checked.checks_up, checked.last_error.as_ref()), (3, 1, None));
    let web = &config.services[1];
    assert!(state.checked(&web.listen[0], &config.members(web).next().unwrap()).is_none());
}

#[test]
fn a_new_daemon_knows_what_the_old_one_knew() {
    let config = parsed(BASE);
    let mut state = State::default();
    state.report(&report(&config, "198.51.100.11", 25, Health::Up));
    state.report(&report(&config, "198.51.100.12", 25, Health::Down));
    state.report(&report(&config, "198.51.100.12", 587, Health::Up));
    set_admin(&mut state, &config, ("mail", "mx2"), AdminState::Draining);
    set_admin(&mut state, &config, ("web", "198.51.100.21"), AdminState::Disabled);

    let restored = State::restore(&config, &image(&config, &state));
    assert_eq!(verdicts(&config, &restored), verdicts(&config, &state));
    assert_eq!(restored.targets(&config), state.targets(&config));
}

#[test]
fn a_new_daemon_knows_what_was_set_by_hand_and_what_the_file_said() {
    let disabled = BASE.replace("\"198.51.100.12\" }", "\"198.51.100.12\", enabled = false }");
    let config = parsed(&disabled.replace("\"203.0.113.10:80\"", "\"203.0.113.10:80\"\n    enabled = false"));
    let mut state = State::default();
    let (mail, web) = (&config.services[0], &config.services[1]);
    let [mx1, mx2] = config.pools[0].backends.as_slice() else { panic!() };
    assert!(state.wishes.set_weight(mail, mx1, Some(0)) && state.wishes.set_enabled(mail, false));
    let restored = State::restore(&config, &image(&config, &state));
    assert_eq!(restored.wishes.weight(mail, mx1), 0);
    assert_eq!((restored.wishes.enabled(mail), restored.wishes.enabled(web)), (false, false));
    assert_eq!(restored.wishes.service_by_hand(web), None);
    assert_eq!(restored.wishes.admin(mail, mx2), AdminState::Disabled);
    // With a file that has them enabled, only what was set by hand stays.
    let plain = parsed(BASE);
    let restored = State::restore(&plain, &image(&config, &state));
    let (mail, web) = (&plain.services[0], &plain.services[1]);
    let [mx1, mx2] = plain.pools[0].backends.as_slice() else { panic!() };
    assert_eq!((restored.wishes.weight(mail, mx1), restored.wishes.weight(mail, mx2)), (0, 1));
    assert_eq!((restored.wishes.enabled(mail), restored.wishes.enabled(web)), (false, true));
    assert_eq!(restored.wishes.admin(mail, mx2), AdminState::Enabled);
    // What was enabled against the file stays so with the same file.
    assert!(set_admin(&mut state, &config, ("mail", "mx2"), AdminState::Enabled));
    let restored = State::restore(&config, &image(&config, &state));
    assert_eq!(restored.admin(&config.services[0], &config.pools[0].backends[1]), AdminState::Enabled);
}

#[test]
fn a_disabled_service_has_nobody_in_its_tables() {
    let config = parsed(BASE);
    let mut state = State::default();
    state.report(&report(&config, "198.51.100.11", 25, Health::Up));
    let members = |state: &State| -> usize {
        image(&config, state).listeners.values().map(|listener| listener.table.members.len()).sum()
    };
    assert_eq!(members(&state), 2);
    assert!(state.wishes.set_enabled(&config.services[0], false));
    assert_eq!(members(&state), 1);
    assert!(state.wishes.set_enabled(&config.services[1], false));
    assert_eq!(members(&state), 0);
    assert!(image(&config, &state).backends.values().all(|backend| !backend.takes_new_flows()));
}

#[test]
fn a_new_daemon_with_another_file_keeps_what_still_means_something() {
    let before = parsed(BASE);
    let mut state = State::default();
    state.report(&report(&before, "198.51.100.11", 25, Health::Up));
    set_admin(&mut state, &before, ("mail", "mx1"), AdminState::Draining);
    let left = image(&before, &state);

    // Another check of the same server: its last state stands until the first result.
    let after = parsed(&BASE.replace("\"tcp\"", "\"smtp\""));
    let restored = State::restore(&after, &left);
    assert_eq!(verdicts(&after, &restored)[0], ("mx1".to_owned(), 25, Health::Up, AdminState::Draining));
    // A server that was not there is unknown.
    let after = parsed(&BASE.replace("198.51.100.11", "198.51.100.31"));
    assert_eq!(verdicts(&after, &State::restore(&after, &left))[0].2, Health::Unknown);
}

#[test]
fn another_check_inherits_the_health_and_a_known_one_keeps_its_own() {
    let before = parsed(BASE);
    let mut state = State::default();
    state.report(&report(&before, "198.51.100.11", 25, Health::Up));
    state.report(&report(&before, "198.51.100.12", 25, Health::Down));
    let left = image(&before, &state);
    // The maps are behind what was learnt since.
    state.report(&report(&before, "198.51.100.12", 25, Health::Up));
    let health = |config: &Config, state: &State| {
        verdicts(config, state).into_iter().map(|(.., health, _)| health).take(2).collect::<Vec<_>>()
    };
    let mut unchanged = state.clone();
    unchanged.inherit(&before, &left);
    assert_eq!(health(&before, &unchanged), [Health::Up, Health::Up]);
    let after = parsed(&BASE.replace("\"tcp\"", "\"smtp\""));
    assert_eq!(health(&after, &state), [Health::Unknown, Health::Unknown]);
    state.inherit(&after, &left);
    assert_eq!(health(&after, &state), [Health::Up, Health::Down]);
}

#[test]
fn what_is_no_longer_configured_is_forgotten() {
    let config = parsed(BASE);
    let mut state = State::default();
    state.report(&report(&config, "198.51.100.11", 25, Health::Up));
    state.report(&report(&config, "198.51.100.12", 25, Health::Up));
    set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Disabled);
    set_admin(&mut state, &config, ("mail", "mx2"), AdminState::Draining);
    set_admin(&mut state, &config, ("web", "198.51.100.21"), AdminState::Draining);
    let before = verdicts(&config, &state);
    state.retain(&config);
    assert_eq!(verdicts(&config, &state), before);

    let without_mx1 = parsed(&BASE.replace("{ name = \"mx1\", address = \"198.51.100.11\" }, ", ""));
    state.retain(&without_mx1);
    assert_eq!(verdicts(&without_mx1, &state)[0], ("mx2".to_owned(), 25, Health::Up, AdminState::Draining));
    // Added again later, it is a new server that nobody has disabled.
    let again = verdicts(&config, &state);
    assert_eq!(again[0], ("mx1".to_owned(), 25, Health::Unknown, AdminState::Enabled));
    assert_eq!(again[1].3, AdminState::Draining);
    assert_eq!(again[4].3, AdminState::Draining);
}

#[test]
fn an_operators_word_counts_once() {
    let config = parsed(BASE);
    let mut state = State::default();
    assert!(!set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Enabled));
    assert!(set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Draining));
    assert!(!set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Draining));
    assert!(set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Disabled));
    let admin = |state: &State| state.admin(&config.services[0], &config.pools[0].backends[0]);
    assert_eq!(admin(&state), AdminState::Disabled);
    assert_eq!(state.admin(&config.services[1], &config.pools[0].backends[0]), AdminState::Enabled);
    assert!(set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Enabled));
    assert_eq!(admin(&state), AdminState::Enabled);
}

#[test]
fn only_disabled_backends_are_not_checked() {
    let config = parsed(BASE);
    let mut state = State::default();
    let checked = |state: &State| {
        state.targets(&config).into_iter().map(|(target, _)| target.address.to_string()).collect::<Vec<_>>()
    };
    let all = ["198.51.100.11:25", "198.51.100.11:587", "198.51.100.12:25", "198.51.100.12:587"];
    assert_eq!(checked(&state), all);
    set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Draining);
    assert_eq!(checked(&state), all);
    set_admin(&mut state, &config, ("mail", "mx1"), AdminState::Disabled);
    assert_eq!(checked(&state), all[2..]);
    // Where another service wants the same check of the server, it goes on.
    let shared = parsed(&format!(
        "{BASE}\n[services.more]\nlisten = \"203.0.113.11:26\"\ncheck = {{ type = \"tcp\", port = 25 }}\n\
         backends = [\"198.51.100.11\"]"
    ));
    let still = state.targets(&shared).into_iter().any(|(target, _)| target.address.to_string() == all[0]);
    assert!(still);
}

#[test]
fn the_last_ten_results_are_kept_the_newest_first() {
    let config = parsed(BASE);
    let mut state = State::default();
    for number in 0..25 {
        let mut report =
            report(&config, "198.51.100.11", 25, if number == 24 { Health::Down } else { Health::Up });
        report.at = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        state.report(&report);
    }
    let (target, checked) = state.checked.first_key_value().unwrap();
    assert_eq!(target.address.port(), 25);
    assert_eq!(checked.results.len(), KEPT_RESULTS);
    let times =
        checked.results.iter().map(|one| one.at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    assert_eq!(times.collect::<Vec<_>>(), (15..25).rev().collect::<Vec<_>>());
    assert_eq!(checked.results[0].result, Err(CheckError::Refused));
    assert_eq!(checked.results[1].result, Ok(()));
}

#[test]
fn a_certificate_that_ends_soon_is_warned_of_once_a_day() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let secure = BASE.replace("check = \"tcp\"", "check = { type = \"smtp\", starttls = true }");
    let config = parsed(&secure);
    let mut state = State::default();
    let end = SystemTime::UNIX_EPOCH + DAY * 100;
    let mut seen = |at: Duration, end: Option<SystemTime>| {
        let mut report = report(&config, "198.51.100.11", 25, Health::Up);
        (report.at, report.certificate_expires) = (SystemTime::UNIX_EPOCH + at, end);
        state.report(&report);
        state.certificate_warning(&report).map(|(_, days)| days)
    };
    let hour = Duration::from_secs(3600);
    assert_eq!(seen(DAY * 86 - hour, Some(end)), None, "14 days are the usual warning");
    assert_eq!(seen(DAY * 86 + hour, Some(end)), Some(13));
    assert_eq!(seen(DAY * 86 + hour * 2, Some(end)), None);
    assert_eq!(seen(DAY * 87, None), None, "a check that failed shows none");
    assert_eq!(seen(DAY * 87 + hour, Some(end)), Some(12));
    // Another one is warned of at once.
    assert_eq!(seen(DAY * 87 + hour * 2, Some(end - DAY)), Some(11));
    assert_eq!(seen(DAY * 99 + hour, Some(end)), Some(0));
    assert_eq!(seen(DAY * 101, Some(end)), Some(-2), "ended, and taken all the same");
    assert_eq!(seen(DAY * 102, Some(end + DAY * 365)), None, "renewed");
}
