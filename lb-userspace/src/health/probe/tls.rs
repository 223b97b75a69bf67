//! TLS over a connection: the handshake, what is thought of the certificate, and the check that does no more.
//!
//! Sessions are not resumed: a resumed one shows no certificate, and an expired one would go unnoticed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Examined, Path, step, tcp, trust};
use crate::config::Tls;
use crate::health::error::excerpt;
use crate::health::{CheckError, Stage};

/// A connection on which TLS is spoken.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) stream: TlsStream<TcpStream>,
    /// When the first of the certificates ends that the server sent.
    pub(super) certificate_expires: Option<SystemTime>,
}

/// Shakes hands, and leaves again.
pub(super) async fn examine(path: Path, tls: &Tls) -> Examined {
    match connect(path, tls, None).await {
        Ok(Secured { stream, certificate_expires }) => {
            Examined::verdict(Ok(())).with_certificate(certificate_expires).with_farewell(tcp::leave(stream))
        }
        Err(error) => error.into(),
    }
}

/// Opens a connection and shakes hands on it. `host` is the name to ask for where `tls` has none.
///
/// # Errors
/// As [`tcp::connect`] and [`secure`].
pub(super) async fn connect(path: Path, tls: &Tls, host: Option<&str>) -> Result<Secured, CheckError> {
    let stream = tcp::connect(path).await?;
    secure(stream, path, tls, host).await
}

/// Shakes hands on a connection.
///
/// # Errors
/// When the handshake fails, the certificate is not good, or the deadline passes.
pub(super) async fn secure(
    stream: TcpStream,
    path: Path,
    tls: &Tls,
    host: Option<&str>,
) -> Result<Secured, CheckError> {
    let config = trust::config(tls).await?;
    let named = tls.server_name.as_deref().or(host);
    let name = named.and_then(|name| ServerName::try_from(without_port(name).to_owned()).ok());
    let name = name.unwrap_or_else(|| ServerName::from(path.address.ip()));
    let handshake = TlsConnector::from(config).connect(name, stream);
    let stream = step(Stage::Handshake, path.deadline, handshake).await?;
    let certificate_expires = stream.get_ref().1.peer_certificates().and_then(earliest_end);
    Ok(Secured { stream, certificate_expires })
}

/// The name in a Host field: without port and brackets.
fn without_port(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn earliest_end(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let end = |certificate: &CertificateDer<'_>| {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    chain.iter().filter_map(end).min()
}

/// What a failed handshake means.
pub(crate) fn handshake_error(error: &rustls::Error) -> CheckError {
    match error {
        rustls::Error::AlertReceived(alert) => CheckError::TlsAlert(words(alert)),
        rustls::Error::InvalidMessage(_)
        | rustls::Error::InappropriateMessage { .. }
        | rustls::Error::PeerSentOversizedRecord => CheckError::NotTls,
        rustls::Error::PeerIncompatible(reason) => CheckError::TlsDisagreement(words(reason)),
        rustls::Error::PeerMisbehaved(reason) => CheckError::TlsDisagreement(words(reason)),
        rustls::Error::NoCertificatesPresented => CheckError::CertificateInvalid("none was sent".to_owned()),
        rustls::Error::InvalidCertificate(reason) => certificate_error(reason),
        other => CheckError::TlsDisagreement(excerpt(other.to_string().as_bytes())),
    }
}

fn certificate_error(reason: &CertificateError) -> CheckError {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CheckError::CertificateExpired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            CheckError::CertificateNotYetValid
        }
        CertificateError::NotValidForNameContext { expected, .. } => {
            CheckError::CertificateName(expected.to_str().into_owned())
        }
        CertificateError::NotValidForName => CheckError::CertificateName("this name".to_owned()),
        CertificateError::UnknownIssuer => CheckError::CertificateIssuer,
        CertificateError::Other(other) => {
            CheckError::CertificateInvalid(excerpt(other.to_string().as_bytes()))
        }
        other => CheckError::CertificateInvalid(words(other)),
    }
}

/// The name of a variant as words: `HandshakeFailure` is `handshake failure`.
fn words(variant: &impl std::fmt::Debug) -> String {
    let name = format!("{variant:?}");
    let name = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let mut words = String::new();
    let mut before_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && before_lower {
            words.push(' ');
        }
        before_lower = !c.is_ascii_uppercase();
        words.push(c.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variants_become_words() {
        assert_eq!(words(&rustls::AlertDescription::HandshakeFailure), "handshake failure");
        assert_eq!(words(&rustls::AlertDescription::ProtocolVersion), "protocol version");
        assert_eq!(words(&CertificateError::BadSignature), "bad signature");
    }

    #[test]
    fn ports_are_no_part_of_a_name() {
        for (host, name) in [
            ("www.example.com", "www.example.com"),
            ("www.example.com:8443", "www.example.com"),
            ("[2001:db8::1]:8443", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("192.0.2.1:443", "192.0.2.1"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }
}
