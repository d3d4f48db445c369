//! The bus: opens links, and what their senders do.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Error, ErrorKind, Limits, Link, LinkSender, Outgoing, Result, Topic,
    TopicSyntax,
};
use backplane_tls::Tls;
use bytes::Bytes;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::definitions::SenderSettleMode;
use fe2o3_amqp::{Receiver, Sender};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, oneshot};

use super::config::{Credentials, Entities, ServiceBusConfig};
use super::connection::{Connection, Endpoint};
use super::filters::{Change, Filters, Interest, Rules};
use super::inbox::{Inbound, Inbox};
use super::management::Management;
use super::namespace::{Addresses, Namespace};
use super::packing::{Pack, Unpack, packed_len};
use super::publisher::{self, End, Packing};
use super::receiver::{self, Credit};
use super::refusal::{self, Sent};
use super::renewal::Renewal;
use super::shared::{Outcomes, Shared};
use super::task::{LinkTask, MAX_QUESTIONS, Question};
use super::throttle::Throttle;
use super::token::Signer;

/// What the sections of a message and a topic of ordinary length may take besides the frame.
const HEADROOM: usize = 4 << 10;
/// What the sections take at most.
const SECTIONS: usize = 512;
/// Frames of the protocol that one connection may read before we took them: small ones to the publisher ...
const ANSWERS: usize = 65_536;
/// ... and messages, or parts of them, to the receiver, besides what its own queue holds.
const READ_AHEAD: usize = 64;
/// Changes of interest that wait for the rules.
const MAX_CHANGES: usize = 1_024;

/// Azure Service Bus, or another broker of AMQP 1.0, as a bus. Each link has two connections, one to publish and one to
/// receive, and one task.
pub struct ServiceBus {
    config: ServiceBusConfig,
    endpoint: Endpoint,
    signer: Option<Signer>,
    namespace: Arc<Namespace>,
    throttle: Arc<Throttle>,
}

impl fmt::Debug for ServiceBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceBus").field("config", &self.config).finish_non_exhaustive()
    }
}

impl ServiceBus {
    /// A bus over the namespace that `config` names. Connects nothing yet.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when a field is out of its bounds, fields do not go together, or the
    /// system trusts no certificate.
    pub fn new(config: ServiceBusConfig) -> Result<Self> {
        config.validate()?;
        let tls = || -> Result<_> {
            Ok(match &config.tls {
                Some(tls) => tls.config().clone(),
                None => Tls::system()?.config().clone(),
            })
        };
        let signer = match &config.credentials {
            Credentials::Key { name, key } => Some(Signer::new(name, key)),
            Credentials::Plain { .. } | Credentials::Anonymous => None,
        };
        let management = match (&config.entities, &signer) {
            (Entities::Created, Some(signer)) => {
                let (host, port, secure) = match &config.management {
                    Some(address) => (address.host.as_str(), address.port, address.tls),
                    None => (config.host.as_str(), 443, true),
                };
                let tls = if secure { Some(tls()?) } else { None };
                Some(Management::new(host, port, tls, signer.clone(), &config.host))
            }
            _ => None,
        };
        let endpoint = Endpoint {
            host: config.host.clone(),
            port: config.port.unwrap_or(if config.plain { 5672 } else { 5671 }),
            tls: if config.plain { None } else { Some(tls()?) },
            sasl: match &config.credentials {
                Credentials::Plain { user, password } => {
                    SaslProfile::Plain { username: user.clone(), password: password.clone() }
                }
                Credentials::Key { .. } | Credentials::Anonymous => SaslProfile::Anonymous,
            },
        };
        let namespace = Namespace::new(&config, management);
        Ok(Self { config, endpoint, signer, namespace, throttle: Arc::default() })
    }

    async fn open(&self, attach: Attach<'_>) -> Result<Link> {
        // A server that wants to be left alone is not asked.
        self.throttle.check("connect")?;
        // Boxed: two handshakes make a large future.
        let opened = Box::pin(self.attempt(attach)).await;
        if matches!(&opened, Err(error) if error.kind() == ErrorKind::Overloaded) {
            self.throttle.busy();
        }
        opened
    }

