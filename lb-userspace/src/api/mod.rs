//! HTTP/JSON over a Unix socket: what the command line, and `curl --unix-socket`, talk to.

pub mod types;
