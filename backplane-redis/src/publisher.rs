//! The publishing connection: packs frames into as few writes as possible and reads the replies in bulk.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::heartbeat::{Beat, Heartbeat};
use crate::refusal::refusal;
use crate::resp::{self, Parsed, Value};
use crate::shared::{Batch, Outcomes, Shared};
use crate::socket::Socket;

/// Packed bytes are written when there are this many, or no more frames.
const WRITE: usize = 64 << 10;
/// A frame from this size on is written from where it lies instead of being copied.
const DIRECT: usize = 32 << 10;
/// Reads per turn of the task, so that the other connection gets its turn.
const READS: usize = 16;
const INPUT: usize = 16 << 10;

pub(crate) struct Publisher {
    socket: Socket,
    shared: Arc<Shared>,
    pub(crate) heartbeat: Heartbeat,
    /// Whether an integer reply is the whole reach: not on a cluster node.
    reports_reach: bool,
    /// Batches of which nothing is packed yet.
    queue: VecDeque<Batch>,
    /// The rest of the batch that is being packed; it is the last one in `expected`.
    packing: std::vec::IntoIter<Outgoing>,
    /// Whose replies come next, in the order of the commands.
    expected: VecDeque<Expected>,
    out: Vec<u8>,
    written: usize,
    /// Follows `out`, and is followed by CRLF.
    direct: Bytes,
    unflushed: bool,
    input: BytesMut,
}

enum Expected {
    Batch(InFlight),
    Pong,
}

struct InFlight {
    frames: usize,
    bytes: usize,
    outcomes: Outcomes,
    /// `None` once it is overdue: the replies are still to be read.
    done: Option<oneshot::Sender<Outcomes>>,
    deadline: Instant,
}

impl Publisher {
    pub(crate) fn new(
        socket: Socket,
        shared: Arc<Shared>,
        heartbeat: Heartbeat,
        reports_reach: bool,
    ) -> Self {
        Self {
            socket,
            shared,
            heartbeat,
            reports_reach,
            queue: VecDeque::new(),
            packing: Vec::new().into_iter(),
            expected: VecDeque::new(),
            out: Vec::with_capacity(WRITE + DIRECT),
            written: 0,
            direct: Bytes::new(),
            unflushed: false,
            input: BytesMut::with_capacity(2 * INPUT),
        }
    }

    pub(crate) fn accept(&mut self, batches: VecDeque<Batch>) {
        if self.queue.is_empty() {
            self.queue = batches;
        } else {
            self.queue.extend(batches);
        }
    }

