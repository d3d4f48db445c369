//! B7: a link is freed on the broker when `inbound` is dropped or `close` returned, whichever is first; a sender that
//! outlives it answers `Closed`.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Attach, Delivery, ErrorKind, LinkSender, NodeId, Topic};
use futures::StreamExt as _;
use tokio::time::{Instant, sleep, timeout};

use super::ledger::numbered;
use super::probe::{Probe, WAIT, within};
use super::space::{NO_FAULTS, Space};
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome, bound};

/// How many links die.
const DEATHS: usize = 8;

const NO_REACH: Kept =
    Kept::NotApplicable("does not report reach, or wrongly: nobody can see who still listens");

pub(super) async fn close_frees_the_link(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topics = space.topics("closed", 3);
    let witness = space.witness().await?;
    let link = space.link(&topics[..2]).await?;
    link.subscribe(&topics[2..]).await?;
    link.close().await?;
    for topic in &topics {
        witness.until_reach(topic, 0).await?;
    }
    // Held until here: close frees although inbound lives.
    drop(link);
    Ok(if witness.limits.reports_reach { Kept::Yes } else { NO_REACH })
}

pub(super) async fn dropping_inbound_frees_the_link(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topics = space.topics("dropped", 3);
    let witness = space.witness().await?;
    let link = space.link(&topics[..2]).await?;
    link.subscribe(&topics[2..]).await?;
    let Probe { out, inbound, .. } = link;
    drop(inbound);
    for topic in &topics {
        witness.until_reach(topic, 0).await?;
    }
    // Held until here: dropping inbound frees although the sender lives.
    drop(out);
    Ok(if witness.limits.reports_reach { Kept::Yes } else { NO_REACH })
}

/// Whether every call of a sender answers `Closed`, after a moment.
async fn answers_closed(sender: &dyn LinkSender, topic: &Topic, frame: bytes::Bytes) -> Result<(), Broken> {
    let give_up = Instant::now() + bound(Duration::from_secs(2));
    loop {
        let out = backplane_core::Outgoing { topic: topic.clone(), frame: frame.clone() };
        let results = within(WAIT, "publish after the end", sender.publish(vec![out.clone(), out])).await?;
        let topics = std::slice::from_ref(topic);
        let subscribed = within(WAIT, "subscribe after the end", sender.subscribe(topics)).await?;
        let closed = |error: &backplane_core::Error| error.kind() == ErrorKind::Closed;
        let published =
            !results.is_empty() && results.iter().all(|result| result.as_ref().is_err_and(closed));
        if published && subscribed.as_ref().is_err_and(closed) {
            return Ok(());
        }
        ensure!(
            Instant::now() < give_up,
            "two frames were answered {results:?} and subscribe {subscribed:?}, not Closed"
        );
        sleep(Duration::from_millis(10)).await;
    }
}

pub(super) async fn a_closed_sender_answers_closed(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("closed");
    let link = space.link(std::slice::from_ref(&topic)).await?;
    link.close().await?;
    answers_closed(&*link.out.sender, &topic, numbered(&link.out, &topic, 0, 0).frame).await?;
    Ok(Kept::Yes)
}

pub(super) async fn a_sender_that_outlives_inbound_answers_closed(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("outlived");
    let Probe { out, inbound, .. } = space.link(std::slice::from_ref(&topic)).await?;
    drop(inbound);
    answers_closed(&*out.sender, &topic, numbered(&out, &topic, 0, 0).frame).await?;
    within(WAIT, "close after inbound was dropped", out.sender.close()).await??;
    Ok(Kept::Yes)
}

pub(super) async fn close_is_idempotent_and_ends_inbound_without_an_error(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("ended");
    let mut link = space.link(std::slice::from_ref(&topic)).await?;
    let sender = link.out.sender.clone();
    let (first, second) = tokio::join!(
        within(WAIT, "close", sender.close()),
        within(WAIT, "a second close at once", sender.close())
    );
    first??;
    second??;
    link.close().await?;
    loop {
        match timeout(bound(WAIT), link.inbound.next()).await {
            Ok(None) => break,
            Ok(Some(Ok(Delivery::Frame { .. }))) => {}
            Ok(Some(other)) => return Err(Broken(format!("closed in order, and inbound said {other:?}"))),
            Err(_) => return Err(Broken(format!("closed, and inbound did not end within {WAIT:?}"))),
        }
    }
    link.close().await?;
    Ok(Kept::Yes)
}

/// The end of `inbound` and the end of what serves the sender are rarely one step. Several times, for it is a matter of
/// microseconds; from another task, so that it can be one.
pub(super) async fn closing_a_link_that_has_just_died_is_no_error(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let topic = space.topic("dying");
    for _ in 0..DEATHS {
        let mut link = space.link(std::slice::from_ref(&topic)).await?;
        let sender = link.out.sender.clone();
        faults.cut().await;
        let ended = tokio::spawn(async move {
            link.ends_with_an_error(WAIT).await?;
            within(WAIT, "close of a link that has just died", link.out.sender.close()).await??;
            Ok::<_, Broken>(())
        });
        ended.await.map_err(|panicked| Broken(panicked.to_string()))??;
        within(WAIT, "a second close of it", sender.close()).await??;
    }
    Ok(Kept::Yes)
}

pub(super) async fn a_dropped_connect_leaves_nothing_behind(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("abandoned");
    let topics = std::slice::from_ref(&topic);
    let witness = space.witness().await?;
    let bus = space.harness.bus().await?;
    let node = NodeId::random();
    let heartbeat = Duration::from_secs(10);
    for attempt in 1..=12 {
        let attach = Attach { node, attempt, topics, resume: None, deadline: bound(WAIT), heartbeat };
        // Dropped after a time that grows: before its first poll at first, in its midst, or when it has the link.
        let patience = Duration::from_micros(200 * (attempt - 1));
        let abandoned = timeout(patience, bus.connect(attach)).await;
        drop(abandoned);
    }
    witness.until_reach(&topic, 0).await?;
    let mut link = Probe::open(bus, node, 13, topics, None, heartbeat).await?;
    link.propagated().await;
    let out = numbered(&witness, &topic, 0, 0);
    witness.accept(vec![out.clone()]).await?;
    link.expect(&topic, &out.frame).await?;
    Ok(if witness.limits.reports_reach { Kept::Yes } else { NO_REACH })
}
