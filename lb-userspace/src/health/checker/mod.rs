//! Checks in a process of their own.
//!
//! What servers send is taken apart by a process that can do little, should one of them find a way to trick it: of all
//! capabilities it has the one for raw sockets, it can open no file, and signal nobody ([`sandbox`]). It is this program
//! once more, as `matapa _checker`, and speaks with the daemon over a pair of sockets (`wire`).
//!
//! The daemon's side (`supervisor`) reads for it what it may not read, and starts it again should it end. Programs of
//! `exec` checks are not its children but the daemon's, as becoming another user takes capabilities.

mod authorities;
pub mod sandbox;
mod serve;
mod supervisor;
mod wire;

/// What this program is started with to check servers, followed by the level of its log.
pub const WORD: &str = "_checker";

pub use serve::serve;
pub use supervisor::spawn;
