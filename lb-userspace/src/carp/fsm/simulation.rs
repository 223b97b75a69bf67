//! Several machines and a network that loses, delays and reorders, falls apart and heals; clocks that drift.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The simulated world's time. A node's own clock runs a little faster or slower.
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct NodePlan {
    settings: Settings,
    demotion: u8,
    /// Parts in 100,000 that its clock is too fast.
    drift: i32,
    starts_at: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Weather {
    until: Duration,
    /// Percent of packets lost.
    loss: u32,
    /// Bit N says on which side of the partition node N is.
    sides: u32,
}

struct Node {
    machine: Machine,
    drift: i32,
    started: bool,
    starts_at: Duration,
    demotion: u8,
}

impl Node {
    /// World time as this node's clock shows it.
    fn local(&self, world: Duration) -> Time {
        scale(world, 100_000 + self.drift, 100_000)
    }

    fn world(&self, local: Time) -> Duration {
        // One more, so that converting back never yields less.
        scale(local, 100_000, 100_000 + self.drift) + Duration::from_nanos(2)
    }
}

fn scale(time: Duration, by: i32, over: i32) -> Duration {
    let nanos = time.as_nanos() * u128::from(by.unsigned_abs()) / u128::from(over.unsigned_abs());
    Duration::from_nanos(u64::try_from(nanos).unwrap())
}

struct World {
    nodes: Vec<Node>,
    now: Duration,
    /// By arrival, then by number.
    wire: BTreeMap<(Duration, u64), (usize, usize, Advertisement)>,
    packets: u64,
    random: u64,
    longest_delay: Duration,
    /// Node, when, from, to.
    changes: Vec<(usize, Duration, State, State)>,
    /// When each node has last told the neighbours that the addresses are there.
    announced: Vec<Duration>,
}

impl World {
    fn new(plans: &[NodePlan], seed: u64, longest_delay: Duration) -> Self {
        let nodes = plans
            .iter()
            .map(|plan| Node {
                machine: Machine::new(plan.settings, false),
                drift: plan.drift,
                started: false,
                starts_at: plan.starts_at,
                demotion: plan.demotion,
            })
            .collect();
        Self {
            nodes,
            now: Duration::ZERO,
            wire: BTreeMap::new(),
            packets: 0,
            random: seed | 1,
            longest_delay,
            changes: Vec::new(),
            announced: vec![Duration::ZERO; plans.len()],
        }
    }

    /// xorshift64*: the same world for the same seed.
    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }

    fn act(&mut self, from: usize, actions: Vec<Action>, weather: Weather) {
        for action in actions {
            match action {
                Action::Advertise(advertisement) | Action::GiveWay(advertisement) => {
                    for to in 0..self.nodes.len() {
                        let apart = (weather.sides >> from & 1) != (weather.sides >> to & 1);
                        if to == from || apart || self.random(100) < u64::from(weather.loss) {
                            continue;
                        }
                        let most = u64::try_from(self.longest_delay.as_micros()).unwrap();
                        let delay = Duration::from_micros(self.random(most));
                        self.packets += 1;
                        self.wire.insert((self.now + delay, self.packets), (from, to, advertisement));
                    }
                }
                Action::Changed { from: old, to: new, .. } => self.changes.push((from, self.now, old, new)),
                Action::Announce => self.announced[from] = self.now,
            }
        }
    }

    fn masters(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].machine.state() == State::Master).collect()
    }

    /// Goes on until `weather.until` and returns the longest time that there was more than one master.
    fn run(&mut self, weather: Weather) -> Duration {
        let (mut longest, mut since) = (Duration::ZERO, None);
        let mut steps = 0_u32;
        loop {
            if self.masters().len() > 1 {
                let start = *since.get_or_insert(self.now);
                longest = longest.max(self.now - start);
            } else {
                since = None;
            }
            steps += 1;
            assert!(steps < 2_000_000, "the machines flood the network");
            let packet = self.wire.first_key_value().map(|((at, _), _)| *at);
            let timer = (0..self.nodes.len())
                .filter_map(|n| {
                    let node = &self.nodes[n];
                    if node.started {
                        node.machine.next_deadline().map(|local| node.world(local))
                    } else {
                        Some(node.starts_at)
                    }
                })
                .min();
            let Some(next) = packet.into_iter().chain(timer).min().filter(|at| *at <= weather.until) else {
                self.now = weather.until;
                if let Some(start) = since {
                    longest = longest.max(self.now - start);
                }
                return longest;
            };
            self.now = self.now.max(next);
            if packet.is_some_and(|at| at <= next) {
                let Some((_, (from, to, said))) = self.wire.pop_first() else { continue };
                if self.nodes[to].started {
                    let address = |n: usize| IpAddr::from([192, 0, 2, u8::try_from(n).unwrap() + 1]);
                    let heard = Heard {
                        timing: said.timing,
                        demotion: said.demotion,
                        source: address(from),
                        ours: Some(address(to)),
                        breaks_ties: true,
                    };
                    let local = self.nodes[to].local(self.now);
                    let actions = self.nodes[to].machine.on_packet(local, &heard);
                    self.act(to, actions, weather);
                }
                continue;
            }
            for n in 0..self.nodes.len() {
                let local = self.nodes[n].local(self.now);
                let node = &mut self.nodes[n];
                let actions = if !node.started && node.starts_at <= self.now {
                    node.started = true;
                    let mut actions = node.machine.set_demotion(local, node.demotion);
                    actions.extend(node.machine.on_link(local, true));
                    actions
                } else if node.started && node.machine.next_deadline().is_some_and(|at| at <= local) {
                    node.machine.on_timer(local)
                } else {
                    continue;
                };
                self.act(n, actions, weather);
            }
        }
    }
}

