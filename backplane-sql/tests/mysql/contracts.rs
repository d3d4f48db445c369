//! Every contract of the seam, and of whole nodes over it.

// Reports are printed.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use backplane_conformance::{Report, bus, cluster};
use backplane_core::Wire;

use crate::harness::{FaultsBy, MariaDbHarness};

async fn bus_contracts(by: FaultsBy, parameters: &str) {
    let Some(harness) = MariaDbHarness::require(by, parameters).await else { return };
    let report = Report::of(Arc::new(harness), &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

async fn cluster_contracts(wire: Wire, by: FaultsBy, parameters: &str) {
    let Some(harness) = MariaDbHarness::require(by, parameters).await else { return };
    let report = Report::of(Arc::new(harness), &cluster::contracts(&wire)).await;
    println!("{wire:?} on {report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract_when_the_server_suffers() {
    bus_contracts(FaultsBy::Server, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract_when_the_network_suffers() {
    bus_contracts(FaultsBy::Proxy, "order=total").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_nodes_keep_every_contract() {
    cluster_contracts(Wire::Native, FaultsBy::Server, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_nodes_keep_every_contract_in_total_order() {
    cluster_contracts(Wire::Native, FaultsBy::Proxy, "order=total").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aspnetcore_nodes_keep_every_contract() {
    cluster_contracts(Wire::AspNetCore { server_name: None }, FaultsBy::Proxy, "").await;
}
