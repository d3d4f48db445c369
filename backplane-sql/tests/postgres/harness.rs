//! A private PostgreSQL with faults.

use std::sync::Arc;

use async_trait::async_trait;
use backplane_conformance::broker::{Broker as _, PgBouncer, PgBouncerOptions, Postgres, PostgresOptions};
use backplane_conformance::proxy::FaultProxy;
use backplane_conformance::{Faults, Harness};
use backplane_core::{Bus, Result};
use backplane_sql::SqlBus;

/// Which hand provokes the faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultsBy {
    /// The server's own processes: killed and restarted, stopped by SIGSTOP; sessions are ended by the operator.
    Server,
    /// A proxy in front of it: connections reset, refused, or half-open.
    Proxy,
    /// PgBouncer in transaction mode in front of it: killed and restarted, stopped by SIGSTOP; the server's sessions are
    /// ended by the operator.
    Pooler,
}

/// The suite's view of a private PostgreSQL.
#[derive(Debug)]
pub(crate) struct PostgresHarness {
    name: String,
    postgres: Arc<Postgres>,
    proxy: Arc<FaultProxy>,
    pooler: Option<Arc<PgBouncer>>,
    parameters: String,
}

impl PostgresHarness {
    /// Starts a server. `None`: it, or the pooler, is not installed; the skip was printed.
    pub(crate) async fn require(by: FaultsBy, parameters: &str) -> Option<Self> {
        let postgres = Arc::new(Postgres::require(PostgresOptions::default()).await?);
        let proxy = Arc::new(FaultProxy::start(postgres.address()).expect("a loopback port is free"));
        let pooler = match by {
            FaultsBy::Pooler => {
                let options = PgBouncerOptions { server: postgres.address(), ..PgBouncerOptions::default() };
                Some(Arc::new(PgBouncer::require(options).await?))
            }
            _ => None,
        };
        let name = format!("postgres, {parameters}, faults by the {by:?}").to_lowercase();
        let parameters = parameters.to_owned();
        Some(Self { name, postgres, proxy, pooler, parameters })
    }

    /// The server itself.
    pub(crate) fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// What a node opens.
    pub(crate) fn url(&self) -> String {
        let url = match &self.pooler {
            Some(pooler) => pooler.url(),
            None => self.postgres.url_at(self.proxy.address()),
        };
        format!("{url}?{}", self.parameters)
    }

    /// A node's bus.
    pub(crate) fn open(&self) -> SqlBus {
        SqlBus::from_url(&self.url()).expect("the URL is right")
    }
}

#[async_trait]
impl Harness for PostgresHarness {
    fn name(&self) -> &str {
        &self.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(SqlBus::from_url(&self.url())?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        if let Some(pooler) = &self.pooler {
            return Some(Arc::new(PoolerFaults { pooler: pooler.clone(), postgres: self.postgres.clone() }));
        }
        if self.name.ends_with("proxy") {
            return Some(self.proxy.clone());
        }
        Some(Arc::new(ServerFaults(self.postgres.clone())))
    }
}

#[derive(Debug)]
struct ServerFaults(Arc<Postgres>);

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

#[derive(Debug)]
struct PoolerFaults {
    pooler: Arc<PgBouncer>,
    postgres: Arc<Postgres>,
}

#[async_trait]
impl Faults for PoolerFaults {
    async fn cut(&self) {
        // Restarted at once: links end, and new ones are accepted.
        self.pooler.restart().await.expect("the pooler starts again on its port");
        self.postgres.terminate_sessions().await.expect("the server runs");
    }

    async fn down(&self) {
        self.pooler.kill();
    }

    async fn up(&self) {
        self.pooler.restart().await.expect("the pooler starts again on its port");
    }

    async fn freeze(&self) {
        self.pooler.freeze().expect("the pooler runs");
    }

    async fn thaw(&self) {
        self.pooler.thaw().expect("the pooler runs");
    }
}
