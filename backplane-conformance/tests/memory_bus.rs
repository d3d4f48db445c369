//! The memory bus keeps every contract, every time.

use std::sync::Arc;

use backplane_conformance::{MemoryHarness, Report, bus};
use backplane_core::memory::{MemoryBus, MemoryConfig};

/// How often the whole bus has to be acquitted.
const RUNS: usize = 20;

/// Runs at a time: enough to disturb each other, few enough for the deadlines to mean something.
const AT_ONCE: usize = 4;

fn resuming() -> MemoryBus {
    MemoryBus::with_config(MemoryConfig { history: 4_096, ..MemoryConfig::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_bus_with_default_bounds_keeps_every_contract() {
    let report = Report::of(Arc::new(MemoryHarness::new(MemoryBus::new())), &bus::contracts()).await;
    println!("{report}");
    report.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_bus_is_acquitted_twenty_times_of_twenty() {
    for wave in 0..RUNS / AT_ONCE {
        let runs: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let harness = Arc::new(MemoryHarness::new(resuming()));
                tokio::spawn(async move { Report::of(harness, &bus::contracts()).await })
            })
            .collect();
        for run in runs {
            let report = run.await.expect("contracts catch their panics");
            if wave == 0 {
                println!("{report}");
            }
            report.assert_clean();
        }
    }
}
