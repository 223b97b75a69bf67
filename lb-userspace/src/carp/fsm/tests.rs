use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn settings(base: u8, skew: u8, preempt: bool) -> Settings {
    Settings { timing: Timing { base, skew }, preempt, preempt_delay: Duration::ZERO, dialect: Dialect::Any }
}

fn ours() -> IpAddr {
    [192, 0, 2, 2].into()
}

/// An advertisement from an address that loses ties.
fn heard(base: u8, skew: u8, demotion: u8) -> Heard {
    Heard {
        timing: Timing { base, skew },
        demotion,
        source: [192, 0, 2, 9].into(),
        ours: Some(ours()),
        breaks_ties: true,
    }
}

fn backup(settings: Settings) -> Machine {
    let mut machine = Machine::new(settings, false);
    assert_eq!(machine.state(), State::Init);
    let actions = machine.on_link(Time::ZERO, true);
    assert_eq!(changes(&actions), [(State::Init, State::Backup, Reason::LinkUp)]);
    machine
}

/// Became master by silence; the time is when.
fn master(settings: Settings) -> (Machine, Time) {
    let mut machine = backup(settings);
    let at = machine.next_deadline().unwrap();
    let actions = machine.on_timer(at);
    assert_eq!(machine.state(), State::Master);
    assert!(matches!(actions[..], [Action::Changed { .. }, Action::Advertise(_), Action::Announce]));
    (machine, at)
}

fn changes(actions: &[Action]) -> Vec<(State, State, Reason)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Changed { from, to, reason } => Some((*from, *to, *reason)),
            _ => None,
        })
        .collect()
}

fn advertised(actions: &[Action]) -> Vec<(u8, u8, u8)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Advertise(a) => Some((a.timing.base, a.timing.skew, a.demotion)),
            _ => None,
        })
        .collect()
}

#[test]
fn intervals() {
    let interval = |base, skew| Timing { base, skew }.interval();
    assert_eq!(interval(1, 0), SECOND);
    assert_eq!(interval(1, 128), Duration::from_millis(1500));
    assert_eq!(interval(0, 0), SECOND / 256);
    assert_eq!(interval(0, 64), SECOND / 4);
    assert_eq!(interval(255, 255), SECOND * 65535 / 256);
    let down = |base, skew, dialect| Timing { base, skew }.master_down(dialect);
    assert_eq!(down(1, 0, Dialect::Any), 3 * SECOND);
    assert_eq!(down(1, 128, Dialect::Any), Duration::from_millis(3500));
    assert_eq!(down(1, 128, Dialect::OpenBsd), Duration::from_millis(4500));
    assert_eq!(down(0, 64, Dialect::Any), Duration::from_millis(750));
    assert_eq!(down(0, 0, Dialect::Any), 3 * SECOND / 256);
}

#[test]
fn silence_makes_a_master_after_the_exact_time() {
    let mut machine = backup(settings(1, 0, false));
    assert_eq!(machine.next_deadline(), Some(3 * SECOND));
    assert_eq!(machine.on_timer(3 * SECOND - Duration::from_nanos(1)), []);
    let actions = machine.on_timer(3 * SECOND);
    let reason = Reason::Silence(3 * SECOND);
    assert_eq!(changes(&actions), [(State::Backup, State::Master, reason)]);
    assert_eq!(advertised(&actions), [(1, 0, 0)]);
}

#[test]
fn what_a_backup_makes_of_an_advertisement() {
    // advbase and advskew, preempt, own demotion; advbase, advskew and demotion heard; whether it becomes master.
    let table = [
        // The same, slower, faster: only the slower one is preempted, and only if that is wanted.
        ((1, 0, true, 0), (1, 0, 0), false),
        ((1, 0, true, 0), (1, 1, 0), true),
        ((1, 0, false, 0), (1, 1, 0), false),
        ((1, 100, true, 0), (1, 0, 0), false),
        // A demoted master loses to a less demoted node even without preempt, however fast it is.
        ((1, 100, false, 0), (1, 0, 1), true),
        ((1, 0, false, 2), (1, 0, 2), false),
        ((1, 0, false, 3), (1, 0, 2), false),
        // A demoted node does not preempt one that is not.
        ((1, 0, true, 1), (1, 100, 0), false),
        ((1, 0, true, 1), (2, 100, 0), false),
        ((1, 0, true, 1), (1, 100, 1), false),
        // Certain to time out: more than three times the own advbase.
        ((1, 0, false, 0), (3, 0, 0), false),
        ((1, 0, false, 0), (3, 1, 0), true),
        ((0, 1, false, 0), (1, 0, 0), false),
        // Bow-out.
        ((1, 254, false, 0), (255, 255, 0), true),
        ((0, 0, false, 0), (255, 255, 0), true),
        ((1, 0, false, 5), (255, 255, 0), true),
        ((255, 254, false, 0), (255, 255, 0), true),
    ];
    for ((base, skew, preempt, own), (their_base, their_skew, theirs), expected) in table {
        let mut machine = backup(settings(base, skew, preempt));
        assert_eq!(machine.set_demotion(Time::ZERO, own), []);
        let now = Duration::from_millis(2);
        let actions = machine.on_packet(now, &heard(their_base, their_skew, theirs));
        let case = format!("{base} {skew} {preempt} {own}, heard {their_base} {their_skew} {theirs}");
        assert_eq!(machine.state() == State::Master, expected, "{case}");
        if expected {
            assert!(matches!(actions[..], [Action::Changed { .. }, Action::Advertise(_), Action::Announce]));
        } else {
            assert_eq!(actions, [], "{case}");
            assert_eq!(
                machine.next_deadline(),
                Some(now + machine.master_down()),
                "{case}: not waiting anew"
            );
        }
    }
}

