//! `rediss://` against a private Redis with a private certificate authority.
//!
//! This process never installs a default provider of cryptography, and neither may anything that it uses: two crates
//! of an application that do would be in each other's way, and one that relies on a default panics without.

use std::time::Duration;

use backplane_conformance::broker::{Broker as _, Folder, Redis, RedisOptions, TlsFiles};
use backplane_core::{
    Backplane as _, BackplaneExt as _, EncodedMessage, Error, ErrorKind, LocalConnection, OutboundLimits,
    Protocol, Router, Target, outbound,
};
use backplane_tests::redis::{bound, until};
use rustls::crypto::CryptoProvider;

/// How long an arrival may take.
const SOON: Duration = Duration::from_secs(5);

async fn redis(names: &[&str]) -> Option<Redis> {
    let tls_names = names.iter().map(|name| (*name).to_owned()).collect();
    Redis::require(RedisOptions { tls: true, tls_names, ..RedisOptions::default() }).await
}

fn authority(redis: &Redis) -> String {
    redis.tls().expect("it was started with TLS").ca.to_string_lossy().into_owned()
}

/// Opens a node as an application does; every attempt is made in time and without a default provider.
async fn open(url: &str) -> Result<Router, Error> {
    let opened =
        tokio::time::timeout(bound(SOON), backplane::open(url)).await.expect("one attempt ends in time");
    assert!(CryptoProvider::get_default().is_none(), "a library installed a default provider");
    opened
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_meet_over_tls() {
    let Some(redis) = redis(&["localhost", "127.0.0.1"]).await else { return };
    let ca = authority(&redis);
    let by_address = format!("{}?ca={ca}", redis.url());
    let by_name = format!("rediss://localhost:{}?ca={ca}&resp=3", redis.port());
    let nodes = [open(&by_address).await.expect("an address"), open(&by_name).await.expect("a name")];
    let mut registrations = Vec::new();
    let mut inboxes = Vec::new();
    for node in &nodes {
        let (sender, inbox) = outbound(OutboundLimits::default());
        let id = node.new_connection_id();
        let connection = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound: sender };
        registrations.push(node.register(connection).await.expect("the link is up"));
        inboxes.push(inbox);
    }
    // Longer than a TLS record.
    let long = "x".repeat(100_000);
    for (index, node) in nodes.iter().enumerate() {
        let other = &nodes[1 - index];
        let group = format!("of {index}");
        other.join(registrations[index].connection(), &group.as_str().into()).await.expect("a remote join");
        for target in
            [Target::all(), Target::group(group), Target::connection(registrations[index].connection())]
        {
            other.send(&target, &[], EncodedMessage::json(long.clone())).await.expect("the link is up");
            let item = tokio::time::timeout(bound(SOON), inboxes[index].next()).await.expect("it arrives");
            assert_eq!(item.expect("the queue is open").bytes, long);
        }
        // What was for all reached the sender's own connection as well.
        let item = tokio::time::timeout(bound(SOON), inboxes[1 - index].next()).await.expect("it arrives");
        assert_eq!(item.expect("the queue is open").bytes, long);
        assert_eq!(node.stats().malformed, 0);
    }
    drop(registrations);
    for node in nodes {
        node.shutdown().await.expect("it leaves in order");
    }
    until("every link to be freed", SOON, async || {
        redis.channels().await.expect("the server answers").is_empty()
    })
    .await;
}

/// The attempt must fail for want of configuration, with words that say what to mend.
async fn is_refused(url: &str, words: &[&str]) {
    let error = open(url).await.expect_err("nobody may be trusted here");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
    assert!(!error.is_retryable(), "trying again cannot help: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let Some(redis) = redis(&["redis.example"]).await else { return };
    let ca = authority(&redis);
    is_refused(&format!("{}?ca={ca}", redis.url()), &["host name", "127.0.0.1"]).await;
    is_refused(&format!("rediss://localhost:{}?ca={ca}", redis.port()), &["host name", "localhost"]).await;
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let Some(redis) = redis(&["127.0.0.1"]).await else { return };
    // Trusted are those of the system, then another private one.
    is_refused(&redis.url(), &["unknown CA", "`ca`"]).await;
    let folder = Folder::new("other-authority").expect("a temporary folder");
    let other = TlsFiles::create(&folder, &["127.0.0.1".to_owned()]).expect("a certificate");
    is_refused(&format!("{}?ca={}", redis.url(), other.ca.display()), &["unknown CA", "`ca`"]).await;
}

#[tokio::test]
async fn a_server_without_tls_is_named() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let folder = Folder::new("authority").expect("a temporary folder");
    let files = TlsFiles::create(&folder, &["127.0.0.1".to_owned()]).expect("a certificate");
    let url = format!("rediss://{}?ca={}&connect_timeout=1s", redis.address(), files.ca.display());
    let error = open(&url).await.expect_err("it speaks no TLS");
    assert!(
        matches!(error.kind(), ErrorKind::InvalidConfig | ErrorKind::Timeout),
        "it answers in plain text, or waits for the end of a line: {error}"
    );
    assert!(error.to_string().contains("TLS"), "{error}");
}
