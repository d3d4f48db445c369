//! Messages, tokens and rules over AMQP 1.0.

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, ListenerConnectionHandle, ListenerSessionHandle,
    SaslAnonymousMechanism, SessionAcceptor,
};
use fe2o3_amqp::types::definitions::{self, AmqpError, ErrorCondition, LinkError};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, MessageId, Properties,
};
use fe2o3_amqp::types::primitives::{OrderedMap, SimpleValue, Symbol, Value};
use fe2o3_amqp::{Receiver, Sendable, Sender};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Ending, Event, Rule, State};

/// The largest message of the Standard tier.
pub(crate) const MAX_MESSAGE: u64 = 256 << 10;

type Answer = Message<AmqpValue<Value>>;

/// What the links of a connection share.
#[derive(Debug)]
struct Connection {
    state: Arc<State>,
    /// When the token for an audience ends, in seconds after 1970.
    tokens: watch::Sender<HashMap<String, u64>>,
    /// Where answers go, by `reply-to`.
    answers: Mutex<HashMap<String, mpsc::UnboundedSender<Answer>>>,
}

/// What a client's `open` says of 60 s, the shortest that Microsoft's library takes: an `uint` of milliseconds.
const IDLE_TIME_OUT: [u8; 5] = [0x70, 0, 0, 0xEA, 0x60];

