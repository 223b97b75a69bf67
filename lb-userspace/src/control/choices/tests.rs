//! One listener, four servers in two pools, and time.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// `mx1` and `mx2` in the pool, `spool1` and `spool2` in the backup, unless the texts say otherwise.
fn config(service: &str, mx: &str, spool: &str) -> Config {
    let text = format!(
        "interfaces = ['eth0']\n[services.mail]\nlisten = '203.0.113.10:25'\npool = 'mx'\n{service}\n\
         [pools.mx]\n{mx}\n[pools.spool]\n{spool}\n"
    );
    match crate::config::parse(&text, Path::new("m.toml")) {
        Ok(config) => config,
        Err(errors) => panic!("{:?}", errors.lines()),
    }
}

const MX: &str =
    "backends = [{ name = 'mx1', address = '198.51.100.11' }, { name = 'mx2', address = '198.51.100.12' }]";
const SPOOL: &str = "backends = [{ name = 'spool1', address = '198.51.100.21' }, { name = 'spool2', address = '198.51.100.22' }]";
const BACKUP: &str = "backup = 'spool'";

struct World {
    config: Config,
    choices: Choices,
    start: Instant,
}

impl World {
    fn new(config: Config) -> Self {
        Self { config, choices: Choices::default(), start: Instant::now() }
    }

    /// Who gets new flows so many milliseconds after the start, while these are up and those of them are suspects.
    fn at(&mut self, millis: u64, up: &[&str], suspects: &[&str]) -> Vec<String> {
        let now = self.start + Duration::from_millis(millis);
        self.choices.settle(&self.config, now, |_, _, member, _| {
            let name = member.backend.name.as_str();
            let suspect = suspects.contains(&name);
            Seen { well: up.contains(&name), suspect, weight: member.backend.weight, established: false }
        });
        let service = &self.config.services[0];
        let takes = |member: &Member<'_>| {
            let name = member.backend.name.as_str();
            up.contains(&name)
                && !suspects.contains(&name)
                && !self.choices.stands_by(service, &service.listen[0], member)
        };
        self.config.members(service).filter(takes).map(|member| member.backend.name.clone()).collect()
    }

    fn due(&self, millis: u64) -> bool {
        self.choices.is_due(self.start + Duration::from_millis(millis))
    }

    fn steps(&self, name: &str) -> u16 {
        let service = &self.config.services[0];
        let member = self.config.members(service).find(|member| member.backend.name == name).unwrap();
        self.choices.steps(service, &service.listen[0], &member)
    }
}

const ALL: [&str; 4] = ["mx1", "mx2", "spool1", "spool2"];

#[test]
fn the_backup_is_used_while_the_pool_has_nobody() {
    let mut world = World::new(config(BACKUP, MX, SPOOL));
    assert_eq!(world.at(0, &[], &[]), [""; 0]);
    assert_eq!(world.at(1, &["spool2"], &[]), ["spool2"], "whoever is there first");
    assert_eq!(world.at(2, &ALL, &[]), ["mx1", "mx2"]);
    assert_eq!(world.at(3, &ALL[1..], &[]), ["mx2"]);
    assert_eq!(world.at(4, &ALL[2..], &[]), ["spool1", "spool2"]);
    assert_eq!(world.at(5, &["mx1", "spool1"], &["mx1"]), ["spool1"], "a suspect takes nothing");
    assert_eq!(world.at(6, &["mx1", "spool1"], &[]), ["mx1"]);
    assert_eq!(world.at(7, &[], &[]), [""; 0]);
    assert_eq!(world.choices.switches("mail"), 4, "what comes after nothing is no switch");
    assert_eq!(world.choices.news(), ["mail".to_owned()].into());
    assert_eq!(world.at(8, &[], &[]), [""; 0]);
    assert_eq!(world.choices.news(), BTreeSet::new());
}

#[test]
fn new_flows_return_to_the_pool_when_it_has_been_there_for_a_while() {
    let hold = format!("{BACKUP}\nbackup_hold = '10s'");
    let mut world = World::new(config(&hold, MX, SPOOL));
    // The backup was first: nothing to wait for.
    assert_eq!(world.at(0, &["spool1"], &[]), ["spool1"]);
    assert_eq!(world.at(100, &ALL, &[]), ["mx1", "mx2"]);
    assert_eq!(world.at(1_000, &ALL[2..], &[]), ["spool1", "spool2"]);
    assert_eq!(world.at(2_000, &ALL[1..], &[]), ["spool1", "spool2"]);
    assert!(!world.due(11_999) && world.due(12_000));
    // Gone again: the time begins anew.
    assert_eq!(world.at(11_999, &ALL[2..], &[]), ["spool1", "spool2"]);
    assert!(!world.due(1_000_000));
    assert_eq!(world.at(20_000, &ALL, &[]), ["spool1", "spool2"]);
    assert_eq!(world.at(29_999, &ALL, &[]), ["spool1", "spool2"]);
    assert_eq!(world.at(30_000, &ALL, &[]), ["mx1", "mx2"]);
    // Without a backup that could go on, the pool is used at once.
    world.at(40_000, &["spool1"], &[]);
    assert_eq!(world.at(41_000, &["mx1", "spool1"], &[]), ["spool1"]);
    assert_eq!(world.at(42_000, &["mx1"], &[]), ["mx1"]);
    assert_eq!(world.at(43_000, &["mx1", "spool1"], &[]), ["mx1"]);
}

