//! Every contract of the seam, and of whole nodes over it.

use std::sync::Arc;

use backplane_conformance::{Contract, Report, bus, cluster};
use backplane_core::Wire;

use crate::harness::RabbitHarness;

/// One suite after the other, for the broker has one scheduler and the bounds of the suite are short; so they are one test,
/// and the others run beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_contract_is_kept_with_topics_and_with_buckets() {
    let nodes = cluster::contracts(&Wire::Native);
    // Buckets change which bindings there are and what arrives unasked, and nothing else.
    let by_topic =
        only(bus::contracts(), |contract| ["B1", "B2", "B3", "B4", "B5", "B7", "B10"].contains(&contract.id));
    let about_interest = only(nodes.clone(), |contract| {
        ["group", "user", "join", "leav", "names", "topics"].iter().any(|word| contract.name.contains(word))
    });
    let mut reports = Vec::new();
    for (parameters, contracts) in [
        ("exchange=contracts", bus::contracts()),
        ("exchange=contracts-in-buckets&buckets=256", by_topic),
        ("exchange=nodes", nodes),
        ("exchange=nodes-in-buckets&buckets=1024&unbind_after=0ms", about_interest),
    ] {
        let Some(harness) = RabbitHarness::require(parameters).await else { return };
        let report = Report::of(Arc::new(harness), &contracts).await;
        println!("{report}");
        reports.push(report);
    }
    reports.iter().for_each(Report::assert_clean);
}

fn only(contracts: Vec<Contract>, wanted: impl Fn(&Contract) -> bool) -> Vec<Contract> {
    let wanted: Vec<_> = contracts.into_iter().filter(|contract| wanted(contract)).collect();
    assert!(wanted.len() > 20);
    wanted
}
