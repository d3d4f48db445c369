//! RabbitMQ killed, frozen, and short of memory or of disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backplane_conformance::broker::{Broker as _, RabbitMq};
use backplane_conformance::cluster::{Fleet, Load, Stage, until_stats};
use backplane_conformance::{Harness, bound};
use backplane_core::{
    Attach, Backplane as _, BackplaneExt, Bus, EncodedMessage, ErrorKind, Health, Result, Router,
    RouterConfig, Target,
};
use futures::future::join_all;

use crate::harness::*;

/// Whatever was done to the broker: nodes are back this long after it takes connections again.
const BACK: Duration = Duration::from_secs(2);

/// The suite's view of the broker that suffers. The faults are provoked by hand.
#[derive(Debug)]
struct RoughHarness(Arc<RabbitMq>);

#[async_trait]
impl Harness for RoughHarness {
    fn name(&self) -> &str {
        "rabbitmq, faults by the server"
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(bus(&self.0.url())))
    }
}

/// Two nodes that send all they can.
async fn loaded(broker: &Arc<RabbitMq>, heartbeat: Duration) -> (Fleet, Load) {
    let stage = Stage::native(Arc::new(RoughHarness(broker.clone())));
    let fleet = Fleet::open_with(&stage, 2, |config, _| config.heartbeat = heartbeat).await.unwrap();
    let load = Load::start(&fleet).await.unwrap();
    load.progress(500).await.unwrap();
    (fleet, load)
}

async fn until_down(fleet: &Fleet) {
    for node in &fleet.nodes {
        within("down", node.router.health().wait_for(Health::is_down)).await.unwrap();
    }
}

