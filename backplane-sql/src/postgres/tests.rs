//! The seam on a private PostgreSQL.

use std::time::Duration;

use backplane_conformance::broker::{
    Broker as _, PgBouncer, PgBouncerOptions, Postgres as Server, PostgresOptions,
};
use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;

use crate::store::{Content, Database, Entry, Opened, Row, Want, WriterId};

const DEADLINE: Duration = Duration::from_secs(10);

macro_rules! server {
    () => {
        server!(PostgresOptions::default())
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

/// What every reader and writer does, in whatever manner statements travel.
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

    // A full batch, in its order.
    let rows: Vec<_> = (2..=513).map(|seq| row(seq, seq, vec![0; 128])).collect();
    log.writer.append(B, &rows).await.unwrap();
    let read = log.reader.read(newest.id + 1, i64::MAX, 1_000, Want::NoContent).await.unwrap();
    assert!(read.iter().map(|entry| entry.seq).eq(2..=513));
    // Again, with some that are new, of every size and byte.
    let rows: Vec<_> = (500..=540)
        .map(|seq| row(seq, -seq, vec![seq.to_le_bytes()[0]; 300 * (seq as usize - 499)]))
        .collect();
    log.writer.append(B, &rows).await.unwrap();
    let keys: Vec<i64> = rows.iter().map(|row| row.key).collect();
    let read = log.reader.read_writer(B, 514, 540, 100, Want::Keys(&keys, usize::MAX)).await.unwrap();
    assert!(read.iter().zip(&rows[14..]).all(|(read, row)| content(read) == (&row.topic, &row.frames)));
    assert_eq!(read.len(), 27);
    log.writer.ring().await.unwrap();
}

#[tokio::test]
async fn rows_are_written_once_and_read_as_they_are_wanted() {
    let server = server!();
    writes_and_reads(&mut open(&server.url(), "").await.unwrap()).await;
    for (number, parameters) in [
        "prepared=false",
        "prepared=true",
        "durability=relaxed",
        "order=total",
        "order=total&durability=relaxed",
    ]
    .iter()
    .enumerate()
    {
        let mut log = open(&server.url(), &format!("{parameters}&table=t{number}")).await.unwrap();
        writes_and_reads(&mut log).await;
        assert!(log.doorbell.is_some());
    }
}

#[tokio::test]
async fn frames_of_many_mebibytes_pass() {
    let server = server!();
    for prepared in [true, false] {
        let mut log = open(&server.url(), &format!("prepared={prepared}&table=t{prepared}")).await.unwrap();
        let frames = Bytes::from(vec![0xc3; 20 << 20]);
        log.writer.append(A, &[row(1, 1, frames.clone())]).await.unwrap();
        let read = log.reader.read(0, i64::MAX, 1, Want::Keys(&[1], usize::MAX)).await.unwrap();
        assert!(content(&read[0]).1 == &frames);
    }
}

#[tokio::test]
async fn ten_that_install_at_once_find_one_log() {
    let server = server!();
    for parameters in ["", "schema=realtime&table=chat", "table=backplane_meta"] {
        let nodes = (0..10).map(|_| async {
            let mut log = open(&server.url(), parameters).await?;
            log.reader.bounds().await
        });
        let bounds = futures::future::try_join_all(nodes).await.unwrap();
        assert!(bounds.iter().all(|one| one.epoch == bounds[0].epoch), "{parameters}");
        assert_ne!(bounds[0].epoch, [0; 16]);
    }
    let tables = "SELECT string_agg(schemaname || '.' || tablename, ' ' ORDER BY 1) FROM pg_tables \
                  WHERE tablename LIKE ANY (ARRAY['%\\_log', '%\\_meta'])";
    let tables = server.query(&tables.replace("ORDER BY 1", "ORDER BY schemaname, tablename")).await.unwrap();
    assert_eq!(
        tables,
        "public.backplane_log public.backplane_meta public.backplane_meta_log public.backplane_meta_meta \
         realtime.chat_log realtime.chat_meta"
    );
}

#[tokio::test]
async fn an_operator_installs_it_and_the_documented_privileges_are_enough() {
    let server = server!();
    let url = server.url();
    let error = refused(&url, "create=false").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("schema/postgres.sql"), "{error}");

    server.query("CREATE USER node; REVOKE CREATE ON SCHEMA public FROM PUBLIC").await.unwrap();
    let node = server.url().replace("//backplane@", "//node@");
    let error = refused(&node, "").await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");

    server.query(include_str!("../../schema/postgres.sql")).await.unwrap();
    server.query(include_str!("../../schema/postgres.sql")).await.unwrap();
    for parameters in ["", "create=false"] {
        let error = refused(&node, parameters).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("SELECT, INSERT and DELETE"), "{error}");
    }
    let documented = "GRANT SELECT, INSERT, DELETE ON backplane_log TO node; \
                      GRANT SELECT, UPDATE ON backplane_meta TO node";
    server.query(documented).await.unwrap();
    let mut log = open(&node, "create=false&order=total&durability=relaxed").await.unwrap();
    writes_and_reads(&mut log).await;
    assert!(log.keeper.lead(A, DEADLINE).await.unwrap());
    assert!(log.keeper.trim(Duration::ZERO, 1_000, 10).await.unwrap() > 0);
    log.doorbell.as_mut().unwrap().rang().await.unwrap();
}

