//! TLS by rustls: whom we trust, who we are, and what its failures mean.

use std::fmt;
use std::sync::Arc;

use backplane_core::{Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

/// TLS settings of a link. The provider (aws-lc-rs) is handed in, never installed for the process.
#[derive(Clone)]
pub struct Tls {
    pub(crate) config: Arc<ClientConfig>,
}

/// Whose certificates are trusted.
#[derive(Clone, Debug)]
pub enum TlsRoots {
    /// Those that the operating system trusts.
    System,
    /// Only these, in PEM: a private CA.
    Pem(Vec<u8>),
}

/// The certificate by which we prove who we are, where the server asks for one.
#[derive(Clone)]
pub struct TlsIdentity {
    /// Our certificate and its chain, in PEM.
    pub certificates_pem: Vec<u8>,
    /// Its private key, in PEM.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl From<Arc<ClientConfig>> for Tls {
    /// For whoever needs other settings than [`Tls::new`] makes.
    fn from(config: Arc<ClientConfig>) -> Self {
        Self { config }
    }
}

impl Tls {
    /// TLS 1.2 and 1.3 with these roots and, where the server asks for one, this identity.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when a PEM text holds no certificate or key that can be used, or
    /// the system trusts none.
    pub fn new(roots: TlsRoots, identity: Option<TlsIdentity>) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid("no usable TLS version").with_source(error))?
            .with_root_certificates(root_store(roots)?);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = certificates(&identity.certificates_pem, "the client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(&identity.key_pem)
                    .map_err(|error| invalid("the client key is no PEM private key").with_source(error))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| invalid("the client certificate cannot be used").with_source(error))?
            }
        };
        Ok(Self { config: Arc::new(config) })
    }
}

fn root_store(roots: TlsRoots) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match roots {
        TlsRoots::Pem(pem) => {
            for certificate in certificates(&pem, "the CA")? {
                store
                    .add(certificate)
                    .map_err(|error| invalid("the CA holds an unusable certificate").with_source(error))?;
            }
        }
        TlsRoots::System => {
            // Systems ship a few roots that cannot be parsed; the others serve.
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                return Err(invalid("the system trusts no certificate; name a CA (`ca`)"));
            }
        }
    }
    Ok(store)
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("{what} is no PEM")).with_source(error))?;
    if found.is_empty() {
        return Err(invalid(format!("{what} holds no PEM certificate")));
    }
    Ok(found)
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(context)
}

/// For a server that was not expected to speak TLS: trusts nobody, so that the handshake fails.
pub(crate) fn trusting_nobody() -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid("no usable TLS version").with_source(error))?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// What a failure of TLS means. Those that only a change of configuration mends are not retryable.
pub(crate) fn meaning(error: &rustls::Error, host: &str) -> (ErrorKind, String) {
    match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
                ErrorKind::InvalidConfig,
                format!("the server's certificate is not for the host name `{host}`"),
            ),
            // A bad signature: an unknown CA that bears the name of a known one, such as a private CA made anew.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                ErrorKind::InvalidConfig,
                "the server's certificate comes from an unknown CA; name a private one (`ca`)".to_owned(),
            ),
            // An expired certificate may be renewed, a clock set right: worth another try.
            _ => (ErrorKind::Unavailable, "the server's certificate is not valid".to_owned()),
        },
        // TLS 1.3 refuses a client only after the handshake: the alert comes with the first read.
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown => (
                ErrorKind::Denied,
                format!("the server refused our certificate ({alert:?}); see `cert` and `key`"),
            ),
            _ => (ErrorKind::Unavailable, format!("the server ended TLS ({alert:?})")),
        },
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::InvalidConfig,
            "the server does not speak TLS on this port; nats:// is the scheme without it".to_owned(),
        ),
        _ => (ErrorKind::Unavailable, "TLS failed".to_owned()),
    }
}