#[test]
fn a_quorum_is_won_with_more_than_it_is_kept_with() {
    let mx = "quorum = 4\nhysteresis = 2\nbackends = [{ name = 'mx1', address = '198.51.100.11', weight = 4 },\n\
              { name = 'mx2', address = '198.51.100.12', weight = 2 }, '198.51.100.13']";
    for (backup, other) in [(BACKUP, vec!["spool1"]), ("", vec![])] {
        // Nobody uses it otherwise.
        let service = format!("{backup}\n[services.other]\nlisten = '203.0.113.11:25'\npool = 'spool'");
        let mut world = World::new(config(&service, mx, SPOOL));
        let mut at = |up: &[&str]| world.at(0, up, &[]);
        assert_eq!(at(&["mx2", "spool1"]), other);
        assert_eq!(at(&["mx1", "spool1"]), ["mx1"], "the first time as it is");
        assert_eq!(at(&["mx2", "spool1"]), ["mx2"]);
        assert_eq!(at(&["198.51.100.13", "spool1"]), other, "1 is less than 4 - 2");
        assert_eq!(at(&["mx1", "198.51.100.13", "spool1"]), other, "5 is less than 4 + 2");
        assert_eq!(at(&["mx1", "mx2", "spool1"]), ["mx1", "mx2"]);
        // A suspicion takes a server out, but not the quorum.
        assert_eq!(world.at(0, &["mx1", "198.51.100.13", "spool1"], &["mx1"]), ["198.51.100.13"]);
    }
}

#[test]
fn of_priorities_the_least_that_is_up_is_used() {
    let mx = "backends = [{ name = 'mx1', address = '198.51.100.11', priority = 1 }, \
              { name = 'mx2', address = '198.51.100.12', priority = 1 }, { name = 'mx3', address = '198.51.100.13' }, \
              { name = 'mx4', address = '198.51.100.14', priority = 255 }]";
    let mut world = World::new(config(BACKUP, mx, SPOOL));
    let all = ["mx1", "mx2", "mx3", "mx4", "spool1"];
    assert_eq!(world.at(0, &all, &[]), ["mx3"]);
    assert_eq!(world.at(0, &all, &["mx3"]), ["mx1", "mx2"]);
    assert_eq!(world.at(0, &["mx2", "mx4", "spool1"], &[]), ["mx2"]);
    assert_eq!(world.at(0, &["mx4", "spool1"], &[]), ["mx4"], "any of the pool before its backup");
    assert_eq!(world.at(0, &["spool1"], &[]), ["spool1"]);
    assert_eq!(world.at(0, &all, &[]), ["mx3"]);
}

#[test]
fn a_backend_that_comes_up_gets_its_weight_in_steps() {
    let mut world = World::new(config(BACKUP, &format!("slow_start = '10s'\n{MX}"), SPOOL));
    world.at(0, &["mx1"], &[]);
    assert_eq!(world.steps("mx1"), 1);
    assert!(!world.due(999) && world.due(1_000));
    for step in 1..9 {
        world.at(u64::from(step) * 1_000 + 500, &["mx1"], &[]);
        assert_eq!(world.steps("mx1"), step + 1);
        let next = u64::from(step) * 1_000 + 1_000;
        assert!(!world.due(next - 1) && world.due(next));
    }
    world.at(9_000, &["mx1"], &[]);
    assert_eq!(world.steps("mx1"), STEPS);
    assert!(!world.due(1_000_000), "nothing more to come");
    world.at(20_000, &["mx1", "mx2", "spool1"], &[]);
    assert_eq!([world.steps("mx1"), world.steps("mx2"), world.steps("spool1")], [STEPS, 1, STEPS]);
    // Down or suspected, it begins anew.
    world.at(30_000, &["mx1", "mx2"], &["mx1"]);
    world.at(31_000, &["mx1", "mx2"], &[]);
    assert_eq!([world.steps("mx1"), world.steps("mx2")], [1, STEPS]);
}

