//! B1: after `subscribe` returned, every later publish to that topic by any node arrives.

use std::collections::HashMap;
use std::sync::Arc;

use backplane_core::Outgoing;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::mpsc;

use super::ledger::{Ledger, few, numbered};
use super::probe::{Probe, WAIT, within};
use super::publisher::Publisher;
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome};

/// Few enough that buses which lose a frame now and then are convicted elsewhere.
const ROUNDS: usize = 40;

/// Publishes one frame to each topic and reads until the reader has each.
async fn each_arrives(
    reader: &mut Probe,
    publisher: &Publisher,
    topics: &[backplane_core::Topic],
    number: u32,
) -> Result<(), Broken> {
    let batch: Vec<Outgoing> = topics.iter().map(|topic| numbered(publisher, topic, number, 0)).collect();
    for slice in batch.chunks(100) {
        publisher.accept(slice.to_vec()).await?;
    }
    let mut waiting: HashMap<_, _> = batch.into_iter().map(|out| (out.frame, out.topic)).collect();
    while let Some(topic) = waiting.values().next() {
        let arrival = reader.next(&format!("the frame on {topic}, of {} missing", waiting.len())).await?;
        if waiting.get(&arrival.frame).is_some_and(|topic| *topic == arrival.topic) {
            waiting.remove(&arrival.frame);
        }
    }
    Ok(())
}

pub(super) async fn a_confirmed_subscription_receives_the_next_publish(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let mut reader = space.link(&[]).await?;
    for round in 0..ROUNDS {
        let topic = space.topic(format_args!("round{round}"));
        let frame = numbered(&publisher, &topic, 0, round).frame;
        reader.subscribe(std::slice::from_ref(&topic)).await?;
        publisher.send(&topic, frame.clone()).await?;
        reader.expect(&topic, &frame).await?;
    }
    Ok(Kept::Yes)
}

pub(super) async fn every_topic_of_a_large_subscribe_is_confirmed(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let mut reader = space.link(&[]).await?;
    let topics = space.topics("many", 1_000);
    reader.subscribe(&topics).await?;
    each_arrives(&mut reader, &publisher, &topics, 0).await?;
    Ok(Kept::Yes)
}

pub(super) async fn topics_of_attach_are_confirmed_before_connect_returns(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    for count in [1, 2, ROUNDS] {
        let topics = space.topics(&format!("attach{count}-"), count);
        let mut reader = space.link(&topics).await?;
        reader.propagated().await;
        each_arrives(&mut reader, &publisher, &topics, 0).await?;
    }
    Ok(Kept::Yes)
}

pub(super) async fn a_topic_works_again_after_unsubscribe_and_subscribe(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let mut reader = space.link(&[]).await?;
    let topics = [space.topic("again")];
    for round in 0..20 {
        reader.subscribe(&topics).await?;
        each_arrives(&mut reader, &publisher, &topics, round).await?;
        reader.unsubscribe(&topics).await?;
    }
    Ok(Kept::Yes)
}

pub(super) async fn subscribing_more_keeps_what_was_subscribed(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let topics = space.topics("more", 7);
    let mut reader = space.link(&topics[..1]).await?;
    for (round, known) in [(0, 2), (1, 3), (2, 5), (3, 7)] {
        // The last call names a topic again that is subscribed already.
        reader.subscribe(&topics[known - 2..known]).await?;
        reader.subscribe(&[]).await?;
        each_arrives(&mut reader, &publisher, &topics[..known], round).await?;
    }
    Ok(Kept::Yes)
}

pub(super) async fn every_subscriber_receives_its_own_copy(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let topics = [space.topic("copies")];
    let mut readers = Vec::new();
    for _ in 0..5 {
        let reader = space.link(&topics).await?;
        reader.propagated().await;
        readers.push(reader);
    }
    let batch: Vec<Outgoing> = (0..10).map(|number| numbered(&publisher, &topics[0], number, 0)).collect();
    for (index, reader) in readers.iter_mut().enumerate() {
        let publishing = async { if index == 0 { publisher.accept(batch.clone()).await } else { Ok(()) } };
        let arrivals = reader.collect(&[(&publisher, &topics[0])], publishing).await?;
        let missing = Ledger::of(&arrivals).missing(&topics[0], &publisher, 10);
        ensure!(missing.is_empty(), "subscriber {index} of 5 did not receive {}", few(&missing));
    }
    Ok(Kept::Yes)
}

pub(super) async fn a_publisher_hears_itself(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topics = space.topics("echo", 3);
    let mut reader = space.reader(&topics).await?;
    let publisher = reader.out.clone();
    each_arrives(&mut reader, &publisher, &topics, 0).await?;
    Ok(Kept::Yes)
}

pub(super) async fn two_links_of_one_bus_are_two_subscribers(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let topics = [space.topic("shared")];
    let mut first = space.link(&topics).await?;
    let mut second = first.again(&topics, None).await?;
    second.propagated().await;
    each_arrives(&mut first, &publisher, &topics, 0).await?;
    let frame = numbered(&publisher, &topics[0], 0, 0).frame;
    second.expect(&topics[0], &frame).await?;
    first.close().await?;
    drop(first);
    each_arrives(&mut second, &publisher, &topics, 1).await?;
    Ok(Kept::Yes)
}

pub(super) async fn fifty_tasks_at_once_do_not_disturb_each_other(harness: Arc<dyn Harness>) -> Outcome {
    const TASKS: usize = 50;
    const TURNS: u32 = 10;
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let mut reader = space.link(&[]).await?;
    let topics = space.topics("task", TASKS);
    let (ways, tasks): (HashMap<_, _>, Vec<_>) = topics
        .iter()
        .map(|topic| {
            let (arrived, arrivals) = mpsc::channel::<Bytes>(64);
            ((topic.clone(), arrived), (topic.clone(), arrivals))
        })
        .unzip();
    let sender = reader.out.sender.clone();
    let propagation = reader.bus.capabilities().propagation;
    let work = join_all(tasks.into_iter().map(|(topic, mut arrivals)| {
        let (sender, publisher) = (sender.clone(), publisher.clone());
        async move {
            let topics = std::slice::from_ref(&topic);
            for turn in 0..TURNS {
                within(WAIT, "subscribe", sender.subscribe(topics)).await??;
                if !propagation.is_zero() {
                    tokio::time::sleep(propagation).await;
                }
                let out = numbered(&publisher, &topic, turn, 0);
                publisher.accept(vec![out.clone()]).await?;
                let arrived =
                    async { while arrivals.recv().await.is_some_and(|frame| frame != out.frame) {} };
                within(WAIT, "a frame to one of fifty tasks", arrived).await?;
                within(WAIT, "unsubscribe", sender.unsubscribe(topics)).await??;
            }
            Ok::<_, Broken>(())
        }
    }));
    let reading = async {
        loop {
            let arrival = reader.next("the frames of fifty tasks").await?;
            if let Some(way) = ways.get(&arrival.topic) {
                // A task that has seen its frame does not read on: repeats may fill its queue and fall off.
                let _ = way.try_send(arrival.frame);
            }
        }
    };
    tokio::select! {
        biased;
        done = work => done.into_iter().collect::<Result<(), Broken>>()?,
        failed = reading => {
            let failed: Result<(), Broken> = failed;
            failed?;
        }
    }
    Ok(Kept::Yes)
}