/// Waits until all nodes are up and sends are accepted again, which must be soon after `from`.
async fn until_back(what: &str, from: Instant, fleet: &Fleet, load: &Load) {
    for up in within("up", join_all(fleet.nodes.iter().map(|node| node.router.wait_until_up()))).await {
        up.unwrap();
    }
    let up = from.elapsed();
    load.progress(1).await.unwrap();
    let took = from.elapsed();
    println!("{what}: up after {up:?}, sends accepted after {took:?}");
    assert!(took < bound(BACK), "{what}: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_cut_and_killed_under_load_it_loses_nothing_in_silence() {
    const FREEZE: Duration = Duration::from_secs(3);
    let Some((broker, _turn)) = rough().await else { return };
    // The default bound outlasts the freeze; the other one does not.
    let (patient, patient_load) = loaded(&broker, RouterConfig::default().heartbeat).await;
    let (hasty, hasty_load) = loaded(&broker, HEARTBEAT).await;

    let frozen = Instant::now();
    broker.freeze().unwrap();
    until_down(&hasty).await;
    let noticed = frozen.elapsed();
    println!("frozen: noticed after {noticed:?} by the nodes whose bound is {HEARTBEAT:?}");
    // How long the fault lasts; nothing is concluded from it.
    tokio::time::sleep(FREEZE.saturating_sub(noticed)).await;
    broker.thaw().unwrap();
    let thawed = Instant::now();
    assert!(noticed < HEARTBEAT + bound(Duration::from_secs(1)), "{noticed:?}");
    let short = thawed - frozen < RouterConfig::default().heartbeat;
    tokio::join!(
        until_back("frozen below the bound", thawed, &patient, &patient_load),
        until_back("frozen beyond the bound", thawed, &hasty, &hasty_load),
    );
    patient_load.progress(500).await.unwrap();
    hasty_load.progress(500).await.unwrap();
    for node in &patient.nodes {
        let (health, gaps) = (node.router.health().borrow().clone(), node.router.stats().gaps);
        assert!(
            !short || (health.attempts == 1 && gaps == 0),
            "a short freeze cost a link: {health:?}, {gaps} gaps"
        );
    }
    println!("frozen for {:?}: {}", thawed - frozen, hasty_load.judge().await.unwrap());
    hasty.end_disturbed().await.unwrap();

    let links: Vec<u64> = patient.nodes.iter().map(|node| node.router.stats().reconnects).collect();
    broker.close_connections().await.unwrap();
    let cut = Instant::now();
    for (node, before) in patient.nodes.iter().zip(links) {
        until_stats(&node.router, "a new link", |stats| stats.reconnects > before).await.unwrap();
    }
    until_back("cut by an operator", cut, &patient, &patient_load).await;

    broker.kill();
    until_down(&patient).await;
    for node in &patient.nodes {
        let refused = node.send(&Target::all(), "into the void").await.unwrap_err();
        assert_eq!((refused.kind(), refused.outcome_unknown()), (ErrorKind::Unavailable, false), "{refused}");
    }
    broker.restart().await.unwrap();
    until_back("killed", Instant::now(), &patient, &patient_load).await;
    patient_load.progress(500).await.unwrap();
    println!("{}", patient_load.judge().await.unwrap());
    patient.end_disturbed().await.unwrap();
}

fn config(heartbeat: Duration) -> RouterConfig {
    RouterConfig { heartbeat, ..RouterConfig::default() }
}

fn hello() -> EncodedMessage {
    EncodedMessage::json("{\"hello\":true}\u{1e}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_of_memory_or_disk_blocks_publishers_only_and_names_itself() {
    let Some((broker, _turn)) = rough().await else { return };
    let topics = [topic("alarmed")];
    let bus = Arc::new(bus(&format!("{}?command_timeout=1500ms", broker.url())));
    let node = Router::open(bus.clone(), config(HEARTBEAT)).await.unwrap();
    let mut link = connect(&bus, &topics).await;

    broker.raise_memory_alarm().await.unwrap();
    // The broker notices a publisher by what it publishes.
    let start = Instant::now();
    let error = loop {
        let sent = Instant::now();
        let outcome = publish(&link, &topics[0], "x").await;
        assert!(sent.elapsed() < bound(Duration::from_secs(3)), "no outcome for {:?}", sent.elapsed());
        match outcome {
            Err(error) => break error,
            Ok(_) => assert!(start.elapsed() < deadline(), "it is never blocked"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("blocked the connection"), "{error}");
    assert!(link.sender.impediment().unwrap().to_string().contains("memory"), "{error}");
    let mut health = node.health();
    let impeded =
        within("impeded", health.wait_for(Health::is_impeded)).await.map(|health| health.clone()).unwrap();
    println!("{:?}", impeded.impediment);
    let since = Instant::now();
    let error = node.send(&Target::all(), &[], hello()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Unavailable, false), "{error}");
    assert!(error.to_string().contains("blocked the connection"), "{error}");

    // Reading goes on.
    let inject = format!(
        "rabbit_basic:publish({{resource,<<\"/\">>,exchange,<<\"backplane\">>}}, <<\"{}\">>, [], <<\"from within\">>).",
        topics[0]
    );
    broker.eval(&inject).await.unwrap();
    while frame(&mut link).await.1 != "from within" {}
    // A change of interest, too.
    let more = topic("more");
    link.sender.subscribe(std::slice::from_ref(&more)).await.unwrap();
    // For longer than a dead link could live.
    tokio::time::sleep((HEARTBEAT * 3 / 2).saturating_sub(since.elapsed())).await;
    let health = node.health().borrow().clone();
    assert!(health.is_impeded() && health.attempts == 1, "{health:?}");
    // What a link holds at the broker is freed when `close` returns, though its publisher cannot even say goodbye.
    let given_up = connect(&bus, &[]).await;
    let impeded = async {
        while given_up.sender.impediment().is_none() {
            let _ = publish(&given_up, &more, "x").await;
        }
    };
    within("impeded", impeded).await;
    let start = Instant::now();
    given_up.sender.close().await.unwrap();
    assert!(start.elapsed() < bound(Duration::from_secs(1)), "{:?}", start.elapsed());
    let held = broker.holdings().await.unwrap();
    assert_eq!((held.queues, held.consumers), (4, 4), "of the node and of the other link");

    broker.clear_memory_alarm().await.unwrap();
    within("up", node.wait_until_up()).await.unwrap();
    node.send(&Target::all(), &[], hello()).await.unwrap();

    broker.raise_disk_alarm().await.unwrap();
    let refused = async {
        loop {
            if let Err(error) = node.send(&Target::all(), &[], hello()).await
                && !error.outcome_unknown()
            {
                break error;
            }
        }
    };
    let error = within("refused", refused).await;
    assert!(error.to_string().contains("disk"), "{error}");
    within("impeded", node.health().wait_for(Health::is_impeded)).await.unwrap();
    broker.clear_disk_alarm().await.unwrap();
    within("up", node.wait_until_up()).await.unwrap();
    node.send(&Target::all(), &[], hello()).await.unwrap();
    publish(&link, &more, "after").await.unwrap();
    while frame(&mut link).await.1 != "after" {}
    assert_eq!(node.health().borrow().attempts, 1);
    node.shutdown().await.unwrap();
    link.sender.close().await.unwrap();
    until(&broker, "everything is freed", |now| now.connections == 0 && now.queues == 0).await;
}

/// As when the broker's node with somebody's queue is frozen, in a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_stands_still_keeps_back_only_what_goes_there() {
    let Some((broker, _turn)) = rough().await else { return };
    let patient = bus(&format!("{}?command_timeout=120s", broker.url()));
    let topics = [topic("stuck"), topic("free")];
    let stuck =
        patient.connect(Attach { heartbeat: Duration::from_secs(60), ..attach(&topics[..1]) }).await.unwrap();
    let queues = broker.list(&["list_queues", "pid", "name"]).await.unwrap();
    let queue = queues.iter().find(|row| !row[1].ends_with(":losses")).expect("the queue of the only link")
        [1]
    .clone();
    let tell = async |what: &str| {
        let named = format!("{{resource,<<\"/\">>,queue,<<\"{queue}\">>}}");
        let told = format!("{{ok, Q}} = rabbit_amqqueue:lookup({named}), sys:{what}(amqqueue:get_pid(Q)).");
        broker.eval(&told).await.unwrap();
    };
    let mut link = connect(&patient, &topics[1..]).await;
    let impatience = bound(Duration::from_secs(3)).as_millis();
    let hasty = connect(&bus(&format!("{}?command_timeout={impatience}ms", broker.url())), &[]).await;
    tell("suspend").await;
    // Whoever shares a call with a frame that is kept back waits with it, and has its outcome.
    let outcomes =
        hasty.sender.publish(vec![outgoing(&topics[0], "x"), outgoing(&topics[1], "beside")]).await;
    let late = outcomes[0].as_ref().unwrap_err();
    assert_eq!((late.kind(), late.outcome_unknown()), (ErrorKind::Timeout, true), "{late}");
    assert!(outcomes[1].is_ok(), "{outcomes:?}");
    assert_eq!(frame(&mut link).await.1, "beside");
    // Fewer than those after which the broker reads nothing more from who publishes there (its credit is 400).
    let kept_back = link.sender.publish((0..300).map(|_| outgoing(&topics[0], "x")).collect());
    let start = Instant::now();
    publish(&link, &topics[1], "free").await.unwrap();
    println!("accepted after {:?} behind frames that are kept back", start.elapsed());
    assert!(start.elapsed() < bound(Duration::from_secs(4)), "{:?}", start.elapsed());
    assert_eq!(frame(&mut link).await.1, "free");
    // More than may be unconfirmed at once (64 MiB), for what is confirmed behind them takes no room.
    let large = bytes::Bytes::from("l".repeat(8 << 20));
    for _ in 0..9 {
        publish(&link, &topics[1], large.clone()).await.unwrap();
        assert_eq!(frame(&mut link).await.1, large);
    }
    println!("64 MiB more were accepted within {:?}", start.elapsed());
    // As many bytes as may be unconfirmed, kept back themselves: they take room until the broker has them.
    let start = Instant::now();
    let crowd: Vec<_> =
        (0..8).map(|_| link.sender.publish(vec![outgoing(&topics[0], large.clone())])).collect();
    while let Err(error) = publish(&link, &topics[1], large.clone()).await {
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        assert!(start.elapsed() < deadline(), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("room was there {:?} after 64 MiB that are kept back", start.elapsed());
    assert_eq!(frame(&mut link).await.1, large);
    tell("resume").await;
    assert!(within("outcomes", kept_back).await.iter().all(Result::is_ok));
    for outcomes in within("outcomes", join_all(crowd)).await {
        assert!(outcomes[0].is_ok(), "{outcomes:?}");
    }
    // A confirm that comes after its batch was answered is for nobody.
    publish(&hasty, &topics[1], "after").await.unwrap();
    assert_eq!(frame(&mut link).await.1, "after");
    hasty.sender.close().await.unwrap();
    link.sender.close().await.unwrap();
    drop(stuck);
    // The next test counts what the broker holds.
    until(&broker, "everything is freed", |now| now.connections == 0 && now.queues == 0).await;
}
