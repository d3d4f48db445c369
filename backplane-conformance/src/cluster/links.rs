//! What does a node do while its link is down, and what when it is back?

use std::time::{Duration, Instant};

use backplane_core::{
    AbortReason, Backplane as _, BackplaneExt as _, Error, ErrorKind, Event, Health, MembershipChange,
    RouterConfig, Start, Target,
};

use super::client::{Client, Manner};
use super::fleet::{Fleet, Node, Stage, value};
use super::messages::{message, question};
use super::tap::Tap;
use super::wait::{Events, Task, failed, within};
use crate::{Broken, Outcome, bound, ensure};

/// Cuts the link of `node` and waits until it noticed. It stays down until [`restore`].
async fn cut_off(node: &Node) -> Result<(), Broken> {
    node.kill();
    within("a node to notice that its link is down", async {
        node.router.health().wait_for(Health::is_down).await.map(drop)
    })
    .await?
    .map_err(|_| Broken("the node ended".into()))
}

async fn restore(node: &Node) -> Result<(), Broken> {
    node.tap.refuse_links(false);
    Ok(within("a node to be up again", node.router.wait_until_up()).await??)
}

/// While the link is down nothing that needs it waits or is kept for later: it fails at once, and the other nodes
/// never hear of it.
pub(super) async fn everything_fails_fast_while_the_link_is_down(stage: Stage) -> Outcome {
    const FAST: Duration = Duration::from_secs(1);
    let fleet = Fleet::open(&stage, 2).await?;
    let (node, other) = (&fleet.nodes[0], &fleet.nodes[1]);
    let mut here = node.client_of("u").await?;
    let mut there = other.client_of("u").await?;
    node.join(&here, "g").await?;
    node.join(&there, "g").await?;
    cut_off(node).await?;

    let fast = async |what: &str, attempt: futures::future::BoxFuture<'_, Result<(), Error>>| {
        let start = Instant::now();
        let error = failed(what, within(what, attempt).await?, &[ErrorKind::Unavailable])?;
        ensure!(!error.outcome_unknown(), "{what} reached nobody, which is known: {error}");
        ensure!(start.elapsed() < bound(FAST), "{what} took {:?} to fail", start.elapsed());
        Ok::<_, Broken>(())
    };
    let targets = [Target::all(), Target::group("g"), Target::user("u"), Target::connection(there.id())];
    for target in &targets {
        let what = format!("a send to {target:?}");
        fast(&what, Box::pin(node.send(target, "into the void"))).await?;
        let posted = node.router.post(target, &[], message("into the void"));
        fast("a post", Box::pin(async move { posted?.await })).await?;
    }
    let router = &node.router;
    fast("a join", Box::pin(router.update_group(MembershipChange::join(here.id(), "new")))).await?;
    fast("a remote join", Box::pin(router.update_group(MembershipChange::join(there.id(), "new")))).await?;
    let asked = router.invoke(there.id(), question("into the void"));
    fast("a question", Box::pin(async move { asked.await.map(drop) })).await?;
    let id = router.new_connection_id();
    let registered =
        Client::register(router, id.clone(), Manner { user: Some("v".into()), ..Manner::default() });
    fast("a registration", Box::pin(async move { registered.await.map(drop) })).await?;
    if stage.is_native() {
        fast("an abort", Box::pin(router.abort(there.id(), AbortReason::default()))).await?;
    }

    restore(node).await?;
    for target in &targets {
        node.send(target, "back").await?;
        there.expect("back").await?;
        if *target != targets[3] {
            here.expect("back").await?;
        }
    }
    other.send(&Target::group("new"), "to nobody").await?;
    other.send(&Target::group("g"), "fence").await?;
    here.expect("fence").await?;
    there.expect("fence").await?;
    let _again = Client::register(router, id, Manner::default()).await?;
    fleet.end_disturbed().await
}

