//! Noticing that somebody wrote.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, Result};
use sqlx::Row as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::fault::fault;
use super::file::LogFile;
use super::session::{Session, query};
use crate::store::Doorbell;

/// How often the number is looked at: while rows come, and the longer nothing came the less often.
const BUSY: Duration = Duration::from_millis(1);
const CALM: Duration = Duration::from_millis(3);
const IDLE: Duration = Duration::from_millis(10);

/// Until when after the last ring it counts as busy, and as calm.
const BUSY_UNTIL: Duration = Duration::from_millis(100);
const CALM_UNTIL: Duration = Duration::from_secs(1);

/// Rings when another connection, of this process or another one, committed: SQLite changes a number then.
///
/// A task looks at it, which ends with this value. It rests while a ring waits to be heard.
pub(super) struct SqliteDoorbell {
    rings: mpsc::Receiver<Result<()>>,
    looking: JoinHandle<()>,
}

impl SqliteDoorbell {
    /// Rings for what is committed from now on.
    pub(super) async fn listen(session: Session, file: Arc<LogFile>) -> Result<Self> {
        let mut number = Number { session, statement: "PRAGMA data_version".into(), file, heard: 0 };
        number.heard = number.look().await?;
        let (ring, rings) = mpsc::channel(1);
        let looking = tokio::spawn(async move {
            if let Err(error) = number.watch(&ring).await {
                // Whoever waits is told; nobody left to be told is no matter.
                let _ = ring.send(Err(error)).await;
            }
        });
        Ok(Self { rings, looking })
    }

    pub(super) fn boxed(self) -> Box<dyn Doorbell> {
        Box::new(self)
    }
}

#[async_trait]
impl Doorbell for SqliteDoorbell {
    async fn rang(&mut self) -> Result<()> {
        let closed = || Err(Error::new(ErrorKind::Closed, "listen"));
        self.rings.recv().await.unwrap_or_else(closed)
    }
}

impl Drop for SqliteDoorbell {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

/// The number, and as what it was seen last.
struct Number {
    session: Session,
    statement: Arc<str>,
    file: Arc<LogFile>,
    heard: i64,
}

impl Number {
    /// Rings whenever it changed, for as long as anybody can hear.
    async fn watch(&mut self, ring: &mpsc::Sender<Result<()>>) -> Result<()> {
        let mut last = Instant::now();
        loop {
            let Ok(room) = ring.reserve().await else { return Ok(()) };
            let number = self.look().await?;
            if number != self.heard {
                self.heard = number;
                last = Instant::now();
                room.send(Ok(()));
                continue;
            }
            drop(room);
            let pause = match last.elapsed() {
                quiet if quiet < BUSY_UNTIL => BUSY,
                quiet if quiet < CALM_UNTIL => CALM,
                _ => IDLE,
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&mut self) -> Result<i64> {
        self.file.check("listen")?;
        let row = self.session.row(query(&self.statement)).await;
        row.and_then(|row| row.try_get(0)).map_err(|error| fault("listen", error))
    }
}
