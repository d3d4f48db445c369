//! Every contract of the seam.

use std::sync::Arc;

use async_trait::async_trait;
use backplane_conformance::{Faults, Harness, Report, bus};
use backplane_core::{Bus, Result};

use super::super::fake::{Bell, Fake};

#[derive(Debug)]
struct FakeHarness(Fake);

#[async_trait]
impl Harness for FakeHarness {
    fn name(&self) -> &str {
        "log in memory"
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(super::bus(&self.0)))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(Arc::new(self.0.clone()))
    }
}

#[async_trait]
impl Faults for Fake {
    async fn cut(&self) {
        Fake::cut(self);
    }

    async fn down(&self) {
        self.refuse(true);
        Fake::cut(self);
    }

    async fn up(&self) {
        self.refuse(false);
    }

    async fn freeze(&self) {
        Fake::freeze(self, true);
    }

    async fn thaw(&self) {
        Fake::freeze(self, false);
    }
}

async fn keeps_every_contract(bell: Bell) {
    let report = Report::of(Arc::new(FakeHarness(Fake::new(bell))), &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_with_a_doorbell_keeps_every_contract() {
    keeps_every_contract(Bell::Works).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_polled_keeps_every_contract() {
    keeps_every_contract(Bell::None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_with_a_deaf_doorbell_keeps_every_contract() {
    keeps_every_contract(Bell::Deaf).await;
}