#[tokio::test]
async fn another_format_is_refused() {
    let server = server!();
    drop(open(&server.url(), "").await.unwrap());
    server.query("UPDATE backplane_meta SET version = 3").await.unwrap();
    let error = refused(&server.url(), "").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("format 3"), "{error}");
    server.query("DELETE FROM backplane_meta").await.unwrap();
    assert_eq!(refused(&server.url(), "").await.kind(), ErrorKind::InvalidConfig);
    server.query("DROP TABLE backplane_log").await.unwrap();
    // Made anew, a log is another one.
    let first = open(&server.url(), "").await.unwrap().reader.bounds().await.unwrap();
    server.query("DROP TABLE backplane_log, backplane_meta").await.unwrap();
    let second = open(&server.url(), "").await.unwrap().reader.bounds().await.unwrap();
    assert_ne!(first.epoch, second.epoch);
}

async fn rings(log: &mut Opened) {
    let rang = log.doorbell.as_mut().unwrap().rang();
    tokio::time::timeout(DEADLINE, rang).await.expect("it rings in time").unwrap();
}

#[tokio::test]
async fn the_doorbell_rings_for_all_and_its_break_is_seen() {
    let server = server!();
    let mut one = open(&server.url(), "").await.unwrap();
    // Found by the search path or by its name, it is the same log.
    let mut two = open(&server.url(), "schema=public").await.unwrap();
    let mut other = open(&server.url(), "table=other").await.unwrap();
    one.writer.ring().await.unwrap();
    rings(&mut one).await;
    rings(&mut two).await;
    for _ in 0..100 {
        two.writer.ring().await.unwrap();
    }
    rings(&mut one).await;
    other.writer.ring().await.unwrap();
    rings(&mut other).await;
    // Rings while nobody waited are one, or at most one more that was under way.
    let mut more = 0;
    while tokio::time::timeout(Duration::from_millis(100), one.doorbell.as_mut().unwrap().rang())
        .await
        .is_ok()
    {
        more += 1;
    }
    assert!(more <= 2, "{more} rings");

    server.terminate_sessions().await.unwrap();
    let broken =
        tokio::time::timeout(DEADLINE, one.doorbell.as_mut().unwrap().rang()).await.expect("it is seen");
    assert_eq!(broken.unwrap_err().kind(), ErrorKind::Unavailable);
    let error = two.writer.append(A, &[row(1, 1, "x")]).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.outcome_unknown(), "{error}");
    assert_eq!(two.reader.bounds().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let quiet = open(&server.url(), "doorbell=false").await.unwrap();
    assert!(quiet.doorbell.is_none());
}

