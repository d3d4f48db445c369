//! The suite itself on trial: every broken bus is convicted by exactly the contracts that it breaks.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backplane_conformance::broken::{self, BrokenBus, BrokenHarness};
use backplane_conformance::{Contract, MemoryHarness, Report, bus};
use backplane_core::memory::{MemoryBus, MemoryConfig};

/// A healthy bus that promises everything, with bounds that the flood exceeds.
fn broken_harness(broken: BrokenBus) -> Arc<BrokenHarness> {
    let config = MemoryConfig {
        max_frame: broken::MAX_FRAME,
        inbox_frames: 16_384,
        inbox_bytes: 16 << 20,
        history: 4_096,
    };
    let whole = MemoryHarness::new(MemoryBus::with_config(config));
    Arc::new(BrokenHarness::new(Arc::new(whole), broken))
}

fn convictions(report: &Report) -> BTreeSet<&'static str> {
    report.broken().map(|row| row.name).collect()
}

/// One letter per contract: `X` convicted, `.` acquitted.
fn matrix(contracts: &[Contract], reports: &[Report]) -> String {
    let mut text = String::new();
    for (index, contract) in contracts.iter().enumerate() {
        writeln!(text, "{}|{index:2} {:3} {}", " |".repeat(index), contract.id, contract.name)
            .expect("a string takes all");
    }
    for report in reports {
        let convicted = convictions(report);
        for contract in contracts {
            text.push_str(if convicted.contains(contract.name) { " X" } else { " ." });
        }
        writeln!(text, "  {} ({})", report.bus, convicted.len()).expect("a string takes all");
    }
    text
}

/// The whole list on every broken bus. Time is simulated: silence costs nothing, and a busy machine convicts nobody.
fn trials(contracts: &[Contract], broken: &[BrokenBus]) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let judge = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime can be built");
        let mut reports = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(bus) = broken.get(index) else { return reports };
            reports.push((index, runtime.block_on(Report::of(broken_harness(*bus), contracts))));
        }
    };
    let judges = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let mut reports: Vec<_> = std::thread::scope(|scope| {
        let judges: Vec<_> = (0..judges).map(|_| scope.spawn(judge)).collect();
        judges.into_iter().flat_map(|judge| judge.join().expect("contracts catch their panics")).collect()
    });
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, report)| report).collect()
}

#[test]
fn every_broken_bus_is_convicted_by_exactly_the_contracts_it_breaks() {
    let contracts = bus::contracts();
    let broken = broken::all();
    assert!(broken.len() >= 15);
    let reports = trials(&contracts, &broken);
    println!("{}", matrix(&contracts, &reports));

    let mut wrong = String::new();
    for (bus, report) in broken.iter().zip(&reports) {
        let expected: BTreeSet<_> = bus.convicted_by.iter().copied().collect();
        let convicted = convictions(report);
        if expected != convicted {
            let missed: Vec<_> = expected.difference(&convicted).collect();
            let surprising: Vec<_> = report.broken().filter(|row| !expected.contains(row.name)).collect();
            writeln!(wrong, "{}\n  not convicted by {missed:?}", bus.name).expect("a string takes all");
            for row in surprising {
                let why = row.outcome.as_ref().expect_err("broken rows have a reason");
                writeln!(wrong, "  convicted by {}: {why}", row.name).expect("a string takes all");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    for contract in &contracts {
        let convicts = reports.iter().any(|report| convictions(report).contains(contract.name));
        assert!(convicts, "{} convicts nobody", contract.name);
    }
}

// Time is simulated here, too: each run waits in vain for the frames that were lost.
#[tokio::test(start_paused = true)]
async fn drop_one_in_a_hundred_is_convicted_twenty_times_of_twenty() {
    let broken =
        broken::all().into_iter().find(|bus| bus.name == "drops_one_frame_in_a_hundred").expect("listed");
    let convicting: Vec<_> = bus::contracts()
        .into_iter()
        .filter(|contract| broken.convicted_by.contains(&contract.name))
        .collect();
    assert_eq!(convicting.len(), broken.convicted_by.len(), "a named contract does not exist");
    let runs: Vec<_> = (0..20)
        .map(|_| {
            let convicting = convicting.clone();
            tokio::spawn(async move { Report::of(broken_harness(broken), &convicting).await })
        })
        .collect();
    for run in runs {
        let report = run.await.expect("contracts catch their panics");
        assert_eq!(report.broken().count(), convicting.len(), "{report}");
    }
}
