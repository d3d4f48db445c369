//! The loop of a connection: calls, completions, messages from the backplane, the clocks.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use backplane_core::{ClientResult, ErrorKind, InvocationId, OutboundReceiver, Registration};
use futures::future::{BoxFuture, FutureExt as _};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::End;
use super::calls::{Calls, Done};
use super::wire::Wire;
use crate::context::{CallPlace, Connection};
use crate::dispatch::{Call, Refusal, failed, panic_text};
use crate::error::{HubError, HubResult};
use crate::keepalive::{Due, KeepAlive};
use crate::protocol::{ClientMessage, ClientOutcome, HubProtocol, Invocation, ServerMessage, ServerOutcome};
use crate::server::Server;

/// A callback of the hub whose panic is an error of this connection alone.
pub(crate) async fn guarded(callback: impl Future<Output = HubResult>) -> HubResult {
    AssertUnwindSafe(callback).catch_unwind().await.unwrap_or_else(|panic: Box<dyn Any + Send>| {
        let text = panic_text(panic.as_ref()).to_owned();
        tracing::error!(panic = text, "a callback of the hub panicked");
        Err(HubError::private("Panic", text))
    })
}

/// A registered connection at work.
pub(crate) struct Serving<'a> {
    server: &'a Server,
    connection: &'a Arc<Connection>,
    protocol: Arc<dyn HubProtocol>,
    wire: Wire,
    outbound: OutboundReceiver,
    registration: Registration,
    /// `on_connected`, until it returned; no call begins before.
    connecting: Option<BoxFuture<'static, HubResult>>,
    calls: Calls,
    clocks: KeepAlive,
    alarm: Pin<Box<Sleep>>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<'a> Serving<'a> {
    pub(crate) fn new(
        server: &'a Server,
        connection: &'a Arc<Connection>,
        protocol: Arc<dyn HubProtocol>,
        wire: Wire,
        outbound: OutboundReceiver,
        registration: Registration,
    ) -> Self {
        let now = Instant::now();
        let (hub, connecting) = (server.hub.clone(), connection.clone());
        Self {
            connecting: Some(guarded(async move { hub.connected(connecting).await }).boxed()),
            calls: Calls::new(server.options.parallel_calls),
            clocks: KeepAlive::new(&server.options, wire.wants_keep_alive(), now),
            alarm: Box::pin(sleep_until(now)),
            stopping: Box::pin(server.stopping.clone().cancelled_owned()),
            server,
            connection,
            protocol,
            wire,
            outbound,
            registration,
        }
    }

    /// Serves until there is a reason to end.
    pub(crate) async fn run(&mut self) -> End {
        poll_fn(|context| self.poll(context)).await
    }

    /// What outlives the loop. What was sent to the client before its connection ended goes out before its Close; the
    /// outbound queue does not outlive this: nothing more is sent.
    pub(crate) fn into_parts(mut self) -> (Wire, Calls, Registration) {
        while let Some(item) = self.outbound.try_next() {
            self.wire.push(&item.bytes);
        }
        (self.wire, self.calls, self.registration)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            match self.poll_once(context) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// One round over everything that may be ready. `true`: something moved, another round may find more.
    fn poll_once(&mut self, context: &mut Context<'_>) -> Result<bool, End> {
        if self.connection.poll_abort(context.waker()) {
            return Err(End::Aborted);
        }
        if self.stopping.as_mut().poll(context).is_ready() {
            return Err(End::Shutdown);
        }
        let now = Instant::now();
        let mut moved = false;
        if let Some(connecting) = &mut self.connecting
            && let Poll::Ready(connected) = connecting.poll_unpin(context)
        {
            self.connecting = None;
            connected.map_err(End::Refused)?;
            moved = true;
        }
        moved |= self.poll_calls(context, now);
        // A call may have ended its own connection.
        if self.connection.poll_abort(context.waker()) {
            return Err(End::Aborted);
        }
        moved |= self.read_records()?;
        if self.wire.has_room()
            && let Poll::Ready(received) = self.wire.poll_receive(context)
        {
            received?;
            // Read anew: the methods that ran meanwhile may have taken their time.
            self.clocks.heard(Instant::now());
            moved = true;
        }
        moved |= self.poll_write(context, now)?;
        moved |= self.poll_clocks(context, now)?;
        Ok(moved)
    }

    /// Lets the call whose turn it is begin, and answers those that ended.
    fn poll_calls(&mut self, context: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        if self.calls.is_blocked() {
            moved = self.calls.poll_begin(context).is_ready();
            self.clocks.rest(!moved, now);
        }
        // A client that does not read gets no more answers, and its calls wait, until it does or is cut off.
        while !self.wire.is_backlogged() {
            match self.calls.poll_done(context) {
                // A connection that its hub has ended is answered nothing any more.
                Poll::Ready(_) if self.connection.is_aborted() => return true,
                Poll::Ready(done) => self.answer(done),
                Poll::Pending => break,
            }
            moved = true;
        }
        moved
    }

    /// Writes the completion of a call, behind everything that was sent to this client before the call ended.
    fn answer(&mut self, done: Done) {
        let Done { id, name, result } = done;
        if let Err(error) = &result {
            tracing::debug!(connection = %self.connection.id, method = &*name, ?error, "a hub method failed");
        }
        let Some(id) = id else { return };
        while let Some(item) = self.outbound.try_next() {
            self.wire.push(&item.bytes);
        }
        let detailed = self.server.options.detailed_errors;
        let error = match result {
            Ok(value) => {
                let outcome = ServerOutcome::Value(value.as_ref());
                let completion = ServerMessage::Completion { id: &id, outcome };
                let output = self.wire.output();
                let before = output.len();
                // `Serialize` of an application may panic, as a method may.
                let encoded = catch_unwind(AssertUnwindSafe(|| self.protocol.encode(&completion, output)));
                match encoded {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => HubError::from(error).tell(failed(&name), detailed),
                    Err(panic) => {
                        self.wire.output().truncate(before);
                        let text = panic_text(panic.as_ref()).to_owned();
                        tracing::error!(method = &*name, panic = text, "writing a result panicked");
                        HubError::private("Panic", text).tell(failed(&name), detailed)
                    }
                }
            }
            Err(error) => error.tell(failed(&name), detailed),
        };
        self.complete_with_error(&id, &error);
    }

    fn complete_with_error(&mut self, id: &str, error: &str) {
        let completion = ServerMessage::Completion { id, outcome: ServerOutcome::Error(error) };
        self.protocol.encode(&completion, self.wire.output()).expect("text can be written in every protocol");
    }

    /// Understands the records that have arrived, until a call has to wait for its turn.
    fn read_records(&mut self) -> Result<bool, End> {
        let mut moved = false;
        while self.connecting.is_none() && !self.calls.is_blocked() && !self.wire.is_backlogged() {
            let max = self.server.options.max_record;
            let (input, searched) = self.wire.input();
            let Some(record) = self.protocol.next_record(input, searched, max)? else {
                self.wire.trim();
                break;
            };
            let message = self.protocol.decode(&record)?;
            self.handle(message)?;
            moved = true;
        }
        Ok(moved)
    }

    fn handle(&mut self, message: ClientMessage) -> Result<(), End> {
        match message {
            ClientMessage::Invocation(invocation) => self.call(invocation, false),
            ClientMessage::StreamInvocation(invocation) => self.call(invocation, true),
            ClientMessage::Completion { id, outcome, headers } => {
                let result = match outcome {
                    ClientOutcome::Value(value) => ClientResult::value(self.protocol.protocol(), value),
                    ClientOutcome::Void => ClientResult::Void,
                    ClientOutcome::Error(text) => ClientResult::Error(text),
                };
                let id = InvocationId::from(id);
                match self.registration.complete_with_headers(&id, result, headers) {
                    Err(error) if error.kind() == ErrorKind::Denied => {
                        let connection = &self.connection.id;
                        let text =
                            format!("Connection ID '{connection}' is not valid for invocation ID '{id}'.");
                        return Err(End::Failed(HubError::private("InvalidOperationException", text)));
                    }
                    Err(error) => tracing::warn!(%error, "a client's answer could not be passed on"),
                    Ok(()) => {}
                }
            }
            ClientMessage::Ping => self.clocks.pinged(Instant::now()),
            ClientMessage::Close { error } => return Err(End::Client(error)),
            ClientMessage::StreamItem { .. }
            | ClientMessage::CancelInvocation { .. }
            | ClientMessage::Ack(_)
            | ClientMessage::Sequence(_)
            | ClientMessage::Unknown(_) => {
                tracing::trace!(connection = %self.connection.id, "a message that concerns nothing here");
            }
        }
        Ok(())
    }

    fn call(&mut self, invocation: Invocation, streaming: bool) {
        let Invocation { id, target, arguments, streams } = invocation;
        let place = super::calls::Place::default();
        let call = Call {
            target,
            arguments,
            streams: streams.len(),
            streaming,
            protocol: self.protocol.clone(),
            place: CallPlace::Call(place.clone()),
        };
        let prepared = if self.calls.are_too_many() {
            Err(Refusal::too_many(&call.target))
        } else {
            self.server.hub.prepare(self.connection.clone(), &call)
        };
        match prepared {
            Ok(prepared) => self.calls.add(id, prepared, place),
            Err(refusal) => {
                tracing::debug!(connection = %self.connection.id, ?refusal, "a call was refused");
                if let Some(id) = id {
                    let text = refusal.text(self.server.options.detailed_errors);
                    self.complete_with_error(&id, &text);
                }
            }
        }
    }

    /// Writes answers, then what the backplane brought: all of it that waits, in one piece.
    fn poll_write(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let mut moved = false;
        loop {
            let flushed = self.wire.poll_flush(context);
            self.clocks.stuck(flushed.is_pending(), self.wire.written(), now);
            match flushed {
                Poll::Pending => return Ok(moved),
                Poll::Ready(result) => result?,
            }
            match self.outbound.poll_next_joined(context) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(item) => self.wire.send(item?.bytes),
            }
            moved = true;
        }
    }

    fn poll_clocks(&mut self, context: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        match self.clocks.due(now) {
            Due::Nothing(next) => {
                if self.alarm.deadline() > next || self.alarm.is_elapsed() {
                    self.alarm.as_mut().reset(next);
                }
                Ok(self.alarm.as_mut().poll(context).is_ready())
            }
            Due::Ping => {
                self.protocol
                    .encode(&ServerMessage::Ping, self.wire.output())
                    .expect("a ping can be written in every protocol");
                Ok(true)
            }
            Due::ClientTimeout => Err(End::Failed(HubError::private(
                "OperationCanceledException",
                "Client hasn't sent a message/ping within the configured ClientTimeoutInterval.",
            ))),
            Due::SendTimeout => Err(End::Stuck),
        }
    }
}
