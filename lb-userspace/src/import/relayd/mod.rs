//! A relayd.conf(5) as Matapa's configuration: tables become pools, redirects become services, and what has no equal
//! is named with its line and with what to use instead.
//!
//! Reading is pure: [`import`] is given the text, and [`Surroundings`] for what else it needs. `lexer` cuts words,
//! `parser` reads the grammar, `emit` writes tables, and `toml` takes back what Matapa's own loader refuses.

mod checks;
mod emit;
mod lexer;
mod names;
mod parser;
mod source;
mod syntax;
#[cfg(test)]
mod tests;
mod toml;

use std::collections::HashSet;
use std::net::IpAddr;

use self::lexer::Lexer;
use self::syntax::Note;
use crate::config::Diagnostics;

/// What a file needs besides its own text.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The text of an included file, or why it cannot be read.
    pub read: &'a dyn Fn(&str) -> Result<String, String>,
    /// The port of a service's name.
    pub port: &'a dyn Fn(&str) -> Option<u16>,
    /// The addresses of a host's name, or of an interface's; none if there is no such name.
    pub addresses: &'a dyn Fn(&str) -> Vec<IpAddr>,
}

impl std::fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Surroundings")
    }
}

/// What the caller decides.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Macros that the file cannot change, as relayd's `-D`.
    pub macros: Vec<(String, String)>,
    /// Interfaces of the new configuration. Those that the file names if empty.
    pub interfaces: Vec<String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Imported {
    /// A TOML document that the loader takes, if [`Self::usable`].
    pub text: String,
    /// `FILE:LINE: TEXT` for each thing that is left out or different, in the order of the file.
    pub notes: Vec<String>,
    /// There is a service in it.
    pub usable: bool,
}

/// The port of a service as services(5) says in this text, or one that is known anyway.
pub fn service_port(services: &str, name: &str) -> Option<u16> {
    names::port(services, name)
}

/// Reads the text of `file` and writes it anew.
///
/// # Errors
/// All errors of the text, one list for each file that has some.
pub fn import(
    file: &str,
    text: &str,
    options: &Options,
    surroundings: &Surroundings<'_>,
) -> Result<Imported, Vec<Diagnostics>> {
    let lexer = Lexer::new(file, text.to_owned(), &options.macros);
    let (document, lexer) = parser::parse(lexer, surroundings);
    let sources = lexer.sources;
    if sources.has_errors() {
        return Err(sources.into_errors());
    }
    let mut left_out = document.left_out.clone();
    left_out.extend(unused(&document));
    left_out.sort_by_key(|note| note.place);
    let locate = |note: &Note| sources.line(note.place);

    let mut written = toml::Document {
        title: title(file, &left_out, &locate),
        head: head(options, &emit::interfaces(&document)),
        blocks: emit::blocks(&document, surroundings),
    };
    let (text, usable) = written.finish(&locate, &interfaces_line(&["eth0".to_owned()]));
    let mut notes: Vec<&Note> = written.notes().chain(&left_out).collect();
    notes.sort_by_key(|note| note.place);
    let mut seen = HashSet::new();
    let notes = notes.into_iter().map(|note| format!("{}: {}", locate(note), note.text));
    let notes = notes.filter(|note| seen.insert(note.clone())).collect();
    Ok(Imported { text, notes, usable })
}

/// Tables that no redirect uses: relays or routers may.
fn unused(document: &syntax::Document) -> Vec<Note> {
    let targets = || document.redirects.iter().flat_map(|redirect| &redirect.targets);
    let unused =
        document.tables.iter().enumerate().filter(|(index, _)| !targets().any(|to| to.table == *index));
    unused
        .map(|(_, table)| Note {
            place: table.name.place,
            text: format!("table <{}>: no redirect uses it", table.name.value),
        })
        .collect()
}

fn title(file: &str, left_out: &[Note], locate: toml::Locate<'_>) -> Vec<String> {
    let mut title = vec![
        format!("Made of {file} by `matapa import relayd`. `matapa check -c FILE` says what it does."),
        "Comments name the lines that they come from.".to_owned(),
    ];
    if !left_out.is_empty() {
        title.push(String::new());
        title.push("Not taken over:".to_owned());
        title.extend(left_out.iter().map(|note| format!("  {}: {}", locate(note), note.text)));
    }
    title
}

fn head(options: &Options, found: &[String]) -> Vec<String> {
    let why =
        "# Every interface that clients' packets or servers' answers come in on; relayd.conf does not say.";
    if !options.interfaces.is_empty() {
        return vec![interfaces_line(&options.interfaces)];
    }
    if found.is_empty() {
        return vec![why.to_owned(), interfaces_line(&["eth0".to_owned()])];
    }
    vec![why.to_owned(), "# These are the ones that it names.".to_owned(), interfaces_line(found)]
}

fn interfaces_line(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| toml::quoted(name)).collect();
    format!("interfaces = [{}]", names.join(", "))
}
