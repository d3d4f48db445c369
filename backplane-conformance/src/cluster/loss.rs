//! Is loss noticed where frames carry their provenance, and only there where something was lost? And the death of a
//! node, or of a link, where nodes have beats?

use std::time::{Duration, Instant};

use backplane_core::{
    Backplane as _, BackplaneExt as _, ErrorKind, Event, Gap, MembershipChange, Target, Topic,
};

use super::fleet::{Fleet, Stage};
use super::joins::spawn_join;
use super::messages::question;
use super::wait::{Events, Task, failed, patience, until_stats, within};
use crate::{Broken, Outcome, bound, ensure};

/// The heartbeat bound of these nodes. Other bounds may grow by more: these contracts wait for one beat after another.
fn heartbeat() -> Duration {
    const SHORT: Duration = Duration::from_secs(1);
    bound(SHORT).min(2 * SHORT)
}

/// The pause between two beats: 0.3 of the heartbeat bound.
fn beat() -> Duration {
    heartbeat() * 3 / 10
}

/// What a loaded machine may add to a bound.
const LATE: Duration = Duration::from_secs(1);

async fn fast_fleet(stage: &Stage, count: usize) -> Result<Fleet, Broken> {
    Fleet::open_with(stage, count, |config, _| config.heartbeat = heartbeat()).await
}

fn common(fleet: &Fleet) -> Result<Topic, Broken> {
    fleet.common().ok_or_else(|| Broken("a wire format with beats has no common topic".into()))
}

fn gap(event: Event) -> Option<Gap> {
    match event {
        Event::Gap(gap) => Some(gap),
        _ => None,
    }
}

/// Waits until node 1 has heard the other node's beat at least three times from now on (of both nodes: six).
async fn three_more_beats(fleet: &Fleet) -> Result<(), Broken> {
    let common = common(fleet)?;
    let heard = |seen: &super::Seen| seen.received.get(&common).copied().unwrap_or_default();
    let before = heard(&fleet.nodes[1].tap.seen());
    fleet.nodes[1].tap.until("three more beats", |seen| heard(seen) >= before + 6).await
}

/// A frame that is lost on its way to one node raises one gap there, which names its origin and its number, when the
/// next one arrives; no second one follows, and no other node notices anything.
pub(super) async fn a_lost_frame_raises_one_gap(stage: Stage) -> Outcome {
    let fleet = fast_fleet(&stage, 3).await?;
    let (sender, loser, other) = (&fleet.nodes[0], &fleet.nodes[1], &fleet.nodes[2]);
    let mut client = loser.client().await?;
    let mut witness = other.client().await?;
    for (round, topic) in [fleet.all_topic(), fleet.group_topic("g")].into_iter().enumerate() {
        let target = if round == 0 { Target::all() } else { Target::group("g") };
        for one in [&client, &witness] {
            sender.join(one, "g").await?;
        }
        let mut events = Events::of(&loser.router);
        sender.send(&target, "before").await?;
        client.expect("before").await?;
        loser.tap.lose_next(topic.clone());
        sender.send(&target, "lost").await?;
        sender.send(&target, "after").await?;
        client.expect("after").await?;
        let gap = events.until("a gap", gap).await?;
        ensure!(
            gap.origin == Some(sender.router.node_id()) && gap.topics.as_deref() == Some(&[topic][..]),
            "the gap does not say what was lost: {gap:?}"
        );
        // Numbers are the node's own: a beat or two may have taken one in between.
        ensure!(
            (1..=3).contains(&(gap.through - gap.after)),
            "one frame was lost, the gap tells of many: {gap:?}"
        );
        for text in ["before", "lost", "after"] {
            witness.expect(text).await?;
        }
        three_more_beats(&fleet).await?;
        let gaps = loser.router.stats().gaps;
        ensure!(gaps == round as u64 + 1, "{} lost frames raised {gaps} gaps", round + 1);
    }
    ensure!(other.router.stats().gaps == 0, "a node raised a gap though it lost nothing");
    fleet.end_disturbed().await
}

/// The last frame on a topic has no successor that tells of it: a beat does, within two of them.
pub(super) async fn a_lost_last_frame_raises_one_gap_within_two_beats(stage: Stage) -> Outcome {
    let fleet = fast_fleet(&stage, 2).await?;
    let (sender, loser) = (&fleet.nodes[0], &fleet.nodes[1]);
    let mut client = loser.client().await?;
    sender.send(&Target::all(), "before").await?;
    client.expect("before").await?;
    let mut events = Events::of(&loser.router);
    loser.tap.lose_next(fleet.all_topic());
    sender.send(&Target::all(), "lost").await?;
    let start = Instant::now();
    let gap = events.until("a gap", gap).await?;
    let took = start.elapsed();
    ensure!(took < 2 * beat() + bound(LATE), "a gap came after {took:?}, a beat after {:?}", beat());
    ensure!(
        gap.origin == Some(sender.router.node_id()),
        "the gap does not say whose frame was lost: {gap:?}"
    );
    three_more_beats(&fleet).await?;
    sender.send(&Target::all(), "after").await?;
    client.expect("after").await?;
    let gaps = loser.router.stats().gaps;
    ensure!(gaps == 1, "one lost frame raised {gaps} gaps");
    fleet.end_disturbed().await
}

