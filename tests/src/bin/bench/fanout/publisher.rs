//! The publishing process: bare or ours, flat out or paced, never further ahead of the slowest client than a window.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use backplane::Acceptance;
use backplane_signalr::Recipients;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

use super::record::{self, METHOD, Text};
use super::{CHANNEL, hub};
use crate::part::{Cue, Side};
use crate::{Result, bare, machine};

/// Messages whose acceptance is outstanding; of the bare loop the length of its pipelines.
const OUTSTANDING: usize = 512;

/// How far the publisher may be ahead of the slowest client, in messages: room to batch, and within the bounds of an
/// outbound queue (16,384 messages, 4 MiB), so that neither server has a reason to wait or to disconnect.
const WINDOW: u64 = 8_192;

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) url: String,
    pub(crate) side: Side,
    pub(crate) duration: Duration,
    /// Messages per second; `None`: flat out.
    pub(crate) pace: Option<u32>,
    /// Where the clients tell how far all of them are.
    pub(crate) progress: SocketAddr,
}

/// What it did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// Messages, the end not counted.
    pub(crate) messages: u64,
    pub(crate) processor: Duration,
}

/// Publishes, and the end.
pub(crate) async fn publish(task: Task, cue: Cue) -> Result<Sent> {
    let mut publisher = match task.side {
        Side::Bare => Publisher::Bare(bare::connection(&task.url).await?),
        Side::Ours => {
            let server = hub::open(&task.url).await?;
            Publisher::Ours { all: server.clients().all(), outstanding: VecDeque::with_capacity(OUTSTANDING) }
        }
    };
    let window = Window::open(task.progress).await?;
    cue.ready().await?;
    let before = machine::processor_time()?;
    let messages = match task.pace {
        None => flat_out(&mut publisher, window, task.duration).await?,
        Some(pace) => paced(&mut publisher, pace, task.duration).await?,
    };
    publisher.publish(messages, 1, Text::End).await?;
    publisher.settle().await?;
    Ok(Sent { messages, processor: machine::processor_time()? - before })
}

async fn flat_out(publisher: &mut Publisher, mut window: Window, duration: Duration) -> Result<u64> {
    let until = Instant::now() + duration;
    let mut sent = 0;
    while Instant::now() < until {
        window.wait_for_room(sent + OUTSTANDING as u64).await?;
        publisher.publish(sent, OUTSTANDING, Text::Plain).await?;
        sent += OUTSTANDING as u64;
    }
    Ok(sent)
}

async fn paced(publisher: &mut Publisher, pace: u32, duration: Duration) -> Result<u64> {
    let mut ticks = interval(Duration::from_secs(1) / pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let until = Instant::now() + duration;
    let mut sent = 0;
    while Instant::now() < until {
        ticks.tick().await;
        publisher.publish(sent, 1, Text::Sent(record::monotonic())).await?;
        publisher.settle().await?;
        sent += 1;
    }
    Ok(sent)
}

enum Publisher {
    Bare(redis::aio::MultiplexedConnection),
    Ours { all: Recipients, outstanding: VecDeque<Acceptance> },
}

impl Publisher {
    /// Publishes `count` messages from the number `first` on: a pipeline that is awaited, or so many posts, of which
    /// 512 are left outstanding.
    async fn publish(&mut self, first: u64, count: usize, text: Text) -> Result<()> {
        let numbers = (first..).take(count);
        match self {
            Self::Bare(connection) => {
                let mut pipeline = redis::Pipeline::with_capacity(count);
                for number in numbers {
                    pipeline.cmd("PUBLISH").arg(CHANNEL).arg(&record::encoded(number, text)[..]).ignore();
                }
                pipeline.exec_async(connection).await?;
            }
            Self::Ours { all, outstanding } => {
                for number in numbers {
                    if outstanding.len() == OUTSTANDING
                        && let Some(oldest) = outstanding.pop_front()
                    {
                        oldest.await?;
                    }
                    outstanding.push_back(all.post(METHOD, record::arguments(number, text))?);
                }
            }
        }
        Ok(())
    }

    /// Awaits what is outstanding.
    async fn settle(&mut self) -> Result<()> {
        if let Self::Ours { outstanding, .. } = self {
            for acceptance in outstanding.drain(..) {
                acceptance.await?;
            }
        }
        Ok(())
    }
}

/// How far the slowest client is, as the clients' process tells.
#[derive(Debug)]
struct Window {
    reports: BufReader<TcpStream>,
    /// How many messages every client has received.
    received: u64,
}

impl Window {
    async fn open(progress: SocketAddr) -> Result<Self> {
        Ok(Self { reports: BufReader::new(TcpStream::connect(progress).await?), received: 0 })
    }

    /// Waits until `sent` messages are not too many.
    async fn wait_for_room(&mut self, sent: u64) -> Result<()> {
        while sent > self.received + WINDOW {
            self.received = self.reports.read_u64().await?;
        }
        Ok(())
    }
}
