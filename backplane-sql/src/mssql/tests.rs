//! The seam on a real SQL Server, named by `BACKPLANE_TEST_MSSQL_URL`, whose user may create tables. Each test has a log of
//! its own, and removes it.

use std::time::Duration;

use backplane_conformance::broker::{Missing, given_url, missing};
use backplane_core::parameters::Parameters;
use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;

use super::options::Settings;
use super::session::Session;
use crate::store::{Content, Database, Entry, Opened, Row, Want, WriterId};

const DEADLINE: Duration = Duration::from_secs(30);

/// The server, with a log of the test's own that is not there yet.
struct Server {
    url: String,
    table: &'static str,
}

impl Server {
    async fn require(table: &'static str) -> Option<Self> {
        let Some(url) = given_url("mssql") else {
            missing("mssql", &Missing { program: "SQL Server (named by BACKPLANE_TEST_MSSQL_URL)".into() });
            return None;
        };
        let server = Self { url, table };
        server.remove("").await;
        Some(server)
    }

    /// Removes the log and the one whose name goes on with `more`.
    async fn remove(&self, more: &str) {
        let table = self.table;
        self.run(&format!(
            "DROP TABLE IF EXISTS {table}_log; DROP TABLE IF EXISTS {table}_meta; \
             DROP TABLE IF EXISTS {table}{more}_log; DROP TABLE IF EXISTS {table}{more}_meta"
        ))
        .await;
    }

    fn url(&self, parameters: &str) -> String {
        let joint = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{joint}{parameters}", self.url)
    }

    async fn open(&self, parameters: &str) -> Opened {
        open(&self.url(&format!("table={}&{parameters}", self.table))).await.unwrap()
    }

    /// A session of somebody else.
    async fn session(&self) -> Session {
        let (address, mut parameters) = Parameters::of(&self.url).unwrap();
        Session::open(&Settings::read(address, &mut parameters).unwrap()).await.unwrap()
    }

    async fn run(&self, statements: &str) {
        self.session().await.batch(statements).await.unwrap();
    }
}

macro_rules! server {
    ($table:literal) => {
        match Server::require(concat!("backplane_test_", $table)).await {
            Some(server) => server,
            None => return,
        }
    };
}

fn database(url: &str) -> Result<std::sync::Arc<dyn Database>> {
    Ok(crate::url::open(url, crate::LogConfig::default())?.0)
}

async fn open(url: &str) -> Result<Opened> {
    tokio::time::timeout(DEADLINE, database(url)?.open()).await.expect("it opens in time")
}

async fn refused(url: &str) -> Error {
    match open(url).await {
        Ok(_) => panic!("{url} is let in"),
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
    let many: Vec<i64> = (0..256).collect();
    let same = log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&many, usize::MAX)).await.unwrap();
    assert_eq!(same[1..3], wanted[1..3]);
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
    let server = server!("rows");
    for parameters in ["", "order=total", "durability=relaxed", "order=total&durability=relaxed"] {
        let mut log = server.open(parameters).await;
        writes_and_reads(&mut log).await;
        assert!(log.doorbell.is_none());
        drop(log);
        server.remove("").await;
    }
}

#[tokio::test]
async fn topics_are_bytes() {
    let server = server!("topics");
    let mut log = server.open("").await;
    let topics = [&b"room"[..], b"Room", b"room ", b"", b"\0'\"\\\xff", &[b'x'; 70_000]].map(Topic::new);
    let rows: Vec<_> = (1..)
        .zip(&topics)
        .map(|(seq, topic)| Row { seq, topic: topic.clone(), key: 1, frames: Bytes::new() })
        .collect();
    log.writer.append(A, &rows).await.unwrap();
    let read = log.reader.read(0, i64::MAX, 100, Want::Keys(&[1], usize::MAX)).await.unwrap();
    assert!(read.iter().map(|entry| content(entry).0).eq(&topics));
    server.remove("").await;
}

#[tokio::test]
async fn frames_of_many_mebibytes_pass() {
    let server = server!("large");
    let mut log = server.open("").await;
    for (seq, size) in [(1, 7_999), (2, 8_000), (3, 8_001), (4, 16 << 20)] {
        let frames: Bytes = (0..size).map(|place: u32| place.to_be_bytes()[2]).collect::<Vec<u8>>().into();
        log.writer.append(A, &[row(seq, 1, frames.clone())]).await.unwrap();
        let read = log.reader.read_writer(A, seq, seq, 1, Want::Keys(&[1], usize::MAX)).await.unwrap();
        assert!(content(&read[0]).1 == &frames, "{size} bytes");
    }
    server.remove("").await;
}