/// A frame that arrives twice is delivered once; that is counted, and is no gap.
pub(super) async fn a_repeated_frame_is_removed(stage: Stage) -> Outcome {
    let fleet = fast_fleet(&stage, 2).await?;
    let (sender, receiver) = (&fleet.nodes[0], &fleet.nodes[1]);
    let mut client = receiver.client_of("u").await?;
    sender.join(&client, "g").await?;
    let repeated = [
        (Target::all(), fleet.all_topic()),
        (Target::group("g"), fleet.group_topic("g")),
        (Target::user("u"), fleet.user_topic("u")),
    ];
    for (round, (target, topic)) in repeated.into_iter().enumerate() {
        for text in ["before", "twice", "after"] {
            if text == "twice" {
                receiver.tap.repeat_next(topic.clone());
            }
            sender.send(&target, text).await?;
            client.expect(text).await?;
        }
        until_stats(&receiver.router, "a repeat to be counted", |stats| {
            stats.repeats_removed == round as u64 + 1
        })
        .await?;
    }
    ensure!(receiver.router.stats().gaps == 0, "a repeated frame raised a gap");
    fleet.end_disturbed().await
}

/// A node that comes is seen by those that are there, and so is one that leaves in order, without delay.
pub(super) async fn nodes_are_seen_to_come_and_to_go(stage: Stage) -> Outcome {
    // Beats that are far apart: the events come from the first and the last one, not from silence.
    let slow = |config: &mut backplane_core::RouterConfig, _: &super::Tap| {
        config.heartbeat = Duration::from_secs(60)
    };
    let mut fleet = Fleet::open_with(&stage, 1, slow).await?;
    let mut events = Events::of(&fleet.nodes[0].router);
    fleet.grow(slow).await?;
    let guest = fleet.nodes[1].router.clone();
    let joined = |event| match event {
        Event::NodeJoined(node) => Some(node),
        _ => None,
    };
    let came = events.until("a node to come", joined).await?;
    ensure!(came == guest.node_id(), "another node came than was opened");
    within("a node to shut down", guest.shutdown()).await??;
    let went = events.until("a node to go", gone).await?;
    ensure!(went == guest.node_id(), "another node went than was shut down");
    fleet.end().await
}

fn gone(event: Event) -> Option<backplane_core::NodeId> {
    match event {
        Event::NodeGone(node) => Some(node),
        _ => None,
    }
}

/// A node that is cut off is gone after three beats, and what others waited for from it ends with
/// `ConnectionNotFound`, long before the deadlines; so does what they ask afterwards.
pub(super) async fn a_node_that_dies_is_gone_and_waits_on_it_end(stage: Stage) -> Outcome {
    // Beyond the patience of the contracts.
    let far = 5 * patience();
    let fleet = fast_fleet(&stage, 2).await?;
    let (lives, dies) = (&fleet.nodes[0], &fleet.nodes[1]);
    let mut client = dies.client().await?;
    dies.tap.hold_subscribe(true);
    let joining = spawn_join(lives, &client, "g");
    let (router, id) = (lives.router.clone(), client.id().clone());
    let asking =
        Task::spawn(async move { router.invoke(&id, question("test").with_timeout(far)).await.map(drop) });
    client.asked("test").await?;
    dies.tap.until("a subscription that is held", |seen| seen.subscribing > 0).await?;
    let mut events = Events::of(&lives.router);
    let start = Instant::now();
    dies.kill();
    let went = events.until("a node to be gone", gone).await?;
    let took = start.elapsed();
    ensure!(went == dies.router.node_id(), "another node is gone than was killed");
    ensure!(took < 4 * beat() + bound(LATE), "a node was gone after {took:?}, a beat is {:?}", beat());
    let not_found = [ErrorKind::ConnectionNotFound];
    failed("a join at a dead node", joining.outcome("a join at a dead node").await?, &not_found)?;
    failed("a question to a dead node", asking.outcome("a question to a dead node").await?, &not_found)?;

    let change = MembershipChange::join(client.id(), "g").with_timeout(far);
    let later = within("a later join at a dead node", lives.router.update_group(change)).await?;
    failed("a later join at a dead node", later, &not_found)?;
    client.leave();
    fleet.end_disturbed().await
}

/// A link on which nothing arrives any more, though it stays open, is noticed by the node itself: its own beats do not
/// come back. The next link works.
pub(super) async fn a_silent_link_is_noticed_by_the_missing_echo(stage: Stage) -> Outcome {
    let fleet = fast_fleet(&stage, 2).await?;
    let node = &fleet.nodes[0];
    let mut client = node.client().await?;
    let mut events = Events::of(&node.router);
    let start = Instant::now();
    node.tap.mute(true);
    let down = |event| matches!(event, Event::LinkDown { .. }).then_some(());
    events.until("a silent link to be given up", down).await?;
    let took = start.elapsed();
    node.tap.mute(false);
    ensure!(
        took < heartbeat() + beat() + bound(LATE),
        "a silent link was noticed after {took:?} of {:?}",
        heartbeat()
    );
    within("a node to be up again", node.router.wait_until_up()).await??;
    fleet.nodes[1].send(&Target::all(), "hello").await?;
    client.expect("hello").await?;
    fleet.end_disturbed().await
}
