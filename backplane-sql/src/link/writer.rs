//! The task that appends: merges what is queued into statements, one in flight, and rings.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Result, Topic};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::frames::{HEAD, Packing};
use super::shared::{Batch, Phase, Shared, reached, stopped};
use super::{topic_key, within};
use crate::store::{Row, Writer, WriterId};

/// Most rows of a statement, and most bytes of what they hold; a single larger frame passes.
const MOST_ROWS: usize = 512;
const MOST_BYTES: usize = 1 << 20;
/// Shortest time between two rings.
const RING_EVERY: Duration = Duration::from_millis(1);
/// First pause before rows are appended again that the database could not take right now, doubling up to the second.
const AGAIN_MIN: Duration = Duration::from_millis(1);
const AGAIN_MAX: Duration = Duration::from_millis(50);

/// See the module.
pub(super) struct WriterTask {
    writer: Box<dyn Writer>,
    id: WriterId,
    shared: Arc<Shared>,
    /// How long a statement may take, repetitions included.
    patience: Duration,
    /// What is not answered yet, in order.
    batches: VecDeque<Batch>,
    rows: Vec<Row>,
    seq: i64,
    rings: bool,
    rang: Option<Instant>,
    /// When to ring for what was appended.
    ring_at: Option<Instant>,
    /// Dropped last: then the connection is gone.
    watch: watch::Receiver<Phase>,
}

impl WriterTask {
    /// `rings`: others may listen.
    pub(super) fn new(
        writer: Box<dyn Writer>,
        id: WriterId,
        shared: Arc<Shared>,
        patience: Duration,
        rings: bool,
    ) -> Self {
        let watch = shared.watch();
        Self {
            writer,
            id,
            shared,
            patience,
            batches: VecDeque::new(),
            rows: Vec::new(),
            seq: 0,
            rings,
            rang: None,
            // Once for ourselves: so we learn whether our doorbell works.
            ring_at: rings.then(Instant::now),
            watch,
        }
    }

    /// Runs until the link ends, and ends it when the writer fails or, closing, is done.
    pub(super) async fn run(mut self) {
        let (mut ended, mut closing) = (self.watch.clone(), self.watch.clone());
        tokio::select! {
            biased;
            () = reached(&mut ended, Phase::Ended) => {}
            how = self.serve(&mut closing) => self.shared.end(how),
        }
    }

    async fn serve(&mut self, watch: &mut watch::Receiver<Phase>) -> Result<()> {
        let shared = self.shared.clone();
        loop {
            // Before the queue is looked at: what is queued until then is taken.
            let closing = *watch.borrow_and_update() >= Phase::Closing;
            shared.take(&mut self.batches);
            self.fill();
            if !self.rows.is_empty() {
                self.append().await?;
                self.settle();
                if self.rings {
                    let earliest = self.rang.map_or_else(Instant::now, |rang| rang + RING_EVERY);
                    self.ring_at.get_or_insert(earliest);
                }
            }
            if self.ring_at.is_some_and(|at| closing || at <= Instant::now()) {
                self.ring().await?;
            }
            if !self.batches.is_empty() {
                continue;
            }
            if closing {
                return Ok(());
            }
            let ring_at = self.ring_at;
            tokio::select! {
                () = shared.queued.notified() => {}
                () = async { sleep_until(ring_at.expect("guarded")).await }, if ring_at.is_some() => {}
                () = reached(watch, Phase::Closing) => {}
            }
        }
    }

    /// Makes the rows of the next statement: what follows upon each other to one topic shares a row, where it is small.
    fn fill(&mut self) {
        let mut bytes = 0;
        let mut open: Option<(Topic, Packing)> = None;
        'full: for batch in &mut self.batches {
            while let Some(Outgoing { topic, frame }) = batch.frames.as_slice().first() {
                let size = HEAD + frame.len();
                if open.is_some() && bytes + size > MOST_BYTES {
                    break 'full;
                }
                match &mut open {
                    Some((same, packing)) if same == topic && packing.fits(frame.len()) => packing.add(frame),
                    _ => {
                        if let Some((topic, packing)) = open.take() {
                            push(&mut self.rows, &mut self.seq, topic, packing);
                        }
                        if self.rows.len() >= MOST_ROWS {
                            break 'full;
                        }
                        open = Some((topic.clone(), Packing::new(frame)));
                    }
                }
                bytes += size;
                batch.in_flight += 1;
                batch.frames.next();
            }
        }
        if let Some((topic, packing)) = open {
            push(&mut self.rows, &mut self.seq, topic, packing);
        }
    }

    /// Appends the rows, again and again while the database cannot take them right now.
    async fn append(&mut self) -> Result<()> {
        let (writer, id, rows) = (&mut self.writer, self.id, &self.rows);
        let appended = async {
            let mut pause = AGAIN_MIN;
            loop {
                match writer.append(id, rows).await {
                    Err(error) if error.kind() == ErrorKind::Overloaded => {
                        tracing::debug!(%error, rows = rows.len(), "rows could not be appended right now");
                    }
                    outcome => return outcome,
                }
                sleep(pause).await;
                pause = (pause * 2).min(AGAIN_MAX);
            }
        };
        within(self.patience, "append", appended).await
    }

    /// The statement is committed.
    fn settle(&mut self) {
        self.rows.clear();
        for batch in &mut self.batches {
            if batch.in_flight == 0 {
                break;
            }
            batch.accepted += std::mem::take(&mut batch.in_flight);
        }
        while self.batches.front().is_some_and(|batch| batch.frames.len() == 0) {
            if let Some(batch) = self.batches.pop_front() {
                self.shared.answer(batch, None, None);
            }
        }
    }

    async fn ring(&mut self) -> Result<()> {
        self.ring_at = None;
        within(self.patience, "ring", self.writer.ring()).await?;
        self.rang = Some(Instant::now());
        Ok(())
    }
}

/// However it stops: what it has taken is answered, and the link ends.
impl Drop for WriterTask {
    fn drop(&mut self) {
        self.shared.end(Err(stopped()));
        let gone = self.shared.lost("publish");
        let unknown = gone.clone().map(Error::with_outcome_unknown);
        for batch in self.batches.drain(..) {
            self.shared.answer(batch, unknown.as_ref(), gone.as_ref());
        }
    }
}

/// The next row, with its number.
fn push(rows: &mut Vec<Row>, seq: &mut i64, topic: Topic, packing: Packing) {
    *seq += 1;
    let key = topic_key(topic.as_bytes());
    rows.push(Row { seq: *seq, topic, key, frames: packing.finish() });
}