    /// Whether every frame has its outcome.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.expected.iter().all(|entry| matches!(entry, Expected::Pong))
    }

    /// Writes and reads what can be without waiting. Whether to be called again at once.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Err(broken(error));
        }
        for _ in 0..READS {
            self.input.reserve(INPUT);
            match self.socket.poll_fill(cx, &mut self.input) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(broken(error)),
                Poll::Ready(Ok(_)) => {
                    self.heartbeat.heard(Instant::now());
                    self.read()?;
                }
            }
        }
        Ok(true)
    }

    /// Ready when all is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        loop {
            if self.written < self.out.len() {
                self.written += ready!(Pin::new(&mut self.socket).poll_write(cx, &self.out[self.written..]))?;
                self.unflushed = true;
                continue;
            }
            self.out.clear();
            self.written = 0;
            if !self.direct.is_empty() {
                let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.direct))?;
                self.direct.advance(written);
                if self.direct.is_empty() {
                    self.direct = Bytes::new();
                    self.out.extend_from_slice(b"\r\n");
                    self.pack();
                }
                continue;
            }
            if !self.pack() {
                break;
            }
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Fills `out` (which is empty or ends a frame) with the next frames. Whether there were any.
    fn pack(&mut self) -> bool {
        while self.out.len() < WRITE {
            let Some(Outgoing { topic, frame }) = self.packing.next() else {
                let Some(batch) = self.queue.pop_front() else { break };
                self.expected.push_back(Expected::Batch(InFlight {
                    frames: batch.frames.len(),
                    bytes: batch.bytes,
                    outcomes: Vec::with_capacity(batch.frames.len()),
                    done: Some(batch.done),
                    deadline: batch.deadline,
                }));
                self.packing = batch.frames.into_iter();
                continue;
            };
            resp::pack_publish(&mut self.out, topic.as_bytes(), frame.len());
            if frame.len() >= DIRECT {
                self.direct = frame;
                return true;
            }
            self.out.extend_from_slice(&frame);
            self.out.extend_from_slice(b"\r\n");
        }
        !self.out.is_empty()
    }

    fn read(&mut self) -> Result<()> {
        let mut at = 0;
        loop {
            match resp::parse(&self.input[at..]) {
                Ok(Parsed::Incomplete | Parsed::Begun { .. }) => break,
                Ok(Parsed::Value(value, length)) => {
                    at += length;
                    let outcome = match value {
                        Value::Integer(reach) => Ok(match u32::try_from(reach) {
                            Ok(reach) if self.reports_reach => Reach::Nodes(reach),
                            _ => Reach::Unknown,
                        }),
                        Value::Error(line) => Err(refusal("publish", line)),
                        Value::Pong => {
                            self.heartbeat.answered();
                            match self.expected.pop_front() {
                                Some(Expected::Pong) => continue,
                                _ => return Err(out_of_step()),
                            }
                        }
                        Value::Push => continue,
                        _ => return Err(out_of_step()),
                    };
                    settle(&mut self.expected, &self.shared, &mut self.heartbeat, outcome)?;
                }
                Err(error) => return Err(Error::new(ErrorKind::Unavailable, "publish").with_source(error)),
            }
        }
        self.input.advance(at);
        Ok(())
    }

    /// Asks whether the server lives, if it is time; an error if it is dead.
    pub(crate) fn beat(&mut self, now: Instant) -> Result<()> {
        match self.heartbeat.beat(now) {
            Beat::Wait => Ok(()),
            Beat::Dead => Err(silent("publishing")),
            Beat::Ask => {
                // Only between frames: while bytes of a frame wait to be written they are question enough.
                if self.direct.is_empty() && self.packing.as_slice().is_empty() {
                    redis::cmd("PING").write_packed_command(&mut self.out);
                    self.expected.push_back(Expected::Pong);
                } else {
                    self.heartbeat.answered();
                }
                Ok(())
            }
        }
    }

    /// Answers batches that are overdue; their replies are still awaited by the connection.
    pub(crate) fn expire(&mut self, now: Instant) {
        for entry in &mut self.expected {
            let Expected::Batch(batch) = entry else { continue };
            if batch.deadline > now {
                break;
            }
            if let Some(done) = batch.done.take() {
                let missing = batch.frames - batch.outcomes.len();
                let error = Error::new(ErrorKind::Timeout, "publish")
                    .with_context("the server did not answer in time")
                    .with_outcome_unknown();
                let mut outcomes = std::mem::take(&mut batch.outcomes);
                outcomes.extend(std::iter::repeat_n(Err(error), missing));
                let _ = done.send(outcomes);
                // What was answered so far is no longer in `outcomes`: count on with what is missing.
                self.shared.load.batch_answered(0, batch.frames - missing);
                batch.frames = missing;
            }
        }
        // What could not even be packed has reached nobody, and never will.
        while self.queue.front().is_some_and(|batch| batch.deadline <= now) {
            let Some(batch) = self.queue.pop_front() else { break };
            let error = Error::new(ErrorKind::Timeout, "publish")
                .with_context("the server took nothing in time; it was not sent");
            refuse(&self.shared, batch, &error);
        }
    }

    /// The earliest deadline of a batch.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.expected
            .iter()
            .find_map(|entry| match entry {
                Expected::Batch(batch) if batch.done.is_some() => Some(batch.deadline),
                _ => None,
            })
            .or_else(|| self.queue.front().map(|batch| batch.deadline))
    }

    /// The link has ended: every frame gets its outcome. `error` is for those that may have reached the server.
    pub(crate) fn end(&mut self, error: &Error) {
        // Frames that were never packed reached nobody.
        let mut unsent = self.packing.len();
        self.packing = Vec::new().into_iter();
        let unknown = error.clone().with_outcome_unknown();
        while let Some(entry) = self.expected.pop_back() {
            let Expected::Batch(mut batch) = entry else { continue };
            // Only the last batch can have frames that are not packed.
            let unsent = std::mem::take(&mut unsent);
            let missing = batch.frames - batch.outcomes.len();
            batch.outcomes.extend(std::iter::repeat_n(Err(unknown.clone()), missing - unsent.min(missing)));
            batch.outcomes.extend(std::iter::repeat_n(Err(error.clone()), unsent.min(missing)));
            self.shared.load.batch_answered(batch.bytes, batch.frames);
            if let Some(done) = batch.done {
                let _ = done.send(batch.outcomes);
            }
        }
        for batch in self.queue.drain(..) {
            refuse(&self.shared, batch, error);
        }
    }

    /// Ends our direction of the connection and awaits that the server ends its own: then it has freed it.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        poll_shutdown(&mut self.socket, &mut self.input, cx)
    }
}

