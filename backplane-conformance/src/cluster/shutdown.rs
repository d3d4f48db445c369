//! Does a node leave in order?

use backplane_core::{
    AbortReason, Backplane as _, Error, ErrorKind, Event, Health, HubName, MembershipChange, Target,
};
use futures::future::BoxFuture;

use super::client::{Client, Manner};
use super::fleet::{Fleet, Stage, value};
use super::joins::spawn_join;
use super::messages::{message, question};
use super::wait::{Events, failed, within};
use crate::{Kept, Outcome, ensure};

/// What waits at a shutdown ends with `Closed`; the link is freed; a second shutdown is no error; the other nodes and
/// late guests of the dead one go on.
pub(super) async fn a_shutdown_ends_what_waits_and_can_be_repeated(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let (node, other) = (&fleet.nodes[0], &fleet.nodes[1]);
    let [mut here, mut there] = [node.client().await?, other.client().await?];
    let mut events = Events::of(&node.router);
    node.tap.hold_subscribe(true);
    other.tap.hold_subscribe(true);
    let waits = [spawn_join(node, &here, "g"), spawn_join(node, &there, "g")];
    let questions = [node.ask(here.id(), "test"), node.ask(there.id(), "test")];
    let id = here.asked("test").await?;
    there.asked("test").await?;
    for one in [node, other] {
        one.tap.until("a subscription that is held", |seen| seen.subscribing > 0).await?;
    }
    within("a node to shut down", node.router.shutdown()).await??;
    for waiting in waits {
        failed("a join at a shutdown", waiting.outcome("a join at a shutdown").await?, &[ErrorKind::Closed])?;
    }
    for asking in questions {
        let outcome = asking.outcome("a question at a shutdown").await?;
        failed("a question at a shutdown", outcome, &[ErrorKind::Closed])?;
    }
    events.until("the end of the node", |event| matches!(event, Event::Closed).then_some(())).await?;
    node.tap.until("a link to be freed", |seen| seen.links == 0).await?;
    ensure!(node.router.health().borrow().is_closed(), "a node that was shut down is not closed");
    within("a second shutdown", node.router.shutdown()).await??;
    within("a third shutdown", node.router.clone().shutdown()).await??;
    // A client that answers late, and its farewell, meet a node that is closed: neither is a fault.
    if let Err(error) = here.complete(&id, value("10")) {
        failed("a late answer", Err::<(), _>(error), &[ErrorKind::Closed])?;
    }
    here.leave();
    other.tap.hold_subscribe(false);
    other.send(&Target::all(), "hello").await?;
    there.expect("hello").await?;
    there.leave();
    fleet.end_disturbed().await
}

/// Every call after a shutdown says `Closed` at once.
pub(super) async fn everything_is_closed_after_a_shutdown(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let (router, other) = (&fleet.nodes[0].router, &fleet.nodes[1]);
    let client = fleet.nodes[0].client().await?;
    let there = other.client().await?;
    within("a node to shut down", router.shutdown()).await??;
    ensure!(Health::is_closed(&router.health().borrow()), "a node that was shut down is not closed");
    let posted = router.post(&Target::all(), &[], message("late"));
    let calls: Vec<(&str, BoxFuture<'_, Result<(), Error>>)> = vec![
        ("a send", Box::pin(router.send(&Target::All, &[], message("late")))),
        ("a post", Box::pin(async move { posted?.await })),
        ("a join", Box::pin(router.update_group(MembershipChange::join(client.id(), "g")))),
        ("a remote join", Box::pin(router.update_group(MembershipChange::join(there.id(), "g")))),
        ("a question", Box::pin(async { router.invoke(there.id(), question("late")).await.map(drop) })),
        ("an abort", Box::pin(router.abort(client.id(), AbortReason::default()))),
        ("another hub", Box::pin(async { router.hub(HubName::from("Contracts.Late")).await.map(drop) })),
        (
            "a registration",
            Box::pin(async {
                Client::register(router, router.new_connection_id(), Manner::default()).await.map(drop)
            }),
        ),
    ];
    for (what, call) in calls {
        failed(what, within(what, call).await?, &[ErrorKind::Closed])?;
    }
    let pending = router.stats().pending;
    ensure!(pending == 0, "{pending} calls wait at a node that is closed");
    within("the other node to shut down", other.router.shutdown()).await??;
    Ok(Kept::Yes)
}
