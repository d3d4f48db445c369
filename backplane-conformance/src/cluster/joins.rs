//! What does an awaited membership change promise, when it succeeds and when it fails?

use std::collections::BTreeSet;
use std::time::Duration;

use backplane_core::{Backplane as _, ConnectionId, ErrorKind, MembershipChange, Target};
use futures::future::try_join_all;

use super::client::{Client, Manner};
use super::fleet::{Fleet, Node, Stage};
use super::wait::{Task, failed, patience, within};
use crate::{Broken, Outcome, ensure};

/// A deadline beyond [`patience`]: what must be known at once does not hide behind it.
fn far() -> Duration {
    3 * patience()
}

const NEAR: Duration = Duration::from_millis(300);

/// Whoever awaited a join may send from any node next, many times over, without a pause.
pub(super) async fn whoever_awaited_a_join_may_send_from_any_node(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 3).await?;
    let mut client = fleet.nodes[0].client().await?;
    for round in 0..100 {
        let (joiner, sender) = (&fleet.nodes[round % 3], &fleet.nodes[(round + 1) % 3]);
        let group = format!("g{}", round % 7);
        joiner.join(&client, &group).await?;
        sender.send(&Target::group(group.as_str()), &group).await?;
        client.expect(&group).await?;
        fleet.nodes[(round + 2) % 3].leave(&client, &group).await?;
    }
    fleet.end().await
}

/// The last member leaves while another one joins: the topic is not freed under the new member.
pub(super) async fn a_join_while_the_last_member_leaves_is_not_lost(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let [mut member, mut other] = fleet.nodes[0].clients().await?;
    fleet.nodes[0].join(&member, "g").await?;
    for round in 0..60 {
        fleet.nodes[0].tap.tardy(round % 5);
        let joiner = &fleet.nodes[usize::from(round % 3 == 0)];
        let changed = futures::future::try_join(fleet.nodes[0].leave(&member, "g"), joiner.join(&other, "g"));
        within("a join and a leave at once", changed).await??;
        fleet.nodes[1].send(&Target::group("g"), "hello").await?;
        other.expect("hello").await?;
        std::mem::swap(&mut member, &mut other);
    }
    member.nothing_more()?;
    other.nothing_more()?;
    fleet.end().await
}

/// A change for a connection that left or never was fails with `ConnectionNotFound` long before its deadline.
///
/// In the .NET layout nobody answers a command for a connection that nobody has, and its channel always has readers:
/// there it is `Timeout` at the deadline of the call.
pub(super) async fn a_change_for_a_connection_that_is_gone_fails_typed(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let asker = &fleet.nodes[0];
    let witness = fleet.nodes[1].client().await?;
    let mut left_here = asker.client().await?;
    let mut left_there = fleet.nodes[1].client().await?;
    for client in [&mut left_here, &mut left_there] {
        asker.join(client, "before").await?;
        client.leave();
    }
    let never_there = fleet.nodes[1].router.new_connection_id();
    let of_no_node = fleet.format.new_connection_id();
    let both = [ErrorKind::ConnectionNotFound, ErrorKind::Timeout];
    let known: &[ErrorKind] = if stage.is_native() { &both[..1] } else { &both[1..] };
    // Only a broker that counts receivers proves that there is no such node.
    let proven = if stage.is_native() && asker.reports_reach() {
        &both[..1]
    } else {
        &both[usize::from(!stage.is_native())..]
    };
    let cases: [(&ConnectionId, &[ErrorKind]); 5] = [
        (left_here.id(), if stage.is_native() { known } else { &both }),
        (left_there.id(), known),
        (&never_there, known),
        (&of_no_node, proven),
        (&"none".into(), proven),
    ];
    for (id, kinds) in cases {
        for change in [MembershipChange::join(id, "g"), MembershipChange::leave(id, "g")] {
            let timeout = if kinds.contains(&ErrorKind::Timeout) { NEAR } else { far() };
            let changed = asker.router.update_group(change.with_timeout(timeout));
            let outcome = within("a change for a connection that is gone", changed).await?;
            failed(&format!("a change for {id}"), outcome, kinds)?;
        }
    }
    for node in &fleet.nodes {
        let topic = fleet.group_topic("g");
        node.tap
            .until("no topic for a group without members", |seen| !seen.subscribed.contains(&topic))
            .await?;
    }
    asker.join(&witness, "g").await?;
    fleet.end().await
}

