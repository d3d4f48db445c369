//! The task of a durable link: sends into the stream, reads its consumer, and judges what both say.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::header::{NATS_LAST_CONSUMER, NATS_MESSAGE_ID};
use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use backplane_core::{Delivery, Error, ErrorKind, LossReason, Outgoing, Reach, Result, Topic};
use bytes::Bytes;
use foldhash::fast::RandomState;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use tokio::time::{Instant, Sleep};

use super::flights::Flights;
use super::metadata::Metadata;
use super::position::Standing;
use crate::core::{Parts, deadline, subject};
use crate::ears::{self, Ears};
use crate::inbox::{Inbox, own};
use crate::shared::{Call, Phase, Shared, Verb, Work, failed, not_sent};

/// Frames and bytes of one run of commands, and those that wait for their acknowledgement.
const RUN_FRAMES: usize = 1_024;
const FLIGHT_BYTES: usize = 8 << 20;
const FLIGHT_FRAMES: usize = 8_192;

/// What the last token of a probe's subject begins with; that of an acknowledgement is a number.
const PROBE: char = 'p';

/// The name of the header by which a consumer that waits for us says where it hears us.
const STALLED: &str = "Nats-Consumer-Stalled";

/// How often a consumer that has nothing to say says so. The server allows no less than 100 ms.
pub(super) fn idle_heartbeat(bound: Duration) -> Duration {
    (bound / 4).max(Duration::from_millis(100))
}

/// What is known when a link starts.
pub(super) struct Known {
    pub(super) stream: String,
    /// The identity of the stream.
    pub(super) id: i64,
    pub(super) consumer: String,
    pub(super) subject: String,
    /// Where acknowledgements arrive, without the number.
    pub(super) acks: String,
    /// What identifies a message for the server, without the number.
    pub(super) message_id: String,
    pub(super) duplicate_window: Duration,
    /// The sequence that the consumer starts with.
    pub(super) next: u64,
    pub(super) topics: Vec<Topic>,
    pub(super) heartbeat: Duration,
}

pub(crate) struct DurableLink {
    client: Client,
    context: jetstream::Context,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    ears: Arc<Ears>,
    known: Known,
    /// The topics that are delivered; the consumer sends those of all nodes.
    wanted: HashSet<Topic, RandomState>,
    deliveries: Subscriber,
    acks: Subscriber,
    /// Number of the consumer's last message.
    consumed: u64,
    /// The stream's next message.
    next: u64,
    /// When the consumer last said anything, or was not listened to.
    heard: Instant,
    queue: VecDeque<Work>,
    flights: Flights,
    /// Calls whose probe is under way, with its number.
    calls: VecDeque<(u64, Call)>,
    /// Number of the last probe sent.
    probe: u64,
    /// Subjects on which the consumer waits for a word.
    replies: Vec<Subject>,
    writing: Option<BoxFuture<'static, Result<()>>>,
    arrived: Vec<Delivery>,
    complaint: Option<String>,
    refused_probe: Option<String>,
    timer: Pin<Box<Sleep>>,
    leaving: bool,
    closing: Option<Instant>,
    farewell: Option<BoxFuture<'static, ()>>,
    ended: bool,
}