#[tokio::test]
async fn its_connections_end_with_it() {
    let server = server!();
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mine'";
    let log = open(&server.url(), "application_name=mine").await.unwrap();
    assert_eq!(server.query(count).await.unwrap(), "4");
    drop(log);
    let start = std::time::Instant::now();
    while server.query(count).await.unwrap() != "0" {
        assert!(start.elapsed() < DEADLINE, "they stay");
    }
}

#[tokio::test]
async fn behind_a_pooler_that_lends_sessions_everything_works_but_the_doorbell() {
    let server = server!();
    for config in [vec![], vec!["ignore_startup_parameters = options".to_owned()]] {
        let table = format!("t{}", config.len());
        let options = PgBouncerOptions { server: server.address(), config, ..PgBouncerOptions::default() };
        let Some(bouncer) = PgBouncer::require(options).await else { return };
        let mut log = open(&bouncer.url(), &format!("table={table}")).await.unwrap();
        assert!(log.doorbell.is_none());
        writes_and_reads(&mut log).await;
        assert!(log.keeper.lead(A, DEADLINE).await.unwrap());
        assert!(log.keeper.trim(Duration::ZERO, 1_000, 10).await.unwrap() > 0);

        let listen = server.url().replace(':', "%3A").replace('/', "%2F").replace('@', "%40");
        let parameters = format!("table={table}&order=total&durability=relaxed&listen_url={listen}");
        let mut log = open(&bouncer.url(), &parameters).await.unwrap();
        log.writer.append(WriterId([7; 16]), &[row(1, 1, "x")]).await.unwrap();
        log.writer.ring().await.unwrap();
        rings(&mut log).await;
    }
    // Statements prepared all the same meet those of others; a pooler that knows them would let them pass.
    let options = PgBouncerOptions { server: server.address(), ..PgBouncerOptions::default() };
    let Some(bouncer) = PgBouncer::require(options).await else { return };
    let pooled = async {
        let mut log = open(&bouncer.url(), "prepared=true").await?;
        log.writer.append(A, &[row(1, 1, "x")]).await?;
        log.reader.bounds().await
    };
    if let Err(error) = pooled.await {
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains("prepared=false"), "{error}");
    }
}

