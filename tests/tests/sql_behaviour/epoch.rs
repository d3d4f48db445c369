//! The log is not what it was: truncated, or restored to an older state. Readers are told of a loss, and go on.

use std::process::Stdio;

use backplane_conformance::broker::find;
use backplane_core::LossReason;
use backplane_tests::sql::Database;

use crate::member::{Member, all_hear_each_other};

/// More rows than are there after it was emptied.
const ROWS: usize = 20;

async fn two(database: &Database) -> [Member; 2] {
    let mut members = [Member::open(database.bus("")).await, Member::open(database.bus("")).await];
    for number in 0..ROWS {
        members[number % 2].says(&format!("before {number}")).await;
    }
    for member in &mut members {
        member.hears(&format!("before {}", ROWS - 1)).await;
    }
    members
}

/// Both are told once, on the link that they have, and hear each other again.
async fn both_are_told(database: &Database, what: &str, members: &mut [Member; 2]) {
    for (index, member) in members.iter_mut().enumerate() {
        let (gap, took) = member.gap().await;
        println!("{}, {what}: node {index} was told after {took:.2?}: {:?}", database.name(), gap.reason);
        // Where the numbers go on and a beat came first, it looks as if the rows had grown old.
        let reasons: &[_] = match what {
            "DELETE FROM backplane_log" | "TRUNCATE backplane_log" => {
                &[LossReason::Reset, LossReason::Retention]
            }
            _ => &[LossReason::Reset],
        };
        assert!(reasons.contains(&gap.reason), "{:?}", gap.reason);
    }
    let [one, other] = members;
    all_hear_each_other(&mut [one, other], "afterwards").await;
    for member in members {
        assert_eq!((member.further_gaps(), member.reconnects()), (Vec::new(), 0), "{what}");
    }
}

async fn emptied(database: Database, ways: &[&str]) {
    let mut members = two(&database).await;
    for way in ways {
        database.run(way).await;
        both_are_told(&database, way, &mut members).await;
    }
}

#[tokio::test]
async fn an_emptied_log_is_told_on_postgres() {
    let Some(database) = Database::postgres().await else { return };
    let ways =
        ["TRUNCATE backplane_log", "TRUNCATE backplane_log RESTART IDENTITY", "DELETE FROM backplane_log"];
    emptied(database, &ways).await;
}

#[tokio::test]
async fn an_emptied_log_is_told_on_mariadb() {
    let Some(database) = Database::mariadb().await else { return };
    emptied(database, &["TRUNCATE TABLE backplane_log", "DELETE FROM backplane_log"]).await;
}

#[tokio::test]
async fn an_emptied_log_is_told_on_sqlite() {
    let ways = [
        "DELETE FROM backplane_log",
        "BEGIN IMMEDIATE; DELETE FROM backplane_log; DELETE FROM sqlite_sequence; COMMIT",
    ];
    emptied(Database::sqlite(), &ways).await;
}

#[tokio::test]
async fn a_restored_dump_is_told_on_postgres() {
    let Some(database) = Database::postgres().await else { return };
    let mut members = two(&database).await;
    let dump = client(&database, "pg_dump", &["--clean", "--if-exists", "--table", "backplane_*"], "").await;
    for number in 0..ROWS {
        members[0].says(&format!("lost {number}")).await;
    }
    for member in &mut members {
        member.hears(&format!("lost {}", ROWS - 1)).await;
    }
    // In one transaction: between two, a node that connects would find no tables and install its own.
    client(&database, "psql", &["--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"], &dump).await;
    both_are_told(&database, "restored", &mut members).await;
    // Also with one that comes new, and finds tables of other numbers than the others did.
    let mut third = Member::open(database.bus("")).await;
    let [one, other] = &mut members;
    all_hear_each_other(&mut [one, other, &mut third], "with a third").await;
}

/// The end of the log may be gone, and a row that is still there proves nothing about the ones behind it.
#[tokio::test]
async fn after_a_restart_only_a_log_that_waits_for_the_disk_is_resumed() {
    let Some(database) = Database::postgres().await else { return };
    // Each with a log of its own: whoever has read what was not on the disk is not resumed either.
    let mut full = Member::open(database.bus("table=full")).await;
    let mut relaxed = Member::open(database.bus("table=relaxed&durability=relaxed")).await;
    for member in [&mut full, &mut relaxed] {
        all_hear_each_other(&mut [member], "before").await;
    }
    database.kill();
    full.loses_its_link().await;
    relaxed.loses_its_link().await;
    database.restart().await;
    assert!(full.link().await, "what was accepted is there");
    assert!(!relaxed.link().await, "what was accepted may be gone");
    for member in [&mut full, &mut relaxed] {
        all_hear_each_other(&mut [member], "after").await;
        // That of the reconnect was told before the new link.
        assert_eq!(member.further_gaps(), []);
    }
}

/// Runs a program of PostgreSQL on the database; what it answers.
async fn client(database: &Database, program: &str, arguments: &[&str], input: &str) -> String {
    use tokio::io::AsyncWriteExt as _;

    let mut process = tokio::process::Command::new(find(program).expect("it comes with the server"))
        .args(arguments)
        .arg(format!("--dbname={}", database.url("")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it runs");
    let mut stdin = process.stdin.take().expect("it was piped");
    stdin.write_all(input.as_bytes()).await.expect("it reads its input");
    drop(stdin);
    let output = process.wait_with_output().await.expect("it ends");
    assert!(output.status.success(), "{program}: {:?}", output.status);
    String::from_utf8(output.stdout).expect("a dump is text")
}
