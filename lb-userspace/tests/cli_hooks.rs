//! The commands that the daemon's parts provide.

use std::ffi::OsString;
use std::path::Path;

use lb_userspace::cli::{self, ExitCode, Failure, Hooks};

fn call(arguments: &str) -> ExitCode {
    let hooks = Hooks {
        run: |arguments, socket| match (arguments.file.config.to_str(), arguments.trace_packets, socket) {
            (Some("/etc/matapa/matapa.toml"), false, None) => Ok(()),
            (Some("traced.toml"), true, Some(socket)) if socket == Path::new("/tmp/socket") => Ok(()),
            _ => Err(Failure::failed("another file")),
        },
        check: |arguments, _| match (arguments.file.config.to_str(), arguments.resolve) {
            (Some("good.toml"), false) | (Some("names.toml"), true) => Ok(()),
            _ => Err(Failure::new(ExitCode::Configuration, "bad.toml:1:1: unknown key `lisen`")),
        },
        detach: || Err(Failure::failed("not attached")),
    };
    cli::main(std::iter::once("matapa").chain(arguments.split_whitespace()).map(OsString::from), &hooks)
}

#[test]
fn each_hook_decides_the_exit_code() {
    assert_eq!(call("run"), ExitCode::Done);
    assert_eq!(call("run -c elsewhere.toml"), ExitCode::Failed);
    assert_eq!(call("check --config good.toml"), ExitCode::Done);
    assert_eq!(call("check --resolve --config names.toml"), ExitCode::Done);
    assert_eq!(call("check --config bad.toml"), ExitCode::Configuration);
    assert_eq!(call("detach"), ExitCode::Failed);
    assert_eq!(call("check --confog bad.toml"), ExitCode::Usage);
}

#[test]
fn the_daemon_is_given_its_options_and_its_socket() {
    assert_eq!(call("run -c traced.toml --trace-packets --socket /tmp/socket"), ExitCode::Done);
    assert_eq!(call("--socket /tmp/socket run --trace-packets -c traced.toml"), ExitCode::Done);
    assert_eq!(call("run -c traced.toml --trace-packets --socket /tmp/other"), ExitCode::Failed);
    // There is nothing to configure about taking everything down.
    assert_eq!(call("detach -c good.toml"), ExitCode::Usage);
}
