//! B4: a frame's `Ok` means that the broker accepted it; nobody has to wait for it, and nobody has to listen.

use std::sync::Arc;

use backplane_core::{Outgoing, Reach};
use bytes::Bytes;
use futures::FutureExt as _;

use super::ledger::{Ledger, few, numbered, run};
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Kept, Outcome};

pub(super) async fn one_result_for_each_frame_of_a_batch(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("results");
    let publisher = space.publisher().await?;
    let _reader = space.reader(std::slice::from_ref(&topic)).await?;
    for size in [0, 1, 2, 7, 63, 513] {
        let results = publisher.offer(run(&publisher, &topic, 0..size)).await?;
        ensure!(results.len() == size as usize, "{} results for a batch of {size} frames", results.len());
        for result in results {
            result?;
        }
    }
    Ok(Kept::Yes)
}

pub(super) async fn accepted_frames_arrive(harness: Arc<dyn Harness>) -> Outcome {
    const EACH: u32 = 500;
    let space = Space::new(harness);
    let topics = space.topics("accepted", 3);
    let publisher = space.publisher().await?;
    let mut reader = space.reader(&topics).await?;
    let publishing = async {
        for start in (0..EACH).step_by(50) {
            for topic in &topics {
                publisher.accept(run(&publisher, topic, start..start + 50)).await?;
            }
        }
        Ok(())
    };
    let fences: Vec<_> = topics.iter().map(|topic| (&publisher, topic)).collect();
    let mut arrivals = reader.collect(&fences, publishing).await?;
    let total = 3 * EACH as usize;
    reader.read_late(&mut arrivals, |arrivals| arrivals.len() >= total).await;
    let ledger = Ledger::of(&arrivals);
    for topic in &topics {
        let missing = ledger.missing(topic, &publisher, EACH);
        ensure!(missing.is_empty(), "of {EACH} accepted frames on {topic} {} did not arrive", few(&missing));
    }
    Ok(Kept::Yes)
}

pub(super) async fn frames_accepted_before_close_arrive(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("last-words");
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let witness = space.publisher().await?;
    for _ in 0..5 {
        let leaving = space.link(&[]).await?;
        let (last, closing) = (leaving.out.clone(), leaving.close());
        let publishing = async {
            last.accept(run(&last, &topic, 0..10)).await?;
            closing.await
        };
        let mut arrivals = reader.collect(&[(&witness, &topic)], publishing).await?;
        reader.read_late(&mut arrivals, |arrivals| arrivals.len() >= 10).await;
        let missing = Ledger::of(&arrivals).missing(&topic, &last, 10);
        ensure!(missing.is_empty(), "accepted, then closed: {} did not arrive", few(&missing));
    }
    Ok(Kept::Yes)
}

pub(super) async fn a_dropped_publish_loses_its_outcome_but_no_frame(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("dropped");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let publishing = async {
        for start in (0..40).step_by(4) {
            // Dropped before the first poll, and after one.
            drop(publisher.sender.publish(run(&publisher, &topic, start..start + 2)));
            let polled_once =
                publisher.sender.publish(run(&publisher, &topic, start + 2..start + 4)).now_or_never();
            drop(polled_once);
        }
        Ok(())
    };
    let mut arrivals = reader.collect(&[(&publisher, &topic)], publishing).await?;
    reader.read_late(&mut arrivals, |arrivals| arrivals.len() >= 40).await;
    let missing = Ledger::of(&arrivals).missing(&topic, &publisher, 40);
    ensure!(missing.is_empty(), "the futures were dropped, and {} with them", few(&missing));
    Ok(Kept::Yes)
}

pub(super) async fn publishing_to_nobody_is_ok(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    for topic in space.topics("nobody", 10) {
        publisher.accept(vec![numbered(&publisher, &topic, 0, 0)]).await?;
    }
    Ok(Kept::Yes)
}

pub(super) async fn reach_counts_the_links_that_listen(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let (topic, other) = (space.topic("reach"), space.topic("reach.other"));
    let topics = std::slice::from_ref(&topic);
    let publisher = space.link(&[]).await?;
    if !publisher.out.limits.reports_reach {
        let reach = publisher.out.reach(&topic).await?;
        ensure!(reach == Reach::Unknown, "does not report reach, yet answered {reach:?}");
        return Ok(Kept::NotApplicable("does not report reach"));
    }
    let publisher = &publisher.out;
    ensure!(publisher.reach(&topic).await? == Reach::Nodes(0), "nobody listens, and nobody must be reached");
    let mut readers = Vec::new();
    for count in 1..=3 {
        readers.push(space.link(topics).await?);
        let reach = publisher.reach(&topic).await?;
        ensure!(reach == Reach::Nodes(count), "{count} links listen, and {reach:?} are said to be reached");
    }
    let batch = [&topic, &other, &topic].map(|topic| Outgoing { topic: topic.clone(), frame: Bytes::new() });
    let mut answers = Vec::new();
    for result in publisher.offer(batch.to_vec()).await? {
        answers.push(result?);
    }
    let right = answers == [3, 0, 3].map(Reach::Nodes);
    ensure!(right, "a batch to topics with 3, 0 and 3 listeners is said to have reached {answers:?}");
    Ok(Kept::Yes)
}
