//! `rediss://` against a private CA: who is trusted, and what is said when somebody is not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backplane_core::{Attach, Bus, ErrorKind, Topic};
use backplane_redis::{RedisBus, RedisConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::server::*;

/// A CA and what it signed, as files in `folder`: `ca.pem`, and `NAME.pem` with `NAME.key` for each name.
fn certificates(folder: &Path, names: &[&str]) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "a private CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca.pem"), ca.pem()).unwrap();
    for name in names {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, *name);
        let certificate = params.signed_by(&key, &ca).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn start(clients: &str) -> Option<Server> {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), &["localhost", "client"]);
    Server::start_in(
        folder,
        &[
            "--tls-port",
            "PORT",
            "--tls-cert-file",
            "localhost.pem",
            "--tls-key-file",
            "localhost.key",
            "--tls-ca-cert-file",
            "ca.pem",
            "--tls-auth-clients",
            clients,
        ],
    )
}

fn path(server: &Server, name: &str) -> String {
    PathBuf::from(server.folder()).join(name).display().to_string()
}

fn config(url: &str) -> RedisConfig {
    RedisConfig::from_url(url).unwrap()
}

#[tokio::test]
async fn a_private_ca_is_trusted_for_the_right_name_only() {
    let Some(server) = start("no") else { return };
    let (port, ca) = (server.port, path(&server, "ca.pem"));
    for resp in ["2", "3"] {
        let bus = RedisBus::new(config(&format!("rediss://localhost:{port}?ca={ca}&resp={resp}"))).unwrap();
        let mut link = connect(&bus, &[Topic::from("room")]).await;
        for frame in [vec![1; 10], vec![2; 1_000_000], vec![3; 20_000]] {
            assert_eq!(publish(&link, "room", frame.clone()).await.unwrap(), 1);
            assert_eq!(next(&mut link).await.1, frame);
        }
        link.sender.close().await.unwrap();
        assert_eq!(end(&mut link).await, None);
    }

    let error = refused(config(&format!("rediss://127.0.0.1:{port}?ca={ca}"))).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("not for the host name `127.0.0.1`"), "{error}");

    let stranger = tempfile::tempdir().unwrap();
    certificates(stranger.path(), &[]);
    let unknown = stranger.path().join("ca.pem").display().to_string();
    let error = refused(config(&format!("rediss://localhost:{port}?ca={unknown}"))).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("unknown CA"), "{error}");

    // Without TLS the server hangs up, and the error says why that may be.
    let error = refused(config(&format!("redis://localhost:{port}"))).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("rediss://"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart() {
    let server = server!();
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), &[]);
    let ca = folder.path().join("ca.pem").display().to_string();
    let bus = RedisBus::new(config(&format!("rediss://localhost:{}?ca={ca}", server.port))).unwrap();
    let deadline = Duration::from_millis(300);
    let error = bus.connect(Attach { deadline, ..attach(&[]) }).await.unwrap_err();
    // Redis takes the handshake for a command and answers at its first line feed, which is there by chance.
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::InvalidConfig), "{error}");
    assert!(error.to_string().contains("speak TLS on this port"), "{error}");
}

#[tokio::test]
async fn a_server_that_asks_for_our_certificate_gets_it() {
    let Some(server) = start("yes") else { return };
    let (port, ca) = (server.port, path(&server, "ca.pem"));
    let error = refused(config(&format!("rediss://localhost:{port}?ca={ca}"))).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");

    let (cert, key) = (path(&server, "client.pem"), path(&server, "client.key"));
    let bus = RedisBus::new(config(&format!("rediss://localhost:{port}?ca={ca}&cert={cert}&key={key}")));
    let mut link = connect(&bus.unwrap(), &[Topic::from("room")]).await;
    publish(&link, "room", "proven").await.unwrap();
    assert_eq!(next(&mut link).await.1, "proven");
}
