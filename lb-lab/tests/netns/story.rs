//! What `cargo xtask run` shows.

use lb_lab::story::{Options, run};

use crate::support::{binary, root};

#[test]
#[ignore = "needs root and network namespaces: cargo xtask test"]
fn the_demonstration_holds_its_promises() {
    let outcome = run(&Options { binary: binary(), keep: false, json: None, root: root() }).unwrap();
    let broken: Vec<_> = outcome.promises.iter().filter(|one| !one.held).collect();
    assert!(outcome.held(), "{broken:#?}");
}
