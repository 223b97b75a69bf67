//! The daemon's life: start, signals, stop, and `matapa detach`.

pub(crate) mod host;
mod privileges;
mod run;
pub(crate) mod systemd;

pub use run::{Options, detach, run};
