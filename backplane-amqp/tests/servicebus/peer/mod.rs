//! A small Azure Service Bus inside the test process: entities over HTTP, messages, tokens and rules over AMQP 1.0.
//!
//! It does what Azure documents, as far as the bus uses it, and what a test tells it to do: refuse tokens, say that it is
//! busy, detach links, take entities away. What happened to it can be waited for.

mod amqp;
mod entities;
mod http;

use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub(crate) use entities::{Entities, Rule};

use crate::link::patience;

/// The policy and its key.
pub(crate) const KEY_NAME: &str = "suite";
pub(crate) const KEY: &str = "c3VpdGU+key/=";

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A token was put for an audience; whether it was taken.
    Token { audience: String, taken: bool },
    /// A topic was asked for; whether it was made now.
    Topic { name: String, made: bool },
    /// A subscription was made.
    Subscribed { topic: String, name: String, description: String },
    /// A subscription was deleted by a client.
    Unsubscribed { name: String },
    /// A rule was added to a subscription.
    RuleAdded { rule: String, label: String },
    /// A rule was removed from a subscription.
    RuleRemoved { rule: String },
    /// A message was refused, or an attach, because we are busy.
    Busy,
    /// A message was taken.
    Message,
}

/// What it does besides its duty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manners {
    /// Tokens are refused.
    pub(crate) refuse_tokens: bool,
    /// So many messages are refused as `com.microsoft:server-busy`, and for how long it wants to be left alone.
    pub(crate) busy: usize,
    pub(crate) busy_seconds: u64,
    /// So many requests to make a rule or to remove one are refused with a 500.
    pub(crate) refuse_rules: usize,
    /// Messages are taken, and never answered.
    pub(crate) mute: bool,
    /// The management interface answers 503.
    pub(crate) management_busy: bool,
}

/// Why it ends links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// For idleness, as Azure does after 10 minutes.
    Forced,
    /// The entity is gone.
    NotFound,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) state: Arc<State>,
    pub(crate) address: SocketAddr,
    pub(crate) management: SocketAddr,
    /// Dropped, everything ends.
    _tasks: JoinSet<()>,
}

/// What all its connections share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) entities: Mutex<Entities>,
    pub(crate) manners: Mutex<Manners>,
    events: watch::Sender<Vec<Event>>,
    /// Links end when it changes, as it says.
    ending: watch::Sender<(u64, Ending)>,
    /// A link that received has ended.
    pub(crate) receivers: Notify,
    key: hmac::Key,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(State {
            entities: Mutex::default(),
            manners: Mutex::default(),
            events: watch::Sender::new(Vec::new()),
            ending: watch::Sender::new((0, Ending::Forced)),
            receivers: Notify::new(),
            key: hmac::Key::new(hmac::HMAC_SHA256, KEY.as_bytes()),
        });
        let (address, management) = (listener.local_addr().unwrap(), web.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(amqp::serve(listener, state.clone()));
        tasks.spawn(http::serve(web, state.clone()));
        Self { state, address, management, _tasks: tasks }
    }

    /// The bus' URL when AMQP is reached at `address`.
    pub(crate) fn url_at(&self, address: SocketAddr, parameters: &str) -> String {
        // Refused where nothing is to be made.
        let management = match parameters.contains("create=false") {
            true => String::new(),
            false => format!("&management=http://{}", self.management),
        };
        format!(
            "servicebus://{KEY_NAME}:{}@{address}/live?tls=false{management}{parameters}",
            KEY.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"),
        )
    }

    pub(crate) fn url(&self, parameters: &str) -> String {
        self.url_at(self.address, parameters)
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.state.events.borrow().clone()
    }

    /// Waits until the events satisfy `enough`.
    pub(crate) async fn until(&self, what: &str, enough: impl Fn(&[Event]) -> bool) {
        let mut events = self.state.events.subscribe();
        let waited = tokio::time::timeout(patience(), events.wait_for(|events| enough(events))).await;
        assert!(waited.is_ok(), "{what} did not happen: {:?}", self.events());
    }

    /// Waits until so many links receive.
    pub(crate) async fn until_received_by(&self, links: usize) {
        let counted = async {
            loop {
                let changed = self.state.receivers.notified();
                if self.state.entities.lock().receivers() == links {
                    return;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(patience(), counted).await;
        assert!(waited.is_ok(), "{} links receive", self.state.entities.lock().receivers());
    }

    pub(crate) fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.state.manners.lock());
    }

    /// Detaches every link that carries frames.
    pub(crate) fn detach(&self, ending: Ending) {
        self.state.ending.send_modify(|(count, how)| {
            *count += 1;
            *how = ending;
        });
    }
}

impl State {
    pub(crate) fn note(&self, event: Event) {
        self.events.send_modify(|events| events.push(event));
    }

    /// Whether a shared access signature is ours, is for `audience`, and has not ended; then when it ends, in seconds
    /// after 1970.
    pub(crate) fn verify(&self, token: &str, audience: &str) -> Option<u64> {
        let fields = token.strip_prefix("SharedAccessSignature ")?;
        let field =
            |name: &str| fields.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let decode = |text: &str| percent_decode_str(text).decode_utf8().ok().map(String::from);
        let (resource, expires) = (field("sr")?, field("se")?);
        let signature = STANDARD.decode(decode(field("sig")?)?).ok()?;
        hmac::verify(&self.key, format!("{resource}\n{expires}").as_bytes(), &signature).ok()?;
        let path = |uri: &str| uri.split_once("://").map(|(_, rest)| rest.to_lowercase());
        let covered = path(audience)?.starts_with(&path(&decode(resource)?)?);
        let expires: u64 = expires.parse().ok()?;
        let alive = expires > now();
        (decode(field("skn")?)? == KEY_NAME && covered && alive).then_some(expires)
    }
}

/// Seconds after 1970.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
