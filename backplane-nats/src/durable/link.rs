//! The task of a durable link: sends into the stream and reads its consumer.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{Client, StatusCode, Subject, Subscriber};
use backplane_core::{Error, ErrorKind, Result, Topic};
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use tokio::time::Instant;

use super::flights::Flights;
use super::message::{Names, answer, write};
use super::reader::Reader;
use super::unless_refused;
use crate::alarm::Alarm;
use crate::ears::{Ears, Heard, Right};
use crate::errors::{denied, died, failed, lame_duck, not_closed};
use crate::inbox::Inbox;
use crate::shared::{Call, Phase, Shared, Work};
use crate::subject::{Subjects, topic};
use crate::thread::Parts;

/// Frames of one run of commands, and frames and bytes that wait for their acknowledgement.
const RUN_FRAMES: usize = 1_024;
const FLIGHT_BYTES: usize = 8 << 20;
const FLIGHT_FRAMES: usize = 8_192;

/// What the last token of a probe's subject begins with; that of an acknowledgement is a number.
const PROBE: char = 'p';

/// What is known when a link starts.
pub(super) struct Known {
    pub(super) stream: String,
    pub(super) consumer: String,
    pub(super) subject: String,
    pub(super) names: Names,
    pub(super) duplicate_window: Duration,
    pub(super) heartbeat: Duration,
}

pub(crate) struct DurableLink {
    client: Client,
    context: jetstream::Context,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    ears: Arc<Ears>,
    known: Known,
    subjects: Subjects,
    reader: Reader,
    acks: Subscriber,
    queue: VecDeque<Work>,
    flights: Flights,
    /// Calls whose probe is under way, with its number.
    calls: VecDeque<(u64, Call)>,
    /// Number of the last probe sent.
    probe: u64,
    writing: Option<BoxFuture<'static, Result<()>>>,
    complaint: Option<String>,
    alarm: Alarm,
    leaving: bool,
    closing: Option<Instant>,
    farewell: Option<BoxFuture<'static, ()>>,
    ended: bool,
}

impl DurableLink {
    pub(super) fn new(
        parts: Parts,
        context: jetstream::Context,
        known: Known,
        reader: Reader,
        acks: Subscriber,
    ) -> Self {
        let Parts { client, shared, inbox, ears } = parts;
        let alarm = Alarm::new(shared.timeout);
        Self {
            client,
            context,
            shared,
            inbox,
            ears,
            subjects: Subjects::new(&known.subject),
            known,
            reader,
            acks,
            queue: VecDeque::new(),
            flights: Flights::default(),
            calls: VecDeque::new(),
            probe: 0,
            writing: None,
            complaint: None,
            alarm,
            leaving: false,
            closing: None,
            farewell: None,
            ended: false,
        }
    }

