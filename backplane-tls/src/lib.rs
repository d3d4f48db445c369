//! TLS by rustls for the buses: whom a link trusts, who it is, and what a failed handshake means.
//!
//! One set of words for the message buses: the parameters `ca`, `cert` and `key` of a URL name files in PEM; without `ca` the
//! system's roots are trusted. (The drivers of databases speak TLS themselves, under the names that their tools use.) TLS 1.2 and 1.3; certificates are always verified. The provider is aws-lc-rs, handed in and
//! never installed for the process.

use std::fmt;
use std::io;
use std::sync::Arc;

use backplane_core::parameters::{Parameters, invalid, read_file};
use backplane_core::{Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};

/// TLS settings of a link. The provider (aws-lc-rs) is handed in, never installed for the process.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
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
        let builder = builder()?.with_root_certificates(root_store(roots)?);
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

    /// The certificates that the operating system trusts, and no identity.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when the system trusts no certificate.
    pub fn system() -> Result<Self> {
        Self::new(TlsRoots::System, None)
    }

    /// Trusts nobody, so that every handshake fails: for a client library that would speak TLS where none was asked for.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when the provider knows no usable version of TLS.
    pub fn trusting_nobody() -> Result<Self> {
        let config = builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        Ok(Self { config: Arc::new(config) })
    }

    /// The settings, for whoever connects.
    #[must_use]
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }
}

/// The files of TLS that a URL names.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl TlsFiles {
    /// Takes `ca`, `cert` and `key`.
    #[must_use]
    pub fn take(parameters: &mut Parameters<'_>) -> Self {
        Self { ca: parameters.take("ca"), cert: parameters.take("cert"), key: parameters.take("key") }
    }

    /// Whether the URL names any.
    #[must_use]
    pub fn given(&self) -> bool {
        self.ca.is_some() || self.cert.is_some() || self.key.is_some()
    }

    /// TLS with these files, which are read now, and the system's roots where no `ca` was named.
    ///
    /// # Errors
    /// Those of [`Tls::new`]; when one of `cert` and `key` stands alone, or a file cannot be read.
    pub fn open(self) -> Result<Tls> {
        let roots = match self.ca {
            Some(path) => TlsRoots::Pem(read_file("ca", &path)?),
            None => TlsRoots::System,
        };
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some(TlsIdentity {
                certificates_pem: read_file("cert", &cert)?,
                key_pem: read_file("key", &key)?,
            }),
            (None, None) => None,
            _ => return Err(invalid("`cert` and `key` belong together")),
        };
        Tls::new(roots, identity)
    }

    /// Refuses files where there is no TLS; `instead` is what to write.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when any was named.
    pub fn refuse(&self, instead: &str) -> Result<()> {
        if self.given() {
            return Err(invalid(format!("`ca`, `cert` and `key` need TLS: write {instead}")));
        }
        Ok(())
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid("no usable TLS version").with_source(error))
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

/// What a failed handshake with `host` means. Errors that only a change of configuration mends are not retryable.
#[must_use]
pub fn handshake_failed(error: io::Error, host: &str) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let (kind, context) = tls.map_or_else(
        || (ErrorKind::Unavailable, "the TLS handshake failed".to_owned()),
        |error| meaning(error, host),
    );
    Error::new(kind, "connect").with_context(context).with_source(error)
}

/// TLS 1.3 refuses a client only after the handshake, with an alert that comes with the first read.
#[must_use]
pub fn late_refusal(error: &io::Error) -> Option<Error> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => {
            let (kind, context) = alert_received(*alert);
            Some(Error::new(kind, "connect").with_context(context))
        }
        _ => None,
    }
}

/// What a failure of TLS with `host` means, in a kind and a sentence.
#[must_use]
pub fn meaning(error: &rustls::Error, host: &str) -> (ErrorKind, String) {
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
            CertificateError::Other(_)
            | CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. }
            | CertificateError::BadEncoding
            | CertificateError::UnhandledCriticalExtension => (
                ErrorKind::InvalidConfig,
                "the server's certificate cannot serve as one: it is a CA's own, or was made for something else"
                    .to_owned(),
            ),
            // An expired certificate may be renewed, a clock set right: worth another try.
            _ => (ErrorKind::Unavailable, "the server's certificate is not valid".to_owned()),
        },
        rustls::Error::AlertReceived(alert) => alert_received(*alert),
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::InvalidConfig,
            "the server does not speak TLS on this port; take its TLS port, or the scheme without TLS"
                .to_owned(),
        ),
        rustls::Error::PeerIncompatible(_) => {
            (ErrorKind::InvalidConfig, "the server offers neither TLS 1.2 nor 1.3 in a way that we speak".to_owned())
        }
        _ => (ErrorKind::Unavailable, "TLS failed".to_owned()),
    }
}

