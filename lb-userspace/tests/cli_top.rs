//! `matapa top`: what it shows for what the daemon says, what keys do, and how it leaves a terminal.

mod api_fake;
mod printed;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use api_fake::{Fake, status};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use lb_userspace::api::types::AdminState;
use lb_userspace::cli::top::state::{Command, Sort, Top};
use lb_userspace::cli::top::{Screen, view};
use nix::pty::{OpenptyResult, Winsize, openpty};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn drawn(top: &Top, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| view::draw(frame, top)).expect("drawn");
    terminal.backend().to_string()
}

fn press(top: &mut Top, keys: &str) -> Vec<Command> {
    keys.chars().filter_map(|key| top.press(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE))).collect()
}

fn code(top: &mut Top, code: KeyCode) -> Option<Command> {
    top.press(KeyEvent::new(code, KeyModifiers::NONE))
}

/// After some looks, a second apart, with more traffic each time.
fn busy() -> Top {
    let mut top = Top::default();
    for second in 0..6_u64 {
        let mut status = status();
        for service in &mut status.services {
            service.packets += second * second * 30;
            service.bytes += second * second * 30_000;
            for backend in &mut service.backends {
                backend.packets += second * second * 10 * u64::from(backend.id);
                backend.bytes += second * second * 10_000;
            }
        }
        top.take_status(status, Duration::from_secs(second));
    }
    top
}

fn names(top: &Top) -> Vec<String> {
    top.lines().iter().map(|line| line.key().1.unwrap_or_else(|| format!("[{}]", line.key().0))).collect()
}

#[test]
fn services_backends_rates_and_events_are_shown() {
    let mut top = busy();
    for event in api_fake::events() {
        top.take_event(format!("2026-01-01T00:00:00.000Z event {} \u{1b}[2J", event.number));
    }
    press(&mut top, "jj");
    insta::assert_snapshot!("top", drawn(&top, 130, 24));
    // Small ones have the list alone, and none is too small.
    insta::assert_snapshot!("top_small", drawn(&top, 60, 8));
    for (width, height) in [(1, 1), (10, 2), (200, 3), (3, 60)] {
        drawn(&top, width, height);
    }
}

#[test]
fn the_page_shows_it() {
    let mut top = busy();
    for event in api_fake::events().into_iter().take(2) {
        top.take_event(lb_userspace::cli::monitor::event_line(&event));
    }
    press(&mut top, "j");
    let lines: String =
        drawn(&top, 120, 17).lines().map(|line| format!("{}\n", line.trim_matches('"').trim_end())).collect();
    printed::check("top", &lines);
}

#[test]
fn help_filter_and_errors_are_shown() {
    let mut top = busy();
    press(&mut top, "h");
    let help = drawn(&top, 100, 20);
    press(&mut top, "h/mx");
    let typing = drawn(&top, 100, 10);
    code(&mut top, KeyCode::Enter);
    top.take_error("cannot reach the daemon at /run/matapa/control.sock".to_owned());
    let error = drawn(&top, 100, 10);
    insta::assert_snapshot!("top_states", [help, typing, error, drawn(&Top::default(), 60, 4)].join("\n"));
    // It is there again.
    top.take_status(status(), Duration::from_secs(9));
    assert_eq!(top.unreachable, None);
}

#[test]
fn a_refusal_stays_until_the_next_key() {
    let mut top = busy();
    top.take_outcome(Err("this socket only answers questions".to_owned()));
    top.take_status(status(), Duration::from_secs(9));
    assert!(drawn(&top, 100, 10).contains("this socket only answers questions"));
    press(&mut top, "j");
    assert!(drawn(&top, 100, 10).contains("q quit"));
}

#[test]
fn rates_need_two_looks_at_one_daemon() {
    let mut top = Top::default();
    let rate = |top: &Top| top.traffic(&top.lines()[0]).and_then(|traffic| traffic.packet_rate);
    let mut status = status();
    top.take_status(status.clone(), Duration::ZERO);
    assert_eq!(rate(&top), None);
    status.services[0].packets += 500;
    top.take_status(status.clone(), Duration::from_secs(2));
    assert_eq!(rate(&top), Some(250.0));
    // Another one, which counts from its own beginning.
    status.services[0].packets = 3;
    top.take_status(status, Duration::from_secs(4));
    assert_eq!(rate(&top), None);
}

