//! Every contract of the seam, and of whole nodes over it.

// Reports are printed.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use backplane_conformance::{Report, bus, cluster};
use backplane_core::Wire;

use crate::harness::{FaultsBy, RabbitHarness, calm, rough};

async fn bus_contracts(parameters: &str) {
    let Some(rabbitmq) = calm().await else { return };
    let harness = RabbitHarness::new(rabbitmq, FaultsBy::Proxy, parameters);
    let report = Report::of(Arc::new(harness), &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

async fn cluster_contracts(wire: Wire, parameters: &str, left_out: &[&str]) {
    let Some(rabbitmq) = calm().await else { return };
    let harness = RabbitHarness::new(rabbitmq, FaultsBy::Proxy, parameters);
    let mut contracts = cluster::contracts(&wire);
    let all = contracts.len();
    contracts.retain(|contract| !left_out.contains(&contract.name));
    assert_eq!(all - contracts.len(), left_out.len());
    let report = Report::of(Arc::new(harness), &contracts).await;
    println!("{wire:?} on {report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract() {
    bus_contracts("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_nodes_keep_every_contract() {
    cluster_contracts(Wire::Native, "", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aspnetcore_nodes_keep_every_contract() {
    // Without numbers in its frames this wire format raises no gap in any case, and the contract takes long.
    let left_out = ["ten_thousand_clean_messages_raise_no_gap"];
    cluster_contracts(Wire::AspNetCore { server_name: None }, "&pack=0", &left_out).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_outlive_a_server_that_is_killed_and_frozen_under_load() {
    let Some((rabbitmq, _turn)) = rough().await else { return };
    let harness = RabbitHarness::new(rabbitmq, FaultsBy::Server, "");
    let about_the_server = [
        "a_broker_gone_under_load_loses_nothing_in_silence",
        "a_short_freeze_loses_nothing",
        "a_long_freeze_ends_the_links_within_the_bound",
    ];
    let chosen: Vec<_> = cluster::contracts(Wire::Native)
        .into_iter()
        .filter(|contract| about_the_server.contains(&contract.name))
        .collect();
    assert_eq!(chosen.len(), about_the_server.len());
    let report = Report::of(Arc::new(harness), &chosen).await;
    println!("{report}");
    report.assert_clean();
}
