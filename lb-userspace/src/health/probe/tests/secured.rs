//! The tls check against good, bad, slow and lying servers.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::certificates::{Authority, END, Fault};
use super::*;
use crate::config::Tls;

/// Checks a server with a certificate of this kind; whether it got an orderly end is the server's answer.
async fn against(
    authority: &Authority,
    fault: Fault,
    tls: Tls,
) -> (Result<(), CheckError>, Option<SystemTime>, bool) {
    let acceptor = authority.acceptor(fault);
    let (address, server) = serve_on("127.0.0.1:0", move |peer| async move {
        let Ok(mut stream) = acceptor.accept(peer.0).await else { return false };
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.is_ok() && rest.is_empty()
    })
    .await;
    let examined = examine(&target(Probe::Tls(Arc::new(tls)), address, PATIENT)).await;
    if let Some(farewell) = examined.farewell {
        farewell.finish().await;
    }
    (examined.result, examined.certificate_expires, timeout(PATIENT, server).await.unwrap().unwrap())
}

#[tokio::test]
async fn a_good_certificate() {
    let authority = Authority::new();
    let (result, expires, orderly) = against(&authority, Fault::None, authority.trusted()).await;
    assert_eq!((result, orderly), (Ok(()), true));
    assert_eq!(expires, Some(UNIX_EPOCH + Duration::from_secs(END)));
    // Without a name, the server's address must be in it.
    let (result, ..) =
        against(&authority, Fault::None, Tls { server_name: None, ..authority.trusted() }).await;
    assert_eq!(result, Ok(()));
}

#[tokio::test]
async fn bad_certificates() {
    let authority = Authority::new();
    for (fault, error) in [
        (Fault::Expired, CheckError::CertificateExpired),
        (Fault::NotYetValid, CheckError::CertificateNotYetValid),
        (Fault::OtherName, CheckError::CertificateName("server.example".to_owned())),
        (Fault::SelfSigned, CheckError::CertificateIssuer),
    ] {
        let (result, ..) = against(&authority, fault, authority.trusted()).await;
        assert_eq!(result, Err(error), "{fault:?}");
        let any = Tls { verify: false, ca_file: None, ..authority.trusted() };
        let (result, expires, _) = against(&authority, fault, any).await;
        assert_eq!(result, Ok(()), "{fault:?}");
        assert!(expires.is_some(), "its end is seen all the same");
    }
    // Another authority's, and the system's.
    let (result, ..) = against(&authority, Fault::None, Authority::new().trusted()).await;
    assert_eq!(result, Err(CheckError::CertificateIssuer));
}

#[tokio::test]
async fn an_authority_that_is_replaced_is_noticed() {
    let authority = Authority::new();
    let other = Authority::new();
    assert_eq!(against(&authority, Fault::None, authority.trusted()).await.0, Ok(()));
    std::fs::write(authority.file(), std::fs::read_to_string(other.file()).unwrap() + "\n").unwrap();
    let (result, ..) = against(&authority, Fault::None, authority.trusted()).await;
    assert_eq!(result, Err(CheckError::CertificateIssuer));
    std::fs::remove_file(authority.file()).unwrap();
    let (result, ..) = against(&authority, Fault::None, authority.trusted()).await;
    let text = format!("{}: No such file or directory (os error 2)", authority.file().display());
    assert_eq!(result, Err(CheckError::Authorities(text)));
    std::fs::write(authority.file(), "no certificate").unwrap();
    let (result, ..) = against(&authority, Fault::None, authority.trusted()).await;
    assert!(result.unwrap_err().is_inconclusive(), "the gateway's fault is not the server's");
}

#[tokio::test]
async fn servers_that_do_not_speak_tls() {
    let check = || Probe::Tls(Arc::new(Tls::default()));
    for (bytes, error) in [
        (&b"220 mx.example ESMTP\r\n"[..], CheckError::NotTls),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", CheckError::NotTls),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07", CheckError::NotTls),
        // An alert: handshake failure (RFC 8446 section 6.2).
        (b"\x15\x03\x03\x00\x02\x02\x28", CheckError::TlsAlert("handshake failure".to_owned())),
    ] {
        let (address, server) = serve_on("127.0.0.1:0", move |mut peer| async move {
            peer.say(bytes).await;
            peer.wait().await;
        })
        .await;
        assert_eq!(probe(&target(check(), address, PATIENT)).await, Err(error));
        server.await.unwrap();
    }
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move { peer.wait().await }).await;
    assert_eq!(probe(&target(check(), address, HASTY)).await, Err(Timeout(Stage::Handshake)));
    let (address, _server) = serve_on("127.0.0.1:0", |_peer| async {}).await;
    assert_eq!(probe(&target(check(), address, PATIENT)).await, Err(Closed(Stage::Handshake)));
}

#[tokio::test]
async fn endless_and_slow_handshakes() {
    let check = || Probe::Tls(Arc::new(Tls::default()));
    // Records of a handshake message that claims 16 MiB.
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move {
        let mut record = b"\x16\x03\x03\x10\x00\x0b\xff\xff\xff".to_vec();
        record.resize(5 + 4096, 0);
        while peer.0.write_all(&record).await.is_ok() {}
    })
    .await;
    let error = probe(&target(check(), address, PATIENT)).await.unwrap_err();
    assert!(matches!(error, CheckError::NotTls | CheckError::TlsDisagreement(_)), "{error:?}");
    let (address, _server) = serve_on("127.0.0.1:0", |mut peer| async move {
        for byte in b"\x16\x03\x03\x40\x00".iter().chain(std::iter::repeat(&0)) {
            if peer.0.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(HASTY / 10).await;
        }
    })
    .await;
    assert_eq!(probe(&target(check(), address, HASTY)).await, Err(Timeout(Stage::Handshake)));
}
