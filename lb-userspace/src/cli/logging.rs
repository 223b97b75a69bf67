//! Where `log` goes: standard error, in the journal's own form under systemd.

use std::io::Write as _;

use log::{Level, LevelFilter};

/// What is logged: warnings for a command, also what it does for a daemon; each `-v` says more.
#[must_use]
pub const fn level(daemon: bool, verbose: u8) -> LevelFilter {
    match (daemon, verbose) {
        (false, 0) => LevelFilter::Warn,
        (true, 0) | (false, 1) => LevelFilter::Info,
        (true, 1) | (false, 2) => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

/// Starts logging. `MATAPA_LOG` overrides the level, in env_logger's syntax.
pub fn start(level: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    // It tells every byte it reads.
    builder.filter_level(level).filter_module("netlink_proto", LevelFilter::Warn).parse_env("MATAPA_LOG");
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal knows the time; it takes the priority from the line.
        builder.format(|buffer, record| {
            let priority = match record.level() {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            writeln!(buffer, "<{priority}>{}", record.args())
        });
    } else {
        builder.format_target(false);
    }
    // A logger that is already there (a test's) stays.
    let _ = builder.try_init();
}
