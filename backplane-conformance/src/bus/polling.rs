//! B8: polling `inbound` is cancel-safe, from whichever task.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Delivery, Topic};
use futures::{FutureExt as _, StreamExt as _};

use super::ledger::{Ledger, few, numbered, run};
use super::probe::{Arrival, Probe, WAIT, within};
use super::publisher::Publisher;
use super::space::Space;
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome, bound};

const FRAMES: u32 = 80;

/// Publishes a few frames at a time and lets others run between.
async fn trickle(publisher: &Publisher, topic: &Topic) -> Result<(), Broken> {
    for start in (0..FRAMES).step_by(4) {
        publisher.accept(run(publisher, topic, start..start + 4)).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

pub(super) async fn cancelled_polls_lose_nothing(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("cancelled");
    let publisher = space.publisher().await?;
    let mut reader = space.reader(std::slice::from_ref(&topic)).await?;
    let mut arrivals = Vec::new();
    let mut distinct = HashSet::new();
    let reading = async {
        while distinct.len() < FRAMES as usize {
            // Once with a waker that wakes nobody, once with a real one, and dropped each time.
            let polled = match reader.inbound.next().now_or_never() {
                Some(polled) => Some(polled),
                None => tokio::select! {
                    biased;
                    polled = reader.inbound.next() => Some(polled),
                    () = tokio::time::sleep(Duration::from_millis(1)) => None,
                },
            };
            match polled {
                None => {}
                Some(Some(Ok(Delivery::Frame { topic, frame, position }))) => {
                    distinct.insert(frame.clone());
                    arrivals.push(Arrival { topic, frame, position });
                }
                Some(other) => {
                    return Err(Broken(format!("polls were cancelled, and inbound said {other:?}")));
                }
            }
        }
        Ok(())
    };
    // Reading ends with the last frame; if one is missing, it ends here.
    let waited =
        tokio::time::timeout(bound(WAIT), async { tokio::try_join!(trickle(&publisher, &topic), reading) })
            .await;
    if let Ok(ended) = waited {
        ended?;
    }
    let missing = Ledger::of(&arrivals).missing(&topic, &publisher, FRAMES);
    ensure!(missing.is_empty(), "of {FRAMES} frames {} were lost with the polls", few(&missing));
    Ok(Kept::Yes)
}

pub(super) async fn inbound_may_move_between_tasks(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("moving");
    let publisher = space.publisher().await?;
    let Probe { out: _out, mut inbound, .. } = space.reader(std::slice::from_ref(&topic)).await?;
    for turn in 0..10 {
        // This task has polled and waits no longer; the next one has to be woken in its place.
        let nothing = inbound.next().now_or_never();
        ensure!(nothing.is_none(), "nothing was published, and inbound said {nothing:?}");
        let (polling, polled) = tokio::sync::oneshot::channel();
        let mut task = tokio::spawn(async move {
            let mut polling = Some(polling);
            let next = std::future::poll_fn(|context| {
                let next = inbound.poll_next_unpin(context);
                // Whoever published too early would not test the wake-up.
                if let Some(polling) = polling.take() {
                    let _ = polling.send(());
                }
                next
            });
            let next = next.await;
            (inbound, next)
        });
        within(WAIT, "the first poll", polled).await?.map_err(|_| Broken("the poll panicked".to_owned()))?;
        let out = numbered(&publisher, &topic, turn, 0);
        publisher.accept(vec![out.clone()]).await?;
        let joined = within(WAIT, "a frame to the task that polled last", &mut task).await;
        if joined.is_err() {
            task.abort();
        }
        let (returned, next) = joined?.map_err(|error| Broken(format!("the reading task: {error}")))?;
        inbound = returned;
        let arrived = matches!(&next, Some(Ok(Delivery::Frame { .. })));
        ensure!(arrived, "a frame was awaited, and inbound said {next:?}");
    }
    Ok(Kept::Yes)
}
