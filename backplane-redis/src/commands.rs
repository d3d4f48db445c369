//! The commands of the subscribing connection: calls become few commands, and confirmations find their call.

use std::collections::VecDeque;

use backplane_core::{Error, ErrorKind, Result, Topic};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::refusal::refusal;
use crate::resp;
use crate::shared::{Call, Shared, Verb};
use crate::subscriptions::{Claim, Subscriptions};

/// Most channels, and most bytes of channels, in one command.
const COMMAND_CHANNELS: usize = 1_024;
const COMMAND_BYTES: usize = 64 << 10;
/// What a channel takes beyond its own bytes: `$`, its length, two CRLF.
const BULK_OVERHEAD: usize = 8;

/// Commands in the order in which they are sent, which is the order of the calls.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    pub(crate) topics: Subscriptions,
    /// Unanswered calls.
    calls: VecDeque<Running>,
    /// The first call that has channels to pack.
    packing: usize,
    /// What the replies belong to, in their order.
    expected: VecDeque<Expected>,
}

#[derive(Debug)]
enum Expected {
    /// That many channels of the first call.
    Confirmations {
        verb: Verb,
        left: usize,
    },
    Pong,
}

#[derive(Debug)]
struct Running {
    channels: Channels,
    packed: usize,
    /// Commands that are not answered yet.
    in_flight: usize,
    failed: bool,
    /// `None` once it was answered, or when nobody asked.
    done: Option<oneshot::Sender<Result<()>>>,
    /// What the call counts in [`Shared::load`].
    counted: usize,
    deadline: Instant,
}

#[derive(Debug)]
enum Channels {
    Subscribe(Vec<Claim>),
    Unsubscribe(Vec<Topic>),
}

impl Channels {
    fn verb(&self) -> Verb {
        match self {
            Self::Subscribe(_) => Verb::Subscribe,
            Self::Unsubscribe(_) => Verb::Unsubscribe,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Subscribe(claims) => claims.len(),
            Self::Unsubscribe(topics) => topics.len(),
        }
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        match self {
            Self::Subscribe(claims) => claims.get(index).map(|claim| claim.topic.as_bytes()),
            Self::Unsubscribe(topics) => topics.get(index).map(Topic::as_bytes),
        }
    }
}

impl Running {
    fn answer(&mut self, shared: &Shared, outcome: Result<()>) {
        if let Some(done) = self.done.take() {
            shared.load.call_answered(self.counted);
            // Nobody may be waiting any more.
            let _ = done.send(outcome);
        }
    }

    fn is_answered(&self) -> bool {
        self.in_flight == 0 && (self.failed || self.packed == self.channels.len())
    }
}

impl Commands {
    /// Takes a call over. One that has nothing to ask Redis for is answered at once.
    pub(crate) fn accept(&mut self, call: Call, shared: &Shared) {
        let counted = call.topics.len();
        let channels = match call.verb {
            Verb::Subscribe => Channels::Subscribe(self.topics.claim(call.topics)),
            Verb::Unsubscribe => Channels::Unsubscribe(self.topics.release(call.topics)),
        };
        let mut running = Running {
            channels,
            packed: 0,
            in_flight: 0,
            failed: false,
            done: Some(call.done),
            counted,
            deadline: call.deadline,
        };
        if running.channels.len() == 0 {
            running.answer(shared, Ok(()));
        } else {
            self.calls.push_back(running);
        }
    }

    /// Packs the next command, if there is one.
    pub(crate) fn pack(&mut self, out: &mut Vec<u8>) -> bool {
        while let Some(call) = self.calls.get_mut(self.packing) {
            if call.failed || call.packed == call.channels.len() {
                self.packing += 1;
                continue;
            }
            let verb = call.channels.verb();
            let channels = (call.packed..call.channels.len()).map_while(|index| call.channels.get(index));
            let mut bytes = 0;
            let count = channels
                .take(COMMAND_CHANNELS)
                .take_while(|channel| {
                    let first = bytes == 0;
                    bytes += channel.len() + BULK_OVERHEAD;
                    first || bytes <= COMMAND_BYTES
                })
                .count();
            let command = call.packed..call.packed + count;
            let channel = |index| call.channels.get(index).expect("it was just counted");
            resp::pack(out, verb.command(), command.map(channel));
            call.packed += count;
            call.in_flight += 1;
            self.expected.push_back(Expected::Confirmations { verb, left: count });
            return true;
        }
        false
    }