#[tokio::test]
async fn ten_that_install_at_once_find_one_log() {
    let server = server!("ten");
    let nodes = (0..10).map(|_| async {
        let mut log = server.open("").await;
        log.reader.bounds().await
    });
    let bounds = futures::future::try_join_all(nodes).await.unwrap();
    assert!(bounds.iter().all(|one| one.epoch == bounds[0].epoch));
    assert_ne!(bounds[0].epoch, [0; 16]);
    server.remove("").await;
}

#[tokio::test]
async fn a_schema_is_made_and_used() {
    let server = server!("schema");
    let clear = "DROP TABLE IF EXISTS backplane_test.chat_log; DROP TABLE IF EXISTS backplane_test.chat_meta; \
                 DROP SCHEMA IF EXISTS backplane_test";
    server.run(clear).await;
    let mut log = open(&server.url("schema=backplane_test&table=chat")).await.unwrap();
    log.writer.append(A, &[row(1, 1, "x")]).await.unwrap();
    drop(open(&server.url("schema=backplane_test&table=chat&create=false")).await.unwrap());
    drop(log);
    server.run(clear).await;
}

#[tokio::test]
async fn an_operator_installs_it_and_other_formats_are_refused() {
    let server = server!("format");
    let missing = server.url(&format!("table={}&create=false", server.table));
    let error = refused(&missing).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("schema/mssql.sql"), "{error}");

    let script = include_str!("../../schema/mssql.sql").replace("backplane_", &format!("{}_", server.table));
    server.run(&script).await;
    server.run(&script).await;
    let first = open(&missing).await.unwrap().reader.bounds().await.unwrap();
    server.run(&format!("UPDATE {}_meta SET version = 3", server.table)).await;
    let error = refused(&missing).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("format 3"), "{error}");
    server.run(&format!("DELETE FROM {}_meta", server.table)).await;
    assert_eq!(refused(&missing).await.kind(), ErrorKind::InvalidConfig);
    server.remove("").await;
    let second = server.open("").await.reader.bounds().await.unwrap();
    assert_ne!(first.epoch, second.epoch);
    server.remove("").await;
}