#[test]
fn what_a_master_makes_of_an_advertisement() {
    let low: IpAddr = [192, 0, 2, 1].into();
    let high: IpAddr = [192, 0, 2, 9].into();
    // advskew and demotion; advskew, demotion and source heard; whether it yields.
    let table = [
        ((0, 0), (0, 0, high), false),
        ((0, 0), (0, 0, low), true),
        ((0, 0), (1, 0, low), false),
        ((1, 0), (0, 0, high), true),
        // Demotion comes before speed: theirs less, theirs more, equal.
        ((0, 1), (200, 0, high), true),
        ((100, 0), (0, 1, low), false),
        ((100, 3), (0, 3, high), true),
        ((0, 3), (254, 3, low), false),
    ];
    for ((skew, own), (their_skew, theirs, source), yields) in table {
        let (mut machine, at) = master(settings(1, skew, false));
        machine.set_demotion(at, own);
        let now = at + SECOND / 2;
        let actions = machine.on_packet(now, &Heard { source, ..heard(1, their_skew, theirs) });
        let case = format!("{skew} {own}, heard {their_skew} {theirs} {source}");
        if yields {
            assert_eq!(machine.state(), State::Backup, "{case}");
            assert_eq!(advertised(&actions), []);
            // The better one may not have heard it, and must announce the addresses again. A third that is as fast as
            // two others must not hear of a slower one.
            let last = Advertisement { timing: machine.timing(), demotion: machine.demotion() };
            let tie = (skew, own) == (their_skew, theirs);
            let said = if tie { vec![] } else { vec![Action::GiveWay(last)] };
            assert_eq!(actions[1..], said, "{case}");
            assert_eq!(machine.next_deadline(), Some(now + machine.master_down()));
        } else {
            assert_eq!(machine.state(), State::Master, "{case}");
            // It says so at once, so that the other yields, and takes the addresses' traffic back.
            assert!(matches!(actions[..], [Action::Advertise(_), Action::Announce]), "{case}: {actions:?}");
        }
    }
}

#[test]
fn ties_are_broken_as_ucarp_breaks_them() {
    let tie = |theirs: [u8; 4], ours: [u8; 4]| {
        let (mut machine, at) = master(settings(1, 0, false));
        machine.on_packet(at, &Heard { source: theirs.into(), ours: Some(ours.into()), ..heard(1, 0, 0) });
        machine.state() == State::Backup
    };
    // The last octet first.
    assert!(tie([192, 0, 3, 1], [192, 0, 2, 2]));
    assert!(!tie([192, 0, 2, 2], [192, 0, 3, 1]));
    // Without an address of our own the other stays, as with the BSDs.
    let (mut machine, at) = master(settings(1, 0, false));
    machine.on_packet(at, &Heard { ours: None, ..heard(1, 0, 0) });
    assert_eq!(machine.state(), State::Backup);
    // The second family of a vhid has no say.
    let (mut machine, at) = master(settings(1, 0, false));
    let v6 = |last| IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, last]);
    let heard = Heard { source: v6(1), ours: Some(v6(2)), ..heard(1, 0, 0) };
    assert_eq!(machine.on_packet(at, &Heard { breaks_ties: false, ..heard }), []);
    assert_eq!(machine.state(), State::Master);
    machine.on_packet(at, &heard);
    assert_eq!(machine.state(), State::Backup);
}

#[test]
fn a_bow_out_does_not_impress_a_master() {
    for demotion in [0, 7] {
        let (mut machine, at) = master(settings(1, 0, false));
        machine.set_demotion(at, demotion);
        machine.on_packet(at, &heard(255, 255, 0));
        assert_eq!(machine.state(), State::Master);
    }
}