/// A subscription that the broker refused fails the join and nothing else: who joins afterwards is served, who failed
/// is no member, and other groups never noticed. (In .NET such a group stays deaf until its last member leaves.)
pub(super) async fn a_failed_join_leaves_nothing_behind(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let owner = &fleet.nodes[0];
    let [mut fails, mut later] = owner.clients().await?;
    let attempts = owner.router.health().borrow().attempts;
    for (number, joiner) in fleet.nodes.iter().enumerate() {
        let group = format!("g{number}");
        let topic = fleet.group_topic(&group);
        owner.tap.refuse_topic(Some(topic.clone()));
        // The .NET layout cannot say that the owner failed: the deadline does.
        let silent = number == 1 && !stage.is_native();
        let kinds = [ErrorKind::Timeout, ErrorKind::Unavailable, ErrorKind::Denied];
        for client in [&fails, &later] {
            let change = MembershipChange::join(client.id(), group.as_str());
            let change = change.with_timeout(if silent { NEAR } else { far() });
            let outcome = within("a refused join", joiner.router.update_group(change)).await?;
            failed("a refused join", outcome, if silent { &kinds[..1] } else { &kinds[1..] })?;
        }
        owner.join(&fails, &format!("beside {number}")).await?;
        owner.tap.refuse_topic(None);
        ensure!(!owner.tap.seen().subscribed.contains(&topic), "a failed join left its topic subscribed");

        joiner.join(&later, &group).await?;
        fleet.nodes[1].send(&Target::group(group.as_str()), "hello").await?;
        later.expect("hello").await?;
        fails.nothing_more()?;
        joiner.join(&fails, &group).await?;
        fleet.nodes[1].send(&Target::group(group.as_str()), "to both").await?;
        later.expect("to both").await?;
        fails.expect("to both").await?;
        fleet.nodes[1].send(&Target::group(format!("beside {number}")), "beside").await?;
        fails.expect("beside").await?;
    }
    ensure!(owner.router.health().borrow().attempts == attempts, "a refused topic cost the link");

    owner.tap.refuse_topic(Some(fleet.user_topic("u")));
    let manner = || Manner { user: Some("u".into()), ..Manner::default() };
    let id = owner.router.new_connection_id();
    let refused = Client::register(&owner.router, id.clone(), manner()).await;
    failed("a refused registration", refused, &[ErrorKind::Unavailable, ErrorKind::Denied])?;
    owner.tap.refuse_topic(None);
    let mut client = Client::register(&owner.router, id, manner()).await?;
    fleet.nodes[1].send(&Target::user("u"), "hello").await?;
    client.expect("hello").await?;
    fleet.end().await
}

/// While one join waits for the broker, changes that need nothing of it go on, and so does the rest of the node.
pub(super) async fn a_join_does_not_wait_for_the_joins_of_others(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let (owner, remote) = (&fleet.nodes[0], &fleet.nodes[1]);
    let [mut waits, mut other] = owner.clients().await?;
    owner.join(&waits, "served").await?;
    owner.tap.hold_subscribe(true);
    let joining = spawn_join(owner, &waits, "held");
    owner.tap.until("a subscription that is held", |seen| seen.subscribing > 0).await?;

    for joiner in [owner, remote] {
        within("a join of a served group", joiner.join(&other, "served")).await??;
        remote.send(&Target::group("served"), "hello").await?;
        waits.expect("hello").await?;
        other.expect("hello").await?;
        within("a leave of a served group", joiner.leave(&other, "served")).await??;
    }
    ensure!(joining.is_open(), "a join was confirmed before its subscription");
    owner.tap.hold_subscribe(false);
    joining.outcome("a join that was held").await??;
    remote.send(&Target::group("held"), "hello").await?;
    waits.expect("hello").await?;
    fleet.end().await
}

