//! Who gets the control socket.

mod api_fake;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use api_fake::{Fake, raw};
use lb_userspace::api::socket::{claim, claim_for};

#[test]
fn the_directory_and_the_socket_are_made_for_the_group() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("run/matapa/control.sock");
    let socket = claim(&path).expect("the socket");
    let mode = |path: &std::path::Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o660);
    assert_eq!(mode(path.parent().expect("a directory")), 0o755);
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn a_socket_goes_to_its_group() {
    use std::os::unix::fs::MetadataExt as _;

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("read-only.sock");
    let own = nix::unistd::getgid().as_raw();
    // Anybody may give a file to a group of his own; root to any.
    let wanted = if nix::unistd::geteuid().is_root() { 4711 } else { own };
    let socket = claim_for("control.read_only_socket", &path, Some(&wanted.to_string())).expect("the socket");
    let metadata = fs::metadata(&path).expect("it exists");
    assert_eq!((metadata.gid(), metadata.permissions().mode() & 0o777), (wanted, 0o660));
    drop(socket);
    let error = claim_for("control.read_only_socket", &path, Some("no-such-group")).expect_err("no group");
    let text = error.to_string();
    assert!(text.contains("no group no-such-group for control.read_only_socket; `getent group`"), "{text}");
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_taken_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.sock");
    drop(UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "closing a socket leaves its file");
    let _socket = claim(&path).expect("the stale socket is replaced");
}

#[test]
fn a_living_daemon_keeps_its_socket() {
    let fake = Fake::start();
    let error = claim(&fake.socket()).expect_err("it is taken").to_string();
    let wanted =
        format!("another matapa daemon (pid {}) owns {}", std::process::id(), fake.socket().display());
    assert!(error.starts_with(&wanted) && error.contains("control.socket"), "{error}");
    assert_eq!(raw(&fake.socket(), "GET /healthz").0, 200);
}

#[test]
fn only_one_of_many_at_once_wins() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.sock");
    drop(UnixListener::bind(&path).expect("bound"));
    let claims: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| claim(&path))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1);
}

#[test]
fn a_successors_socket_is_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.sock");
    let socket = claim(&path).expect("the socket");
    fs::remove_file(&path).expect("removed");
    let _successor = UnixListener::bind(&path).expect("bound");
    drop(socket);
    assert!(path.exists());
}

#[test]
fn other_files_are_never_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.sock");
    fs::write(&path, "precious").expect("written");
    let error = claim(&path).expect_err("it is a file").to_string();
    assert!(error.contains("is not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn a_path_too_long_for_a_socket_is_refused() {
    let error = claim(&std::path::Path::new("/tmp").join("x".repeat(120))).expect_err("too long").to_string();
    assert!(error.contains("107"), "{error}");
}
