//! Runs the conformance suite on the custom bus: `cargo run -p custom-bus`. Exit code 1 if a promise is broken.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_conformance::{Harness, Report, bus, cluster};
use backplane_core::{Bus, Result, Wire};
use custom_bus::BroadcastBus;

/// How the suite gets at the bus. A bus over a network would hand out [`Faults`](backplane_conformance::Faults) too, so
/// that the contracts about dead links can be tried; here they are reported as not applicable.
#[derive(Debug, Default)]
struct InProcess(BroadcastBus);

#[async_trait]
impl Harness for InProcess {
    fn name(&self) -> &str {
        "broadcast"
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(self.0.clone()))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let harness = Arc::new(InProcess::default());
    let promises = Report::of(harness.clone(), &bus::contracts()).await;
    println!("{promises}");
    // Then the whole of it: routers of several nodes over this bus.
    let cluster = Report::of(harness, &cluster::contracts(&Wire::Native)).await;
    println!("{cluster}");
    if promises.is_clean() && cluster.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
