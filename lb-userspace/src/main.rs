//! `matapa`: see [`lb_userspace::cli`].

use lb_userspace::cli::{self, Failure, Hooks};

fn main() -> std::process::ExitCode {
    let hooks = Hooks {
        run: |_| Err(Failure::failed("`matapa run` is not part of this build")),
        check: |_, _| Err(Failure::failed("`matapa check` is not part of this build")),
        detach: |_| Err(Failure::failed("`matapa detach` is not part of this build")),
    };
    cli::main(std::env::args_os(), &hooks).into()
}
