//! A link over core NATS: one subscription per topic, and probes that prove what the server has done.
//!
//! NATS answers neither a publish nor a subscription, and the crate's `flush` only waits for the socket. So each run of
//! commands ends with a *probe*, a message to a subject of this link alone: the server handles the commands of one
//! connection in their order, and when the probe has come back it has handled all before it. What it refused it said
//! before it sent the probe back, see [`crate::ears`].

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::{Client, Subject, Subscriber};
use backplane_core::{Delivery, Error, ErrorKind, Reach, Result, Topic};
use bytes::Bytes;
use foldhash::fast::RandomState;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use crate::ears::{self, Ears, Refused};
use crate::feeds::Feeds;
use crate::inbox::{Inbox, own};
use crate::shared::{Batch, Call, Outcomes, Phase, Shared, Verb, Work, failed, not_sent};
use crate::subscriptions::{Claim, Subscriptions};

/// Bytes and frames of one run of commands: what a probe covers.
const RUN_BYTES: usize = 1 << 20;
const RUN_FRAMES: usize = 2_048;
/// Bytes and frames whose probe is under way. More waits here, where it is known not to have been sent.
const FLIGHT_BYTES: usize = 4 << 20;
const FLIGHT_FRAMES: usize = 16_384;
/// Subjects that are remembered for their topics.
const SUBJECTS: usize = 16_384;

/// What a link is made of.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) ears: Arc<Ears>,
}

/// The task of a link.
pub(crate) struct CoreLink {
    client: Client,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    ears: Arc<Ears>,
    subjects: Subjects,
    probes: Subscriber,
    probe: Subject,
    /// Number of the last probe sent.
    sent: u64,
    /// A probe that came back at the last turn: by now everything said before it was heard.
    returned: Option<u64>,
    feeds: Feeds,
    subscriptions: Subscriptions,
    queue: VecDeque<Work>,
    /// Subscriptions that nobody wants any more.
    unwanted: Vec<Subscriber>,
    writing: Option<BoxFuture<'static, Written>>,
    flights: VecDeque<Flight>,
    in_flight: Weight,
    /// Refusals, each with the number of the last probe that may cover what was refused.
    refusals: Vec<(Refused, u64)>,
    /// Up to that probe refusals may have gone unheard.
    unheard: u64,
    /// What the server said beside refusals, and the number of the last probe that may cover its cause.
    complaint: Option<(String, u64)>,
    timer: Pin<Box<Sleep>>,
    leaving: bool,
    closing: Option<Closing>,
    arrived: Vec<Delivery>,
    ended: bool,
}

/// What waits for one probe.
struct Flight {
    probe: u64,
    works: Vec<Sent>,
    weight: Weight,
    deadline: Instant,
}

enum Sent {
    Batch { topics: Vec<Topic>, bytes: usize, done: oneshot::Sender<Outcomes> },
    Subscribe { claims: Vec<Claim>, topics: usize, done: oneshot::Sender<Result<()>> },
    Unsubscribe { topics: usize, done: oneshot::Sender<Result<()>> },
}

#[derive(Clone, Copy, Default)]
struct Weight {
    frames: usize,
    bytes: usize,
}

/// One run of commands.
#[derive(Default)]
struct Run {
    commands: Vec<Command>,
    works: Vec<Sent>,
    weight: Weight,
    subscribes: bool,
}

enum Command {
    Publish(Vec<(Subject, Bytes)>),
    Subscribe(Vec<(Claim, Subject)>),
    Unsubscribe(Vec<Subscriber>),
}

/// The subscriptions of a run that was handed over.
type Written = Result<Vec<(Claim, Subscriber)>>;

struct Closing {
    deadline: Instant,
    /// The probe behind the end of all subscriptions.
    farewell: Option<u64>,
}

/// The subjects of topics: the same few thousand again and again.
struct Subjects {
    prefix: String,
    known: HashMap<Topic, Subject, RandomState>,
}

