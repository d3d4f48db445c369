//! Clients of the contracts: what they expect, how they answer, how they leave.

use std::collections::VecDeque;

use super::messages::{Arrived, read};
use super::wait::within;
use crate::{Broken, ensure};
use backplane_core::{
    Backplane, ClientResult, CloseReason, ConnectionId, InvocationId, LocalConnection, OutboundLimits,
    OutboundReceiver, Protocol, Registration, Result, UserId, outbound,
};

type Checked<T> = std::result::Result<T, Broken>;

/// What a client is like.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Its user.
    pub user: Option<UserId>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Bounds of its outbound queue.
    pub limits: OutboundLimits,
}

impl Default for Manner {
    fn default() -> Self {
        Self { user: None, protocol: Protocol::JSON, limits: OutboundLimits::default() }
    }
}

/// A registered connection and its reader.
#[derive(Debug)]
pub struct Client {
    id: ConnectionId,
    protocol: Protocol,
    registration: Option<Registration>,
    receiver: Option<OutboundReceiver>,
    arrived: VecDeque<Arrived>,
}

impl Client {
    /// Registers a connection of `node`.
    ///
    /// # Errors
    /// As [`Backplane::register`].
    pub async fn register(node: &impl Backplane, id: ConnectionId, manner: Manner) -> Result<Self> {
        let (sender, receiver) = outbound(manner.limits);
        let protocol = manner.protocol;
        let connection = LocalConnection {
            id: id.clone(),
            user: manner.user,
            protocol: protocol.clone(),
            outbound: sender,
        };
        let registration = Some(node.register(connection).await?);
        Ok(Self { id, protocol, registration, receiver: Some(receiver), arrived: VecDeque::new() })
    }

    /// Its connection.
    #[must_use]
    pub fn id(&self) -> &ConnectionId {
        &self.id
    }

    /// Disconnects. What had arrived before can still be read.
    pub fn leave(&mut self) {
        self.registration = None;
    }

    /// From now on every write to the client fails.
    pub fn break_writes(&mut self) {
        self.receiver = None;
    }

    /// Answers a question.
    ///
    /// # Errors
    /// As [`Registration::complete`].
    ///
    /// # Panics
    /// After [`leave`](Client::leave).
    pub fn complete(&self, id: &InvocationId, result: ClientResult) -> Result<()> {
        self.registration.as_ref().expect("the client has not left").complete(id, result)
    }

    /// Whether it was asked `id` and has not answered.
    #[must_use]
    pub fn expects(&self, id: &InvocationId) -> bool {
        self.registration.as_ref().is_some_and(|registration| registration.expects(id))
    }

    /// The next message.
    ///
    /// # Errors
    /// [`Broken`] when none comes in time, it is unreadable, or the queue ended.
    pub async fn next(&mut self) -> Checked<Arrived> {
        loop {
            if let Some(arrived) = self.arrived.pop_front() {
                return Ok(arrived);
            }
            let receiver =
                self.receiver.as_mut().ok_or_else(|| Broken("a client without a reader reads".into()))?;
            let item = within("a message to a client", receiver.next()).await?;
            let item = item.map_err(|reason| Broken(format!("a client that waits was ended: {reason:?}")))?;
            self.read(&item.bytes)?;
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Checked<()> {
        self.arrived.extend(read(&self.protocol, bytes)?);
        Ok(())
    }

    /// The next message must be `text`.
    ///
    /// # Errors
    /// [`Broken`] when it is another one.
    pub async fn expect(&mut self, text: &str) -> Checked<()> {
        let arrived =
            self.next().await.map_err(|Broken(how)| Broken(format!("expecting {text:?}: {how}")))?;
        ensure!(
            arrived.text == text && arrived.asked.is_none(),
            "a client expected {text:?} and read {:?}",
            arrived.text
        );
        Ok(())
    }

    /// The next message must be the question `text`; its id.
    ///
    /// # Errors
    /// [`Broken`] when it is anything else.
    pub async fn asked(&mut self, text: &str) -> Checked<InvocationId> {
        match self.next().await? {
            Arrived { text: found, asked: Some(id) } if found == text => Ok(id),
            other => Err(Broken(format!("a client expected the question {text:?} and read {other:?}"))),
        }
    }

    /// The texts of the next `count` messages.
    ///
    /// # Errors
    /// As [`next`](Client::next).
    pub async fn take(&mut self, count: usize) -> Checked<Vec<String>> {
        let mut texts = Vec::with_capacity(count);
        while texts.len() < count {
            let so_far = texts.len();
            let next = self.next().await;
            let next =
                next.map_err(|Broken(how)| Broken(format!("after {so_far} of {count} messages: {how}")))?;
            texts.push(next.text);
        }
        Ok(texts)
    }

    /// Reads all texts up to `last`, which is not among them.
    ///
    /// # Errors
    /// As [`next`](Client::next).
    pub async fn take_until(&mut self, last: &str) -> Checked<Vec<String>> {
        let mut texts = Vec::new();
        loop {
            let next = self.next().await.map_err(|Broken(how)| Broken(format!("before {last:?}: {how}")))?;
            if next.text == last {
                return Ok(texts);
            }
            texts.push(next.text);
        }
    }

    /// Nothing more waits. Proves something only after what would come later, a fence, was seen to have arrived.
    ///
    /// # Errors
    /// [`Broken`] with what waits.
    pub fn nothing_more(&mut self) -> Checked<()> {
        while let Some(item) = self.receiver.as_mut().and_then(OutboundReceiver::try_next) {
            self.read(&item.bytes)?;
        }
        ensure!(self.arrived.is_empty(), "a client was sent what is not for it: {:?}", self.arrived);
        Ok(())
    }

    /// Reads until the queue ends; why it ended.
    ///
    /// # Errors
    /// [`Broken`] when it does not.
    pub async fn end(&mut self) -> Checked<CloseReason> {
        let receiver =
            self.receiver.as_mut().ok_or_else(|| Broken("a client without a reader reads".into()))?;
        within("the end of a client's queue", async {
            loop {
                if let Err(reason) = receiver.next().await {
                    return reason;
                }
            }
        })
        .await
    }
}