#[tokio::test]
async fn in_total_order_no_row_appears_below_one_that_was_there() {
    let server = server!("ordered");
    let mut reader = server.open("order=total").await;
    let mut writers = Vec::new();
    for number in 1..=4 {
        let mut log = server.open("order=total").await;
        writers.push(tokio::spawn(async move {
            let me = WriterId([number; 16]);
            for batch in 0..20 {
                let rows: Vec<_> = (1..=5).map(|seq| row(batch * 5 + seq, 1, "x")).collect();
                log.writer.append(me, &rows).await.unwrap();
            }
        }));
    }
    let mut seen: Vec<Entry> = Vec::new();
    while seen.len() < 400 {
        let now = everything(&mut reader).await;
        assert!(now.starts_with(&seen), "a row came late");
        seen = now;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    // Batches are not mixed either.
    assert!(seen.chunks(5).all(|batch| batch.iter().all(|entry| entry.writer == batch[0].writer)));
    server.remove("").await;
}

#[tokio::test]
async fn writers_side_by_side_keep_the_order_within_each() {
    let server = server!("beside");
    let mut writers = Vec::new();
    let mut reader = server.open("").await;
    for number in 1..=4 {
        let mut log = server.open("").await;
        writers.push(tokio::spawn(async move {
            let me = WriterId([number; 16]);
            for batch in 0..20 {
                let rows: Vec<_> = (1..=20).map(|seq| row(batch * 20 + seq, 1, "x")).collect();
                log.writer.append(me, &rows).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let all = everything(&mut reader).await;
    assert_eq!(all.len(), 1_600);
    for number in 1..=4 {
        let own = all.iter().filter(|entry| entry.writer == WriterId([number; 16]));
        assert!(own.map(|entry| entry.seq).eq(1..=400));
    }
    server.remove("").await;
}

#[tokio::test]
async fn a_lock_that_is_not_granted_is_worth_another_try() {
    for order in ["publisher", "total"] {
        let server = server!("held");
        let mut log = server.open(&format!("order={order}")).await;
        let mut other = server.session().await;
        // The same row, not committed yet; and the row about the log, which gives writers their turn.
        let table = server.table;
        let hold = format!(
            "BEGIN TRANSACTION; UPDATE {table}_meta SET turn = turn + 1; \
             INSERT INTO {table}_log (writer, seq, [key], topic, frames) \
             VALUES (0x0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a, 1, 1, 0x, 0x)"
        );
        other.batch(&hold).await.unwrap();
        let rows = [row(1, 1, "x"), row(2, 1, "y")];
        let error = log.writer.append(A, &rows).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        other.batch("ROLLBACK TRANSACTION").await.unwrap();
        log.writer.append(A, &rows).await.unwrap();
        assert_eq!(everything(&mut log).await.len(), 2);
        server.remove("").await;
    }
}

#[tokio::test]
async fn a_statement_that_is_given_up_takes_its_connection_along() {
    let server = server!("given_up");
    let mut log = server.open("order=total").await;
    let mut other = server.session().await;
    other
        .batch(&format!("BEGIN TRANSACTION; UPDATE {}_meta SET turn = turn + 1", server.table))
        .await
        .unwrap();
    let rows = [row(1, 1, "x")];
    let waits = tokio::time::timeout(Duration::from_millis(300), log.writer.append(A, &rows));
    assert!(waits.await.is_err());
    let error = log.writer.append(A, &rows).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    other.batch("ROLLBACK TRANSACTION").await.unwrap();
    // The others have their own.
    log.reader.bounds().await.unwrap();
    drop(log);
    server.remove("").await;
}

#[tokio::test]
async fn the_oldest_rows_go_and_the_ones_that_readers_know_stay() {
    let server = server!("trimmed");
    let mut log = server.open("").await;
    let minute = Duration::from_secs(60);
    assert_eq!(log.keeper.trim(minute, 1_000, 10).await.unwrap(), 0);
    let rows: Vec<_> = (1..=20).map(|seq| row(seq, 1, "x")).collect();
    log.writer.append(A, &rows).await.unwrap();
    let age = async |seqs: &str| {
        let old = "SET at = DATEADD(minute, -2, SYSUTCDATETIME()) WHERE seq";
        server.run(&format!("UPDATE {}_log {old} {seqs}", server.table)).await;
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
    assert_eq!(log.keeper.trim(minute, 1_000, 500).await.unwrap(), 8);
    assert_eq!(left(&mut log).await, [20], "the newest of all is kept");
    server.remove("").await;
}

#[tokio::test]
async fn one_node_leads_until_its_lease_ends() {
    let server = server!("led");
    let mut one = server.open("").await;
    let mut two = server.open("").await;
    let term = Duration::from_secs(60);
    assert!(one.keeper.lead(A, term).await.unwrap());
    assert!(!two.keeper.lead(B, term).await.unwrap());
    assert!(one.keeper.lead(A, term).await.unwrap());
    server.run(&format!("UPDATE {}_meta SET lease_until = SYSUTCDATETIME()", server.table)).await;
    assert!(two.keeper.lead(B, term).await.unwrap());
    assert!(!one.keeper.lead(A, term).await.unwrap());
    // Granted before the clock went back.
    let late = "lease_until = DATEADD(day, 2, SYSUTCDATETIME())";
    server.run(&format!("UPDATE {}_meta SET {late}", server.table)).await;
    assert!(one.keeper.lead(A, term).await.unwrap());
    server.remove("").await;
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let server = server!("denied");
    let (address, query) = server.url.split_once('?').unwrap_or((&server.url, ""));
    let mut wrong = url::Url::parse(address).unwrap();
    wrong.set_password(Some("guess")).unwrap();
    let error = refused(&format!("{wrong}?{query}")).await;
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(!format!("{error} {error:?}").contains("guess"), "{error:?}");
    let mut elsewhere = url::Url::parse(address).unwrap();
    elsewhere.set_path("backplane_test_no_such_database");
    let error = refused(&format!("{elsewhere}?{query}")).await;
    assert!(matches!(error.kind(), ErrorKind::InvalidConfig | ErrorKind::Denied), "{error}");
}

#[tokio::test]
async fn nobody_at_the_port_is_unavailable() {
    let port = backplane_conformance::broker::free_port().unwrap();
    let error = refused(&format!("mssql://u:p@127.0.0.1:{port}/d")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn a_connection_string_says_what_a_url_says() {
    let shown = |url: &str| format!("{:?}", database(url).unwrap());
    let url = shown("sqlserver://us%40er:pa%2Fss@db.example:1444/my%20base?encrypt=false&application_name=x");
    assert!(
        url.contains("db.example:1444/my base") && !url.contains("us@er") && !url.contains("pa/ss"),
        "{url}"
    );
    for text in [
        "Server=tcp:db.example,1444;Database=my base;User Id=us@er;Password='pa/ss;?'",
        "Data Source=db.example,1444;Initial Catalog=my base;uid=us@er;pwd=pa/ss?",
        "Server=tcp:db.example,1444;Initial Catalog=my base;Persist Security Info=False;User ID=us@er;Password=pa/ss;\
         MultipleActiveResultSets=False;Encrypt=True;TrustServerCertificate=False;Connection Timeout=30;",
    ] {
        assert_eq!(shown(text), url);
    }
    assert!(shown("Server=.;Database=d;User Id=u;Encrypt=Optional").contains("localhost:1433/d"));
    for local in
        ["mssql://u:p@[::1]/d", "Server=[::1];Database=d;User Id=u", "Server=::1;Database=d;User Id=u"]
    {
        assert!(shown(local).contains("::1:1433/d"), "{local}");
    }
    let capable = database("mssql://u:p@h/d?order=total").unwrap().capabilities();
    assert!(capable.resume && capable.repeats && capable.order == backplane_core::Order::Total);
}

#[test]
fn an_authority_is_read_at_once_whatever_its_file_is_called() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("ca.cer", &b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"[..]),
        ("ca", &[0x30, 0x82, 0x01, 0x00]),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let url = format!("mssql://u:p@h/d?trust_server_certificate_ca={}", file.display());
        assert!(database(&url).is_ok(), "{name}");
    }
}

#[test]
fn what_cannot_work_is_refused_before_it_connects() {
    for (url, part) in [
        ("mssql://u:secret@h:x/d", "form"),
        ("mssql://u:secret@h", "no database"),
        ("mssql://h/d", "no user"),
        ("mssql://u:secret@h/d?encrypt=maybe", "encrypt"),
        ("mssql://u:secret@h/d?polling=1", "hostname_in_certificate"),
        ("mssql://u:secret@h/d?trust_server_certificate=true&trust_server_certificate_ca=a", "not both"),
        ("mssql://u:secret@h/d?trust_server_certificate_ca=no-such-file.pem", "no-such-file.pem"),
        ("mssql://u:secret@h/d?trust_server_certificate_ca=Cargo.toml", "holds no certificate"),
        ("mssql://u:secret@h/d?trust_server_certificate_ca=MIIsecret", "names a file"),
        ("Server=h;Database=d;User Id=u;TrustServerCertificateCA=no-such-file.pem", "no-such-file.pem"),
        ("Server=h;Database=d;User Id=u;Password=secret;Colour=red", "unknown name"),
        ("Server=h;Database=d;User Id=u;Password=top;secret=1", "unknown name"),
        ("Server=h;Database=d;User Id=u;Password=top;secret=1;secret=2", "twice"),
        ("mssql://u:secret@h,1433/d", "behind a colon"),
        ("mssql://u:secret@a:1,b:2/d", "several servers"),
        ("mssql://u:secret@h;Password=secret/d", "behind `?`"),
        ("mssql://u:secret@h:0/d", "port"),
        ("mssql://:secret@h/d", "is empty"),
        ("mssql://u:@h/d", "is empty"),
        ("mssql://@h/d", "are empty"),
        ("mssql://:@h/d", "are empty"),
        ("Server=h;Database=d;User Id=;Password=secret", "no user"),
        ("Server=h;Database=d;User Id=u;Password=", "is empty"),
        ("Server=h,0;Database=d;User Id=u;Password=secret", "port"),
        ("Server='h;Password=secret';Database=d;User Id=u", "form"),
        ("Server=h;Database=d;User Id=u;Password=secret;pwd=secret", "twice"),
        ("Server=h\\SQLEXPRESS;Database=d;User Id=u;Password=secret", "instance"),
        ("Server=h,x;Database=d;User Id=u;Password=secret", "form"),
        ("Server=h;Database=d;Integrated Security=SSPI", "not supported"),
        ("Server=h;Database=d;Trusted_Connection=maybe", "True"),
        ("Server=h;Database=d;User Id=u;Password=secret;Encrypt=Strict", "Strict"),
        ("Server=h;Database=d;User Id=u;Password=secret;ApplicationIntent=ReadOnly", "ReadWrite"),
        (
            "Server=h;Database=d;User Id=u;Password=secret;Authentication=ActiveDirectoryDefault",
            "SqlPassword",
        ),
    ] {
        let error = database(url).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(part), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}