impl Subjects {
    fn of(&mut self, topic: &Topic) -> Subject {
        if let Some(subject) = self.known.get(topic) {
            return subject.clone();
        }
        let subject = subject(&self.prefix, topic);
        if self.known.len() >= SUBJECTS {
            self.known.clear();
        }
        self.known.insert(topic.clone(), subject.clone());
        subject
    }

    /// Whether `subject` is that of `topic`.
    fn matches(&self, subject: &str, topic: &Topic) -> bool {
        let topic_of =
            |subject: &str| Some(subject.strip_prefix(&self.prefix)?.strip_prefix('.')?.as_bytes().to_vec());
        topic_of(subject).is_some_and(|bytes| bytes == topic.as_bytes())
    }
}

/// The subject of a topic, which consists of tokens.
pub(crate) fn subject(prefix: &str, topic: &Topic) -> Subject {
    Subject::from(format!("{prefix}.{}", String::from_utf8_lossy(topic.as_bytes())))
}

impl CoreLink {
    /// Over a connection that is ready. `probe` is a subject that nobody else uses.
    pub(crate) async fn new(parts: Parts, prefix: &str, probe: String) -> Result<Self> {
        let Parts { client, shared, inbox, ears } = parts;
        let probes = client
            .subscribe(probe.clone())
            .await
            .map_err(|error| Error::new(ErrorKind::Unavailable, "connect").with_source(error))?;
        Ok(Self {
            client,
            shared,
            inbox,
            ears,
            subjects: Subjects { prefix: prefix.to_owned(), known: HashMap::default() },
            probes,
            probe: probe.into(),
            sent: 0,
            returned: None,
            feeds: Feeds::default(),
            subscriptions: Subscriptions::default(),
            queue: VecDeque::new(),
            unwanted: Vec::new(),
            writing: None,
            flights: VecDeque::new(),
            in_flight: Weight::default(),
            refusals: Vec::new(),
            unheard: 0,
            complaint: None,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            leaving: false,
            closing: None,
            arrived: Vec::new(),
            ended: false,
        })
    }

