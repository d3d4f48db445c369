//! The task of a link over core NATS.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::{Client, Subject, Subscriber};
use backplane_core::{Delivery, Error, Result};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::flights::{Flight, Flights, Sent};
use super::interest::Interest;
use super::run::{Run, Written, write};
use super::verdicts::Verdicts;
use crate::alarm::Alarm;
use crate::config::NatsConfig;
use crate::ears::Ears;
use crate::errors::{died, failed, lame_duck, lost, not_closed};
use crate::inbox::{Inbox, own};
use crate::shared::{Phase, Shared, Verb, Work};
use crate::subject::Subjects;
use crate::thread::Parts;

/// How long the servers of a cluster may take to tell each other of a subscription, unless the configuration says. They
/// do at once, and say nothing of it; this is far above what a route takes that is not disturbed.
const PROPAGATION: Duration = Duration::from_millis(250);

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
    interest: Interest,
    queue: VecDeque<Work>,
    writing: Option<BoxFuture<'static, Written>>,
    flights: Flights,
    /// How long the other servers may take to learn of a subscription, and the calls that are answered only then.
    propagation: Duration,
    spreading: VecDeque<Spreading>,
    verdicts: Verdicts,
    alarm: Alarm,
    leaving: bool,
    closing: Option<Closing>,
    arrived: Vec<Delivery>,
    ended: bool,
}

/// A call of subscribe that our server has confirmed.
struct Spreading {
    known: Instant,
    topics: usize,
    done: oneshot::Sender<Result<()>>,
}

struct Closing {
    deadline: Instant,
    /// Whether the run that ends all subscriptions was sent.
    farewell: bool,
}