#[test]
fn keys_command_the_chosen_backend() {
    let mut top = busy();
    assert_eq!(top.position(), Some(0));
    assert_eq!(press(&mut top, "d"), []);
    assert!(top.notice.as_ref().is_some_and(|notice| notice.bad && notice.text.contains("backends")));
    let set = |backend: &str, state| Command::SetAdmin {
        service: "mail".to_owned(),
        backend: backend.to_owned(),
        state,
    };
    assert_eq!(press(&mut top, "jd"), [set("mx1", AdminState::Draining)]);
    assert_eq!(press(&mut top, "jx"), [set("mx2", AdminState::Disabled)]);
    assert_eq!(press(&mut top, "ke"), [set("mx1", AdminState::Enabled)]);
    // The choice stays with the backend, wherever it goes.
    press(&mut top, "s");
    assert_eq!(press(&mut top, "d"), [set("mx1", AdminState::Draining)]);
    code(&mut top, KeyCode::End);
    assert_eq!(top.position(), Some(9));
    code(&mut top, KeyCode::PageUp);
    code(&mut top, KeyCode::Up);
    assert_eq!(top.position(), Some(0));
    assert_eq!(press(&mut top, "r"), [Command::Refresh]);
    assert_eq!(press(&mut top, "q"), [Command::Quit]);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut top, "/");
    assert_eq!(top.press(control_c), Some(Command::Quit));
}

#[test]
fn lines_are_sorted_and_filtered() {
    let mut top = busy();
    let leaving = "spool.example.com-198.51.100.21";
    let mail = ["[mail]", "mx1", "mx2", "mx3", "mx4", "spool1", leaving];
    let all = [&mail[..], &["[dns]", "198.51.100.21", "198.51.100.22"]].concat();
    assert_eq!(names(&top), all);
    press(&mut top, "s");
    assert_eq!(
        (top.sort, names(&top)[1..7].join(" ")),
        (Sort::Flows, format!("mx1 mx4 spool1 mx3 {leaving} mx2"))
    );
    press(&mut top, "s");
    assert_eq!(
        (top.sort, names(&top)[1..7].join(" ")),
        (Sort::Packets, format!("{leaving} spool1 mx4 mx3 mx2 mx1"))
    );
    press(&mut top, "s");
    assert_eq!(
        (top.sort, names(&top)[1..7].join(" ")),
        (Sort::Health, format!("mx2 mx4 mx1 mx3 spool1 {leaving}"))
    );
    press(&mut top, "s/MX3");
    assert_eq!(names(&top), ["[mail]", "mx3"]);
    // What was chosen is gone, and letters are no commands.
    assert_eq!(press(&mut top, "q"), []);
    assert_eq!(names(&top), [""; 0]);
    code(&mut top, KeyCode::Backspace);
    code(&mut top, KeyCode::Enter);
    assert_eq!((top.typing, names(&top).len(), top.position()), (false, 2, Some(0)));
    // A service brings all its backends.
    press(&mut top, "/");
    (0..3).for_each(|_| drop(code(&mut top, KeyCode::Backspace)));
    press(&mut top, "dn");
    assert_eq!(names(&top), all[7..]);
    assert_eq!(code(&mut top, KeyCode::Esc), None);
    assert_eq!(names(&top), all);
    assert_eq!(code(&mut top, KeyCode::Esc), Some(Command::Quit));
}

