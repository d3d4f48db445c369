//! Transactions of strangers: nobody waits for them, and what they commit late is not lost.

use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_core::{Attach, Bus as _, Delivery, Link, NodeId, Topic};
use backplane_tests::sql::Database;
use futures::StreamExt as _;

use crate::member::{Member, SOON, all_hear_each_other};

/// How long a foreign transaction is held open: 30 s, or what `BACKPLANE_FOREIGN_SECONDS` says.
fn held() -> Duration {
    let seconds = std::env::var("BACKPLANE_FOREIGN_SECONDS").map_or(30, |seconds| {
        seconds.parse().expect("BACKPLANE_FOREIGN_SECONDS is a whole number of seconds")
    });
    Duration::from_secs(seconds)
}

/// How long a message may be under way meanwhile: far less than the transaction is held.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// The topic of the stranger's rows.
const TOPIC: &str = "late";

/// The key of a topic in the table: 64-bit FNV-1a, as the format of the log has it.
fn key(topic: &str) -> i64 {
    let hash = topic.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.cast_signed()
}

/// Writes a row as a node would that takes its time: number `seq` of a writer of its own.
fn row(database: &Database, seq: i64, frame: &str) -> String {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (writer, topic) = ("e1".repeat(16), hex(TOPIC));
    // A row holds frames one after the other, each behind its length.
    let frames = format!("{:08x}{}", frame.len(), hex(frame));
    let key = key(TOPIC);
    match database {
        Database::Postgres(_) => format!(
            "INSERT INTO backplane_log (writer, seq, key, topic, frames) \
             VALUES ('\\x{writer}', {seq}, {key}, '\\x{topic}', '\\x{frames}')"
        ),
        Database::MariaDb(_) => format!(
            "INSERT INTO backplane_log (writer, seq, `key`, topic, frames, at) \
             VALUES (x'{writer}', {seq}, {key}, x'{topic}', x'{frames}', UTC_TIMESTAMP(6))"
        ),
        Database::Sqlite(_) | Database::SqlServer(_) => {
            panic!("nobody can write late on {}", database.name())
        }
    }
}

/// A link of its own, which wants the stranger's rows.
async fn listener(database: &Database, parameters: &str) -> Link {
    let attach = Attach {
        node: NodeId::random(),
        attempt: 1,
        topics: &[Topic::from(TOPIC)],
        resume: None,
        deadline: SOON,
        heartbeat: Duration::from_secs(10),
    };
    database.bus(parameters).connect(attach).await.expect("the database lets us in")
}

/// The next frame; a loss told instead fails.
async fn frame(link: &mut Link) -> String {
    let next = tokio::time::timeout(bound(SOON), link.inbound.next()).await.expect("it arrives in time");
    match next.expect("the link goes on").expect("the link goes on") {
        Delivery::Frame { topic, frame, .. } => {
            assert_eq!(topic, Topic::from(TOPIC));
            String::from_utf8(frame.to_vec()).expect("the stranger wrote text")
        }
        Delivery::Lost { reason, .. } => panic!("a loss was told: {reason:?}"),
    }
}

