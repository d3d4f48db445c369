//! A private MariaDB with faults.

use std::sync::Arc;

use async_trait::async_trait;
use backplane_conformance::broker::{Broker as _, MariaDb, MariaDbOptions};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Faults, Harness};
use backplane_core::{Bus, Result};
use backplane_sql::SqlBus;

/// Which hand provokes the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultsBy {
    /// The server's own process: killed and restarted, stopped by SIGSTOP; sessions are ended by the operator.
    Server,
    /// A proxy in front of it: connections reset, refused, or half-open.
    Proxy,
}

/// The suite's view of a private MariaDB.
#[derive(Debug)]
pub(crate) struct MariaDbHarness {
    name: String,
    mariadb: Arc<MariaDb>,
    proxy: Arc<FaultProxy>,
    by: FaultsBy,
    parameters: String,
}

impl MariaDbHarness {
    /// Starts a server. `None`: it is not installed; the skip was printed.
    pub(crate) async fn require(by: FaultsBy, parameters: &str) -> Option<Self> {
        let mariadb = Arc::new(MariaDb::require(MariaDbOptions::default()).await?);
        let proxy = Arc::new(FaultProxy::start(mariadb.address()).expect("a loopback port is free"));
        let name = format!("mariadb, {parameters}, faults by the {by:?}").to_lowercase();
        Some(Self { name, mariadb, proxy, by, parameters: parameters.to_owned() })
    }

    /// The server itself.
    pub(crate) fn mariadb(&self) -> &MariaDb {
        &self.mariadb
    }

    /// A node's bus.
    pub(crate) fn open(&self) -> SqlBus {
        let url = format!("{}?{}", self.mariadb.url_at(self.proxy.address()), self.parameters);
        SqlBus::from_url(&url).expect("the URL is right")
    }
}

#[async_trait]
impl Harness for MariaDbHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(self.open()))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        match self.by {
            FaultsBy::Server => Some(Arc::new(ServerFaults(self.mariadb.clone()))),
            FaultsBy::Proxy => Some(self.proxy.clone()),
        }
    }
}

#[derive(Debug)]
struct ServerFaults(Arc<MariaDb>);

#[async_trait]
impl Faults for ServerFaults {
    async fn cut(&self) {
        self.0.terminate_sessions().await.expect("the server runs");
    }

    async fn down(&self) {
        self.0.kill();
    }

    async fn up(&self) {
        self.0.restart().await.expect("the server starts again on its port");
    }

    async fn freeze(&self) {
        self.0.freeze().expect("the server runs");
    }

    async fn thaw(&self) {
        self.0.thaw().expect("the server runs");
    }
}