impl DurableLink {
    pub(super) fn new(
        parts: Parts,
        context: jetstream::Context,
        mut known: Known,
        deliveries: Subscriber,
        acks: Subscriber,
    ) -> Self {
        let Parts { client, shared, inbox, ears } = parts;
        Self {
            client,
            context,
            shared,
            inbox,
            ears,
            wanted: known.topics.drain(..).collect(),
            deliveries,
            acks,
            consumed: 0,
            next: known.next,
            heard: Instant::now(),
            known,
            queue: VecDeque::new(),
            flights: Flights::default(),
            calls: VecDeque::new(),
            probe: 0,
            replies: Vec::new(),
            writing: None,
            arrived: Vec::new(),
            complaint: None,
            refused_probe: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
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
        let disconnected = self.hear(cx);
        self.receive(cx)?;
        self.acknowledged(cx)?;
        if disconnected {
            return Poll::Ready(Err(self.died("the connection was lost")));
        }
        if let Some(refused) = self.refused_probe.take() {
            let error = Error::new(ErrorKind::Denied, "connect");
            return Poll::Ready(Err(error.with_context(format!("the server says: {refused}; see `inbox`"))));
        }
        while self.write(cx)? {}
        if self.flights.is_empty() && self.calls.is_empty() && self.writing.is_none() {
            if self.leaving {
                return Poll::Ready(Err(
                    self.died("the server is leaving (lame duck) and asks us to go elsewhere")
                ));
            }
            if self.closing.is_some() && self.queue.is_empty() {
                ready!(self.say_farewell(cx));
                return Poll::Ready(Ok(()));
            }
        }
        self.keep_time(cx)
    }

    /// What the server says beside messages. Whether the connection has ended.
    fn hear(&mut self, cx: &Context<'_>) -> bool {
        let heard = self.ears.take(cx);
        for refused in heard.refusals {
            if refused.verb != ears::Verb::Publish {
                self.complaint = Some(refused.text);
                continue;
            }
            if refused.subject.starts_with(&self.known.acks) {
                self.refused_probe = Some(refused.text);
                continue;
            }
            let error = Error::new(ErrorKind::Denied, "publish");
            let error = error.with_context(format!("the server says: {}", refused.text));
            let prefix = self.known.subject.clone();
            let is_refused =
                |outgoing: &Outgoing| subject(&prefix, &outgoing.topic).as_str() == refused.subject;
            self.flights.answer_each(is_refused, &error, &self.shared);
        }
        if let Some(complaint) = heard.complaint {
            tracing::warn!(complaint, "the NATS server complains");
            self.complaint = Some(complaint);
        }
        self.leaving |= heard.lame_duck;
        heard.disconnected
    }

    /// Takes what the consumer sent, while there is room; it is not told to go on before that was taken.
    fn receive(&mut self, cx: &mut Context<'_>) -> Result<()> {
        if self.closing.is_some() {
            return Ok(());
        }
        let mut judged = Ok(());
        while judged.is_ok() {
            if !self.inbox.has_room() {
                self.heard = Instant::now();
                break;
            }
            // As many as fit at most what one poll brings; the bound is looked at again after each run.
            let mut taken = 0;
            while taken < 64 && judged.is_ok() {
                let Poll::Ready(Some(message)) = self.deliveries.poll_next_unpin(cx) else { break };
                taken += 1;
                self.heard = Instant::now();
                judged = self.judge(message);
            }
            self.inbox.push(&mut self.arrived);
            if taken < 64 {
                break;
            }
        }
        judged
    }

    fn judge(&mut self, message: Message) -> Result<()> {
        match message.status {
            None => self.deliver(message),
            Some(StatusCode::IDLE_HEARTBEAT) => {
                let header =
                    |name: &str| message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
                // A request for flow control has a reply, a heartbeat of a stalled consumer a header.
                if let Some(reply) = message.reply {
                    self.replies.push(reply);
                } else if let Some(reply) = header(STALLED) {
                    self.replies.push(reply.into());
                }
                let last = message.headers.as_ref().and_then(|headers| headers.get(NATS_LAST_CONSUMER));
                match last.and_then(|last| last.as_str().parse::<u64>().ok()) {
                    Some(last) if last != self.consumed => {
                        Err(self.died("messages of the consumer are missing"))
                    }
                    _ => Ok(()),
                }
            }
            // Such as `409 Consumer Deleted`.
            Some(status) => {
                let said = message.description.unwrap_or_default();
                self.complaint = Some(format!("{status} {said}"));
                Err(self.died("the consumer has ended"))
            }
        }
    }

    fn deliver(&mut self, message: Message) -> Result<()> {
        let Some(metadata) = message.reply.as_ref().and_then(|reply| Metadata::read(reply)) else {
            return Err(self.died("a message of the consumer says not where it stands"));
        };
        if metadata.consumer != self.consumed + 1 {
            return Err(self.died("messages of the consumer are missing"));
        }
        self.consumed = metadata.consumer;
        if metadata.stream < self.next {
            return Ok(());
        }
        if metadata.stream > self.next {
            self.arrived.push(Delivery::Lost { topics: None, reason: LossReason::Retention });
        }
        self.next = metadata.stream + 1;
        let prefix = self.known.subject.len() + 1;
        let topic = message.subject.as_bytes().get(prefix..).and_then(|topic| self.wanted.get(topic));
        if let Some(topic) = topic {
            let standing =
                Standing { stream: self.known.id, sequence: metadata.stream, stored: metadata.stored };
            self.arrived.push(Delivery::Frame {
                topic: topic.clone(),
                frame: own(message.payload),
                position: Some(standing.position()),
            });
        }
        Ok(())
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
        while self.calls.front().is_some_and(|(number, _)| *number <= probe) {
            let Some((_, call)) = self.calls.pop_front() else { break };
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
            match self.queue.front() {
                Some(Work::Batch(_)) if full => break,
                _ => {}
            }
            match self.queue.pop_front() {
                Some(Work::Batch(batch)) => frames.extend(self.flights.add(batch, now)),
                Some(Work::Call(call)) => {
                    if probe.is_none() {
                        self.probe += 1;
                        probe = Some(self.probe);
                    }
                    self.want(&call);
                    self.calls.push_back((self.probe, call));
                }
                None => break,
            }
        }
        let mut words = std::mem::take(&mut self.replies);
        words.extend(probe.map(|probe| Subject::from(format!("{}.{PROBE}{probe}", self.known.acks))));
        if frames.is_empty() && words.is_empty() {
            return Ok(false);
        }
        if was_empty {
            self.arm();
        }
        let names = Names {
            subject: self.known.subject.clone(),
            acks: self.known.acks.clone(),
            message_id: self.known.message_id.clone(),
        };
        self.writing = Some(write(self.client.clone(), words, frames, names).boxed());
        Ok(true)
    }

    /// Interest is ours alone: the consumer delivers every topic. That we hear it is what the probe proves.
    fn want(&mut self, call: &Call) {
        match call.verb {
            Verb::Subscribe => self.wanted.extend(call.topics.iter().cloned()),
            Verb::Unsubscribe => {
                for topic in &call.topics {
                    self.wanted.remove(topic);
                }
            }
        }
    }

    /// Frees the consumer. One that may not be deleted goes by itself.
    fn say_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left =
            self.closing.map_or(Duration::ZERO, |closing| closing.saturating_duration_since(Instant::now()));
        let (context, stream) = (&self.context, &self.known.stream);
        let (consumer, ears) = (&self.known.consumer, &self.ears);
        let farewell = self.farewell.get_or_insert_with(|| {
            let (context, ears) = (context.clone(), ears.clone());
            let (stream, consumer) = (stream.clone(), consumer.clone());
            async move {
                let deleting = tokio::time::timeout(left.min(Duration::from_secs(1)), async {
                    super::unless_refused(&ears, async {
                        let deleted = context.delete_consumer_from_stream(consumer, stream).await;
                        deleted
                            .map_err(|error| Error::new(ErrorKind::Unavailable, "close").with_source(error))
                    })
                    .await
                });
                if let Ok(Err(error)) = deleting.await {
                    tracing::debug!(%error, "the consumer is left to the server");
                }
            }
            .boxed()
        });
        farewell.poll_unpin(cx)
    }

