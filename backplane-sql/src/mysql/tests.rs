//! The seam on a private MariaDB.

use std::time::Duration;

use backplane_conformance::broker::{Broker as _, MariaDb as Server, MariaDbOptions};
use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _};
use tokio::sync::OnceCell;

use crate::store::{Content, Database, Entry, Opened, Row, Want, WriterId};

const DEADLINE: Duration = Duration::from_secs(20);

/// One for all tests that leave it as it is, each with a log of its own. It ends with the test process.
static SERVER: OnceCell<Option<Server>> = OnceCell::const_new();

macro_rules! server {
    () => {
        match SERVER.get_or_init(|| Server::require(MariaDbOptions::default())).await {
            Some(server) => server,
            None => return,
        }
    };
    ($options:expr) => {
        match Server::require($options).await {
            Some(server) => server,
            None => return,
        }
    };
}

fn database(url: &str, parameters: &str) -> Result<std::sync::Arc<dyn Database>> {
    let (database, _) = crate::url::open(&format!("{url}?{parameters}"), crate::LogConfig::default())?;
    Ok(database)
}

async fn open(url: &str, parameters: &str) -> Result<Opened> {
    tokio::time::timeout(DEADLINE, database(url, parameters)?.open()).await.expect("it opens in time")
}

async fn refused(url: &str, parameters: &str) -> Error {
    match open(url, parameters).await {
        Ok(_) => panic!("{url}?{parameters} is let in"),
        Err(error) => error,
    }
}

/// A session of somebody else.
async fn foreign(server: &Server) -> MySqlConnection {
    let options = MySqlConnectOptions::new().host("127.0.0.1").port(server.address().port());
    options.username("backplane").database("backplane").connect().await.unwrap()
}

async fn run(connection: &mut MySqlConnection, statement: String) {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await.unwrap();
}

fn row(seq: i64, key: i64, frames: impl Into<Bytes>) -> Row {
    Row { seq, topic: Topic::from(format!("topic.{key}")), key, frames: frames.into() }
}

const A: WriterId = WriterId([0xa; 16]);
const B: WriterId = WriterId([0xb; 16]);

fn content(entry: &Entry) -> (&Topic, &Bytes) {
    let Content { topic, frames } = entry.content.as_ref().expect("its content was wanted");
    (topic, frames)
}

async fn everything(log: &mut Opened) -> Vec<Entry> {
    log.reader.read(i64::MIN, i64::MAX, 100_000, Want::NoContent).await.unwrap()
}

