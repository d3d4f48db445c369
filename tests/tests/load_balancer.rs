//! Two servers behind a real nginx, with the configurations that the documentation recommends, and behind the front of
//! the demonstration.

#[path = "load_balancer/raw.rs"]
mod raw;

use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
use backplane_tests::clients::{Nginx, Script, Server, two_servers};
use serde_json::json;

/// Two servers with a Redis between them.
struct Pair {
    north: Server,
    south: Server,
    _redis: Redis,
}

impl Pair {
    /// `None`: there is no Redis here; the skip was printed.
    async fn start(arguments: &[&str]) -> Option<Self> {
        let redis = Redis::require(RedisOptions::default()).await?;
        let url = redis.url();
        let arguments = [&["--url", &url], arguments].concat();
        let server = async || Server::reference_hub(env!("CARGO_BIN_EXE_reference-hub"), &arguments).await;
        Some(Self { north: server().await, south: server().await, _redis: redis })
    }

    fn ports(&self) -> [u16; 2] {
        [self.north.port(), self.south.port()]
    }

    async fn affinity(&self, configuration: &str, spread: bool) {
        let Some(nginx) = Nginx::require(configuration, self.ports(), &[]).await else { return };
        let settings = json!({
            "url": nginx.url(),
            "servers": { "north": self.north.url(), "south": self.south.url() },
            "spread": spread,
        });
        let deeds = async |deed: &str| match deed.split_once(' ') {
            Some((verb, "north")) => self.north.suffer(verb).await,
            Some((verb, "south")) => self.south.suffer(verb).await,
            _ => Err(format!("nobody here can {deed}")),
        };
        Script { name: "affinity", checks: 5 }.run_with(&settings, deeds).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_with_affinity_by_address_clients_negotiate_and_survive_a_server() {
    let Some(pair) = Pair::start(&[]).await else { return };
    pair.affinity("affinity.conf", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_with_affinity_by_cookie_clients_of_one_address_use_both_servers() {
    let Some(pair) = Pair::start(&[]).await else { return };
    pair.affinity("affinity-cookie.conf", true).await;
}

#[tokio::test]
async fn behind_nginx_with_affinity_by_address_each_address_keeps_its_server() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let Some(nginx) = Nginx::require("affinity.conf", pair.ports(), &[]).await else { return };
    let mut nodes = std::collections::HashMap::new();
    for address in 1..=16 {
        let first = raw::negotiate(nginx.port(), address).await;
        let second = raw::negotiate(nginx.port(), address).await;
        assert_eq!(first.node(), second.node(), "127.0.0.{address}");
        *nodes.entry(first.node().to_owned()).or_insert(0) += 1;
        let upgraded = raw::upgrade(nginx.port(), address, &first.token).await;
        assert_eq!(upgraded.status, 101, "{upgraded:?}");
    }
    assert_eq!(nodes.len(), 2, "one server got every address: {nodes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_without_affinity_only_clients_without_negotiation_connect() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let Some(nginx) = Nginx::require("round-robin.conf", pair.ports(), &[]).await else { return };
    Script { name: "round-robin", checks: 4 }.run(&json!({ "url": nginx.url() })).await;
}

#[tokio::test]
async fn a_negotiated_client_that_lands_on_another_server_is_told_the_cause() {
    let Some(pair) = Pair::start(&[]).await else { return };
    let Some(nginx) = Nginx::require("round-robin.conf", pair.ports(), &[]).await else { return };
    let negotiated = raw::negotiate(nginx.port(), 1).await;
    let refused = raw::upgrade(nginx.port(), 1, &negotiated.token).await;
    assert_eq!((refused.status, refused.body.as_str()), (404, "No Connection with that ID"), "{refused:?}");
    let hint = refused.header("x-signalr-hint").expect("the answer names the cure");
    assert!(hint.contains("affinity"), "{hint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_timeout_below_the_keep_alive_interval_cuts_silent_connections() {
    let Some(pair) = Pair::start(&["--keepalive", "2"]).await else { return };
    let short = [("proxy_read_timeout 100s;", "proxy_read_timeout 1s;")];
    let Some(nginx) = Nginx::require("round-robin.conf", pair.ports(), &short).await else { return };
    let script = Script { name: "read-timeout", checks: 1 };
    if !script.run(&json!({ "url": nginx.url(), "pings": 0 })).await {
        return;
    }
    // What an operator finds.
    let said = nginx.errors();
    assert!(
        said.contains("upstream timed out") && said.contains("while proxying upgraded connection"),
        "{said}"
    );

    let Some(nginx) = Nginx::require("round-robin.conf", pair.ports(), &[]).await else { return };
    script.run(&json!({ "url": nginx.url(), "pings": 2 })).await;
}

#[tokio::test]
async fn every_configuration_hands_on_what_servers_and_websockets_need() {
    for configuration in ["affinity.conf", "affinity-cookie.conf", "round-robin.conf"] {
        let upstream = raw::Upstream::start().await;
        let Some(nginx) = Nginx::require(configuration, [upstream.port(), upstream.port()], &[]).await else {
            return;
        };
        let host = format!("127.0.0.1:{}", nginx.port());
        let upgrade = upstream.sees(raw::request(nginx.port(), 1, &raw::upgrade_request(&host, "t"))).await;
        for (name, value) in [
            ("host", host.as_str()),
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", &host),
        ] {
            assert_eq!(upgrade.header(name), Some(value), "{configuration}: {name} of {upgrade:?}");
        }
        assert!(upgrade.first_line.ends_with("HTTP/1.1"), "{configuration}: {upgrade:?}");

        let plain = upstream.sees(raw::request(nginx.port(), 1, &raw::negotiate_request(&host))).await;
        assert_eq!(plain.header("upgrade"), None, "{configuration}: {plain:?}");
        assert_eq!(plain.header("connection"), None, "{configuration}: {plain:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_front_of_two_servers_shows_why_affinity_is_needed() {
    let program = two_servers().await;
    let demo = Server::start("two-servers", &program, 3, |ports| {
        let servers = format!("{},{}", ports[1], ports[2]);
        let arguments = ["--balance", &ports[0].to_string(), "--ports", &servers].map(Into::into).into();
        (arguments, format!("http://127.0.0.1:{}", ports[0]))
    })
    .await;
    Script { name: "balance", checks: 2 }.run(&json!({ "url": demo.url() })).await;
}
