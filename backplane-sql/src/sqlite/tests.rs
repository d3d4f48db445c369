//! The seam on files, from one process and from several.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result, Topic};
use bytes::Bytes;
use futures::FutureExt as _;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, SqliteConnection};
use tempfile::TempDir;

use super::fault::fault;
use crate::store::{Content, Database, Entry, Opened, Row, Want, WriterId};

const DEADLINE: Duration = Duration::from_secs(20);

/// Where the child processes of these tests find the file.
const FILE: &str = "BACKPLANE_TEST_SQLITE_FILE";

const A: WriterId = WriterId([0xa; 16]);
const B: WriterId = WriterId([0xb; 16]);

struct Stage {
    folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("log.db")
    }

    fn database(&self, parameters: &str) -> Result<Arc<dyn Database>> {
        let url = format!("sqlite:{}?{parameters}", self.path().display());
        crate::url::open(&url, crate::LogConfig::default()).map(|(database, _)| database)
    }

    async fn open(&self, parameters: &str) -> Result<Opened> {
        tokio::time::timeout(DEADLINE, self.database(parameters)?.open()).await.expect("it opens in time")
    }

    async fn refused(&self, parameters: &str) -> Error {
        match self.open(parameters).await {
            Ok(_) => panic!("{parameters} is let in"),
            Err(error) => error,
        }
    }

    async fn foreign(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.path()).connect().await.unwrap()
    }
}

fn row(seq: i64, key: i64, frames: impl Into<Bytes>) -> Row {
    Row { seq, topic: Topic::from(format!("topic.{key}")), key, frames: frames.into() }
}

fn content(entry: &Entry) -> (&Topic, &Bytes) {
    let Content { topic, frames } = entry.content.as_ref().expect("its content was wanted");
    (topic, frames)
}

async fn everything(log: &mut Opened) -> Vec<Entry> {
    log.reader.read(i64::MIN, i64::MAX, 100_000, Want::NoContent).await.unwrap()
}

async fn rings(log: &mut Opened) -> Result<()> {
    let rang = log.doorbell.as_mut().unwrap().rang();
    tokio::time::timeout(DEADLINE, rang).await.expect("it rings in time")
}

/// How the doorbell ends, after whatever rang before.
async fn breaks(log: &mut Opened) -> Error {
    loop {
        if let Err(error) = rings(log).await {
            return error;
        }
    }
}

