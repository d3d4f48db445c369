//! Shared access signatures, and how they are put to a connection (`$cbs`).
//!
//! HMAC-SHA256 comes from `aws-lc-rs`: it is in the program anyway, as the provider of rustls.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use backplane_core::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties};
use fe2o3_amqp::types::primitives::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::request::{Request, RequestLink};

/// The node that takes tokens.
const NODE: &str = "$cbs";
const SAS_TYPE: &str = "servicebus.windows.net:sastoken";

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A key that signs.
#[derive(Clone)]
pub(super) struct Signer {
    key_name: String,
    key: hmac::Key,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

/// A token and when it ends.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) expires: SystemTime,
}

impl Signer {
    /// The key is used as the text that it is: Azure does not decode it.
    pub(super) fn new(key_name: &str, key: &str) -> Self {
        Self { key_name: key_name.to_owned(), key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()) }
    }

    /// Signs for `resource` (a URI) until `lifetime` from `now`.
    pub(super) fn sign(&self, resource: &str, now: SystemTime, lifetime: Duration) -> Token {
        // Whole seconds, and not before the lifetime is over: renewal is timed by that.
        let since_epoch = (now + lifetime).duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since_epoch.as_secs() + u64::from(since_epoch.subsec_nanos() > 0);
        let expires = UNIX_EPOCH + Duration::from_secs(seconds);
        let resource = utf8_percent_encode(&resource.to_lowercase(), ENCODED).to_string();
        let signature = hmac::sign(&self.key, format!("{resource}\n{seconds}").as_bytes());
        let signature = STANDARD.encode(signature.as_ref());
        let text = format!(
            "SharedAccessSignature sr={resource}&sig={}&se={seconds}&skn={}",
            utf8_percent_encode(&signature, ENCODED),
            utf8_percent_encode(&self.key_name, ENCODED),
        );
        Token { text, expires }
    }
}

/// Puts a token for each of `audiences` to the connection of `session`.
pub(super) async fn put(
    session: &mut SessionHandle<()>,
    signer: &Signer,
    audiences: &[String],
    lifetime: Duration,
    name: &str,
) -> Result<()> {
    const OPERATION: &str = "connect";
    let mut link = RequestLink::open(session, NODE, name).await?;
    for audience in audiences {
        let token = signer.sign(audience, SystemTime::now(), lifetime);
        let expires = token.expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let properties = ApplicationProperties::builder()
            .insert("operation", "put-token")
            .insert("type", SAS_TYPE)
            .insert("name", audience.as_str())
            .insert("expiration", Timestamp::from_milliseconds(i64::try_from(expires).unwrap_or(i64::MAX)))
            .build();
        let request = Request { properties, body: AmqpValue(token.text) };
        link.call(OPERATION, request).await?.into_result(OPERATION)?;
    }
    link.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value was computed with Python's `hmac` and `urllib.parse.quote` after the recipe that Azure documents.
    #[test]
    fn a_signature_is_what_azure_documents() {
        let signer = Signer::new("RootManageSharedAccessKey", "secret+key/=");
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let token =
            signer.sign("amqps://Space.servicebus.windows.net/Topic", now, Duration::from_secs(3_600));
        assert_eq!(
            token.text,
            "SharedAccessSignature sr=amqps%3A%2F%2Fspace.servicebus.windows.net%2Ftopic\
             &sig=Ba0o7F%2FCVB5oh6YbVD8L9WEKn7H1wKycsJAxRNZ2hSE%3D&se=1700003600&skn=RootManageSharedAccessKey"
        );
        assert!(!format!("{signer:?}").contains("secret"));
    }
}