    fn keep_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.closing.is_none() && now >= self.silence() {
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
                let error = Error::new(ErrorKind::Timeout, "close");
                return Poll::Ready(Err(
                    error.with_context("the server did not answer in time; the connection was cut")
                ));
            }
            while self.queue.front().is_some_and(|work| deadline(work) <= now) {
                let Some(work) = self.queue.pop_front() else { break };
                self.shared.refuse(work, not_sent);
            }
            self.arm();
            // What is overdue is sent again.
            while self.write(cx)? {}
        }
    }

    /// When a consumer that said nothing since is given up.
    fn silence(&self) -> Instant {
        self.heard + self.known.heartbeat * 9 / 10
    }

    /// Sets the timer to what may be due next. New work is noticed after a quarter of its time at the latest.
    fn arm(&mut self) {
        let now = Instant::now();
        let next = [
            self.flights.deadline(),
            self.calls.front().map(|(_, call)| call.deadline),
            self.flights.patience_ends(self.shared.timeout / 4),
            self.queue.front().map(deadline),
            self.closing,
            Some(self.silence()),
            Some(now + self.shared.timeout / 4),
        ];
        // Never in the past: each turn of the timer is a turn of the clock, too.
        let soonest = now + Duration::from_millis(1);
        let next = next.into_iter().flatten().min().map_or(soonest, |next| next.max(soonest));
        self.timer.as_mut().reset(next);
    }

    fn died(&self, how: &'static str) -> Error {
        let error = Error::new(ErrorKind::Unavailable, "receive");
        match &self.complaint {
            Some(complaint) => error.with_context(format!("{how}; the server says: {complaint}")),
            None => error.with_context(how),
        }
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

/// What an acknowledgement says.
fn answer(payload: &Bytes) -> Result<Reach> {
    // As the server writes it; reading all of the JSON would take longer than sending the frame.
    if payload.starts_with(b"{\"stream\":") && !payload.windows(8).any(|window| window == b"\"error\":") {
        return Ok(Reach::Unknown);
    }
    let reply = match serde_json::from_slice::<Response<PublishAck>>(payload) {
        Ok(Response::Ok(_)) => return Ok(Reach::Unknown),
        Ok(Response::Err { error }) => error,
        Err(error) => return Err(Error::new(ErrorKind::Malformed, "publish").with_source(error)),
    };
    let kind = match reply.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => ErrorKind::TooLarge,
        ErrorCode::STREAM_SEALED => ErrorKind::Denied,
        // States that pass: no leader, no room.
        _ => ErrorKind::Unavailable,
    };
    Err(Error::new(kind, "publish").with_context("the stream did not take it").with_source(reply))
}

/// What the subjects and headers of a message begin with.
struct Names {
    subject: String,
    acks: String,
    message_id: String,
}

/// Hands frames to the connection, and empty messages to the subjects `words`; waits while it cannot take more.
async fn write(
    client: Client,
    words: Vec<Subject>,
    frames: Vec<(u64, Outgoing)>,
    names: Names,
) -> Result<()> {
    let lost = |error: async_nats::PublishError| {
        Error::new(ErrorKind::Unavailable, "publish")
            .with_context("the connection has ended")
            .with_source(error)
    };
    for subject in words {
        client.publish(subject, Bytes::new()).await.map_err(lost)?;
    }
    for (number, outgoing) in frames {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, format!("{}.{number}", names.message_id));
        let (to, reply) = (subject(&names.subject, &outgoing.topic), format!("{}.{number}", names.acks));
        client.publish_with_reply_and_headers(to, reply, headers, outgoing.frame).await.map_err(lost)?;
    }
    Ok(())
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
        self.end(Err(
            Error::new(ErrorKind::Unavailable, "receive").with_context("the thread of the link has stopped")
        ));
    }
}
