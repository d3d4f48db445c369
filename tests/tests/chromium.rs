//! Pages in a headless Chromium: the official client for browsers, and the page of the demonstration.

use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
use backplane_tests::clients::{Chromium, Script, Server, port, two_servers};
use serde_json::json;

/// The origin that the CORS policy of the reference server allows.
const ORIGIN: &str = "example.com";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_client_works_in_chromium_on_a_page_of_another_origin() {
    let site = port();
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let Some(chromium) = Chromium::require(ORIGIN, site).await else { return };
    let url = redis.url();
    let hub = env!("CARGO_BIN_EXE_reference-hub");
    let north = Server::reference_hub(hub, &["--url", &url, "--cors"]).await;
    let south = Server::reference_hub(hub, &["--url", &url]).await;
    let settings = json!({
        "browser": chromium.url(),
        "origin": format!("http://{ORIGIN}"),
        "port": site,
        "north": north.url(),
        "south": south.url(),
    });
    let deeds = async |deed: &str| match deed.strip_suffix(" north") {
        Some(verb) => north.suffer(verb).await,
        None => Err(format!("nobody here can {deed}")),
    };
    Script { name: "official-page", checks: 11 }.run_with(&settings, deeds).await;
    chromium.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chat_page_in_chromium_talks_between_two_servers_and_follows_the_link() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let Some(chromium) = Chromium::require(ORIGIN, port()).await else { return };
    // A killed server is missed after three beats of 0.3 of this.
    let (program, url) = (two_servers().await, format!("{}?heartbeat=2s", redis.url()));
    let server = async || {
        Server::start("two-servers", &program, 1, |ports| {
            let arguments = ["--port", &ports[0].to_string(), "--url", &url].map(Into::into).into();
            (arguments, format!("http://127.0.0.1:{}/", ports[0]))
        })
        .await
    };
    let (north, south) = (server().await, server().await);
    let settings = json!({ "browser": chromium.url(), "servers": [north.url(), south.url()] });
    let deeds = async |deed: &str| match deed {
        "kill redis" => {
            redis.kill();
            Ok(())
        }
        "start redis" => redis.restart().await.map_err(|error| error.to_string()),
        _ => match deed.strip_suffix(" south") {
            Some(verb) => south.suffer(verb).await,
            None => Err(format!("nobody here can {deed}")),
        },
    };
    Script { name: "chat-page", checks: 12 }.run_with(&settings, deeds).await;
    chromium.stop().await;
}