#[tokio::test]
async fn rows_are_written_once_and_read_as_they_are_wanted() {
    for parameters in ["", "durability=relaxed&order=total", "table=backplane_meta"] {
        let stage = Stage::new();
        let mut log = stage.open(parameters).await.unwrap();
        let empty = log.reader.bounds().await.unwrap();
        assert_eq!((empty.oldest, empty.newest), (None, None));
        assert!(everything(&mut log).await.is_empty());

        let any: Vec<u8> = (0..=255).collect();
        let rows = [row(1, -5, any.clone()), row(2, 7, vec![1; 3 << 20]), row(3, 7, "")];
        log.writer.append(A, &rows).await.unwrap();
        // Again, as after an answer that got lost, with one that is new.
        log.writer.append(A, &[rows[1].clone(), rows[2].clone(), row(4, i64::MIN, "four")]).await.unwrap();
        log.writer.append(B, &[row(1, i64::MAX, "other")]).await.unwrap();
        let all = everything(&mut log).await;
        let seen: Vec<_> = all.iter().map(|entry| (entry.writer, entry.seq, entry.key)).collect();
        assert_eq!(seen, [(A, 1, -5), (A, 2, 7), (A, 3, 7), (A, 4, i64::MIN), (B, 1, i64::MAX)]);
        assert!(
            all.is_sorted_by(|one, next| one.id < next.id) && all.iter().all(|entry| entry.content.is_none())
        );

        let bounds = log.reader.bounds().await.unwrap();
        let newest = bounds.newest.unwrap();
        assert_eq!((bounds.epoch, bounds.oldest), (empty.epoch, Some(all[0].id)));
        assert_eq!((newest.id, newest.writer, newest.seq), (all[4].id, B, 1));

        let keys = [-5, 7, 99, i64::MIN, i64::MAX];
        let wanted = log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&keys, usize::MAX)).await.unwrap();
        assert!(wanted.iter().all(|entry| entry.content.is_some()));
        let wanted =
            log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&keys[..3], usize::MAX)).await.unwrap();
        assert_eq!(content(&wanted[0]), (&Topic::from("topic.-5"), &Bytes::from(any)));
        assert_eq!(content(&wanted[1]).1.len(), 3 << 20);
        assert_eq!(content(&wanted[2]).1, "");
        assert!(wanted[3].content.is_none() && wanted[4].content.is_none());
        // What is larger than wanted is left out.
        let fits = log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&[-5, 7], 3 << 20)).await.unwrap();
        assert_eq!(fits, wanted);
        let fits =
            log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&[-5, 7], (3 << 20) - 1)).await.unwrap();
        assert!(fits[0] == wanted[0] && fits[1] == all[1] && fits[2] == wanted[2]);
        let fits = log.reader.fetch(&[all[1].id, all[4].id], 5).await.unwrap();
        assert_eq!(fits.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [all[4].id]);
        assert_eq!(
            log.reader.read(all[0].id, all[4].id, 100, Want::Keys(&[], usize::MAX)).await.unwrap(),
            all
        );
        assert_eq!(log.reader.read(all[1].id, all[3].id, 2, Want::NoContent).await.unwrap(), all[1..3]);

        assert_eq!(
            log.reader.read_writer(A, 2, 3, 100, Want::Keys(&[7], usize::MAX)).await.unwrap(),
            wanted[1..3]
        );
        assert_eq!(log.reader.read_writer(A, 1, i64::MAX, 2, Want::NoContent).await.unwrap(), all[..2]);
        assert!(log.reader.read_writer(B, 2, 9, 10, Want::NoContent).await.unwrap().is_empty());

        let mut fetched =
            log.reader.fetch(&[all[4].id, all[0].id, all[4].id + 1_000], usize::MAX).await.unwrap();
        fetched.sort_by_key(|(id, _)| *id);
        assert_eq!(fetched.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [all[0].id, all[4].id]);
        assert_eq!(fetched[1].1.frames, "other");

        let rows: Vec<_> = (2..=513).map(|seq| row(seq, seq, vec![0; 128])).collect();
        log.writer.append(B, &rows).await.unwrap();
        let read = log.reader.read(newest.id + 1, i64::MAX, 1_000, Want::NoContent).await.unwrap();
        assert!(read.iter().map(|entry| entry.seq).eq(2..=513));
        // Through a statement of more rows, which must not remember what it was used for before.
        let after = read.last().unwrap().id + 1;
        let rows: Vec<_> = (514..=613).map(|seq| row(seq, seq, "short")).collect();
        log.writer.append(B, &rows).await.unwrap();
        let rows: Vec<_> = (614..=1_200).map(|seq| row(seq, seq, "long")).collect();
        log.writer.append(B, &rows).await.unwrap();
        let read = log.reader.read(after, i64::MAX, 1_000, Want::NoContent).await.unwrap();
        assert!(read.iter().map(|entry| (entry.writer, entry.seq)).eq((514..=1_200).map(|seq| (B, seq))));
        log.writer.ring().await.unwrap();
    }
}

