//! The publishing connection: many frames on their way at once, their confirms collected in order.
//!
//! `basic_publish` of lapin completes when its thread has written the frame, so awaiting each would cost two changes of
//! thread. Its first poll queues the frame; so each frame is polled once when it is launched, and again when it is the
//! oldest one. A confirm that nobody awaits is kept by lapin for ever, so every one is awaited here.
//!
//! The broker confirms a frame when every queue has it. One queue that stands still, such as that of another node on a
//! broker of the cluster that is frozen, keeps back the confirms of all that goes there, for a minute or more. So a frame
//! that lingers steps aside: it hides no confirms behind it, and its bytes take no room from other calls of publish once
//! they are written. Frames of its own call are answered with it, at the latest after the command time-out.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Event};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::flight::{Confirmed, Flight, InFlight, Landed, fly, land, land_any};
use super::refusal::refusal;
use super::routing::Routing;
use super::shared::{Batch, Phase, Shared};

/// Most frames, and most bytes unless it is one, that lapin holds unconfirmed. It searches all of them for each confirm
/// of several.
const WINDOW: usize = 1_024;
const WINDOW_BYTES: usize = 8 << 20;

/// After how long a frame lingers.
const LINGERS: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Publisher {
    channel: Arc<Channel>,
    exchange: ShortString,
    routing: Arc<Routing>,
    shared: Arc<Shared>,
    events: BoxStream<'static, Event>,
    /// Batches of which nothing was launched yet.
    queue: VecDeque<Batch>,
    /// The rest of the batch that is being launched, which is the one of the highest number.
    launching: std::vec::IntoIter<Outgoing>,
    /// By their numbers. Each stays until the last of its frames has landed.
    batches: BTreeMap<u64, InFlight>,
    next_batch: u64,
    flights: VecDeque<Flight>,
    aloft_bytes: usize,
    /// Flights that stepped aside. As many as [`Shared`] lets be unanswered; what was written of them is not counted in bytes.
    lingering: Vec<Flight>,
}

