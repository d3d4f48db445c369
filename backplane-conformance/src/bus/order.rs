//! B3: per publisher and topic, order is kept within a link; `Order::Total` promises one order on all nodes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use backplane_core::{Order, Topic};
use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::yield_now;

use super::ledger::{Ledger, run};
use super::probe::{Arrival, WAIT, within};
use super::publisher::Publisher;
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome};

fn in_order(arrivals: &[Arrival]) -> Outcome {
    match Ledger::of(arrivals).disorder() {
        None => Ok(Kept::Yes),
        Some(disorder) => Err(Broken(disorder)),
    }
}

pub(super) async fn order_is_kept_within_a_batch(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("batch");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let publishing = async {
        for start in (0..1_000).step_by(250) {
            publisher.accept(run(&publisher, &topic, start..start + 250)).await?;
        }
        Ok(())
    };
    in_order(&reader.collect(&[(&publisher, &topic)], publishing).await?)
}

pub(super) async fn order_is_kept_over_calls_that_nobody_awaited(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("calls");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let publishing = async {
        for start in (0..1_000).step_by(200) {
            let mut calls: Vec<_> = (start..start + 200)
                .step_by(4)
                .map(|number| publisher.sender.publish(run(&publisher, &topic, number..number + 4)))
                .collect();
            // The call fixes the order, not who awaits first.
            calls.reverse();
            within(WAIT, "publish", join_all(calls)).await?;
            yield_now().await;
        }
        Ok(())
    };
    in_order(&reader.collect(&[(&publisher, &topic)], publishing).await?)
}

pub(super) async fn order_is_kept_when_publishers_interleave(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topics = space.topics("weave", 4);
    let mut reader = space.reader(&topics).await?;
    let mut publishers = Vec::new();
    for _ in 0..3 {
        publishers.push(space.publisher().await?);
    }
    let weaving = async {
        let each = publishers.iter().map(|publisher| async {
            for start in (0..120).step_by(10) {
                for topic in &topics {
                    publisher.accept(run(publisher, topic, start..start + 10)).await?;
                }
            }
            Ok::<_, Broken>(())
        });
        join_all(each).await.into_iter().collect()
    };
    let fences: Vec<(&Publisher, &Topic)> =
        publishers.iter().flat_map(|publisher| topics.iter().map(move |topic| (publisher, topic))).collect();
    in_order(&reader.collect(&fences, weaving).await?)
}

pub(super) async fn all_receivers_see_one_order(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("total");
    let topics = std::slice::from_ref(&topic);
    let mut first = space.reader(topics).await?;
    if first.bus.capabilities().order != Order::Total {
        return Ok(Kept::NotApplicable("promises order per publisher only"));
    }
    // Two that publish and listen, and one that only listens: an echo that overtakes the broker shows.
    let mut second = space.reader(topics).await?;
    let mut third = space.reader(topics).await?;
    let (one, two) = (first.out.clone(), second.out.clone());
    let published = watch::Sender::new(false);
    let until_published = || {
        let mut published = published.subscribe();
        async move {
            let told = published.wait_for(|done| *done).await;
            told.map(drop).map_err(|_| Broken("publishing ended early".to_owned()))
        }
    };
    let publishing = async {
        for start in (0..300).step_by(50) {
            let calls = (start..start + 50).step_by(10).flat_map(|number| {
                [&one, &two]
                    .map(|publisher| publisher.sender.publish(run(publisher, &topic, number..number + 10)))
            });
            let calls: Vec<_> = calls.collect();
            within(WAIT, "publish", join_all(calls)).await?;
            yield_now().await;
        }
        published.send_replace(true);
        Ok(())
    };
    // One order for all: what another publishes when all was accepted comes last.
    let witness = space.publisher().await?;
    let fences = [(&witness, &topic)];
    let (a, b, c) = tokio::try_join!(
        biased;
        first.collect(&fences, publishing),
        second.collect(&fences, until_published()),
        third.collect(&fences, until_published()),
    )?;
    one_order(&a, &b)?;
    one_order(&b, &c)?;
    Ok(Kept::Yes)
}

/// Whether frames that arrived at both arrived in the same order, the first copy of each counting. What only one of
/// them received is another contract's matter.
fn one_order(left: &[Arrival], right: &[Arrival]) -> Result<(), Broken> {
    let mut places = HashMap::new();
    for (place, arrival) in right.iter().enumerate() {
        places.entry(&arrival.frame).or_insert(place);
    }
    let mut highest = None;
    let mut seen = HashSet::new();
    for (at, arrival) in left.iter().enumerate() {
        let Some(place) = places.get(&arrival.frame) else { continue };
        if !seen.insert(&arrival.frame) {
            continue;
        }
        ensure!(Some(place) > highest, "the {at}th frame of one receiver came to another in another order");
        highest = Some(place);
    }
    Ok(())
}