/// A program on a terminal of its own.
struct OnTerminal {
    child: Child,
    keys: File,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl OnTerminal {
    fn start(mut program: Process) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).expect("a terminal");
        let copy = || Stdio::from(slave.try_clone().expect("copied"));
        let child = program
            .env("TERM", "xterm")
            .stdin(copy())
            .stdout(copy())
            .stderr(copy())
            .spawn()
            .expect("it runs");
        drop((slave, program));
        let mut reader = File::from(master.try_clone().expect("copied"));
        let (to, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It ends with an error once the other side is closed.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if to.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys: File::from(master), output, seen: String::new() }
    }

    fn matapa(fake: &Fake) -> Self {
        let mut program = Process::new(env!("CARGO_BIN_EXE_matapa"));
        program.arg("--socket").arg(fake.socket()).args(["top", "--interval", "0.1"]);
        Self::start(program)
    }

    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let more =
                self.output.recv_timeout(left).unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&more));
        }
    }

    /// All that was printed, and how it ended.
    fn end(mut self) -> (String, ExitStatus) {
        let status = self.child.wait().expect("it ends");
        while let Ok(more) = self.output.recv_timeout(Duration::from_secs(5)) {
            self.seen.push_str(&String::from_utf8_lossy(&more));
        }
        (self.seen, status)
    }
}

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

#[test]
fn it_shows_obeys_and_gives_the_terminal_back() {
    let fake = Fake::start();
    let mut top = OnTerminal::matapa(&fake);
    top.wait_for("mx3");
    top.keys.write_all(b"jd").expect("pressed");
    top.wait_for("mail/mx1: draining");
    assert_eq!(*fake.changes.lock().expect("the changes"), ["mail/mx1 Draining"]);
    top.keys.write_all(b"q").expect("pressed");
    let (seen, status) = top.end();
    assert_eq!(status.code(), Some(0), "{seen:?}");
    assert!(seen.contains(ENTER) && seen.ends_with(&format!("{LEAVE}\u{1b}[?25h")), "{seen:?}");
}

#[test]
fn where_it_may_only_look_it_says_so() {
    let fake = Fake::start();
    let mut program = Process::new(env!("CARGO_BIN_EXE_matapa"));
    program.arg("--socket").arg(fake.read_only_socket()).arg("top");
    let mut top = OnTerminal::start(program);
    top.wait_for("mx3");
    top.keys.write_all(b"jx").expect("pressed");
    top.wait_for("only answers questions");
    top.keys.write_all(b"q").expect("pressed");
    assert_eq!(top.end().1.code(), Some(0));
    assert_eq!(*fake.changes.lock().expect("the changes"), [""; 0]);
}

#[test]
fn a_signal_ends_it_as_a_key_does() {
    let fake = Fake::start();
    let mut top = OnTerminal::matapa(&fake);
    top.wait_for("mx3");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(top.child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("sent");
    let (seen, status) = top.end();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{seen:?}");
    assert!(seen.contains(LEAVE), "{seen:?}");
}

#[test]
fn a_daemon_that_goes_away_is_told_of_and_found_again() {
    let mut fake = Fake::start();
    let mut top = OnTerminal::matapa(&fake);
    top.wait_for("mx3");
    fake.stop();
    top.wait_for("cannot reach the daemon");
    top.keys.write_all(b"q").expect("pressed");
    assert_eq!(top.end().1.code(), Some(0));
}

/// Set for the test below when it is run by itself, on a terminal.
const PANIC: &str = "MATAPA_TEST_PANICS_ON_THE_SCREEN";

#[test]
fn a_panic_gives_the_terminal_back_first() {
    if std::env::var_os(PANIC).is_some() {
        let _screen = Screen::enter().expect("a terminal");
        panic!("on purpose");
    }
    let mut program = Process::new(std::env::current_exe().expect("this program"));
    program.args(["--exact", "a_panic_gives_the_terminal_back_first", "--nocapture"]).env(PANIC, "1");
    let (seen, status) = OnTerminal::start(program).end();
    assert_ne!(status.code(), Some(0));
    let (leave, panic) = (seen.find(LEAVE), seen.find("on purpose"));
    assert!(leave.is_some() && leave < panic, "{seen:?}");
}

#[test]
fn without_a_terminal_it_says_so() {
    let fake = Fake::start();
    let output = Process::new(env!("CARGO_BIN_EXE_matapa"))
        .arg("--socket")
        .arg(fake.socket())
        .arg("top")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("needs a terminal") && text.contains("matapa show --watch"), "{text}");
    assert!(output.stdout.is_empty());
}
