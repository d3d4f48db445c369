//! Is the state right when a future is dropped, wherever it is?
//!
//! Each call is dropped after 0, 1, 2, ... polls, and after its background work went 0, 1, 2, ... steps on without it;
//! the bus steps back in between, so that there are places to be dropped at.

use backplane_core::{AbortReason, Backplane as _, CloseReason, ErrorKind, MembershipChange, Target, UserId};

use super::client::{Client, Manner};
use super::fleet::{Fleet, Node, Stage, value};
use super::messages::{message, question};
use super::wait::{failed, poll_then_drop, until, until_stats, within};
use crate::{Broken, Outcome, ensure};

/// Steps that the bus makes in each call.
const TARDY: u32 = 5;

/// How far a call gets before it is dropped: so many polls, and then so many steps of everything else.
const PLACES: [(usize, usize); 16] = [
    (0, 0),
    (1, 0),
    (1, 1),
    (1, 2),
    (1, 3),
    (1, 5),
    (1, 8),
    (1, 13),
    (1, 21),
    (2, 0),
    (2, 1),
    (2, 3),
    (2, 7),
    (3, 0),
    (3, 2),
    (4, 0),
];

/// Steps after which a future that was not woken is dropped where it is: some wait for what never comes.
const PATIENT_STEPS: usize = 200;

/// Drops `future` at one of the places; what it returned if it was done before.
async fn dropped_at<T>(
    (polls, steps): (usize, usize),
    future: impl Future<Output = T>,
) -> Result<Option<T>, Broken> {
    let mut future = Box::pin(future);
    let done = tokio::select! {
        biased;
        done = poll_then_drop(polls, &mut future) => done?,
        () = step(PATIENT_STEPS) => None,
    };
    step(steps).await;
    Ok(done)
}

async fn step(steps: usize) {
    for _ in 0..steps {
        tokio::task::yield_now().await;
    }
}

async fn tardy_fleet(stage: &Stage) -> Result<Fleet, Broken> {
    let fleet = Fleet::open(stage, 2).await?;
    for node in &fleet.nodes {
        node.tap.tardy(TARDY);
    }
    Ok(fleet)
}

/// Whether a call that may have been done was done well.
fn well<T>(done: Option<backplane_core::Result<T>>) -> Result<Option<T>, Broken> {
    Ok(done.transpose()?)
}

/// Nothing is left of a registration that was dropped before it was done: no topic, no connection, and the id is free.
pub(super) async fn a_register_dropped_anywhere_leaves_nothing(stage: Stage) -> Outcome {
    let fleet = tardy_fleet(&stage).await?;
    let node = &fleet.nodes[0];
    let before = node.tap.seen().subscribed;
    for place in PLACES {
        let id = node.router.new_connection_id();
        let manner = || Manner { user: Some(UserId::from("u")), ..Manner::default() };
        let registered = dropped_at(place, Client::register(&node.router, id.clone(), manner())).await?;
        drop(well(registered)?);
        node.tap
            .until("the topics of a dropped registration to be freed", |seen| seen.subscribed == before)
            .await?;

        let mut client = within("a registration", Client::register(&node.router, id, manner())).await??;
        fleet.nodes[1].send(&Target::user("u"), "hello").await?;
        client.expect("hello").await?;
        client.leave();
        node.tap.until("the topics of who left to be freed", |seen| seen.subscribed == before).await?;
    }
    fleet.end().await
}