/// What every reader and writer does.
async fn writes_and_reads(log: &mut Opened) {
    let empty = log.reader.bounds().await.unwrap();
    assert_eq!((empty.oldest, empty.newest), (None, None));
    assert!(everything(log).await.is_empty());

    let any: Vec<u8> = (0..=255).collect();
    let rows = [row(1, -5, any.clone()), row(2, 7, vec![1; 3 << 20]), row(3, 7, "")];
    log.writer.append(A, &rows).await.unwrap();
    // Again, as after an answer that got lost, with one that is new.
    log.writer.append(A, &[rows[1].clone(), rows[2].clone(), row(4, i64::MIN, "four")]).await.unwrap();
    log.writer.append(B, &[row(1, i64::MAX, "other")]).await.unwrap();
    let all = everything(log).await;
    let seen: Vec<_> = all.iter().map(|entry| (entry.writer, entry.seq, entry.key)).collect();
    assert_eq!(seen, [(A, 1, -5), (A, 2, 7), (A, 3, 7), (A, 4, i64::MIN), (B, 1, i64::MAX)]);
    assert!(
        all.is_sorted_by(|one, next| one.id < next.id) && all.iter().all(|entry| entry.content.is_none())
    );

    let bounds = log.reader.bounds().await.unwrap();
    let newest = bounds.newest.unwrap();
    assert_eq!((bounds.epoch, bounds.oldest), (empty.epoch, Some(all[0].id)));
    assert_eq!((newest.id, newest.writer, newest.seq), (all[4].id, B, 1));

    let wanted =
        log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&[-5, 7, 99], usize::MAX)).await.unwrap();
    assert_eq!(wanted.len(), 5);
    assert_eq!(content(&wanted[0]), (&Topic::from("topic.-5"), &Bytes::from(any)));
    assert_eq!(content(&wanted[1]).1.len(), 3 << 20);
    assert_eq!(content(&wanted[2]).1, "");
    assert!(wanted[3].content.is_none() && wanted[4].content.is_none());
    // What is larger than wanted is left out.
    let fits = log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&[-5, 7], 3 << 20)).await.unwrap();
    assert_eq!(fits, wanted);
    let fits = log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&[-5, 7], (3 << 20) - 1)).await.unwrap();
    assert!(fits[0] == wanted[0] && fits[1] == all[1] && fits[2] == wanted[2]);
    let fits = log.reader.fetch(&[all[1].id, all[4].id], 5).await.unwrap();
    assert_eq!(fits.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [all[4].id]);
    let none = log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&[], usize::MAX)).await.unwrap();
    assert_eq!(none, all);
    let some = log.reader.read(all[1].id, all[3].id, 2, Want::NoContent).await.unwrap();
    assert_eq!(some, all[1..3]);

    let own = log.reader.read_writer(A, 2, 3, 100, Want::Keys(&[7], usize::MAX)).await.unwrap();
    assert_eq!(own, wanted[1..3]);
    let own = log.reader.read_writer(A, 1, i64::MAX, 2, Want::NoContent).await.unwrap();
    assert_eq!(own, all[..2]);
    assert!(log.reader.read_writer(B, 2, 9, 10, Want::NoContent).await.unwrap().is_empty());

    let mut fetched = log.reader.fetch(&[all[4].id, all[0].id, all[4].id + 1_000], usize::MAX).await.unwrap();
    fetched.sort_by_key(|(id, _)| *id);
    assert_eq!(fetched.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [all[0].id, all[4].id]);
    assert_eq!(fetched[1].1.frames, "other");
    assert!(log.reader.fetch(&[], usize::MAX).await.unwrap().is_empty());

    // A full batch, in its order.
    let rows: Vec<_> = (2..=513).map(|seq| row(seq, seq, vec![0; 128])).collect();
    log.writer.append(B, &rows).await.unwrap();
    let read = log.reader.read(newest.id + 1, i64::MAX, 1_000, Want::NoContent).await.unwrap();
    assert!(read.iter().map(|entry| entry.seq).eq(2..=513));
    assert!(read.is_sorted_by(|one, next| one.id < next.id));
    log.writer.ring().await.unwrap();
}

#[tokio::test]
async fn rows_are_written_once_and_read_as_they_are_wanted() {
    let server = server!();
    for (number, parameters) in ["", "order=total"].iter().enumerate() {
        let mut log = open(&server.url(), &format!("{parameters}&table=t{number}")).await.unwrap();
        writes_and_reads(&mut log).await;
        assert!(log.doorbell.is_none());
    }
}

#[tokio::test]
async fn batches_of_any_size_are_dense_and_written_once() {
    let server = server!();
    for order in ["publisher", "total"] {
        let mut log = open(&server.url(), &format!("order={order}&table=dense_{order}")).await.unwrap();
        let mut batches = Vec::new();
        let mut seq = 0;
        for size in [1, 2, 31, 100, 1, 300, 511, 512] {
            let rows: Vec<_> = (0..size).map(|more| row(seq + more + 1, more, vec![0xf0; 128])).collect();
            seq += size;
            batches.push(rows);
        }
        // With one that does not travel as text.
        let size = |seq: i64| if seq % 3 == 0 { 300 << 10 } else { 10 };
        batches.push((seq + 1..=seq + 7).map(|seq| row(seq, 1, vec![1; size(seq)])).collect());
        for rows in &batches {
            log.writer.append(A, rows).await.unwrap();
        }
        let all = everything(&mut log).await;
        assert!(all.iter().map(|entry| entry.seq).eq(1..=seq + 7));
        assert!(all.iter().zip(all[0].id..).all(|(entry, id)| entry.id == id), "there are gaps");
        for rows in &batches {
            log.writer.append(A, rows).await.unwrap();
        }
        assert_eq!(everything(&mut log).await, all);
        log.writer.append(A, &[row(seq + 8, 1, "x")]).await.unwrap();
        assert_eq!(everything(&mut log).await.len(), all.len() + 1);
    }
}