#[tokio::test]
async fn frames_of_many_mebibytes_pass() {
    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    let frames = Bytes::from(vec![0xc3; 64 << 20]);
    log.writer.append(A, &[row(1, 1, frames.clone())]).await.unwrap();
    let read = log.reader.read(0, i64::MAX, 1, Want::Keys(&[1], usize::MAX)).await.unwrap();
    assert!(content(&read[0]).1 == &frames);
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_it_connects() {
    for (url, part) in [
        ("sqlite::memory:", "`memory:`"),
        ("sqlite:", "name of a file"),
        ("sqlite:///", "name of a file"),
        ("sqlite:folder/", "name of a file"),
        ("sqlite:file:a.db", "URI"),
        ("sqlite:a%00b", "name of a file"),
        ("sqlite:a%ff", "UTF-8"),
        ("sqlite:a.db?schema=x", "schema"),
        ("sqlite:a.db?mode=ro", "no parameter `mode`"),
    ] {
        let error = crate::url::open(url, crate::LogConfig::default()).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(part), "{url}: {error}");
    }
    let here = std::env::current_dir().unwrap();
    for (url, path) in [
        ("sqlite:a%20b.db", here.join("a b.db")),
        ("sqlite://a.db", here.join("a.db")),
        ("sqlite:///x/a.db", Path::new("/x/a.db").to_owned()),
        ("sqlite:/x/a.db", Path::new("/x/a.db").to_owned()),
    ] {
        assert_eq!(super::path_of(url).unwrap(), path);
    }
    let capable = Stage::new().database("").unwrap().capabilities();
    assert!(capable.resume && capable.repeats && capable.order == backplane_core::Order::Total);
}

#[tokio::test]
async fn ten_that_install_at_once_find_one_log() {
    for _ in 0..5 {
        let stage = Stage::new();
        let nodes = (0..10).map(|_| async { stage.open("").await?.reader.bounds().await });
        let bounds = futures::future::try_join_all(nodes).await.unwrap();
        assert!(bounds.iter().all(|one| one.epoch == bounds[0].epoch));
        assert_ne!(bounds[0].epoch, [0; 16]);
    }
}

