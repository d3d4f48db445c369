//! `throughput`: deliveries per second, flat out, 128 bytes, publisher and subscriber in two processes.

use backplane_conformance::broker::Redis;

use crate::options::Options;
use crate::part::Side;
use crate::table::{Bound, Table, Verdict};
use crate::{Result, flow};

/// Ours against the bare loop.
const BOUND: Bound = Bound::RatioAtLeast(0.6);

pub(crate) async fn run(redis: &Redis, options: &Options) -> Result<Vec<Verdict>> {
    println!(
        "throughput: deliveries/s, 128 bytes, publisher > redis > subscriber, two processes of one thread each"
    );
    println!("  bare: `redis` crate, pipelines of 512 awaited one by one, its pub/sub stream");
    println!(
        "  ours: 64 tasks post to a group, 512 acceptances outstanding in all; router, outbound queue, joined"
    );
    let measured = options.measured(3.0);
    let mut rates = Table::new(&[
        ("bare /s", 0),
        ("ours /s", 0),
        ("ratio", 3),
        ("bare: cores busy elsewhere", 2),
        ("ours: cores busy elsewhere", 2),
    ]);
    let mut costs = Table::new(&[
        ("bare publisher", 3),
        ("ours publisher", 3),
        ("bare subscriber", 3),
        ("ours subscriber", 3),
        ("bare redis", 3),
        ("ours redis", 3),
    ]);
    for _ in 0..options.rounds(5) {
        let bare = flow::round(redis, Side::Bare, measured, None).await?;
        let ours = flow::round(redis, Side::Ours, measured, None).await?;
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
    println!(
        "{rates}\n  processor time per message in us; nothing was lost, repeated or out of order\n{costs}"
    );
    let verdict = Verdict::new("throughput, ratio of medians", rates.median(1) / rates.median(0), BOUND);
    println!("  {verdict}");
    Ok(vec![verdict])
}
