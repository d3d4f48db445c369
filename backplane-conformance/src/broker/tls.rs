//! A private certificate authority, for servers that speak TLS.

use std::path::PathBuf;

use backplane_core::{Error, ErrorKind, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::folder::Folder;

/// PEM files of a new certificate authority that nobody else trusts, and of a server that it vouches for.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority's certificate: what clients have to trust.
    pub ca: PathBuf,
    /// The server's certificate.
    pub certificate: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Makes an authority and a certificate for the server names `names` (host names or addresses), and writes them
    /// into `folder` as `ca.pem`, `server.pem` and `server.key`.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when a name can be no server name,
    /// [`Unavailable`](ErrorKind::Unavailable) when a file cannot be written.
    pub fn create(folder: &Folder, names: &[String]) -> Result<Self> {
        let invalid = |error: rcgen::Error| Error::new(ErrorKind::InvalidConfig, "start").with_source(error);

        let mut authority = CertificateParams::new(Vec::new()).map_err(invalid)?;
        authority.distinguished_name.push(DnType::CommonName, "backplane private test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_key = KeyPair::generate().map_err(invalid)?;
        let ca = authority.self_signed(&authority_key).map_err(invalid)?.pem();
        let issuer = Issuer::new(authority, authority_key);

        let server_key = KeyPair::generate().map_err(invalid)?;
        let mut server = CertificateParams::new(names).map_err(invalid)?;
        server.distinguished_name.push(DnType::CommonName, "backplane private test server");
        server.use_authority_key_identifier_extension = true;
        let certificate = server.signed_by(&server_key, &issuer).map_err(invalid)?.pem();

        Ok(Self {
            ca: folder.write("ca.pem", ca)?,
            certificate: folder.write("server.pem", certificate)?,
            key: folder.write("server.key", server_key.serialize_pem())?,
        })
    }
}
