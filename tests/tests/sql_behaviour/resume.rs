//! A node whose link was lost continues where it was: everything arrives once, in order, and no gap is told, for nothing
//! that was sent meanwhile failed.

use std::time::{Duration, Instant};

use backplane_core::Backplane as _;
use backplane_core::{EncodedMessage, RouterConfig, Target};
use backplane_tests::sql::Database;

use crate::member::{Member, all_hear_each_other};

/// A bound below the freeze.
const BOUND: Duration = Duration::from_secs(2);

/// How long the listener's connections are frozen.
const FROZEN: Duration = Duration::from_secs(3);

fn config() -> RouterConfig {
    RouterConfig { heartbeat: BOUND, ..RouterConfig::default() }
}

/// Says numbers all the time, each accepted before the next.
async fn count_for(speaker: &Member, from: usize, time: Duration) -> usize {
    let (start, mut number) = (Instant::now(), from);
    while start.elapsed() < time {
        speaker.says(&number.to_string()).await;
        number += 1;
        // The pace of the messages; nothing is concluded from it.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    number
}

/// The listener has heard all numbers up to `to`, in order, once.
async fn heard_all(listener: &mut Member, from: usize, to: usize) {
    let mut heard = listener.hears(&(to - 1).to_string()).await;
    heard.push((to - 1).to_string());
    let expected: Vec<String> = (from..to).map(|number| number.to_string()).collect();
    assert_eq!(heard, expected);
}

async fn a_listener_cut_off(database: Database) {
    let speaker = Member::open(database.bus("")).await;
    let proxy = database.proxy().expect("it is a server");
    let mut listener = Member::open_with(database.bus_through(&proxy, ""), config()).await;
    let mut from = 0;
    for round in 0..5 {
        let to = if round == 2 {
            proxy.freeze();
            let to = count_for(&speaker, from, FROZEN).await;
            proxy.thaw();
            to
        } else {
            let to = count_for(&speaker, from, Duration::from_millis(200)).await;
            proxy.cut();
            count_for(&speaker, to, Duration::from_millis(500)).await
        };
        assert!(listener.link().await, "the next link continues");
        heard_all(&mut listener, from, to).await;
        from = to;
    }
    assert_eq!(listener.further_gaps(), []);
    println!(
        "{}: {from} messages, all of them once, over {} links",
        database.name(),
        listener.reconnects() + 1
    );
}

#[tokio::test]
async fn a_listener_cut_off_from_postgres_misses_nothing() {
    let Some(database) = Database::postgres().await else { return };
    a_listener_cut_off(database).await;
}

#[tokio::test]
async fn a_listener_cut_off_from_mariadb_misses_nothing() {
    let Some(database) = Database::mariadb().await else { return };
    a_listener_cut_off(database).await;
}

/// Killed while nobody speaks: what was said is heard, and nobody is told of a loss.
async fn a_server_killed_in_silence(database: Database) {
    let mut one = Member::open_with(database.bus(""), config()).await;
    let mut other = Member::open_with(database.bus(""), config()).await;
    for round in 0..2 {
        all_hear_each_other(&mut [&mut one, &mut other], &format!("before {round}")).await;
        database.kill();
        for member in [&mut one, &mut other] {
            member.loses_its_link().await;
        }
        database.restart().await;
        for member in [&mut one, &mut other] {
            assert!(member.link().await, "the next link continues");
        }
        all_hear_each_other(&mut [&mut one, &mut other], &format!("after {round}")).await;
    }
    for member in [&mut one, &mut other] {
        assert_eq!(member.further_gaps(), []);
    }
}

#[tokio::test]
async fn a_postgres_killed_in_silence_is_no_loss() {
    let Some(database) = Database::postgres().await else { return };
    a_server_killed_in_silence(database).await;
}

#[tokio::test]
async fn a_mariadb_killed_in_silence_is_no_loss() {
    let Some(database) = Database::mariadb().await else { return };
    a_server_killed_in_silence(database).await;
}

/// How many messages follow a row that somebody took back, before the listener's link is lost: more than the router
/// remembers of one origin and topic (4,096).
const MANY: usize = 10_000;

/// A number that is missing in the log is looked for for ten seconds, and a link that resumes meanwhile starts before it:
/// all that came since is read again, and the router knows it again.
async fn many_are_read_again(database: Database) {
    let speaker = Member::open(database.bus("")).await;
    let proxy = database.proxy().expect("it is a server");
    let mut listener = Member::open_with(database.bus_through(&proxy, ""), config()).await;
    speaker.says("before").await;
    listener.hears("before").await;
    let hole = match &database {
        Database::Postgres(_) => {
            "BEGIN; INSERT INTO backplane_log (writer, seq, key, topic, frames) VALUES ('', 1, 1, '', ''); ROLLBACK"
        }
        _ => {
            "BEGIN; INSERT INTO backplane_log (writer, seq, `key`, topic, frames, at) \
             VALUES ('', 1, 1, '', '', UTC_TIMESTAMP(6)); ROLLBACK"
        }
    };
    database.run(hole).await;
    let start = Instant::now();
    let mut accepted = Vec::new();
    for number in 0..MANY {
        if number % 1_000 == 0 {
            for accepted in accepted.drain(..) {
                let accepted: backplane_core::Acceptance = accepted;
                accepted.await.expect("the log has it");
            }
        }
        let message = EncodedMessage::json(format!("{number};"));
        accepted.push(speaker.router.post(&Target::all(), &[], message).expect("the queue has room"));
    }
    for accepted in accepted {
        accepted.await.expect("the log has it");
    }
    heard_all(&mut listener, 0, MANY).await;
    println!("{}: {MANY} messages after {:.2?}", database.name(), start.elapsed());
    proxy.cut();
    assert!(listener.link().await, "the next link continues");
    speaker.says("after").await;
    let again = listener.hears("after").await;
    assert!(again.is_empty(), "{} messages came again", again.len());
    let repeats = listener.router.stats().repeats_removed;
    println!("{}: {repeats} repeats were removed", database.name());
    assert!(repeats >= MANY as u64, "nothing was read again, so nothing was shown");
    assert_eq!(listener.further_gaps(), []);
}

#[tokio::test]
async fn what_is_read_again_on_postgres_comes_once() {
    let Some(database) = Database::postgres().await else { return };
    many_are_read_again(database).await;
}

#[tokio::test]
async fn what_is_read_again_on_mariadb_comes_once() {
    let Some(database) = Database::mariadb().await else { return };
    many_are_read_again(database).await;
}
