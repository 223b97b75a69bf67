use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::cases::cases;
use crate::config::parse;

const HOST: &str = "mx.example.com";
const SECOND: Duration = Duration::from_secs(1);

fn config(resolver: &str, listen: &str) -> Config {
    let text = format!(
        "interfaces = [\"eth0\"]\n{resolver}\n[services.mail]\nlisten = [{listen}]\nbackends = [\"{HOST}\"]\n"
    );
    parse(&text, Path::new("m.toml")).unwrap_or_else(|error| panic!("{:?}: {text}", error.lines()))
}

fn both() -> Config {
    config("", "\"203.0.113.10:25\", \"[2001:db8::10]:25\"")
}

fn following(config: &Config, now: Instant) -> Answers {
    let mut answers = Answers::default();
    answers.follow(config, now);
    answers
}

fn list(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|one| one.parse().unwrap()).collect()
}

fn with(addresses: &[&str], ttl: u64) -> Option<Outcome> {
    Some(Outcome::Addresses(list(addresses), Duration::from_secs(ttl)))
}

fn failed() -> Option<Outcome> {
    Some(Outcome::Failed("no answer".to_owned()))
}

fn nothing() -> Option<Outcome> {
    Some(Outcome::Nothing("no such record".to_owned()))
}

/// Asks when it is due, and answers.
fn ask(answers: &mut Answers, now: Instant, v4: Option<Outcome>, v6: Option<Outcome>) -> Change {
    let asked = answers.due(now);
    assert_eq!(asked.len(), 1, "not due");
    assert_eq!(answers.due(now), [], "asked twice");
    answers.answered(HOST, &Reply { v4, v6 }, now).unwrap()
}

fn current(answers: &Answers) -> Vec<IpAddr> {
    answers.get(HOST).unwrap().addresses().collect()
}

fn due_in(answers: &Answers, now: Instant) -> Duration {
    answers.get(HOST).unwrap().due_in(now)
}

#[test]
fn an_answer_holds_for_its_ttl_within_bounds() {
    let mut now = Instant::now();
    let config = config("resolver = { min_ttl = \"10s\", max_ttl = \"1m\" }", "\"203.0.113.10:25\"");
    let mut answers = following(&config, now);
    for (ttl, holds) in [(0, 10), (30, 30), (86_400, 60)] {
        ask(&mut answers, now, with(&["198.51.100.11"], ttl), None);
        assert_eq!(due_in(&answers, now), Duration::from_secs(holds));
        assert_eq!(answers.due(now + Duration::from_secs(holds) - SECOND), []);
        now += Duration::from_secs(holds);
    }
}

#[test]
fn only_the_families_that_listeners_use_are_asked_for() {
    let now = Instant::now();
    let question = |listen: &str| following(&config("", listen), now).due(now)[0].families;
    assert_eq!(question("\"203.0.113.10:25\""), Families { v4: true, v6: false });
    assert_eq!(question("\"[2001:db8::10]:25\""), Families { v4: false, v6: true });
    assert_eq!(question("\"203.0.113.10:25\", \"[2001:db8::10]:25\""), Families::BOTH);
}

#[test]
fn a_change_is_told_and_what_goes_is_leaving_until_it_is_forgotten_or_back() {
    let now = Instant::now();
    let mut answers = following(&both(), now);
    let change = ask(&mut answers, now, with(&["198.51.100.11", "198.51.100.12"], 5), nothing());
    assert_eq!(change.added, list(&["198.51.100.11", "198.51.100.12"]));
    let now = now + 5 * SECOND;
    let change = ask(&mut answers, now, with(&["198.51.100.12", "198.51.100.13"], 5), nothing());
    assert_eq!((change.added, change.gone), (list(&["198.51.100.13"]), list(&["198.51.100.11"])));
    let leaving = |answers: &Answers| answers.get(HOST).unwrap().leaving().collect::<Vec<_>>();
    assert_eq!(leaving(&answers), [(list(&["198.51.100.11"])[0], None)]);
    assert!(answers.hand_over(HOST, now) && !answers.hand_over(HOST, now + SECOND));
    assert_eq!(leaving(&answers), [(list(&["198.51.100.11"])[0], Some(now))]);
    let now = now + 5 * SECOND;
    let change = ask(&mut answers, now, with(&["198.51.100.11"], 5), nothing());
    assert_eq!(change.added, list(&["198.51.100.11"]));
    let left: Vec<IpAddr> = leaving(&answers).into_iter().map(|(address, _)| address).collect();
    assert_eq!(left, list(&["198.51.100.12", "198.51.100.13"]));
    answers.forget(HOST, left[0]);
    assert_eq!(leaving(&answers).len(), 1);
    assert_eq!(current(&answers), list(&["198.51.100.11"]));
}