#[test]
fn what_an_earlier_daemon_used_is_used_on() {
    let hold = format!("{BACKUP}\nbackup_hold = '10s'");
    let mx =
        format!("quorum = 2\nhysteresis = 1\nslow_start = '10s'\n{}", MX.replace("' }]", "', weight = 2 }]"));
    let mut world = World::new(config(&hold, &mx, SPOOL));
    let service = world.config.services[0].clone();
    world.choices.restore(&service, &service.listen[0], [false, true]);
    assert_eq!(world.at(0, &ALL, &[]), ["spool1", "spool2"]);
    assert_eq!(world.at(10_000, &ALL, &[]), ["mx1", "mx2"]);
    assert_eq!(world.choices.switches("mail"), 1);
    // A pool that was in use had its quorum.
    world.choices = Choices::default();
    world.choices.restore(&service, &service.listen[0], [true, false]);
    assert_eq!(world.at(0, &["mx1", "spool1"], &[]), ["mx1"]);
    // A backend that took flows needs no slow start.
    world.choices = Choices::default();
    let (config, now) = (&world.config, world.start);
    world.choices.settle(config, now, |_, _, _, first| {
        assert!(first);
        Seen { well: true, suspect: false, weight: 1, established: true }
    });
    assert_eq!(world.steps("mx1"), STEPS);
}

#[test]
fn a_service_without_choices_costs_nothing() {
    let text = "[services.other]\nlisten = '203.0.113.11:25'\npool = 'spool'";
    let mut world = World::new(config(text, MX, SPOOL));
    assert_eq!(world.at(0, &ALL, &[]), ["mx1", "mx2"]);
    assert!(world.choices.listeners.is_empty() && world.choices.ramps.is_empty() && !world.due(1_000_000));
    assert!(!world.choices.uses(
        &world.config.services[0],
        &world.config.services[0].listen[0],
        Role::Backup
    ));
}

proptest! {
    /// Whatever happens: new flows go to one pool and one priority, and to somebody if the pool's quorum and a backend are
    /// there; what can be used is used; and when nothing changes, nothing changes after the time that was told.
    #[test]
    fn somebody_is_used_whenever_somebody_can_be(
        hold in prop_oneof![Just(0u64), Just(5)],
        quorum in 1u32..4,
        events in prop::collection::vec((0u64..4_000, prop::collection::vec(0u8..6, 6)), 1..30),
    ) {
        let mx = format!(
            "quorum = {quorum}\nhysteresis = {}\nbackends = [{{ name = 'mx1', address = '198.51.100.11', weight = 4 }}, \
             {{ name = 'mx2', address = '198.51.100.12' }}, {{ name = 'mx3', address = '198.51.100.13', priority = 1 }}]",
            quorum - 1
        );
        let service = format!("{BACKUP}\nbackup_hold = '{hold}s'");
        let mut world = World::new(config(&service, &mx, SPOOL));
        let names = ["mx1", "mx2", "mx3", "spool1", "spool2"];
        let mut now = 0;
        for (pause, states) in events {
            now += pause;
            let of = |wanted: &[u8]| -> Vec<&str> {
                names.iter().zip(&states).filter(|(_, state)| wanted.contains(state)).map(|(name, _)| *name).collect()
            };
            let (up, suspects) = (of(&[0, 1, 2, 3]), of(&[3]));
            let used = world.at(now, &up, &suspects);
            let pools: BTreeSet<bool> = used.iter().map(|name| name.starts_with("mx")).collect();
            prop_assert!(pools.len() <= 1, "{used:?}");
            prop_assert!(!(used.len() > 1 && used.contains(&"mx3".to_owned())), "{used:?} have two priorities");
            let can = |name: &&str| up.contains(name) && !suspects.contains(name);
            if names[3..].iter().any(can) {
                prop_assert!(!used.is_empty(), "nobody, with {up:?} less {suspects:?}");
            }
            let weight: u32 = names[..3].iter().zip([4, 1, 1]).filter(|(n, _)| up.contains(n)).map(|(_, w)| w).sum();
            if weight >= 2 * quorum - 1 && hold == 0 && names[..3].iter().any(can) {
                prop_assert_eq!(&pools, &[true].into(), "{:?} with {:?}", used, up);
            }
            if weight == 0 {
                prop_assert!(!pools.contains(&true));
            }
            prop_assert_eq!(world.at(now, &up, &suspects), used);
            // What the hold puts off comes by itself.
            if world.choices.next.is_some() {
                now += hold * 1_000;
                prop_assert!(world.due(now));
                let later = world.at(now, &up, &suspects);
                prop_assert!(later.iter().all(|name| name.starts_with("mx")) && !later.is_empty());
                prop_assert!(!world.due(now + 1_000_000));
            }
        }
    }
}
