//! In which order do messages arrive?

use backplane_core::{Acceptance, Backplane as _, Bus as _, Order, Target};
use futures::future::try_join_all;

use super::client::Client;
use super::fleet::{Fleet, Stage};
use super::messages::message;
use super::wait::within;
use crate::{Broken, Kept, Outcome, ensure};

const MESSAGES: usize = 200;

/// What one node sends to one address arrives in the order of the calls, here and on another node, also when it is
/// addressed now alone and now in a list. Nothing awaits acceptance in between.
pub(super) async fn messages_of_one_sender_arrive_in_order(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let sender = &fleet.nodes[0];
    let mut here = fleet.nodes[0].client_of("u").await?;
    let mut there = fleet.nodes[1].client_of("u").await?;
    let witness = fleet.nodes[1].client().await?;
    for client in [&here, &there] {
        sender.join(client, "g").await?;
    }
    let to =
        |client: &Client| (Target::connection(client.id()), Target::connections([client.id(), witness.id()]));
    let addresses = [
        (Target::all(), Target::all()),
        (Target::group("g"), Target::groups(["g", "nobody"])),
        (Target::user("u"), Target::users(["nobody", "u"])),
        to(&here),
        to(&there),
    ];
    for (alone, listed) in addresses {
        let mut accepted: Vec<Acceptance> = Vec::new();
        for number in 0..MESSAGES {
            let target = if number % 2 == 0 { &alone } else { &listed };
            accepted.push(sender.router.post(target, &[], message(&number.to_string()))?);
        }
        within("messages to be accepted", try_join_all(accepted)).await??;
        let single = |client: &Client| alone == Target::connection(client.id());
        let (only_here, only_there) = (single(&here), single(&there));
        if !only_there {
            in_order(&mut here).await?;
        }
        if !only_here {
            in_order(&mut there).await?;
        }
    }
    here.nothing_more()?;
    there.nothing_more()?;
    fleet.end().await
}

async fn in_order(client: &mut Client) -> Result<(), Broken> {
    for number in 0..MESSAGES {
        client.expect(&number.to_string()).await?;
    }
    Ok(())
}

/// Three nodes that all send at once see all messages to one address in one order, where the bus promises it.
pub(super) async fn all_nodes_see_one_order(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 3).await?;
    if fleet.nodes[0].tap.capabilities().order != Order::Total {
        fleet.end().await?;
        return Ok(Kept::NotApplicable("the bus promises order per publisher only"));
    }
    let mut clients = Vec::new();
    for node in &fleet.nodes {
        let client = node.client().await?;
        node.join(&client, "g").await?;
        clients.push(client);
    }
    for target in [Target::all(), Target::group("g")] {
        let sent = fleet.nodes.iter().enumerate().map(|(number, node)| {
            let target = &target;
            async move {
                for count in 0..MESSAGES {
                    node.send(target, &format!("{number}:{count}")).await?;
                }
                Ok::<_, backplane_core::Error>(())
            }
        });
        within("messages to be accepted", try_join_all(sent)).await??;
        let first = clients[0].take(MESSAGES * 3).await?;
        for client in &mut clients[1..] {
            let other = client.take(MESSAGES * 3).await?;
            let differs = first.iter().zip(&other).position(|(one, other)| one != other);
            ensure!(differs.is_none(), "two nodes saw another order, first at message {differs:?}");
        }
    }
    fleet.end().await
}
