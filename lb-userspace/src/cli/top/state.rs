//! What `matapa top` knows, and what keys do to it. No terminal, no daemon, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::api::types::{AdminState, BackendStatus, ServiceStatus, Status};
use crate::health::Health;

/// Rates kept for each line.
pub const HISTORY: usize = 20;
/// Events kept.
const EVENTS: usize = 100;
/// Lines that Page Up and Page Down go.
const PAGE: usize = 10;

/// A line of the list: a service, or one of its backends.
pub type Key = (String, Option<String>);

/// How a service's backends are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// As in the configuration.
    #[default]
    Configured,
    /// Most first; so for the next one.
    Flows,
    Packets,
    /// Those that are down first.
    Health,
}

impl Sort {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configured => "configuration",
            Self::Flows => "flows",
            Self::Packets => "packets",
            Self::Health => "health",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Configured => Self::Flows,
            Self::Flows => Self::Packets,
            Self::Packets => Self::Health,
            Self::Health => Self::Configured,
        }
    }
}

/// What a key asks of the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Quit,
    /// Ask the daemon again, now.
    Refresh,
    SetAdmin {
        service: String,
        backend: String,
        state: AdminState,
    },
}

/// Packets and bytes of a line, as counted so far and by the second.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    packets: u64,
    bytes: u64,
    /// A second; `None` before the second look.
    pub packet_rate: Option<f64>,
    pub byte_rate: Option<f64>,
    /// Earlier packet rates, the newest last.
    pub history: VecDeque<f64>,
}

impl Traffic {
    fn count(&mut self, packets: u64, bytes: u64, since: Option<Duration>) {
        let rate = |before: u64, now: u64| {
            let seconds = since.map(|time| time.as_secs_f64()).filter(|seconds| *seconds > 0.0)?;
            // Another daemon counts from its own beginning.
            Some(now.checked_sub(before)? as f64 / seconds)
        };
        self.packet_rate = rate(self.packets, packets);
        self.byte_rate = rate(self.bytes, bytes);
        if let Some(rate) = self.packet_rate {
            self.history.push_back(rate);
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
        (self.packets, self.bytes) = (packets, bytes);
    }
}

/// A line with what it shows.
#[derive(Clone, Copy, Debug)]
pub enum Line<'a> {
    Service(&'a ServiceStatus),
    Backend(&'a ServiceStatus, &'a BackendStatus),
}

impl Line<'_> {
    pub fn key(&self) -> Key {
        match self {
            Self::Service(service) => (service.name.clone(), None),
            Self::Backend(service, backend) => (service.name.clone(), Some(backend.name.clone())),
        }
    }
}

/// Everything that is on the screen.
#[derive(Clone, Debug, Default)]
pub struct Top {
    pub status: Option<Status>,
    /// When `status` came, since the start.
    seen: Option<Duration>,
    traffic: BTreeMap<Key, Traffic>,
    /// As `matapa monitor` prints them, the newest last.
    pub events: VecDeque<String>,
    pub selected: Option<Key>,
    pub sort: Sort,
    pub filter: String,
    /// Keys go into the filter.
    pub typing: bool,
    pub help: bool,
    /// What the last command did, or why it did nothing; until the next key.
    pub notice: Option<Notice>,
    /// Why the daemon cannot be asked; until it can.
    pub unreachable: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub text: String,
    pub bad: bool,
}

impl Top {
    /// Takes an answer of the daemon, `now` after the start.
    pub fn take_status(&mut self, status: Status, now: Duration) {
        let since = self.seen.and_then(|seen| now.checked_sub(seen));
        let mut traffic = BTreeMap::new();
        for service in &status.services {
            for line in [Line::Service(service)].into_iter().chain(backends(service)) {
                let key = line.key();
                let known = self.traffic.remove(&key);
                let since = since.filter(|_| known.is_some());
                let mut counted = known.unwrap_or_default();
                let (packets, bytes) = match line {
                    Line::Service(service) => (service.packets, service.bytes),
                    Line::Backend(_, backend) => (backend.packets, backend.bytes),
                };
                counted.count(packets, bytes, since);
                traffic.insert(key, counted);
            }
        }
        self.traffic = traffic;
        self.seen = Some(now);
        self.status = Some(status);
        self.unreachable = None;
        self.keep_selection();
    }

    /// The daemon could not be asked; what is shown stays.
    pub fn take_error(&mut self, text: String) {
        self.unreachable = Some(text);
    }

    /// What became of a command: what was done, or why it was refused.
    pub fn take_outcome(&mut self, outcome: Result<String, String>) {
        let bad = outcome.is_err();
        let (Ok(text) | Err(text)) = outcome;
        self.notice = Some(Notice { text, bad });
    }

