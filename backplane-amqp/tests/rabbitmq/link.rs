//! What is particular to a link over RabbitMQ: bindings that linger, queues that overflow, what is left behind.

use std::task::Poll;
use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_conformance::broker::Broker as _;
use backplane_conformance::proxy::FaultProxy;
use backplane_core::{Attach, Bus as _, Delivery, ErrorKind, LossReason, Topic};
use futures::{FutureExt as _, StreamExt as _};

use crate::harness::*;

#[tokio::test]
async fn a_frame_of_the_limit_passes_and_one_byte_more_is_refused_alone() {
    let Some(broker) = calm().await else { return };
    let topic = topic("room");
    let mut link =
        connect(&bus(&format!("{}?max_frame=1000", broker.url())), std::slice::from_ref(&topic)).await;
    let foreign = Topic::from("not tokens");
    let batch = vec![
        outgoing(&topic, vec![1; 1_001]),
        outgoing(&topic, vec![2; 1_000]),
        outgoing(&foreign, "x"),
        outgoing(&topic, "last"),
    ];
    let outcomes = link.sender.publish(batch).await;
    let kinds: Vec<_> =
        outcomes.iter().map(|outcome| outcome.as_ref().err().map(|error| error.kind())).collect();
    assert_eq!(kinds, [Some(ErrorKind::TooLarge), None, Some(ErrorKind::Unsupported), None]);
    assert_eq!(frame(&mut link).await.1, vec![2; 1_000]);
    assert_eq!(frame(&mut link).await.1, "last");
    assert_eq!(link.sender.subscribe(&[foreign]).await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(link.sender.publish(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn a_queue_that_overflows_tells_its_reader() {
    let Some(broker) = calm().await else { return };
    let topic = topic("flood");
    let small = bus(&format!("{}?max_queue_bytes=65536&prefetch=10", broker.url()));
    let mut reader = connect(&small, std::slice::from_ref(&topic)).await;
    let writer = connect(&bus(&broker.url()), &[]).await;
    for round in 0..4 {
        // Nobody reads, and all are accepted.
        let batch = (0..500).map(|_| outgoing(&topic, vec![1; 1_000])).collect();
        assert!(writer.sender.publish(batch).await.iter().all(Result::is_ok));
        publish(&writer, &topic, "last").await.unwrap();
        let (mut frames, mut losses) = (0, 0);
        loop {
            match next(&mut reader).await {
                Delivery::Frame { frame, .. } if frame == "last" => break,
                Delivery::Frame { .. } => frames += 1,
                Delivery::Lost { topics: None, reason: LossReason::Overflow } => losses += 1,
                other => panic!("{other:?}"),
            }
        }
        if losses == 0 {
            let Delivery::Lost { reason: LossReason::Overflow, .. } = next(&mut reader).await else {
                panic!("the loss was not told");
            };
            losses += 1;
        }
        println!("round {round}: {frames} of 500 arrived, told of {losses} losses");
        assert!(frames < 500 && losses < 10, "{frames} {losses}");
        // What the message about the loss was held for.
        while let Ok(Some(Ok(more))) =
            tokio::time::timeout(Duration::from_millis(300), reader.inbound.next()).await
        {
            assert!(matches!(more, Delivery::Lost { .. }), "{more:?}");
        }
    }
    publish(&writer, &topic, "after").await.unwrap();
    loop {
        match next(&mut reader).await {
            Delivery::Frame { frame, .. } => {
                assert_eq!(frame, "after");
                break;
            }
            // One more word about the last round, which took its time.
            Delivery::Lost { .. } => {}
        }
    }
}

#[tokio::test]
async fn a_frame_that_waited_too_long_is_a_loss_that_is_told() {
    let Some(broker) = calm().await else { return };
    let topic = topic("late");
    let hasty = bus(&format!("{}?message_ttl=1000ms&prefetch=1", broker.url()));
    let mut reader = connect(&hasty, std::slice::from_ref(&topic)).await;
    let writer = connect(&bus(&broker.url()), &[]).await;
    let batch = (0..10).map(|number: u32| outgoing(&topic, number.to_string())).collect();
    assert!(writer.sender.publish(batch).await.iter().all(Result::is_ok));
    let start = Instant::now();
    // One was sent ahead; it is read only after the others have expired.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (mut frames, mut told) = (0, false);
    while !told {
        match next(&mut reader).await {
            Delivery::Frame { .. } => frames += 1,
            Delivery::Lost { reason: LossReason::Retention, .. } => told = true,
            other => panic!("{other:?} after {:?}", start.elapsed()),
        }
    }
    assert_eq!(frames, 1);
}

#[tokio::test]
async fn a_queue_deleted_by_an_operator_ends_its_link() {
    let Some(broker) = calm().await else { return };
    let attach = attach(&[]);
    let mut link = bus(&broker.url()).connect(attach).await.unwrap();
    let delete = format!(
        "[rabbit_amqqueue:delete(Q, false, false, <<\"suite\">>) || Q <- rabbit_amqqueue:list(<<\"/\">>), \
         {{resource, _, queue, <<\"backplane.{}.\", _/binary>>}} <- [amqqueue:get_name(Q)]].",
        attach.node
    );
    broker.eval(&delete).await.unwrap();
    let error = end(&mut link).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("cancelled the consumer"), "{error}");
    let closed = async {
        while publish(&link, &Topic::from("x"), "x").await.map_err(|error| error.kind())
            != Err(ErrorKind::Closed)
        {}
    };
    tokio::time::timeout(deadline(), closed).await.expect("its sender is closed");
}

#[tokio::test]
async fn a_binding_outlives_the_interest_in_it_for_a_while() {
    let Some((broker, _turn)) = rough().await else { return };
    let lazy = bus(&format!("{}?unbind_after=3000ms", broker.url()));
    let before = broker.holdings().await.unwrap();
    let topics: Vec<Topic> = (0..50).map(|number| topic(&format!("room{number}"))).collect();
    let mut link = connect(&lazy, &[]).await;
    // Of the queue that tells of losses.
    let own = before.bindings + 1;
    link.sender.subscribe(&topics).await.unwrap();
    assert_eq!(broker.holdings().await.unwrap().bindings, own + 50);

    let left = Instant::now();
    link.sender.unsubscribe(&topics).await.unwrap();
    publish(&link, &topics[0], "nobody wants it").await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_millis(300), link.inbound.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let lingering = broker.holdings().await.unwrap().bindings;
    if left.elapsed() < Duration::from_secs(3) {
        assert_eq!(lingering, own + 50);
    }
    // Taken back at once.
    link.sender.subscribe(&topics[..1]).await.unwrap();
    publish(&link, &topics[0], "wanted again").await.unwrap();
    assert_eq!(frame(&mut link).await.1, "wanted again");
    let took = until(&broker, "the others are unbound", |now| now.bindings == own + 1).await;
    println!("unbound {took:?} after the last look");
    publish(&link, &topics[0], "still wanted").await.unwrap();
    assert_eq!(frame(&mut link).await.1, "still wanted");
    link.sender.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_are_bound_in_a_pipeline_and_deliveries_do_not_wait_for_them() {
    let Some((broker, _turn)) = rough().await else { return };
    let bus = bus(&format!("{}?unbind_after=0ms&command_timeout=30000ms", broker.url()));
    let ping = topic("ping");
    let mut link = connect(&bus, std::slice::from_ref(&ping)).await;
    let writer = connect(&bus, &[]).await;
    let sender = link.sender.clone();
    let topics: Vec<Topic> = (0..2_000).map(|number| topic(&format!("room{number}"))).collect();
    for verb in ["bound", "unbound"] {
        let start = Instant::now();
        let changed = async {
            match verb {
                "bound" => sender.subscribe(&topics).await.unwrap(),
                _ => sender.unsubscribe(&topics).await.unwrap(),
            }
            start.elapsed()
        };
        let mut changed = std::pin::pin!(changed);
        let (mut arrived, mut longest) = (0, Duration::ZERO);
        let took = loop {
            let sent = Instant::now();
            let pinged = async {
                publish(&writer, &ping, "ping").await.unwrap();
                assert_eq!(frame(&mut link).await.1, "ping");
                longest = longest.max(sent.elapsed());
            };
            tokio::select! {
                biased;
                // First: what arrives only with its end does not count.
                took = &mut changed => break took,
                () = pinged => arrived += 1,
            }
        };
        println!(
            "2,000 topics {verb} in {took:?}, {arrived} deliveries meanwhile; the longest wait was {longest:?}"
        );
        // Whoever keeps everything back until the change is done lets the first wait for all of it.
        assert!(arrived >= 3, "{arrived} deliveries, the longest after {longest:?} of {took:?}");
    }
    writer.sender.close().await.unwrap();
    link.sender.close().await.unwrap();
}

#[tokio::test]
async fn closed_dropped_or_dead_a_link_leaves_the_exchange_only() {
    let Some((broker, _turn)) = rough().await else { return };
    let topics = [topic("room"), topic("hall")];
    // So that the exchange is there before.
    drop(connect(&bus(&broker.url()), &[]).await);
    let none = until(&broker, "nothing is connected", |now| now.connections == 0).await;
    println!("a dropped link was freed within {none:?}");
    let before = broker.holdings().await.unwrap();
    assert_eq!((before.queues, before.bindings, before.consumers), (0, 0, 0));

    let mut link = connect(&bus(&broker.url()), &topics).await;
    let held = broker.holdings().await.unwrap();
    assert_eq!((held.queues, held.bindings, held.consumers, held.connections), (2, 3, 2, 2));
    let last = link.sender.publish(vec![outgoing(&topics[0], "last")]);
    link.sender.close().await.unwrap();
    assert_eq!(broker.holdings().await.unwrap(), before, "freed when close returns");
    assert!(last.await[0].is_ok(), "close finishes what was published");
    assert!(end(&mut link).await.is_none());

    let link = connect(&bus(&broker.url()), &topics).await;
    let sender = link.sender.clone();
    drop(link.inbound);
    until(&broker, "a dropped link is freed", |now| *now == before).await;
    let outcomes = sender.publish(vec![outgoing(&topics[0], "x")]).await;
    assert_eq!(outcomes[0].as_ref().unwrap_err().kind(), ErrorKind::Closed);
    sender.close().await.unwrap();

    // As when the machine of a node loses its power: nobody says goodbye.
    let proxy = FaultProxy::start(broker.address()).unwrap();
    let far = bus(&broker.url_at(proxy.address()));
    let mut dead = far.connect(attach(&topics)).await.unwrap();
    proxy.freeze();
    let start = Instant::now();
    let error = end(&mut dead).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(start.elapsed() < HEARTBEAT + bound(Duration::from_secs(1)), "{:?}", start.elapsed());
    until(&broker, "a dead link is freed", |now| *now == before).await;
    println!("a dead link of {HEARTBEAT:?} was freed {:?} after it went quiet", start.elapsed());
}

#[tokio::test]
async fn a_close_does_not_wait_for_a_broker_that_stands_still() {
    let Some(broker) = calm().await else { return };
    let proxy = FaultProxy::start(broker.address()).unwrap();
    let topic = topic("room");
    // The link is opened within it, too.
    let timeout = bound(Duration::from_millis(300)).as_millis();
    let far = bus(&format!("{}?command_timeout={timeout}ms", broker.url_at(proxy.address())));
    let mut link = connect(&far, std::slice::from_ref(&topic)).await;
    proxy.freeze();
    let start = Instant::now();
    let in_flight = link.sender.publish(vec![outgoing(&topic, "x"), outgoing(&topic, vec![1; 12 << 20])]);
    let (outcomes, closed) = within("closed", async { tokio::join!(in_flight, link.sender.close()) }).await;
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Timeout, true), "{error}");
    }
    assert_eq!(closed.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(start.elapsed() < bound(Duration::from_secs(2)), "{:?}", start.elapsed());
    assert!(end(&mut link).await.is_none());
}

#[tokio::test]
async fn a_close_that_was_asked_keeps_its_answer_when_inbound_is_dropped() {
    let Some(broker) = calm().await else { return };
    let proxy = FaultProxy::start(broker.address()).unwrap();
    let timeout = bound(Duration::from_secs(1));
    let far = bus(&format!("{}?command_timeout={}ms", broker.url_at(proxy.address()), timeout.as_millis()));
    let link = connect(&far, &[]).await;
    proxy.freeze();
    let mut closing = link.sender.close();
    assert!((&mut closing).now_or_never().is_none());
    drop(link.inbound);
    let error = within("closed", closing).await.expect_err("the broker freed nothing");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
}

#[tokio::test]
async fn a_link_whose_close_was_given_up_does_not_linger() {
    let Some(broker) = calm().await else { return };
    let proxy = FaultProxy::start(broker.address()).unwrap();
    let far = bus(&format!("{}?command_timeout=60s", broker.url_at(proxy.address())));
    let link = far.connect(Attach { heartbeat: Duration::from_secs(60), ..attach(&[]) }).await.unwrap();
    proxy.freeze();
    let closing = link.sender.close();
    // It is under way when it is given up.
    tokio::time::timeout(Duration::from_millis(200), closing).await.expect_err("the broker stands still");
    drop(link.inbound);
    let start = Instant::now();
    // Who asks after `inbound` was dropped is answered when the link has ended.
    within("the link has ended", link.sender.close()).await.unwrap();
    println!("ended {:?} after it was given up", start.elapsed());
    assert!(start.elapsed() < bound(Duration::from_secs(4)), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_connect_that_is_given_up_at_any_await_frees_everything() {
    let Some((broker, _turn)) = rough().await else { return };
    let bus = bus(&broker.url());
    let topics: Vec<Topic> = (0..100).map(|number| topic(&format!("t{number}"))).collect();
    for polls in 1.. {
        let mut connecting = bus.connect(Attach { attempt: polls, ..attach(&topics) });
        let mut finished = false;
        let mut left = polls;
        std::future::poll_fn(|cx| {
            finished = connecting.as_mut().poll(cx).is_ready();
            left -= 1;
            if finished || left == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        drop(connecting);
        if finished {
            println!("connect was given up at {polls} points");
            assert!(polls > 5);
            break;
        }
    }
    until(&broker, "everything is freed", |now| now.connections == 0 && now.queues == 0).await;
}
