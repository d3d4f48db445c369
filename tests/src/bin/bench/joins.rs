//! `joins`: how many memberships begin per second, and whether that slows down with the number of groups.

use std::time::{Duration, Instant};

use backplane::GroupName;
use backplane_conformance::broker::{Broker as _, Redis};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::node::Client;
use crate::options::Options;
use crate::part::{Cue, Part, Side};
use crate::table::{Bound, Table, Verdict, median};
use crate::{Result, bare};

/// Names of the parts.
pub(crate) const RATE: &str = "joins-rate";
pub(crate) const TIME: &str = "joins-time";

/// Tasks that join, one join in flight each; channels per round trip of the bare loop.
const TASKS: usize = 100;
/// Joins whose times are taken.
const TIMED: usize = 1_000;
const FEW: usize = 100;
const MANY: usize = 100_000;

const RATE_BOUND: Bound = Bound::RateAtLeast(50_000.0);
const TIME_BOUND: Bound = Bound::RatioAtMost(1.5);

/// What the process that measures the rate is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RateTask {
    url: String,
    side: Side,
    measured: Duration,
}

/// What the process that measures the time of a join is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TimeTask {
    url: String,
}

/// Medians in microseconds, on a node with few groups and on one with many.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Times {
    few: f64,
    many: f64,
}

pub(crate) async fn run(redis: &Redis, options: &Options) -> Result<Vec<Verdict>> {
    println!("joins: {TASKS} tasks join distinct groups, local connections, one in flight each; one process");
    println!("  bare: one SUBSCRIBE of {TASKS} channels per round trip, `redis` crate");
    let measured = options.measured(3.0);
    let mut rates = Table::new(&[("bare /s", 0), ("ours /s", 0), ("ratio", 3)]);
    for _ in 0..options.rounds(3) {
        let mut figures = [0.0; 2];
        for (side, figure) in [Side::Bare, Side::Ours].into_iter().zip(&mut figures) {
            let mut part = Part::start(RATE, &RateTask { url: redis.url(), side, measured }).await?;
            part.go().await?;
            *figure = part.outcome(measured).await?;
        }
        let [bare, ours] = figures;
        rates.round([bare, ours, ours / bare]);
    }
    println!("{rates}");
    println!(
        "  us of one join, median of {TIMED} one by one, on a node with that many groups; both nodes in turn"
    );
    let mut times = Table::new(&[("100 groups", 1), ("100,000 groups", 1), ("ratio", 3)]);
    for _ in 0..options.rounds(3) {
        let mut part = Part::start(TIME, &TimeTask { url: redis.url() }).await?;
        part.go().await?;
        let Times { few, many } = part.outcome(Duration::ZERO).await?;
        times.round([few, many, many / few]);
    }
    println!("{times}");
    let verdicts = vec![
        Verdict::new("joins, median rate", rates.median(1), RATE_BOUND),
        Verdict::new("joins, ratio of median times", times.median(1) / times.median(0), TIME_BOUND),
    ];
    verdicts.iter().for_each(|verdict| println!("  {verdict}"));
    Ok(verdicts)
}

/// The process that measures the rate: joins per second.
pub(crate) async fn rate(task: RateTask, cue: Cue) -> Result<f64> {
    let RateTask { url, side, measured } = task;
    let (joined, elapsed) = match side {
        Side::Bare => {
            cue.ready().await?;
            bare::subscribe_flat_out(&url, TASKS, measured).await?
        }
        Side::Ours => {
            let node = backplane::open(&url).await?;
            let clients = Client::register_many(&node, TASKS).await?;
            cue.ready().await?;
            let begun = Instant::now();
            let tasks = clients.into_iter().enumerate().map(|(task, client)| {
                let node = node.clone();
                // Spawned, as the connections of a server are: each is woken for itself.
                tokio::spawn(async move {
                    let mut joined = 0_u64;
                    while begun.elapsed() < measured {
                        client.join(&node, &GroupName::from(format!("room-{task}-{joined}"))).await?;
                        joined += 1;
                    }
                    // Kept to the end: a connection that goes away takes all its groups with it.
                    Result::Ok((joined, begun.elapsed(), client))
                })
            });
            let tasks: Vec<_> = tasks.collect();
            let mut joined = 0;
            let mut elapsed = Duration::ZERO;
            let mut kept = Vec::with_capacity(TASKS);
            for task in tasks {
                let (by_task, took, client) = task.await??;
                joined += by_task;
                elapsed = elapsed.max(took);
                kept.push(client);
            }
            (joined, elapsed)
        }
    };
    Ok(joined as f64 / elapsed.as_secs_f64())
}

/// The process that measures the time of a join. Two nodes join in turn, because the time of a round trip to the
/// server doubles or halves with the cores that the scheduler happens to choose.
pub(crate) async fn time(task: TimeTask, cue: Cue) -> Result<Times> {
    let mut nodes = Vec::with_capacity(2);
    for groups in [FEW, MANY] {
        let node = backplane::open(&task.url).await?;
        let clients = Client::register_many(&node, TASKS).await?;
        join_many(&node, &clients, groups).await?;
        nodes.push((node, clients, Vec::with_capacity(TIMED)));
    }
    cue.ready().await?;
    for number in 0..TIMED {
        for (node, clients, times) in &mut nodes {
            let group = GroupName::from(format!("timed-{number}"));
            let begun = Instant::now();
            clients[number % TASKS].join(node, &group).await?;
            times.push(begun.elapsed().as_secs_f64() * 1e6);
        }
    }
    let medians: Vec<f64> = nodes.iter().map(|(.., times)| median(times)).collect();
    Ok(Times { few: medians[0], many: medians[1] })
}

/// Joins so many distinct groups, spread over the connections; a group's number is in its name.
pub(crate) async fn join_many(node: &backplane::Router, clients: &[Client], groups: usize) -> Result<()> {
    /// Joins at once: far below the bounds of any queue.
    const AT_ONCE: usize = 1_000;
    for first in (0..groups).step_by(AT_ONCE) {
        let joins = (first..groups).take(AT_ONCE).map(async |number| {
            clients[number % clients.len()].join(node, &GroupName::from(format!("room-{number}"))).await
        });
        try_join_all(joins).await?;
    }
    Ok(())
}
