//! Whose certificates are taken.
//!
//! Authorities are read from files by whoever may open them. Where checks run in a process that may not, the daemon reads
//! for it and [tells](tell) what it has read.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};

use crate::config::Tls;
use crate::health::CheckError;

/// How long the system's authorities are used before they are read anew.
const SYSTEM_FRESH: Duration = Duration::from_secs(3600);
/// More, in bytes, is no list of certificates.
const LARGEST_CA_FILE: u64 = 16 << 20;

/// Which certificates are taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::health) enum Trust {
    Any,
    /// Those of the system's authorities.
    System,
    /// Those of the authorities in a PEM file.
    File(PathBuf),
}

impl Trust {
    pub(in crate::health) fn of(tls: &Tls) -> Self {
        match &tls.ca_file {
            _ if !tls.verify => Self::Any,
            Some(file) => Self::File(file.clone()),
            None => Self::System,
        }
    }
}

/// Certificates of authorities in DER, or why there are none.
pub(in crate::health) type Authorities = Result<Vec<Vec<u8>>, String>;

/// When authorities were read, and what tells whether there are others now.
#[derive(Clone, Copy, Debug)]
pub(in crate::health) struct Reading {
    at: Instant,
    /// Of a file, when it was changed last, and its length.
    version: Option<(SystemTime, u64)>,
}

impl Reading {
    /// To be begun before the file is read: a change in between is then noticed next time.
    pub(in crate::health) fn begin(trust: &Trust) -> Self {
        Self { at: Instant::now(), version: version(trust) }
    }

    pub(in crate::health) fn is_fresh(&self, trust: &Trust) -> bool {
        match trust {
            Trust::Any => true,
            Trust::System => self.at.elapsed() < SYSTEM_FRESH,
            Trust::File(_) => self.version.is_some() && self.version == version(trust),
        }
    }
}

fn version(trust: &Trust) -> Option<(SystemTime, u64)> {
    let Trust::File(file) = trust else { return None };
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[derive(Clone, Debug)]
enum Known {
    /// By this process.
    Read(Arc<ClientConfig>, Reading),
    /// By the daemon, which also says when it is no longer so.
    Told(Result<Arc<ClientConfig>, String>),
}

static KNOWN: LazyLock<Mutex<HashMap<Trust, Known>>> = LazyLock::new(Mutex::default);

fn remember(trust: Trust, known: Known) {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(trust, known);
}

/// Takes over what the daemon has read, or why it could not.
pub(in crate::health) fn tell(trust: Trust, authorities: Authorities) {
    let config = authorities.and_then(|authorities| {
        let authorities = authorities.into_iter().map(CertificateDer::from).collect();
        build(&trust, authorities).map_err(|error| error.to_string())
    });
    remember(trust, Known::Told(config));
}

/// For a handshake. Authorities are read once and kept until their file changes.
///
/// # Errors
/// When they cannot be read.
pub(super) async fn config(tls: &Tls) -> Result<Arc<ClientConfig>, CheckError> {
    let trust = Trust::of(tls);
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&trust).cloned();
    match known {
        Some(Known::Told(config)) => return config.map_err(CheckError::Authorities),
        Some(Known::Read(config, reading)) if reading.is_fresh(&trust) => return Ok(config),
        _ => {}
    }
    // Reading and parsing takes milliseconds, which other checks should not wait for.
    let loaded = tokio::task::spawn_blocking(move || load(trust)).await;
    loaded
        .unwrap_or_else(|_| Err(io::Error::other("reading broke off")))
        .map_err(|error| CheckError::Authorities(error.to_string()))
}

fn load(trust: Trust) -> io::Result<Arc<ClientConfig>> {
    let reading = Reading::begin(&trust);
    let config = build(&trust, read(&trust)?)?;
    remember(trust, Known::Read(Arc::clone(&config), reading));
    Ok(config)
}

/// The certificates of the authorities.
///
/// # Errors
/// When they cannot be read, or there is none.
pub(in crate::health) fn read(trust: &Trust) -> io::Result<Vec<CertificateDer<'static>>> {
    match trust {
        Trust::Any => Ok(Vec::new()),
        Trust::System => read_system(),
        Trust::File(file) => read_file(file)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display()))),
    }
}

fn read_system() -> io::Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or_else(|| "none was found".to_owned(), ToString::to_string);
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the system's: {why}")));
    }
    Ok(found.certs)
}

fn read_file(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let length = std::fs::metadata(file)?.len();
    if length > LARGEST_CA_FILE {
        return Err(invalid(format!("{length} bytes are too many")));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&std::fs::read(file)?).collect();
    let found = found.map_err(|error| invalid(error.to_string()))?;
    if found.is_empty() {
        return Err(invalid("there is no certificate in it".to_owned()));
    }
    Ok(found)
}

fn build(trust: &Trust, authorities: Vec<CertificateDer<'static>>) -> io::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let mut config = match trust {
        Trust::Any => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth(),
        Trust::System | Trust::File(_) => {
            builder.with_root_certificates(roots(trust, authorities)?).with_no_client_auth()
        }
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(trust: &Trust, authorities: Vec<CertificateDer<'static>>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Trust::File(file) = trust else {
        // Systems have certificates that no longer pass; those that do are enough.
        roots.add_parsable_certificates(authorities);
        return match roots.is_empty() {
            true => Err(io::Error::other("the system's: none passes")),
            false => Ok(roots),
        };
    };
    for certificate in authorities {
        let invalid = |error| io::Error::other(format!("{}: {error}", file.display()));
        roots.add(certificate).map_err(invalid)?;
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
