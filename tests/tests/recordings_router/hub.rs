//! The hub of the recorded servers: what its methods ask of a backplane, and what came of them.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{
    Backplane as _, BackplaneExt as _, ClientInvocation, ConnectionId, EncodedMessage, Error, ErrorKind,
    Membership, MembershipChange, Protocol, Result, Router, Target,
};
use bytes::Bytes;
use serde_json::Value;

use crate::outcome::Outcome;

/// One connection's hub: whom `Caller` and `Others` mean, and in which protocols its server encodes.
#[derive(Clone)]
pub(crate) struct Hub {
    pub(crate) router: Router,
    pub(crate) caller: ConnectionId,
    pub(crate) messagepack: bool,
    /// How long a group change waits.
    pub(crate) patience: Option<Duration>,
}

/// Told the id of a question before anything carries it.
pub(crate) type OnQuestion = Arc<dyn Fn(&str) + Send + Sync>;

impl Hub {
    /// Invokes a method. Panics when it fails otherwise than an [`Outcome`] can say.
    pub(crate) async fn invoke(&self, method: &str, arguments: &[Value], asked: OnQuestion) -> Outcome {
        let text = |at: usize| arguments[at].as_str().expect("a text argument");
        let ids = |at: usize| texts(&arguments[at]);
        let result = match method {
            "SendMessage" => {
                let message = self.message(None, "ReceiveMessage", &[text(0), text(1)]);
                self.router.send(&Target::All, &[], message).await
            }
            "Say" => self.send(&Target::All, &[], text(0)).await,
            "ToAllExcept" => self.send(&Target::All, &connections(ids(0)), text(1)).await,
            "ToOthers" => self.send(&Target::All, std::slice::from_ref(&self.caller), text(0)).await,
            "ToCaller" => self.send(&Target::connection(&self.caller), &[], text(0)).await,
            "ToConnection" => self.send(&Target::connection(text(0)), &[], text(1)).await,
            "ToConnections" => self.send(&Target::connections(ids(0)), &[], text(1)).await,
            "ToGroup" => self.send(&Target::group(text(0)), &[], text(1)).await,
            "ToGroups" => self.send(&Target::groups(ids(0)), &[], text(1)).await,
            "ToGroupExcept" => self.send(&Target::group(text(0)), &connections(ids(1)), text(2)).await,
            "ToOthersInGroup" => {
                self.send(&Target::group(text(0)), std::slice::from_ref(&self.caller), text(1)).await
            }
            "ToUser" => self.send(&Target::user(text(0)), &[], text(1)).await,
            "ToUsers" => self.send(&Target::users(ids(0)), &[], text(1)).await,
            "Join" => self.router.join(&self.caller, &text(0).into()).await,
            "Leave" => self.router.leave(&self.caller, &text(0).into()).await,
            "JoinOther" => self.change(Membership::Join, text(0), text(1)).await,
            "LeaveOther" => self.change(Membership::Leave, text(0), text(1)).await,
            "AbortMe" => self.router.abort(&self.caller, Default::default()).await,
            "Ask" => return self.ask(text(0), text(1), None, asked).await,
            "AskFor" => return self.ask(text(0), text(1), arguments[2].as_u64(), asked).await,
            "AskAs" => return self.ask(text(0), "q", arguments[2].as_u64(), asked).await,
            unknown => panic!("the hub has no method {unknown}"),
        };
        result.map_or_else(|error| failed(&error), |()| Outcome::Done)
    }

    async fn send(&self, target: &Target, except: &[ConnectionId], argument: &str) -> Result<()> {
        self.router.send(target, except, self.message(None, "m", &[argument])).await
    }

    async fn change(&self, membership: Membership, connection: &str, group: &str) -> Result<()> {
        let mut change = match membership {
            Membership::Join => MembershipChange::join(connection, group),
            Membership::Leave => MembershipChange::leave(connection, group),
        };
        change.timeout = self.patience;
        self.router.update_group(change).await
    }

    async fn ask(
        &self,
        connection: &str,
        question: &str,
        milliseconds: Option<u64>,
        asked: OnQuestion,
    ) -> Outcome {
        let (hub, question) = (self.clone(), question.to_owned());
        let mut call = ClientInvocation::new(move |id| {
            asked(id.as_str());
            hub.message(Some(id.as_str()), "Answer", &[&question])
        });
        call.timeout = milliseconds.map(Duration::from_millis);
        match self.router.invoke(&connection.into(), call).await {
            Ok(answer) => Outcome::Answer(answer),
            Err(error) => failed(&error),
        }
    }

    /// An invocation of the client's `target`, as .NET servers encode it.
    fn message(&self, id: Option<&str>, target: &str, arguments: &[&str]) -> EncodedMessage {
        let mut message = EncodedMessage::json(json(id, target, arguments));
        if self.messagepack {
            message.push(Protocol::MESSAGEPACK, messagepack(id, target, arguments));
        }
        message
    }
}

fn failed(error: &Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionNotFound => {
            Outcome::NotFound(error.context().expect("it says which connection").to_owned())
        }
        ErrorKind::Timeout => {
            assert!(error.outcome_unknown(), "whether it took effect is not known: {error}");
            Outcome::TimedOut
        }
        _ => panic!("a hub method failed: {error}"),
    }
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list argument").iter().map(|item| item.as_str().expect("a text")).collect()
}

fn connections(ids: Vec<&str>) -> Vec<ConnectionId> {
    ids.into_iter().map(ConnectionId::from).collect()
}

/// A message that is in all protocols, for a client to see.
pub(crate) fn both(target: &str) -> EncodedMessage {
    EncodedMessage::new([
        (Protocol::JSON, json(None, target, &[])),
        (Protocol::MESSAGEPACK, messagepack(None, target, &[])),
    ])
}

fn json(id: Option<&str>, target: &str, arguments: &[&str]) -> Bytes {
    let id = id.map(|id| format!("\"invocationId\":{},", Value::from(id))).unwrap_or_default();
    let (target, arguments) = (Value::from(target), Value::from(arguments.to_vec()));
    Bytes::from(format!("{{\"type\":1,{id}\"target\":{target},\"arguments\":{arguments}}}\u{1e}"))
}

fn messagepack(id: Option<&str>, target: &str, arguments: &[&str]) -> Bytes {
    let mut body = vec![0x96, 1, 0x80];
    match id {
        Some(id) => put_text(&mut body, id),
        None => body.push(0xC0),
    }
    put_text(&mut body, target);
    body.push(0x90 | u8::try_from(arguments.len()).expect("few arguments"));
    arguments.iter().for_each(|argument| put_text(&mut body, argument));
    body.push(0x90);
    let mut framed = Vec::new();
    let mut length = body.len();
    while length > 0x7F {
        framed.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    framed.push(length as u8);
    framed.extend(body);
    framed.into()
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()).expect("short texts") {
        length @ 0..32 => body.push(0xA0 | length),
        length => body.extend([0xD9, length]),
    }
    body.extend(text.as_bytes());
}
