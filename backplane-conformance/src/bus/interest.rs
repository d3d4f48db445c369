//! B10: `unsubscribe` frees, exactly what it names. A bus may deliver topics that nobody asked for.

use std::sync::Arc;

use backplane_core::{Topic, TopicSyntax};

use super::ledger::{Ledger, few, numbered};
use super::probe::Probe;
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome};

/// Whether topics that were unsubscribed are delivered all the same. Hash buckets and logs deliver some of them and some
/// that were never subscribed; a bus that forgot to unsubscribe delivers all of one and none of the other.
async fn freed(space: &Space, reader: &mut Probe, left: &[Topic], fence: &Topic) -> Outcome {
    let witness = space.witness().await?;
    for topic in left {
        witness.until_reach(topic, 0).await?;
    }
    let never = space.topics("never", 8);
    let batch = left.iter().chain(&never).map(|topic| numbered(&witness, topic, 7, 0)).collect();
    let publishing = async {
        // Nobody is expected to listen; what the bus says to that is another contract's matter.
        witness.offer(batch).await?;
        Ok(())
    };
    let arrivals = reader.collect(&[(&witness, fence)], publishing).await?;
    let ledger = Ledger::of(&arrivals);
    let heard =
        |topics: &[Topic]| topics.iter().filter(|topic| ledger.numbers(topic, &witness).contains(&7)).count();
    let forgotten = heard(left) == left.len() && heard(&never) == 0;
    ensure!(!forgotten, "every topic was delivered that had been unsubscribed");
    Ok(Kept::Yes)
}

pub(super) async fn unsubscribe_ends_delivery(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let kept = space.topic("kept");
    let mut left = space.topics("left", 8);
    let mut reader = space.reader(&[&left[..], std::slice::from_ref(&kept)].concat()).await?;
    if reader.bus.capabilities().topics == TopicSyntax::Any {
        // A bus that has to escape a topic has to do so here too.
        let hostile = ["*", "a b", "\0", "\r\n", "'", "\u{1f980}"].map(|name| space.topic(name));
        reader.subscribe(&[&hostile[..], std::slice::from_ref(&kept)].concat()).await?;
        left.extend(hostile);
    }
    reader.unsubscribe(&left).await?;
    freed(&space, &mut reader, &left, &kept).await
}

pub(super) async fn one_unsubscribe_frees_whatever_was_subscribed_how_often(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let kept = space.topic("kept");
    let left = space.topics("thrice", 8);
    let all = [&left[..], std::slice::from_ref(&kept)].concat();
    let mut reader = space.reader(&all).await?;
    reader.subscribe(&all).await?;
    reader.subscribe(&[&left[..], &all[..]].concat()).await?;
    reader.unsubscribe(&left).await?;
    freed(&space, &mut reader, &left, &kept).await
}

pub(super) async fn unsubscribing_leaves_other_topics_alone(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let publisher = space.publisher().await?;
    let topics = space.topics("kept", 4);
    // Neighbours in the same subscribe, and in name.
    let left = [space.topic("left"), space.topic("kept"), space.topic("kept0.left")];
    let mut reader = space.reader(&[&topics[..2], &left[..], &topics[2..]].concat()).await?;
    reader.unsubscribe(&left).await?;
    let batch = topics.iter().map(|topic| numbered(&publisher, topic, 0, 0)).collect();
    let fences: Vec<_> = topics[..1].iter().map(|topic| (&publisher, topic)).collect();
    let arrivals = reader.collect(&fences, publisher.accept(batch)).await;
    let mut arrivals =
        arrivals.map_err(|Broken(why)| Broken(format!("after another was unsubscribed: {why}")))?;
    reader.read_late(&mut arrivals, |arrivals| arrivals.len() >= topics.len()).await;
    let ledger = Ledger::of(&arrivals);
    for topic in &topics {
        let missing = ledger.missing(topic, &publisher, 1);
        ensure!(
            missing.is_empty(),
            "{} on {topic} did not arrive after others were unsubscribed",
            few(&missing)
        );
    }
    Ok(Kept::Yes)
}

pub(super) async fn unsubscribing_unknown_topics_is_no_error(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("known");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    reader.unsubscribe(&space.topics("unknown", 3)).await?;
    reader.unsubscribe(&[]).await?;
    let out = numbered(&publisher, &topic, 0, 0);
    publisher.accept(vec![out.clone()]).await?;
    reader.expect(&topic, &out.frame).await?;
    reader.unsubscribe(std::slice::from_ref(&topic)).await?;
    reader.unsubscribe(std::slice::from_ref(&topic)).await?;
    Ok(Kept::Yes)
}
