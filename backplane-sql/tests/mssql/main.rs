//! The bus on a real SQL Server, named by `BACKPLANE_TEST_MSSQL_URL` (`mssql://user:password@host/database?...`), whose
//! user may create tables. It is somebody else's: faults are the network's only. Two small tables for each test stay in
//! it, whose names begin with `backplane_test_`.
#![cfg(all(feature = "mssql", unix))]
// Reports are printed.
#![allow(clippy::print_stdout)]

use std::net::ToSocketAddrs as _;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_conformance::broker::{Missing, given_url, missing};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Faults, Harness, Report, bus, cluster};
use backplane_core::{Bus, Result, Wire};
use backplane_sql::SqlBus;
use url::Url;

/// The suite's view of a SQL Server behind a proxy.
#[derive(Debug)]
struct SqlServerHarness {
    url: String,
    name: String,
    proxy: Arc<FaultProxy>,
}

impl SqlServerHarness {
    /// `None`: none is named; the skip was printed.
    fn require(table: &str, parameters: &str) -> Option<Arc<Self>> {
        let Some(given) = given_url("mssql") else {
            missing("mssql", &Missing { program: "SQL Server (named by BACKPLANE_TEST_MSSQL_URL)".into() });
            return None;
        };
        let mut url = Url::parse(&given).expect("BACKPLANE_TEST_MSSQL_URL is a URL");
        let host = url.host_str().expect("the URL names a host").to_owned();
        let address = (host.trim_matches(['[', ']']), url.port().unwrap_or(1433));
        let address =
            address.to_socket_addrs().expect("the host is known").next().expect("it has an address");
        let proxy = Arc::new(FaultProxy::start(address).expect("a loopback port is free"));
        url.set_host(Some("127.0.0.1")).expect("it had a host");
        url.set_port(Some(proxy.address().port())).expect("it had a host");
        let trusts = url
            .query_pairs()
            .any(|(name, _)| matches!(&*name, "trust_server_certificate" | "hostname_in_certificate"));
        if !trusts {
            url.query_pairs_mut().append_pair("hostname_in_certificate", &host);
        }
        url.query_pairs_mut().append_pair("table", &format!("backplane_test_{table}"));
        let joint = if parameters.is_empty() { "" } else { "&" };
        Some(Arc::new(Self {
            url: format!("{url}{joint}{parameters}"),
            name: format!("mssql, {parameters}"),
            proxy,
        }))
    }
}

#[async_trait]
impl Harness for SqlServerHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(SqlBus::from_url(&self.url)?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(self.proxy.clone())
    }
}

async fn bus_contracts(table: &str, parameters: &str) {
    let Some(harness) = SqlServerHarness::require(table, parameters) else { return };
    let report = Report::of(harness, &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

async fn cluster_contracts(wire: Wire, table: &str, parameters: &str) {
    let Some(harness) = SqlServerHarness::require(table, parameters) else { return };
    let report = Report::of(harness, &cluster::contracts(&wire)).await;
    println!("{wire:?} on {report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract() {
    bus_contracts("bus", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_keeps_every_contract_in_total_order() {
    bus_contracts("bus_total", "order=total").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_nodes_keep_every_contract() {
    cluster_contracts(Wire::Native, "native", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aspnetcore_nodes_keep_every_contract() {
    cluster_contracts(Wire::AspNetCore { server_name: None }, "aspnetcore", "").await;
}
