//! B6: a dead link ends `inbound` with an error within the heartbeat bound; it never just goes quiet, and neither does
//! its sender.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::Result;
use tokio::time::{Instant, sleep};

use super::ledger::numbered;
use super::probe::{Probe, WAIT, is_gone, within};
use super::space::{NO_FAULTS, Space};
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome, bound};

/// The heartbeat bound of these links: short, so that death is quick; long enough for a busy machine. A link that a slow
/// one cannot serve in that time dies without a fault, so it grows as other bounds do, but not by as much: these contracts
/// last some five times as long.
fn heartbeat() -> Duration {
    const SHORT: Duration = Duration::from_millis(800);
    bound(SHORT).min(3 * SHORT)
}

/// When everything about a dead link must be over.
const BOUND: Duration = Duration::from_millis(2_800);

/// Three links as a process has them: idle and subscribed, idle and not, and one that has just been used.
async fn three_links(space: &Space) -> Result<[Probe; 3], Broken> {
    let topic = space.topic("alive");
    let subscribed = space.link_with_heartbeat(std::slice::from_ref(&topic), heartbeat()).await?;
    let bare = space.link_with_heartbeat(&[], heartbeat()).await?;
    let used = space.link_with_heartbeat(&[], heartbeat()).await?;
    used.out.accept(vec![numbered(&used.out, &topic, 0, 0)]).await?;
    Ok([subscribed, bare, used])
}

async fn all_end([one, two, three]: &mut [Probe; 3]) -> Result<(), Broken> {
    let ends = [one, two, three].map(|link| link.ends_with_an_error(BOUND));
    futures::future::join_all(ends).await.into_iter().collect()
}

/// A new link carries frames.
async fn works(space: &Space) -> Result<(), Broken> {
    let topic = space.topic("after");
    let publisher = space.publisher().await?;
    let mut link = space.reader(std::slice::from_ref(&topic)).await?;
    let out = numbered(&publisher, &topic, 0, 0);
    publisher.accept(vec![out.clone()]).await?;
    link.expect(&topic, &out.frame).await
}

pub(super) async fn a_cut_link_ends_with_an_error(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let mut links = three_links(&space).await?;
    faults.cut().await;
    all_end(&mut links).await?;
    works(&space).await?;
    Ok(Kept::Yes)
}

pub(super) async fn a_frozen_link_ends_with_an_error_within_the_heartbeat_bound(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let mut links = three_links(&space).await?;
    faults.freeze().await;
    let ended = all_end(&mut links).await;
    faults.thaw().await;
    ended?;
    works(&space).await?;
    Ok(Kept::Yes)
}

pub(super) async fn a_lost_broker_ends_links_and_comes_back(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let mut links = three_links(&space).await?;
    faults.down().await;
    let ended = all_end(&mut links).await;
    faults.up().await;
    ended?;
    works(&space).await?;
    Ok(Kept::Yes)
}

pub(super) async fn a_sender_answers_errors_after_its_link_died(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let topic = space.topic("dead");
    let mut link = space.link_with_heartbeat(std::slice::from_ref(&topic), heartbeat()).await?;
    faults.cut().await;
    // How inbound ends is another contract's matter; here it only has to have noticed.
    let _ = link.ends_with_an_error(BOUND).await;
    let batch = || (0..3).map(|number| numbered(&link.out, &topic, number, 0)).collect();
    let give_up = Instant::now() + bound(BOUND);
    loop {
        let results = within(BOUND, "publish on a dead link", link.out.sender.publish(batch())).await?;
        ensure!(!results.is_empty(), "a dead link gave no result for 3 frames");
        let wrong = results.iter().find_map(|result| match result {
            Ok(reach) => Some(format!("accepted a frame ({reach:?})")),
            Err(error) if !is_gone(error.kind()) => Some(format!("answered {error}")),
            Err(_) => None,
        });
        let Some(wrong) = wrong else { break };
        ensure!(Instant::now() < give_up, "the sender of a dead link still {wrong}");
        sleep(Duration::from_millis(20)).await;
    }
    let subscribed = within(BOUND, "subscribe on a dead link", link.out.sender.subscribe(&[topic])).await?;
    ensure!(
        subscribed.as_ref().is_err_and(|error| is_gone(error.kind())),
        "subscribe on a dead link answered {subscribed:?}"
    );
    within(BOUND, "close of a dead link", link.out.sender.close()).await??;
    Ok(Kept::Yes)
}

pub(super) async fn nothing_in_flight_hangs_when_the_link_dies(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let (topic, other) = (space.topic("flight"), space.topic("flight.other"));
    let mut link = space.link_with_heartbeat(std::slice::from_ref(&topic), heartbeat()).await?;
    let out = link.out.clone();
    faults.freeze().await;
    let publish = async {
        let batch = (0..3).map(|number| numbered(&out, &topic, number, 0)).collect();
        within(BOUND, "publish in flight", out.sender.publish(batch)).await
    };
    let subscribe = within(BOUND, "subscribe in flight", out.sender.subscribe(std::slice::from_ref(&other)));
    let unsubscribe =
        within(BOUND, "unsubscribe in flight", out.sender.unsubscribe(std::slice::from_ref(&topic)));
    let pump = async {
        // Whoever has a link reads it; how it ends is another contract's matter.
        let _ = link.ends_with_an_error(BOUND).await;
        Ok(())
    };
    let ended = tokio::try_join!(publish, subscribe, unsubscribe, pump);
    faults.thaw().await;
    let (published, subscribed, _, ()) = ended?;
    for result in published {
        if let Err(error) = result {
            ensure!(is_gone(error.kind()), "a publish in flight ended as {error}");
        }
    }
    let confirmed = subscribed.is_ok();
    ensure!(!confirmed, "subscribe was confirmed although nothing moved");
    Ok(Kept::Yes)
}

pub(super) async fn an_idle_link_stays_alive(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let topic = space.topic("idle");
    let publisher = space.publisher().await?;
    let mut link = space.link_with_heartbeat(std::slice::from_ref(&topic), heartbeat()).await?;
    link.propagated().await;
    // Time has to pass here: what is to be shown is that nothing happens meanwhile.
    match tokio::time::timeout(heartbeat() * 5 / 2, futures::StreamExt::next(&mut link.inbound)).await {
        Err(_) => {}
        Ok(None) => return Err(Broken("an idle link ended".to_owned())),
        Ok(Some(Err(error))) => return Err(Broken(format!("an idle link ended: {error}"))),
        Ok(Some(Ok(delivery))) => {
            return Err(Broken(format!("nothing was published, and {delivery:?} arrived")));
        }
    }
    let out = numbered(&publisher, &topic, 0, 0);
    publisher.accept(vec![out.clone()]).await?;
    within(WAIT, "a frame after idling", link.expect(&topic, &out.frame)).await??;
    Ok(Kept::Yes)
}