fn alert_received(alert: AlertDescription) -> (ErrorKind, String) {
    match alert {
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
        // How TLS 1.2 refuses a client without a certificate, and much else.
        AlertDescription::HandshakeFailure => (
            ErrorKind::Unavailable,
            "the server ended TLS (HandshakeFailure): if it asks for a certificate of ours, name one (`cert` and `key`)"
                .to_owned(),
        ),
        _ => (ErrorKind::Unavailable, format!("the server ended TLS ({alert:?})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a CA, and a certificate of it with its key.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = parameters.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), ca.pem()).expect("written");
        std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).expect("written");
        std::fs::write(folder.path().join("text.pem"), "no PEM at all").expect("written");
        folder
    }

    fn read(query: &str) -> Result<Tls> {
        let url = format!("x://h?{query}");
        let (_, mut parameters) = Parameters::of(&url)?;
        let files = TlsFiles::take(&mut parameters);
        parameters.finish("x")?;
        files.open()
    }

    #[test]
    fn the_files_of_a_url_are_read_at_once() {
        let folder = folder();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (ca, key, text) = (path("ca.pem"), path("key.pem"), path("text.pem"));
        assert!(read(&format!("ca={ca}")).is_ok());
        assert!(read(&format!("ca={ca}&cert={ca}&key={key}")).is_ok());
        for (query, named) in [
            (format!("ca={text}"), "the CA holds no PEM certificate"),
            (format!("ca={key}"), "the CA holds no PEM certificate"),
            (format!("ca={ca}&cert={ca}"), "belong together"),
            (format!("ca={ca}&key={key}"), "belong together"),
            (format!("ca={ca}&cert={text}&key={key}"), "the client certificate holds no PEM certificate"),
            (format!("ca={ca}&cert={ca}&key={text}"), "the client key is no PEM private key"),
            (format!("ca={ca}/no"), "`ca`: the file"),
        ] {
            let error = read(&query).expect_err(&query);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{query}");
            assert!(error.to_string().contains(named), "{query}: {error}");
        }
    }

    #[test]
    fn files_without_tls_are_refused_before_they_are_looked_for() {
        let (_, mut parameters) = Parameters::of("x://h?ca=no-such-file.pem").expect("a good URL");
        let error = TlsFiles::take(&mut parameters).refuse("xs://").expect_err("no TLS");
        assert!(error.to_string().contains("need TLS: write xs://"), "{error}");
        assert!(TlsFiles::default().refuse("xs://").is_ok());
    }

    #[test]
    fn no_debug_shows_a_key() {
        let identity = TlsIdentity { certificates_pem: Vec::new(), key_pem: b"s3cret".to_vec() };
        assert!(!format!("{identity:?}").contains("115"));
        assert!(!format!("{:?}", Tls::trusting_nobody().expect("a provider")).contains("115"));
    }

    #[test]
    fn a_missing_client_certificate_is_named_in_every_version() {
        for alert in [AlertDescription::CertificateRequired, AlertDescription::HandshakeFailure] {
            let (_, sentence) = meaning(&rustls::Error::AlertReceived(alert), "here");
            assert!(sentence.contains("`cert` and `key`"), "{sentence}");
        }
    }

    #[test]
    fn what_a_change_of_configuration_mends_is_not_retryable() {
        let wrong = |error: CertificateError| meaning(&rustls::Error::InvalidCertificate(error), "here").0;
        assert_eq!(wrong(CertificateError::NotValidForName), ErrorKind::InvalidConfig);
        assert_eq!(wrong(CertificateError::UnknownIssuer), ErrorKind::InvalidConfig);
        assert_eq!(wrong(CertificateError::InvalidPurpose), ErrorKind::InvalidConfig);
        assert_eq!(wrong(CertificateError::Expired), ErrorKind::Unavailable);
        let alert = |alert| meaning(&rustls::Error::AlertReceived(alert), "here").0;
        assert_eq!(alert(AlertDescription::HandshakeFailure), ErrorKind::Unavailable);
        assert_eq!(alert(AlertDescription::CertificateRequired), ErrorKind::Denied);
        assert_eq!(alert(AlertDescription::InternalError), ErrorKind::Unavailable);
        let io = io::Error::other(rustls::Error::AlertReceived(AlertDescription::UnknownCA));
        assert_eq!(late_refusal(&io).map(|error| error.kind()), Some(ErrorKind::Denied));
        assert!(late_refusal(&io::Error::other("something else")).is_none());
        assert_eq!(handshake_failed(io::Error::other("reset"), "here").kind(), ErrorKind::Unavailable);
    }
}
