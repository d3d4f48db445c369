//! A transport with what waits on both sides of it: bytes received and not yet understood, records to send.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};

use crate::protocol::TransferFormat;
use crate::transport::{Ended, Transport};

/// Beyond this much that waits to be written, nothing more is answered until the client reads.
const BACKLOG: usize = 64 << 10;

/// The transport of a connection and its two buffers. Both are empty, and hold no memory, while nothing moves.
pub(crate) struct Wire {
    transport: Box<dyn Transport>,
    format: TransferFormat,
    input: BytesMut,
    /// How much of the input was searched for the end of its first record, in vain.
    searched: usize,
    /// Most bytes that are received ahead of their being understood.
    most_input: usize,
    output: BytesMut,
    ended: bool,
}

impl Wire {
    pub(crate) fn new(transport: Box<dyn Transport>, max_record: usize) -> Self {
        Self {
            transport,
            // The handshake is JSON, whatever comes behind it.
            format: TransferFormat::Text,
            input: BytesMut::new(),
            searched: 0,
            most_input: BACKLOG.max(max_record.saturating_add(1)),
            output: BytesMut::new(),
            ended: false,
        }
    }

    /// The format of the protocol, for everything behind the handshake's answer.
    pub(crate) fn set_format(&mut self, format: TransferFormat) {
        self.format = format;
    }

    pub(crate) fn carries(&self, format: TransferFormat) -> bool {
        self.transport.carries(format)
    }

    pub(crate) fn wants_keep_alive(&self) -> bool {
        self.transport.wants_keep_alive()
    }

    /// How much of what was sent the transport has got rid of.
    pub(crate) fn written(&self) -> u64 {
        self.transport.written()
    }

    /// What has arrived, and how much of it was searched in vain.
    pub(crate) fn input(&mut self) -> (&mut BytesMut, &mut usize) {
        (&mut self.input, &mut self.searched)
    }

    /// Gives the memory of an input that was understood back.
    pub(crate) fn trim(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    /// Whether there is room to receive more.
    pub(crate) fn has_room(&self) -> bool {
        self.input.len() < self.most_input
    }

    pub(crate) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let received = ready!(self.transport.poll_receive(context, &mut self.input));
        self.ended |= received.is_err();
        Poll::Ready(received)
    }

    /// Waits until something arrived, writing meanwhile.
    pub(crate) async fn receive(&mut self) -> Result<(), Ended> {
        poll_fn(|context| {
            let received = self.poll_receive(context);
            if let Poll::Ready(Err(ended)) = self.poll_flush(context) {
                return Poll::Ready(Err(ended));
            }
            received
        })
        .await
    }

    /// Appends records to what is written next.
    pub(crate) fn push(&mut self, records: &Bytes) {
        self.output.extend_from_slice(records);
    }

    /// What is written next.
    pub(crate) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Whether so much waits to be written that nothing should be added.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.output.len() >= BACKLOG
    }

    /// Hands records to the transport as they are. Only when [`poll_flush`](Wire::poll_flush) was ready.
    pub(crate) fn send(&mut self, records: Bytes) {
        self.transport.send(records, self.format);
    }

    /// Writes what waits here and in the transport.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            if let Err(ended) = ready!(self.transport.poll_flush(context)) {
                self.ended = true;
                return Poll::Ready(Err(ended));
            }
            if self.output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let records = std::mem::take(&mut self.output).freeze();
            self.transport.send(records, self.format);
        }
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Ended> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    /// Writes what waits, then ends the transport in order. To be bounded by the caller.
    pub(crate) async fn close(&mut self) {
        if !self.ended {
            let _ = self.flush().await;
        }
        poll_fn(|context| self.transport.poll_close(context)).await;
    }
}
