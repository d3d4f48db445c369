//! Are users and connection ids what they are said to be?

use backplane_core::{Backplane as _, ErrorKind, Target};

use super::client::{Client, Manner};
use super::fleet::{Fleet, Stage};
use super::wait::failed;
use crate::{Outcome, ensure};

/// A message to a user reaches each of the user's connections on all servers, and nobody else's.
pub(super) async fn invoke_user_sends_to_all_connections_for_user(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut first = fleet.nodes[0].client_of("userA").await?;
    let mut second = fleet.nodes[1].client_of("userA").await?;
    let [mut other_here, mut other_there] =
        [fleet.nodes[0].client_of("userB").await?, fleet.nodes[1].client_of("userB").await?];
    fleet.nodes[0].send(&Target::user("userA"), "hello").await?;
    first.expect("hello").await?;
    second.expect("hello").await?;
    fleet.nodes[0].send(&Target::user("userB"), "fence").await?;
    other_here.expect("fence").await?;
    other_there.expect("fence").await?;
    fleet.end().await
}

/// The user is still served when one of several connections has left.
pub(super) async fn still_subscribed_to_user_after_one_of_multiple_connections_associated_with_user_disconnects(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut leaves = fleet.nodes[0].client_of("userA").await?;
    let mut stays = fleet.nodes[0].client_of("userA").await?;
    let mut other = fleet.nodes[0].client_of("userB").await?;
    leaves.leave();
    for (sender, text) in [(0, "hello"), (1, "again")] {
        fleet.nodes[sender].send(&Target::user("userA"), text).await?;
        stays.expect(text).await?;
    }
    fleet.nodes[0].send(&Target::user("userB"), "fence").await?;
    other.expect("fence").await?;
    leaves.nothing_more()?;
    fleet.end().await
}

/// An empty user id means that there is no user, as in SignalR: nothing is subscribed for it.
pub(super) async fn an_empty_user_is_no_user(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut nobody = fleet.nodes[0].client_of("").await?;
    let mut somebody = fleet.nodes[0].client_of("somebody").await?;
    let subscribed = fleet.nodes[0].tap.seen().subscribed;
    ensure!(subscribed.contains(&fleet.user_topic("somebody")), "a user's topic is not subscribed");
    ensure!(
        !subscribed.contains(&fleet.user_topic("")),
        "a topic was subscribed for a user that does not exist"
    );
    fleet.nodes[1].send(&Target::users(["", "somebody"]), "hello").await?;
    somebody.expect("hello").await?;
    nobody.nothing_more()?;
    fleet.end().await
}

/// The same id cannot be registered twice at once at one node; the second attempt leaves the first one alone.
pub(super) async fn an_id_is_registered_once_at_a_time(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let router = &fleet.nodes[0].router;
    let mut first = fleet.nodes[0].client_of("user").await?;
    let id = first.id().clone();
    let again = || Client::register(router, id.clone(), Manner::default());
    failed("a second registration", again().await, &[ErrorKind::InvalidConfig])?;
    fleet.nodes[1].send(&Target::user("user"), "hello").await?;
    first.expect("hello").await?;
    first.leave();
    let mut second = again().await?;
    fleet.nodes[1].send(&Target::connection(second.id()), "hello").await?;
    second.expect("hello").await?;
    fleet.end().await
}

/// An id that no node minted, but that is unique in the fleet, is reachable from all nodes. A wire format whose ids
/// say where they live cannot do that; there the registration is refused rather than deaf.
pub(super) async fn an_id_of_its_own_is_reachable_or_refused(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let id = format!("of-my-own-{}", fleet.nodes[0].router.new_connection_id());
    let registered = Client::register(&fleet.nodes[0].router, id.into(), Manner::default()).await;
    if stage.is_native() {
        failed("a registration of a foreign id", registered, &[ErrorKind::InvalidConfig])?;
        let of_another = fleet.nodes[1].router.new_connection_id();
        let registered = Client::register(&fleet.nodes[0].router, of_another, Manner::default()).await;
        failed("a registration of another node's id", registered, &[ErrorKind::InvalidConfig])?;
        return fleet.end().await;
    }
    let mut client = registered?;
    for (node, text) in fleet.nodes.iter().zip(["here", "there"]) {
        node.send(&Target::connection(client.id()), text).await?;
        client.expect(text).await?;
        node.join(&client, text).await?;
        node.send(&Target::group(text), "to the group").await?;
        client.expect("to the group").await?;
        let asking = node.ask(client.id(), "why");
        let question = client.asked("why").await?;
        client.complete(&question, super::value("1"))?;
        ensure!(asking.outcome("an answer").await?? == super::value("1"), "another value than was answered");
    }
    fleet.end().await
}
