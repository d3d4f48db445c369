//! B12: when `resumed`, every frame not yet delivered at the given position arrives.

use std::collections::HashSet;
use std::sync::Arc;

use backplane_core::{Position, Topic};

use super::ledger::{Ledger, few, numbered, run};
use super::probe::{Arrival, Probe};
use super::publisher::Publisher;
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome};

const NO_RESUME: Kept = Kept::NotApplicable("does not promise to resume");

/// More than a bus keeps that bounds its log by a few thousand frames.
const MANY: u32 = 10_000;

/// Reads `count` frames and returns the last position.
async fn handle(reader: &mut Probe, count: usize, into: &mut Vec<Arrival>) -> Result<Position, Broken> {
    for _ in 0..count {
        let arrival = reader.next("a frame before the link ends").await?;
        ensure!(arrival.position.is_some(), "promises to resume, and a delivery has no position");
        into.push(arrival);
    }
    into.last().and_then(|arrival| arrival.position).ok_or_else(|| Broken("nothing was handled".to_owned()))
}

pub(super) async fn a_resumed_link_continues_where_the_last_one_ended(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topics = space.topics("resumed", 2);
    let mut reader = space.reader(&topics).await?;
    if !reader.bus.capabilities().resume {
        return Ok(NO_RESUME);
    }
    let faults = space.faults();
    let attached = [&topics[..], &[space.topic("spare")]].concat();
    let (mut arrivals, mut handled_twice) = (Vec::new(), None);
    let mut publishers: Vec<Publisher> = Vec::new();
    for round in 0..3 {
        let before = space.publisher().await?;
        for topic in &topics {
            before.accept(run(&before, topic, 0..10)).await?;
        }
        // Some are handled, the others lie unread in a link that ends.
        let position = handle(&mut reader, 11, &mut arrivals).await?;
        match &faults {
            Some(faults) if round < 2 => faults.cut().await,
            _ => reader.close().await?,
        }
        let after = space.publisher().await?;
        for topic in &topics {
            // Nobody listens now; what the bus says to that is another contract's matter.
            after.offer(run(&after, topic, 0..10)).await?;
        }
        reader = reader.again(&attached, Some(&position)).await?;
        ensure!(reader.resumed, "promises to resume, and did not 29 frames later");
        let fences: Vec<_> = topics.iter().map(|topic| (&after, topic)).collect();
        let handled: HashSet<_> = arrivals.iter().map(|arrival: &Arrival| arrival.frame.clone()).collect();
        let rest = reader.collect(&fences, async { Ok(()) }).await?;
        handled_twice = handled_twice.or(rest.iter().position(|arrival| handled.contains(&arrival.frame)));
        arrivals.extend(rest);
        publishers.extend([before, after]);
    }
    let ledger = Ledger::of(&arrivals);
    for publisher in &publishers {
        for topic in &topics {
            let missing = ledger.missing(topic, publisher, 10);
            ensure!(missing.is_empty(), "resumed, and {} on {topic} did not arrive", few(&missing));
        }
    }
    let again = handled_twice.filter(|_| !reader.bus.capabilities().repeats);
    ensure!(
        again.is_none(),
        "resumed, and the frame after {} others had been handled before",
        again.unwrap_or(0)
    );
    Ok(Kept::Yes)
}

pub(super) async fn a_position_that_is_too_old_loses_nothing_in_silence(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("old");
    let topics = std::slice::from_ref(&topic);
    let publisher = space.publisher().await?;
    let mut reader = space.reader(topics).await?;
    if !reader.bus.capabilities().resume {
        return Ok(NO_RESUME);
    }
    publisher.accept(vec![numbered(&publisher, &topic, 0, 0)]).await?;
    let mut arrivals = Vec::new();
    let position = handle(&mut reader, 1, &mut arrivals).await?;
    reader.close().await?;
    for start in (1..MANY).step_by(500) {
        let numbers = start..(start + 500).min(MANY);
        publisher.offer(numbers.map(|number| numbered(&publisher, &topic, number, 0)).collect()).await?;
    }
    let mut again = reader.again(topics, Some(&position)).await?;
    if !again.resumed {
        return Ok(Kept::Yes);
    }
    match again.collect(&[(&publisher, &topic)], async { Ok(()) }).await {
        Ok(rest) => {
            arrivals.extend(rest);
            let missing = Ledger::of(&arrivals).missing(&topic, &publisher, MANY);
            ensure!(missing.is_empty(), "resumed at an old position, and {} did not arrive", few(&missing));
        }
        // It was told of the loss, or the link ended: either is honest.
        Err(Broken(why)) => {
            ensure!(why.starts_with("told of a loss") || why.starts_with("link ended"), "{why}")
        }
    }
    Ok(Kept::Yes)
}

pub(super) async fn a_foreign_position_is_not_resumed(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic: Topic = space.topic("foreign");
    let topics = std::slice::from_ref(&topic);
    let publisher = space.publisher().await?;
    let first = space.link(topics).await?;
    if !first.bus.capabilities().resume {
        return Ok(NO_RESUME);
    }
    for bytes in [&[0xff; Position::MAX_LEN][..], &[0xff; 8], &[0xff; 16], b"", b"x"] {
        let Some(position) = Position::new(bytes) else { continue };
        let mut link = first.again(topics, Some(&position)).await?;
        ensure!(!link.resumed, "claims to resume at {position:?}, which no bus gave out");
        link.propagated().await;
        let out = numbered(&publisher, &topic, 0, bytes.len());
        publisher.accept(vec![out.clone()]).await?;
        link.expect(&topic, &out.frame).await?;
    }
    Ok(Kept::Yes)
}

pub(super) async fn resumed_is_claimed_only_when_promised_and_asked(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("unasked");
    let topics = std::slice::from_ref(&topic);
    let first = space.link(topics).await?;
    ensure!(!first.resumed, "a first link claims to have resumed");
    let second = first.again(topics, None).await?;
    ensure!(!second.resumed, "a link that was given no position claims to have resumed");
    if !first.bus.capabilities().resume {
        let third = second.again(topics, Some(&Position::from_u64(1))).await?;
        ensure!(!third.resumed, "does not promise to resume, and claims to have done so");
    }
    Ok(Kept::Yes)
}
