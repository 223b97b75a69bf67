//! Passive health: what the packet path itself notices of a backend.
//!
//! A backend from which several opening connections had to be moved away within a tick is taken out of the tables
//! before its next check. It is suspected, not condemned: its established connections are left alone, and the next
//! good check, or some time where there is no check, gives it another try.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::dataplane::image::{Id, Image, Server};

/// Moves within one tick that make a backend a suspect.
const SEVERAL: u64 = 3;
/// How long a suspect without a check stays one.
const TRIAL_AFTER: Duration = Duration::from_secs(10);

/// Who is suspected, and what was counted so far.
#[derive(Clone, Debug, Default)]
pub struct Passive {
    counted: BTreeMap<Server, u64>,
    suspects: BTreeMap<Server, Instant>,
}

impl Passive {
    /// Takes in how many connections were moved away from each backend since the maps were made. Says who has become
    /// a suspect, with the number of connections it lost in this tick.
    ///
    /// A listener's last backend is never suspected: a doubtful server is better than none.
    pub fn observe(&mut self, image: &Image, moved_away: impl Fn(Id) -> u64, now: Instant) -> Vec<(Id, u64)> {
        let mut found = Vec::new();
        let mut left: BTreeMap<Id, usize> =
            image.listeners.iter().map(|(id, l)| (*id, l.table.members.len())).collect();
        for (&id, backend) in &image.backends {
            let total = moved_away(id);
            // What happened before this daemon looked, or to an earlier backend with this number, is no evidence.
            let before = self.counted.insert(backend.server, total).unwrap_or(total);
            let moved = total.saturating_sub(before);
            let left = left.entry(backend.server.listener).or_default();
            if moved >= SEVERAL && *left > 1 && backend.takes_new_flows() {
                *left -= 1;
                self.suspects.insert(backend.server, now);
                found.push((id, moved));
            }
        }
        // All that are there have been counted, so that there is more only where some have gone.
        if self.counted.len() > image.backends.len() {
            let servers = image.servers();
            self.counted.retain(|server, _| servers.contains_key(server));
        }
        self.suspects.retain(|server, _| self.counted.contains_key(server));
        found
    }

    pub fn suspects(&self, server: &Server) -> bool {
        self.suspects.contains_key(server)
    }

    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// A check found these servers well. True when one of them was a suspect.
    pub fn acquit(&mut self, well: impl Fn(&Server) -> bool) -> bool {
        let before = self.suspects.len();
        self.suspects.retain(|server, _| !well(server));
        self.suspects.len() < before
    }

    /// Ends suspicions that no check will end. True when there was one.
    pub fn expire(&mut self, now: Instant, is_checked: impl Fn(&Server) -> bool) -> bool {
        let before = self.suspects.len();
        self.suspects.retain(|server, since| is_checked(server) || now.duration_since(*since) < TRIAL_AFTER);
        self.suspects.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Listen, Protocol};
    use crate::dataplane::image::BackendEntry;
    use crate::dataplane::worlds;

    fn image(backends: u32) -> Image {
        let listen = Listen {
            address: "203.0.113.10".parse().unwrap(),
            port: 25,
            last_port: 25,
            protocol: Protocol::Tcp,
        };
        let listener = worlds::listener(listen, 1..=backends);
        let backend = |id: u32| BackendEntry { server: server(id), ..worlds::server(1, server(id).address) };
        Image {
            listeners: [(1, listener)].into(),
            backends: (1..=backends).map(|id| (id, backend(id))).collect(),
            ..Image::default()
        }
    }

    fn server(id: u32) -> Server {
        Server { listener: 1, address: std::net::Ipv4Addr::new(198, 51, 100, id as u8).into(), port: 25 }
    }

    #[test]
    fn several_connections_moved_within_a_tick_make_a_suspect() {
        let (image, now) = (image(2), Instant::now());
        let mut passive = Passive::default();
        assert!(passive.observe(&image, |_| 100, now).is_empty(), "what was before is no evidence");
        assert!(passive.observe(&image, |id| if id == 1 { 102 } else { 100 }, now).is_empty());
        assert_eq!(passive.observe(&image, |id| if id == 1 { 105 } else { 100 }, now), [(1, 3)]);
        assert!(passive.suspects(&server(1)) && !passive.suspects(&server(2)));
        assert!(passive.acquit(|s| *s == server(1)));
        assert!(!passive.suspects(&server(1)));
    }

    #[test]
    fn the_last_backend_is_never_suspected() {
        let now = Instant::now();
        for (backends, expected) in [(1, 0), (3, 2)] {
            let image = image(backends);
            let mut passive = Passive::default();
            passive.observe(&image, |_| 0, now);
            assert_eq!(passive.observe(&image, |_| 50, now).len(), expected);
        }
    }

    #[test]
    fn without_a_check_a_suspect_is_tried_again() {
        let (image, now) = (image(2), Instant::now());
        let mut passive = Passive::default();
        passive.observe(&image, |_| 0, now);
        passive.observe(&image, |id| u64::from(id == 1) * 9, now);
        assert!(!passive.expire(now + TRIAL_AFTER, |_| true), "a check will tell");
        assert!(!passive.expire(now + TRIAL_AFTER / 2, |_| false));
        assert!(passive.expire(now + TRIAL_AFTER, |_| false));
    }
}
