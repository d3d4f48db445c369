//! What do nodes make of a broker that goes away or stands still?

use std::time::{Duration, Instant};

use backplane_core::{Backplane as _, BackplaneExt as _, Event, Health, Target};
use futures::future::{join_all, try_join_all};

use super::fleet::{Fleet, Stage};
use super::load::Load;
use super::messages::message;
use super::wait::{Events, within};
use crate::{Broken, Kept, Outcome, bound, ensure};

const NO_FAULTS: Outcome = Ok(Kept::NotApplicable("the harness provokes no faults"));

async fn all_up(fleet: &Fleet) -> Result<(), Broken> {
    within("all nodes to be up", try_join_all(fleet.nodes.iter().map(|node| node.router.wait_until_up())))
        .await??;
    Ok(())
}

/// The broker goes away under load, stays away until every node knows it, and comes back: each message has a known
/// fate, and everything flows again.
pub(super) async fn a_broker_gone_under_load_loses_nothing_in_silence(stage: Stage) -> Outcome {
    const PROGRESS: u64 = 500;
    let Some(faults) = stage.harness.faults() else { return NO_FAULTS };
    let fleet = Fleet::open(&stage, 2).await?;
    let load = Load::start(&fleet).await?;
    for _ in 0..2 {
        load.progress(PROGRESS).await?;
        faults.down().await;
        let down = fleet.nodes.iter().map(|node| async {
            node.router
                .health()
                .wait_for(Health::is_down)
                .await
                .map(drop)
                .map_err(|_| Broken("a node ended".into()))
        });
        within("all nodes to be down", try_join_all(down)).await??;
        faults.up().await;
        all_up(&fleet).await?;
    }
    load.progress(PROGRESS).await?;
    // Cut all at once, with the broker there.
    let mut events: Vec<Events> = fleet.nodes.iter().map(|node| Events::of(&node.router)).collect();
    faults.cut().await;
    let up = |event| matches!(event, Event::LinkUp { .. }).then_some(());
    try_join_all(events.iter_mut().map(|events| events.until("a link to be back", up))).await?;
    load.progress(PROGRESS).await?;
    load.judge().await?;
    fleet.end_disturbed().await
}

/// A broker that stands still for less than the heartbeat bound is waited for: nothing fails, nothing is lost, no link
/// is given up.
pub(super) async fn a_short_freeze_loses_nothing(stage: Stage) -> Outcome {
    const MESSAGES: usize = 50;
    /// How long the fault lasts, far below the heartbeat bound; nothing is concluded from it.
    const FREEZE: Duration = Duration::from_millis(500);
    let Some(faults) = stage.harness.faults() else { return NO_FAULTS };
    let fleet = Fleet::open(&stage, 2).await?;
    let mut clients = [fleet.nodes[0].client().await?, fleet.nodes[1].client().await?];
    faults.freeze().await;
    let posted: Result<Vec<_>, _> = (0..MESSAGES)
        .map(|number| fleet.nodes[0].router.post(&Target::all(), &[], message(&number.to_string())))
        .collect();
    tokio::time::sleep(FREEZE).await;
    faults.thaw().await;
    within("what was sent meanwhile to be accepted", try_join_all(posted?)).await??;
    for client in &mut clients {
        for number in 0..MESSAGES {
            client.expect(&number.to_string()).await?;
        }
    }
    for node in &fleet.nodes {
        let health = node.router.health().borrow().clone();
        ensure!(health.is_up() && health.attempts == 1, "a short freeze cost a link: {health:?}");
    }
    fleet.end().await
}

/// A broker that stands still for longer is a dead link: every node says so within the bound, and is back when the
/// broker moves again.
pub(super) async fn a_long_freeze_ends_the_links_within_the_bound(stage: Stage) -> Outcome {
    const LATE: Duration = Duration::from_secs(1);
    let Some(faults) = stage.harness.faults() else { return NO_FAULTS };
    let heartbeat = bound(Duration::from_secs(1));
    let fleet = Fleet::open_with(&stage, 2, |config, _| config.heartbeat = heartbeat).await?;
    let mut clients = [fleet.nodes[0].client().await?, fleet.nodes[1].client().await?];
    let mut events: Vec<Events> = fleet.nodes.iter().map(|node| Events::of(&node.router)).collect();
    let start = Instant::now();
    faults.freeze().await;
    let down = |event| matches!(event, Event::LinkDown { .. }).then_some(());
    let noticed = join_all(
        events.iter_mut().map(|events| async { (events.until("a dead link", down).await, start.elapsed()) }),
    )
    .await;
    // Whatever was found, the broker must move again for what comes after this contract.
    faults.thaw().await;
    for (down, took) in noticed {
        down?;
        ensure!(
            took < heartbeat + bound(LATE),
            "a dead link was noticed after {took:?}, the bound is {heartbeat:?}"
        );
    }
    all_up(&fleet).await?;
    for node in &fleet.nodes {
        node.send(&Target::all(), "hello").await?;
        for client in &mut clients {
            client.expect("hello").await?;
        }
    }
    fleet.end_disturbed().await
}
