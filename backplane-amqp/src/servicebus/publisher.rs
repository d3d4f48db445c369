//! The sending side of a link: packs what is ready into messages, keeps many on their way, and tells the outcomes.

use std::collections::VecDeque;
use std::sync::Arc;

use backplane_core::{Error, ErrorKind, Outgoing, Reach, Result};
use fe2o3_amqp::Sender;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryFut;
use fe2o3_amqp::types::messaging::{Data, Message, Outcome, Properties};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::filters::{Filters, Key};
use super::packing::{Pack, packed_len};
use super::refusal::{self, Sent};
use super::shared::{Batch, Outcomes, Shared, Ticket};
use super::throttle::Throttle;

/// Messages on their way whose outcome is open. Then nothing more is sent.
const MAX_IN_FLIGHT: usize = 2_048;

/// How a link ended: why, and whether its entity is gone.
pub(super) type End = (Error, bool);

/// What the sending half tells the settling half, in the order in which it was sent.
enum Item {
    /// A message with so many frames.
    Message { frames: usize, outcome: Pending, deadline: Instant },
    /// The last frame of a batch was in the message before.
    End(Ticket),
}

enum Pending {
    Open(DeliveryFut<std::result::Result<Outcome, SendError>>),
    /// It was not sent.
    Refused(Error),
}

/// How messages are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    pub(super) filters: Filters,
    /// Frames share a message up to so many bytes; a larger one has its own.
    pub(super) limit: usize,
}

/// Publishes until the link ends.
pub(super) async fn publish(
    sender: Sender,
    shared: Arc<Shared>,
    throttle: Arc<Throttle>,
    packing: Packing,
) -> End {
    let (sent, outcomes) = mpsc::channel(MAX_IN_FLIGHT);
    tokio::select! {
        end = send(sender, &shared, &throttle, packing, sent) => end,
        end = settle(&shared, &throttle, outcomes) => end,
    }
}

/// A batch that is being packed.
struct Open {
    frames: std::vec::IntoIter<Outgoing>,
    deadline: Instant,
    ticket: Ticket,
}

impl From<Batch> for Open {
    fn from(batch: Batch) -> Self {
        Self { frames: batch.frames.into_iter(), deadline: batch.deadline, ticket: batch.ticket }
    }
}

/// The frames that are ready, as a sequence over the batches.
struct Ready {
    open: VecDeque<Open>,
}

impl Ready {
    fn extend(&mut self, batches: VecDeque<Batch>) {
        self.open.extend(batches.into_iter().map(Open::from));
    }

    /// Packs the next message: frames with one key, as many as fit. Also who gets an answer with it.
    fn pack(&mut self, packing: Packing) -> Option<(Pack, Option<Key>, Instant, Vec<Ticket>)> {
        let mut pack = Pack::new();
        let mut ended = Vec::new();
        let mut key = None;
        let mut deadline = None;
        while let Some(open) = self.open.front_mut() {
            let Some(next) = open.frames.as_slice().first() else {
                ended.extend(self.open.pop_front().map(|open| open.ticket));
                continue;
            };
            let its = packing.filters.key(&next.topic);
            let fits = pack.fits(packed_len(&next.topic, &next.frame), packing.limit);
            if pack.frames() > 0 && (its != key || !fits) {
                break;
            }
            key = its;
            deadline.get_or_insert(open.deadline);
            pack.push(&next.topic, &next.frame);
            open.frames.next();
        }
        // Nothing but the ends of batches: they still want their answer.
        let deadline = deadline.or_else(|| (!ended.is_empty()).then(Instant::now))?;
        Some((pack, key, deadline, ended))
    }
}

async fn send(
    mut sender: Sender,
    shared: &Shared,
    throttle: &Throttle,
    packing: Packing,
    sent: mpsc::Sender<Item>,
) -> End {
    let mut ready = Ready { open: VecDeque::new() };
    loop {
        // Takes all that is ready, never waits for more.
        let more = if ready.open.is_empty() { shared.batches().await } else { shared.ready_batches() };
        ready.extend(more);
        let Some((pack, key, deadline, ended)) = ready.pack(packing) else { continue };
        let frames = pack.frames();
        if frames > 0 {
            let outcome = match hand_over(&mut sender, throttle, pack, key, deadline).await {
                Ok(pending) => pending,
                Err(end) => return end,
            };
            // The other half lives as long as this one.
            let _ = sent.send(Item::Message { frames, outcome, deadline }).await;
        }
        for ticket in ended {
            let _ = sent.send(Item::End(ticket)).await;
        }
    }
}

async fn hand_over(
    sender: &mut Sender,
    throttle: &Throttle,
    pack: Pack,
    key: Option<Key>,
    deadline: Instant,
) -> std::result::Result<Pending, End> {
    if let Err(busy) = throttle.check("publish") {
        return Ok(Pending::Refused(busy));
    }
    let properties = key.map(|key| Properties { subject: Some(key.to_string()), ..Properties::default() });
    let message = message(pack, properties);
    match timeout_at(deadline, sender.send_batchable(message)).await {
        Ok(Ok(outcome)) => Ok(Pending::Open(outcome)),
        Ok(Err(error)) => match refusal::send(error) {
            Sent::Failed(error) => Ok(Pending::Refused(error)),
            Sent::Ended(error, gone) => Err((error, gone)),
        },
        // A server that has no room for more gives no credit. Nothing was sent.
        Err(_) => Ok(Pending::Refused(
            Error::new(ErrorKind::Timeout, "publish")
                .with_context("the server took nothing in time; it was not sent"),
        )),
    }
}

/// A message as it goes over the wire.
pub(super) fn message(pack: Pack, properties: Option<Properties>) -> Message<Data> {
    Message {
        header: None,
        delivery_annotations: None,
        message_annotations: None,
        properties,
        application_properties: None,
        body: Data::from(pack.into_body()),
        footer: None,
    }
}

async fn settle(shared: &Shared, throttle: &Throttle, mut items: mpsc::Receiver<Item>) -> End {
    let mut outcomes: VecDeque<Result<Reach>> = VecDeque::new();
    while let Some(item) = items.recv().await {
        match item {
            Item::Message { frames, outcome, deadline } => {
                let outcome = match outcome {
                    Pending::Refused(error) => Err(error),
                    Pending::Open(outcome) => match decided(outcome, deadline).await {
                        Ok(outcome) => outcome.inspect_err(|error| {
                            if error.kind() == ErrorKind::Overloaded {
                                throttle.busy(error);
                            }
                        }),
                        Err(end) => return end,
                    },
                };
                let outcome = outcome.map(|()| Reach::Unknown);
                outcomes.extend(std::iter::repeat_n(outcome, frames));
            }
            Item::End(ticket) => {
                let batch: Outcomes = outcomes.drain(..ticket.frames.min(outcomes.len())).collect();
                shared.settle(ticket, batch);
            }
        }
    }
    (Error::new(ErrorKind::Closed, "publish"), false)
}

/// The outcome of one message.
async fn decided(
    outcome: DeliveryFut<std::result::Result<Outcome, SendError>>,
    deadline: Instant,
) -> std::result::Result<Result<()>, End> {
    match timeout_at(deadline, outcome).await {
        Ok(Ok(outcome)) => Ok(refusal::outcome(&outcome)),
        Ok(Err(error)) => match refusal::send(error) {
            Sent::Failed(error) => Ok(Err(error)),
            Sent::Ended(error, gone) => Err((error, gone)),
        },
        Err(_) => Ok(Err(Error::new(ErrorKind::Timeout, "publish")
            .with_context("the server did not answer in time")
            .with_outcome_unknown())),
    }
}