#[tokio::test]
async fn topics_are_bytes() {
    let server = server!();
    let mut log = open(&server.url(), "table=topics").await.unwrap();
    let topics = [&b"room"[..], b"Room", b"room ", b"", b"\0'\"\\\xff", &[b'x'; 70_000]].map(Topic::new);
    let rows: Vec<_> = (1..)
        .zip(&topics)
        .map(|(seq, topic)| Row { seq, topic: topic.clone(), key: 1, frames: Bytes::new() })
        .collect();
    log.writer.append(A, &rows).await.unwrap();
    let read = log.reader.read(0, i64::MAX, 100, Want::Keys(&[1], usize::MAX)).await.unwrap();
    assert!(read.iter().map(|entry| content(entry).0).eq(&topics));
}

#[tokio::test]
async fn the_largest_frame_passes_and_a_larger_one_is_refused_before_it_is_sent() {
    let server = server!();
    let mut log = open(&server.url(), "table=large").await.unwrap();
    let topic = Topic::from("x".repeat(super::log::max_frame(0x0100_0000).min(64 << 10)));
    assert_eq!(log.max_frame, (16 << 20) - (72 << 10) - 64, "the server takes 16 MiB by default");
    let frames = Bytes::from(vec![0xc3; log.max_frame]);
    let most = Row { seq: 1, topic: topic.clone(), key: 1, frames: frames.clone() };
    log.writer.append(A, &[most]).await.unwrap();
    let read = log.reader.read(0, i64::MAX, 1, Want::Keys(&[1], usize::MAX)).await.unwrap();
    assert!(content(&read[0]) == (&topic, &frames));
    let above = Row { seq: 2, topic, key: 1, frames: Bytes::from(vec![0; log.max_frame + 1]) };
    let error = log.writer.append(A, &[above]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    log.writer.append(A, &[row(2, 1, "x")]).await.unwrap();
}

#[tokio::test]
async fn a_batch_above_the_packet_of_the_server_is_still_one() {
    let server =
        server!(MariaDbOptions { options: vec!["--max-allowed-packet=1M".into()], ..Default::default() });
    for order in ["publisher", "total"] {
        let mut log = open(&server.url(), &format!("order={order}&table={order}")).await.unwrap();
        let rows: Vec<_> = (1..=512).map(|seq| row(seq, 1, vec![7; 4 << 10])).collect();
        log.writer.append(A, &rows).await.unwrap();
        log.writer.append(A, &rows).await.unwrap();
        let all = everything(&mut log).await;
        assert!(all.iter().map(|entry| entry.seq).eq(1..=512));
        assert!(all.is_sorted_by(|one, next| one.id < next.id));
    }
    server.query("SET GLOBAL max_allowed_packet = 64 * 1024").await.unwrap();
    let error = refused(&server.url(), "").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("max_allowed_packet"), "{error}");
}

#[tokio::test]
async fn ten_that_install_at_once_find_one_log() {
    let server = server!();
    for round in 0..5 {
        let parameters = format!("table=ten{round}_backplane_meta");
        let nodes = (0..10).map(|_| async {
            let mut log = open(&server.url(), &parameters).await?;
            log.reader.bounds().await
        });
        let bounds = futures::future::try_join_all(nodes).await.unwrap();
        assert!(bounds.iter().all(|one| one.epoch == bounds[0].epoch), "{parameters}");
        assert_ne!(bounds[0].epoch, [0; 16]);
    }
    let tables = server.query("SHOW TABLES LIKE 'ten%'").await.unwrap();
    assert_eq!(tables.lines().count(), 10, "{tables}");
}