impl Publisher {
    pub(super) fn new(
        channel: Channel,
        events: BoxStream<'static, Event>,
        exchange: ShortString,
        routing: Arc<Routing>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            channel: Arc::new(channel),
            exchange,
            routing,
            shared,
            events,
            queue: VecDeque::new(),
            launching: Vec::new().into_iter(),
            batches: BTreeMap::new(),
            next_batch: 0,
            flights: VecDeque::new(),
            aloft_bytes: 0,
            lingering: Vec::new(),
        }
    }

    /// Publishes until the link is closed and every frame has its outcome, or is abandoned.
    pub(super) async fn run(&mut self) -> Result<()> {
        let period = (self.shared.timeout / 20).clamp(Duration::from_millis(5), Duration::from_millis(500));
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (batches, phase) = self.shared.take_batches();
            self.queue.extend(batches);
            if phase == Phase::Abandoned {
                return Ok(());
            }
            self.launch();
            if phase == Phase::Closing && self.all_answered() {
                return Ok(());
            }
            let shared = self.shared.clone();
            let flights = &mut self.flights;
            tokio::select! {
                landed = poll_fn(|cx| land(flights, cx)), if !flights.is_empty() => self.landed(landed)?,
                () = shared.work.notified() => {}
                event = self.events.next() => self.on(event)?,
                now = ticks.tick() => {
                    self.step_aside(now)?;
                    self.expire(now);
                }
            }
        }
    }

    /// Whether nobody waits for an outcome. Confirms of what was overdue may still be missing, and while the broker blocks
    /// the connection they do not come.
    fn all_answered(&self) -> bool {
        self.queue.is_empty() && self.batches.values().all(|batch| batch.done.is_none())
    }

    /// Hands frames to lapin as far as the window allows.
    fn launch(&mut self) {
        if let Some(error) = self.shared.blocked("publish") {
            return self.keep_back(&error);
        }
        let now = Instant::now();
        while self.flights.len() < WINDOW && (self.aloft_bytes < WINDOW_BYTES || self.flights.is_empty()) {
            let Some(Outgoing { topic, frame }) = self.launching.next() else {
                let Some(batch) = self.queue.pop_front() else { return };
                self.begin(batch);
                continue;
            };
            let (key, name) = self.routing.key(&topic);
            let properties = match name {
                Some(name) => BasicProperties::default().with_type(name),
                None => BasicProperties::default(),
            };
            let (batch, place) = self.last_taken();
            self.aloft_bytes += frame.len();
            self.flights.push_back(Flight {
                bytes: frame.len(),
                batch,
                place,
                launched: now,
                confirmed: fly(self.channel.clone(), self.exchange.clone(), key, properties, frame),
            });
        }
    }

    /// The number of the batch that is being launched, and the place of the frame that was taken from it last.
    fn last_taken(&self) -> (u64, usize) {
        let last = self.batches.last_key_value();
        last.map_or((0, 0), |(number, batch)| (*number, batch.launches - self.launching.len() - 1))
    }

    fn begin(&mut self, batch: Batch) {
        let Batch { frames, bytes: _, done, deadline } = batch;
        let batch = InFlight::new(frames.len(), done, deadline);
        self.launching = frames.into_iter();
        self.batches.insert(self.next_batch, batch);
        self.next_batch += 1;
    }

    /// Answers everything that was not launched.
    fn keep_back(&mut self, error: &Error) {
        self.keep_back_rest(error);
        for batch in std::mem::take(&mut self.queue) {
            refuse(&self.shared, batch, error);
        }
    }

    /// Answers what was not launched of the batch that is being launched.
    fn keep_back_rest(&mut self, error: &Error) {
        let rest = std::mem::replace(&mut self.launching, Vec::new().into_iter());
        let frames = rest.len();
        if frames > 0
            && let Some(mut last) = self.batches.last_entry()
        {
            self.shared.frames_answered(rest.map(|outgoing| outgoing.frame.len()).sum(), frames);
            if last.get_mut().keep_back(frames, error) {
                last.remove();
            }
        }
    }

    /// Frames of the window got their outcomes.
    fn landed(&mut self, landed: Vec<Landed>) -> Result<()> {
        self.aloft_bytes -= landed.iter().map(|(flight, _)| flight.bytes).sum::<usize>();
        self.settle(landed)
    }

    fn settle(&mut self, landed: Vec<Landed>) -> Result<()> {
        for (Flight { batch, place, bytes, .. }, confirmation) in landed {
            self.shared.frames_answered(bytes, 1);
            self.settle_one(batch, place, confirmation)?;
        }
        Ok(())
    }

    /// Notes the outcome of one frame.
    fn settle_one(
        &mut self,
        batch: u64,
        place: usize,
        confirmation: lapin::Result<Confirmation>,
    ) -> Result<()> {
        let outcome = match confirmation {
            Ok(Confirmation::Ack(_)) => Ok(Reach::Unknown),
            // A queue of several may have failed, and the others have it.
            Ok(Confirmation::Nack(_)) => Err(Error::new(ErrorKind::Unavailable, "publish")
                .with_context("the broker could not keep it (nack)")
                .with_outcome_unknown()),
            Ok(Confirmation::NotRequested) => {
                return Err(Error::new(ErrorKind::Malformed, "publish")
                    .with_context("the channel stopped to confirm"));
            }
            Err(error) => {
                let subject = format!("exchange `{}`", self.exchange);
                return Err(refusal("publish", &subject, error));
            }
        };
        if let Entry::Occupied(mut batch) = self.batches.entry(batch)
            && batch.get_mut().landed(place, outcome)
        {
            batch.remove();
        }
        Ok(())
    }

    /// Looks behind the oldest flight when it lingers, for confirms come out of order then.
    fn step_aside(&mut self, now: Instant) -> Result<()> {
        let lingers = |flight: &Flight| now.saturating_duration_since(flight.launched) >= LINGERS;
        let landed = land_any(&mut self.lingering);
        self.settle(landed)?;
        if self.flights.front().is_some_and(lingers) {
            let mut flights = Vec::from(std::mem::take(&mut self.flights));
            let landed = land_any(&mut flights);
            let (aside, aloft): (Vec<_>, Vec<_>) = flights.into_iter().partition(lingers);
            self.aloft_bytes -= aside.iter().map(|flight| flight.bytes).sum::<usize>();
            self.lingering.extend(aside);
            self.flights = aloft.into();
            self.landed(landed)?;
        }
        // Nothing of their bytes is ours any more, and others may wait for the room. Their number stays bounded.
        for flight in
            self.lingering.iter_mut().filter(|flight| matches!(flight.confirmed, Confirmed::Written(_)))
        {
            self.shared.frames_answered(std::mem::take(&mut flight.bytes), 0);
        }
        Ok(())
    }

    fn on(&self, event: Option<Event>) -> Result<()> {
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                tracing::warn!(reason, "the broker blocked the connection that publishes");
                self.shared.set_blocked(Some(reason));
            }
            Some(Event::ConnectionUnblocked) => {
                tracing::info!("the broker takes publishes again");
                self.shared.set_blocked(None);
            }
            Some(Event::Error(error)) => {
                return Err(refusal("publish", "the connection that publishes", error));
            }
            Some(_) => {}
            None => {
                return Err(
                    Error::new(ErrorKind::Unavailable, "publish").with_context("the connection ended")
                );
            }
        }
        Ok(())
    }

    /// Answers what waited too long.
    fn expire(&mut self, now: Instant) {
        let blocked = self.shared.blocked("publish");
        let late = || {
            let late = Error::new(ErrorKind::Timeout, "publish");
            blocked.clone().unwrap_or_else(|| late.with_context("the broker did not confirm in time"))
        };
        // What was never handed over did certainly not arrive, and must not go out behind a repetition of it.
        if self.batches.last_key_value().is_some_and(|(_, batch)| now >= batch.deadline) {
            self.keep_back_rest(&late());
        }
        for batch in self.batches.values_mut().filter(|batch| batch.done.is_some() && now >= batch.deadline) {
            batch.answer(&late());
        }
        while self.queue.front().is_some_and(|batch| now >= batch.deadline) {
            let Some(batch) = self.queue.pop_front() else { return };
            refuse(&self.shared, batch, &late());
        }
    }

    /// Answers everything, because the link has ended with `error`.
    pub(super) fn end(&mut self, error: &Error) {
        self.keep_back(error);
        for batch in std::mem::take(&mut self.batches).values_mut() {
            batch.answer(error);
        }
        for flight in self.flights.drain(..).chain(self.lingering.drain(..)) {
            self.shared.frames_answered(flight.bytes, 1);
        }
    }
}

/// Answers a batch of which nothing was launched.
pub(super) fn refuse(shared: &Shared, batch: Batch, error: &Error) {
    shared.frames_answered(batch.bytes, batch.frames.len());
    let _ = batch.done.send(vec![Err(error.clone()); batch.frames.len()]);
}