#[tokio::test]
async fn an_operator_installs_it_and_another_format_is_refused() {
    let stage = Stage::new();
    let error = stage.refused("create=false").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("schema/sqlite.sql") && !stage.path().exists(), "{error}");
    let mut operator =
        SqliteConnectOptions::new().filename(stage.path()).create_if_missing(true).connect().await.unwrap();
    assert_eq!(stage.refused("create=false").await.kind(), ErrorKind::InvalidConfig);
    for _ in 0..2 {
        operator.execute(sqlx::raw_sql(include_str!("../../schema/sqlite.sql"))).await.unwrap();
    }
    let mut log = stage.open("create=false").await.unwrap();
    log.writer.append(A, &[row(1, 1, "x")]).await.unwrap();
    assert_eq!(stage.refused("create=false&table=other").await.kind(), ErrorKind::InvalidConfig);
    operator.execute("UPDATE backplane_meta SET version = 3").await.unwrap();
    let error = stage.refused("").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("format 3"), "{error}");
    operator.execute("DELETE FROM backplane_meta").await.unwrap();
    assert_eq!(stage.refused("").await.kind(), ErrorKind::InvalidConfig);
    operator.execute("DROP TABLE backplane_log").await.unwrap();
    assert_eq!(log.writer.append(A, &[row(2, 1, "x")]).await.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

#[tokio::test]
async fn the_doorbell_rings_for_each_other_connection_of_this_process_too() {
    let stage = Stage::new();
    let mut one = stage.open("").await.unwrap();
    let mut two = stage.open("").await.unwrap();
    for seq in 1..=20 {
        // Its own writer is another connection: it hears itself, as the self-test needs it.
        one.writer.append(A, &[row(seq, 1, "x")]).await.unwrap();
        rings(&mut one).await.unwrap();
        rings(&mut two).await.unwrap();
        two.writer.append(B, &[row(seq, 1, "x")]).await.unwrap();
        rings(&mut one).await.unwrap();
        rings(&mut two).await.unwrap();
    }
    // Whoever stops waiting in between misses nothing.
    for seq in 21..=40 {
        let _ = one.doorbell.as_mut().unwrap().rang().now_or_never();
        two.writer.append(B, &[row(seq, 1, "x")]).await.unwrap();
        rings(&mut one).await.unwrap();
    }
    assert!(stage.open("doorbell=false").await.unwrap().doorbell.is_none());
}

#[tokio::test]
async fn a_file_that_is_replaced_or_deleted_ends_the_link_and_the_next_has_another_epoch() {
    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    log.writer.append(A, &[row(1, 1, "x")]).await.unwrap();
    rings(&mut log).await.unwrap();
    let before = log.reader.bounds().await.unwrap();
    std::fs::remove_file(stage.path()).unwrap();
    assert_eq!(breaks(&mut log).await.kind(), ErrorKind::Unavailable);
    let error = log.writer.append(A, &[row(2, 1, "x")]).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Unavailable, false), "{error}");
    assert_eq!(log.reader.bounds().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(log.reader.fetch(&[1], usize::MAX).await.unwrap_err().kind(), ErrorKind::Unavailable);

    // The old link still holds the old file; the new one is not harmed by its end.
    let mut next = stage.open("").await.unwrap();
    let after = next.reader.bounds().await.unwrap();
    assert!(after.epoch != before.epoch && after.newest.is_none());
    next.writer.append(B, &[row(1, 1, "y")]).await.unwrap();
    drop(log);
    next.writer.append(B, &[row(2, 1, "y")]).await.unwrap();
    assert_eq!(everything(&mut next).await.len(), 2);

    let other = Stage::new();
    drop(other.open("").await.unwrap());
    std::fs::rename(other.path(), stage.path()).unwrap();
    assert!(breaks(&mut next).await.to_string().contains("replaced"));
    assert_eq!(next.reader.read(1, 9, 9, Want::NoContent).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn who_connects_while_the_last_one_leaves_is_not_refused() {
    let stage = Stage::new();
    drop(stage.open("").await.unwrap());
    // As long as it writes the log back, the last one to leave lets nobody in: longer here than a statement waits.
    let mut leaves = stage.foreign().await;
    leaves.execute("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; COMMIT").await.unwrap();
    let left = async {
        // How long it takes.
        tokio::time::sleep(Duration::from_millis(400)).await;
        leaves.close().await.unwrap();
    };
    let (log, ()) = tokio::join!(stage.open(""), left);
    assert!(everything(&mut log.unwrap()).await.is_empty());
}

#[tokio::test]
async fn a_writer_that_is_kept_waiting_is_told_to_try_again() {
    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    let mut foreign = stage.foreign().await;
    foreign.execute("BEGIN IMMEDIATE").await.unwrap();
    let start = Instant::now();
    let rows = [row(1, 1, "x")];
    let error = log.writer.append(A, &rows).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(!log.keeper.lead(A, DEADLINE).await.unwrap());
    assert_eq!(log.keeper.trim(DEADLINE, 1_000, 10).await.unwrap(), 0);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(everything(&mut log).await.is_empty(), "who reads does not wait");
    foreign.execute("COMMIT").await.unwrap();
    log.writer.append(A, &rows).await.unwrap();
    assert_eq!(everything(&mut log).await.len(), 1);
}

#[tokio::test]
async fn a_foreign_reader_stops_nobody() {
    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    let mut foreign = stage.foreign().await;
    foreign.execute("BEGIN; SELECT count(*) FROM backplane_log").await.unwrap();
    for seq in 1..=10 {
        log.writer.append(A, &[row(seq, 1, "x")]).await.unwrap();
        rings(&mut log).await.unwrap();
    }
    assert_eq!(everything(&mut log).await.len(), 10);
    assert!(log.keeper.lead(A, DEADLINE).await.unwrap());
    assert!(log.keeper.trim(Duration::ZERO, 1_000, 10).await.unwrap() > 0);
}

#[tokio::test]
async fn many_writers_lose_nothing_and_no_row_appears_late() {
    let stage = Stage::new();
    let mut writers = Vec::new();
    for number in 1..=4 {
        let mut log = stage.open("durability=relaxed&doorbell=false").await.unwrap();
        writers.push(tokio::spawn(async move {
            for batch in 0..50 {
                let rows: Vec<_> = (1..=5).map(|seq| row(batch * 5 + seq, 1, "x")).collect();
                while let Err(error) = log.writer.append(WriterId([number; 16]), &rows).await {
                    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
                }
            }
        }));
    }
    let mut reader = stage.open("").await.unwrap();
    let mut seen = everything(&mut reader).await;
    while seen.len() < 1_000 {
        rings(&mut reader).await.unwrap();
        let now = everything(&mut reader).await;
        assert!(now.starts_with(&seen), "a row came late");
        seen = now;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(seen.chunks(5).all(|batch| batch.iter().all(|entry| entry.writer == batch[0].writer)));
}

#[tokio::test]
async fn the_oldest_rows_go_and_the_ones_that_readers_know_stay() {
    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    let mut foreign = stage.foreign().await;
    let minute = Duration::from_secs(60);
    assert_eq!(log.keeper.trim(minute, 1_000, 10).await.unwrap(), 0);
    let rows: Vec<_> = (1..=20).map(|seq| row(seq, 1, "x")).collect();
    log.writer.append(A, &rows).await.unwrap();
    let mut age = async |seqs: &str| {
        let old = format!("UPDATE backplane_log SET at = at - 120000 WHERE seq {seqs}");
        foreign.execute(sqlx::AssertSqlSafe(old)).await.unwrap();
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
    age("<= 20").await;
    assert!(log.keeper.lead(A, minute).await.unwrap());
    assert_eq!(log.keeper.trim(minute, 1_000, 100).await.unwrap(), 10);
    assert_eq!(left(&mut log).await, [20], "the newest of all is kept");
    // Numbers are not given again.
    log.writer.append(B, &[row(1, 1, "x")]).await.unwrap();
    assert_eq!(everything(&mut log).await[1].id, 21);
}

#[tokio::test]
async fn one_node_leads_until_its_lease_ends() {
    let stage = Stage::new();
    let mut one = stage.open("").await.unwrap();
    let mut two = stage.open("").await.unwrap();
    let mut foreign = stage.foreign().await;
    let minute = Duration::from_secs(60);
    assert!(one.keeper.lead(A, minute).await.unwrap());
    assert!(!two.keeper.lead(B, minute).await.unwrap());
    assert!(one.keeper.lead(A, minute).await.unwrap());
    foreign.execute("UPDATE backplane_meta SET lease_until = lease_until - 60001").await.unwrap();
    assert!(two.keeper.lead(B, minute).await.unwrap());
    assert!(!one.keeper.lead(A, minute).await.unwrap());
    // Granted before the clock went back.
    foreign.execute("UPDATE backplane_meta SET lease_until = lease_until + 86400000").await.unwrap();
    assert!(one.keeper.lead(A, minute).await.unwrap());
}

#[tokio::test]
async fn a_long_write_ahead_log_is_cut_back_by_the_leader() {
    let stage = Stage::new();
    let mut log = stage.open("durability=relaxed").await.unwrap();
    // As long as somebody reads what was there before, it can only grow.
    let mut foreign = stage.foreign().await;
    foreign.execute("BEGIN; SELECT count(*) FROM backplane_log").await.unwrap();
    log.writer.append(A, &[row(1, 1, vec![7; 80 << 20])]).await.unwrap();
    let wal = stage.folder.path().join("log.db-wal");
    assert!(log.keeper.lead(A, DEADLINE).await.unwrap());
    assert!(wal.metadata().unwrap().len() > 80 << 20);
    foreign.execute("COMMIT").await.unwrap();
    assert!(log.keeper.lead(A, DEADLINE).await.unwrap());
    assert_eq!(wal.metadata().unwrap().len(), 0);
    log.writer.append(A, &[row(2, 1, "x")]).await.unwrap();
    assert_eq!(everything(&mut log).await.len(), 2);
}

#[tokio::test]
async fn what_is_wrong_with_a_file_is_said() {
    let stage = Stage::new();
    std::fs::write(stage.path(), vec![b'?'; 10_000]).unwrap();
    let error = stage.refused("").await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("no SQLite database"), "{error}");

    let missing = format!("sqlite:{}/missing/log.db", stage.folder.path().display());
    let (database, _) = crate::url::open(&missing, crate::LogConfig::default()).unwrap();
    let error = database.open().await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("folder"), "{error}");

    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    let mut full = stage.foreign().await;
    full.execute("PRAGMA max_page_count = 8").await.unwrap();
    let large =
        "INSERT INTO backplane_log (writer, seq, key, topic, frames) VALUES ('', 1, 1, '', zeroblob(100000))";
    let error = fault("publish", full.execute(large).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("full"), "{error}");

    let rows: Vec<_> = (1..=500).map(|seq| row(seq, 1, vec![1; 1_000])).collect();
    log.writer.append(A, &rows).await.unwrap();
    full.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    drop(log);
    drop(full);
    let mut bytes = std::fs::read(stage.path()).unwrap();
    bytes[4_096..].fill(0x5a);
    std::fs::write(stage.path(), bytes).unwrap();
    let error = match stage.open("").await {
        Ok(mut log) => log.reader.read(1, 500, 500, Want::Keys(&[1], usize::MAX)).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("damaged"), "{error}");
}

/// Runs a test of this module, one of those below, in a process of its own.
fn process(name: &str, stage: &Stage) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", &format!("sqlite::tests::{name}")])
        .env(FILE, stage.folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn stage_of_parent() -> Option<Stage> {
    let folder = std::env::var_os(FILE)?;
    // The parent removes it: the value that stands for it here must not.
    let stage = Stage { folder: tempfile::TempDir::new_in(folder).unwrap() };
    Some(stage)
}

fn parents_path(stage: &Stage) -> std::path::PathBuf {
    stage.folder.path().parent().unwrap().join("log.db")
}

async fn open_at(path: &Path) -> Opened {
    let url = format!("sqlite:{}", path.display());
    crate::url::open(&url, crate::LogConfig::default()).unwrap().0.open().await.unwrap()
}

#[tokio::test]
#[ignore = "run by another test as a process of its own"]
async fn a_process_that_writes() {
    let Some(stage) = stage_of_parent() else { return };
    let mut log = open_at(&parents_path(&stage)).await;
    let me = WriterId(u128::from(std::process::id()).to_be_bytes());
    for seq in 1..=200 {
        while let Err(error) = log.writer.append(me, &[row(seq, 1, "x")]).await {
            assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
        }
    }
}

#[tokio::test]
#[ignore = "run by another test as a process of its own"]
async fn a_process_that_stays_in_a_transaction() {
    let Some(stage) = stage_of_parent() else { return };
    let mut connection = SqliteConnectOptions::new().filename(parents_path(&stage)).connect().await.unwrap();
    let write = "BEGIN IMMEDIATE; INSERT INTO backplane_log (writer, seq, key, topic, frames) VALUES ('', 1, 1, '', '')";
    connection.execute(write).await.unwrap();
    println!("in it");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn processes_share_a_file() {
    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    let children: Vec<_> = (0..3).map(|_| process("a_process_that_writes", &stage)).collect();
    let mut seen: Vec<Entry> = Vec::new();
    while seen.len() < 600 {
        rings(&mut log).await.unwrap();
        let now = everything(&mut log).await;
        assert!(now.starts_with(&seen), "a row came late");
        seen = now;
    }
    for (mut child, output) in children {
        // Read to its end, so that the child can write all of it.
        assert!(output.lines().all(|line| !line.unwrap().contains("FAILED")));
        assert!(child.wait().unwrap().success());
    }
}

#[tokio::test]
async fn a_process_killed_inside_a_transaction_leaves_nothing_of_it() {
    let stage = Stage::new();
    let mut log = stage.open("").await.unwrap();
    let (mut child, output) = process("a_process_that_stays_in_a_transaction", &stage);
    let in_it =
        tokio::task::spawn_blocking(move || output.lines().any(|line| line.unwrap().ends_with("in it")));
    assert!(in_it.await.unwrap());
    let rows = [row(1, 1, "x")];
    assert_eq!(log.writer.append(A, &rows).await.unwrap_err().kind(), ErrorKind::Overloaded);
    child.kill().unwrap();
    child.wait().unwrap();
    log.writer.append(A, &rows).await.unwrap();
    rings(&mut log).await.unwrap();
    let left = everything(&mut log).await;
    assert_eq!(left.iter().map(|entry| entry.writer).collect::<Vec<_>>(), [A]);
}