pub(super) fn spawn_join(node: &Node, client: &Client, group: &str) -> Task<backplane_core::Result<()>> {
    let (router, change) =
        (node.router.clone(), MembershipChange::join(client.id(), group).with_timeout(far()));
    Task::spawn(async move { router.update_group(change).await })
}

/// A thousand joins of distinct groups at once are at most twenty commands to the broker.
pub(super) async fn a_thousand_joins_are_few_commands(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let owner = &fleet.nodes[0];
    let mut client = owner.client().await?;
    let groups: Vec<String> = (0..1_000).map(|number| format!("g{number}")).collect();
    let calls = owner.tap.seen().subscribe_calls;
    // Held, so that all have asked before the first one is answered, however fast the broker is.
    owner.tap.hold_subscribe(true);
    let joins = try_join_all(groups.iter().map(|group| {
        owner.router.update_group(MembershipChange::join(client.id(), group.as_str()).with_timeout(far()))
    }));
    let release = async {
        let held = owner.tap.until("a subscription that is held", |seen| seen.subscribing > 0).await;
        owner.tap.hold_subscribe(false);
        held
    };
    let (joined, held) = within("a thousand joins", async { tokio::join!(joins, release) }).await?;
    held?;
    joined?;
    let calls = owner.tap.seen().subscribe_calls - calls;
    ensure!(calls <= 20, "a thousand joins took {calls} subscribe commands");
    for group in &groups {
        fleet.nodes[1].send(&Target::group(group.as_str()), group).await?;
    }
    let arrived: BTreeSet<String> = client.take(groups.len()).await?.into_iter().collect();
    ensure!(arrived == groups.into_iter().collect(), "not every group of a thousand was served");
    fleet.end().await
}

/// What nobody needs any more is freed on the broker: when the last member leaves, and when a connection ends.
pub(super) async fn leaving_and_disconnecting_free_the_topics(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let owner = &fleet.nodes[0];
    let before = owner.tap.seen().subscribed;
    let mut one = owner.client_of("u").await?;
    let mut two = owner.client_of("u").await?;
    for client in [&one, &two] {
        owner.join(client, "left").await?;
        fleet.nodes[1].join(client, "kept").await?;
    }
    let needs = |name: &str, topic: backplane_core::Topic, wanted: bool| -> Result<(), Broken> {
        let subscribed = owner.tap.seen().subscribed.contains(&topic);
        ensure!(subscribed == wanted, "the topic of {name}: subscribed {subscribed}, needed {wanted}");
        Ok(())
    };
    owner.leave(&one, "left").await?;
    needs("a group with one member left", fleet.group_topic("left"), true)?;
    fleet.nodes[1].leave(&two, "left").await?;
    let left = fleet.group_topic("left");
    owner.tap.until("an empty group's topic to be freed", |seen| !seen.subscribed.contains(&left)).await?;
    one.leave();
    owner.send(&Target::groups(["kept"]), "hello").await?;
    two.expect("hello").await?;
    needs("a group with one member left", fleet.group_topic("kept"), true)?;
    needs("a user with one connection left", fleet.user_topic("u"), true)?;
    two.leave();
    owner.tap.until("all topics to be freed", |seen| seen.subscribed == before).await?;
    fleet.end().await
}

/// Memberships end with the connection: the same id, registered again, is in no group.
pub(super) async fn a_returning_connection_is_in_no_group(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let owner = &fleet.nodes[0];
    let [mut client, mut witness] = owner.clients().await?;
    owner.join(&client, "g").await?;
    owner.join(&witness, "g").await?;
    client.leave();
    let mut back = Client::register(&owner.router, client.id().clone(), Manner::default()).await?;
    fleet.nodes[1].send(&Target::group("g"), "to members").await?;
    witness.expect("to members").await?;
    fleet.nodes[1].send(&Target::connection(back.id()), "to it").await?;
    back.expect("to it").await?;
    client.nothing_more()?;
    fleet.end().await
}
