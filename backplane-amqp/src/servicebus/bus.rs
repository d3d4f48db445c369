//! The bus: opens links.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{
    Attach, Bus, Capabilities, Error, ErrorKind, Limits, Link, Outgoing, Result, Topic, TopicSyntax,
};
use backplane_tls::Tls;
use bytes::Bytes;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::definitions::SenderSettleMode;
use fe2o3_amqp::{Receiver, Sender};
use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::config::{Credentials, Entities, ServiceBusConfig};
use super::connection::{Connection, Endpoint};
use super::filters::{Filters, Interest, Rules};
use super::inbox::{Inbound, Inbox};
use super::management::Management;
use super::namespace::{Addresses, Namespace};
use super::packing::{Pack, Unpack};
use super::publisher::{self, End, Packing};
use super::receiver::{self, Credit};
use super::refusal::{self, Sent};
use super::renewal::Renewal;
use super::sender::ServiceBusSender;
use super::shared::Shared;
use super::task::{LinkTask, MAX_QUESTIONS};
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
/// The shortest idle time-out that all versions of Microsoft's own AMQP library take; what they refuse is no connection.
/// Its clients ask for the same.
const SHORTEST_IDLE: Duration = Duration::from_secs(60);
/// RabbitMQ's plugin may say that it lives before it says `open`, which is no connection either, when that takes it half of
/// the idle time-out. It takes a silent client for dead after twice that.
const SHORTEST_IDLE_ELSEWHERE: Duration = Duration::from_secs(10);
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
            shortest_idle: match &config.entities {
                Entities::Created | Entities::Provisioned { .. } => SHORTEST_IDLE,
                Entities::Addresses { .. } => SHORTEST_IDLE_ELSEWHERE,
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
        if let Err(error) = &opened
            && error.kind() == ErrorKind::Overloaded
        {
            self.throttle.busy(error);
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
                let mut rules = Rules::new(
                    filters,
                    &addresses.receive_from,
                    session,
                    self.throttle.clone(),
                    attach.heartbeat,
                );
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
                throttle: self.throttle.clone(),
                changes,
                questions: asking,
                max_frame,
                room,
                patience: attach.heartbeat,
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
            let shared = match &self.config.entities {
                Entities::Provisioned { subscription } => {
                    format!("; does another node receive from the subscription `{subscription}`?")
                }
                Entities::Created | Entities::Addresses { .. } => String::new(),
            };
            Err(Error::new(ErrorKind::Timeout, "connect").with_context(format!(
                "{} did not let us in within {:?}{shared}",
                self.endpoint.name(),
                attach.deadline
            )))
        })
    }
}
