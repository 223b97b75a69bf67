//! Connections from one client, with ports in a row, are spread over the backends whatever the key.

use lb_common::hash::{FlowHash, HashKey, flow4, flow6, ports};

/// A small generator (xorshift64*), so that the keys are the same in every run.
struct Keys(u64);

impl Keys {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn key(&mut self) -> HashKey {
        HashKey { words: std::array::from_fn(|_| self.next() as u32), seed: self.next() }
    }
}

#[test]
fn twelve_ports_in_a_row_seldom_meet_one_half_of_the_table() {
    const ROUNDS: u32 = 100_000;
    let mut keys = Keys(0x9e37_79b9_7f4a_7c15);
    let client6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let vip6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
    for step in [1u16, 2] {
        let (mut one_sided4, mut one_sided6) = (0, 0);
        for _ in 0..ROUNDS {
            let key = keys.key();
            let first = 32_768 + (keys.next() as u16 & 0x3fff);
            let halves = |hash: &dyn Fn(u16) -> FlowHash| {
                (0..12).filter(|i| hash(first + i * step).slot(65_537) < 32_768).count()
            };
            let four = halves(&|port| flow4(&key, &[192, 0, 2, 2], &[203, 0, 113, 10], ports(port, 25), 6));
            let six = halves(&|port| flow6(&key, &client6, &vip6, ports(port, 25), 6));
            one_sided4 += u32::from(four == 0 || four == 12);
            one_sided6 += u32::from(six == 0 || six == 12);
        }
        // 2 in 2^12: 48.8 expected, standard deviation 7.
        for count in [one_sided4, one_sided6] {
            assert!((14..=84).contains(&count), "{count} of {ROUNDS} rounds went to one side, step {step}");
        }
        println!("step {step}: {one_sided4} {one_sided6}");
    }
}
