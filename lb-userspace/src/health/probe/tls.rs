//! TLS over a connection: the handshake, what is thought of the certificate, and the check that does no more.
//!
//! Sessions are not resumed: a resumed one shows no certificate, and an expired one would go unnoticed.

use std::collections::HashMap;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Examined, Path, step, tcp};
use crate::config::Tls;
use crate::health::error::excerpt;
use crate::health::{CheckError, Stage};

/// How long the system's authorities are used before they are read anew.
const SYSTEM_FRESH: Duration = Duration::from_secs(3600);
/// More is no list of certificates.
const LARGEST_CA_FILE: u64 = 16 << 20;

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
    let config = config_for(tls).await?;
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

/// Which certificates are taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    Any,
    System,
    File(PathBuf),
}

#[derive(Clone, Debug)]
struct Cached {
    config: Arc<ClientConfig>,
    read: Instant,
    /// Of a file, when it was changed last, and its length.
    version: Option<(SystemTime, u64)>,
}

static CONFIGS: LazyLock<Mutex<HashMap<Trust, Cached>>> = LazyLock::new(Mutex::default);

/// Authorities are read once and kept until their file changes.
async fn config_for(tls: &Tls) -> Result<Arc<ClientConfig>, CheckError> {
    let trust = match &tls.ca_file {
        _ if !tls.verify => Trust::Any,
        Some(file) => Trust::File(file.clone()),
        None => Trust::System,
    };
    if let Some(config) = cached(&trust) {
        return Ok(config);
    }
    // Reading and parsing takes milliseconds, which other checks should not wait for.
    let loaded = tokio::task::spawn_blocking(move || load(&trust)).await;
    loaded
        .unwrap_or_else(|_| Err(io::Error::other("reading broke off")))
        .map_err(|error| CheckError::Authorities(error.to_string()))
}

fn cached(trust: &Trust) -> Option<Arc<ClientConfig>> {
    let known = CONFIGS.lock().unwrap_or_else(PoisonError::into_inner).get(trust).cloned()?;
    let fresh = match trust {
        Trust::Any => true,
        Trust::System => known.read.elapsed() < SYSTEM_FRESH,
        Trust::File(file) => version(file).is_some_and(|now| known.version == Some(now)),
    };
    fresh.then_some(known.config)
}

fn version(file: &FilePath) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn load(trust: &Trust) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    // Looked at before the file is read: a change in between is then noticed next time.
    let version = if let Trust::File(file) = trust { version(file) } else { None };
    let mut config = match trust {
        Trust::Any => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth(),
        Trust::System => builder.with_root_certificates(system_roots()?).with_no_client_auth(),
        Trust::File(file) => builder.with_root_certificates(file_roots(file)?).with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    let config = Arc::new(config);
    let cached = Cached { config: Arc::clone(&config), read: Instant::now(), version };
    CONFIGS.lock().unwrap_or_else(PoisonError::into_inner).insert(trust.clone(), cached);
    Ok(config)
}

fn system_roots() -> io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems have certificates that no longer pass; those that do are enough.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(|| "none was found".to_owned(), ToString::to_string);
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the system's: {why}")));
    }
    Ok(roots)
}

fn file_roots(file: &FilePath) -> io::Result<RootCertStore> {
    let about = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    let invalid = |why: String| about(io::Error::new(io::ErrorKind::InvalidData, why));
    let length = std::fs::metadata(file).map_err(about)?.len();
    if length > LARGEST_CA_FILE {
        return Err(invalid(format!("{length} bytes are too many")));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&std::fs::read(file).map_err(about)?) {
        let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
        roots.add(certificate).map_err(|error| invalid(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(invalid("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

/// Takes every certificate whose key the server has.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
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