#[test]
fn a_master_advertises_on_time() {
    let (mut machine, at) = master(settings(1, 0, false));
    assert_eq!(machine.next_deadline(), Some(at + SECOND));
    // A little late: the next one is not.
    let actions = machine.on_timer(at + SECOND + SECOND / 10);
    assert_eq!(advertised(&actions), [(1, 0, 0)]);
    assert_eq!(machine.deadline, Some(at + 2 * SECOND));
    // Very late, as after a suspension: no burst.
    let actions = machine.on_timer(at + 60 * SECOND);
    assert_eq!(advertised(&actions), [(1, 0, 0)]);
    assert_eq!(machine.deadline, Some(at + 61 * SECOND));
}

#[test]
fn addresses_are_announced_again_and_then_no_more() {
    let (mut machine, at) = master(settings(10, 0, false));
    let mut announced = Vec::new();
    let end = at + 60 * SECOND;
    while let Some(now) = machine.next_deadline().filter(|next| *next <= end) {
        if machine.on_timer(now).contains(&Action::Announce) {
            announced.push((now - at).as_secs());
        }
    }
    assert_eq!(announced, [1, 2, 5]);
}

#[test]
fn two_that_think_themselves_better_do_not_flood() {
    let (mut machine, at) = master(settings(1, 0, false));
    let sent: usize =
        (0..1000).map(|ms| machine.on_packet(at + Duration::from_millis(ms), &heard(1, 9, 0)).len()).sum();
    assert_eq!(sent, 2 * 4, "an advertisement and an announcement, four times a second");
}

#[test]
fn links() {
    let (mut machine, at) = master(settings(1, 0, false));
    let actions = machine.on_link(at, false);
    assert_eq!(changes(&actions), [(State::Master, State::Init, Reason::LinkDown)]);
    assert_eq!(advertised(&actions), []);
    assert_eq!(machine.next_deadline(), None);
    assert_eq!(machine.on_packet(at, &heard(255, 255, 0)), []);
    assert_eq!(machine.on_timer(at + 60 * SECOND), []);
    assert_eq!(machine.on_link(at, false), []);
    machine.on_link(at, true);
    assert_eq!(machine.state(), State::Backup);
    assert_eq!(machine.on_link(at, true), []);
    machine.on_link(at, false);
    assert_eq!(machine.state(), State::Init);
}

#[test]
fn demotion_is_told_at_once_and_in_both_ways() {
    let (mut machine, at) = master(settings(1, 100, false));
    let now = at + SECOND / 2;
    let actions = machine.set_demotion(now, 1);
    // OpenBSD reads the last number, FreeBSD and ucarp the second.
    assert_eq!(advertised(&actions), [(1, 245, 1)]);
    assert_eq!(machine.set_demotion(now, 1), []);
    assert_eq!(advertised(&machine.set_demotion(now, 0)), [(1, 100, 0)]);
    let skew = |skew| {
        let mut machine = backup(settings(1, skew, false));
        machine.set_demotion(Time::ZERO, 1);
        machine.timing().skew
    };
    assert_eq!((skew(0), skew(254)), (240, 254));
}

#[test]
fn a_preemption_can_be_delayed() {
    let delay = 10 * SECOND;
    let mut machine = backup(Settings { preempt_delay: delay, ..settings(1, 0, true) });
    let slower = heard(1, 50, 0);
    for second in 1..=10 {
        machine.on_packet(second * SECOND, &slower);
        assert_eq!(machine.state(), State::Backup, "after {second} s");
    }
    // A better one in between starts it anew.
    machine.on_packet(10 * SECOND, &heard(1, 0, 0));
    machine.on_packet(11 * SECOND, &slower);
    assert_eq!(machine.state(), State::Backup);
    for second in 12..=20 {
        machine.on_packet(second * SECOND, &slower);
    }
    assert_eq!(machine.state(), State::Backup);
    let actions = machine.on_packet(21 * SECOND, &slower);
    assert!(matches!(changes(&actions)[..], [(_, State::Master, Reason::Preempted(..))]));
    // What is demoted or leaves is taken over from at once.
    let mut machine = backup(Settings { preempt_delay: delay, ..settings(1, 0, true) });
    machine.on_packet(SECOND, &heard(1, 240, 1));
    assert_eq!(machine.state(), State::Master);
}

