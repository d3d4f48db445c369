//! What only Service Bus has, on the in-process peer: tokens, entities, rules, throttling, detached links.

// Reports are printed.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_amqp::{ServiceBus, ServiceBusConfig};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Contract, Faults, Harness, Report, bound, bus as suite};
use backplane_core::{
    Attach, Backplane as _, BackplaneExt as _, Bus, ErrorKind, Event as NodeEvent, Health, LinkState, NodeId,
    Outgoing, Result, Router, RouterConfig, Target, Topic,
};
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use crate::link::{attach, bus, connect, end, next, patience, publish, refused};
use crate::peer::{Ending, Event, Peer, Rule};

#[derive(Debug)]
struct PeerHarness {
    name: String,
    peer: Peer,
    proxy: Arc<FaultProxy>,
    parameters: &'static str,
}

#[async_trait]
impl Harness for PeerHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        let config = ServiceBusConfig::from_url(&self.peer.url_at(self.proxy.address(), self.parameters))?;
        Ok(Arc::new(ServiceBus::new(config)?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(self.proxy.clone())
    }
}

async fn contracts(parameters: &'static str, only: impl Fn(&Contract) -> bool) {
    let peer = Peer::start().await;
    let proxy = Arc::new(FaultProxy::start(peer.address).unwrap());
    let name = format!("the peer that plays Service Bus, {parameters}");
    let chosen: Vec<Contract> = suite::contracts().into_iter().filter(only).collect();
    let harness = Arc::new(PeerHarness { name, peer, proxy, parameters });
    let report = Report::of(harness.clone(), &chosen).await;
    println!("{report}");
    report.assert_clean();
    harness.peer.until_received_by(0).await;
    // Links that were cut left theirs behind.
    harness.peer.state.entities.lock().idle_time_passes();
    assert_eq!(harness.peer.state.entities.lock().subscriptions(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_for_each_topic_keeps_every_contract() {
    contracts("&filters=topics", |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_for_buckets_keep_the_contracts_about_topics() {
    contracts("&filters=16", |contract| ["B1", "B6", "B10"].contains(&contract.id)).await;
}

/// A node that tries again soon.
fn eager() -> RouterConfig {
    RouterConfig {
        reconnect_min: Duration::from_millis(20),
        reconnect_max: Duration::from_millis(100),
        ..RouterConfig::default()
    }
}

fn tokens(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Token { taken: true, .. })).count()
}

#[tokio::test]
async fn tokens_are_put_for_what_is_used_and_renewed_before_they_end() {
    let peer = Peer::start().await;
    let bus = bus(&peer.url("&token_lifetime=3000ms"));
    let mut link = connect(&bus, &["room"]).await;
    let events = peer.events();
    let audiences: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Token { audience, taken: true } => Some(audience.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(audiences.len(), 2, "{events:?}");
    assert!(audiences.contains(&"amqps://127.0.0.1/live"), "{events:?}");
    assert!(audiences.iter().any(|audience| audience.contains("/live/Subscriptions/node-")), "{events:?}");
    // The peer detaches a link whose token has ended: three renewals reach past the first two.
    peer.until("three renewals", |events| tokens(events) >= 8).await;
    publish(&link, "room", b"after").await.unwrap();
    assert_eq!(next(&mut link).await, "after");
    link.sender.close().await.unwrap();
    assert!(end(&mut link).await.is_none());
}

#[tokio::test]
async fn a_refused_token_is_denied_at_first_and_when_it_is_renewed() {
    let peer = Peer::start().await;
    let stranger = peer.url("").replace("suite:", "stranger:");
    let error = refused(&bus(&stranger)).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");

    peer.manners(|manners| manners.refuse_tokens = true);
    let error = refused(&bus(&peer.url(""))).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");

    peer.manners(|manners| manners.refuse_tokens = false);
    let mut link = connect(&bus(&peer.url("&token_lifetime=2000ms")), &["room"]).await;
    peer.manners(|manners| manners.refuse_tokens = true);
    let error = end(&mut link).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test]
async fn a_token_that_has_ended_is_not_accepted() {
    let peer = Peer::start().await;
    // The peer judges by its own signature check: a lifetime of two seconds whose renewal is refused ends the links.
    let mut link = connect(&bus(&peer.url("&token_lifetime=2000ms")), &["room"]).await;
    peer.manners(|manners| manners.refuse_tokens = true);
    peer.until("a refused renewal", |events| {
        events.iter().any(|event| matches!(event, Event::Token { taken: false, .. }))
    })
    .await;
    assert!(end(&mut link).await.is_some());
    let after = publish(&link, "room", b"late").await.unwrap_err();
    assert!(matches!(after.kind(), ErrorKind::Closed | ErrorKind::Unavailable), "{after}");
}

#[tokio::test]
async fn a_topic_is_made_once_by_many_nodes_and_subscriptions_end_with_their_links() {
    let peer = Peer::start().await;
    let buses: Vec<_> = (0..6).map(|_| bus(&peer.url("&ttl=45000ms"))).collect();
    let mut links = futures::future::join_all(buses.iter().map(|bus| connect(bus, &["room"]))).await;
    let events = peer.events();
    let made = events.iter().filter(|event| matches!(event, Event::Topic { made: true, .. })).count();
    assert_eq!(made, 1, "{events:?}");
    let descriptions: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Subscribed { topic, name, description } => {
                assert_eq!(topic, "live");
                assert!(name.starts_with("node-") && name.len() <= 50, "{name}");
                Some(description)
            }
            _ => None,
        })
        .collect();
    assert_eq!(descriptions.len(), 6);
    for description in descriptions {
        for part in [
            "<AutoDeleteOnIdle>PT5M</AutoDeleteOnIdle>",
            "<DefaultMessageTimeToLive>PT45S</DefaultMessageTimeToLive>",
            "<DeadLetteringOnMessageExpiration>false</DeadLetteringOnMessageExpiration>",
        ] {
            assert!(description.contains(part), "{description}");
        }
    }
    publish(&links[0], "room", b"to all").await.unwrap();
    for link in &mut links {
        assert_eq!(next(link).await, "to all");
    }
    for link in &links {
        link.sender.close().await.unwrap();
    }
    assert_eq!(peer.state.entities.lock().subscriptions(), 0);
}

#[tokio::test]
async fn what_a_killed_node_leaves_behind_deletes_itself() {
    let peer = Peer::start().await;
    let proxy = FaultProxy::start(peer.address).unwrap();
    let killed = bus(&peer.url_at(proxy.address(), ""));
    let link = connect(&killed, &["room"]).await;
    let stays = connect(&bus(&peer.url("")), &["room"]).await;
    assert_eq!(peer.state.entities.lock().subscriptions(), 2);
    // Its connections end as those of a killed process do, and nobody is there to delete anything: the management
    // interface is out of reach too.
    peer.manners(|manners| manners.management_busy = true);
    proxy.down().await;
    peer.until_received_by(1).await;
    drop(link);
    assert_eq!(peer.state.entities.lock().subscriptions(), 2);
    peer.state.entities.lock().idle_time_passes();
    assert_eq!(peer.state.entities.lock().subscriptions(), 1, "the other node's stays");
    drop(stays);
}

#[tokio::test]
async fn a_lost_entity_is_told_and_made_anew() {
    let peer = Peer::start().await;
    let router = Router::open(Arc::new(bus(&peer.url(""))), eager()).await.unwrap();
    let mut events = router.events();
    peer.state.entities.lock().topics.clear();
    peer.detach(Ending::NotFound);
    let mut lost = None;
    let mut gap = false;
    timeout(patience(), async {
        while !gap {
            match events.recv().await.unwrap() {
                NodeEvent::LinkDown { error } => lost = Some(error),
                NodeEvent::Gap(_) => gap = true,
                _ => {}
            }
        }
    })
    .await
    .unwrap();
    assert!(lost.unwrap().to_string().contains("deleted"));
    timeout(patience(), router.health().wait_for(Health::is_up)).await.unwrap().unwrap();
    let events = peer.events();
    let made = events.iter().filter(|event| matches!(event, Event::Topic { made: true, .. })).count();
    assert_eq!(made, 2, "{events:?}");
    router.shutdown().await.unwrap();
    assert_eq!(peer.state.entities.lock().subscriptions(), 0);
}

#[tokio::test]
async fn a_topic_that_vanished_between_two_links_is_made_again() {
    let peer = Peer::start().await;
    let bus = bus(&peer.url(""));
    connect(&bus, &[]).await.sender.close().await.unwrap();
    peer.state.entities.lock().topics.clear();
    let mut link = connect(&bus, &["room"]).await;
    publish(&link, "room", b"again").await.unwrap();
    assert_eq!(next(&mut link).await, "again");
}

#[tokio::test]
async fn refused_credentials_show_in_health_and_are_tried_on() {
    let peer = Peer::start().await;
    let router = Router::open(Arc::new(bus(&peer.url(""))), eager()).await.unwrap();
    peer.manners(|manners| manners.refuse_tokens = true);
    peer.detach(Ending::Forced);
    let denied = |health: &Health| matches!(&health.state, LinkState::Down { error: Some(error) } if error.kind() == ErrorKind::Denied);
    timeout(patience(), router.health().wait_for(denied)).await.unwrap().unwrap();
    peer.manners(|manners| manners.refuse_tokens = false);
    timeout(patience(), router.health().wait_for(Health::is_up)).await.unwrap().unwrap();
    router.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_provided_subscription_is_used_and_kept_and_its_backlog_left_out() {
    let peer = Peer::start().await;
    {
        let mut entities = peer.state.entities.lock();
        entities.topics.entry("live".to_owned()).or_default();
        entities.subscribe("live", "node-1", "").unwrap();
    }
    let other = connect(&bus(&peer.url("")), &[]).await;
    publish(&other, "room", b"too early").await.unwrap();
    let mut link = connect(&bus(&peer.url("&create=false&subscription=node-1")), &["room"]).await;
    publish(&other, "room", b"in time").await.unwrap();
    assert_eq!(next(&mut link).await, "in time");
    link.sender.close().await.unwrap();
    assert_eq!(peer.state.entities.lock().topics["live"].len(), 2, "ours and the other node's");

    let missing = bus(&peer.url("&create=false&subscription=node-2"));
    let error = refused(&missing).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("no such subscription"), "{error}");
}

#[tokio::test]
async fn rules_are_added_before_everything_else_is_shut_out() {
    let peer = Peer::start().await;
    let bus = bus(&peer.url("&filters=topics"));
    let mut link = connect(&bus, &["room", "hall"]).await;
    let rules = |events: &[Event]| -> Vec<Event> {
        let of_rules = |event: &&Event| matches!(event, Event::RuleAdded { .. } | Event::RuleRemoved { .. });
        events.iter().filter(of_rules).cloned().collect()
    };
    let events = rules(&peer.events());
    assert!(matches!(
        &events[..],
        // The third one is for our own probes.
        [Event::RuleAdded { .. }, Event::RuleAdded { .. }, Event::RuleAdded { .. }, Event::RuleRemoved { rule }]
            if rule == "$Default"
    ));
    link.sender.subscribe(&[Topic::from("attic"), Topic::from("room")]).await.unwrap();
    publish(&link, "attic", b"heard").await.unwrap();
    assert_eq!(next(&mut link).await, "heard");
    assert_eq!(rules(&peer.events()).len(), 5, "one rule more");

    link.sender.unsubscribe(&[Topic::from("hall"), Topic::from("attic")]).await.unwrap();
    let left: Vec<Rule> = {
        let entities = peer.state.entities.lock();
        let subscription = entities.topics["live"].values().next().unwrap();
        assert_eq!(subscription.rules.len(), 2, "for the room and for our own probes");
        subscription.rules.values().cloned().collect()
    };
    // A message for nobody here does not even come.
    publish(&link, "hall", b"unheard").await.unwrap();
    publish(&link, "room", b"last").await.unwrap();
    assert_eq!(next(&mut link).await, "last");
    assert!(left.iter().all(|rule| matches!(rule, Rule::Label(label) if label.len() == 32)));
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn a_busy_server_is_told_as_overloaded_and_left_alone() {
    let peer = Peer::start().await;
    let bus = bus(&peer.url(""));
    let mut link = connect(&bus, &["room"]).await;
    peer.manners(|manners| (manners.busy, manners.busy_seconds) = (1, 1));
    let start = Instant::now();
    let error = publish(&link, "room", b"refused").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(error.to_string().contains("server-busy"), "{error}");
    let mut refusals = 0;
    // For as long as the server said nothing is sent.
    while let Err(error) = publish(&link, "room", b"accepted").await {
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        refusals += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refusals > 0 && start.elapsed() >= Duration::from_secs(1), "{refusals}, {:?}", start.elapsed());
    assert_eq!(peer.events().iter().filter(|event| **event == Event::Busy).count(), 1);
    assert_eq!(next(&mut link).await, "accepted");
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_throttled_for_longer_than_a_dead_link_lives_keeps_its_link_and_says_why() {
    let peer = Peer::start().await;
    let bus = Arc::new(bus(&peer.url("")));
    let heartbeat = Duration::from_secs(1);
    let router = Router::open(bus, RouterConfig { heartbeat, ..eager() }).await.unwrap();
    peer.manners(|manners| (manners.busy, manners.busy_seconds) = (1, 3));
    let hello = || backplane_conformance::cluster::message("hello");
    let throttled = Instant::now();
    let error = loop {
        // A beat may be refused in its stead.
        if let Err(error) = router.send(&Target::all(), &[], hello()).await {
            break error;
        }
    };
    assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Overloaded, false), "{error}");
    let mut health = router.health();
    let impeded = timeout(patience(), health.wait_for(Health::is_impeded)).await.unwrap().unwrap().clone();
    assert!(impeded.impediment.unwrap().to_string().contains("busy"));
    timeout(patience(), health.wait_for(Health::is_up)).await.unwrap().unwrap();
    assert!(throttled.elapsed() >= Duration::from_secs(3), "{:?}", throttled.elapsed());
    router.send(&Target::all(), &[], hello()).await.unwrap();
    assert_eq!(health.borrow().attempts, 1);
    router.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_join_needs_no_answer_of_a_server_that_is_busy() {
    let peer = Peer::start().await;
    let mut link = connect(&bus(&peer.url("")), &["room"]).await;
    peer.manners(|manners| (manners.busy, manners.busy_seconds) = (1, 1));
    publish(&link, "room", b"refused").await.unwrap_err();
    link.sender.subscribe(&[Topic::from("hall")]).await.unwrap();
    let busy = link.sender.impediment().unwrap();
    assert_eq!(busy.kind(), ErrorKind::Overloaded, "{busy}");
    while publish(&link, "hall", b"heard").await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(next(&mut link).await, "heard");
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn attempts_that_fail_do_not_pile_up_subscriptions() {
    let peer = Peer::start().await;
    let bus = bus(&peer.url(""));
    // What it was made for is refused only after it was made.
    peer.manners(|manners| manners.refuse_tokens = true);
    for attempt in 1..=12 {
        let refused = attach(&bus, NodeId::random(), attempt, &[], patience()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
    }
    let left = peer.state.entities.lock().subscriptions();
    assert!(left <= 2, "{left} are left");
    peer.manners(|manners| manners.refuse_tokens = false);
    let link = connect(&bus, &[]).await;
    link.sender.close().await.unwrap();
    assert!(peer.state.entities.lock().subscriptions() <= 1);
}

#[tokio::test]
async fn a_rule_that_could_not_be_removed_is_removed_with_the_next_change() {
    let peer = Peer::start().await;
    let link = connect(&bus(&peer.url("&filters=topics")), &["room", "hall"]).await;
    let rules = || {
        let entities = peer.state.entities.lock();
        entities.topics["live"].values().next().unwrap().rules.len()
    };
    assert_eq!(rules(), 3, "one is for our own probes");
    peer.manners(|manners| manners.refuse_rules = 1);
    let error = link.sender.unsubscribe(&[Topic::from("hall")]).await.unwrap_err();
    assert!(error.to_string().contains("500"), "{error}");
    assert_eq!(rules(), 3);
    link.sender.unsubscribe(&[Topic::from("hall")]).await.unwrap();
    assert_eq!(rules(), 2);
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn a_provided_subscription_that_somebody_else_empties_is_named() {
    let peer = Peer::start().await;
    {
        let mut entities = peer.state.entities.lock();
        entities.topics.entry("live".to_owned()).or_default();
        entities.subscribe("live", "node-1", "").unwrap();
    }
    peer.manners(|manners| manners.mute = true);
    let bus = bus(&peer.url("&create=false&subscription=node-1"));
    let attach = Attach {
        node: NodeId::random(),
        attempt: 1,
        topics: &[],
        resume: None,
        // Enough to come as far as the probe.
        deadline: bound(Duration::from_millis(500)),
        heartbeat: patience(),
    };
    let error = bus.connect(attach).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains("`node-1`"), "{error}");
}

#[tokio::test]
async fn a_busy_management_interface_is_not_asked_again_at_once() {
    let peer = Peer::start().await;
    peer.manners(|manners| (manners.management_busy, manners.busy_seconds) = (true, 1));
    let bus = bus(&peer.url(""));
    for _ in 0..20 {
        let error = refused(&bus).await;
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    }
    let asked = peer.events().iter().filter(|event| **event == Event::Busy).count();
    assert_eq!(asked, 1);
    peer.manners(|manners| manners.management_busy = false);
    timeout(patience(), async {
        while attach(&bus, NodeId::random(), 1, &[], patience()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_detached_link_ends_with_the_servers_reason() {
    let peer = Peer::start().await;
    let mut link = connect(&bus(&peer.url("")), &["room"]).await;
    peer.detach(Ending::Forced);
    let error = end(&mut link).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("idle"), "{error}");
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn a_server_that_takes_frames_and_answers_nothing_is_told_as_late() {
    let peer = Peer::start().await;
    let link = connect(&bus(&peer.url("&publish_timeout=300ms")), &["room"]).await;
    peer.manners(|manners| manners.mute = true);
    let error = publish(&link, "room", b"unanswered").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.outcome_unknown());
    // Far more than the server gives credit for: none of them hangs.
    let outgoing = Outgoing { topic: Topic::from("room"), frame: Bytes::from(vec![0; 100_000]) };
    let outcomes = timeout(patience(), link.sender.publish(vec![outgoing; 600])).await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().unwrap_err().kind() == ErrorKind::Timeout));
}

#[tokio::test]
async fn the_limit_of_the_link_is_that_of_the_entity() {
    let peer = Peer::start().await;
    let mut link = connect(&bus(&peer.url("")), &["room"]).await;
    assert_eq!(link.limits.max_frame, (256 << 10) - (4 << 10));
    let frame = Bytes::from(vec![7; link.limits.max_frame]);
    let outgoing = Outgoing { topic: Topic::from("room"), frame: frame.clone() };
    let outcomes = link.sender.publish(vec![outgoing]).await;
    assert!(outcomes[0].is_ok(), "{outcomes:?}");
    assert_eq!(next(&mut link).await, frame);
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn many_frames_share_a_message() {
    let peer = Peer::start().await;
    let mut link = connect(&bus(&peer.url("")), &["room"]).await;
    let before = peer.events().iter().filter(|event| **event == Event::Message).count();
    let frame = |number: u32| Outgoing {
        topic: Topic::from("room"),
        frame: Bytes::copy_from_slice(&number.to_be_bytes()),
    };
    let outcomes = link.sender.publish((0..1_000).map(frame).collect()).await;
    assert!(outcomes.len() == 1_000 && outcomes.iter().all(Result::is_ok));
    for number in 0..1_000_u32 {
        assert_eq!(next(&mut link).await, &number.to_be_bytes()[..]);
    }
    let messages = peer.events().iter().filter(|event| **event == Event::Message).count() - before;
    assert_eq!(messages, 1);
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn two_nodes_meet_over_service_bus() {
    let peer = Peer::start().await;
    let open = || Router::open(Arc::new(bus(&peer.url("&filters=topics"))), RouterConfig::default());
    let (north, south) = (open().await.unwrap(), open().await.unwrap());
    let message = backplane_conformance::cluster::message("hello");
    north.send(&Target::all(), &[], message).await.unwrap();
    assert!(south.wait_until_up().await.is_ok());
    north.shutdown().await.unwrap();
    south.shutdown().await.unwrap();
    assert_eq!(peer.state.entities.lock().subscriptions(), 0);
}
