//! The file of a running log is deleted or replaced: its nodes are told of a loss, and meet again in the file that has the
//! name now.

use std::path::Path;

use backplane_core::{Backplane as _, LossReason};
use backplane_tests::sql::{Database, SqliteFile};

use crate::member::{Member, all_hear_each_other};

fn file(database: &Database) -> &SqliteFile {
    let Database::Sqlite(file) = database else { panic!("{} is no file", database.name()) };
    file
}

/// Both are told that their next link could not continue, and hear each other.
async fn both_meet_again(what: &str, members: &mut [Member; 2]) {
    for (index, member) in members.iter_mut().enumerate() {
        let (gap, took) = member.gap().await;
        println!("{what}: node {index} was told after {took:.2?}");
        assert_eq!(gap.reason, LossReason::Reconnect);
    }
    for member in members.iter() {
        backplane_core::BackplaneExt::wait_until_up(&member.router).await.expect("the node lives");
    }
    let [one, other] = members;
    all_hear_each_other(&mut [one, other], what).await;
}

async fn two(database: &Database) -> [Member; 2] {
    let mut members = [Member::open(database.bus("")).await, Member::open(database.bus("")).await];
    let [one, other] = &mut members;
    all_hear_each_other(&mut [one, other], "before").await;
    members
}

#[tokio::test]
async fn a_deleted_file_is_a_gap_and_a_new_log() {
    let database = Database::sqlite();
    let mut members = two(&database).await;
    for _ in 0..2 {
        // The log last: whoever notices makes a new one at once, and the rest would be the new one's.
        for path in file(&database).paths().iter().rev() {
            std::fs::remove_file(path).expect("it is there");
        }
        both_meet_again("deleted", &mut members).await;
    }
}

#[tokio::test]
async fn a_replaced_file_is_a_gap_and_another_log() {
    let database = Database::sqlite();
    let mut members = two(&database).await;
    let path = file(&database).path();
    let replace = |by: &Path| {
        for beside in &file(&database).paths()[1..] {
            std::fs::remove_file(beside).expect("it is there while the log is open");
        }
        std::fs::rename(by, &path).expect("both lie on one file system");
    };

    // By another log, with rows of its own.
    let other = Database::sqlite();
    let stranger = Member::open(other.bus("")).await;
    for _ in 0..100 {
        stranger.says("of another log").await;
    }
    stranger.router.shutdown().await.expect("it leaves in order");
    drop(stranger);
    let copy = path.with_extension("copy");
    other.run(&format!("VACUUM INTO '{}'", copy.display())).await;
    replace(&copy);
    both_meet_again("replaced by another log", &mut members).await;

    // By an older state of itself: the epoch is the same.
    database.run(&format!("VACUUM INTO '{}'", copy.display())).await;
    let [one, another] = &mut members;
    all_hear_each_other(&mut [one, another], "after the copy").await;
    replace(&copy);
    both_meet_again("replaced by an older state", &mut members).await;
}
