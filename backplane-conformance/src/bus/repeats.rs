//! B5: frames may repeat only where the capabilities say so.

use std::sync::Arc;

use super::ledger::{Ledger, run};
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome};

const ALLOWED: Kept = Kept::NotApplicable("says that frames may repeat");

pub(super) async fn no_frame_arrives_twice(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topics = space.topics("once", 2);
    let publisher = space.publisher().await?;
    let mut reader = space.reader(&topics).await?;
    if reader.bus.capabilities().repeats {
        return Ok(ALLOWED);
    }
    let publishing = async {
        for start in (0..1_000).step_by(100) {
            for topic in &topics {
                publisher.accept(run(&publisher, topic, start..start + 100)).await?;
            }
        }
        Ok(())
    };
    let fences = [(&publisher, &topics[0]), (&publisher, &topics[1])];
    let arrivals = reader.collect(&fences, publishing).await?;
    Ledger::of(&arrivals).repeat().map_or(Ok(Kept::Yes), |repeat| Err(Broken(repeat)))
}

pub(super) async fn a_topic_subscribed_twice_arrives_once(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("twice");
    let publisher = space.publisher().await?;
    let twice = [topic.clone(), topic.clone()];
    let mut reader = space.link(&twice).await?;
    if reader.bus.capabilities().repeats {
        return Ok(ALLOWED);
    }
    reader.subscribe(&twice).await?;
    reader.subscribe(&twice[..1]).await?;
    let publishing = publisher.accept(run(&publisher, &topic, 0..20));
    let arrivals = reader.collect(&[(&publisher, &topic)], publishing).await?;
    let ledger = Ledger::of(&arrivals);
    ensure!(!ledger.numbers(&topic, &publisher).is_empty(), "subscribed three times, and nothing arrived");
    ledger.repeat().map_or(Ok(Kept::Yes), |repeat| Err(Broken(repeat)))
}
