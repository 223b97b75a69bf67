//! The client against daemons that do not behave.

mod api_fake;

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use api_fake::Fake;
use lb_userspace::api::client::{Client, ClientError};
use lb_userspace::api::types::AdminState;
use lb_userspace::api::{server, socket};
use lb_userspace::control::request::ControlHandle;
use tokio::sync::{broadcast, mpsc, oneshot};

#[tokio::test]
async fn names_of_any_kind_travel_well() {
    let fake = Fake::start();
    let client = Client::new(fake.socket());
    let name = "a/b c?d&é\u{1b}%41";
    let error = client.set_admin(name, None, AdminState::Enabled).await.expect_err("no such backend");
    assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    let error = client.flows(5, Some(name)).await.expect_err("no such service");
    assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
}

#[tokio::test]
async fn what_is_no_daemon_is_called_so() {
    let directory = tempfile::tempdir().expect("a directory");
    for (number, answer) in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops",
    ]
    .into_iter()
    .enumerate()
    {
        let path = directory.path().join(number.to_string());
        let listener = UnixListener::bind(&path).expect("bound");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            // Closing with the request unread would reset the connection, and the answer with it.
            let mut request = [0; 1024];
            let _ = std::io::Read::read(&mut stream, &mut request).expect("a request");
            stream.write_all(answer.as_bytes()).expect("written");
        });
        let error = Client::new(&path).status().await.expect_err("no daemon");
        assert!(matches!(error, ClientError::Foreign { .. }), "{answer}: {error:?}");
        thread.join().expect("no panic");
    }
}

#[tokio::test]
async fn questions_go_to_the_read_only_socket_where_only_that_is_permitted() {
    let fake = Fake::start();
    let client = Client::new(fake.socket()).or_read_only(fake.read_only_socket());
    // Permitted, so commands work.
    client.poll().await.expect("done");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(fake.socket(), closed).expect("permitted");
    // Root would not be refused. Only this thread gives that up, and the test runs on it alone.
    caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_DAC_OVERRIDE).expect("dropped");
    assert_eq!(client.status().await.expect("an answer").pid, 4711);
    let error = client.poll().await.expect_err("refused");
    assert!(matches!(&error, ClientError::Refused { status, .. } if status.as_u16() == 403), "{error:?}");
    assert!(error.to_string().contains("only answers questions"), "{error}");
    assert_eq!(*fake.changes.lock().expect("the changes"), ["poll"]);
    // Where there is no such socket, the one that should be permitted is named.
    let error = Client::new(fake.socket()).or_read_only("/nonexistent").status().await.expect_err("refused");
    assert!(error.to_string().contains("join the group that owns the socket"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_hangs_up_is_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let thread = std::thread::spawn(move || drop(listener.accept().expect("a client")));
    let error = Client::new(&path).status().await.expect_err("no answer");
    assert!(matches!(error, ClientError::Lost { .. }), "{error:?}");
    thread.join().expect("no panic");
}

#[tokio::test]
async fn a_control_task_that_ended_is_a_clean_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.sock");
    let (requests, inbox) = mpsc::channel(1);
    drop(inbox);
    let handle = ControlHandle::new(requests, broadcast::channel(1).0);
    tokio::spawn(server::serve(socket::claim(&path).expect("the socket"), handle, std::future::pending()));
    let error = Client::new(&path).status().await.expect_err("nobody is there");
    assert_eq!(error.to_string(), "the daemon is shutting down");
}

#[tokio::test(start_paused = true)]
async fn a_stuck_control_task_holds_up_neither_clients_nor_the_shutdown() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("control.sock");
    let (requests, _never_read) = mpsc::channel(8);
    let handle = ControlHandle::new(requests, broadcast::channel(1).0);
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(server::serve(socket::claim(&path).expect("the socket"), handle, async {
        let _ = stopped.await;
    }));
    let client = Client::new(&path);
    let error = client.status().await.expect_err("nobody answers");
    assert!(matches!(error, ClientError::Silent { seconds: 10, .. }), "{error:?}");
    let waiting = tokio::spawn(async move { client.status().await.map(drop) });
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(stop);
    tokio::time::timeout(Duration::from_secs(3), served)
        .await
        .expect("in time")
        .expect("no panic")
        .expect("served");
    waiting.abort();
    assert!(!path.exists());
}
