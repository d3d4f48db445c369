//! The byte stream under an AMQP connection: joins small writes, notes when the peer was last heard, and can be cut.
//!
//! The protocol engine flushes after each of its frames. Here a flush only marks that bytes wait; they are written when
//! the engine has nothing more to send and turns to reading, or when there are many. And an engine that waits for a
//! frozen peer cannot be stopped from outside: [`LineState::cut`] makes its next read or write fail.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Written at once from here on.
const WRITE: usize = 64 << 10;
/// Most bytes that wait to be written; then the engine waits.
const MAX_WAITING: usize = 256 << 10;

/// What is known of a line from outside.
#[derive(Debug)]
pub(super) struct LineState {
    opened: Instant,
    /// Milliseconds after `opened` since when the engine waits for the peer; [`NOT_WAITING`] while it does not.
    waiting: AtomicU64,
    /// How often something was heard.
    heard: AtomicU64,
    listeners: Notify,
    cut: AtomicBool,
    engine: AtomicWaker,
}

const NOT_WAITING: u64 = u64::MAX;

impl LineState {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            waiting: AtomicU64::new(NOT_WAITING),
            heard: AtomicU64::new(0),
            listeners: Notify::new(),
            cut: AtomicBool::new(false),
            engine: AtomicWaker::new(),
        })
    }

    /// How long the peer has kept us waiting. Zero while we do not listen because we are busy ourselves.
    pub(super) fn silence(&self) -> Duration {
        match self.waiting.load(Ordering::Relaxed) {
            NOT_WAITING => Duration::ZERO,
            since => self.opened.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }

    /// How often something was heard.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Returns when something was heard more often than `before`.
    pub(super) async fn heard_after(&self, before: u64) {
        loop {
            let mut more = pin!(self.listeners.notified());
            more.as_mut().enable();
            if self.heard() > before {
                return;
            }
            more.await;
        }
    }

    /// Breaks the line: whoever reads or writes fails.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.engine.wake();
    }

    fn note_heard(&self) {
        self.waiting.store(NOT_WAITING, Ordering::Relaxed);
        self.heard.fetch_add(1, Ordering::Release);
        self.listeners.notify_waiters();
    }

    fn note_waiting(&self) {
        if self.waiting.load(Ordering::Relaxed) == NOT_WAITING {
            let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NOT_WAITING - 1);
            self.waiting.store(since, Ordering::Relaxed);
        }
    }

    /// Fails once the line was cut; else whoever cuts it wakes the task of `cx`.
    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        self.engine.register(cx.waker());
        if self.cut.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the line was cut"));
        }
        Ok(())
    }
}

/// See the module. Both halves belong to one task.
#[derive(Debug)]
pub(super) struct Line<S> {
    stream: S,
    state: Arc<LineState>,
    out: BytesMut,
    /// Bytes were added since the last turn to reading: more may follow at once.
    growing: bool,
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    pub(super) fn new(stream: S, state: Arc<LineState>) -> Self {
        Self { stream, state, out: BytesMut::new(), growing: false, unflushed: false }
    }

    /// Ready when nothing waits to be written.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Line<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.state.check(cx)?;
        if self.growing {
            // The engine looks at its branches in random order: only a turn without a new frame shows that there is none.
            self.growing = false;
            cx.waker().wake_by_ref();
        } else if let Poll::Ready(Err(error)) = self.poll_out(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        if Pin::new(&mut self.stream).poll_read(cx, buffer)?.is_pending() {
            self.state.note_waiting();
            return Poll::Pending;
        }
        if buffer.filled().len() > before {
            self.state.note_heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.state.check(cx)?;
        if self.out.len() >= WRITE && self.poll_out(cx)?.is_pending() && self.out.len() >= MAX_WAITING {
            // The engine does not read meanwhile.
            self.state.note_waiting();
            return Poll::Pending;
        }
        self.out.extend_from_slice(bytes);
        self.growing = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.check(cx)?;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.check(cx)?;
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn small_writes_leave_as_one_when_the_writer_turns_to_reading() {
        let (near, mut far) = duplex(1 << 20);
        let state = LineState::new();
        let mut line = Line::new(near, state.clone());
        for _ in 0..10 {
            line.write_all(b"frame").await.unwrap();
            line.flush().await.unwrap();
        }
        let mut first = [0; 5];
        assert!(futures::poll!(Box::pin(far.read_exact(&mut first))).is_pending(), "nothing left yet");
        let mut answer = [0; 2];
        let (arrived, answered) = tokio::join!(
            async {
                let mut all = [0; 50];
                let length = far.read(&mut all).await.unwrap();
                far.write_all(b"ok").await.unwrap();
                length
            },
            line.read_exact(&mut answer)
        );
        answered.unwrap();
        assert_eq!((arrived, &answer), (50, b"ok"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_keeps_us_waiting_too() {
        let (near, _far) = duplex(1 << 10);
        let state = LineState::new();
        let mut line = Line::new(near, state.clone());
        let bytes = vec![0; 2 * MAX_WAITING];
        line.write_all(&bytes).await.unwrap();
        let mut writing = Box::pin(line.write_all(&bytes));
        assert!(futures::poll!(&mut writing).is_pending());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(state.silence(), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_cut_line_fails_whoever_waits_for_it() {
        let (near, _far) = duplex(1 << 20);
        let state = LineState::new();
        let mut line = Line::new(near, state.clone());
        let mut buffer = [0; 1];
        let mut reading = Box::pin(line.read(&mut buffer));
        assert!(futures::poll!(&mut reading).is_pending());
        state.cut();
        assert_eq!(reading.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_only_what_the_peer_keeps_us_waiting() {
        let (near, mut far) = duplex(1 << 20);
        let state = LineState::new();
        let mut line = Line::new(near, state.clone());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(state.silence(), Duration::ZERO, "nobody listens");
        let mut byte = [0];
        let mut reading = Box::pin(line.read_exact(&mut byte));
        assert!(futures::poll!(&mut reading).is_pending());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(futures::poll!(&mut reading).is_pending());
        assert_eq!(state.silence(), Duration::from_secs(2));
        let before = state.heard();
        let mut heard = Box::pin(state.heard_after(before));
        assert!(futures::poll!(&mut heard).is_pending());
        far.write_all(b"x").await.unwrap();
        reading.await.unwrap();
        heard.await;
        assert_eq!(state.silence(), Duration::ZERO);
    }
}
