//! A node with one connection, as these tests drive it: it says something to everybody, and hears what others say.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backplane_conformance::bound;
use backplane_core::{
    Backplane as _, BackplaneExt as _, EncodedMessage, Event, Gap, LocalConnection, LossReason,
    OutboundLimits, OutboundReceiver, OverflowPolicy, Protocol, Registration, Router, RouterConfig, outbound,
};
use backplane_sql::SqlBus;
use tokio::sync::broadcast;

/// How long anything may take that happens at once on a machine without other work.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Nothing that a test says is too much.
const ROOMY: OutboundLimits =
    OutboundLimits { messages: 1 << 20, bytes: 1 << 26, overflow: OverflowPolicy::Disconnect };

/// What ends a text: texts that arrive together come joined.
const END: char = ';';

/// See the module.
pub(crate) struct Member {
    pub(crate) router: Router,
    _registration: Registration,
    inbox: OutboundReceiver,
    heard: VecDeque<String>,
    events: broadcast::Receiver<Event>,
}

impl Member {
    /// On `bus`, up when this returns.
    pub(crate) async fn open(bus: Arc<SqlBus>) -> Self {
        Self::open_with(bus, RouterConfig::default()).await
    }

    pub(crate) async fn open_with(bus: Arc<SqlBus>, config: RouterConfig) -> Self {
        let router = Router::open(bus, config).await.expect("the database lets us in");
        let (outbound, inbox) = outbound(ROOMY);
        let id = router.new_connection_id();
        let connection = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound };
        let registration = router.register(connection).await.expect("the link is up");
        let events = router.events();
        Self { router, _registration: registration, inbox, heard: VecDeque::new(), events }
    }

    /// To everybody, itself included; the log has it when this returns.
    pub(crate) async fn says(&self, text: &str) {
        let sent = self.router.send_to_all(Self::message(text)).await;
        sent.unwrap_or_else(|error| panic!("{text:?} was not accepted: {error}"));
    }

    fn message(text: &str) -> EncodedMessage {
        EncodedMessage::json(format!("{text}{END}"))
    }

    /// The next text.
    pub(crate) async fn hears_next(&mut self) -> String {
        while self.heard.is_empty() {
            let item = self.inbox.next().await.expect("nobody ends the connection");
            let texts = String::from_utf8(item.bytes.to_vec()).expect("a text is UTF-8");
            self.heard.extend(texts.split_terminator(END).map(str::to_owned));
        }
        self.heard.pop_front().expect("there is one")
    }

    /// Waits for `text`, and returns what came before it.
    pub(crate) async fn hears(&mut self, text: &str) -> Vec<String> {
        let mut before = Vec::new();
        let waited = tokio::time::timeout(bound(SOON), async {
            loop {
                let heard = self.hears_next().await;
                if heard == text {
                    return;
                }
                before.push(heard);
            }
        });
        assert!(waited.await.is_ok(), "{text:?} was not heard within {:?}, but {before:?}", bound(SOON));
        before
    }

    /// The next gap, and how long it took.
    pub(crate) async fn gap(&mut self) -> (Gap, Duration) {
        let start = Instant::now();
        let waited = tokio::time::timeout(bound(SOON), async {
            loop {
                if let Event::Gap(gap) = self.events.recv().await.expect("all events are read") {
                    return gap;
                }
            }
        });
        (waited.await.unwrap_or_else(|_| panic!("no gap was told within {:?}", bound(SOON))), start.elapsed())
    }

    /// The next link after the first: whether it resumed.
    pub(crate) async fn link(&mut self) -> bool {
        let waited = tokio::time::timeout(bound(SOON), async {
            loop {
                if let Event::LinkUp { resumed, .. } = self.events.recv().await.expect("all events are read")
                {
                    return resumed;
                }
            }
        });
        waited.await.unwrap_or_else(|_| panic!("no new link within {:?}", bound(SOON)))
    }

    /// Waits until the link has ended.
    pub(crate) async fn loses_its_link(&mut self) {
        let mut health = self.router.health();
        let down = tokio::time::timeout(bound(SOON), health.wait_for(|health| health.is_down())).await;
        drop(down.expect("a dead link is noticed").expect("the node lives"));
    }

    /// Why something may have been lost, of all that was not waited for.
    pub(crate) fn further_gaps(&mut self) -> Vec<LossReason> {
        let mut gaps = Vec::new();
        loop {
            match self.events.try_recv() {
                Ok(Event::Gap(gap)) => gaps.push(gap.reason),
                Ok(_) => {}
                Err(broadcast::error::TryRecvError::Empty) => return gaps,
                Err(error) => panic!("all events are read: {error}"),
            }
        }
    }

    /// How often it has connected anew.
    pub(crate) fn reconnects(&self) -> u64 {
        self.router.stats().reconnects
    }
}

/// Every one of `members` says something, and all hear it.
pub(crate) async fn all_hear_each_other(members: &mut [&mut Member], what: &str) {
    for speaker in 0..members.len() {
        let text = format!("{what} {speaker}");
        members[speaker].says(&text).await;
        for listener in &mut *members {
            listener.hears(&text).await;
        }
    }
}