/// A join that was dropped may have taken effect or not; either way a leave ends it, a second join serves once, and
/// nothing is left when the connection goes.
pub(super) async fn a_join_dropped_anywhere_can_be_left(stage: Stage) -> Outcome {
    let fleet = tardy_fleet(&stage).await?;
    let owner = &fleet.nodes[0];
    let mut witness = owner.client().await?;
    let before_all = owner.tap.seen().subscribed;
    let mut client = owner.client().await?;
    let id = client.id().clone();
    let before = owner.tap.seen().subscribed;
    for joiner in &fleet.nodes {
        for (number, place) in PLACES.into_iter().enumerate() {
            let group = format!("g{number}");
            let join = || joiner.router.update_group(MembershipChange::join(&id, group.as_str()));
            well(dropped_at(place, join()).await?)?;
            idle(joiner, "a dropped join to be forgotten").await?;
            within("a leave", joiner.leave(&client, &group)).await??;
            owner.tap.until("a left group's topic to be freed", |seen| seen.subscribed == before).await?;

            well(dropped_at(place, join()).await?)?;
            within("a second join", joiner.join(&client, &group)).await??;
            fleet.nodes[1].send(&Target::group(group.as_str()), &group).await?;
            client.expect(&group).await?;
            fleet.nodes[1].send(&Target::group(group.as_str()), "fence").await?;
            client.expect("fence").await?;
            within("a leave", joiner.leave(&client, &group)).await??;
            owner.tap.until("a left group's topic to be freed", |seen| seen.subscribed == before).await?;
        }
    }
    // Memberships of unknown fate end with the connection.
    for joiner in &fleet.nodes {
        for (number, place) in PLACES.into_iter().enumerate() {
            well(dropped_at(place, joiner.join(&client, &format!("last{number}"))).await?)?;
        }
        idle(joiner, "a dropped join to be forgotten").await?;
    }
    client.leave();
    owner.tap.until("the topics of who left to be freed", |seen| seen.subscribed == before_all).await?;
    fleet.nodes[1].send(&Target::all(), "fence").await?;
    witness.expect("fence").await?;
    fleet.end().await
}

async fn idle(node: &Node, what: &str) -> Result<(), Broken> {
    until_stats(&node.router, what, |stats| stats.pending == 0).await
}

/// A leave that was dropped may have taken effect or not; a join afterwards serves once, a leave afterwards ends it.
pub(super) async fn a_leave_dropped_anywhere_can_be_repeated(stage: Stage) -> Outcome {
    let fleet = tardy_fleet(&stage).await?;
    let owner = &fleet.nodes[0];
    let mut client = owner.client().await?;
    let before = owner.tap.seen().subscribed;
    for leaver in &fleet.nodes {
        for place in PLACES {
            owner.join(&client, "g").await?;
            well(dropped_at(place, leaver.leave(&client, "g")).await?)?;
            idle(leaver, "a dropped leave to be forgotten").await?;
            within("a join", leaver.join(&client, "g")).await??;
            fleet.nodes[1].send(&Target::group("g"), "hello").await?;
            client.expect("hello").await?;
            well(dropped_at(place, leaver.leave(&client, "g")).await?)?;
            within("a second leave", leaver.leave(&client, "g")).await??;
            owner.tap.until("a left group's topic to be freed", |seen| seen.subscribed == before).await?;
        }
    }
    fleet.end().await
}

/// A question that was dropped is forgotten, also by the owner where the wire format can say so; a late answer harms
/// nobody, and the next question gets its own.
pub(super) async fn a_question_dropped_anywhere_is_forgotten(stage: Stage) -> Outcome {
    let fleet = tardy_fleet(&stage).await?;
    let mut client = fleet.nodes[0].client().await?;
    for asker in &fleet.nodes {
        for place in PLACES {
            let asked = dropped_at(place, asker.router.invoke(client.id(), question("dropped"))).await?;
            ensure!(well(asked)?.is_none(), "a question was answered though its client did not");
            idle(asker, "a dropped question to be forgotten").await?;

            let asking = asker.ask(client.id(), "asked");
            let mut late = Vec::new();
            let id = loop {
                let arrived = client.next().await?;
                let id = arrived.asked.ok_or_else(|| Broken("a question without an id".into()))?;
                if arrived.text == "asked" {
                    break id;
                }
                late.push(id);
            };
            for late in late {
                if stage.is_native() {
                    until("the owner to forget a dropped question", || !client.expects(&late)).await?;
                }
                client.complete(&late, value("0"))?;
            }
            client.complete(&id, value("1"))?;
            ensure!(
                asking.outcome("an answer").await?? == value("1"),
                "a question got the answer of another one"
            );
        }
    }
    fleet.end().await
}

