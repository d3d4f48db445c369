//! Every contract of the seam, and of whole nodes over it.

use std::sync::Arc;

use backplane_conformance::broker::NatsOptions;
use backplane_conformance::{Report, bus, cluster};
use backplane_core::Wire;

use crate::harness::{FaultsBy, NatsHarness};

async fn bus_contracts(by: FaultsBy, parameters: &str) {
    let Some(harness) = NatsHarness::require(by, parameters).await else { return };
    let report = Report::of(Arc::new(harness), &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

async fn cluster_contracts(by: FaultsBy, parameters: &str) {
    let Some(harness) = NatsHarness::require(by, parameters).await else { return };
    let report = Report::of(Arc::new(harness), &cluster::contracts(&Wire::Native)).await;
    println!("{report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn core_keeps_every_contract_when_the_server_suffers() {
    bus_contracts(FaultsBy::Server, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn core_keeps_every_contract_when_the_network_suffers() {
    bus_contracts(FaultsBy::Proxy, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_bus_keeps_every_contract_when_the_server_suffers() {
    bus_contracts(FaultsBy::Server, "durable=true&storage=file").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_bus_keeps_every_contract_when_the_network_suffers() {
    bus_contracts(FaultsBy::Proxy, "durable=true").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_over_core_keep_every_contract() {
    cluster_contracts(FaultsBy::Proxy, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_over_a_durable_bus_keep_every_contract() {
    cluster_contracts(FaultsBy::Proxy, "durable=true").await;
}

/// Those whose promises another transport could break.
const OF_A_CONNECTION: [&str; 8] = ["B1", "B2", "B3", "B4", "B6", "B7", "B9", "B12"];

async fn tls_contracts(parameters: &str) {
    let options = NatsOptions { tls: true, jetstream: true, ..NatsOptions::default() };
    let Some(mut harness) = NatsHarness::with(options, FaultsBy::Proxy, "").await else { return };
    let ca = harness.nats.tls().unwrap().ca.display().to_string();
    harness.set_parameters(&format!("ca={ca}{parameters}"));
    let mut contracts = bus::contracts();
    contracts.retain(|contract| OF_A_CONNECTION.contains(&contract.id));
    let report = Report::of(Arc::new(harness), &contracts).await;
    println!("{report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn core_keeps_the_contracts_of_a_connection_over_tls() {
    tls_contracts("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_bus_keeps_the_contracts_of_a_connection_over_tls() {
    tls_contracts("&durable=true").await;
}
