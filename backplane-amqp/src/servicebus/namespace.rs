//! Our entities at the server: made before a link opens, deleted after it ended, made again when somebody took them.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backplane_core::{Attach, Error, ErrorKind, Result};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::config::{Entities, ServiceBusConfig};
use super::filters::Filters;
use super::management::{Done, Management};

/// Subscriptions of ended links that could not be deleted yet; the oldest are left to Service Bus.
const MAX_LEFT: usize = 64;
/// How long one deletion may take.
const DELETION: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Namespace {
    host: String,
    topic: String,
    entities: Entities,
    filters: Filters,
    ttl: Duration,
    management: Option<Management>,
    /// Whether the topic was seen.
    topic_there: AtomicBool,
    left: Mutex<VecDeque<String>>,
}

/// What a link uses.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) publish_to: String,
    pub(super) receive_from: String,
    /// What the publishing connection needs tokens for, and what the receiving one.
    pub(super) publish_audiences: Vec<String>,
    pub(super) receive_audiences: Vec<String>,
    pub(super) lease: Option<Lease>,
}

/// A subscription that we made. Dropped unreleased, it is deleted with the next link, or by Service Bus when it is idle.
#[derive(Debug)]
pub(super) struct Lease {
    namespace: Arc<Namespace>,
    subscription: Option<String>,
}

impl Namespace {
    pub(super) fn new(config: &ServiceBusConfig, management: Option<Management>) -> Arc<Self> {
        Arc::new(Self {
            host: config.host.clone(),
            topic: config.topic.clone(),
            entities: config.entities.clone(),
            filters: config.filters,
            ttl: config.ttl,
            management,
            topic_there: AtomicBool::new(false),
            left: Mutex::default(),
        })
    }

    /// What the link of `attach` uses; makes it where that is ours to do.
    pub(super) async fn prepare(self: &Arc<Self>, attach: &Attach<'_>) -> Result<Addresses> {
        match &self.entities {
            Entities::Addresses { publish_to, receive_from } => Ok(Addresses {
                publish_to: publish_to.clone(),
                receive_from: receive_from.clone(),
                // For a broker that takes tokens at all.
                publish_audiences: vec![self.audience(publish_to)],
                receive_audiences: vec![self.audience(receive_from)],
                lease: None,
            }),
            Entities::Provisioned { subscription } => Ok(self.addresses(subscription, None)),
            Entities::Created => {
                // A link that cannot be opened leaves one behind with each attempt: no attempt makes more than it takes away.
                let (lease, ()) = tokio::join!(self.create(attach), self.sweep_one());
                let lease = lease?;
                let subscription = lease.subscription.clone().unwrap_or_default();
                Ok(self.addresses(&subscription, Some(lease)))
            }
        }
    }

    fn addresses(&self, subscription: &str, lease: Option<Lease>) -> Addresses {
        let receive_from = format!("{}/Subscriptions/{subscription}", self.topic);
        let mut receive_audiences = vec![self.audience(&receive_from)];
        if self.filters != Filters::None {
            receive_audiences.push(self.audience(&format!("{receive_from}/$management")));
        }
        Addresses {
            publish_audiences: vec![self.audience(&self.topic)],
            publish_to: self.topic.clone(),
            receive_from,
            receive_audiences,
            lease,
        }
    }

    fn audience(&self, entity: &str) -> String {
        format!("amqps://{}/{}", self.host, entity.trim_start_matches('/'))
    }

    async fn create(self: &Arc<Self>, attach: &Attach<'_>) -> Result<Lease> {
        let management = self.management.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::InvalidConfig, "connect").with_context("there is no management interface")
        })?;
        if !self.topic_there.load(Ordering::Acquire) {
            management.create_topic(&self.topic, self.ttl).await?;
        }
        let name = subscription_name(attach);
        // From here on it may be there, whatever becomes of the answer.
        let lease = Lease { namespace: self.clone(), subscription: Some(name.clone()) };
        let mut made = management.create_subscription(&self.topic, &name, self.ttl).await?;
        if made == Done::Missing {
            tracing::warn!(topic = self.topic, "the topic is gone; making it anew");
            management.create_topic(&self.topic, self.ttl).await?;
            made = management.create_subscription(&self.topic, &name, self.ttl).await?;
        }
        if made == Done::Missing {
            return Err(Error::new(ErrorKind::Unavailable, "connect")
                .with_context(format!("the topic `{}` is not there, though it was made", self.topic)));
        }
        self.topic_there.store(true, Ordering::Release);
        Ok(lease)
    }

    /// An entity that we use is gone: the next link looks anew.
    pub(super) fn is_gone(&self) {
        tracing::warn!(
            topic = self.topic,
            "an entity is gone; the next attempt makes it anew where that is ours to do"
        );
        self.topic_there.store(false, Ordering::Release);
    }

    /// Deletes what earlier links left behind.
    pub(super) async fn sweep(self: &Arc<Self>) {
        let left = self.left.lock().len();
        for _ in 0..left {
            self.sweep_one().await;
        }
    }

    async fn sweep_one(self: &Arc<Self>) {
        let oldest = self.left.lock().pop_front();
        if oldest.is_some() {
            Lease { namespace: self.clone(), subscription: oldest }.release().await;
        }
    }

    /// Whether it is not there any more.
    async fn delete(&self, subscription: &str) -> bool {
        let Some(management) = &self.management else { return true };
        let deleted = timeout(DELETION, management.delete_subscription(&self.topic, subscription)).await;
        let deleted = matches!(deleted, Ok(Ok(_)));
        if !deleted {
            tracing::debug!(subscription, "not deleted; it deletes itself when it is idle");
        }
        deleted
    }

    fn leave(&self, subscription: String) {
        let mut left = self.left.lock();
        if left.len() >= MAX_LEFT {
            left.pop_front();
        }
        left.push_back(subscription);
    }
}

impl Lease {
    /// Deletes the subscription. Where that fails, or is dropped half-way, it is left for later.
    pub(super) async fn release(mut self) {
        if let Some(subscription) = &self.subscription
            && self.namespace.delete(subscription).await
        {
            self.subscription = None;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(subscription) = self.subscription.take() {
            self.namespace.leave(subscription);
        }
    }
}

/// Service Bus ignores case in names and takes 50 characters.
fn subscription_name(attach: &Attach<'_>) -> String {
    let mut name = String::from("node-");
    for byte in attach.node.as_bytes() {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
    }
    let _ = write!(name, "-{}", attach.attempt);
    name
}
