//! Databases under a hundred concurrent writers on three nodes: nothing is lost, nothing comes twice, every writer's order
//! is kept. Then the same while the server is killed, frozen and cut off: readers resume, and nothing that was accepted is
//! lost.
//!
//! Each database takes the load for 20 s; `BACKPLANE_CHAOS_SECONDS=5` makes it 5. Every run ends with the judgement of its
//! history.
// What a run consisted of is printed.
#![allow(clippy::print_stdout)]

#[path = "chaos_sql/load.rs"]
mod load;
#[path = "chaos_sql/locker.rs"]
mod locker;
#[path = "chaos_sql/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_core::{Backplane as _, BackplaneExt as _, LossReason, RouterConfig};
use backplane_tests::sql::Database;
use tokio::sync::Mutex;

use load::Load;
use locker::Locker;
use stage::Stage;

/// The heartbeat bound of nodes whose links shall end when a server freezes for longer than half of it.
const BOUND: Duration = Duration::from_secs(2);

/// How long the server is frozen.
const FROZEN: Duration = Duration::from_secs(3);

/// How long it may take until everything flows again once the database is back. A pause before the next attempt (1 s at
/// most) and the recovery of the server are part of it.
const RECOVERED: Duration = Duration::from_secs(5);

/// The runs take all that the machine gives: one after another.
static ALONE: Mutex<()> = Mutex::const_new(());

/// How long the load lasts.
fn lasting() -> Duration {
    let seconds = std::env::var("BACKPLANE_CHAOS_SECONDS")
        .map_or(20, |seconds| seconds.parse().expect("BACKPLANE_CHAOS_SECONDS is a whole number of seconds"));
    Duration::from_secs(seconds)
}

