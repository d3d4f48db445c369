//! `tls://` against a private CA: who is trusted, and what is said when somebody is not.

use backplane_conformance::broker::{Broker as _, Folder, Nats, NatsOptions, TlsFiles};
use backplane_core::{Bus as _, Error, ErrorKind, Topic};

use crate::harness::*;

async fn refused(url: &str) -> Error {
    let Err(error) = bus(url).connect(attach(&[], None)).await else { panic!("it was let in") };
    error
}

#[tokio::test]
async fn a_private_ca_is_trusted_for_the_right_name_only() {
    let options =
        NatsOptions { tls: true, tls_names: vec!["localhost".to_owned()], ..NatsOptions::default() };
    let Some(nats) = Nats::require(options).await else { return };
    let (port, ca) = (nats.port(), nats.tls().unwrap().ca.display());
    let bus = bus(&format!("tls://localhost:{port}?ca={ca}"));
    let mut link = bus.connect(attach(&[Topic::from("room")], None)).await.unwrap();
    for size in [10, 1_000_000, 20_000] {
        publish(&link, "room", vec![1; size]).await.unwrap();
        frame(&mut link, vec![1; size]).await;
    }
    link.sender.close().await.unwrap();
    assert!(next(&mut link).await.is_none());

    let error = refused(&format!("tls://127.0.0.1:{port}?ca={ca}")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("not for the host name `127.0.0.1`"), "{error}");

    let folder = Folder::new("stranger").unwrap();
    let stranger = TlsFiles::create(&folder, &["localhost".to_owned()]).unwrap();
    for ca in [format!("?ca={}", stranger.ca.display()), String::new()] {
        let error = refused(&format!("tls://localhost:{port}{ca}")).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains("unknown CA"), "{error}");
    }

    let error = refused(&format!("nats://localhost:{port}")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("tls://"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart() {
    let Some(nats) = Nats::require(NatsOptions::default()).await else { return };
    let folder = Folder::new("stranger").unwrap();
    let stranger = TlsFiles::create(&folder, &["localhost".to_owned()]).unwrap();
    let error = refused(&format!("tls://localhost:{}?ca={}", nats.port(), stranger.ca.display())).await;
    assert!(!matches!(error.kind(), ErrorKind::Denied | ErrorKind::TooLarge), "{error}");
    assert!(error.to_string().contains("TLS"), "{error}");
}

#[tokio::test]
async fn a_server_that_asks_for_our_certificate_gets_it() {
    let folder = Folder::new("clients").unwrap();
    let ours = TlsFiles::create(&folder, &["client".to_owned(), "localhost".to_owned()]).unwrap();
    let (cert, key, ca) = (ours.certificate.display(), ours.key.display(), ours.ca.display());
    let config = vec![format!(
        "tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", verify: true }}"
    )];
    let Some(nats) = Nats::require(NatsOptions { config, ..NatsOptions::default() }).await else { return };
    let port = nats.port();
    let error = refused(&format!("tls://localhost:{port}?ca={ca}")).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    let bus = bus(&format!("tls://localhost:{port}?ca={ca}&cert={cert}&key={key}"));
    let mut link = bus.connect(attach(&[Topic::from("room")], None)).await.unwrap();
    publish(&link, "room", "proven").await.unwrap();
    frame(&mut link, "proven").await;
}
