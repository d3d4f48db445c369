//! Redis is killed, frozen and cut under load: what is lost is told, what waits ends, and everything flows again.
//!
//! Two nodes with a hundred connections each, all of them sending; beside them acknowledged calls of every kind from
//! either node to the other. Every run ends with the judgement of its history.
// Measured times are printed.
#![allow(clippy::print_stdout)]

#[path = "chaos_redis/calls.rs"]
mod calls;
#[path = "chaos_redis/load.rs"]
mod load;
#[path = "chaos_redis/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use backplane_conformance::broker::Broker as _;
use backplane_conformance::history::Verdict;
use backplane_conformance::proxy::FaultProxy;
use backplane_core::{Backplane as _, BackplaneExt as _};
use backplane_tests::redis::bound;
use tokio::sync::{Mutex, MutexGuard};

use calls::{Calls, Summary};
use load::Load;
use stage::{BOUND, Node, Stage, Watch, heartbeat};

/// How long it may take until everything flows again once the broker is back.
const RECOVERED: Duration = Duration::from_secs(2);

/// Messages of each connection before and after a fault: two seconds' worth in all.
const PROGRESS: u64 = 5;

/// The scenarios measure times: one after another.
static ALONE: Mutex<()> = Mutex::const_new(());

/// One scenario.
struct Run {
    name: &'static str,
    stage: Stage,
    load: Load,
    calls: Calls,
    watches: [Watch; 2],
    _alone: MutexGuard<'static, ()>,
}

impl Run {
    /// Everything flows when this returns. `None`: Redis is not installed.
    async fn start(name: &'static str) -> Option<Self> {
        let alone = ALONE.lock().await;
        let stage = Stage::open().await?;
        let load = Load::start(&stage).await;
        let watches = [0, 1].map(|node| Watch::of(&stage.nodes[node], load.logs[node].clone()));
        let calls = Calls::start(&stage).await;
        let run = Self { name, stage, load, calls, watches, _alone: alone };
        run.load.flows().await;
        run.load.progress(PROGRESS).await;
        Some(run)
    }

    fn nodes(&self) -> &[Node; 2] {
        &self.stage.nodes
    }

    /// Waits until the link of each of `nodes` has ended since `fault`.
    async fn ended(&self, fault: Instant, nodes: &[usize]) {
        for &node in nodes {
            let (took, error) = self.watches[node].lost(fault).await;
            println!("{}: node {node} noticed after {took:.2?}: {error}", self.name);
            assert!(error.is_retryable(), "a link that ended can come back: {error}");
        }
    }

    /// The broker is back since `back`: everything flows within the bound.
    async fn recovers(&self, back: Instant) {
        let flows = async {
            for node in self.nodes() {
                node.router.wait_until_up().await.expect("the node lives");
            }
            tokio::join!(self.load.flows(), self.calls.flow());
        };
        let left = bound(RECOVERED).saturating_sub(back.elapsed());
        let in_time = tokio::time::timeout(left, flows).await;
        assert!(
            in_time.is_ok(),
            "{}: not everything flows {:?} after the broker is back",
            self.name,
            back.elapsed()
        );
        println!("{}: everything flows {:.2?} after the broker is back", self.name, back.elapsed());
        self.load.progress(PROGRESS).await;
    }

    /// The history is judged. `lost_links`: how often each node's link ended.
    async fn end(self, lost_links: [u64; 2]) -> (Verdict, Summary) {
        let stats = [0, 1].map(|node| self.nodes()[node].router.stats());
        let downs = [0, 1].map(|node| self.watches[node].downs());
        let ups = [0, 1].map(|node| self.watches[node].ups());
        let (verdict, calls) = tokio::join!(self.load.judge(), self.calls.end());
        println!("{}: {verdict}\n{}: {calls}", self.name, self.name);
        for node in 0..2 {
            let stats = stats[node];
            println!("{}: node {node}: {stats:?}, {} attempts failed or links ended", self.name, downs[node]);
            assert_eq!(
                stats.reconnects, lost_links[node],
                "node {node} has reconnected as often as its link ended"
            );
            assert_eq!(ups[node] as u64, lost_links[node]);
            // Its own outages, and per origin those of others: at most one each.
            let most = lost_links[node] + lost_links.iter().sum::<u64>();
            assert!(
                stats.gaps <= most,
                "node {node} was told of {} gaps, at most {most} are due",
                stats.gaps
            );
            assert_eq!((stats.repeats_removed, stats.malformed, stats.overflows), (0, 0, 0));
        }
        verdict.assert_clean();
        drop(self.watches);
        self.stage.close().await;
        (verdict, calls)
    }

