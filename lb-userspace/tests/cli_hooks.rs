//! The commands that the daemon's parts provide.

use std::ffi::OsString;

use lb_userspace::cli::{self, ExitCode, Failure, Hooks};

fn call(arguments: &str) -> ExitCode {
    let hooks = Hooks {
        run: |arguments, _| match arguments.file.config.to_str() {
            Some("/etc/matapa/matapa.toml") => Ok(()),
            _ => Err(Failure::failed("another file")),
        },
        check: |path, _| match path.to_str() {
            Some("good.toml") => Ok(()),
            _ => Err(Failure::new(ExitCode::Configuration, "bad.toml:1:1: unknown key `lisen`")),
        },
        detach: || Err(Failure::failed("another daemon runs")),
    };
    cli::main(std::iter::once("matapa").chain(arguments.split_whitespace()).map(OsString::from), &hooks)
}

#[test]
fn each_hook_decides_the_exit_code() {
    assert_eq!(call("run"), ExitCode::Done);
    assert_eq!(call("run -c elsewhere.toml"), ExitCode::Failed);
    assert_eq!(call("check --config good.toml"), ExitCode::Done);
    assert_eq!(call("check --config bad.toml"), ExitCode::Configuration);
    assert_eq!(call("detach"), ExitCode::Failed);
    assert_eq!(call("detach -c good.toml"), ExitCode::Usage);
    assert_eq!(call("check --confog bad.toml"), ExitCode::Usage);
}
