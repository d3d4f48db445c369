//! TLS to every kind of broker from one process, with every feature compiled in: no bus installs a default provider of
//! cryptography, and none relies on one. Then a message goes from node to node over each.

use std::time::Duration;

use backplane_conformance::broker::{
    Broker as _, MariaDb, MariaDbOptions, Nats, NatsOptions, Postgres, PostgresOptions, RabbitMq,
    RabbitMqOptions, Redis, RedisOptions, TlsFiles,
};
use backplane_core::{
    Backplane as _, BackplaneExt as _, EncodedMessage, GroupName, LocalConnection, OutboundLimits, Protocol,
    Target, outbound,
};
use backplane_tests::redis::bound;
use rustls::crypto::CryptoProvider;

/// How long a step may take.
const SOON: Duration = Duration::from_secs(10);

async fn in_time<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(bound(SOON), step).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// Two nodes that know nothing but the URL: one sends to a group that a client of the other is in.
async fn two_nodes_meet(url: &str) {
    let [north, south] = [(); 2].map(|()| backplane::open(url));
    let (north, south) =
        in_time("opening", futures::future::try_join(north, south)).await.expect("two nodes");
    assert!(CryptoProvider::get_default().is_none(), "a library installed a default provider");
    let (sender, mut inbox) = outbound(OutboundLimits::default());
    let id = south.new_connection_id();
    let connection = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound: sender };
    let registration = in_time("registering", south.register(connection)).await.expect("the link is up");
    let room = GroupName::from("room");
    in_time("a remote join", north.join(registration.connection(), &room)).await.expect("it is acknowledged");
    // Longer than a TLS record.
    let long = "x".repeat(100_000);
    let sent = async { north.send(&Target::group("room"), &[], EncodedMessage::json(long.clone())).await };
    in_time("sending", sent).await.expect("the link is up");
    assert_eq!(in_time("arriving", inbox.next()).await.expect("the queue is open").bytes, long);
    drop(registration);
    for node in [north, south] {
        in_time("leaving", node.shutdown()).await.expect("it leaves in order");
    }
}

fn authority(tls: Option<&TlsFiles>) -> String {
    tls.expect("it was started with TLS").ca.to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis() {
    let Some(redis) = Redis::require(RedisOptions { tls: true, ..RedisOptions::default() }).await else {
        return;
    };
    two_nodes_meet(&format!("{}?ca={}", redis.url(), authority(redis.tls()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() {
    let options = PostgresOptions { tls: true, ..PostgresOptions::default() };
    let Some(postgres) = Postgres::require(options).await else { return };
    let ca = authority(postgres.tls());
    two_nodes_meet(&format!("{}?sslmode=verify-full&sslrootcert={ca}", postgres.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() {
    let options = MariaDbOptions { tls: true, ..MariaDbOptions::default() };
    let Some(mariadb) = MariaDb::require(options).await else { return };
    let (url, ca) = (mariadb.url().replace("127.0.0.1", "localhost"), authority(mariadb.tls()));
    two_nodes_meet(&format!("{url}?ssl-mode=verify_identity&ssl-ca={ca}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats() {
    let options = NatsOptions { tls: true, jetstream: true, ..NatsOptions::default() };
    let Some(nats) = Nats::require(options).await else { return };
    let url = format!("{}?ca={}", nats.url(), authority(nats.tls()));
    two_nodes_meet(&url).await;
    two_nodes_meet(&format!("{url}&subject=durable&durable=true")).await;
}

/// AMQP 0-9-1, and AMQP 1.0 on the same port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq() {
    let options = RabbitMqOptions { tls: true, ..RabbitMqOptions::amqp_1_0() };
    let Some(rabbitmq) = RabbitMq::require(options).await else { return };
    let ca = authority(rabbitmq.tls());
    two_nodes_meet(&format!("{}?ca={ca}", rabbitmq.url())).await;
    let (user, password, port) = (rabbitmq.user(), rabbitmq.password(), rabbitmq.address().port());
    let server = format!("{user}:{password}@localhost:{port}");
    two_nodes_meet(&format!("servicebus://{server}/together?auth=sasl&management=none&tls=true&ca={ca}"))
        .await;
}
