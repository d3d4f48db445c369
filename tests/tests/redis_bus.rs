//! Every contract of the seam on a real Redis, in both versions of its protocol: once with the faults of the server's
//! own process, once with those of the network before it.

// Reports are printed.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use backplane_conformance::{Report, bus};
use backplane_redis::Resp;
use backplane_tests::redis::{FaultsBy, RedisHarness};

async fn keeps_every_contract(resp: Resp, by: FaultsBy) {
    let Some(harness) = RedisHarness::require(resp, by).await else { return };
    let report = Report::of(Arc::new(harness), &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_over_resp2_keeps_every_contract() {
    keeps_every_contract(Resp::V2, FaultsBy::Broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_over_resp3_keeps_every_contract() {
    keeps_every_contract(Resp::V3, FaultsBy::Proxy).await;
}
