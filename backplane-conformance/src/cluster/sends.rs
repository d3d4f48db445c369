//! Does a message reach those it is for, and nobody else? The named behaviours of sends.

use backplane_core::Target;

use super::fleet::{Fleet, Stage};
use crate::{Outcome, ensure};

/// One server: a message to all is read by each connection.
pub(super) async fn send_all_async_writes_to_all_connections_output(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let [mut one, mut two] = fleet.nodes[0].clients().await?;
    fleet.nodes[0].send(&Target::all(), "hello").await?;
    one.expect("hello").await?;
    two.expect("hello").await?;
    fleet.nodes[0].send(&Target::all(), "fence").await?;
    one.expect("fence").await?;
    two.expect("fence").await?;
    fleet.end().await
}

/// One server: who left before a message to all does not get it.
pub(super) async fn send_all_async_does_not_write_to_disconnected_connections_output(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let [mut stays, mut leaves] = fleet.nodes[0].clients().await?;
    leaves.leave();
    fleet.nodes[0].send(&Target::all(), "hello").await?;
    fleet.nodes[0].send(&Target::all(), "fence").await?;
    stays.expect("hello").await?;
    stays.expect("fence").await?;
    leaves.nothing_more()?;
    fleet.end().await
}

/// One server: a message to a group is read by its members only.
pub(super) async fn send_group_async_writes_to_all_connections_in_group_output(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let node = &fleet.nodes[0];
    let [mut member, mut other] = node.clients().await?;
    node.join(&member, "group").await?;
    node.send(&Target::group("group"), "hello").await?;
    member.expect("hello").await?;
    node.join(&other, "group").await?;
    node.send(&Target::group("group"), "fence").await?;
    other.expect("fence").await?;
    member.expect("fence").await?;
    fleet.end().await
}

/// One server: a member that is excepted does not get the message.
pub(super) async fn send_group_except_async_does_not_write_to_excluded_connections(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let node = &fleet.nodes[0];
    let [mut served, mut excepted] = node.clients().await?;
    node.join(&served, "group1").await?;
    node.join(&excepted, "group1").await?;
    node.send_except(&Target::group("group1"), &[&excepted], "hello").await?;
    node.send(&Target::group("group1"), "fence").await?;
    served.expect("hello").await?;
    served.expect("fence").await?;
    excepted.expect("fence").await?;
    fleet.end().await
}

/// One server: a message to a connection is read by it alone.
pub(super) async fn send_connection_async_writes_to_connection_output(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let node = &fleet.nodes[0];
    let [mut one, mut other] = node.clients().await?;
    node.send(&Target::connection(one.id()), "hello").await?;
    node.send(&Target::connection(other.id()), "fence").await?;
    one.expect("hello").await?;
    other.expect("fence").await?;
    fleet.end().await
}

/// Two servers: a message to all reaches the connections of both.
pub(super) async fn invoke_all_async_with_multiple_servers_writes_to_all_connections_output(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut here = fleet.nodes[0].client().await?;
    let mut there = fleet.nodes[1].client().await?;
    for text in ["hello", "fence"] {
        fleet.nodes[0].send(&Target::all(), text).await?;
        here.expect(text).await?;
        there.expect(text).await?;
    }
    fleet.end().await
}

/// Two servers: who left the other server does not get a message to all. A witness at that server proves that it
/// had dealt with the message.
pub(super) async fn invoke_all_async_with_multiple_servers_does_not_write_to_disconnected_connections_output(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut stays = fleet.nodes[0].client().await?;
    let [mut leaves, mut witness] = fleet.nodes[1].clients().await?;
    leaves.leave();
    for text in ["hello", "fence"] {
        fleet.nodes[1].send(&Target::all(), text).await?;
        stays.expect(text).await?;
        witness.expect(text).await?;
    }
    leaves.nothing_more()?;
    fleet.end().await
}

/// Two servers: a connection is reached from the server that does not have it.
pub(super) async fn invoke_connection_async_on_server_without_connection_writes_output_to_connection(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let [mut one, mut other] = fleet.nodes[0].clients().await?;
    fleet.nodes[1].send(&Target::connection(one.id()), "hello").await?;
    one.expect("hello").await?;
    fleet.nodes[1].send(&Target::connection(other.id()), "fence").await?;
    other.expect("fence").await?;
    one.nothing_more()?;
    fleet.end().await
}

/// Two servers: a group is reached from the server that has no member.
pub(super) async fn invoke_group_async_on_server_without_connection_writes_output_to_group_connection(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut member = fleet.nodes[0].client().await?;
    fleet.nodes[0].join(&member, "name").await?;
    for text in ["hello", "fence"] {
        fleet.nodes[1].send(&Target::group("name"), text).await?;
        member.expect(text).await?;
    }
    fleet.end().await
}

/// A message to a connection of the sending server takes no way over the bus.
///
/// The original registers the same connection at both servers and looks for a second copy; here the frames that the
/// server hands to its bus are counted, and the only one is that of the fence.
pub(super) async fn invoke_connection_async_for_local_connection_does_not_publish_to_backplane(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let node = &fleet.nodes[0];
    let mut client = node.client().await?;
    let before = node.published();
    node.send(&Target::connection(client.id()), "hello").await?;
    node.send(&Target::connections([client.id()]), "again").await?;
    client.expect("hello").await?;
    client.expect("again").await?;
    node.send(&Target::all(), "fence").await?;
    client.expect("fence").await?;
    let published = node.published() - before;
    ensure!(published == 1, "{published} frames were published where the fence alone should have been");
    fleet.end().await
}

/// A connection whose writes fail does not fail the sender at another server, nor the connections beside it.
///
/// The original's connection throws on write; here the reader of its queue is gone.
pub(super) async fn writing_to_remote_connection_that_fails_does_not_throw(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let [mut fails, mut other] = fleet.nodes[1].clients().await?;
    fails.break_writes();
    for text in ["hello", "again"] {
        fleet.nodes[0].send(&Target::connection(fails.id()), text).await?;
        fleet.nodes[0].send(&Target::connection(other.id()), text).await?;
        other.expect(text).await?;
    }
    fleet.end().await
}

/// One member whose writes fail does not keep the others from their messages, now or later.
pub(super) async fn writing_to_group_with_one_connection_failing_second_connection_still_receives_message(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut fails = fleet.nodes[0].client().await?;
    let mut works = fleet.nodes[0].client().await?;
    let mut remote = fleet.nodes[1].client().await?;
    for client in [&fails, &works, &remote] {
        fleet.nodes[0].join(client, "group").await?;
    }
    fails.break_writes();
    for text in ["hello", "again"] {
        fleet.nodes[0].send(&Target::group("group"), text).await?;
        works.expect(text).await?;
        remote.expect(text).await?;
    }
    fleet.end().await
}
