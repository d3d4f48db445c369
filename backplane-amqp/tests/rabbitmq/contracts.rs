//! Every contract of the seam, and of whole nodes over it.

use std::sync::Arc;

use backplane_conformance::{Report, bus, cluster};
use backplane_core::Wire;
use tokio::sync::Mutex;

use crate::harness::RabbitHarness;

/// One suite at a time: the broker has one scheduler, and the bounds of the suite are short.
static TURN: Mutex<()> = Mutex::const_new(());

async fn bus_contracts(parameters: &str) {
    let Some(harness) = RabbitHarness::require(parameters).await else { return };
    let _turn = TURN.lock().await;
    let report = Report::of(Arc::new(harness), &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

async fn cluster_contracts(parameters: &str, select: impl Fn(&str) -> bool) {
    let Some(harness) = RabbitHarness::require(parameters).await else { return };
    let contracts: Vec<_> =
        cluster::contracts(&Wire::Native).into_iter().filter(|contract| select(contract.name)).collect();
    assert!(contracts.len() > 20);
    let _turn = TURN.lock().await;
    let report = Report::of(Arc::new(harness), &contracts).await;
    println!("{report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract() {
    bus_contracts("exchange=contracts").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract_with_buckets() {
    bus_contracts("exchange=contracts-in-buckets&buckets=256").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_nodes_keep_every_contract() {
    cluster_contracts("exchange=nodes", |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_nodes_keep_the_contracts_about_interest_with_buckets() {
    // Buckets change which bindings there are and what arrives unasked, and nothing else.
    let about_interest = |name: &str| {
        ["group", "user", "join", "leav", "names", "topics"].iter().any(|word| name.contains(word))
    };
    let parameters = "exchange=nodes-in-buckets&buckets=1024&unbind_after=0ms";
    cluster_contracts(parameters, about_interest).await;
}
