//! `reconnect`: how long, and with how many commands, until the topics of a node are back after its connections were
//! cut.

use std::time::{Duration, Instant};

use backplane::{Backplane as _, BackplaneExt as _, EncodedMessage, Event, GroupName};
use backplane_conformance::broker::Redis;
use backplane_conformance::proxy::FaultProxy;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::Result;
use crate::joins::join_many;
use crate::node::Client;
use crate::options::Options;
use crate::part::{Cue, Part};
use crate::table::{Bound, Table, Verdict};

/// Name of the part.
pub(crate) const NODE: &str = "reconnecting-node";

const TOPICS: usize = 50_000;
const CONNECTIONS: usize = 100;

/// How long a node may take before we no longer wait.
const PATIENCE: Duration = Duration::from_secs(30);

const TIME_BOUND: Bound = Bound::TimeAtMost(0.3);
const COMMANDS_BOUND: Bound = Bound::CountAtMost(200.0);

/// What the node is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    url: String,
}

pub(crate) async fn run(redis: &Redis, options: &Options) -> Result<Vec<Verdict>> {
    println!(
        "reconnect: {TOPICS} groups on a node, its connections reset; until all are subscribed and confirmed again"
    );
    let mut table = Table::new(&[("seconds", 3), ("SUBSCRIBE commands", 0), ("all commands", 0)]);
    for _ in 0..options.rounds(3) {
        let proxy = FaultProxy::start(redis.address())?;
        let url = redis.url_at(proxy.address());
        let mut node = Part::start(NODE, &Task { url }).await?;
        node.go().await?;
        node.said("watching").await?;
        proxy.reset_counts();
        let cut = Instant::now();
        proxy.cut();
        node.said("up").await?;
        let took = cut.elapsed();
        let commands = proxy.commands();
        let subscribes = commands.get("SUBSCRIBE").map_or(0, |count| count.calls);
        let all: u64 = commands.values().map(|count| count.calls).sum();
        let arrived: usize = node.outcome(PATIENCE).await?;
        if arrived != CONNECTIONS {
            return Err(
                format!("after the reconnect only {arrived} of {CONNECTIONS} messages arrived").into()
            );
        }
        table.round([took.as_secs_f64(), subscribes as f64, all as f64]);
    }
    println!("{table}");
    let verdicts = vec![
        Verdict::new("reconnect, median time", table.median(0), TIME_BOUND),
        Verdict::new("reconnect, median of SUBSCRIBE commands", table.median(1), COMMANDS_BOUND),
    ];
    verdicts.iter().for_each(|verdict| println!("  {verdict}"));
    Ok(verdicts)
}

/// The node: says when its link is up again, then sends to one group of each connection. How many of those arrived.
pub(crate) async fn node(task: Task, cue: Cue) -> Result<usize> {
    let node = backplane::open(&task.url).await?;
    let mut clients = Client::register_many(&node, CONNECTIONS).await?;
    join_many(&node, &clients, TOPICS).await?;
    cue.ready().await?;
    let mut events = node.events();
    println!("watching");
    loop {
        if let Event::LinkUp { .. } = timeout(PATIENCE, events.recv()).await?? {
            break;
        }
    }
    println!("up");
    let mut arrived = 0;
    // The last group of each connection: groups were dealt out in turn.
    for (number, client) in clients.iter_mut().enumerate() {
        let group = GroupName::from(format!("room-{}", TOPICS - CONNECTIONS + number));
        node.send_to_group(&group, EncodedMessage::json("still there")).await?;
        let item = timeout(PATIENCE, client.receiver.next()).await?;
        arrived += usize::from(item.is_ok_and(|item| &item.bytes[..] == b"still there"));
    }
    Ok(arrived)
}
