//! `memory-bus`: what the router itself can do. Two nodes on the embedded bus in one thread; nothing to compare with.

use std::time::Duration;

use backplane::GroupName;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::node::{self, Client};
use crate::options::Options;
use crate::part::{Cue, Part};
use crate::payload::Ledger;
use crate::table::{Table, Verdict};
use crate::{Result, machine};

/// Name of the part.
pub(crate) const BOTH: &str = "memory-bus";

const WARM_UP: Duration = Duration::from_millis(200);

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    measured: Duration,
}

/// What it found: deliveries per second, and processor time per message in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Flow {
    rate: f64,
    cost: f64,
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Verdict>> {
    println!(
        "memory-bus: deliveries/s, 128 bytes, two nodes on the embedded bus, one thread; 64 tasks, 512 outstanding"
    );
    let measured = options.measured(3.0);
    let mut table = Table::new(&[("/s", 0), ("us per message", 3)]);
    for _ in 0..options.rounds(3) {
        let mut part = Part::start(BOTH, &Task { measured }).await?;
        part.go().await?;
        let flow: Flow = part.outcome(measured).await?;
        table.round([flow.rate, flow.cost]);
    }
    println!("{table}");
    Ok(Vec::new())
}

/// The process: both nodes.
pub(crate) async fn both(task: Task, cue: Cue) -> Result<Flow> {
    let Task { measured } = task;
    let resolved = backplane::resolve("memory:")?;
    let (north, south) = (resolved.open().await?, resolved.open().await?);
    let group = GroupName::from("bench");
    let mut client = Client::register(&south).await?;
    client.join(&south, &group).await?;
    cue.ready().await?;
    let before = machine::processor_time()?;
    let receiving: JoinHandle<Result<Ledger>> = tokio::spawn(async move {
        let mut ledger = Ledger::new(WARM_UP, measured, false);
        client.receive(&mut ledger).await?;
        Ok(ledger)
    });
    node::post_flat_out(&north, &group, measured + 2 * WARM_UP).await?;
    let ledger = receiving.await??;
    let processor = machine::processor_time()? - before;
    if let Some(complaint) = ledger.complaint() {
        return Err(complaint.into());
    }
    let cost = processor.as_secs_f64() * 1e6 / ledger.received() as f64;
    Ok(Flow { rate: ledger.rate().ok_or("the flow ended before it was measured")?, cost })
}