    async fn attempt(&self, attach: Attach<'_>) -> Result<Link> {
        let name = format!("backplane-{}-{}", attach.node, attach.attempt);
        let (addresses, mut publishing, mut receiving) = tokio::try_join!(
            self.namespace.prepare(&attach),
            Connection::open(&self.endpoint, &name, attach.heartbeat, ANSWERS),
            Connection::open(&self.endpoint, &name, attach.heartbeat, READ_AHEAD),
        )?;
        let renewal = self.authorize(&mut publishing, &mut receiving, &addresses).await?;
        let (mut sender, mut receiver) = tokio::try_join!(
            self.attach_sender(&mut publishing, &addresses, &name),
            self.attach_receiver(&mut receiving, &addresses, &name),
        )?;
        // Nobody else subscribes to that.
        let probe = Outgoing { topic: Topic::from(format!("\0probe of {name}")), frame: Bytes::new() };
        let mut credit = Credit::new(self.config.prefetch, self.config.max_undelivered);
        confirm(&mut sender, &mut receiver, &mut credit, &probe)
            .await
            .map_err(|end| self.not_attached(end))?;

        let interest = Interest::new(attach.topics);
        let (asking, questions) = mpsc::channel(MAX_QUESTIONS);
        let (changes, rules) = match self.config.filters {
            Filters::None => (None, None),
            filters => {
                let session = receiving.session().await?;
                let mut rules = Rules::new(filters, &addresses.receive_from, session, attach.heartbeat);
                let topics = [attach.topics, std::slice::from_ref(&probe.topic)].concat();
                rules.start(&topics).await?;
                let (changes, waiting) = mpsc::channel(MAX_CHANGES);
                (Some(changes), Some((rules, waiting)))
            }
        };

        let largest = sender.max_message_size().and_then(|size| usize::try_from(size).ok());
        let max_frame = match largest {
            Some(size) => self.config.max_frame.min(size.saturating_sub(HEADROOM)),
            None => self.config.max_frame,
        };
        // Without a limit of the server, topics may be of any length.
        let room = largest.map_or(usize::MAX, |size| size.saturating_sub(SECTIONS));
        let shared = Shared::new(self.config.publish_timeout.unwrap_or(attach.heartbeat));
        let inbox = Inbox::new(self.config.max_undelivered);
        let task = LinkTask {
            shared: shared.clone(),
            inbox: inbox.clone(),
            interest: interest.clone(),
            throttle: self.throttle.clone(),
            namespace: self.namespace.clone(),
            publishing,
            receiving,
            sender,
            receiver,
            credit,
            packing: Packing { filters: self.config.filters, limit: self.config.pack.min(room) },
            questions,
            probe,
            rules,
            renewal,
            lease: addresses.lease,
            heartbeat: attach.heartbeat,
        };
        // Its owner is `inbound`: dropping that stops it.
        tokio::spawn(task.run());
        let server = self.endpoint.name();
        tracing::debug!(server, name, topics = attach.topics.len(), max_frame, "service bus link connected");
        Ok(Link {
            sender: Arc::new(ServiceBusSender {
                shared: shared.clone(),
                interest,
                changes,
                questions: asking,
                max_frame,
                room,
                server,
            }),
            inbound: Inbound::new(inbox, shared).boxed(),
            resumed: false,
            limits: Limits { max_frame, reports_reach: false },
        })
    }

    /// Puts tokens to both connections, where the server wants them.
    async fn authorize(
        &self,
        publishing: &mut Connection,
        receiving: &mut Connection,
        addresses: &Addresses,
    ) -> Result<Option<Renewal>> {
        let Some(signer) = &self.signer else { return Ok(None) };
        let (publish, receive) = tokio::try_join!(publishing.session(), receiving.session())?;
        let holders = vec![
            (publish, addresses.publish_audiences.clone()),
            (receive, addresses.receive_audiences.clone()),
        ];
        Renewal::start(signer, self.config.token_lifetime, holders).await.map(Some)
    }

