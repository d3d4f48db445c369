//! One link over a log, whatever the database: three tasks that own a connection each, and the rules that make a table a
//! bus. `cursor` decides, the tasks carry out.

mod cursor;
#[cfg(test)]
mod fake;
mod frames;
mod gaps;
mod inbox;
mod interest;
mod keeper;
mod pace;
mod position;
mod reader;
mod sender;
mod shared;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backplane_core::{Attach, Error, ErrorKind, Limits, Link, Position, Result};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use self::cursor::Cursor;
use self::inbox::{Inbound, Inbox};
use self::interest::Interest;
pub(crate) use self::interest::topic_key;
use self::keeper::KeeperTask;
use self::pace::Pace;
use self::position::Floor;
use self::reader::{BELL_AGAIN_MIN, ReaderTask, Rows};
use self::sender::SqlSender;
use self::shared::Shared;
use self::writer::WriterTask;
use crate::config::{LogConfig, LogOrder};
use crate::store::{Database, Mark, Opened, Reader, Want, WriterId};

/// Longest pause between two looks while a doorbell works.
const BELL_PAUSE: Duration = Duration::from_secs(1);
/// Most changes of interest that wait for the reader; whoever brings more waits.
const MOST_CHANGES: usize = 1_024;

/// What all links of a bus remember together: complaints are made once.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    doorbell: Arc<AtomicBool>,
    keeper: Arc<AtomicBool>,
}

/// Opens one link: one attempt, within its deadline.
pub(crate) async fn connect(
    database: Arc<dyn Database>,
    config: &LogConfig,
    complaints: &Complaints,
    attach: Attach<'_>,
) -> Result<Link> {
    let opening = Box::pin(open(database, config, complaints, attach));
    timeout(attach.deadline, opening).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, "connect")
            .with_context(format!("the database did not let us in within {:?}", attach.deadline)))
    })
}

async fn open(
    database: Arc<dyn Database>,
    config: &LogConfig,
    complaints: &Complaints,
    attach: Attach<'_>,
) -> Result<Link> {
    let Opened { writer, mut reader, keeper, doorbell, max_frame } = database.open().await?;
    let (epoch, newest) = reader.newest().await?;
    let resumed = match attach.resume {
        Some(position) => resume(reader.as_mut(), &epoch, position).await?,
        None => None,
    };
    let start = resumed.or(newest).unwrap_or(Mark::place(0));

    let me = writer_id(&attach);
    let now = Instant::now();
    // A dead database is noticed by the first statement after a pause: both within the heartbeat bound.
    let patience = attach.heartbeat / 2;
    let pause = attach.heartbeat / 4;
    let doorbell = doorbell.filter(|_| config.doorbell);
    let has_bell = doorbell.is_some();
    let poll_max = config.poll_max.min(pause);
    let pace =
        Pace::new(config.poll_min.min(pause), poll_max, BELL_PAUSE.min(pause).max(poll_max), has_bell, now);

    let shared = Arc::new(Shared::new(Inbox::new(config.max_undelivered)));
    let (changes, change_queue) = mpsc::channel(MOST_CHANGES);
    let calls = config.doorbell && !has_bell;
    let mut reader = ReaderTask {
        reader,
        doorbell,
        shared: shared.clone(),
        changes: change_queue,
        may_change: true,
        waiting: Vec::new(),
        cursor: Cursor::new(epoch, start, config.hole_deadline, config.retention)
            .in_total_order(config.order == LogOrder::Total),
        interest: Interest::new(attach.topics),
        pace,
        patience,
        bound: config.max_undelivered,
        rows: Rows::default(),
        warned: complaints.doorbell.clone(),
        database: database.clone(),
        again: None,
        bell_pause: BELL_AGAIN_MIN,
        found: Vec::new(),
        pending: VecDeque::new(),
        brought: 0,
        full: false,
        kept: 0,
        run: Vec::new(),
        before: Floor::new(&epoch, start),
        anchor_bytes: 0,
        watch: shared.watch(),
    };
    if calls {
        reader.call_again();
    }
    let writer = WriterTask::new(writer, me, shared.clone(), patience, config.doorbell);
    let keeper = KeeperTask::new(keeper, database, me, config, complaints.keeper.clone(), shared.watch());
    // Their owner is `inbound`: dropping it ends all three. Each holds its watch until its connections are gone.
    tokio::spawn(writer.run());
    tokio::spawn(keeper.run());
    tokio::spawn(reader.run());
    let max_frame = max_frame.saturating_sub(frames::HEAD).min(config.max_frame);
    tracing::debug!(
        node = %attach.node,
        attempt = attach.attempt,
        topics = attach.topics.len(),
        start = start.id,
        resumed = resumed.is_some(),
        has_bell,
        "link to the log connected"
    );
    Ok(Link {
        sender: Arc::new(SqlSender { shared: shared.clone(), changes, max_frame }),
        inbound: Inbound::new(shared).boxed(),
        resumed: resumed.is_some(),
        limits: Limits { max_frame, reports_reach: false },
    })
}

/// Where to continue: the row that the position stands on, if this is still the same log and it is still there.
async fn resume(reader: &mut dyn Reader, epoch: &[u8; 16], position: &Position) -> Result<Option<Mark>> {
    let Some(floor) = Floor::of(position) else {
        tracing::debug!("cannot resume: not a position of this bus");
        return Ok(None);
    };
    if !floor.is_of(epoch) {
        tracing::info!("cannot resume: the log was installed anew");
        return Ok(None);
    }
    if floor.is_beginning() {
        // Nothing can be missing before the first row.
        let oldest = reader.bounds().await?.oldest;
        return Ok(matches!(oldest, None | Some(1)).then_some(Mark::place(0)));
    }
    let entries = reader.read(floor.id, floor.id, 1, Want::NoContent).await?;
    let row = entries.first().map(Mark::of).filter(|row| floor.stands_on(*row));
    if row.is_none() {
        tracing::info!(id = floor.id, "cannot resume: the row read last is no longer there");
    }
    Ok(row)
}

/// Of one attempt of a node, and of no other: even should a node's id come again after a restart.
fn writer_id(attach: &Attach<'_>) -> WriterId {
    let [.., high, low] = attach.attempt.to_be_bytes();
    let mut id = [0; 16];
    id[..6].copy_from_slice(attach.node.as_bytes());
    id[6..8].copy_from_slice(&[high, low]);
    id[8..].copy_from_slice(&random::<8>());
    WriterId(id)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system provides randomness");
    bytes
}

/// A call of the database within its time. An overrun counts as a broken connection, which nobody uses again.
async fn within<T>(
    bound: Duration,
    operation: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(bound, call).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Unavailable, operation)
            .with_context(format!("the database did not answer within {bound:?}")))
    })
}