/// A send that was dropped arrives once or never, before what is sent later; one that was never polled never.
pub(super) async fn a_send_dropped_anywhere_arrives_once_or_never(stage: Stage) -> Outcome {
    let fleet = tardy_fleet(&stage).await?;
    let mut client = fleet.nodes[1].client_of("u").await?;
    fleet.nodes[1].join(&client, "g").await?;
    let targets = [Target::all(), Target::group("g"), Target::user("u"), Target::connection(client.id())];
    for target in targets {
        for place in PLACES {
            let text = format!("{place:?}");
            let sent = dropped_at(place, fleet.nodes[0].router.send(&target, &[], message(&text))).await?;
            let done = well(sent)?.is_some();
            fleet.nodes[0].send(&target, "fence").await?;
            let arrived = client.take_until("fence").await?;
            let most = usize::from(place.0 > 0);
            ensure!(
                arrived.len() <= most
                    && arrived.len() >= usize::from(done)
                    && arrived.iter().all(|one| *one == text),
                "of a send to {target:?} dropped at {place:?} arrived {arrived:?}"
            );
        }
    }
    fleet.end().await
}

/// A send that waits for room in the queue and is dropped was not queued: it sends nothing.
pub(super) async fn a_send_dropped_while_it_waits_for_room_sends_nothing(stage: Stage) -> Outcome {
    let far = std::time::Duration::from_secs(60);
    let fleet = Fleet::open_with(&stage, 2, |config, _| {
        config.queue_frames = 1;
        config.heartbeat = far;
    })
    .await?;
    let (sender, mut client) = (&fleet.nodes[0], fleet.nodes[1].client().await?);
    until_stats(&sender.router, "an empty queue", |stats| stats.queued_frames == 0).await?;
    sender.tap.hold_acceptance(true);
    let first = sender.router.post(&Target::all(), &[], message("first"))?;
    for polls in 0..3 {
        let sent = dropped_at((polls, 8 * polls), sender.send(&Target::all(), "dropped")).await?;
        ensure!(sent.is_none(), "a send into a full queue was done: {sent:?}");
    }
    sender.tap.hold_acceptance(false);
    within("the first message to be accepted", first).await??;
    within("a send", sender.send(&Target::all(), "fence")).await??;
    client.expect("first").await?;
    client.expect("fence").await?;
    fleet.end().await
}

/// An abort that was dropped may have taken effect or not; a second one ends the connection, if the first did not.
pub(super) async fn an_abort_dropped_anywhere_can_be_repeated(stage: Stage) -> Outcome {
    let fleet = tardy_fleet(&stage).await?;
    let reason = AbortReason { message: Some("enough".into()), allow_reconnect: false };
    let aborters = if stage.is_native() { &fleet.nodes[..] } else { &fleet.nodes[..1] };
    for aborter in aborters {
        for place in PLACES {
            let mut client = fleet.nodes[0].client().await?;
            well(dropped_at(place, aborter.router.abort(client.id(), reason.clone())).await?)?;
            idle(aborter, "a dropped abort to be forgotten").await?;
            match within("a second abort", aborter.router.abort(client.id(), reason.clone())).await? {
                Ok(()) => {}
                Err(error) => {
                    failed("a second abort", Err::<(), _>(error), &[ErrorKind::ConnectionNotFound])?;
                }
            }
            let ended = client.end().await?;
            ensure!(
                ended == CloseReason::Aborted(reason.clone()),
                "an aborted connection was ended by {ended:?}"
            );
        }
    }
    fleet.end().await
}
