//! A process of somebody else that writes into a SQLite log and does not come to an end: it holds the file's lock until it
//! is killed.

use std::process::Stdio;
use std::time::Duration;

use backplane_conformance::bound;
use backplane_tests::sql::{Database, Session};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Names the file to that process.
const FILE: &str = "BACKPLANE_TEST_LOCKED_FILE";

/// The test that is that process.
const TEST: &str = "in_a_process_of_its_own";

/// What it says once it holds the lock and has written.
const HELD: &str = "held";

/// The writer of its rows.
const WRITER: &str = "x'ee'";

/// How long it may wait for the lock.
const LOCKED: Duration = Duration::from_secs(10);

/// See the module. Ends when dropped, and when this process dies.
pub(crate) struct Locker(Child);

impl Locker {
    /// The lock is held, and rows are written, when this returns.
    pub(crate) async fn start(database: &Database) -> Self {
        let Database::Sqlite(file) = database else { panic!("{} has no lock of a file", database.name()) };
        let own = std::env::current_exe().expect("a running program has a path");
        let mut process = Command::new(own)
            .args([TEST, "--exact", "--ignored", "--nocapture"])
            .env(FILE, file.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this program can be started once more");
        let mut said = BufReader::new(process.stderr.take().expect("it was piped")).lines();
        let held = async {
            while let Some(line) = said.next_line().await.expect("its words can be read") {
                if line == HELD {
                    return;
                }
            }
            panic!("it ended before it held the lock");
        };
        tokio::time::timeout(bound(LOCKED), held).await.expect("it gets the lock in time");
        Self(process)
    }

    /// Ends it at once (SIGKILL), inside its transaction.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.expect("it runs");
    }
}

/// How many rows of its writing are in the log.
pub(crate) async fn rows_of(database: &Database) -> i64 {
    database.number(&format!("SELECT count(*) FROM backplane_log WHERE writer = {WRITER}")).await
}

/// What that process does. Returns at once in any other.
pub(crate) async fn hold() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let mut session = Session::open_file(path.as_ref()).await;
    session.run("BEGIN IMMEDIATE").await;
    // More than the cache holds, so that pages of it lie in the write-ahead log.
    let rows = format!(
        "PRAGMA cache_size = 10; \
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 500) \
         INSERT INTO backplane_log (writer, seq, key, topic, frames) SELECT {WRITER}, n, n, x'00', zeroblob(4096) FROM n"
    );
    session.run(&rows).await;
    eprintln!("{HELD}");
    // Until whoever started it dies, if it is not killed before.
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    let _ = end.await;
}