fn plan() -> impl Strategy<Value = NodePlan> {
    // Few values, so that ties are frequent.
    let skew = prop::sample::select(vec![0_u8, 1, 50, 100, 200, 254]);
    let demotion = prop::sample::select(vec![0_u8, 0, 0, 1, 1, 130]);
    (skew, any::<bool>(), demotion, -2000..2000_i32, 0..8000_u64).prop_map(
        |(skew, preempt, demotion, drift, start)| NodePlan {
            settings: Settings {
                timing: Timing { base: 1, skew },
                preempt,
                preempt_delay: Duration::ZERO,
                dialect: Dialect::Any,
            },
            demotion,
            drift,
            starts_at: Duration::from_millis(start),
        },
    )
}

/// Which of the nodes is the best: least demoted, fastest, lowest address.
fn best(world: &World) -> usize {
    (0..world.nodes.len())
        .min_by_key(|n| {
            let machine = &world.nodes[*n].machine;
            (machine.demotion(), machine.timing(), *n)
        })
        .unwrap()
}

proptest! {
    #![proptest_config(crate::cases::cases(300))]

    #[test]
    fn one_master_in_the_end_and_no_flapping(
        plans in prop::collection::vec(plan(), 2..=5),
        seed: u64,
        loss in 0..60_u32,
        sides in 0..32_u32,
        delay in 1..50_u64,
    ) {
        let mut world = World::new(&plans, seed, Duration::from_millis(delay));
        world.run(Weather { until: 20 * SECOND, loss, sides: 0 });
        world.run(Weather { until: 40 * SECOND, loss: 0, sides });
        // Healed. Two masters notice each other at the next advertisement: at most 2 s, and the drift.
        let calm = |until| Weather { until, loss: 0, sides: 0 };
        let longest = world.run(calm(60 * SECOND));
        prop_assert!(longest < 2200 * SECOND / 1000, "two masters for {longest:?}: {:?}", world.changes.iter().filter(|c| c.1 > 38 * SECOND).collect::<Vec<_>>());
        let before = world.changes.len();
        let longest = world.run(calm(160 * SECOND));
        let late = || world.changes.iter().filter(|change| change.1 > 38 * SECOND).collect::<Vec<_>>();
        prop_assert_eq!(longest, Duration::ZERO, "two masters: {:?}", late());
        prop_assert_eq!(world.changes.len(), before, "{:?}", &world.changes[before..]);
        let masters = world.masters();
        prop_assert_eq!(masters.len(), 1);
        // Whoever else has announced the addresses since packets are lost no more, neighbours have heard of the master
        // after that; unless another one is its equal, which gives way and says nothing.
        let rank = |n: usize| (world.nodes[n].machine.demotion(), world.nodes[n].machine.timing());
        let others = || (0..plans.len()).filter(|n| *n != masters[0]);
        if others().all(|n| rank(n) != rank(masters[0])) {
            let last = others().map(|n| world.announced[n]).max().unwrap_or_default();
            prop_assert!(
                world.announced[masters[0]] >= last || last < 20 * SECOND,
                "{} at {:?}, another at {last:?}: {:?}", masters[0], world.announced[masters[0]], world.changes
            );
        }
        // No demoted master beside a node that is less so; with preempt everywhere it is the best of all.
        let least = world.nodes.iter().map(|node| node.machine.demotion()).min().unwrap();
        prop_assert_eq!(world.nodes[masters[0]].machine.demotion(), least);
        if plans.iter().all(|plan| plan.settings.preempt) {
            let best = best(&world);
            let timing = |n: usize| world.nodes[n].machine.timing();
            prop_assert_eq!(timing(masters[0]), timing(best));
        }
    }

    #[test]
    fn lost_packets_alone_change_no_master(
        plans in prop::collection::vec(plan(), 2..=4),
        seed: u64,
    ) {
        // Every second packet at most, never two in a row: the master-down time is more than two intervals but for
        // masters that are demoted or have a large skew.
        let plans: Vec<NodePlan> = plans
            .into_iter()
            .map(|mut plan| {
                plan.settings.timing.skew = plan.settings.timing.skew.min(100);
                plan.demotion = 0;
                plan
            })
            .collect();
        let mut world = World::new(&plans, seed, Duration::from_millis(5));
        world.run(Weather { until: 30 * SECOND, loss: 0, sides: 0 });
        let before = (world.masters(), world.changes.len());
        let mut end = world.now;
        for _ in 0..20 {
            end += Duration::from_millis(1450);
            world.run(Weather { until: end, loss: 0, sides: 0 });
            // One packet of whatever is sent in the next moment is lost, for everybody.
            end += Duration::from_millis(900);
            world.run(Weather { until: end, loss: 100, sides: 0 });
        }
        prop_assert_eq!((world.masters(), world.changes.len()), before);
    }

    #[test]
    fn a_dead_master_is_replaced_in_time(
        plans in prop::collection::vec(plan(), 2..=5),
        seed: u64,
    ) {
        let mut world = World::new(&plans, seed, Duration::from_millis(5));
        let calm = |until| Weather { until, loss: 0, sides: 0 };
        world.run(calm(30 * SECOND));
        let dead = world.masters()[0];
        world.nodes[dead].started = false;
        world.nodes[dead].starts_at = Duration::MAX;
        world.nodes[dead].machine = Machine::new(plans[dead].settings, false);
        let down = world.nodes.iter().map(|node| node.machine.master_down()).max().unwrap();
        let start = world.now;
        world.run(calm(start + down * 103 / 100));
        prop_assert!(!world.masters().is_empty());
        world.run(calm(start + 30 * SECOND));
        prop_assert_eq!(world.masters().len(), 1);
    }
}

#[test]
fn the_fastest_timing_is_fast() {
    let plan = |skew, start| NodePlan {
        settings: Settings {
            timing: Timing { base: 0, skew },
            preempt: true,
            preempt_delay: Duration::ZERO,
            dialect: Dialect::Any,
        },
        demotion: 0,
        drift: 0,
        starts_at: Duration::from_millis(start),
    };
    let mut world = World::new(&[plan(5, 0), plan(10, 1)], 1, Duration::from_micros(300));
    world.run(Weather { until: 2 * SECOND, loss: 0, sides: 0 });
    assert_eq!(world.masters(), [0]);
    world.run(Weather { until: 2 * SECOND + Duration::from_millis(130), loss: 0, sides: 1 });
    assert_eq!(world.masters(), [0, 1], "3 x 10/256 s");
    world.run(Weather { until: 3 * SECOND, loss: 0, sides: 0 });
    assert_eq!(world.masters(), [0]);
}
