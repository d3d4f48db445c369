//! Is each recipient of a list served as often as the list means, and never the excepted one?

use backplane_core::{
    Backplane as _, CloseReason, EncodedMessage, ErrorKind, GroupName, Protocol, Target, UserId,
};
use bytes::Bytes;

use super::client::{Client, Manner};
use super::fleet::{Fleet, Stage};
use super::messages::message;
use super::wait::failed;
use crate::{Broken, Outcome, ensure};

/// A connection that is named twice gets one copy, here and on another node.
pub(super) async fn a_connection_named_twice_is_served_once(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut here = fleet.nodes[0].client().await?;
    let mut there = fleet.nodes[1].client().await?;
    let both = [here.id(), there.id(), here.id(), there.id()];
    for (target, text) in
        [(Target::connections(both), "hello"), (Target::connections([both[0], both[1]]), "fence")]
    {
        fleet.nodes[0].send(&target, text).await?;
        here.expect(text).await?;
        there.expect(text).await?;
    }
    fleet.end().await
}

/// A member of a group that is named twice gets one copy.
pub(super) async fn a_group_named_twice_is_served_once(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut here = fleet.nodes[0].client().await?;
    let mut there = fleet.nodes[1].client().await?;
    fleet.nodes[0].join(&here, "g").await?;
    fleet.nodes[1].join(&there, "g").await?;
    for (target, text) in [(Target::groups(["g", "g", "g"]), "hello"), (Target::group("g"), "fence")] {
        fleet.nodes[0].send(&target, text).await?;
        here.expect(text).await?;
        there.expect(text).await?;
    }
    fleet.end().await
}

/// A user that is named twice gets one copy on each connection.
pub(super) async fn a_user_named_twice_is_served_once(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut here = fleet.nodes[0].client_of("u").await?;
    let mut there = fleet.nodes[1].client_of("u").await?;
    for (target, text) in [(Target::users(["u", "u"]), "hello"), (Target::user("u"), "fence")] {
        fleet.nodes[0].send(&target, text).await?;
        here.expect(text).await?;
        there.expect(text).await?;
    }
    fleet.end().await
}

/// Who is in two listed groups gets the message twice, as in SignalR; who is in one of them, once.
pub(super) async fn a_connection_in_two_listed_groups_gets_one_copy_for_each(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    for owner in [0, 1] {
        let [mut in_both, mut in_one] = fleet.nodes[owner].clients().await?;
        let [left, right] = [format!("left{owner}"), format!("right{owner}")];
        for (client, group) in [(&in_both, &left), (&in_both, &right), (&in_one, &right)] {
            fleet.nodes[0].join(client, group).await?;
        }
        fleet.nodes[0].send(&Target::groups([left.as_str(), &right]), "hello").await?;
        in_both.expect("hello").await?;
        in_both.expect("hello").await?;
        for group in [left.as_str(), &right] {
            fleet.nodes[0].send(&Target::group(group), "fence").await?;
            in_both.expect("fence").await?;
        }
        in_one.expect("hello").await?;
        in_one.expect("fence").await?;
    }
    fleet.end().await
}

/// An excepted connection does not get the message, whatever the kind of target, here and on another node. A wire
/// format that cannot say so for a kind refuses the send as a whole (`aspnetcore`: users).
pub(super) async fn exceptions_hold_for_every_kind_of_target(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let sender = &fleet.nodes[0];
    let mut clients: Vec<(Client, Client)> = Vec::new();
    for node in &fleet.nodes {
        let (served, excepted) = (node.client_of("u").await?, node.client_of("u").await?);
        for client in [&served, &excepted] {
            sender.join(client, "g").await?;
        }
        clients.push((served, excepted));
    }
    let ids = || clients.iter().flat_map(|(served, excepted)| [served.id().clone(), excepted.id().clone()]);
    let mut targets = vec![
        Target::all(),
        Target::connections(ids()),
        Target::group("g"),
        Target::groups(["g"]),
        Target::user("u"),
        Target::users(["u"]),
    ];
    let singles: Vec<Target> =
        clients.iter().map(|(_, excepted)| Target::connection(excepted.id())).collect();
    for target in targets.drain(..) {
        let except: Vec<&Client> = clients.iter().map(|(_, excepted)| excepted).collect();
        let outcome = sender.send_except(&target, &except, "to some").await;
        let users = matches!(target, Target::User(_) | Target::Users(_));
        let refused = !stage.is_native() && users;
        if refused {
            failed("an exception that cannot be said", outcome, &[ErrorKind::Unsupported])?;
        } else {
            outcome?;
        }
        sender.send(&target, "fence").await?;
        for (served, excepted) in &mut clients {
            if !refused {
                served.expect("to some").await?;
            }
            served.expect("fence").await?;
            excepted.expect("fence").await?;
        }
    }
    for (target, (_, excepted)) in singles.iter().zip(&mut clients) {
        sender.send_except(target, &[&*excepted], "to nobody").await?;
        sender.send(target, "fence").await?;
        excepted.expect("fence").await?;
    }
    fleet.end().await
}

/// A list of nobody is no error and no frame.
pub(super) async fn an_empty_list_publishes_nothing(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let node = &fleet.nodes[0];
    let mut client = node.client().await?;
    let before = node.published();
    node.send(&Target::Connections(vec![]), "hello").await?;
    node.send(&Target::Groups(vec![]), "hello").await?;
    node.send(&Target::Users(vec![]), "hello").await?;
    node.send(&Target::all(), "fence").await?;
    client.expect("fence").await?;
    let published = node.published() - before;
    ensure!(published == 1, "{published} frames were published where the fence alone should have been");
    fleet.end().await
}