impl CoreLink {
    /// Over a connection that is ready. `probe` is a subject that nobody else uses.
    pub(crate) async fn new(parts: Parts, config: &NatsConfig, probe: String) -> Result<Self> {
        let Parts { client, shared, inbox, ears } = parts;
        let prefix = &config.subject;
        let clustered = client.server_info().cluster.is_some();
        let unless_told = if clustered { PROPAGATION } else { Duration::ZERO };
        let probes = client.subscribe(probe.clone()).await.map_err(lost)?;
        let alarm = Alarm::new(shared.timeout);
        Ok(Self {
            client,
            shared,
            inbox,
            ears,
            subjects: Subjects::new(prefix),
            probes,
            sent: 0,
            returned: None,
            interest: Interest::default(),
            queue: VecDeque::new(),
            writing: None,
            flights: Flights::default(),
            propagation: config.propagation.unwrap_or(unless_told),
            spreading: VecDeque::new(),
            verdicts: Verdicts::new(prefix, &probe),
            probe: probe.into(),
            alarm,
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
            self.closing = Some(Closing { deadline: Instant::now() + self.shared.timeout, farewell: false });
        }
        // First what may mean that the connection has ended: everything that came before is then in the feeds.
        let heard = self.ears.take(cx);
        let disconnected = heard.is_over(&self.client);
        self.leaving |= heard.lame_duck;
        self.verdicts.hear(heard, self.sent);
        self.receive(cx);
        self.confirm(cx);
        if disconnected {
            // Its end is the last that is said of a connection.
            if let Some(heard) = self.returned.take() {
                self.settle(heard);
            }
            return Poll::Ready(Err(self.died("the connection was lost")));
        }
        if let Some(how) = self.verdicts.refused_probe() {
            return Poll::Ready(Err(how));
        }
        if self.closing.as_ref().is_some_and(|closing| closing.farewell) && self.flights.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.write(cx)? {}
        if self.leaving && self.flights.is_empty() && self.writing.is_none() {
            return Poll::Ready(Err(lame_duck()));
        }
        self.keep_time(cx)
    }

    fn receive(&mut self, cx: &Context<'_>) {
        let Self { interest, arrived, .. } = self;
        interest.empty(cx, |topic, message| {
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
        while let Some(flight) = self.flights.landed(probe) {
            for work in flight.works {
                match work {
                    Sent::Batch { topics, bytes, done } => {
                        self.shared.batch_answered(bytes, topics.len());
                        let _ = done.send(self.verdicts.of_publishes(&topics, flight.probe));
                    }
                    Sent::Subscribe { claims, topics, done } => {
                        let verdict = self.verdicts.of_subscribe(&claims, flight.probe);
                        self.interest.settle(&claims, verdict.is_ok());
                        if verdict.is_ok() && topics > 0 && !self.propagation.is_zero() {
                            self.spread(topics, done);
                        } else {
                            self.shared.answer(done, topics, verdict);
                        }
                    }
                    Sent::Unsubscribe { topics, done } => self.shared.answer(done, topics, Ok(())),
                }
            }
        }
        self.verdicts.settled(probe);
    }

    /// Holds back the answer until the other servers know.
    fn spread(&mut self, topics: usize, done: oneshot::Sender<Result<()>>) {
        self.spreading.push_back(Spreading { known: Instant::now() + self.propagation, topics, done });
        if self.spreading.len() == 1 {
            self.arm();
        }
    }

    /// Hands commands to the connection. Whether to be called again.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool> {
        if let Some(writing) = &mut self.writing {
            let Poll::Ready(written) = writing.poll_unpin(cx) else { return Ok(false) };
            self.writing = None;
            for (claim, subscriber) in written? {
                self.interest.asked(claim, subscriber);
            }
            return Ok(true);
        }
        let run = self.next_run();
        if run.is_empty() {
            return Ok(false);
        }
        self.sent += 1;
        let deadline = Instant::now() + self.shared.timeout;
        let first = self.flights.is_empty();
        self.flights.add(Flight { probe: self.sent, works: run.works, weight: run.weight, deadline });
        if first {
            self.arm();
        }
        let probe = (self.probe.clone(), Bytes::copy_from_slice(&self.sent.to_be_bytes()));
        self.writing = Some(write(self.client.clone(), run.commands, probe).boxed());
        Ok(true)
    }

    /// Everything that is ready, as far as it fits one run.
    fn next_run(&mut self) -> Run {
        let mut run = Run::default();
        let unwanted = self.interest.take_unwanted();
        if !unwanted.is_empty() {
            run.unsubscribe(unwanted);
        }
        while !self.leaving && run.has_room() {
            match self.queue.front() {
                Some(Work::Batch(_)) if self.flights.is_full_with(run.weight) => break,
                // It may free what this very run subscribes, whose slot is known only when the run is written.
                Some(Work::Call(call)) if call.verb == Verb::Unsubscribe && run.subscribes => break,
                _ => {}
            }
            match self.queue.pop_front() {
                Some(Work::Batch(batch)) => run.add_batch(batch, &mut self.subjects),
                Some(Work::Call(call)) => run.add_call(call, &mut self.interest, &self.subjects.prefix),
                None => break,
            }
        }
        // The last run of a link that is closed: when its probe is back the server has freed every subscription.
        if run.is_empty()
            && self.flights.is_empty()
            && self.queue.is_empty()
            && let Some(closing) = &mut self.closing
            && !std::mem::replace(&mut closing.farewell, true)
        {
            run.unsubscribe(self.interest.release_all());
        }
        run
    }

    fn keep_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            ready!(self.alarm.poll(cx));
            let now = Instant::now();
            if self.flights.deadline().is_some_and(|deadline| deadline <= now) {
                return Poll::Ready(Err(self.died("the server did not confirm in time")));
            }
            if self.closing.as_ref().is_some_and(|closing| closing.deadline <= now) {
                return Poll::Ready(Err(not_closed()));
            }
            while let Some(spread) = self.spreading.pop_front_if(|spread| spread.known <= now) {
                self.shared.answer(spread.done, spread.topics, Ok(()));
            }
            self.shared.refuse_overdue(&mut self.queue, now);
            self.arm();
        }
    }

    fn arm(&mut self) {
        self.alarm.set([
            self.flights.deadline(),
            self.queue.front().map(Work::deadline),
            self.spreading.front().map(|spread| spread.known),
            self.closing.as_ref().map(|closing| closing.deadline),
        ]);
    }

    fn died(&self, how: &str) -> Error {
        died(how, self.verdicts.complaint())
    }

    /// Settles everything that waits. Only the first call counts.
    fn end(&mut self, how: Result<()>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Err(error) = &how {
            tracing::debug!(%error, "NATS link ended");
        }
        self.flights.give_up(&how, &self.shared);
        for spread in self.spreading.drain(..) {
            self.shared.answer(spread.done, spread.topics, Err(failed(&how, "subscribe")));
        }
        for work in self.queue.drain(..) {
            self.shared.refuse(work, |operation| failed(&how, operation));
        }
        self.shared.end(&how);
        self.inbox.end(how);
    }
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
        self.end(Err(died("the thread of the link has stopped", None)));
    }
}