    /// One turn. Ready when the link has ended, with an error if it died.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let phase = self.shared.take(cx, &mut self.queue);
        if phase == Phase::Abandoned {
            return Poll::Ready(Ok(()));
        }
        if phase == Phase::Closing && self.closing.is_none() {
            self.inbox.end(Ok(()));
            self.closing = Some(Closing { deadline: Instant::now() + self.shared.timeout, farewell: None });
        }
        // First what may mean that the connection has ended: everything that came before is then in the feeds.
        let disconnected = self.hear(cx);
        self.receive(cx);
        self.confirm(cx);
        if disconnected {
            // Its end is the last that is said of a connection.
            if let Some(heard) = self.returned.take() {
                self.settle(heard);
            }
            return Poll::Ready(Err(self.died("the connection was lost")));
        }
        if let Some(how) = self.refused_probe() {
            return Poll::Ready(Err(how));
        }
        if self.closing.as_ref().is_some_and(|closing| closing.farewell.is_some()) && self.flights.is_empty()
        {
            return Poll::Ready(Ok(()));
        }
        while self.write(cx)? {}
        if self.leaving && self.flights.is_empty() && self.writing.is_none() {
            let error = Error::new(ErrorKind::Unavailable, "receive");
            return Poll::Ready(Err(
                error.with_context("the server is leaving (lame duck) and asks us to go elsewhere")
            ));
        }
        self.keep_time(cx)
    }

    /// What the server says beside messages. Whether the connection has ended.
    fn hear(&mut self, cx: &Context<'_>) -> bool {
        let heard = self.ears.take(cx);
        self.refusals.extend(heard.refusals.into_iter().map(|refused| (refused, self.sent)));
        if heard.incomplete {
            self.unheard = self.sent;
        }
        if let Some(complaint) = heard.complaint {
            tracing::warn!(complaint, "the NATS server complains");
            self.complaint = Some((complaint, self.sent));
        }
        self.leaving |= heard.lame_duck;
        heard.disconnected
    }

    fn receive(&mut self, cx: &Context<'_>) {
        let Self { feeds, arrived, .. } = self;
        feeds.empty(cx, |topic, message| {
            let (topic, frame) = (topic.clone(), own(message.payload));
            arrived.push(Delivery::Frame { topic, frame, position: None });
        });
        if !self.arrived.is_empty() {
            if self.closing.is_some() {
                self.arrived.clear();
            } else {
                self.inbox.push_or_drop(&mut self.arrived);
            }
        }
    }

    /// Settles what the probes that came back prove.
    fn confirm(&mut self, cx: &mut Context<'_>) {
        let mut returned = None;
        while let Poll::Ready(Some(message)) = self.probes.poll_next_unpin(cx) {
            if let Ok(number) = message.payload.as_ref().try_into() {
                returned = Some(u64::from_be_bytes(number));
            }
        }
        if let Some(heard) = std::mem::replace(&mut self.returned, returned) {
            self.settle(heard);
        }
        if self.returned.is_some() {
            // What was said before the probe is with the task that tells us: it has the next turn, we the one after.
            cx.waker().wake_by_ref();
        }
    }

    fn settle(&mut self, probe: u64) {
        while self.flights.front().is_some_and(|flight| flight.probe <= probe) {
            let Some(flight) = self.flights.pop_front() else { break };
            self.in_flight.frames -= flight.weight.frames;
            self.in_flight.bytes -= flight.weight.bytes;
            let unheard = flight.probe <= self.unheard;
            for work in flight.works {
                self.settle_one(work, flight.probe, unheard);
            }
        }
        self.refusals.retain(|(_, last)| *last > probe);
    }

    fn settle_one(&mut self, work: Sent, probe: u64, unheard: bool) {
        match work {
            Sent::Batch { topics, bytes, done } => {
                self.shared.batch_answered(bytes, topics.len());
                let outcomes = if self.refusals.is_empty() && !unheard {
                    vec![Ok(Reach::Unknown); topics.len()]
                } else {
                    topics.iter().map(|topic| self.verdict(ears::Verb::Publish, topic, unheard)).collect()
                };
                let _ = done.send(outcomes);
            }
            Sent::Subscribe { claims, topics, done } => {
                let mut verdict = Ok(());
                if !self.refusals.is_empty() || unheard {
                    verdict = claims.iter().try_for_each(|claim| {
                        self.verdict(ears::Verb::Subscribe, &claim.topic, unheard).map(drop)
                    });
                }
                // Such as `maximum subscriptions exceeded`, which names none.
                if let Some((complaint, last)) = &self.complaint
                    && probe <= *last
                    && claims.iter().any(|claim| claim.new)
                {
                    let error = Error::new(ErrorKind::Unavailable, "subscribe");
                    verdict = verdict.and(Err(error.with_context(format!("the server says: {complaint}"))));
                }
                for slot in self.subscriptions.settle(&claims, verdict.is_ok()) {
                    self.unwanted.extend(self.feeds.remove(slot));
                }
                self.shared.answer(done, topics, verdict);
            }
            Sent::Unsubscribe { topics, done } => self.shared.answer(done, topics, Ok(())),
        }
    }

    fn verdict(&self, verb: ears::Verb, topic: &Topic, unheard: bool) -> Result<Reach> {
        let operation = match verb {
            ears::Verb::Publish => "publish",
            ears::Verb::Subscribe => "subscribe",
        };
        let refused = |(refused, _): &&(Refused, u64)| {
            refused.verb == verb && self.subjects.matches(&refused.subject, topic)
        };
        if let Some((refused, _)) = self.refusals.iter().find(refused) {
            let error = Error::new(ErrorKind::Denied, operation);
            return Err(error.with_context(format!("the server says: {}", refused.text)));
        }
        if unheard {
            let error = Error::new(ErrorKind::Unavailable, operation).with_outcome_unknown();
            return Err(error.with_context("the server refused so much at once that it is not known what"));
        }
        Ok(Reach::Unknown)
    }

    /// Without probes nothing can be confirmed.
    fn refused_probe(&self) -> Option<Error> {
        let (refused, _) =
            self.refusals.iter().find(|(refused, _)| refused.subject == self.probe.as_str())?;
        let context = format!("the server says: {}; see `inbox`", refused.text);
        Some(Error::new(ErrorKind::Denied, "connect").with_context(context))
    }

    /// Hands commands to the connection. Whether to be called again.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if let Some(writing) = &mut self.writing {
            let Poll::Ready(written) = writing.poll_unpin(cx) else { return Ok(false) };
            self.writing = None;
            for (claim, subscriber) in written? {
                let slot = self.feeds.add(claim.topic.clone(), subscriber);
                self.subscriptions.asked(&claim.topic, claim.serial, slot);
            }
            return Ok(true);
        }
        let Some(run) = self.next_run() else { return Ok(false) };
        self.sent += 1;
        self.in_flight.frames += run.weight.frames;
        self.in_flight.bytes += run.weight.bytes;
        let deadline = Instant::now() + self.shared.timeout;
        self.flights.push_back(Flight { probe: self.sent, works: run.works, weight: run.weight, deadline });
        if self.flights.len() == 1 {
            self.arm();
        }
        let probe = (self.probe.clone(), Bytes::copy_from_slice(&self.sent.to_be_bytes()));
        self.writing = Some(write(self.client.clone(), run.commands, probe).boxed());
        Ok(true)
    }

    /// Everything that is ready, as far as it fits one run.
    fn next_run(&mut self) -> Option<Run> {
        let mut run = Run::default();
        if !self.unwanted.is_empty() {
            run.commands.push(Command::Unsubscribe(std::mem::take(&mut self.unwanted)));
        }
        while !self.leaving && run.weight.frames < RUN_FRAMES && run.weight.bytes < RUN_BYTES {
            let full = self.in_flight.bytes + run.weight.bytes >= FLIGHT_BYTES
                || self.in_flight.frames + run.weight.frames >= FLIGHT_FRAMES;
            match self.queue.front() {
                Some(Work::Batch(_)) if full => break,
                // It may free what this very run subscribes, whose slot is known only when the run is written.
                Some(Work::Call(call)) if call.verb == Verb::Unsubscribe && run.subscribes => break,
                _ => {}
            }
            match self.queue.pop_front() {
                Some(Work::Batch(batch)) => self.add_batch(&mut run, batch),
                Some(Work::Call(call)) => self.add_call(&mut run, call),
                None => break,
            }
        }
        if run.works.is_empty() && run.commands.is_empty() {
            self.farewell(&mut run);
        }
        (!run.works.is_empty() || !run.commands.is_empty()).then_some(run)
    }

    fn add_batch(&mut self, run: &mut Run, batch: Batch) {
        let Batch { frames, bytes, done, .. } = batch;
        run.weight.frames += frames.len();
        run.weight.bytes += bytes;
        let mut topics = Vec::with_capacity(frames.len());
        let mut publishes = Vec::with_capacity(frames.len());
        for outgoing in frames {
            publishes.push((self.subjects.of(&outgoing.topic), outgoing.frame));
            topics.push(outgoing.topic);
        }
        run.commands.push(Command::Publish(publishes));
        run.works.push(Sent::Batch { topics, bytes, done });
    }

    fn add_call(&mut self, run: &mut Run, call: Call) {
        let Call { verb, topics, done, .. } = call;
        let count = topics.len();
        // A topic costs the server about as much as a small frame.
        run.weight.frames += count;
        match verb {
            Verb::Subscribe => {
                run.subscribes = true;
                let claims = self.subscriptions.claim(topics);
                let new = claims.iter().filter(|claim| claim.new);
                let asked =
                    new.map(|claim| (claim.clone(), subject(&self.subjects.prefix, &claim.topic))).collect();
                run.commands.push(Command::Subscribe(asked));
                run.works.push(Sent::Subscribe { claims, topics: count, done });
            }
            Verb::Unsubscribe => {
                let slots = self.subscriptions.release(&topics);
                let freed = slots.into_iter().filter_map(|slot| self.feeds.remove(slot)).collect();
                run.commands.push(Command::Unsubscribe(freed));
                run.works.push(Sent::Unsubscribe { topics: count, done });
            }
        }
    }

    /// The last run of a link that is closed: when its probe is back the server has freed every subscription.
    fn farewell(&mut self, run: &mut Run) {
        if !self.flights.is_empty() || !self.queue.is_empty() {
            return;
        }
        if let Some(closing) = &mut self.closing
            && closing.farewell.is_none()
        {
            closing.farewell = Some(self.sent + 1);
            run.commands.push(Command::Unsubscribe(self.feeds.remove_all()));
        }
    }

    fn keep_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.flights.front().is_some_and(|flight| flight.deadline <= now) {
                return Poll::Ready(Err(self.died("the server did not confirm in time")));
            }
            if self.closing.as_ref().is_some_and(|closing| closing.deadline <= now) {
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
        }
    }

    /// Sets the timer to what may be due next. New work is noticed after a quarter of its time at the latest.
    fn arm(&mut self) {
        let now = Instant::now();
        let next = [
            self.flights.front().map(|flight| flight.deadline),
            self.queue.front().map(deadline),
            self.closing.as_ref().map(|closing| closing.deadline),
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
            Some((complaint, _)) => error.with_context(format!("{how}; the server says: {complaint}")),
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
        for flight in self.flights.drain(..) {
            for work in flight.works {
                match work {
                    Sent::Batch { topics, bytes, done } => {
                        self.shared.batch_answered(bytes, topics.len());
                        let error = failed(&how, "publish").with_outcome_unknown();
                        let _ = done.send(vec![Err(error); topics.len()]);
                    }
                    Sent::Subscribe { topics, done, .. } => {
                        self.shared.answer(done, topics, Err(failed(&how, "subscribe")));
                    }
                    Sent::Unsubscribe { topics, done } => {
                        self.shared.answer(done, topics, Err(failed(&how, "unsubscribe")));
                    }
                }
            }
        }
        for work in self.queue.drain(..) {
            self.shared.refuse(work, |operation| failed(&how, operation));
        }
        self.shared.end(&how);
        self.inbox.end(how);
    }
}