/// A run without a fault, as fast as the database takes it.
async fn a_hundred_writers(database: Database) {
    let name = database.name();
    let stage = Stage::open(database, "", RouterConfig::default(), false).await;
    let load = Load::start(&stage).await;
    load.flows().await;
    // How long the load lasts.
    tokio::time::sleep(lasting()).await;
    let took = load.elapsed();
    let verdict = load.judge(&stage).await;
    println!(
        "{name}: {verdict}\n{name}: {:.0} messages/s for {took:.1?}",
        verdict.counts.accepted as f64 / took.as_secs_f64()
    );
    verdict.assert_clean();
    let counts = verdict.counts;
    assert_eq!((counts.failed, counts.unknown, counts.excused, counts.gaps), (0, 0, 0, 0));
    for node in &stage.nodes {
        let stats = node.router.stats();
        assert_eq!(
            (stats.reconnects, stats.malformed, stats.overflows, stats.evictions),
            (0, 0, 0, 0),
            "{stats:?}"
        );
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writers_on_postgres() {
    let _alone = ALONE.lock().await;
    let Some(database) = Database::postgres().await else { return };
    a_hundred_writers(database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writers_on_mariadb() {
    let _alone = ALONE.lock().await;
    let Some(database) = Database::mariadb().await else { return };
    a_hundred_writers(database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writers_on_sqlite() {
    let _alone = ALONE.lock().await;
    a_hundred_writers(Database::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writers_on_sql_server() {
    let _alone = ALONE.lock().await;
    let Some(database) = Database::sql_server() else { return };
    a_hundred_writers(database).await;
}

/// A run with faults: `disturb` provokes them, and everything flows when it returns.
struct Run {
    name: &'static str,
    stage: Stage,
    load: Load,
}

impl Run {
    async fn start(database: Database, heartbeat: Duration, with_proxies: bool) -> Self {
        let name = database.name();
        let config = RouterConfig { heartbeat, ..RouterConfig::default() };
        let stage = Stage::open(database, "", config, with_proxies).await;
        let load = Load::start(&stage).await;
        load.flows().await;
        Self { name, stage, load }
    }

    /// The links of all nodes have ended since `fault`.
    async fn ended(&self, what: &str, fault: Instant) {
        for node in &self.stage.nodes {
            let (took, error) = node.watch.lost(fault).await;
            println!("{}, {what}: noticed after {took:.2?}: {error}", self.name);
            assert!(error.is_retryable(), "a link that ended can come back: {error}");
        }
    }

    /// The database is back since `back`: everything flows within the bound.
    async fn recovers(&self, what: &str, back: Instant) {
        let flows = async {
            for node in &self.stage.nodes {
                node.router.wait_until_up().await.expect("the node lives");
            }
            self.load.flows().await;
        };
        let left = bound(RECOVERED).saturating_sub(back.elapsed());
        assert!(
            tokio::time::timeout(left, flows).await.is_ok(),
            "{}, {what}: not everything flows {:?} after the database is back",
            self.name,
            back.elapsed()
        );
        println!("{}, {what}: everything flows {:.2?} after the database is back", self.name, back.elapsed());
    }

    /// The history is judged: every link resumed, and nothing that was accepted is missing.
    ///
    /// A node whose link broke has numbered frames that no database ever saw. The others notice that such numbers are
    /// missing and say so: those gaps are about messages that failed at their senders, which a receiver cannot know. A
    /// gap of any other reason would be the log's own, and there is none.
    async fn end(self, least_links: usize) {
        let Self { name, stage, load } = self;
        let verdict = load.judge(&stage).await;
        println!("{name}: {verdict}");
        verdict.assert_clean();
        assert_eq!(verdict.counts.excused, 0, "what was accepted has to arrive, whatever was told");
        for (index, node) in stage.nodes.iter().enumerate() {
            let (links, gaps) = (node.watch.resumed(), node.watch.gaps());
            println!(
                "{name}: node {index}: links resumed {links:?}, gaps told {gaps:?}, {:?}",
                node.router.stats()
            );
            assert!(links.len() >= least_links, "node {index} has connected anew {} times only", links.len());
            assert!(links.iter().all(|resumed| *resumed), "node {index} had to start anew: {links:?}");
            let mut others = gaps.iter().filter(|reason| **reason != LossReason::Missing);
            assert_eq!(others.next(), None, "node {index} was told of a loss that the log does not know");
            if verdict.counts.failed + verdict.counts.unknown == 0 {
                assert!(gaps.is_empty(), "nothing failed, and yet node {index} was told of {gaps:?}");
            }
        }
        stage.close().await;
    }
}

/// Killed and restarted, frozen, cut off, one after the other.
async fn a_server_in_trouble(database: Database) {
    let run = Run::start(database, BOUND, true).await;

    let fault = Instant::now();
    run.stage.database.kill();
    run.ended("killed", fault).await;
    run.stage.database.restart().await;
    run.recovers("killed", Instant::now()).await;

    let fault = Instant::now();
    run.stage.database.freeze();
    run.ended("frozen", fault).await;
    // How long the fault lasts.
    tokio::time::sleep_until((fault + FROZEN).into()).await;
    run.stage.database.thaw();
    run.recovers("frozen", Instant::now()).await;

    for _ in 0..3 {
        let fault = Instant::now();
        for node in &run.stage.nodes {
            node.proxy.as_ref().expect("a node of this run has one").cut();
        }
        run.ended("cut", fault).await;
        run.recovers("cut", fault).await;
    }
    run.end(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_in_trouble_loses_nothing_that_it_accepted() {
    let _alone = ALONE.lock().await;
    let Some(database) = Database::postgres().await else { return };
    a_server_in_trouble(database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_in_trouble_loses_nothing_that_it_accepted() {
    let _alone = ALONE.lock().await;
    let Some(database) = Database::mariadb().await else { return };
    a_server_in_trouble(database).await;
}

/// With the default bound a freeze of three seconds is waited out.
async fn a_freeze_that_is_waited_out(database: Database) {
    let run = Run::start(database, RouterConfig::default().heartbeat, false).await;
    run.stage.database.freeze();
    // How long the fault lasts.
    tokio::time::sleep(FROZEN).await;
    run.stage.database.thaw();
    run.recovers("frozen briefly", Instant::now()).await;
    undisturbed(run).await;
}

/// No send failed, no link ended, no gap was told.
async fn undisturbed(run: Run) {
    let Run { name, stage, load } = run;
    let verdict = load.judge(&stage).await;
    println!("{name}: {verdict}");
    verdict.assert_clean();
    let counts = verdict.counts;
    assert_eq!((counts.failed, counts.unknown, counts.excused, counts.gaps), (0, 0, 0, 0));
    for node in &stage.nodes {
        assert_eq!(node.router.stats().reconnects, 0);
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_frozen_for_three_seconds_is_waited_for() {
    let _alone = ALONE.lock().await;
    let Some(database) = Database::postgres().await else { return };
    a_freeze_that_is_waited_out(database).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_frozen_for_three_seconds_is_waited_for() {
    let _alone = ALONE.lock().await;
    let Some(database) = Database::mariadb().await else { return };
    a_freeze_that_is_waited_out(database).await;
}

/// A file knows no server: whoever writes holds its lock. A process that does so and hangs is its freeze.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_file_that_somebody_locks_for_three_seconds_is_waited_for() {
    let _alone = ALONE.lock().await;
    let run = Run::start(Database::sqlite(), RouterConfig::default().heartbeat, false).await;
    let locker = Locker::start(&run.stage.database).await;
    // How long the fault lasts.
    tokio::time::sleep(FROZEN).await;
    locker.kill().await;
    run.recovers("locked briefly", Instant::now()).await;
    undisturbed(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_writer_killed_inside_its_transaction_leaves_nothing_behind() {
    let _alone = ALONE.lock().await;
    let run = Run::start(Database::sqlite(), BOUND, false).await;
    // Killed at once: nobody even fails.
    for _ in 0..3 {
        Locker::start(&run.stage.database).await.kill().await;
        run.recovers("a writer killed", Instant::now()).await;
    }
    // Hanging for longer than a node waits, and then killed.
    let fault = Instant::now();
    let locker = Locker::start(&run.stage.database).await;
    run.ended("locked", fault).await;
    locker.kill().await;
    run.recovers("locked", Instant::now()).await;
    assert_eq!(locker::rows_of(&run.stage.database).await, 0, "nothing of it was committed");
    run.end(1).await;
}

/// Not a test: what a process of its own does for [`Locker`].
#[tokio::test]
#[ignore = "started by other tests in a process of its own"]
async fn in_a_process_of_its_own() {
    locker::hold().await;
}