#[tokio::test]
async fn an_operator_installs_it_and_the_documented_privileges_are_enough() {
    let server = server!(MariaDbOptions::default());
    let url = server.url();
    let error = refused(&url, "create=false").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("schema/mysql.sql"), "{error}");

    server.query("CREATE DATABASE elsewhere; CREATE USER node IDENTIFIED BY 'pw'").await.unwrap();
    let node = server.url_as("node", "pw");
    assert_eq!(refused(&node, "").await.kind(), ErrorKind::Denied);

    server.query(include_str!("../../schema/mysql.sql")).await.unwrap();
    server.query(include_str!("../../schema/mysql.sql")).await.unwrap();
    server.query("GRANT SELECT ON backplane.* TO node").await.unwrap();
    for parameters in ["", "create=false", "table=another"] {
        let error = refused(&node, parameters).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("schema/mysql.sql"), "{error}");
    }
    let documented = "REVOKE SELECT ON backplane.* FROM node; \
                      GRANT SELECT, INSERT, UPDATE, DELETE ON backplane.backplane_log TO node; \
                      GRANT SELECT, UPDATE ON backplane.backplane_meta TO node";
    server.query(documented).await.unwrap();
    let mut log = open(&node, "create=false&order=total").await.unwrap();
    writes_and_reads(&mut log).await;
    assert!(log.keeper.lead(A, DEADLINE).await.unwrap());
    assert!(log.keeper.trim(Duration::ZERO, 1_000, 10).await.unwrap() > 0);
}

#[tokio::test]
async fn another_format_is_refused() {
    let server = server!();
    let parameters = "table=format";
    drop(open(&server.url(), parameters).await.unwrap());
    server.query("UPDATE format_meta SET version = 3").await.unwrap();
    let error = refused(&server.url(), parameters).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("format 3"), "{error}");
    server.query("DELETE FROM format_meta").await.unwrap();
    let error = refused(&server.url(), "table=format&create=false").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    // As after an installation that broke off.
    let first = open(&server.url(), parameters).await.unwrap().reader.bounds().await.unwrap();
    server.query("DROP TABLE format_log, format_meta").await.unwrap();
    let second = open(&server.url(), parameters).await.unwrap().reader.bounds().await.unwrap();
    assert_ne!(first.epoch, second.epoch);
}

