//! Our router with the `aspnetcore` wire format in the place of one of the recorded .NET servers, bare links that
//! replay the other's bytes in its place: the same PUBLISHes byte for byte with the same number of receivers, the same
//! subscriptions after each action, the same arrivals at the clients, the same ends of calls. Every difference stands
//! in [`deviations`].

#[path = "recordings_router/afterwards.rs"]
mod afterwards;
#[path = "recordings_router/client.rs"]
mod client;
#[path = "recordings_router/deeds.rs"]
mod deeds;
#[path = "recordings_codec/describe.rs"]
mod describe;
#[path = "recordings_router/deviations.rs"]
mod deviations;
#[path = "recordings_router/events.rs"]
mod events;
#[path = "recordings_router/falsified.rs"]
mod falsified;
#[path = "recordings_router/hub.rs"]
mod hub;
#[path = "recordings_router/outcome.rs"]
mod outcome;
#[path = "recordings_router/player.rs"]
mod player;
#[path = "recordings_router/raw_bytes.rs"]
mod raw_bytes;
#[path = "recordings_router/raw_peer.rs"]
mod raw_peer;
#[path = "recordings_router/resp.rs"]
mod resp;
#[path = "recordings_router/script.rs"]
mod script;
#[path = "recordings_router/stage.rs"]
mod stage;
#[path = "recordings_router/tally.rs"]
mod tally;

use std::sync::Arc;

use backplane_conformance::broker::{Broker as _, Redis, RedisOptions};
use backplane_core::{Bus, MemoryBus};
use backplane_tests::recording::Recording;
use backplane_tests::wiretap::PATIENCE;
use deviations::{DEVIATIONS, Deviation};
use falsified::FALSIFIED;
use player::play;
use script::with_one_name_each;
use tally::Tally;

/// What is played, and in the place of which servers.
const PLAYED: [(&str, &[&str]); 19] = [
    ("connect-disconnect", BOTH),
    ("sends", BOTH),
    ("groups", BOTH),
    ("groups-remote", BOTH),
    ("groups-unknown-connection", BOTH),
    ("groups-names", BOTH),
    ("groups-case", BOTH),
    ("client-results", BOTH),
    ("client-results-id", BOTH),
    ("client-results-disconnect", BOTH),
    ("client-results-timeout", BOTH),
    ("prefix-traffic", BOTH),
    ("hub-types", &["A"]),
    ("protocol-mismatch", BOTH),
    ("protocol-mismatch-result", BOTH),
    ("foreign-accepted", BOTH),
    ("foreign-malformed", BOTH),
    ("foreign-control", BOTH),
    ("foreign-questions", BOTH),
];

const BOTH: &[&str] = &["A", "B"];

/// What all plays together compare; the same on every bus.
const ALL: Tally = Tally {
    actions: 774,
    publishes: 185,
    reaches: 573,
    changes: 375,
    pushes: 744,
    arrivals: 185,
    calls: 161,
    connections: 117,
    refused: 60,
    steps: 3_249,
    deviations: 27,
};

/// Time is paused: it passes when everybody waits.
#[tokio::test(start_paused = true)]
async fn our_node_in_the_place_of_a_dotnet_server_on_the_memory_bus() {
    let mut plays = Vec::new();
    for (name, servers) in PLAYED {
        for server in servers {
            let play = async move {
                let recording = with_one_name_each(Recording::load(name));
                let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());
                play(&recording, server, &bus, None).await
            };
            plays.push((format!("{name}, ours as {server}"), tokio::spawn(play)));
        }
    }
    let (mut total, mut failed) = (Tally::default(), Vec::new());
    for (name, play) in plays {
        match play.await {
            Ok(tally) => {
                println!("{name}: {tally:?}");
                total += tally;
            }
            // It has printed why.
            Err(_) => failed.push(name),
        }
    }
    assert_eq!(failed, Vec::<String>::new());
    for Deviation { file, server, steps, change, reason } in DEVIATIONS {
        println!("{file}, ours as {server}, steps {steps:?}: {change:?}: {reason}");
    }
    println!("all: {total:?}");
    assert_eq!(total, ALL);
}

#[tokio::test]
async fn our_node_in_the_place_of_a_dotnet_server_on_redis() {
    let Some(redis) = Redis::require(RedisOptions::default()).await else { return };
    let mut total = Tally::default();
    for (name, servers) in PLAYED {
        for server in servers {
            let recording = with_one_name_each(Recording::load(name));
            tokio::time::timeout(PATIENCE, nobody_is_left(&redis)).await.expect("channels are freed in time");
            let bus = backplane::open_bus(&redis.url()).expect("a Redis bus");
            total += Box::pin(play(&recording, server, &bus, Some(&redis))).await;
        }
    }
    println!("all: {total:?}");
    assert_eq!(total, ALL);
}

/// The links of the play before are freed in the background.
async fn nobody_is_left(redis: &Redis) {
    while !redis.channels().await.expect("Redis answers").is_empty() {
        tokio::task::yield_now().await;
    }
}

/// The negative controls: a recording in which one thing is wrong is never played to its end.
#[tokio::test(start_paused = true)]
async fn a_recording_with_one_wrong_thing_is_noticed() {
    for (what, name, server, falsify) in FALSIFIED {
        let mut recording = with_one_name_each(Recording::load(name));
        falsify(&mut recording.steps);
        let play = async move {
            let bus: Arc<dyn Bus> = Arc::new(MemoryBus::new());
            play(&recording, server, &bus, None).await
        };
        let outcome = tokio::spawn(play).await;
        let error = outcome.expect_err(&format!("{what} in {name} passes unnoticed"));
        let complaint = error.into_panic().downcast::<String>().expect("a comparison says what is wrong");
        assert!(complaint.contains(&format!("{name}, ours as {server}")), "{what}: {complaint}");
    }
}