#[test]
fn without_a_good_answer_the_last_one_stays_and_it_is_asked_again_ever_later() {
    let mut now = Instant::now();
    let mut answers = following(&both(), now);
    // Also at the start.
    let change = ask(&mut answers, now, failed(), failed());
    assert_eq!(change.failed.as_deref(), Some("no answer"));
    now += SECOND;
    let change = ask(&mut answers, now, with(&["198.51.100.11"], 5), with(&["2001:db8:64::11"], 5));
    assert!(change.recovered);
    now += 5 * SECOND;
    for (round, wait) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
        let v4 = if round.is_multiple_of(2) { failed() } else { nothing() };
        let change = ask(&mut answers, now, v4, nothing());
        assert_eq!((change.added, change.gone), (vec![], vec![]));
        assert_eq!(change.failed.is_some(), round == 0, "told once");
        assert_eq!(due_in(&answers, now), Duration::from_secs(wait));
        now += Duration::from_secs(wait);
    }
    assert_eq!(current(&answers), list(&["198.51.100.11", "2001:db8:64::11"]));
}

#[test]
fn a_family_that_fails_does_not_take_the_other_along() {
    let now = Instant::now();
    let mut answers = following(&both(), now);
    ask(&mut answers, now, with(&["198.51.100.11"], 5), with(&["2001:db8:64::11"], 5));
    let now = now + 5 * SECOND;
    ask(&mut answers, now, with(&["198.51.100.12"], 5), failed());
    assert_eq!(current(&answers), list(&["198.51.100.12", "2001:db8:64::11"]));
    let now = now + SECOND;
    // The name has no such addresses any more, which is believed, as it has others.
    let change = ask(&mut answers, now, with(&["198.51.100.12"], 5), nothing());
    assert_eq!(change.gone, list(&["2001:db8:64::11"]));
}

#[test]
fn addresses_that_no_server_can_have_are_left_out() {
    let now = Instant::now();
    let mut answers = following(&both(), now);
    let change = ask(&mut answers, now, with(&["127.0.0.1", "198.51.100.11", "224.0.0.1"], 5), nothing());
    assert_eq!(current(&answers), list(&["198.51.100.11"]));
    assert_eq!(change.unusable.len(), 2, "{change:?}");
    let now = now + 5 * SECOND;
    // Only those: that is no good answer.
    let change = ask(&mut answers, now, with(&["127.0.0.1"], 5), nothing());
    assert!(change.failed.is_some() && change.unusable.is_empty(), "{change:?}");
    assert_eq!(current(&answers), list(&["198.51.100.11"]));
}

#[test]
fn of_very_many_addresses_those_in_use_are_kept() {
    let now = Instant::now();
    let mut answers = following(&config("", "\"203.0.113.10:25\""), now);
    let many = |first: u8| -> Vec<IpAddr> { (first..=200).map(|last| [198, 51, 100, last].into()).collect() };
    let reply = |addresses| Some(Outcome::Addresses(addresses, 5 * SECOND));
    ask(&mut answers, now, reply(many(190)), None);
    let now = now + 5 * SECOND;
    ask(&mut answers, now, reply(many(1)), None);
    let now_used = current(&answers);
    assert_eq!(now_used.len(), MOST_ADDRESSES);
    assert!(many(190).iter().all(|one| now_used.contains(one)));
}

