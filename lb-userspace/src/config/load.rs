//! From a file, or its text, to a checked configuration.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::cross::{self, Parts};
use super::diagnostics::{Diagnostics, Errors, Span};
use super::document::{self, Known};
use super::known_keys::Place;
use super::{Config, carp, cluster, general, pools, resolver, services, syntax};

/// Bytes. A configuration is kilobytes; a device or a log given by mistake must not fill the memory.
const LARGEST_FILE: u64 = 4 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read at all.
    #[error("cannot read {}: {}", file.display(), reason(source))]
    Unreadable { file: PathBuf, source: io::Error },
    /// Larger than 4 MiB.
    #[error("{} is larger than 4 MiB, which no configuration is", file.display())]
    TooLarge { file: PathBuf },
    /// Not text; line and column (in bytes) from 1.
    #[error("{}:{line}:{column}: not UTF-8 text, which a configuration must be", file.display())]
    NotText { file: PathBuf, line: usize, column: usize },
    /// It was read, and what it says is wrong.
    #[error(transparent)]
    Invalid(#[from] Diagnostics),
}

impl ConfigError {
    /// One line for each error; those of the content are `file:line:column: text`.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Invalid(diagnostics) => diagnostics.lines(),
            _ => vec![self.to_string()],
        }
    }

    /// For a terminal, ending in a line break; see [`Diagnostics::render`].
    pub fn render(&self, color: bool) -> String {
        match self {
            Self::Invalid(diagnostics) => diagnostics.render(color),
            _ => format!("{self}\n"),
        }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file (another one is named with -c FILE)".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        io::ErrorKind::IsADirectory => "it is a directory (name the file in it)".to_owned(),
        _ => error.to_string(),
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// When the file cannot be read, is not text, or contains errors; then all of them.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { file: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(ConfigError::TooLarge { file: path.to_owned() });
    }
    let source = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::NotText { file: path.to_owned(), line, column: before.len() - line_start + 1 }
    })?;
    Ok(parse(&source, path)?)
}

/// Checks the text of a configuration; `file` is its name in messages.
///
/// # Errors
/// All errors of the text, with their positions.
pub fn parse(source: &str, file: &Path) -> Result<Config, Diagnostics> {
    let mut errors = Errors::default();
    let text = syntax::repair(&mut errors, source);
    let (document, found) = DeTable::parse_recoverable(&text);
    syntax::report(&mut errors, &text, &found);
    let parts = read(&mut errors, document.get_ref());
    // After a syntax error it is not known what the file says as a whole.
    if !errors.has_syntax_errors() {
        let config = cross::check(&mut errors, parts);
        if let Some(config) = config.filter(|_| errors.is_empty()) {
            return Ok(config);
        }
    }
    Err(errors.finish(source, file))
}

fn read(errors: &mut Errors, document: &DeTable<'_>) -> Parts {
    let known = Known::read(errors, Place::Top, document);
    let carp = carp::read(errors, known.get("carp"));
    let cluster = cluster::read(errors, known.get("cluster"));
    let interfaces = match known.get("interfaces") {
        Some(entry) => general::read_interfaces(errors, entry),
        None => {
            if known.lacks("interfaces") && !(known.get("carp").is_some() && known.lacks("services")) {
                general::no_interfaces(errors);
            }
            Vec::new()
        }
    };
    let xdp_mode =
        known.get("xdp_mode").map(|entry| general::read_xdp_mode(errors, entry)).unwrap_or_default();
    let forward_without_daemon = known
        .get("forward_without_daemon")
        .and_then(|entry| general::read_forward_without_daemon(errors, entry));
    let control = general::read_control(errors, known.get("control"));
    let flows = general::read_flows(errors, known.get("flows"));
    let tunnel = general::read_tunnel(errors, known.get("tunnel"));
    let resolver = resolver::read(errors, known.get("resolver"));
    let mut pools = Vec::new();
    if let Some(entry) = known.get("pools") {
        for (name, table) in document::named_tables(errors, entry, Place::Pool) {
            pools.push(pools::read(errors, name, table));
        }
    }
    let mut services = Vec::new();
    let tables = match known.get("services") {
        Some(entry) => {
            let tables = document::named_tables(errors, entry, Place::Service);
            if entry.value.get_ref().as_table().is_some_and(DeTable::is_empty) {
                general::no_services(errors, entry.key.span);
            }
            tables
        }
        None => {
            if known.lacks("services") && known.get("carp").is_none() {
                general::no_services(errors, Span::default());
            }
            Vec::new()
        }
    };
    for (name, table) in tables {
        let (service, own) = services::read(errors, name, table);
        services.push(service);
        pools.extend(own);
    }
    pools.sort_by_key(|pool| pool.name.span);
    // Without these sections under their right names, their members are not missed one by one.
    let sections_found = ["pools", "services"].iter().all(|key| known.get(key).is_some() || known.lacks(key));
    Parts {
        interfaces,
        xdp_mode,
        forward_without_daemon,
        control,
        flows,
        tunnel,
        resolver,
        pools,
        services,
        carp,
        cluster,
        sections_found,
    }
}