    /// As [`end`](Run::end), when links were lost: the run must have been disturbed, or it shows nothing.
    async fn end_disturbed(self, lost_links: [u64; 2]) {
        let (verdict, calls) = self.end(lost_links).await;
        assert!(verdict.counts.failed + verdict.counts.unknown > 0, "no message was sent during the outage");
        assert!(calls.unavailable() > 0, "no call was made or waited during the outage");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_comes_back() {
    let Some(run) = Run::start("killed").await else { return };
    for _ in 0..2 {
        let fault = Instant::now();
        run.stage.redis().kill();
        run.ended(fault, &[0, 1]).await;
        run.stage.redis().restart().await.expect("it starts again on its port");
        run.recovers(Instant::now()).await;
    }
    run.end_disturbed([2, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_below_the_heartbeat_bound_loses_nothing() {
    let Some(run) = Run::start("frozen briefly").await else { return };
    run.stage.redis().freeze().expect("it runs");
    // How long the fault lasts, on whatever machine.
    tokio::time::sleep(BOUND.mul_f64(0.6)).await;
    run.stage.redis().thaw().expect("it runs");
    run.recovers(Instant::now()).await;
    let (verdict, calls) = run.end([0, 0]).await;
    let counts = verdict.counts;
    assert_eq!((counts.gaps, counts.excused), (0, 0), "nothing may be lost");
    assert_eq!((counts.failed, counts.unknown), (0, 0), "every send waits for the thaw");
    assert!(calls.is_undisturbed(), "{calls}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_of_twice_the_heartbeat_bound_ends_the_links() {
    let Some(run) = Run::start("frozen long").await else { return };
    let fault = Instant::now();
    run.stage.redis().freeze().expect("it runs");
    run.ended(fault, &[0, 1]).await;
    // How long the fault lasts.
    tokio::time::sleep_until((fault + 2 * heartbeat()).into()).await;
    run.stage.redis().thaw().expect("it runs");
    run.recovers(Instant::now()).await;
    run.end_disturbed([1, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_are_made_anew() {
    let Some(run) = Run::start("cut").await else { return };
    for nodes in [&[0, 1][..], &[0], &[1]] {
        let fault = Instant::now();
        for &node in nodes {
            run.nodes()[node].proxy.cut();
        }
        run.ended(fault, nodes).await;
        run.recovers(fault).await;
    }
    run.end_disturbed([2, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_are_dead_links() {
    let Some(run) = Run::start("half-open").await else { return };
    let fault = Instant::now();
    for node in run.nodes() {
        node.proxy.freeze();
    }
    run.ended(fault, &[0, 1]).await;
    for node in run.nodes() {
        node.proxy.thaw();
    }
    run.recovers(Instant::now()).await;
    run.end_disturbed([1, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_half_open_one_way_is_a_dead_link() {
    let Some(run) = Run::start("half-open one way").await else { return };
    // What the first node says arrives no longer, though it still hears the other; then the reverse.
    for freeze in [FaultProxy::freeze_to_server, FaultProxy::freeze_to_client] {
        let fault = Instant::now();
        freeze(&run.nodes()[0].proxy);
        run.ended(fault, &[0]).await;
        run.nodes()[0].proxy.thaw();
        run.recovers(Instant::now()).await;
    }
    run.end_disturbed([2, 0]).await;
}
