//! The official client for JavaScript, unmodified, in Node: two server processes with a private Redis between them.

use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
use backplane_tests::clients::{Script, Server};
use serde_json::json;

/// Two servers on one Redis.
struct Pair {
    redis: Redis,
    north: Server,
    south: Server,
}

impl Pair {
    /// `None`: there is no Redis here; the skip was printed.
    async fn start(parameters: &str, arguments: &[&str]) -> Option<Self> {
        let redis = Redis::require(RedisOptions::default()).await?;
        let url = format!("{}{parameters}", redis.url());
        let arguments = [&["--url", &url], arguments].concat();
        let server = async || Server::reference_hub(env!("CARGO_BIN_EXE_reference-hub"), &arguments).await;
        Some(Self { north: server().await, south: server().await, redis })
    }

    /// Runs a script, which may kill, stop and start the south.
    async fn play(self, script: Script) {
        let settings = json!({ "servers": [self.north.url(), self.south.url()] });
        let deeds = async |deed: &str| match deed.strip_suffix(" south") {
            Some(verb) => self.south.suffer(verb).await,
            None => Err(format!("nobody here can {deed}")),
        };
        script.run_with(&settings, deeds).await;
        self.redis.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_client_gets_every_kind_of_send_between_two_servers() {
    let Some(pair) = Pair::start("", &[]).await else { return };
    pair.play(Script { name: "sends", checks: 47 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_client_answers_questions_of_another_server() {
    // A killed server is missed after three beats of 0.3 of this.
    let Some(pair) = Pair::start("?heartbeat=2s", &["--detailed"]).await else { return };
    pair.play(Script { name: "results", checks: 27 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_client_reconnects_when_its_server_was_killed_or_stopped() {
    let Some(pair) = Pair::start("", &[]).await else { return };
    pair.play(Script { name: "reconnect", checks: 17 }).await;
}
