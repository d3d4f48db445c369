//! Who is let in, what is permitted, and what kind of server it is.

use std::time::Duration;

use backplane_conformance::bound;
use backplane_core::{Bus, ErrorKind, Order, Reach, Topic};
use backplane_redis::{RedisBus, RedisConfig, Resp};

use crate::server::*;

#[tokio::test]
async fn a_wrong_password_is_denied_and_a_right_one_is_not() {
    let server = server!();
    server.ask::<()>(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    for resp in [Resp::V2, Resp::V3] {
        let with = |username: &str, password: &str| RedisConfig {
            resp,
            username: Some(username.to_owned()),
            password: Some(password.to_owned()),
            ..server.config()
        };
        for wrong in [with("app", "hunter2"), with("nobody", "secret")] {
            let error = refused(wrong).await;
            assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
            assert!(!error.to_string().contains("hunter2"));
        }
        connect(&RedisBus::new(with("app", "secret")).unwrap(), &[Topic::from("room")]).await;
    }
    server.ask::<()>(&["CONFIG", "SET", "requirepass", "gate"]);
    for resp in [Resp::V2, Resp::V3] {
        assert_eq!(refused(RedisConfig { resp, ..server.config() }).await.kind(), ErrorKind::Denied);
        let config = RedisConfig { resp, password: Some("gate".into()), ..server.config() };
        connect(&RedisBus::new(config).unwrap(), &[]).await;
    }
}

/// The permissions that the crate documentation asks for, and no more.
fn limited(server: &Server, extra: &[&str]) -> RedisConfig {
    let rules = ["ACL", "SETUSER", "app", "reset", "on", ">secret", "&ours*", "-@all"];
    server.ask::<()>(&[&rules[..], extra].concat());
    RedisConfig { username: Some("app".into()), password: Some("secret".into()), ..server.config() }
}

const DOCUMENTED: &[&str] = &["+publish", "+subscribe", "+unsubscribe", "+ping", "+client|setname"];

#[tokio::test]
async fn the_documented_permissions_are_enough_and_channels_are_guarded() {
    let server = server!();
    let bus = RedisBus::new(limited(&server, DOCUMENTED)).unwrap();
    let mut link = connect(&bus, &[Topic::from("ours.a")]).await;
    assert_eq!(server.link_connections(), 2);

    // The second command of the call is the one that is refused.
    let mut topics: Vec<_> = (0..1_500).map(|number| Topic::from(format!("ours.{number}"))).collect();
    topics.push(Topic::from("theirs"));
    topics.push(Topic::from("ours.a"));
    let error = link.sender.subscribe(&topics).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    server.until("none that was new is subscribed", |server| server.subscribers("ours.0") == 0).await;
    assert_eq!(server.subscribers("ours.a"), 1, "what was subscribed before is still");
    link.sender.subscribe(&topics[..1]).await.unwrap();
    assert_eq!(server.subscribers("ours.0"), 1);

    let outcomes = link
        .sender
        .publish(vec![outgoing("ours.a", "1"), outgoing("theirs", "2"), outgoing("ours.a", "3")])
        .await;
    assert!(matches!(outcomes[0], Ok(Reach::Nodes(1))) && matches!(outcomes[2], Ok(Reach::Nodes(1))));
    assert_eq!(outcomes[1].as_ref().unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(next(&mut link).await.1, "1");
    assert_eq!(next(&mut link).await.1, "3");

    let denied = bus.connect(attach(&[Topic::from("theirs")])).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    server.until("its connections are freed", |server| server.link_connections() == 2).await;
}

#[tokio::test]
async fn without_ping_and_name_permissions_the_link_still_lives() {
    let server = server!();
    let config = limited(&server, &["+publish", "+subscribe", "+unsubscribe"]);
    let bus = RedisBus::new(config).unwrap();
    let heartbeat = bound(Duration::from_secs(1));
    for topics in [&[][..], &[Topic::from("ours.a")]] {
        let mut link = bus.connect(backplane_core::Attach { heartbeat, ..attach(topics) }).await.unwrap();
        let rejected = |server: &Server| {
            let statistics = server.ask::<String>(&["INFO", "commandstats"]);
            let line = statistics.lines().find(|line| line.starts_with("cmdstat_ping:")).map(str::to_owned);
            let rejected =
                line.and_then(|line| line.split_once("rejected_calls=")?.1.split_once(',')?.0.parse().ok());
            rejected.unwrap_or(0_u32)
        };
        let before = rejected(&server);
        server.until("pings were refused", |server| rejected(server) > before + 3).await;
        link.sender.subscribe(&[Topic::from("ours.b")]).await.unwrap();
        publish(&link, "ours.b", "alive").await.unwrap();
        assert_eq!(next(&mut link).await.1, "alive");
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_a_wrong_configuration() {
    let server = server!();
    let error = refused(RedisConfig { database: 99, ..server.config() }).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
}

#[tokio::test]
async fn nobody_there_is_unavailable_and_someone_mute_is_a_timeout() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mute = RedisBus::new(RedisConfig { port, ..RedisConfig::default() }).unwrap();
    let deadline = Duration::from_millis(200);
    let start = std::time::Instant::now();
    let error = mute.connect(backplane_core::Attach { deadline, ..attach(&[]) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(start.elapsed() < deadline + bound(Duration::from_secs(2)));
    drop(listener);
    assert_eq!(refused(RedisConfig { port, ..RedisConfig::default() }).await.kind(), ErrorKind::Unavailable);
    let nowhere = RedisConfig { host: "no-such-host.invalid".into(), ..RedisConfig::default() };
    assert_eq!(refused(nowhere).await.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_cluster_node_serves_as_entry_point_without_reach() {
    let server = server!("--cluster-enabled", "yes");
    for resp in [Resp::V2, Resp::V3] {
        let bus = RedisBus::new(RedisConfig { resp, cluster: true, ..server.config() }).unwrap();
        assert_eq!(bus.capabilities().order, Order::PerPublisher);
        for bus in [bus, RedisBus::new(RedisConfig { resp, ..server.config() }).unwrap()] {
            let mut link = connect(&bus, &[Topic::from("room")]).await;
            assert!(!link.limits.reports_reach);
            let outcomes = link.sender.publish(vec![outgoing("room", "x")]).await;
            assert!(matches!(outcomes[..], [Ok(Reach::Unknown)]), "{outcomes:?}");
            assert_eq!(next(&mut link).await.1, "x");
        }
    }
}

#[tokio::test]
async fn a_replica_and_a_sentinel_are_refused_with_the_reason() {
    let server = server!();
    // A replica of something that is not there is one all the same.
    server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = refused(server.config()).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "worth trying again: {error}");
    assert!(error.to_string().contains("replica"));
    server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    connect(&server.bus(), &[]).await;

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("sentinel.conf"), "").unwrap();
    let Some(sentinel) = Server::start_sentinel(folder) else { return };
    let error = refused(sentinel.config()).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("master"));
}
