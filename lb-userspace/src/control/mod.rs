//! The running state and the one task that owns it.

pub mod request;