    pub(crate) fn ping(&mut self, out: &mut Vec<u8>) {
        redis::cmd("PING").write_packed_command(out);
        self.expected.push_back(Expected::Pong);
    }

    /// A channel was confirmed.
    pub(crate) fn confirmed(&mut self, confirmed: Verb, shared: &Shared) -> Result<()> {
        match self.expected.front_mut() {
            Some(Expected::Confirmations { verb, left }) if *verb == confirmed => {
                *left -= 1;
                if *left == 0 {
                    self.expected.pop_front();
                    self.command_answered(None, shared);
                }
                Ok(())
            }
            _ => Err(out_of_step()),
        }
    }

    /// A `PING` was answered.
    pub(crate) fn pong(&mut self) -> Result<()> {
        match self.expected.pop_front() {
            Some(Expected::Pong) => Ok(()),
            _ => Err(out_of_step()),
        }
    }

    /// A command was refused as a whole. Whether it was a `PING` (which proves that the server lives).
    pub(crate) fn refused(&mut self, line: &[u8], shared: &Shared) -> Result<bool> {
        match self.expected.pop_front() {
            Some(Expected::Pong) => Ok(true),
            Some(Expected::Confirmations { verb, .. }) => {
                self.command_answered(Some(refusal(verb.operation(), line)), shared);
                Ok(false)
            }
            None => Err(Error::new(ErrorKind::Unavailable, "link").with_context(format!(
                "the server ended the subscribing connection: {}",
                String::from_utf8_lossy(line)
            ))),
        }
    }

    /// A command of the first call is answered.
    fn command_answered(&mut self, error: Option<Error>, shared: &Shared) {
        let call = self.calls.front_mut().expect("a command in flight belongs to the first call");
        call.in_flight -= 1;
        if let Some(error) = error {
            call.failed = true;
            call.answer(shared, Err(error));
        }
        self.reap(shared);
    }

    /// Takes out the calls at the front that expect no more replies.
    fn reap(&mut self, shared: &Shared) {
        while self.calls.front().is_some_and(Running::is_answered) {
            let Some(mut call) = self.calls.pop_front() else { break };
            self.packing = self.packing.saturating_sub(1);
            if let Channels::Subscribe(claims) = &call.channels {
                let unwanted = self.topics.settle(claims, !call.failed);
                if call.packed > 0 && !unwanted.is_empty() {
                    // On an error none of those that were new counts as subscribed.
                    self.calls.push_back(Running {
                        channels: Channels::Unsubscribe(unwanted),
                        packed: 0,
                        in_flight: 0,
                        failed: false,
                        done: None,
                        counted: 0,
                        deadline: call.deadline,
                    });
                }
            }
            call.answer(shared, Ok(()));
        }
    }

    /// Answers calls that are overdue. What they asked for is taken back once Redis has answered.
    pub(crate) fn expire(&mut self, now: Instant, shared: &Shared) {
        for call in &mut self.calls {
            if call.done.is_some() && call.deadline <= now {
                call.failed |= call.channels.verb() == Verb::Subscribe;
                let error = Error::new(ErrorKind::Timeout, call.channels.verb().operation())
                    .with_context("the server did not confirm in time");
                call.answer(shared, Err(error.with_outcome_unknown()));
            }
        }
        self.reap(shared);
    }

    /// The earliest deadline of a call.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.calls.iter().filter(|call| call.done.is_some()).map(|call| call.deadline).min()
    }

    /// The link has ended: every call is answered.
    pub(crate) fn end(&mut self, error: impl Fn(&'static str) -> Error, shared: &Shared) {
        for mut call in self.calls.drain(..) {
            let error = error(call.channels.verb().operation());
            let error = if call.packed > 0 { error.with_outcome_unknown() } else { error };
            call.answer(shared, Err(error));
        }
    }
}

fn out_of_step() -> Error {
    Error::new(ErrorKind::Unavailable, "link").with_context("the server confirmed what was not asked for")
}
