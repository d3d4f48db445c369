//! The cluster contracts on the embedded memory bus.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use async_trait::async_trait;
use backplane_conformance::{Contract, Faults, Harness, Report, cluster};
use backplane_core::memory::{MemoryConfig, MemoryFaults};
use backplane_core::{Bus, MemoryBus, Result, Wire};

#[derive(Debug)]
struct Memory(MemoryBus);

#[async_trait]
impl Harness for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(self.0.clone()))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(Arc::new(Switches(self.0.faults())))
    }
}

#[derive(Debug)]
struct Switches(MemoryFaults);

#[async_trait]
impl Faults for Switches {
    async fn cut(&self) {
        self.0.cut();
    }

    async fn down(&self) {
        self.0.refuse(true);
        self.0.cut();
    }

    async fn up(&self) {
        self.0.refuse(false);
    }

    async fn freeze(&self) {
        self.0.freeze(true);
    }

    async fn thaw(&self) {
        self.0.freeze(false);
    }
}

/// `BACKPLANE_CONTRACT` narrows the list to the contracts whose name contains it.
fn wanted(contract: &Contract) -> bool {
    std::env::var("BACKPLANE_CONTRACT").is_ok_and(|part| contract.name.contains(&part))
        || std::env::var_os("BACKPLANE_CONTRACT").is_none()
}

async fn keeps_all(wire: Wire, bus: MemoryBus) {
    let contracts: Vec<Contract> = cluster::contracts(&wire).into_iter().filter(wanted).collect();
    let report = Report::of(Arc::new(Memory(bus)), &contracts).await;
    println!("{wire:?} on {report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_routers_keep_every_cluster_contract() {
    keeps_all(Wire::Native, MemoryBus::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_routers_keep_every_cluster_contract_where_links_resume() {
    let config = MemoryConfig { history: 1 << 20, ..MemoryConfig::default() };
    keeps_all(Wire::Native, MemoryBus::with_config(config)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aspnetcore_routers_keep_every_cluster_contract() {
    keeps_all(Wire::AspNetCore { server_name: None }, MemoryBus::new()).await;
}
