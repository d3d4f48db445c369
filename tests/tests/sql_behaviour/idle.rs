//! What a node costs a database when nothing happens: its own beats, which every node reads, are part of it.

use std::time::{Duration, Instant};

use backplane_tests::sql::Database;

use crate::member::Member;
use crate::process::Process;

/// Nodes on one database.
const NODES: usize = 3;

/// Most statements a second of each, also where the database has to be asked three times a second for ever (`poll_max`).
const MOST: f64 = 5.0;

/// Most of one processor's time that a node on a file takes, by a build without optimisation.
const MOST_BUSY: f64 = 0.1;

/// Until nobody speaks of the beginning any more; then so long is counted: three beats.
const CALM: Duration = Duration::from_secs(2);
const COUNTED: Duration = Duration::from_secs(9);

/// Counts what `count` answers while nothing happens.
async fn idle(database: Database, count: &str) {
    let mut members = Vec::new();
    for _ in 0..NODES {
        members.push(Member::open(database.bus("")).await);
    }
    // How long nothing happens.
    tokio::time::sleep(CALM).await;
    let mut session = database.session().await;
    let (before, start) = (session.number(count).await, Instant::now());
    tokio::time::sleep(COUNTED).await;
    let statements = session.number(count).await - before;
    let each = statements as f64 / start.elapsed().as_secs_f64() / NODES as f64;
    println!("{}: {each:.2} statements/s of each of {NODES} idle nodes", database.name());
    assert!(each > 0.0, "nothing was counted");
    assert!(each < MOST, "{each:.2} statements/s of each idle node, at most {MOST} are allowed");
}

#[tokio::test]
async fn an_idle_node_asks_postgres_less_than_five_times_a_second() {
    let counting = vec!["shared_preload_libraries = 'pg_stat_statements'".to_owned()];
    let Some(database) = Database::postgres_with(counting).await else { return };
    database.run("CREATE EXTENSION pg_stat_statements").await;
    idle(database, "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements").await;
}

#[tokio::test]
async fn an_idle_node_asks_mariadb_less_than_five_times_a_second() {
    let Some(database) = Database::mariadb().await else { return };
    let count = "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status \
                 WHERE variable_name = 'QUESTIONS'";
    idle(database, count).await;
}

/// A file is not asked over a network, and nobody counts: what it costs is the time of the process.
#[tokio::test]
async fn an_idle_node_on_sqlite_leaves_the_processor_alone() {
    let database = Database::sqlite();
    let process = Process::start(&database.url("")).await;
    // How long nothing happens.
    tokio::time::sleep(CALM).await;
    let (before, start) = (process.busy(), Instant::now());
    tokio::time::sleep(COUNTED).await;
    let share = (process.busy() - before).as_secs_f64() / start.elapsed().as_secs_f64();
    println!("sqlite: {:.1} % of a processor for an idle node", share * 100.0);
    assert!(share < MOST_BUSY, "{:.1} % of a processor for an idle node", share * 100.0);
}