    /// One turn. Ready when the link has ended, with an error if it died.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let phase = self.shared.take(cx, &mut self.queue);
        if phase == Phase::Abandoned {
            return Poll::Ready(Ok(()));
        }
        if phase == Phase::Closing && self.closing.is_none() {
            self.inbox.end(Ok(()));
            self.closing = Some(Instant::now() + self.shared.timeout);
        }
        if let Some(farewell) = &mut self.farewell {
            // From here on only it listens to what the server says.
            return farewell.poll_unpin(cx).map(Ok);
        }
        let heard = self.ears.take(cx);
        let disconnected = heard.is_over(&self.client);
        let refused = self.hear(heard);
        if self.closing.is_none()
            && let Err(how) = self.reader.receive(cx, &self.inbox)
        {
            return Poll::Ready(Err(self.died(&how)));
        }
        self.acknowledged(cx)?;
        if disconnected {
            return Poll::Ready(Err(self.died("the connection was lost")));
        }
        refused?;
        while self.write(cx)? {}
        if self.flights.is_empty() && self.calls.is_empty() && self.writing.is_none() {
            if self.leaving {
                return Poll::Ready(Err(lame_duck()));
            }
            if let Some(deadline) = self.closing
                && self.queue.is_empty()
            {
                let farewell = self.farewell.insert(self.say_farewell(deadline));
                return farewell.poll_unpin(cx).map(Ok);
            }
        }
        self.keep_time(cx)
    }

    /// What the server says beside messages. An error: it refuses what a link cannot do without.
    fn hear(&mut self, heard: Heard) -> Result<()> {
        let mut frames = HashMap::new();
        let mut outcome = Ok(());
        for refused in heard.refusals {
            match (refused.right, topic(&self.known.subject, &refused.subject)) {
                (Right::Subscribe, _) => self.complaint = Some(refused.text),
                (Right::Publish, Some(topic)) => {
                    frames.insert(Topic::new(topic), denied("publish", &refused.text));
                }
                // A probe, or the word that a consumer waits for: it would wait for ever.
                (Right::Publish, None) => outcome = Err(denied("receive", &refused.text)),
            }
        }
        if !frames.is_empty() {
            self.flights.refuse(&frames, &self.shared);
        }
        if let Some(complaint) = heard.complaint {
            tracing::warn!(complaint, "the NATS server complains");
            self.complaint = Some(complaint);
        }
        self.leaving |= heard.lame_duck;
        outcome
    }

    /// Reads what the stream answered to our frames.
    fn acknowledged(&mut self, cx: &mut Context<'_>) -> Result<()> {
        while let Poll::Ready(Some(message)) = self.acks.poll_next_unpin(cx) {
            let Some((_, token)) = message.subject.rsplit_once('.') else { continue };
            if let Some(probe) = token.strip_prefix(PROBE).and_then(|number| number.parse().ok()) {
                self.confirm(probe);
                continue;
            }
            let Ok(number) = token.parse() else { continue };
            if message.status == Some(StatusCode::NO_RESPONDERS) {
                return Err(self.died("the stream is gone"));
            }
            self.flights.answer(number, answer(&message.payload), &self.shared);
        }
        Ok(())
    }

    /// Answers the calls whose probe came back: we are heard, and hear.
    fn confirm(&mut self, probe: u64) {
        while let Some((_, call)) = self.calls.pop_front_if(|(number, _)| *number <= probe) {
            self.shared.answer(call.done, call.topics.len(), Ok(()));
        }
    }

    /// Hands commands to the connection. Whether to be called again.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if let Some(writing) = &mut self.writing {
            let Poll::Ready(written) = writing.poll_unpin(cx) else { return Ok(false) };
            self.writing = None;
            written?;
            return Ok(true);
        }
        let now = Instant::now();
        let mut frames = self.flights.overdue(now, self.shared.timeout / 4, self.known.duplicate_window / 2);
        if !frames.is_empty() {
            tracing::debug!(frames = frames.len(), "no acknowledgement: sent again");
        }
        let was_empty = self.flights.is_empty() && self.calls.is_empty();
        let mut probe = None;
        while !self.leaving && frames.len() < RUN_FRAMES {
            let full = self.flights.bytes() >= FLIGHT_BYTES || self.flights.frames() >= FLIGHT_FRAMES;
            match self.queue.pop_front_if(|work| !full || matches!(work, Work::Call(_))) {
                Some(Work::Batch(batch)) => frames.extend(self.flights.add(batch, now)),
                Some(Work::Call(call)) => {
                    // That we hear the consumer is what the probe proves.
                    let probe = *probe.get_or_insert(self.probe + 1);
                    self.reader.want(&call);
                    self.calls.push_back((probe, call));
                }
                None => break,
            }
        }
        let mut words = self.reader.take_replies();
        if let Some(probe) = probe {
            self.probe = probe;
            words.push(Subject::from(format!("{}.{PROBE}{probe}", self.known.names.acks)));
        }
        if frames.is_empty() && words.is_empty() {
            return Ok(false);
        }
        if was_empty {
            self.arm();
        }
        let subjects = &mut self.subjects;
        let frames = frames.into_iter().map(|(number, outgoing)| {
            let subject = subjects.of(&outgoing.topic);
            (number, subject, outgoing.frame)
        });
        let writing = write(self.client.clone(), words, frames.collect(), self.known.names.clone());
        self.writing = Some(writing.boxed());
        Ok(true)
    }

    /// Frees the consumer. One that may not be deleted goes by itself.
    fn say_farewell(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let most = deadline.saturating_duration_since(Instant::now()).min(Duration::from_secs(1));
        let (context, client, ears) = (self.context.clone(), self.client.clone(), self.ears.clone());
        let (stream, consumer) = (self.known.stream.clone(), self.known.consumer.clone());
        let deleting = async move {
            let deleted = async {
                let deleted = context.delete_consumer_from_stream(consumer, stream).await;
                deleted.map_err(|error| Error::new(ErrorKind::Unavailable, "close").with_source(error))
            };
            unless_refused(&ears, &client, deleted).await
        };
        async move {
            if let Ok(Err(error)) = tokio::time::timeout(most, deleting).await {
                tracing::debug!(%error, "the consumer is left to the server");
            }
        }
        .boxed()
    }

    fn keep_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            ready!(self.alarm.poll(cx));
            let now = Instant::now();
            if self.closing.is_none() && now >= self.reader.silence(self.known.heartbeat) {
                return Poll::Ready(Err(self.died("the consumer has gone quiet")));
            }
            let overdue = Error::new(ErrorKind::Timeout, "publish")
                .with_context("the stream did not acknowledge in time")
                .with_outcome_unknown();
            self.flights.expire(now, &overdue, &self.shared);
            if self.calls.front().is_some_and(|(_, call)| call.deadline <= now) {
                return Poll::Ready(Err(self.died("the server did not confirm in time")));
            }
            if self.closing.is_some_and(|closing| closing <= now) {
                return Poll::Ready(Err(not_closed()));
            }
            self.shared.refuse_overdue(&mut self.queue, now);
            self.arm();
            // What is overdue is sent again.
            while self.write(cx)? {}
        }
    }

    fn arm(&mut self) {
        self.alarm.set([
            self.flights.deadline(),
            self.calls.front().map(|(_, call)| call.deadline),
            self.flights.patience_ends(self.shared.timeout / 4),
            self.queue.front().map(Work::deadline),
            self.closing,
            Some(self.reader.silence(self.known.heartbeat)),
        ]);
    }

    fn died(&self, how: &str) -> Error {
        died(how, self.complaint.as_deref())
    }

    /// Settles everything that waits. Only the first call counts.
    fn end(&mut self, how: Result<()>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Err(error) = &how {
            tracing::debug!(%error, "NATS link ended");
        }
        self.flights.give_up(&failed(&how, "publish").with_outcome_unknown(), &self.shared);
        let calls = self.calls.drain(..).map(|(_, call)| Work::Call(call));
        for work in calls.chain(self.queue.drain(..)) {
            self.shared.refuse(work, |operation| failed(&how, operation));
        }
        self.shared.end(&how);
        self.inbox.end(how);
    }
}

impl Future for DurableLink {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(());
        }
        let how = ready!(this.turn(cx));
        this.end(how);
        Poll::Ready(())
    }
}

impl Drop for DurableLink {
    /// Also when its thread fails: nobody is left waiting.
    fn drop(&mut self) {
        self.end(Err(died("the thread of the link has stopped", None)));
    }
}