/// A connection that nobody has, a group without members and an absent user are no error: acceptance is not presence.
pub(super) async fn nobody_is_a_valid_target(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[1].client().await?;
    let minted = |node: usize| fleet.nodes[node].router.new_connection_id();
    for target in [
        Target::connection("none"),
        Target::connection(minted(0)),
        Target::connection(minted(1)),
        Target::connection(fleet.format.new_connection_id()),
        Target::connections([minted(0), minted(1), "none".into()]),
        Target::group("nobody"),
        Target::groups(["nobody", "nor here"]),
        Target::user("nobody"),
        Target::users(["nobody", "nor here"]),
    ] {
        fleet.nodes[0].send(&target, "hello").await?;
    }
    fleet.nodes[0].send(&Target::all(), "fence").await?;
    client.expect("fence").await?;
    fleet.end().await
}

/// A thousand connections of three nodes are addressed by one frame for each other node: a connection's id tells
/// where it lives.
pub(super) async fn a_thousand_connections_of_three_nodes_are_three_frames(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 3).await?;
    let mut clients = Vec::new();
    for number in 0..1_000 {
        clients.push(fleet.nodes[number % 3].client().await?);
    }
    let before = fleet.nodes[0].published();
    fleet.nodes[0].send(&Target::connections(clients.iter().map(Client::id)), "hello").await?;
    for client in &mut clients {
        client.expect("hello").await?;
    }
    let published = fleet.nodes[0].published() - before;
    ensure!(published <= 3, "{published} frames for a thousand connections of three nodes");
    fleet.end().await
}

/// Each client gets the bytes that the sender encoded for its protocol. Where there are none its connection is ended,
/// as .NET does, and no other one.
pub(super) async fn each_client_gets_the_encoding_of_its_protocol(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let packed = || Manner { protocol: Protocol::MESSAGEPACK, ..Manner::default() };
    let mut clients = Vec::new();
    for node in &fleet.nodes {
        clients.push((node.client().await?, node.client_like(packed()).await?));
    }
    let for_json = message("for one").get(&Protocol::JSON).cloned().unwrap_or_else(Bytes::new);
    fleet.nodes[0].send(&Target::all(), "for both").await?;
    fleet.nodes[0].router.send(&Target::all(), &[], EncodedMessage::json(for_json)).await?;
    fleet.nodes[0].send(&Target::all(), "fence").await?;
    for (node, (json, messagepack)) in fleet.nodes.iter().zip(&mut clients) {
        for text in ["for both", "for one", "fence"] {
            json.expect(text).await?;
        }
        let reason = messagepack.end().await?;
        ensure!(
            reason == CloseReason::MissingProtocol,
            "a client without an encoding was ended by {reason:?}"
        );
        ensure!(node.router.stats().missing_protocol > 0, "a missing protocol was not counted");
    }

    let mut again = fleet.nodes[1].client_like(packed()).await?;
    for text in ["for both", "fence"] {
        fleet.nodes[0].send(&Target::all(), text).await?;
        again.expect(text).await?;
    }
    fleet.end().await
}

/// Hubs of one node share its link and nothing else.
pub(super) async fn two_hubs_of_a_node_do_not_meet(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let hub = &fleet.nodes[0];
    let other_hub = hub.hub("Contracts.Other").await?;
    let other_hub_there = fleet.nodes[1].hub("Contracts.Other").await?;
    let mut client = hub.client_of("u").await?;
    let mut others = [other_hub.client_of("u").await?, other_hub_there.client_of("u").await?];
    hub.join(&client, "g").await?;
    for other in &others {
        other_hub.join(other, "g").await?;
    }
    let group = Target::Group(GroupName::from("g"));
    let user = Target::User(UserId::from("u"));
    for target in [Target::all(), group.clone(), user.clone()] {
        hub.send(&target, "to one hub").await?;
        client.expect("to one hub").await?;
        for sender in [&other_hub, &other_hub_there] {
            sender.send(&target, "to the other").await?;
            for other in &mut others {
                other.expect("to the other").await?;
            }
        }
        client.nothing_more()?;
    }
    // Ids are unique in the fleet, but reach only within their hub.
    other_hub.send(&Target::connection(client.id()), "wrong hub").await?;
    other_hub_there.send(&Target::connection(client.id()), "wrong hub").await?;
    fleet.nodes[1].send(&Target::connection(client.id()), "right hub").await?;
    client.expect("right hub").await?;
    fleet.end().await
}

/// Nodes meet only within one application prefix, whatever else they share.
pub(super) async fn nodes_of_different_prefixes_do_not_meet(stage: Stage) -> Outcome {
    let [one, two] = [Fleet::open(&stage, 1).await?, Fleet::open(&stage, 1).await?];
    let (here, there) = (&one.nodes[0], &two.nodes[0]);
    let mut clients = [here.client_of("u").await?, there.client_of("u").await?];
    for (node, client) in [here, there].into_iter().zip(&clients) {
        node.join(client, "g").await?;
    }
    let mut exchange = async |target: Target| -> Result<(), Broken> {
        here.send(&target, "here").await?;
        there.send(&target, "there").await?;
        clients[0].expect("here").await?;
        clients[1].expect("there").await
    };
    for _ in 0..2 {
        exchange(Target::all()).await?;
        exchange(Target::group("g")).await?;
        exchange(Target::user("u")).await?;
    }
    one.end().await?;
    two.end().await
}