#[tokio::test]
async fn in_total_order_no_row_appears_below_one_that_was_there() {
    let server = server!();
    let mut writers = Vec::new();
    for number in 1..=4 {
        let mut log = open(&server.url(), "order=total&doorbell=false").await.unwrap();
        writers.push(tokio::spawn(async move {
            let me = WriterId([number; 16]);
            for batch in 0..50 {
                let rows: Vec<_> = (1..=5).map(|seq| row(batch * 5 + seq, 1, "x")).collect();
                log.writer.append(me, &rows).await.unwrap();
            }
        }));
    }
    let mut reader = open(&server.url(), "doorbell=false").await.unwrap();
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
async fn a_foreign_transaction_stops_nobody_and_a_row_of_its_own_appears_late() {
    let server = server!();
    let mut log = open(&server.url(), "").await.unwrap();
    let mut options = sqlx::postgres::PgConnectOptions::new_without_pgpass();
    options =
        options.host("127.0.0.1").port(server.address().port()).username("backplane").database("postgres");
    let mut foreign = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let mut transaction = sqlx::Connection::begin(&mut foreign).await.unwrap();
    let late = "INSERT INTO backplane_log (writer, seq, key, topic, frames) VALUES (uuid_send(gen_random_uuid()), 1, 1, '', '')";
    sqlx::Executor::execute(&mut *transaction, late).await.unwrap();
    log.writer.append(A, &[row(1, 1, "x")]).await.unwrap();
    let before = everything(&mut log).await;
    assert_eq!(before.len(), 1);
    transaction.commit().await.unwrap();
    let after = everything(&mut log).await;
    assert_eq!((after.len(), &after[1]), (2, &before[0]));
}

#[tokio::test]
async fn a_lock_that_is_not_granted_is_worth_another_try() {
    let server =
        server!(PostgresOptions { config: vec!["deadlock_timeout = 20ms".into()], ..Default::default() });
    let mut log = open(&server.url(), "").await.unwrap();
    let mut options = sqlx::postgres::PgConnectOptions::new_without_pgpass();
    options =
        options.host("127.0.0.1").port(server.address().port()).username("backplane").database("postgres");
    let mut foreign = sqlx::ConnectOptions::connect(&options).await.unwrap();
    let mut transaction = sqlx::Connection::begin(&mut foreign).await.unwrap();
    sqlx::Executor::execute(&mut *transaction, "LOCK TABLE backplane_log IN EXCLUSIVE MODE").await.unwrap();
    let rows = [row(1, 1, "x")];
    let error = log.writer.append(A, &rows).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    transaction.commit().await.unwrap();
    log.writer.append(A, &rows).await.unwrap();
    assert_eq!(everything(&mut log).await.len(), 1);
}

#[tokio::test]
async fn the_oldest_rows_go_and_the_ones_that_readers_know_stay() {
    let server = server!();
    let mut log = open(&server.url(), "").await.unwrap();
    let minute = Duration::from_secs(60);
    assert_eq!(log.keeper.trim(minute, 1_000, 10).await.unwrap(), 0);
    let rows: Vec<_> = (1..=20).map(|seq| row(seq, 1, "x")).collect();
    log.writer.append(A, &rows).await.unwrap();
    let age = async |seqs: &str| {
        let old = format!("UPDATE backplane_log SET at = now() - interval '2 minutes' WHERE seq {seqs}");
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
async fn one_node_leads_until_its_lease_ends() {
    let server = server!();
    let mut one = open(&server.url(), "").await.unwrap();
    let mut two = open(&server.url(), "").await.unwrap();
    let term = Duration::from_millis(300);
    assert!(one.keeper.lead(A, term).await.unwrap());
    assert!(!two.keeper.lead(B, term).await.unwrap());
    assert!(one.keeper.lead(A, Duration::from_secs(60)).await.unwrap());
    server.query("UPDATE backplane_meta SET lease_until = clock_timestamp()").await.unwrap();
    assert!(two.keeper.lead(B, Duration::from_secs(60)).await.unwrap());
    assert!(!one.keeper.lead(A, term).await.unwrap());
    // Granted before the clock went back.
    server
        .query("UPDATE backplane_meta SET lease_until = clock_timestamp() + interval '2 days'")
        .await
        .unwrap();
    assert!(one.keeper.lead(A, term).await.unwrap());
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let server = server!(PostgresOptions { password: Some("s3cret/@".into()), ..PostgresOptions::default() });
    drop(open(&server.url(), "").await.unwrap());
    let wrong = server.url_as("backplane", "guess");
    let error = refused(&wrong, "").await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!error.to_string().contains("guess"), "{error}");
    let shown = format!("{:?}", database(&wrong, "listen_url=postgres%3A%2F%2Fu%3Aguess%40h%2Fd").unwrap());
    assert!(!shown.contains("guess") && shown.contains("127.0.0.1"), "{shown}");
    let elsewhere = server.url().replace("/postgres", "/nowhere");
    assert_eq!(refused(&elsewhere, "").await.kind(), ErrorKind::InvalidConfig);
    server.query("ALTER DATABASE postgres SET default_transaction_read_only = on").await.unwrap();
    let error = refused(&server.url(), "table=new").await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.kill();
    assert_eq!(refused(&server.url(), "").await.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn tls_is_verified_against_the_named_authority() {
    let server =
        server!(PostgresOptions { tls: true, tls_names: vec!["localhost".into()], ..Default::default() });
    let ca = server.tls().unwrap().ca.display().to_string();
    let named = server.url().replace("127.0.0.1", "localhost");
    for good in ["", "sslmode=require", &format!("sslmode=verify-full&sslrootcert={ca}")] {
        let mut log = open(&named, good).await.unwrap();
        log.writer.append(WriterId([1; 16]), &[row(1, 1, "x")]).await.unwrap();
        log.writer.ring().await.unwrap();
        rings(&mut log).await;
    }
    drop(open(&server.url(), &format!("sslmode=require&sslrootcert={ca}")).await.unwrap());
    let other = server!(PostgresOptions { tls: true, ..PostgresOptions::default() });
    let stranger = other.tls().unwrap().ca.display().to_string();
    for (url, bad) in [
        (&server.url(), format!("sslmode=verify-full&sslrootcert={ca}")),
        (&named, format!("sslmode=verify-full&sslrootcert={stranger}")),
        (&named, format!("sslmode=require&sslrootcert={stranger}")),
        (&named, format!("sslrootcert={stranger}")),
        (&named, "sslmode=verify-full".to_owned()),
    ] {
        let error = refused(url, &bad).await;
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad}: {error}");
    }
    assert_eq!(refused(&named, "sslmode=disable").await.kind(), ErrorKind::Denied);
    let plain = server!();
    let error = refused(&plain.url(), "sslmode=require").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
}

#[test]
fn what_cannot_work_is_refused_before_it_connects() {
    for (url, parameters, part) in [
        ("postgres://h/d", "sslmode=allow", "sslmode"),
        ("postgres://h/d", "prepared=maybe", "prepared"),
        ("postgres://h/d", "sslcert=a", "sslkey"),
        ("postgres://h/d", "sslcert=a&sslkey=b&sslmode=disable", "need TLS"),
        ("postgres://h/d", "sslrootcert=a&sslmode=prefer", "verify-full"),
        ("postgres://h/d", "sslrootcert=no-such-file.pem", "no-such-file.pem"),
        ("postgres://u:p%zz@h/d", "", "percent-encoded"),
        ("postgres://h/d", "listen_url=postgres%3A%2F%2Fu%3A12%2F34%40h%2Fd", "once more"),
        ("postgres://a,b/d", "", "several servers"),
        ("postgres://u:secret@h;password=secret/d", "", "behind `?`"),
        ("postgres://u:secret@h:0/d", "", "port"),
        ("postgres://:secret@h/d", "", "is empty"),
        ("postgres://@h/d", "", "are empty"),
        ("postgres://:@h/d", "", "are empty"),
        ("postgres://h/d", "listen_url=postgres%3A%2F%2F%3A%40h%2Fd", "are empty"),
        ("postgres://h/d", "listen_url=postgres%3A%2F%2Fu%3Asecret%40h%3A0%2Fd", "port in `listen_url`"),
        ("postgres:d", "", "form"),
        ("postgres://h:99999/d", "", "form"),
        ("postgres://h/d", "listen_url=mysql%3A%2F%2Fh", "listen_url"),
        ("postgres://h/d", "listen_url=postgres%3A%2F%2Fh%3Fa%3Db", "no parameters"),
        ("postgres://h/d", "polling=1", "sslrootcert"),
    ] {
        let error = database(url, parameters).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(part), "{error}");
    }
    for at_home in ["postgres://%2Ftmp%2Fpg/d", "postgres:///d", "postgres://u:@h/d"] {
        assert!(database(at_home, "").is_ok(), "{at_home}");
    }
    assert!(format!("{:?}", database("postgres://u:p@[::1]/d", "").unwrap()).contains("\"::1:5432/d\""));
    let capable = database("postgresql://h/d", "order=total").unwrap().capabilities();
    assert!(capable.resume && capable.repeats && capable.order == backplane_core::Order::Total);
}

#[test]
fn a_scheme_in_capital_letters_is_no_other() {
    for url in ["POSTGRES://h/d", "Postgresql://u:p,q@h:5433/d"] {
        assert!(database(url, "listen_url=Postgres%3A%2F%2Fh").is_ok(), "{url}");
    }
}
