//! The icmp check. Raw sockets need a right that not everybody who runs tests has.

use super::*;

fn ping(address: &str, limit: Duration) -> Target {
    target(Probe::Icmp, SocketAddr::new(address.parse().unwrap(), 0), limit)
}

/// Whether raw sockets can be opened; else the check says so, and that it is nobody's fault.
async fn allowed() -> bool {
    match probe(&ping("127.0.0.1", PATIENT)).await {
        Ok(()) => true,
        Err(error) => {
            let denied = CheckError::Local { stage: Connect, errno: libc::EPERM };
            assert_eq!(error, denied);
            false
        }
    }
}

#[tokio::test]
async fn this_machine_answers() {
    if allowed().await {
        for address in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(probe(&ping(address, PATIENT)).await, Ok(()), "{address}");
        }
    }
}

#[tokio::test]
async fn many_at_a_time_do_not_take_each_others_answers() {
    if !allowed().await {
        return;
    }
    let checks = (0..200).map(|number| async move {
        let address = format!("127.0.1.{}", number % 50 + 1);
        probe(&ping(&address, PATIENT)).await
    });
    for result in futures_util::future::join_all(checks).await {
        assert_eq!(result, Ok(()));
    }
}

#[tokio::test]
async fn sources() {
    if !allowed().await {
        return;
    }
    let mut from = ping("127.0.0.1", PATIENT);
    from.check.source4 = Some("127.0.0.7".parse().unwrap());
    assert_eq!(probe(&from).await, Ok(()));
    from.check.source4 = Some("192.0.2.1".parse().unwrap());
    let error = CheckError::Local { stage: Connect, errno: libc::EADDRNOTAVAIL };
    assert_eq!(probe(&from).await, Err(error));
}
