//! Requests to a node of the peer (`$cbs`, `$management`) and their answers, over a pair of links.

use std::collections::HashMap;

use backplane_core::{Error, ErrorKind, Result};
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{
    ApplicationProperties, Body, Message, MessageId, Properties, SerializableBody, Source, Target,
};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};

use super::refusal::{self, Sent};

/// Requests that wait for their answers at once.
const WINDOW: usize = 64;

/// What the peer answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// A status as HTTP has them.
    pub(super) status: i32,
    pub(super) description: String,
}

impl Answer {
    /// The error that the status means, if any.
    pub(super) fn into_result(self, operation: &'static str) -> Result<()> {
        let kind = match self.status {
            200..=299 => return Ok(()),
            401 | 403 => ErrorKind::Denied,
            400 => ErrorKind::InvalidConfig,
            408 | 504 => ErrorKind::Timeout,
            429 | 503 => ErrorKind::Overloaded,
            _ => ErrorKind::Unavailable,
        };
        Err(Error::new(kind, operation)
            .with_context(format!("the server answered {}: {}", self.status, self.description)))
    }

    /// The error, when the server is busy.
    pub(super) fn overload(&self, operation: &'static str) -> Option<Error> {
        self.clone().into_result(operation).err().filter(|error| error.kind() == ErrorKind::Overloaded)
    }
}

/// A request: what it asks for, and its body.
#[derive(Debug)]
pub(super) struct Request<B> {
    pub(super) properties: ApplicationProperties,
    pub(super) body: B,
}

/// See the module.
#[derive(Debug)]
pub(super) struct RequestLink {
    sender: Sender,
    receiver: Receiver,
    reply_to: String,
    next: u64,
}

impl RequestLink {
    /// Attaches to `node`. `name` is unique within the connection.
    pub(super) async fn open(session: &mut SessionHandle<()>, node: &str, name: &str) -> Result<Self> {
        let reply_to = format!("{name}-answers");
        let receiver = Receiver::builder()
            .name(&reply_to)
            .source(Source::builder().address(node).build())
            .target(Target::builder().address(reply_to.as_str()).build())
            .credit_mode(CreditMode::Auto(2 * WINDOW as u32))
            .auto_accept(true)
            .attach(session)
            .await
            .map_err(|error| refusal::attach_receiver(error).0)?;
        let sender = Sender::builder()
            .name(format!("{name}-requests"))
            .source(Source::builder().address(reply_to.as_str()).build())
            .target(node)
            .attach(session)
            .await
            .map_err(|error| refusal::attach_sender(error).0)?;
        Ok(Self { sender, receiver, reply_to, next: 0 })
    }

    /// Asks, and waits for the answer. Not cancel-safe: a link whose call was dropped is to be dropped too.
    pub(super) async fn call<B: SerializableBody>(
        &mut self,
        operation: &'static str,
        request: Request<B>,
    ) -> Result<Answer> {
        let mut answers = self.calls(operation, vec![request]).await?;
        answers.pop().ok_or_else(|| Error::new(ErrorKind::Unavailable, operation))
    }

    /// Asks many times, with few round trips. The answers are in the order of the requests.
    pub(super) async fn calls<B: SerializableBody>(
        &mut self,
        operation: &'static str,
        requests: Vec<Request<B>>,
    ) -> Result<Vec<Answer>> {
        let mut answers = vec![None; requests.len()];
        let mut waiting: HashMap<String, usize> = HashMap::new();
        let mut requests = requests.into_iter().enumerate();
        loop {
            while waiting.len() < WINDOW {
                let Some((place, request)) = requests.next() else { break };
                waiting.insert(self.send(request).await?, place);
            }
            if waiting.is_empty() {
                break;
            }
            let (id, answer) = self.receive(operation).await?;
            // An answer that nobody waits for belongs to nobody here.
            if let Some(place) = waiting.remove(&id) {
                answers[place] = Some(answer);
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn send<B: SerializableBody>(&mut self, request: Request<B>) -> Result<String> {
        self.next += 1;
        let id = format!("{}-{}", self.reply_to, self.next);
        let message = Message {
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: Some(Properties {
                message_id: Some(MessageId::String(id.clone())),
                reply_to: Some(self.reply_to.clone()),
                ..Properties::default()
            }),
            application_properties: Some(request.properties),
            body: request.body,
            footer: None,
        };
        let sent = self.sender.send_batchable(message).await;
        match sent.map_err(refusal::send) {
            // Its outcome says no more than the answer will.
            Ok(_) => Ok(id),
            Err(Sent::Failed(error) | Sent::Ended(error, _)) => Err(error),
        }
    }

    async fn receive(&mut self, operation: &'static str) -> Result<(String, Answer)> {
        let delivery = match self.receiver.recv::<Body<Value>>().await {
            Ok(delivery) => delivery,
            Err(error) => {
                let ended = refusal::receive(&error).map(|(error, _)| error);
                return Err(ended.unwrap_or_else(|| {
                    Error::new(ErrorKind::Unavailable, operation).with_context("the answer was unreadable")
                }));
            }
        };
        let message = delivery.into_message();
        let id = match message.properties.and_then(|properties| properties.correlation_id) {
            Some(MessageId::String(id)) => id,
            _ => String::new(),
        };
        let properties = message.application_properties.unwrap_or_default();
        let of = |names: [&str; 2]| names.iter().find_map(|name| properties.get(*name));
        let status = match of(["status-code", "statusCode"]) {
            Some(SimpleValue::Int(status)) => *status,
            Some(SimpleValue::Long(status)) => i32::try_from(*status).unwrap_or(0),
            Some(SimpleValue::Uint(status)) => i32::try_from(*status).unwrap_or(0),
            _ => 0,
        };
        let description = match of(["status-description", "statusDescription"]) {
            Some(SimpleValue::String(text)) => text.clone(),
            _ => "no description".to_owned(),
        };
        Ok((id, Answer { status, description }))
    }

    /// Detaches, without waiting long.
    pub(super) async fn close(self) {
        // Either way it is gone afterwards: a handle that is dropped detaches.
        let _ = self.sender.close().await;
        let _ = self.receiver.close().await;
    }
}
