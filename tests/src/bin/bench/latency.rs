//! `latency`: from sending to receipt at 1,000 messages per second, publisher and subscriber in two processes.

use backplane_conformance::broker::Redis;

use crate::options::Options;
use crate::part::Side;
use crate::table::{Bound, Table, Verdict};
use crate::{Result, flow};

/// Messages per second.
const PACE: u32 = 1_000;

/// Ours against the bare loop.
const BOUND: Bound = Bound::RatioAtMost(2.0);

pub(crate) async fn run(redis: &Redis, options: &Options) -> Result<Vec<Verdict>> {
    println!(
        "latency: us from sending to receipt at {PACE} messages/s, 128 bytes, two processes of one thread each"
    );
    let measured = options.measured(3.0);
    let mut table = Table::new(&[
        ("bare p50", 0),
        ("ours p50", 0),
        ("ratio", 2),
        ("bare p99", 0),
        ("ours p99", 0),
        ("ratio", 2),
        ("bare: cores busy elsewhere", 2),
        ("ours: cores busy elsewhere", 2),
    ]);
    for _ in 0..options.rounds(5) {
        let bare = flow::round(redis, Side::Bare, measured, Some(PACE)).await?;
        let ours = flow::round(redis, Side::Ours, measured, Some(PACE)).await?;
        let (Some((bare_p50, bare_p99)), Some((ours_p50, ours_p99))) = (bare.latencies, ours.latencies)
        else {
            return Err("a paced flow has latencies".into());
        };
        table.round([
            bare_p50,
            ours_p50,
            ours_p50 / bare_p50,
            bare_p99,
            ours_p99,
            ours_p99 / bare_p99,
            bare.elsewhere,
            ours.elsewhere,
        ]);
    }
    println!("{table}");
    let verdicts = vec![
        Verdict::new("latency, ratio of the medians of p50", table.median(1) / table.median(0), BOUND),
        Verdict::new("latency, ratio of the medians of p99", table.median(4) / table.median(3), BOUND),
    ];
    verdicts.iter().for_each(|verdict| println!("  {verdict}"));
    Ok(verdicts)
}