/// Answers a batch that was never packed.
pub(crate) fn refuse(shared: &Shared, batch: Batch, error: &Error) {
    shared.load.batch_answered(batch.bytes, batch.frames.len());
    let outcomes = batch.frames.iter().map(|_| Err(error.clone())).collect();
    let _ = batch.done.send(outcomes);
}

/// Gives the next reply to whom it belongs.
#[inline]
fn settle(
    expected: &mut VecDeque<Expected>,
    shared: &Shared,
    heartbeat: &mut Heartbeat,
    outcome: Result<Reach>,
) -> Result<()> {
    match expected.front_mut() {
        Some(Expected::Batch(batch)) => {
            batch.outcomes.push(outcome);
            if batch.outcomes.len() < batch.frames {
                return Ok(());
            }
            if let Some(Expected::Batch(batch)) = expected.pop_front() {
                shared.load.batch_answered(batch.bytes, batch.frames);
                if let Some(done) = batch.done {
                    // Nobody may be waiting any more.
                    let _ = done.send(batch.outcomes);
                }
            }
            Ok(())
        }
        // A refused PING: the server lives.
        Some(Expected::Pong) if outcome.is_err() => {
            heartbeat.answered();
            expected.pop_front();
            Ok(())
        }
        _ => match outcome {
            Err(refused) => Err(Error::new(ErrorKind::Unavailable, "publish")
                .with_context(refused.context().unwrap_or_default().to_owned())),
            Ok(_) => Err(out_of_step()),
        },
    }
}

/// Shuts a connection down in order; what still arrives is thrown away. Errors end it as well.
pub(crate) fn poll_shutdown(socket: &mut Socket, input: &mut BytesMut, cx: &mut Context<'_>) -> Poll<()> {
    if ready!(Pin::new(&mut *socket).poll_shutdown(cx)).is_err() {
        return Poll::Ready(());
    }
    loop {
        input.clear();
        input.reserve(INPUT);
        if ready!(socket.poll_fill(cx, input)).is_err() {
            return Poll::Ready(());
        }
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "link")
        .with_context("the publishing connection broke")
        .with_source(error)
}

fn out_of_step() -> Error {
    Error::new(ErrorKind::Unavailable, "link")
        .with_context("the server sent a reply that no command asked for")
}

/// The error of a connection that its heartbeat gave up.
pub(crate) fn silent(which: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "link")
        .with_context(format!("the server was silent on the {which} connection for the heartbeat bound"))
}
