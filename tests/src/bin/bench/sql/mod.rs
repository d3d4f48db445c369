//! `sql`: the SQL bus over each database beside a bare loop: batched insert, doorbell, select by id.

pub(crate) mod bare;
mod database;
pub(crate) mod idle;

use std::time::Duration;

use crate::Result;
use crate::flow::Round;
use crate::options::Options;
use crate::part::Side;
use crate::table::{Bound, Table, Verdict};
use crate::through;

use self::database::{Database, Kind};

/// Messages per second of the paced flows.
const PACE: u32 = 1_000;

/// Ours against the bare loop, on PostgreSQL.
const RATE: Bound = Bound::RatioAtLeast(0.6);
/// From sending to receipt, on PostgreSQL with its doorbell.
const LATENCY: Bound = Bound::MillisecondsAtMost(2.0);

pub(crate) async fn run(options: &Options) -> Result<Vec<Verdict>> {
    println!(
        "sql: the SQL bus beside a bare loop over the same database, publisher and subscriber in two processes"
    );
    println!(
        "  bare: `sqlx`, rows of topic and frame, up to {} in an insert, awaited one by one;",
        bare::MOST_ROWS
    );
    println!(
        "    select by `id > last`, at most {} rows, upon NOTIFY (at most one per ms) or a look per ms",
        bare::PAGE
    );
    println!(
        "  ours: 64 tasks post to a group, 512 acceptances outstanding in all; router, outbound queue, joined"
    );
    println!(
        "    what follows upon each other to one group shares rows of up to 3.5 KiB; bare has a row for each"
    );
    println!(
        "  128 bytes; both as durable as stated; a new log each round, younger than its retention of 60 s"
    );
    let mut verdicts = Vec::new();
    for kind in [Kind::Postgres { flushes: true }, Kind::MariaDb, Kind::Sqlite] {
        let Some(mut database) = Database::start(kind).await? else { continue };
        println!("\n {}", database.description().await?);
        verdicts.extend(throughput(&mut database, options).await?);
        verdicts.extend(latency(&mut database, options).await?);
        verdicts.extend(idle::run(&mut database).await?);
    }
    // What the path itself takes, where the disk is not waited for.
    if let Some(mut database) = Database::start(Kind::Postgres { flushes: false }).await? {
        println!("\n {}", database.description().await?);
        verdicts.extend(latency(&mut database, options).await?);
    }
    Ok(verdicts)
}

/// One round on a new log.
async fn round(database: &mut Database, side: Side, measured: Duration, pace: Option<u32>) -> Result<Round> {
    database.renew().await?;
    let server_time = async || database.processor_time();
    let round = through::round(database.url(), side, measured, pace, server_time).await;
    round.map_err(|error| format!("{}, {error}", database.name()).into())
}

async fn throughput(database: &mut Database, options: &Options) -> Result<Vec<Verdict>> {
    let measured = options.measured(5.0);
    let mut rates = Table::new(&[
        ("bare /s", 0),
        ("ours /s", 0),
        ("ratio", 3),
        ("bare: cores busy elsewhere", 2),
        ("ours: cores busy elsewhere", 2),
    ]);
    let mut costs = Table::new(&[
        ("bare publisher", 2),
        ("ours publisher", 2),
        ("bare subscriber", 2),
        ("ours subscriber", 2),
        ("bare server", 2),
        ("ours server", 2),
    ]);
    for _ in 0..options.rounds(3) {
        let bare = round(database, Side::Bare, measured, None).await?;
        let ours = round(database, Side::Ours, measured, None).await?;
        rates.round([bare.rate, ours.rate, ours.rate / bare.rate, bare.elsewhere, ours.elsewhere]);
        costs.round([
            bare.publisher,
            ours.publisher,
            bare.subscriber,
            ours.subscriber,
            bare.broker,
            ours.broker,
        ]);
    }
    let name = database.name();
    println!("  {name}, deliveries/s flat out\n{rates}");
    println!("  processor time per message in us; nothing was lost, repeated or out of order\n{costs}");
    let ratio = rates.median(1) / rates.median(0);
    if !database.is_bounded() {
        println!("  {name}, ratio of the medians: {ratio:.3}, no bound");
        return Ok(Vec::new());
    }
    let verdict = Verdict::new(format!("{name}, deliveries/s, ratio of medians"), ratio, RATE);
    println!("  {verdict}");
    Ok(vec![verdict])
}

async fn latency(database: &mut Database, options: &Options) -> Result<Vec<Verdict>> {
    let measured = options.measured(5.0);
    let mut table = Table::new(&[
        ("bare p50", 2),
        ("ours p50", 2),
        ("bare p99", 2),
        ("ours p99", 2),
        ("bare /s", 0),
        ("ours /s", 0),
        ("bare: cores busy elsewhere", 2),
        ("ours: cores busy elsewhere", 2),
    ]);
    for _ in 0..options.rounds(3) {
        let bare = round(database, Side::Bare, measured, Some(PACE)).await?;
        let ours = round(database, Side::Ours, measured, Some(PACE)).await?;
        let (Some((bare_p50, bare_p99)), Some((ours_p50, ours_p99))) = (bare.latencies, ours.latencies)
        else {
            return Err("a paced flow has latencies".into());
        };
        table.round([
            bare_p50 / 1e3,
            ours_p50 / 1e3,
            bare_p99 / 1e3,
            ours_p99 / 1e3,
            bare.rate,
            ours.rate,
            bare.elsewhere,
            ours.elsewhere,
        ]);
    }
    let name = database.name();
    println!(
        "  {name}, ms from sending to receipt at {PACE} messages/s, sent whether or not earlier ones are accepted"
    );
    println!("{table}");
    if !database.is_bounded() {
        return Ok(Vec::new());
    }
    let verdict = Verdict::new(format!("{name}, ms to delivery, median of p50"), table.median(1), LATENCY);
    println!("  {verdict}");
    Ok(vec![verdict])
}