#[tokio::test]
async fn broken_sessions_are_seen_and_dropped_ones_end() {
    let server = server!(MariaDbOptions::default());
    let mut log = open(&server.url(), "").await.unwrap();
    server.terminate_sessions().await.unwrap();
    let error = log.writer.append(A, &[row(1, 1, "x")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(log.reader.bounds().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(log.keeper.lead(A, DEADLINE).await.unwrap_err().kind(), ErrorKind::Unavailable);

    let count = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'backplane'";
    let log = open(&server.url(), "").await.unwrap();
    assert_eq!(server.query(count).await.unwrap(), "3");
    drop(log);
    let start = std::time::Instant::now();
    while server.query(count).await.unwrap() != "0" {
        assert!(start.elapsed() < DEADLINE, "they stay");
    }
}

#[tokio::test]
async fn in_total_order_no_row_appears_below_one_that_was_there() {
    let server = server!();
    let parameters = "order=total&table=ordered";
    let mut reader = open(&server.url(), parameters).await.unwrap();
    let mut writers = Vec::new();
    for number in 1..=4 {
        let mut log = open(&server.url(), parameters).await.unwrap();
        writers.push(tokio::spawn(async move {
            let me = WriterId([number; 16]);
            for batch in 0..50 {
                let rows: Vec<_> = (1..=5).map(|seq| row(batch * 5 + seq, 1, "x")).collect();
                log.writer.append(me, &rows).await.unwrap();
            }
        }));
    }
    let mut seen: Vec<Entry> = Vec::new();
    while seen.len() < 1_000 {
        let now = everything(&mut reader).await;
        assert!(now.starts_with(&seen), "a row came late");
        seen = now;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    // Batches are not mixed either.
    assert!(seen.chunks(5).all(|batch| batch.iter().all(|entry| entry.writer == batch[0].writer)));
}

#[tokio::test]
async fn writers_side_by_side_meet_no_deadlock_and_keep_the_order_within_each() {
    let server = server!();
    let mut writers = Vec::new();
    for number in 1..=4 {
        let mut log = open(&server.url(), "table=beside").await.unwrap();
        writers.push(tokio::spawn(async move {
            let me = WriterId([number; 16]);
            for batch in 0..50 {
                let rows: Vec<_> = (1..=20).map(|seq| row(batch * 20 + seq, 1, "x")).collect();
                log.writer.append(me, &rows).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut log = open(&server.url(), "table=beside").await.unwrap();
    let all = everything(&mut log).await;
    assert_eq!(all.len(), 4_000);
    for number in 1..=4 {
        let own = all.iter().filter(|entry| entry.writer == WriterId([number; 16]));
        assert!(own.map(|entry| entry.seq).eq(1..=1_000));
    }
}

#[tokio::test]
async fn a_foreign_transaction_stops_nobody_and_a_row_of_its_own_appears_late() {
    let server = server!();
    let mut log = open(&server.url(), "table=late").await.unwrap();
    let mut other = foreign(server).await;
    let late = "START TRANSACTION; INSERT INTO late_log (writer, seq, `key`, topic, frames, at) \
                VALUES (x'01', 1, 1, '', '', UTC_TIMESTAMP(6))";
    run(&mut other, late.into()).await;
    log.writer.append(A, &[row(1, 1, "x")]).await.unwrap();
    let before = everything(&mut log).await;
    assert_eq!(before.len(), 1);
    run(&mut other, "COMMIT".into()).await;
    let after = everything(&mut log).await;
    assert_eq!((after.len(), &after[1]), (2, &before[0]));
}

#[tokio::test]
async fn a_lock_that_is_not_granted_is_worth_another_try() {
    let server = server!();
    for order in ["publisher", "total"] {
        let table = format!("held_{order}");
        let mut log = open(&server.url(), &format!("table={table}&order={order}")).await.unwrap();
        let mut other = foreign(server).await;
        // The same row, not committed yet; and the row about the log, which gives writers their turn.
        let hold = format!(
            "START TRANSACTION; SELECT * FROM {table}_meta FOR UPDATE; \
             INSERT INTO {table}_log (writer, seq, `key`, topic, frames, at) \
             VALUES (x'0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a', 1, 1, '', '', UTC_TIMESTAMP(6))"
        );
        run(&mut other, hold).await;
        let rows = [row(1, 1, "x"), row(2, 1, "y")];
        let error = log.writer.append(A, &rows).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        assert!(everything(&mut log).await.is_empty());
        run(&mut other, "ROLLBACK".into()).await;
        log.writer.append(A, &rows).await.unwrap();
        assert_eq!(everything(&mut log).await.len(), 2);
    }
}

#[tokio::test]
async fn the_oldest_rows_go_and_the_ones_that_readers_know_stay() {
    let server = server!();
    let mut log = open(&server.url(), "table=trimmed").await.unwrap();
    let minute = Duration::from_secs(60);
    assert_eq!(log.keeper.trim(minute, 1_000, 10).await.unwrap(), 0);
    let rows: Vec<_> = (1..=20).map(|seq| row(seq, 1, "x")).collect();
    log.writer.append(A, &rows).await.unwrap();
    let age = async |seqs: &str| {
        let old =
            format!("UPDATE trimmed_log SET at = UTC_TIMESTAMP(6) - INTERVAL 2 MINUTE WHERE seq {seqs}");
        server.query(&old).await.unwrap();
    };
    let left =
        async |log: &mut Opened| everything(log).await.iter().map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!(log.keeper.trim(minute, 1_000, 10).await.unwrap(), 0);
    age("<= 7").await;
    assert_eq!(log.keeper.trim(minute, 1_000, 4).await.unwrap(), 4);
    assert_eq!(log.keeper.trim(minute, 1_000, 4).await.unwrap(), 2);
    assert_eq!(log.keeper.trim(minute, 1_000, 4).await.unwrap(), 0);
    assert_eq!(left(&mut log).await, (7..=20).collect::<Vec<_>>(), "the newest of the old ones is kept");
    // Beyond the newest ten there are 8, 9 and 10, and the one that is spared.
    assert_eq!(log.keeper.trim(minute, 10, 2).await.unwrap(), 2);
    assert_eq!(log.keeper.trim(minute, 10, 2).await.unwrap(), 1);
    assert_eq!(log.keeper.trim(minute, 10, 2).await.unwrap(), 0);
    assert_eq!(left(&mut log).await, [7, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
    age("<= 12").await;
    assert_eq!(log.keeper.trim(minute, 1_000, 100).await.unwrap(), 2);
    assert_eq!(left(&mut log).await[0], 12);
    age("<= 20").await;
    assert!(log.keeper.lead(A, minute).await.unwrap());
    assert_eq!(log.keeper.trim(minute, 1_000, 100).await.unwrap(), 8);
    assert_eq!(left(&mut log).await, [20], "the newest of all is kept");
}

#[tokio::test]
async fn ids_go_on_after_a_restart_though_rows_were_deleted() {
    let server = server!(MariaDbOptions::default());
    let mut log = open(&server.url(), "").await.unwrap();
    let rows: Vec<_> = (1..=20).map(|seq| row(seq, 1, "x")).collect();
    log.writer.append(A, &rows).await.unwrap();
    let newest = log.reader.bounds().await.unwrap().newest.unwrap();
    while log.keeper.trim(Duration::ZERO, 1_000, 500).await.unwrap() > 0 {}
    server.kill();
    server.restart().await.unwrap();
    let mut log = open(&server.url(), "").await.unwrap();
    let bounds = log.reader.bounds().await.unwrap();
    assert_eq!((bounds.oldest, bounds.newest), (Some(newest.id), Some(newest)));
    log.writer.append(B, &[row(1, 1, "x")]).await.unwrap();
    assert!(log.reader.bounds().await.unwrap().newest.unwrap().id > newest.id);
}

#[tokio::test]
async fn one_node_leads_until_its_lease_ends() {
    let server = server!();
    let mut one = open(&server.url(), "table=led").await.unwrap();
    let mut two = open(&server.url(), "table=led").await.unwrap();
    let term = Duration::from_secs(60);
    assert!(one.keeper.lead(A, term).await.unwrap());
    assert!(!two.keeper.lead(B, term).await.unwrap());
    assert!(one.keeper.lead(A, term).await.unwrap());
    server.query("UPDATE led_meta SET lease_until = UTC_TIMESTAMP(6)").await.unwrap();
    assert!(two.keeper.lead(B, term).await.unwrap());
    assert!(!one.keeper.lead(A, term).await.unwrap());
    // Granted before the clock went back.
    server.query("UPDATE led_meta SET lease_until = UTC_TIMESTAMP(6) + INTERVAL 2 DAY").await.unwrap();
    assert!(one.keeper.lead(A, term).await.unwrap());
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let server =
        server!(MariaDbOptions { password: Some("s3cret/@'\\".into()), ..MariaDbOptions::default() });
    drop(open(&server.url(), "").await.unwrap());
    let wrong = server.url_as("backplane", "guess");
    let error = refused(&wrong, "").await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!format!("{error} {error:?}").contains("guess"), "{error}");
    let shown = format!("{:?}", database(&wrong, "").unwrap());
    assert!(!shown.contains("guess") && shown.contains("127.0.0.1"), "{shown}");
    let elsewhere = server
        .url()
        .replace(&format!("{}/backplane", server.address()), &format!("{}/nowhere", server.address()));
    assert_eq!(refused(&elsewhere, "").await.kind(), ErrorKind::InvalidConfig);
    server.query("SET GLOBAL read_only = 1").await.unwrap();
    let error = refused(&server.url(), "").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.kill();
    assert_eq!(refused(&server.url(), "").await.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn tls_is_verified_against_the_named_authority() {
    let server =
        server!(MariaDbOptions { tls: true, tls_names: vec!["localhost".into()], ..Default::default() });
    let ca = server.tls().unwrap().ca.display().to_string();
    let named = server.url().replace("127.0.0.1", "localhost");
    for good in ["", "ssl-mode=REQUIRED", &format!("ssl-mode=verify_identity&ssl-ca={ca}")] {
        let mut log = open(&named, good).await.unwrap();
        log.writer.append(WriterId([1; 16]), &[row(1, 1, "x")]).await.unwrap();
    }
    drop(open(&server.url(), &format!("ssl-ca={ca}")).await.unwrap());
    let other = backplane_conformance::broker::Folder::new("authority").unwrap();
    let stranger = backplane_conformance::broker::TlsFiles::create(&other, &["localhost".into()]).unwrap().ca;
    let stranger = stranger.display();
    for (url, bad) in [
        (&server.url(), format!("ssl-mode=verify_identity&ssl-ca={ca}")),
        (&named, format!("ssl-mode=verify_identity&ssl-ca={stranger}")),
        (&named, format!("ssl-ca={stranger}")),
        (&named, "ssl-mode=verify_identity".to_owned()),
    ] {
        let error = refused(url, &bad).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad}: {error}");
    }
    let error = refused(&named, "ssl-mode=disabled").await;
    assert!(matches!(error.kind(), ErrorKind::InvalidConfig | ErrorKind::Denied), "{error}");
    // By its socket nothing is in between.
    let socket = format!("socket={}&ssl-mode=disabled", server.socket().display());
    drop(open(&server.url(), &socket).await.unwrap());
}

#[tokio::test]
async fn tls_that_the_server_does_not_speak_is_missed() {
    let server = server!();
    let error = refused(&server.url(), "ssl-mode=required").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
}

#[test]
fn what_cannot_work_is_refused_before_it_connects() {
    for (url, parameters, part) in [
        ("mysql://h/d", "ssl-mode=maybe", "ssl-mode"),
        ("mysql://h/d", "ssl-cert=a", "ssl-key"),
        ("mysql://h/d", "ssl-cert=a&ssl-key=b&ssl-mode=disabled", "need TLS"),
        ("mysql://h/d", "ssl-ca=no-such-file.pem", "no-such-file.pem"),
        ("mysql://h/d", "ssl-mode=required&ssl-ca=a", "verify_ca"),
        ("mysql://h/d", "schema=s", "database of the URL"),
        ("mysql://h/d", "durability=relaxed", "innodb_flush_log_at_trx_commit"),
        ("mysql://a,b/d", "", "several servers"),
        ("mysql://a:1,b:2/d", "", "several servers"),
        ("mysql://u:secret@h;password=secret/d", "", "behind `?`"),
        ("mysql://u:secret@h:0/d", "", "port"),
        ("mysql://:secret@h/d", "", "is empty"),
        ("mysql://@h/d", "", "are empty"),
        ("mysql://:@h/d", "", "are empty"),
        ("mysql://h", "", "names no database"),
        ("mysql://h/", "", "names no database"),
        ("mysql://h/a/b", "", "form"),
        ("mysql:d", "", "form"),
        ("mysql://h:99999/d", "", "form"),
        ("mysql://u:secret@h:x/d", "", "form"),
        ("mariadb://h/d", "polling=1", "ssl-ca"),
    ] {
        let error = database(url, parameters).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(part), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
    assert!(database("mysql://root:@h/d", "").is_ok(), "an empty password is one");
    let capable = database("mariadb://[::1]:3307/d", "order=total").unwrap().capabilities();
    assert!(capable.resume && capable.repeats && capable.order == backplane_core::Order::Total);
}
