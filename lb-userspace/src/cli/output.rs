//! Standard output and standard error: colours only where they are seen, and no panic on a closed pipe.

use std::io::{self, Write as _};

use anstream::ColorChoice;
use anstyle::{AnsiColor, Style};

use crate::cli::args::Color;
use crate::cli::exit::Failure;

/// What `--color` says, for everything printed from now on.
pub fn set_color(color: Color) {
    match color {
        Color::Auto => ColorChoice::Auto,
        Color::Always => ColorChoice::Always,
        Color::Never => ColorChoice::Never,
    }
    .write_global();
}

/// Whether standard error shows colours.
pub fn errors_in_color() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != ColorChoice::Never
}

/// Prints to standard output, at once.
///
/// # Errors
/// When it cannot be written; see [`Failure::output`].
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
}

/// The one place where errors are printed.
pub fn complain(message: &str) {
    if message.is_empty() {
        return;
    }
    let prefix = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    // With standard error closed there is nobody left to tell.
    let _ = writeln!(anstream::stderr().lock(), "{prefix}matapa:{prefix:#} {}", message.trim_end());
}

/// A remark on standard error.
pub fn note(message: &str) {
    // With standard error closed there is nobody left to tell.
    let _ = writeln!(anstream::stderr().lock(), "{message}");
}