/// A stream whose first bytes are remembered: the acceptor does not show us what the client opened with.
#[derive(Debug)]
struct Overheard {
    stream: TcpStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Overheard {
    fn new(stream: TcpStream) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let heard = Arc::default();
        (Self { stream, heard: Arc::clone(&heard) }, heard)
    }
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let mut heard = self.heard.lock();
        if heard.len() < 1_024 {
            heard.extend_from_slice(&buffer.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        connections.spawn(connection(stream, state.clone()));
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let acceptor =
        ConnectionAcceptor::builder().container_id("suite").sasl_acceptor(SaslAnonymousMechanism {}).build();
    let (stream, heard) = Overheard::new(stream);
    let Ok(mut handle): Result<ListenerConnectionHandle, _> = acceptor.accept(stream).await else { return };
    if !heard.lock().windows(IDLE_TIME_OUT.len()).any(|bytes| bytes == IDLE_TIME_OUT) {
        let refusal = told(AmqpError::NotAllowed, "the idle time-out is not 60 s");
        let _ = handle.close_with_error(refusal).await;
        return;
    }
    let connection =
        Arc::new(Connection { state, tokens: watch::Sender::default(), answers: Mutex::default() });
    let mut sessions = JoinSet::new();
    while let Some(incoming) = handle.next_incoming_session().await {
        let Ok(session) = SessionAcceptor::new().accept_incoming_session(incoming, &mut handle).await else {
            return;
        };
        sessions.spawn(links(session, connection.clone()));
    }
}

async fn links(mut session: ListenerSessionHandle, connection: Arc<Connection>) {
    let acceptor = LinkAcceptor::builder().max_message_size(MAX_MESSAGE).build();
    let mut links = JoinSet::new();
    while let Some(attach) = session.next_incoming_attach().await {
        let connection = connection.clone();
        match acceptor.accept_incoming_attach(attach, &mut session).await {
            Ok(LinkEndpoint::Sender(sender)) => links.spawn(outgoing(sender, connection)),
            Ok(LinkEndpoint::Receiver(receiver)) => links.spawn(incoming(receiver, connection)),
            Err(_) => continue,
        };
    }
    links.shutdown().await;
}

fn told(condition: impl Into<ErrorCondition>, description: &str) -> definitions::Error {
    definitions::Error::new(condition, Some(description.to_owned()), None)
}

fn busy(seconds: u64) -> definitions::Error {
    told(
        ErrorCondition::Custom(Symbol::from("com.microsoft:server-busy")),
        &format!(
            "The entity is being throttled. Error code: 50009. Please wait {seconds} seconds and try again."
        ),
    )
}

impl Connection {
    /// Waits until a link to `entity` has to end, and tells why.
    async fn ending(&self, entity: &str) -> definitions::Error {
        let mut ending = self.state.ending.subscribe();
        let forced = async {
            match ending.changed().await {
                Ok(()) => match ending.borrow_and_update().1 {
                    Ending::Forced => told(LinkError::DetachForced, "the link was idle"),
                    Ending::NotFound => told(AmqpError::NotFound, "the entity was deleted"),
                },
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            error = forced => error,
            () = self.unauthorized(entity) => told(AmqpError::UnauthorizedAccess, "no token, or it has ended"),
        }
    }

    /// Returns when there is no token for `entity` any more.
    async fn unauthorized(&self, entity: &str) {
        let mut tokens = self.tokens.subscribe();
        loop {
            let expires = tokens.borrow_and_update().get(&entity.to_lowercase()).copied();
            let Some(expires) = expires else { return };
            let left =
                (UNIX_EPOCH + Duration::from_secs(expires)).duration_since(std::time::SystemTime::now());
            let Ok(left) = left else { return };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                changed = tokens.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// A link on which the client receives.
async fn outgoing(sender: Sender, connection: Arc<Connection>) {
    let source = sender.source().as_ref().and_then(|source| source.address.clone()).unwrap_or_default();
    if source == "$cbs" || source.ends_with("/$management") {
        let reply_to = sender.target().as_ref().and_then(|target| target.address.clone()).unwrap_or_default();
        return answers(sender, &reply_to, &connection).await;
    }
    let queue = {
        let mut entities = connection.state.entities.lock();
        entities.at(&source).map(|subscription| {
            subscription.receivers += 1;
            subscription.queue.clone()
        })
    };
    let Some(queue) = queue else {
        let _ = sender.close_with_error(told(AmqpError::NotFound, "no such subscription")).await;
        return;
    };
    let _receiving = Receiving { state: connection.state.clone(), source: source.clone() };
    let mut sender = sender;
    let ending = connection.ending(&source);
    tokio::pin!(ending);
    loop {
        let next = queue.messages.lock().pop_front();
        let Some(message) = next else {
            tokio::select! {
                () = queue.more.notified() => continue,
                error = &mut ending => {
                    let _ = sender.close_with_error(error).await;
                    return;
                }
            }
        };
        let message = Sendable::builder().message(message).settled(true).build();
        tokio::select! {
            sent = sender.send_batchable(message) => if sent.is_err() { return },
            error = &mut ending => {
                let _ = sender.close_with_error(error).await;
                return;
            }
        }
    }
}

/// Counts a receiver of a subscription while it lives.
struct Receiving {
    state: Arc<State>,
    source: String,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if let Some(subscription) = self.state.entities.lock().at(&self.source) {
            subscription.receivers -= 1;
        }
        self.state.receivers.notify_one();
    }
}

async fn answers(mut sender: Sender, reply_to: &str, connection: &Connection) {
    let (queue, mut waiting) = mpsc::unbounded_channel();
    connection.answers.lock().insert(reply_to.to_owned(), queue);
    while let Some(answer) = waiting.recv().await {
        if sender.send(answer).await.is_err() {
            return;
        }
    }
}

/// A link on which the client sends.
async fn incoming(receiver: Receiver, connection: Arc<Connection>) {
    let target = receiver.target().as_ref().and_then(|target| target.address.clone()).unwrap_or_default();
    if target == "$cbs" {
        requests(receiver, &connection, |properties, body| token(&connection, properties, body)).await;
    } else if let Some(subscription) = target.strip_suffix("/$management") {
        requests(receiver, &connection, |properties, body| rule(&connection, subscription, properties, body))
            .await;
    } else {
        messages(receiver, &target, &connection).await;
    }
}

async fn messages(mut receiver: Receiver, topic: &str, connection: &Connection) {
    if !connection.state.entities.lock().topics.contains_key(topic) {
        let _ = receiver.close_with_error(told(AmqpError::NotFound, "no such topic")).await;
        return;
    }
    let ending = connection.ending(topic);
    tokio::pin!(ending);
    loop {
        let delivery = tokio::select! {
            delivery = receiver.recv::<Data>() => match delivery {
                Ok(delivery) => delivery,
                Err(_) => return,
            },
            error = &mut ending => {
                let _ = receiver.close_with_error(error).await;
                return;
            }
        };
        let (is_busy, seconds, mute) = {
            let mut manners = connection.state.manners.lock();
            let is_busy = manners.busy > 0;
            manners.busy = manners.busy.saturating_sub(1);
            (is_busy, manners.busy_seconds, manners.mute)
        };
        if mute {
            continue;
        }
        let answered = if is_busy {
            connection.state.note(Event::Busy);
            receiver.reject(&delivery, busy(seconds)).await
        } else {
            connection.state.entities.lock().publish(topic, delivery.message());
            connection.state.note(Event::Message);
            receiver.accept(&delivery).await
        };
        if answered.is_err() {
            return;
        }
    }
}

async fn requests(
    mut receiver: Receiver,
    connection: &Connection,
    answer: impl Fn(&ApplicationProperties, Body<Value>) -> (i32, &'static str),
) {
    while let Ok(delivery) = receiver.recv::<Body<Value>>().await {
        if receiver.accept(&delivery).await.is_err() {
            return;
        }
        let message = delivery.into_message();
        let properties = message.properties.unwrap_or_default();
        let (status, description) = answer(&message.application_properties.unwrap_or_default(), message.body);
        let answer = Message {
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: Some(Properties {
                correlation_id: properties.message_id.filter(|id| matches!(id, MessageId::String(_))),
                ..Properties::default()
            }),
            application_properties: Some(
                ApplicationProperties::builder()
                    .insert("status-code", status)
                    .insert("statusCode", status)
                    .insert("status-description", description)
                    .insert("statusDescription", description)
                    .build(),
            ),
            body: AmqpValue(Value::Null),
            footer: None,
        };
        let reply_to = properties.reply_to.unwrap_or_default();
        if let Some(queue) = connection.answers.lock().get(&reply_to) {
            // The client may have gone.
            let _ = queue.send(answer);
        }
    }
}

fn text<'a>(properties: &'a ApplicationProperties, name: &str) -> &'a str {
    match properties.get(name) {
        Some(SimpleValue::String(text)) => text,
        _ => "",
    }
}

fn token(
    connection: &Connection,
    properties: &ApplicationProperties,
    body: Body<Value>,
) -> (i32, &'static str) {
    assert_eq!(text(properties, "operation"), "put-token");
    assert_eq!(text(properties, "type"), "servicebus.windows.net:sastoken");
    let audience = text(properties, "name").to_owned();
    let Ok(Value::String(token)) = body.try_into_value() else { return (400, "no token") };
    let refused = connection.state.manners.lock().refuse_tokens;
    let expires = connection.state.verify(&token, &audience).filter(|_| !refused);
    connection.state.note(Event::Token { audience: audience.clone(), taken: expires.is_some() });
    let Some(expires) = expires else { return (401, "invalid signature, or it has ended") };
    // `amqps://HOST/ENTITY`
    let entity = audience.splitn(4, '/').nth(3).unwrap_or_default().to_lowercase();
    connection.tokens.send_modify(|tokens| {
        tokens.insert(entity, expires);
    });
    (202, "accepted")
}

fn map(value: Option<Value>) -> OrderedMap<Value, Value> {
    match value {
        Some(Value::Map(map)) => map,
        _ => OrderedMap::new(),
    }
}

fn string(map: &OrderedMap<Value, Value>, name: &str) -> String {
    match map.get(&Value::String(name.to_owned())) {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}

fn rule(
    connection: &Connection,
    subscription: &str,
    properties: &ApplicationProperties,
    body: Body<Value>,
) -> (i32, &'static str) {
    let authorized =
        connection.tokens.borrow().contains_key(&format!("{subscription}/$management").to_lowercase());
    if !authorized {
        return (401, "no token for $management");
    }
    {
        let mut manners = connection.state.manners.lock();
        if manners.refuse_rules > 0 {
            manners.refuse_rules -= 1;
            return (500, "as the suite wants it");
        }
    }
    let request = map(body.try_into_value().ok());
    let name = string(&request, "rule-name");
    let mut entities = connection.state.entities.lock();
    let Some(subscription) = entities.at(subscription) else { return (404, "no such subscription") };
    let event = match text(properties, "operation") {
        "com.microsoft:add-rule" => {
            let of = |map: &OrderedMap<Value, Value>, name: &str| {
                map.get(&Value::String(name.to_owned())).cloned()
            };
            let filter = map(of(&map(of(&request, "rule-description")), "correlation-filter"));
            let label = string(&filter, "label");
            if label.is_empty() || name.len() > 50 {
                return (400, "no label, or too long a name");
            }
            if subscription.rules.contains_key(&name) {
                return (409, "the rule is there");
            }
            subscription.rules.insert(name.clone(), Rule::Label(label.clone()));
            Event::RuleAdded { rule: name, label }
        }
        "com.microsoft:remove-rule" => {
            if subscription.rules.remove(&name).is_none() {
                return (404, "no such rule");
            }
            Event::RuleRemoved { rule: name }
        }
        _ => return (501, "not here"),
    };
    drop(entities);
    connection.state.note(event);
    (200, "OK")
}