    async fn attach_sender(
        &self,
        connection: &mut Connection,
        addresses: &Addresses,
        name: &str,
    ) -> Result<Sender> {
        let attached = Sender::builder()
            .name(format!("{name}-publish"))
            .target(addresses.publish_to.as_str())
            .sender_settle_mode(SenderSettleMode::Unsettled)
            .attach(&mut connection.session)
            .await;
        attached.map_err(|error| self.not_attached(refusal::attach_sender(error)))
    }

    async fn attach_receiver(
        &self,
        connection: &mut Connection,
        addresses: &Addresses,
        name: &str,
    ) -> Result<Receiver> {
        let mut builder = Receiver::builder()
            .name(format!("{name}-receive"))
            .source(addresses.receive_from.as_str())
            // Receive and delete: what is sent is settled. What is not settled all the same, is accepted.
            .sender_settle_mode(SenderSettleMode::Settled)
            .auto_accept(true)
            .credit_mode(CreditMode::Manual);
        // Credit is the bound; this holds where a server takes more of it than we gave, as RabbitMQ's plugin does when it
        // answers while messages wait here. Then the connection is not read until there is room.
        builder.buffer_size = self.config.prefetch as usize;
        let attached = builder.attach(&mut connection.session).await;
        attached.map_err(|error| self.not_attached(refusal::attach_receiver(error)))
    }

    fn not_attached(&self, (error, gone): End) -> Error {
        if gone {
            self.namespace.is_gone();
        }
        error
    }
}

/// Sends a message to ourselves and waits for it: the way there and back is open (B1), and what waited in a provided
/// subscription from before us is left out.
async fn confirm(
    sender: &mut Sender,
    receiver: &mut Receiver,
    credit: &mut Credit,
    probe: &Outgoing,
) -> std::result::Result<(), End> {
    receiver.set_credit(credit.first()).await.map_err(receiver::not_granted)?;
    let mut pack = Pack::new();
    pack.push(&probe.topic, &probe.frame);
    let sending = async {
        let sent = sender.send(publisher::message(pack, None)).await;
        match sent.map_err(refusal::send) {
            Ok(outcome) => refusal::outcome(&outcome).map_err(|error| (error, false)),
            Err(Sent::Failed(error)) => Err((error, false)),
            Err(Sent::Ended(error, gone)) => Err((error, gone)),
        }
    };
    let receiving = async {
        loop {
            let Some(body) = receiver::next(receiver).await? else { continue };
            let size = body.len();
            let ours = Unpack::new(body).is_ok_and(|mut frames| {
                frames.any(|read| read.is_ok_and(|(to, _)| to == probe.topic.as_bytes()))
            });
            if let Some(grant) = credit.took(size) {
                receiver.set_credit(grant).await.map_err(receiver::not_granted)?;
            }
            if ours {
                return Ok(());
            }
        }
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

#[async_trait]
impl Bus for ServiceBus {
    fn capabilities(&self) -> Capabilities {
        // Topics travel inside the messages: any bytes will do.
        Capabilities { topics: TopicSyntax::Any, ..Capabilities::default() }
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        let opened = tokio::time::timeout(attach.deadline, self.open(attach)).await;
        opened.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "connect").with_context(format!(
                "{} did not let us in within {:?}",
                self.endpoint.name(),
                attach.deadline
            )))
        })
    }
}

/// The sending half of a link.
struct ServiceBusSender {
    shared: Arc<Shared>,
    interest: Arc<Interest>,
    /// Where changes of interest go, if the broker filters.
    changes: Option<mpsc::Sender<Change>>,
    /// Where one asks whether the way is open.
    questions: mpsc::Sender<Question>,
    max_frame: usize,
    /// Most bytes of a message's body.
    room: usize,
    server: String,
}

