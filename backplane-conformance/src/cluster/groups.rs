//! Do memberships begin and end as they should? The named behaviours of groups.

use backplane_core::Target;

use super::fleet::{Fleet, Stage};
use crate::Outcome;

/// Who disconnected is no member any more. A member beside it proves that the message was dealt with.
pub(super) async fn disconnect_connection_removes_connection_from_group(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let [mut leaves, mut witness] = fleet.nodes[0].clients().await?;
    fleet.nodes[0].join(&leaves, "name").await?;
    fleet.nodes[0].join(&witness, "name").await?;
    leaves.leave();
    for (sender, text) in [(0, "hello"), (1, "fence")] {
        fleet.nodes[sender].send(&Target::group("name"), text).await?;
        witness.expect(text).await?;
    }
    leaves.nothing_more()?;
    fleet.end().await
}

/// Leaving a group that one is not in is no error.
pub(super) async fn remove_group_from_local_connection_not_in_group_does_nothing(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let mut client = fleet.nodes[0].client().await?;
    fleet.nodes[0].join(&client, "other").await?;
    fleet.nodes[0].leave(&client, "name").await?;
    fleet.nodes[0].send(&Target::group("other"), "still there").await?;
    client.expect("still there").await?;
    fleet.end().await
}

/// The same for a connection of another server: it is acknowledged.
pub(super) async fn remove_group_from_connection_on_different_server_not_in_group_does_nothing(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[0].client().await?;
    fleet.nodes[0].join(&client, "other").await?;
    fleet.nodes[1].leave(&client, "name").await?;
    fleet.nodes[1].send(&Target::group("other"), "still there").await?;
    client.expect("still there").await?;
    fleet.end().await
}

/// A connection of another server is made a member, and the next send arrives.
pub(super) async fn add_group_async_for_connection_on_different_server_works(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[0].client().await?;
    fleet.nodes[1].join(&client, "name").await?;
    fleet.nodes[1].send(&Target::group("name"), "hello").await?;
    client.expect("hello").await?;
    fleet.end().await
}

/// Joining twice is joining once: one copy, and one leave ends it.
pub(super) async fn add_group_async_for_local_connection_already_in_group_does_nothing(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    joined_twice_is_served_once(&fleet, 0).await?;
    fleet.end().await
}

/// The same when the second join comes from another server.
pub(super) async fn add_group_async_for_connection_on_different_server_already_in_group_does_nothing(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    joined_twice_is_served_once(&fleet, 1).await?;
    fleet.end().await
}

async fn joined_twice_is_served_once(fleet: &Fleet, second: usize) -> Result<(), crate::Broken> {
    let [mut client, mut witness] = fleet.nodes[0].clients().await?;
    fleet.nodes[0].join(&client, "name").await?;
    fleet.nodes[0].join(&witness, "name").await?;
    fleet.nodes[second].join(&client, "name").await?;
    for text in ["hello", "fence"] {
        fleet.nodes[second].send(&Target::group("name"), text).await?;
        client.expect(text).await?;
        witness.expect(text).await?;
    }
    fleet.nodes[second].leave(&client, "name").await?;
    fleet.nodes[second].send(&Target::group("name"), "after").await?;
    witness.expect("after").await?;
    fleet.nodes[second].send(&Target::group("name"), "fence").await?;
    witness.expect("fence").await?;
    client.nothing_more()
}

/// A membership is ended from another server: nothing of the group arrives until the next join.
pub(super) async fn remove_group_async_for_connection_on_different_server_works(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let [mut client, mut witness] = fleet.nodes[0].clients().await?;
    let remote = &fleet.nodes[1];
    fleet.nodes[0].join(&client, "name").await?;
    remote.send(&Target::group("name"), "as a member").await?;
    client.expect("as a member").await?;

    remote.leave(&client, "name").await?;
    remote.send(&Target::group("name"), "to nobody").await?;
    // What is still on its way when somebody joins may reach them.
    remote.send(&Target::connection(witness.id()), "meanwhile").await?;
    witness.expect("meanwhile").await?;
    fleet.nodes[0].join(&witness, "name").await?;
    remote.send(&Target::group("name"), "to others").await?;
    witness.expect("to others").await?;

    remote.join(&client, "name").await?;
    remote.send(&Target::group("name"), "as a member again").await?;
    client.expect("as a member again").await?;
    witness.expect("as a member again").await?;
    fleet.end().await
}
