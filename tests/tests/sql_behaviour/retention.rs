//! A node that was stopped for longer than rows are kept is told of its loss.

use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_core::{LossReason, RouterConfig};
use backplane_tests::sql::Database;

use crate::member::{Member, SOON};
use crate::process::Process;

/// Rows live for a second.
const SHORT: &str = "retention=1s&hole_deadline=500ms";

/// How long the node is stopped.
const STOPPED: Duration = Duration::from_secs(3);

/// Says something all the time while the other is stopped, so that the row on which it stands grows old and goes.
async fn says_much(member: &Member) {
    let start = Instant::now();
    while start.elapsed() < STOPPED {
        member.says("meanwhile").await;
        // The pace of the messages; nothing is concluded from it.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `heartbeat`: longer than the stop, so that the link survives it, or shorter.
async fn stopped_past_retention(database: Database, heartbeat: Duration) -> (Member, LossReason) {
    let awake = Member::open(database.bus(SHORT)).await;
    let proxy = database.proxy().expect("it is a server");
    let config = RouterConfig { heartbeat, ..RouterConfig::default() };
    let mut stopped = Member::open_with(database.bus_through(&proxy, SHORT), config).await;
    awake.says("before").await;
    stopped.hears("before").await;
    proxy.freeze();
    says_much(&awake).await;
    proxy.thaw();
    let (gap, took) = stopped.gap().await;
    println!("{}: told {took:.2?} after the thaw: {:?}", database.name(), gap.reason);
    awake.says("after").await;
    stopped.hears("after").await;
    // The numbers of its frames tell the speaker's part of the same loss once more.
    let more = stopped.further_gaps();
    assert!(more.iter().all(|reason| *reason == LossReason::Missing), "{more:?}");
    (stopped, gap.reason)
}

async fn a_link_that_slept(database: Database) {
    let (stopped, reason) = stopped_past_retention(database, Duration::from_secs(20)).await;
    assert_eq!((reason, stopped.reconnects()), (LossReason::Retention, 0));
}

async fn a_link_that_ended(database: Database) {
    let (stopped, reason) = stopped_past_retention(database, Duration::from_secs(1)).await;
    assert_eq!(reason, LossReason::Reconnect, "the next link could not continue");
    assert!(stopped.reconnects() > 0);
}

#[tokio::test]
async fn a_link_that_slept_past_retention_is_told_on_postgres() {
    let Some(database) = Database::postgres().await else { return };
    a_link_that_slept(database).await;
}

#[tokio::test]
async fn a_link_that_slept_past_retention_is_told_on_mariadb() {
    let Some(database) = Database::mariadb().await else { return };
    a_link_that_slept(database).await;
}

#[tokio::test]
async fn a_link_that_ended_before_retention_did_is_told_on_postgres() {
    let Some(database) = Database::postgres().await else { return };
    a_link_that_ended(database).await;
}

#[tokio::test]
async fn a_link_that_ended_before_retention_did_is_told_on_mariadb() {
    let Some(database) = Database::mariadb().await else { return };
    a_link_that_ended(database).await;
}

#[tokio::test]
async fn a_process_that_slept_past_retention_is_told_on_sqlite() {
    let database = Database::sqlite();
    let awake = Member::open(database.bus(SHORT)).await;
    let mut process = Process::start(&database.url("")).await;
    awake.says("before").await;
    process.says("heard before").await;
    stop_between_transactions(&process, &database).await;
    says_much(&awake).await;
    process.go_on();
    let start = Instant::now();
    process.says("gap Retention").await;
    println!("sqlite: told {:.2?} after it went on", start.elapsed());
    awake.says("after").await;
    let more = process.says("heard after").await;
    let known = ["heard meanwhile", "gap Missing"];
    assert!(more.iter().all(|said| known.contains(&said.as_str())), "on one link: {more:?}");
}

/// One that stops while it writes holds the file's lock: nobody could write, and no row would grow old.
async fn stop_between_transactions(process: &Process, database: &Database) {
    let mut session = database.session().await;
    session.run("PRAGMA busy_timeout = 100").await;
    let stopped = tokio::time::timeout(bound(SOON), async {
        loop {
            process.stop().await;
            if session.tries("BEGIN IMMEDIATE").await.is_ok() {
                return session.run("ROLLBACK").await;
            }
            process.go_on();
        }
    });
    stopped.await.expect("it does not write all the time");
}