impl fmt::Debug for ServiceBusSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceBusSender").field("server", &self.server).finish_non_exhaustive()
    }
}

impl ServiceBusSender {
    /// Why a frame cannot be sent.
    fn refusal(&self, outgoing: &Outgoing) -> Option<Error> {
        let frame = outgoing.frame.len();
        let packed = packed_len(&outgoing.topic, &outgoing.frame);
        if frame <= self.max_frame && packed < self.room {
            return None;
        }
        Some(Error::new(ErrorKind::TooLarge, "publish").with_context(format!(
            "a frame of {frame} bytes, {packed} with its topic; max_frame is {}",
            self.max_frame
        )))
    }

    /// Asks the broker for other rules. Whether it had to be asked.
    async fn change(
        &self,
        subscribe: bool,
        topics: &[Topic],
        changes: &mpsc::Sender<Change>,
    ) -> Result<bool> {
        let operation = if subscribe { "subscribe" } else { "unsubscribe" };
        let (done, changed) = oneshot::channel();
        let change = Change { subscribe, topics: topics.to_vec(), done };
        changes.try_send(change).map_err(|refused| self.refused(operation, &refused))?;
        changed.await.unwrap_or_else(|_| Err(self.shared.ended(operation)))
    }

    /// Returns when the server has shown that it can still reach us.
    async fn alive(&self) -> Result<()> {
        let (done, answered) = oneshot::channel();
        self.questions.try_send(done).map_err(|refused| self.refused("subscribe", &refused))?;
        answered.await.unwrap_or_else(|_| Err(self.shared.ended("subscribe")))
    }

    fn refused<T>(&self, operation: &'static str, refused: &mpsc::error::TrySendError<T>) -> Error {
        match refused {
            mpsc::error::TrySendError::Full(_) => Error::new(ErrorKind::Overloaded, operation)
                .with_context("too many changes wait for the broker"),
            mpsc::error::TrySendError::Closed(_) => self.shared.ended(operation),
        }
    }
}

#[async_trait]
impl LinkSender for ServiceBusSender {
    fn publish(&self, mut batch: Vec<Outgoing>) -> BoxFuture<'static, Outcomes> {
        // Refused frames keep their place among the outcomes; the others go.
        let mut refused = Vec::new();
        if batch.iter().any(|outgoing| self.refusal(outgoing).is_some()) {
            let mut place = 0;
            batch.retain(|outgoing| {
                let refusal = self.refusal(outgoing);
                let fits = refusal.is_none();
                refused.extend(refusal.map(|error| (place, error)));
                place += 1;
                fits
            });
        }
        let frames = batch.len();
        let accepted = if frames == 0 { None } else { Some(self.shared.publish(batch)) };
        let shared = self.shared.clone();
        async move {
            let mut outcomes = match accepted {
                None => Vec::new(),
                Some(Ok(outcomes)) => {
                    outcomes.await.unwrap_or_else(|_| vec![Err(shared.ended("publish")); frames])
                }
                Some(Err(error)) => vec![Err(error); frames],
            };
            for (place, error) in refused {
                outcomes.insert(place, Err(error));
            }
            outcomes
        }
        .boxed()
    }

    async fn subscribe(&self, topics: &[Topic]) -> Result<()> {
        self.shared.admit("subscribe")?;
        let asked = match &self.changes {
            Some(changes) => self.change(true, topics, changes).await?,
            // Every message comes to us anyway.
            None => {
                self.interest.add(topics);
                false
            }
        };
        if asked { Ok(()) } else { self.alive().await }
    }

    async fn unsubscribe(&self, topics: &[Topic]) -> Result<()> {
        self.shared.admit("unsubscribe")?;
        match &self.changes {
            Some(changes) => self.change(false, topics, changes).await.map(drop),
            None => {
                self.interest.remove(topics);
                Ok(())
            }
        }
    }

    async fn close(&self) -> Result<()> {
        match self.shared.close() {
            // Gone without a word: it has ended, and the connections with it.
            Some(closed) => closed.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }
}