#[test]
fn a_reload_asks_for_everything_and_keeps_what_is_known() {
    let now = Instant::now();
    let mut answers = following(&both(), now);
    ask(&mut answers, now, with(&["198.51.100.11"], 300), with(&["2001:db8:64::11"], 300));
    answers.follow(&both(), now);
    assert_eq!(current(&answers).len(), 2);
    // While the answer to that is awaited, one more comes.
    assert_eq!(answers.due(now).len(), 1);
    answers.follow(&config("", "\"203.0.113.10:25\""), now);
    assert_eq!(current(&answers), list(&["198.51.100.11"]));
    assert!(answers.answered("other.example.com", &Reply::default(), now).is_none());
    let late = Reply { v4: with(&["198.51.100.11"], 5), v6: with(&["2001:db8:64::11"], 5) };
    answers.answered(HOST, &late, now).unwrap();
    assert_eq!(current(&answers), list(&["198.51.100.11"]), "a family that nobody wants any more");
}

fn outcome(v4: bool) -> impl Strategy<Value = Outcome> {
    let address = (0u8..6).prop_map(move |last| -> IpAddr {
        if v4 {
            [198, 51, 100, last + 1].into()
        } else {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last) + 1].into()
        }
    });
    prop_oneof![
        4 => (prop::collection::vec(address, 1..5), 0u64..1000)
            .prop_map(|(addresses, ttl)| Outcome::Addresses(addresses, Duration::from_secs(ttl))),
        1 => Just(Outcome::Nothing("nothing".to_owned())),
        1 => Just(Outcome::Failed("failed".to_owned())),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    /// Whatever comes: what was found once is never lost without a good answer, every address that was used is used or
    /// leaving until it is forgotten, and the next question comes within the bounds.
    #[test]
    fn addresses_are_never_lost(rounds in prop::collection::vec((outcome(true), outcome(false), 0u64..5), 1..40)) {
        let mut now = Instant::now();
        let mut answers = following(&both(), now);
        let mut used: BTreeSet<IpAddr> = BTreeSet::new();
        for (v4, v6, late) in rounds {
            now += due_in(&answers, now) + Duration::from_secs(late);
            let before: BTreeSet<IpAddr> = current(&answers).into_iter().collect();
            let change = ask(&mut answers, now, Some(v4.clone()), Some(v6.clone()));
            let after: BTreeSet<IpAddr> = current(&answers).into_iter().collect();
            let known = answers.get(HOST).unwrap();
            let leaving: BTreeSet<IpAddr> = known.leaving().map(|(address, _)| address).collect();

            prop_assert!(before.is_empty() || !after.is_empty());
            prop_assert_eq!(change.added, after.difference(&before).copied().collect::<Vec<_>>());
            prop_assert_eq!(change.gone, before.difference(&after).copied().collect::<Vec<_>>());
            used.extend(&after);
            prop_assert!(after.is_disjoint(&leaving));
            prop_assert_eq!(after.union(&leaving).copied().collect::<BTreeSet<_>>(), used.clone());
            let of = |set: &BTreeSet<IpAddr>, v4: bool| -> BTreeSet<IpAddr> {
                set.iter().copied().filter(|one| one.is_ipv4() == v4).collect()
            };
            for (is_v4, outcome, other) in [(true, &v4, &v6), (false, &v6, &v4)] {
                let expected = match outcome {
                    Outcome::Addresses(addresses, _) => addresses.iter().copied().collect(),
                    Outcome::Nothing(_) if matches!(other, Outcome::Addresses(..)) => BTreeSet::new(),
                    Outcome::Nothing(_) | Outcome::Failed(_) => of(&before, is_v4),
                };
                prop_assert_eq!(of(&after, is_v4), expected);
            }
            let wait = due_in(&answers, now);
            let bounds = Resolver::default();
            if known.error.is_some() {
                prop_assert!((FIRST_RETRY..=LAST_RETRY).contains(&wait));
            } else {
                prop_assert!((bounds.min_ttl..=bounds.max_ttl).contains(&wait));
            }
            if late == 0 {
                leaving.iter().for_each(|address| answers.forget(HOST, *address));
                used = after;
            }
        }
    }
}
