//! What the server says beside messages: refusals, its leaving, the end of the connection.
//!
//! The crate tells it through a queue of 128 events that drops what does not fit, served by a task of its own. Two facts
//! make that reliable here. Everything of a link runs on one thread whose tasks take turns in the order in which they
//! were woken: whoever reads an answer of the server and then lets the others have a turn has heard everything that the
//! server said before it. And events can only be missing when as many as fit the queue were heard
//! ([`Heard::incomplete`]).

use std::sync::Arc;
use std::task::{Context, Waker};

use async_nats::connection::State as Connection;
use async_nats::{Client, Event, ServerError};
use parking_lot::Mutex;

/// How many events the crate keeps for us at once.
const KEPT: usize = 128;

/// Shared by the callback that the crate calls and the task of the link.
#[derive(Debug, Default)]
pub(crate) struct Ears {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    heard: Heard,
    events: usize,
    task: Option<Waker>,
}

/// What was heard since the last time.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// What was refused, in the order of the refusals.
    pub(crate) refusals: Vec<Refused>,
    /// So much was said at once that refusals may be missing.
    pub(crate) incomplete: bool,
    /// Any other complaint, the last one.
    pub(crate) complaint: Option<String>,
    /// The server is about to leave, and asks us to go elsewhere.
    pub(crate) lame_duck: bool,
    /// The end of the connection was told.
    disconnected: bool,
}

impl Heard {
    /// Whether the connection has ended. Where words were lost that may be one of them, so it is looked at then; only
    /// then, for otherwise all that the server said before has to be heard first.
    pub(crate) fn is_over(&self, client: &Client) -> bool {
        self.disconnected || (self.incomplete && client.connection_state() == Connection::Disconnected)
    }
}

/// A subject that we may not use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) right: Right,
    pub(crate) subject: String,
    /// The server's words.
    pub(crate) text: String,
}

/// What we may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Publish,
    Subscribe,
}

impl Ears {
    /// What the crate calls for each event.
    pub(crate) fn hear(self: &Arc<Self>, event: &Event) {
        let task = {
            let mut state = self.state.lock();
            state.events += 1;
            state.heard.incomplete |= state.events >= KEPT;
            match event {
                Event::Disconnected | Event::Closed => state.heard.disconnected = true,
                Event::LameDuckMode => state.heard.lame_duck = true,
                Event::ServerError(ServerError::Other(text)) => match refused(text) {
                    Some(refused) => state.heard.refusals.push(refused),
                    None => state.heard.complaint = Some(text.clone()),
                },
                Event::ServerError(error) => state.heard.complaint = Some(error.to_string()),
                // The queues of our subscriptions are too large to be full, and we neither drain nor reconnect.
                Event::Connected | Event::Draining | Event::SlowConsumer(_) | Event::ClientError(_) => {}
            }
            state.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }

    /// What was heard since the last time; the task is woken when there is more.
    pub(crate) fn take(&self, cx: &Context<'_>) -> Heard {
        let mut state = self.state.lock();
        match &mut state.task {
            Some(task) => task.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        state.events = 0;
        std::mem::take(&mut state.heard)
    }
}

/// `Permissions Violation for Publish to "SUBJECT"`, or `for Subscription to "SUBJECT"`, perhaps with a queue behind.
fn refused(text: &str) -> Option<Refused> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let (right, rest) = match rest.strip_prefix("Publish to ") {
        Some(rest) => (Right::Publish, rest),
        None => (Right::Subscribe, rest.strip_prefix("Subscription to ")?),
    };
    let subject = rest.strip_prefix('"')?.split('"').next()?;
    Some(Refused { right, subject: subject.to_owned(), text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Event {
        Event::ServerError(ServerError::Other(text.to_owned()))
    }

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    #[test]
    fn refusals_name_verb_and_subject_and_the_rest_is_kept_as_it_is() {
        let ears = Arc::new(Ears::default());
        ears.hear(&error("Permissions Violation for Publish to \"a.b\""));
        ears.hear(&error("Permissions Violation for Subscription to \"c\" using queue \"q\""));
        ears.hear(&error("Slow Consumer"));
        let heard = ears.take(&cx());
        let refused: Vec<_> =
            heard.refusals.iter().map(|refused| (refused.right, refused.subject.as_str())).collect();
        assert_eq!(refused, [(Right::Publish, "a.b"), (Right::Subscribe, "c")]);
        assert_eq!(heard.complaint.as_deref(), Some("Slow Consumer"));
        assert!(!heard.disconnected && !heard.incomplete && !heard.lame_duck);
        ears.hear(&Event::LameDuckMode);
        ears.hear(&Event::Disconnected);
        let heard = ears.take(&cx());
        assert!(heard.disconnected && heard.lame_duck && heard.refusals.is_empty());
    }

    #[test]
    fn a_full_queue_of_events_is_not_trusted() {
        let ears = Arc::new(Ears::default());
        for _ in 0..KEPT - 1 {
            ears.hear(&error("Permissions Violation for Publish to \"a\""));
        }
        assert!(!ears.take(&cx()).incomplete);
        for _ in 0..KEPT {
            ears.hear(&error("Permissions Violation for Publish to \"a\""));
        }
        assert!(ears.take(&cx()).incomplete);
        assert!(!ears.take(&cx()).incomplete);
    }
}
