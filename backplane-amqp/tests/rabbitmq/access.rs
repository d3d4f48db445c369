//! Who is let in, what is permitted, and TLS.

use backplane_conformance::broker::{Broker as _, RabbitMq, RabbitMqOptions};
use backplane_core::{Bus as _, ErrorKind, Topic};

use crate::harness::*;

#[tokio::test]
async fn strangers_and_wrong_hosts_are_refused_typed() {
    let Some(broker) = calm().await else { return };
    broker.ctl(&["add_user", "stranger", "secret"]).await.unwrap();
    for (url, kind, words) in [
        (broker.url_as(broker.user(), "hunter2"), ErrorKind::Denied, "ACCESS_REFUSED"),
        (broker.url_as("nobody", "x"), ErrorKind::Denied, "ACCESS_REFUSED"),
        (broker.url_as("stranger", "secret"), ErrorKind::Denied, "refused"),
        (format!("{}/nope", broker.url()), ErrorKind::InvalidConfig, "nope"),
        (format!("{}?exchange=not-there&create=false", broker.url()), ErrorKind::InvalidConfig, "not-there"),
    ] {
        let error = refused(&url).await;
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words) && !error.to_string().contains("hunter2"), "{error}");
    }
    let declare = "rabbit_exchange:declare({resource,<<\"/\">>,exchange,<<\"fan\">>}, fanout, true, false, false, [], \
                   <<\"suite\">>).";
    broker.eval(declare).await.unwrap();
    // It would bring each frame to everybody, and to the queues that tell of losses.
    for create in [true, false] {
        let error = refused(&format!("{}?exchange=fan&create={create}", broker.url())).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains("`fan`"), "{error}");
    }
}

#[tokio::test]
async fn the_documented_permissions_are_enough() {
    let Some(broker) = calm().await else { return };
    broker.ctl(&["add_vhost", "team/a"]).await.unwrap();
    broker.ctl(&["add_user", "app", "secret"]).await.unwrap();
    let permit = async |configure: &str, write: &str, read: &str| {
        broker.ctl(&["set_permissions", "-p", "team/a", "app", configure, write, read]).await.unwrap();
    };
    let url = format!("{}/team%2Fa?exchange=ours", broker.url_as("app", "secret"));

    permit(r"^(ours$|backplane\.)", r"^(ours$|backplane\.)", r"^(ours$|backplane\.)").await;
    works(&url).await;
    // The exchange is there now, so nobody needs to configure it.
    permit(r"^backplane\.", r"^(ours$|backplane\.)", r"^(ours$|backplane\.)").await;
    works(&format!("{url}&create=false")).await;
    let error = refused(&url).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    // Who may not publish is told when the link is opened.
    permit(r"^backplane\.", r"^backplane\.", r"^(ours$|backplane\.)").await;
    let error = refused(&format!("{url}&create=false")).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

async fn works(url: &str) {
    let topic = topic("room");
    let mut link = connect(&bus(url), &[]).await;
    link.sender.subscribe(std::slice::from_ref(&topic)).await.unwrap();
    for size in [10, 1_000_000, 20_000] {
        publish(&link, &topic, vec![7; size]).await.unwrap();
        assert_eq!(frame(&mut link).await, (topic.clone(), vec![7; size].into()));
    }
    link.sender.close().await.unwrap();
    assert!(end(&mut link).await.is_none());
}

#[tokio::test]
async fn a_private_ca_is_trusted_for_the_right_name_only() {
    let options =
        || RabbitMqOptions { tls: true, tls_names: vec!["localhost".to_owned()], ..Default::default() };
    let Some(broker) = RabbitMq::require(options()).await else { return };
    let files = broker.tls().unwrap();
    let (ca, port) = (files.ca.display(), broker.address().port());
    let at = |host: &str| format!("amqps://{}:{}@{host}:{port}", broker.user(), broker.password());
    works(&format!("{}?ca={ca}", at("localhost"))).await;

    let error = refused(&format!("{}?ca={ca}", at("127.0.0.1"))).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("not for the host name `127.0.0.1`"), "{error}");

    let folder = backplane_conformance::broker::Folder::new("stranger").unwrap();
    let other = backplane_conformance::broker::TlsFiles::create(&folder, &["localhost".to_owned()]).unwrap();
    let error = refused(&format!("{}?ca={}", at("localhost"), other.ca.display())).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("unknown CA"), "{error}");

    // Without TLS the server hangs up.
    let error = refused(&at("localhost").replace("amqps://", "amqp://")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_port_without_tls_is_told_apart() {
    let Some(broker) = calm().await else { return };
    let folder = backplane_conformance::broker::Folder::new("stranger").unwrap();
    let files = backplane_conformance::broker::TlsFiles::create(&folder, &["localhost".to_owned()]).unwrap();
    let url = format!("{}?ca={}", broker.url().replace("amqp://", "amqps://"), files.ca.display());
    let error = refused(&url).await;
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn a_node_of_the_broker_that_is_down_costs_no_attempt() {
    let Some(broker) = calm().await else { return };
    // Bound, and nobody listens: no other process is given the port meanwhile.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nowhere = nobody.local_addr().unwrap().port();
    let url = broker.url().replace("127.0.0.1", &format!("127.0.0.1:{nowhere},127.0.0.1"));
    let bus = bus(&url);
    for _ in 0..8 {
        bus.connect(attach(&[Topic::from("room")])).await.unwrap();
    }
}
