//! Whom this machine trusts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The authorities that this machine trusts, as PEM. Those that cannot be read are left out: where none is left, no
/// server is trusted.
pub(crate) fn roots_of_this_machine() -> Vec<u8> {
    let mut pem = String::new();
    for certificate in rustls_native_certs::load_native_certs().certs {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        pem.push_str(&STANDARD.encode(certificate));
        pem.push_str("\n-----END CERTIFICATE-----\n");
    }
    pem.into_bytes()
}