/// A message that was handed to the link when it broke may have arrived or not, and the error says so.
pub(super) async fn a_send_in_flight_as_the_link_breaks_has_an_unknown_outcome(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let node = &fleet.nodes[0];
    let mut there = fleet.nodes[1].client().await?;
    node.tap.hold_acceptance(true);
    let sending = Task::spawn({
        let router = node.router.clone();
        async move { router.send(&Target::all(), &[], message("in flight")).await }
    });
    // The broker has it, and its acceptance is on its way to the sender.
    there.expect("in flight").await?;
    let mut events = Events::of(&node.router);
    node.tap.cut();
    let sent = sending.outcome("a send in flight as the link broke").await?;
    let error = failed("a send in flight as the link broke", sent, &[ErrorKind::Unavailable])?;
    ensure!(error.outcome_unknown(), "whether it arrived cannot be known: {error}");
    node.tap.hold_acceptance(false);
    events.until("the link to be back", |event| matches!(event, Event::LinkUp { .. }).then_some(())).await?;
    node.send(&Target::all(), "fence").await?;
    there.expect("fence").await?;
    fleet.end_disturbed().await
}

/// Without its broker a node does not open, unless it is told to start degraded: then it is down and says so, and once
/// the broker is there it serves everything, hubs that were opened meanwhile included.
pub(super) async fn a_node_may_start_before_its_broker(stage: Stage) -> Outcome {
    let mut fleet = Fleet::open(&stage, 1).await?;
    let refused = fleet.grow(|_, tap| tap.refuse_links(true)).await;
    ensure!(refused.is_err() && fleet.nodes.len() == 1, "a node opened without a link");
    let degraded = |config: &mut RouterConfig, tap: &Tap| {
        config.start = Start::Degraded;
        tap.refuse_links(true);
    };
    fleet.grow(degraded).await?;
    let (there, early) = (&fleet.nodes[0], &fleet.nodes[1]);
    ensure!(early.router.health().borrow().is_down(), "a node without a link is not down");
    let sent = within("a send without a link", early.send(&Target::all(), "too early")).await?;
    failed("a send without a link", sent, &[ErrorKind::Unavailable])?;
    let other_hub = within("a hub of a node without a link", early.hub("Contracts.Other")).await??;
    restore(early).await?;

    let mut clients = [early.client_of("u").await?, there.client_of("u").await?];
    for client in &clients {
        there.join(client, "g").await?;
    }
    for sender in [early, there] {
        for target in [Target::all(), Target::group("g"), Target::user("u")] {
            sender.send(&target, "hello").await?;
            for client in &mut clients {
                client.expect("hello").await?;
            }
        }
    }
    let mut in_other_hub = other_hub.client().await?;
    there.hub("Contracts.Other").await?.send(&Target::all(), "hello").await?;
    in_other_hub.expect("hello").await?;
    fleet.end_disturbed().await
}

/// The application sees that the link went, why, and that it is back.
pub(super) async fn health_and_events_tell_of_the_link(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let node = &fleet.nodes[0];
    let health = node.router.health();
    {
        let now = health.borrow();
        ensure!(now.is_up() && now.attempts == 1, "a new node's health: {now:?}");
        ensure!(now.detects_loss == stage.is_native(), "a node's proof of loss: {now:?}");
    }
    for round in 1..=3 {
        let mut events = Events::of(&node.router);
        cut_off(node).await?;
        let down = |event| match event {
            Event::LinkDown { error } => Some(error),
            _ => None,
        };
        let error = events.until("the loss of the link", down).await?;
        ensure!(error.is_retryable(), "a lost link is not for ever: {error}");
        let attempts = health.borrow().attempts;
        restore(node).await?;
        let up = |event| match event {
            Event::LinkUp { attempt, .. } => Some(attempt),
            _ => None,
        };
        let attempt = events.until("the link to be back", up).await?;
        ensure!(attempt > attempts || attempt > 1, "the attempt that succeeded is not a new one: {attempt}");
        let (stats, now) = (node.router.stats(), health.borrow().clone());
        ensure!(stats.reconnects == round, "{round} reconnects were counted as {}", stats.reconnects);
        ensure!(now.is_up() && now.attempts == attempt, "after a reconnect: {now:?}");
    }
    fleet.end_disturbed().await
}