/// Messages go both ways for as long as the transactions stay open; the longest time that one was under way.
async fn deliver_for(members: &mut [&mut Member; 2], held: Duration) -> Duration {
    let (start, mut longest, mut number) = (Instant::now(), Duration::ZERO, 0);
    while start.elapsed() < held {
        let sent = Instant::now();
        all_hear_each_other(members, &format!("meanwhile {number}")).await;
        longest = longest.max(sent.elapsed());
        number += 1;
        // The pace of the messages; nothing is concluded from it.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    longest
}

async fn transactions_held_open(database: Database) {
    let held = held();
    let parameters = format!("retention=2m&hole_deadline={}s", held.as_secs() + 10);
    let mut one = Member::open(database.bus(&parameters)).await;
    let mut other = Member::open(database.bus(&parameters)).await;
    let mut link = listener(&database, &parameters).await;
    all_hear_each_other(&mut [&mut one, &mut other], "before").await;

    // One that only has written somewhere else, and one that has taken a number in the log.
    let mut elsewhere = database.session().await;
    elsewhere.run("CREATE TABLE elsewhere (number integer)").await;
    elsewhere.run("BEGIN").await;
    elsewhere.run("INSERT INTO elsewhere VALUES (1)").await;
    let mut late = database.session().await;
    late.run("BEGIN").await;
    late.run(&row(&database, 1, "committed late")).await;

    let longest = deliver_for(&mut [&mut one, &mut other], held).await;
    println!("{}: open for {held:?}, the longest round took {longest:.2?}", database.name());
    assert!(longest < bound(UNDER_WAY), "a message waited for a stranger: {longest:?}");
    late.run("COMMIT").await;
    assert_eq!(frame(&mut link).await, "committed late");
    // What a stranger takes back was never there.
    late.run("BEGIN").await;
    late.run(&row(&database, 2, "taken back")).await;
    late.run("ROLLBACK").await;
    late.run(&row(&database, 2, "kept")).await;
    assert_eq!(frame(&mut link).await, "kept");
    elsewhere.run("COMMIT").await;
    all_hear_each_other(&mut [&mut one, &mut other], "after").await;
    for member in [&mut one, &mut other] {
        assert_eq!((member.further_gaps(), member.reconnects()), (Vec::new(), 0));
    }
}

#[tokio::test]
async fn transactions_held_open_on_postgres_stop_nobody() {
    let Some(database) = Database::postgres().await else { return };
    transactions_held_open(database).await;
}

#[tokio::test]
async fn transactions_held_open_on_mariadb_stop_nobody() {
    let Some(database) = Database::mariadb().await else { return };
    transactions_held_open(database).await;
}

/// Past the deadline nobody looks for it any more by its id; by its writer's next row it is found all the same.
async fn a_commit_past_the_deadline(database: Database) {
    let parameters = "hole_deadline=200ms";
    let mut one = Member::open(database.bus(parameters)).await;
    let mut link = listener(&database, parameters).await;
    let mut late = database.session().await;
    late.run("BEGIN").await;
    late.run(&row(&database, 1, "first")).await;
    // Rows above it, so that its number is missing, until it is given up.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        one.says("above").await;
        one.hears("above").await;
    }
    late.run("COMMIT").await;
    late.run(&row(&database, 2, "second")).await;
    assert_eq!(frame(&mut link).await, "first");
    assert_eq!(frame(&mut link).await, "second");
    assert_eq!(one.further_gaps(), []);
}

#[tokio::test]
async fn a_commit_past_the_deadline_comes_with_the_next_of_its_writer_on_postgres() {
    let Some(database) = Database::postgres().await else { return };
    a_commit_past_the_deadline(database).await;
}

#[tokio::test]
async fn a_commit_past_the_deadline_comes_with_the_next_of_its_writer_on_mariadb() {
    let Some(database) = Database::mariadb().await else { return };
    a_commit_past_the_deadline(database).await;
}

/// A file has one writer at a time: one that holds the lock is the freeze of `chaos_sql`. Whoever only reads disturbs nobody.
#[tokio::test]
async fn a_read_transaction_held_open_on_sqlite_stops_nobody() {
    let database = Database::sqlite();
    let mut one = Member::open(database.bus("")).await;
    let mut other = Member::open(database.bus("")).await;
    all_hear_each_other(&mut [&mut one, &mut other], "before").await;
    let mut reader = database.session().await;
    reader.run("BEGIN").await;
    let before = reader.number("SELECT count(*) FROM backplane_log").await;
    let longest = deliver_for(&mut [&mut one, &mut other], held()).await;
    println!("sqlite: the longest round took {longest:.2?}");
    assert!(longest < bound(UNDER_WAY), "a message waited for a stranger: {longest:?}");
    assert_eq!(reader.number("SELECT count(*) FROM backplane_log").await, before, "it sees what it saw");
    for member in [&mut one, &mut other] {
        assert_eq!((member.further_gaps(), member.reconnects()), (Vec::new(), 0));
    }
}
