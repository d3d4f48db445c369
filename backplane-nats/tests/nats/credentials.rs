//! Keys and JWTs instead of passwords: files that are right, wrong, missing, expired and renewed.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use backplane_conformance::broker::{Broker as _, Nats, NatsOptions};
use backplane_core::{Bus as _, Error, ErrorKind, Topic};
use backplane_nats::{Credentials, NatsBus, NatsConfig};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use tempfile::TempDir;

use crate::harness::*;

async fn refused(bus: &NatsBus) -> Error {
    let Err(error) = bus.connect(attach(&[], None)).await else { panic!("it was let in") };
    error
}

#[tokio::test]
async fn an_nkey_is_proven_and_another_denied() {
    let (ours, other) = (KeyPair::new_user(), KeyPair::new_user());
    let config = vec![format!("authorization {{ users: [ {{ nkey: {} }} ] }}", ours.public_key())];
    let Some(nats) = Nats::require(NatsOptions { config, ..NatsOptions::default() }).await else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    let url = format!("{}?nkey={}", nats.url(), file.path().display());
    // As the tools write it, with a remark in front.
    std::fs::write(file.path(), format!("# our key\n{}\n", ours.seed().unwrap())).unwrap();
    bus(&url).connect(attach(&[], None)).await.unwrap();
    std::fs::write(file.path(), other.seed().unwrap()).unwrap();
    assert_eq!(refused(&bus(&url)).await.kind(), ErrorKind::Denied);
    assert_eq!(refused(&bus(&nats.url())).await.kind(), ErrorKind::Denied);
}

#[test]
fn a_seed_that_is_damaged_or_not_that_of_a_user_is_a_wrong_configuration() {
    let mut damaged = KeyPair::new_user().seed().unwrap();
    let last = if damaged.pop() == Some('A') { 'B' } else { 'A' };
    damaged.push(last);
    for seed in [damaged, KeyPair::new_account().seed().unwrap(), "SUA".to_owned(), String::new()] {
        let config = NatsConfig { credentials: Credentials::NkeySeed(seed.clone()), ..NatsConfig::default() };
        let error = NatsBus::new(config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(seed.is_empty() || !format!("{error} {error:?}").contains(&seed));
    }
}

/// An operator with one account, as its server knows them.
struct Authority {
    account: KeyPair,
    config: Vec<String>,
}

impl Authority {
    fn new() -> Self {
        let (operator, system, account) =
            (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let limits = serde_json::json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1,
        });
        // A system account may have no streams.
        let mut of_account = serde_json::json!({ "type": "account", "version": 2, "limits": limits });
        let system_jwt = jwt(&operator, &system, of_account.clone(), None);
        for kept in ["mem_storage", "disk_storage", "streams", "consumer"] {
            of_account["limits"][kept] = (-1).into();
        }
        let account_jwt = jwt(&operator, &account, of_account, None);
        let of_operator = serde_json::json!({ "type": "operator", "version": 2 });
        let preloaded = [(&system, system_jwt), (&account, account_jwt)]
            .map(|(account, jwt)| format!("{}: \"{jwt}\"", account.public_key()));
        let config = vec![
            format!("operator: \"{}\"", jwt(&operator, &operator, of_operator, None)),
            format!("system_account: {}", system.public_key()),
            "resolver: MEMORY".to_owned(),
            format!("resolver_preload {{ {} }}", preloaded.join(", ")),
        ];
        Self { account, config }
    }

    fn options(&self) -> NatsOptions {
        NatsOptions { config: self.config.clone(), jetstream: true, ..NatsOptions::default() }
    }

    /// What `nsc` writes for a new user.
    fn user(&self, valid: Option<Duration>) -> String {
        let user = KeyPair::new_user();
        self.credentials(&user, &user.seed().unwrap(), valid)
    }

    fn credentials(&self, user: &KeyPair, seed: &str, valid: Option<Duration>) -> String {
        let claims = serde_json::json!({
            "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
        });
        let jwt = jwt(&self.account, user, claims, valid);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

/// What `issuer` says of `subject`.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: serde_json::Value, valid: Option<Duration>) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let mut claims = serde_json::json!({
        "jti": subject.public_key(), "iat": now.as_secs(), "iss": issuer.public_key(), "sub": subject.public_key(),
        "name": "test", "nats": nats,
    });
    if let Some(valid) = valid {
        claims["exp"] = (now + valid).as_secs().into();
    }
    let head = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The URL with a file of that name that holds this.
fn url(nats: &Nats, folder: &TempDir, name: &str, text: &str) -> String {
    let file = folder.path().join(name);
    std::fs::write(&file, text).unwrap();
    with_file(nats, &file)
}

fn with_file(nats: &Nats, file: &Path) -> String {
    format!("{}?creds={}", nats.url(), file.display())
}

#[tokio::test]
async fn a_credentials_file_lets_in_whom_the_account_knows_and_nobody_else() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let Some(nats) = Nats::require(authority.options()).await else { return };
    let topics = [Topic::from("room")];
    let right = url(&nats, &folder, "right.creds", &authority.user(None));
    for parameters in ["", "&durable=true"] {
        let mut link = bus(&format!("{right}{parameters}")).connect(attach(&topics, None)).await.unwrap();
        publish(&link, "room", "x").await.unwrap();
        frame(&mut link, "x").await;
    }

    let stranger = url(&nats, &folder, "stranger.creds", &Authority::new().user(None));
    let (user, other) = (KeyPair::new_user(), KeyPair::new_user());
    let stolen = authority.credentials(&user, &other.seed().unwrap(), None);
    let stolen = url(&nats, &folder, "stolen.creds", &stolen);
    for url in [stranger, stolen, nats.url()] {
        let error = refused(&bus(&url)).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{url}: {error}");
    }

    let text = authority.user(None);
    let half = text.split("-----BEGIN USER").next().unwrap();
    for wrong in ["", half, "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n"] {
        let url = url(&nats, &folder, "wrong.creds", wrong);
        let error = NatsConfig::from_url(&url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    }
    let error = NatsConfig::from_url(&with_file(&nats, &folder.path().join("missing.creds"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("missing.creds"), "{error}");
}

#[tokio::test]
async fn a_link_ends_when_its_jwt_expires_and_a_renewed_file_is_all_it_takes() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let Some(nats) = Nats::require(authority.options()).await else { return };
    let file = folder.path().join("app.creds");
    let bus = bus(&url(&nats, &folder, "app.creds", &authority.user(Some(Duration::from_secs(2)))));
    let mut link = bus.connect(attach(&[], None)).await.unwrap();
    let start = Instant::now();
    let error = next(&mut link).await.unwrap().unwrap_err();
    println!("told {:?} after connecting: {error}", start.elapsed());
    assert!(error.to_string().contains("Expired"), "{error}");
    // In the very second of its end the server lets it in, and out at once.
    loop {
        let error = refused(&bus).await;
        if error.kind() == ErrorKind::Denied {
            break;
        }
        assert!(error.to_string().contains("Expired") && start.elapsed() < DEADLINE, "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    let error = refused(&bus).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    std::fs::write(&file, authority.user(None)).unwrap();
    bus.connect(attach(&[], None)).await.unwrap();
}
