//! The task that keeps the log short: one node at a time, in small steps, outside the path of messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backplane_core::{ErrorKind, Result};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::shared::{Phase, reached};
use super::within;
use crate::config::LogConfig;
use crate::store::{Database, Keeper, WriterId};

/// Longest time between two rounds.
const EVERY: Duration = Duration::from_secs(5);
/// How many rounds a lease lasts.
const TERM: u32 = 3;
/// Most rows of one step.
const STEP: u32 = 500;
/// How long a statement may take: nobody waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// First pause before another connection is opened, doubling up to the second.
const AGAIN_MIN: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// See the module. A failure costs its own connection only: the log grows meanwhile, and messages go on.
pub(super) struct KeeperTask {
    keeper: Box<dyn Keeper>,
    database: Arc<dyn Database>,
    me: WriterId,
    age: Duration,
    rows: u64,
    every: Duration,
    /// Whether this bus has complained already.
    warned: Arc<AtomicBool>,
    /// Dropped last: then the connection is gone.
    watch: watch::Receiver<Phase>,
}

impl KeeperTask {
    pub(super) fn new(
        keeper: Box<dyn Keeper>,
        database: Arc<dyn Database>,
        me: WriterId,
        config: &LogConfig,
        warned: Arc<AtomicBool>,
        watch: watch::Receiver<Phase>,
    ) -> Self {
        let every = EVERY.min(config.retention / 4);
        Self {
            keeper,
            database,
            me,
            age: config.retention,
            rows: config.retention_rows,
            every,
            warned,
            watch,
        }
    }

    /// Runs until the link ends.
    pub(super) async fn run(mut self) {
        let mut ended = self.watch.clone();
        tokio::select! {
            biased;
            () = reached(&mut ended, Phase::Ended) => {}
            () = self.serve() => {}
        }
    }

    async fn serve(&mut self) {
        let mut pause = AGAIN_MIN;
        loop {
            let Err(error) = self.keep(&mut pause).await;
            if self.warned.swap(true, Ordering::Relaxed) {
                tracing::debug!(%error, "the log is not kept short by this node for now");
            } else {
                tracing::warn!(%error, "the log is not kept short by this node for now; trying again");
            }
            loop {
                sleep(jittered(pause)).await;
                pause = (pause * 2).min(AGAIN_MAX);
                // The other connections of this attempt are closed again: it happens once in a while at most.
                match within(PATIENCE, "connect", self.database.open()).await {
                    Ok(opened) => {
                        self.keeper = opened.keeper;
                        break;
                    }
                    Err(error) => tracing::debug!(%error, "no connection to keep the log short"),
                }
            }
        }
    }

    async fn keep(&mut self, pause: &mut Duration) -> Result<std::convert::Infallible> {
        loop {
            sleep(jittered(self.every)).await;
            match self.round().await {
                Ok(()) => *pause = AGAIN_MIN,
                // A deadlock: nothing was done, the next round does it.
                Err(error) if error.kind() == ErrorKind::Overloaded => {
                    tracing::debug!(%error, "the log could not be trimmed right now");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the lead if nobody has it, and deletes until nothing is left to delete.
    async fn round(&mut self) -> Result<()> {
        let keeper = &mut self.keeper;
        while within(PATIENCE, "lead", keeper.lead(self.me, self.every * TERM)).await? {
            let renew = Instant::now() + self.every;
            while Instant::now() < renew {
                let trimmed = within(PATIENCE, "trim", keeper.trim(self.age, self.rows, STEP)).await?;
                if trimmed < u64::from(STEP) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Between four fifths and six fifths of `time`, so that nodes do not march in step.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * f64::from(super::random::<1>()[0]) / 255.0)
}