/// Connections, users and groups are served again after a reconnect without being registered or joined again, in both
/// directions; so are acknowledged calls.
pub(super) async fn everything_works_again_after_a_reconnect(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut clients = Vec::new();
    for node in &fleet.nodes {
        let client = node.client_of("u").await?;
        node.join(&client, "g").await?;
        clients.push(client);
    }
    for round in 0..4 {
        let cut = &fleet.nodes[round % 2];
        cut_off(cut).await?;
        restore(cut).await?;
        for sender in &fleet.nodes {
            for target in [Target::all(), Target::group("g"), Target::user("u")] {
                sender.send(&target, "hello").await?;
                for client in &mut clients {
                    client.expect("hello").await?;
                }
            }
            for client in &mut clients {
                sender.send(&Target::connection(client.id()), "hello you").await?;
                client.expect("hello you").await?;
                let group = format!("new {round}");
                within("a join", sender.join(client, &group)).await??;
                sender.send(&Target::group(group.as_str()), &group).await?;
                client.expect(&group).await?;
                within("a leave", sender.leave(client, &group)).await??;
                let asking = sender.ask(client.id(), "why");
                let id = client.asked("why").await?;
                client.complete(&id, value("1"))?;
                ensure!(asking.outcome("an answer").await?? == value("1"), "another value than was answered");
            }
        }
    }
    fleet.end_disturbed().await
}

/// What others sent during an outage arrives with the next link, in order and without a gap, where the bus resumes;
/// where it does not, the node tells of a gap. There is no third way.
pub(super) async fn a_reconnect_resumes_or_raises_a_gap(stage: Stage) -> Outcome {
    const MESSAGES: usize = 20;
    let fleet = Fleet::open(&stage, 2).await?;
    let node = &fleet.nodes[0];
    let mut client = node.client().await?;
    fleet.nodes[1].send(&Target::all(), "before").await?;
    client.expect("before").await?;
    cut_off(node).await?;
    for number in 0..MESSAGES {
        fleet.nodes[1].send(&Target::all(), &number.to_string()).await?;
    }
    let mut events = Events::of(&node.router);
    restore(node).await?;
    fleet.nodes[1].send(&Target::all(), "fence").await?;
    let arrived = client.take_until("fence").await?;
    let events = events.so_far()?;
    let resumed = events.iter().any(|event| matches!(event, Event::LinkUp { resumed: true, .. }));
    let gaps = events.iter().filter(|event| matches!(event, Event::Gap(_))).count();
    if resumed {
        let sent: Vec<String> = (0..MESSAGES).map(|number| number.to_string()).collect();
        ensure!(arrived == sent, "a link that resumed brought {arrived:?}");
        ensure!(gaps == 0, "a link that resumed raised {gaps} gaps");
    } else {
        ensure!(
            arrived.is_empty(),
            "a link that did not resume brought what was sent before it: {arrived:?}"
        );
        ensure!(gaps == 1, "a link that did not resume raised {gaps} gaps");
    }
    fleet.end_disturbed().await
}

/// Interest is reconciled after an outage: what a connection that left during it had needed is not subscribed again.
pub(super) async fn what_left_during_an_outage_stays_gone(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let node = &fleet.nodes[0];
    let mut stays = node.client_of("stays").await?;
    node.join(&stays, "kept").await?;
    let before = node.tap.seen().subscribed;
    let mut leaves = node.client_of("leaves").await?;
    node.join(&leaves, "left").await?;
    node.join(&leaves, "kept").await?;
    cut_off(node).await?;
    leaves.leave();
    restore(node).await?;
    node.tap.until("the topics of those who stayed, and no other", |seen| seen.subscribed == before).await?;
    fleet.nodes[1].send(&Target::groups(["left", "kept"]), "hello").await?;
    stays.expect("hello").await?;
    leaves.nothing_more()?;
    fleet.end_disturbed().await
}

/// A node whose last handle is dropped without a shutdown leaves no link behind, and no task that holds one.
pub(super) async fn a_dropped_node_frees_its_link(stage: Stage) -> Outcome {
    let mut fleet = Fleet::open(&stage, 2).await?;
    let dropped = fleet.nodes.pop().expect("two were opened");
    let tap = dropped.tap.clone();
    let mut client = dropped.client_of("u").await?;
    dropped.join(&client, "g").await?;
    client.leave();
    drop(dropped);
    tap.until("the link of a dropped node to be freed", |seen| seen.links == 0).await?;
    let mut stays = fleet.nodes[0].client().await?;
    fleet.nodes[0].send(&Target::all(), "hello").await?;
    stays.expect("hello").await?;
    fleet.end().await
}
