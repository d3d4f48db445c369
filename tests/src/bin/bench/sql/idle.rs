//! What nodes cost a database while nobody says anything.

use std::time::Duration;

use backplane::GroupName;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::database::Database;
use crate::node::Client;
use crate::part::{Cue, Part};
use crate::table::{Bound, Verdict};
use crate::{Result, machine};

/// Name of the part.
pub(crate) const NODES: &str = "sql-idle";

/// How many nodes: they hear each other.
const COUNT: usize = 2;
/// How long they are watched.
const WATCHED: Duration = Duration::from_secs(10);
/// How long they come to rest before. PostgreSQL counts what a session did up to 10 s late.
const SETTLING: Duration = Duration::from_secs(12);

/// Statements of all nodes while they are watched: below five per second and node.
const BOUND: Bound = Bound::CountAtMost((5 * WATCHED.as_secs() * COUNT as u64 - 1) as f64);

/// What the nodes are told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    url: String,
}

/// Counts what nodes ask of `database` while nothing is sent. The counting itself counts a little.
pub(super) async fn run(database: &mut Database) -> Result<Vec<Verdict>> {
    database.renew().await?;
    let mut nodes = Part::start(NODES, &Task { url: database.url() }).await?;
    let (server, before) = (database.processor_time()?, database.statements().await?);
    nodes.go().await?;
    let processor: Duration = nodes.outcome(WATCHED).await?;
    let (server, after) = (database.processor_time()?.saturating_sub(server), database.statements().await?);
    let name = database.name();
    println!(
        "  {name}, {COUNT} idle nodes for {WATCHED:?}: processor time of their process {processor:.2?}, of the server {server:.2?}"
    );
    let Some((before, after)) = before.zip(after) else {
        println!("  {name}, statements of idle nodes: nobody counts them there");
        return Ok(Vec::new());
    };
    let what = format!("{name}, statements of {COUNT} idle nodes in {WATCHED:?}");
    let verdict = Verdict::new(what, after.saturating_sub(before) as f64, BOUND);
    println!("  {verdict}");
    Ok(vec![verdict])
}

/// The nodes. Returns the processor time that they took.
pub(crate) async fn stay(task: Task, cue: Cue) -> Result<Duration> {
    let mut nodes = Vec::new();
    for _ in 0..COUNT {
        let node = backplane::open(&task.url).await?;
        let client = Client::register(&node).await?;
        client.join(&node, &GroupName::from("idle")).await?;
        nodes.push((client, node));
    }
    sleep(SETTLING).await;
    cue.ready().await?;
    let before = machine::processor_time()?;
    sleep(WATCHED).await;
    Ok(machine::processor_time()? - before)
}
