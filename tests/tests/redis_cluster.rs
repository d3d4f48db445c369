//! Every contract of the whole on a real Redis, with each wire format.

// Reports are printed.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use backplane_conformance::{Report, cluster};
use backplane_core::Wire;
use backplane_redis::Resp;
use backplane_tests::redis::{FaultsBy, RedisHarness};

async fn keep_every_contract(wire: Wire, resp: Resp, by: FaultsBy) {
    let Some(harness) = RedisHarness::require(resp, by).await else { return };
    let report = Report::of(Arc::new(harness), &cluster::contracts(&wire)).await;
    println!("{wire:?} on {report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_routers_on_redis_keep_every_contract() {
    keep_every_contract(Wire::Native, Resp::V3, FaultsBy::Broker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aspnetcore_routers_on_redis_keep_every_contract() {
    keep_every_contract(Wire::AspNetCore { server_name: None }, Resp::V2, FaultsBy::Proxy).await;
}