#[test]
fn operators_have_their_way() {
    let mut machine = backup(settings(1, 100, false));
    let actions = machine.set_wish(SECOND, Wish::Promoted);
    assert_eq!(advertised(&actions), [(0, 254, 0)]);
    assert_eq!(changes(&actions), [(State::Backup, State::Master, Reason::OperatorPromoted)]);
    // The best that anybody with the same advbase can be does not impress it.
    machine.on_packet(SECOND, &Heard { source: [1, 0, 0, 0].into(), ..heard(1, 0, 0) });
    assert_eq!(machine.state(), State::Master);
    // Released, it stays master until somebody better comes.
    assert_eq!(advertised(&machine.set_wish(SECOND, Wish::Released)), [(1, 100, 0)]);
    assert_eq!(machine.state(), State::Master);

    // Demoted, it says so as if it went away, and stays as long as nobody else comes.
    let actions = machine.set_wish(SECOND, Wish::Demoted);
    assert_eq!(actions.len(), 1);
    assert_eq!(advertised(&actions), [(255, 255, 128)]);
    let at = machine.deadline.unwrap();
    assert_eq!(advertised(&machine.on_timer(at)), [(1, 245, 128)]);
    let actions = machine.on_packet(at, &heard(1, 254, 0));
    let reason = Reason::LessDemoted(heard(1, 254, 0).source, 0);
    assert_eq!(changes(&actions), [(State::Master, State::Backup, reason)]);
    // It does not come back while there is another one, however slow, but does when there is none.
    machine.on_packet(at + SECOND, &heard(1, 254, 0));
    assert_eq!(machine.state(), State::Backup);
    let at = machine.next_deadline().unwrap();
    machine.on_timer(at);
    assert_eq!(machine.state(), State::Master);
    machine.on_packet(at, &heard(1, 254, 1));
    assert_eq!(machine.state(), State::Backup);
}

#[test]
fn a_stop_is_told() {
    let (mut machine, _) = master(settings(1, 0, false));
    let actions = machine.stop();
    assert_eq!(advertised(&actions), [(255, 255, 0)]);
    assert_eq!(changes(&actions), [(State::Master, State::Init, Reason::Stopped)]);
    assert_eq!(machine.stop(), []);
    let mut machine = backup(settings(1, 0, false));
    assert_eq!(advertised(&machine.stop()), []);
}

#[test]
fn a_restarted_master_keeps_its_addresses_if_nobody_took_them() {
    let adopt = || {
        let mut machine = Machine::new(settings(1, 0, false), true);
        assert!(!machine.holds_addresses());
        machine.on_link(Time::ZERO, true);
        assert!(machine.holds_addresses());
        assert_eq!(machine.state(), State::Backup);
        machine
    };
    let mut machine = adopt();
    assert_eq!(machine.next_deadline(), Some(Duration::from_millis(1500)));
    machine.on_timer(Duration::from_millis(1500));
    assert_eq!(machine.state(), State::Master);
    // The other one, although worse, is master meanwhile: preempt is off, so it stays.
    let mut machine = adopt();
    assert_eq!(machine.on_packet(SECOND, &heard(1, 100, 0)), []);
    assert!(!machine.holds_addresses());
    assert_eq!(machine.next_deadline(), Some(4 * SECOND));
    assert!(!{
        let mut machine = adopt();
        machine.stop();
        machine.holds_addresses()
    });
}

#[test]
fn a_reload_changes_settings_and_not_the_state() {
    let (mut machine, at) = master(settings(1, 0, false));
    assert_eq!(machine.set_settings(at, settings(1, 0, false)), []);
    assert_eq!(advertised(&machine.set_settings(at, settings(1, 50, true))), [(1, 50, 0)]);
    assert_eq!(machine.state(), State::Master);
    let mut machine = backup(settings(10, 0, false));
    machine.set_settings(SECOND, settings(1, 0, false));
    assert_eq!(machine.next_deadline(), Some(4 * SECOND));
}

#[test]
fn reasons_read_as_sentences() {
    let source = ours();
    let timing = Timing { base: 1, skew: 100 };
    assert_eq!(Reason::Silence(3 * SECOND).to_string(), "no advertisement for 3.000 s");
    assert_eq!(
        Reason::Preempted(source, timing).to_string(),
        "preempts the slower master 192.0.2.2 (advbase 1 advskew 100)"
    );
}

#[test]
fn a_worse_master_that_is_about_to_give_way_is_left_alone() {
    // A network grows together again: this backup of the better half hears the other half's master.
    for (skew, demotion) in [(200, 0), (50, 3)] {
        let other: IpAddr = [192, 0, 2, 77].into();
        let worse = Heard { source: other, ..heard(1, skew, demotion) };
        let mut machine = backup(settings(1, 100, true));
        machine.on_packet(SECOND, &heard(1, 0, 0));
        assert_eq!(machine.on_packet(SECOND * 3 / 2, &worse), []);
        assert_eq!(machine.next_deadline(), Some(SECOND + machine.master_down()), "it is no sign of life");
        // The better one itself has become worse, or has not been heard for long.
        let mut same = machine.clone();
        same.on_packet(SECOND * 2, &heard(1, skew, demotion));
        assert_eq!(same.state(), State::Master);
        machine.on_packet(SECOND + machine.master_down(), &worse);
        assert_eq!(machine.state(), State::Master);
    }
}