    pub fn take_event(&mut self, line: String) {
        self.events.push_back(line);
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    pub fn traffic(&self, line: &Line<'_>) -> Option<&Traffic> {
        self.traffic.get(&line.key())
    }

    /// What passes the filter, in order. A service that passes brings all its backends, a backend its service.
    pub fn lines(&self) -> Vec<Line<'_>> {
        let wanted = self.filter.to_lowercase();
        let passes = |name: &str| name.to_lowercase().contains(&wanted);
        let mut lines = Vec::new();
        for service in self.status.iter().flat_map(|status| &status.services) {
            let mut chosen: Vec<Line<'_>> = backends(service)
                .filter(|line| {
                    matches!(line, Line::Backend(_, backend) if passes(&service.name) || passes(&backend.name))
                })
                .collect();
            if chosen.is_empty() && !passes(&service.name) {
                continue;
            }
            self.arrange(&mut chosen);
            lines.push(Line::Service(service));
            lines.extend(chosen);
        }
        lines
    }

    fn arrange(&self, backends: &mut [Line<'_>]) {
        let backend = |line: &Line<'_>| match line {
            Line::Backend(_, backend) => (backend.flows, backend.health),
            Line::Service(_) => (0, Health::Up),
        };
        let rate =
            |line: &Line<'_>| self.traffic(line).and_then(|traffic| traffic.packet_rate).unwrap_or(0.0);
        match self.sort {
            Sort::Configured => {}
            Sort::Flows => backends.sort_by_key(|line| std::cmp::Reverse(backend(line).0)),
            Sort::Packets => backends.sort_by(|a, b| rate(b).total_cmp(&rate(a))),
            Sort::Health => backends.sort_by_key(|line| match backend(line).1 {
                Health::Down => 0,
                Health::Unknown => 1,
                Health::Up => 2,
            }),
        }
    }

    /// Where the selected line is.
    pub fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.lines().iter().position(|line| line.key() == *selected)
    }

    fn keep_selection(&mut self) {
        if self.position().is_none() {
            self.selected = self.lines().first().map(Line::key);
        }
    }

    fn go(&mut self, to: impl FnOnce(usize, usize) -> usize) {
        let keys: Vec<Key> = self.lines().iter().map(Line::key).collect();
        let Some(last) = keys.len().checked_sub(1) else { return };
        let at = to(self.position().unwrap_or_default(), last).min(last);
        self.selected = keys.into_iter().nth(at);
    }

    /// What a key does.
    pub fn press(&mut self, key: KeyEvent) -> Option<Command> {
        self.notice = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c' | 'd')).then_some(Command::Quit);
        }
        if self.typing {
            self.write_filter(key.code);
            return None;
        }
        if self.help {
            self.help = false;
            return None;
        }
        match key.code {
            KeyCode::Char('q') => return Some(Command::Quit),
            KeyCode::Esc if self.filter.is_empty() => return Some(Command::Quit),
            KeyCode::Esc => {
                self.filter.clear();
                self.keep_selection();
            }
            KeyCode::Char('h' | '?') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('/' | 'f') => self.typing = true,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => return Some(Command::Refresh),
            KeyCode::Up | KeyCode::Char('k') => self.go(|at, _| at.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|at, _| at + 1),
            KeyCode::PageUp => self.go(|at, _| at.saturating_sub(PAGE)),
            KeyCode::PageDown => self.go(|at, _| at + PAGE),
            KeyCode::Home => self.go(|_, _| 0),
            KeyCode::End => self.go(|_, last| last),
            KeyCode::Char('d') => return self.set_admin(AdminState::Draining),
            KeyCode::Char('e') => return self.set_admin(AdminState::Enabled),
            KeyCode::Char('x') => return self.set_admin(AdminState::Disabled),
            _ => {}
        }
        None
    }

    fn write_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) if !letter.is_control() => self.filter.push(letter),
            _ => {}
        }
        self.keep_selection();
    }

    fn set_admin(&mut self, state: AdminState) -> Option<Command> {
        match self.selected.clone() {
            Some((service, Some(backend))) => Some(Command::SetAdmin { service, backend, state }),
            _ => {
                let text = "this is a service: go to one of its backends first".to_owned();
                self.notice = Some(Notice { text, bad: true });
                None
            }
        }
    }
}

fn backends(service: &ServiceStatus) -> impl Iterator<Item = Line<'_>> {
    service.backends.iter().map(move |backend| Line::Backend(service, backend))
}