pub(crate) fn deadline(work: &Work) -> Instant {
    match work {
        Work::Batch(batch) => batch.deadline,
        Work::Call(call) => call.deadline,
    }
}

/// Hands one run and its probe to the connection; waits while that cannot take more.
async fn write(client: Client, commands: Vec<Command>, probe: (Subject, Bytes)) -> Written {
    let lost = || Error::new(ErrorKind::Unavailable, "publish").with_context("the connection has ended");
    let mut subscribed = Vec::new();
    for command in commands {
        match command {
            Command::Publish(frames) => {
                for (subject, frame) in frames {
                    client.publish(subject, frame).await.map_err(|error| lost().with_source(error))?;
                }
            }
            Command::Subscribe(topics) => {
                for (claim, subject) in topics {
                    let subscriber =
                        client.subscribe(subject).await.map_err(|error| lost().with_source(error))?;
                    subscribed.push((claim, subscriber));
                }
            }
            Command::Unsubscribe(subscribers) => {
                for mut subscriber in subscribers {
                    subscriber.unsubscribe().await.map_err(|error| lost().with_source(error))?;
                }
            }
        }
    }
    client.publish(probe.0, probe.1).await.map_err(|error| lost().with_source(error))?;
    Ok(subscribed)
}

impl Future for CoreLink {
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

impl Drop for CoreLink {
    /// Also when its thread fails: nobody is left waiting.
    fn drop(&mut self) {
        self.end(Err(
            Error::new(ErrorKind::Unavailable, "receive").with_context("the thread of the link has stopped")
        ));
    }
}
