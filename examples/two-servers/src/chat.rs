//! The hub of the page: what its clients can call, and what all calls on one server share.

use std::collections::HashMap;
use std::time::Duration;

use backplane::{Backplane as _, ConnectionId, ErrorKind, Router, UserId};
use backplane_signalr::{Clients, Disconnect, Hub, HubContext, HubError, HubResult, InvokeError};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use crate::bus::Fault;
use crate::link::{Link, now};

/// How long a client may think about a question.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest name of a user, in characters; what is longer is cut.
const LONGEST_NAME: usize = 64;

type Call = HubContext<Chat>;

/// What all calls on one server share.
pub(crate) struct Chat {
    /// How the page calls this server.
    name: String,
    /// How it calls what stands between the servers.
    bus: String,
    node: Router,
    /// Breaks the link, where that can be done from here.
    fault: Option<Fault>,
    shared: Shared,
}

/// What the task that watches the link shares with the calls.
#[derive(Clone)]
pub(crate) struct Shared(std::sync::Arc<State>);

struct State {
    link: Mutex<Link>,
    /// Who is connected here. The others are known to the clients alone: see [`hello`].
    people: Mutex<HashMap<ConnectionId, String>>,
}

impl Shared {
    pub(crate) fn new(link: Link) -> Self {
        Self(std::sync::Arc::new(State { link: Mutex::new(link), people: Mutex::default() }))
    }

    pub(crate) fn link(&self) -> Link {
        self.0.link.lock().clone()
    }

    pub(crate) fn set_link(&self, link: Link) {
        *self.0.link.lock() = link;
    }

    /// The connections of this server.
    pub(crate) fn here(&self) -> Vec<ConnectionId> {
        self.0.people.lock().keys().cloned().collect()
    }
}

/// Somebody, as the pages know them.
#[derive(Serialize)]
struct Person {
    id: String,
    name: String,
    server: String,
    node: String,
}

impl Chat {
    pub(crate) fn new(name: String, bus: String, node: Router, fault: Option<Fault>, shared: Shared) -> Self {
        Self { name, bus, node, fault, shared }
    }

    /// Where one is, how the link is, and the counters of [`Backplane::stats`](backplane::Backplane::stats).
    fn stats(&self) -> Value {
        stats(&self.name, &self.bus, &self.node, &self.shared)
    }

    fn person(&self, call: &Call) -> Person {
        Person {
            id: call.connection_id().to_string(),
            name: name_of(call),
            server: self.name.clone(),
            node: self.node.node_id().to_string(),
        }
    }
}

/// What `/stats` says.
pub(crate) fn stats(name: &str, bus: &str, node: &Router, shared: &Shared) -> Value {
    let stats = node.stats();
    json!({
        "server": name,
        "node": node.node_id().to_string(),
        "bus": bus,
        "connections": shared.0.people.lock().len(),
        "link": shared.link(),
        "now": now(),
        "stats": {
            "published": stats.published,
            "publish_failures": stats.publish_failures,
            "received": stats.received,
            "delivered": stats.delivered,
            "unwanted": stats.unwanted,
            "malformed": stats.malformed,
            "repeats_removed": stats.repeats_removed,
            "gaps": stats.gaps,
            "evictions": stats.evictions,
            "overflows": stats.overflows,
            "missing_protocol": stats.missing_protocol,
            "replies_dropped": stats.replies_dropped,
            "reconnects": stats.reconnects,
            "pending": stats.pending,
            "queued_frames": stats.queued_frames,
            "queued_bytes": stats.queued_bytes,
        },
    })
}

/// The hub.
pub(crate) fn hub(chat: Chat) -> Hub<Chat> {
    Hub::new(chat)
        .method("SendMessage", send_message)
        .method("Server", server)
        .method("Hello", hello)
        .method("Here", here)
        .method("JoinRoom", join_room)
        .method("LeaveRoom", leave_room)
        .method("SendToRoom", send_to_room)
        .method("SendToConnection", send_to_connection)
        .method("SendToUser", send_to_user)
        .method("Ask", ask)
        .method("SetLink", set_link)
        .user_id(|request| user_of(request.uri.query().unwrap_or_default()))
        .on_connected(connected)
        .on_disconnected(disconnected)
}

/// The user that the query names: `?user=Ann`. A real application asks its authentication.
pub(crate) fn user_of(query: &str) -> Option<UserId> {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let name = pairs.find(|(key, _)| key == "user")?.1;
    let name: String = name.trim().chars().take(LONGEST_NAME).collect();
    (!name.is_empty()).then(|| UserId::from(name))
}

fn name_of(call: &Call) -> String {
    call.user().map_or_else(|| "somebody".to_owned(), ToString::to_string)
}

/// To every client of every server.
async fn send_message(call: Call, user: String, message: String) -> HubResult {
    call.clients().all().send("ReceiveMessage", (user, message)).await.map_err(not_sent)
}

async fn server(call: Call) -> HubResult<Value> {
    let mut here = call.state().stats();
    here["connection"] = call.connection_id().as_str().into();
    here["breakable"] = call.state().fault.is_some().into();
    Ok(here)
}

/// Presence without a directory: who arrives says hello to all, and each of them answers the newcomer with
/// [`here`]. Who leaves is taken leave of by its server, and a server that is gone by the others (see `link.rs`).
async fn hello(call: Call) -> HubResult {
    let person = call.state().person(&call);
    call.clients().others().send("Hello", (person,)).await.map_err(not_sent)
}

async fn here(call: Call, newcomer: String) -> HubResult {
    let person = call.state().person(&call);
    call.clients().client(newcomer).send("Here", (person,)).await.map_err(not_sent)
}

async fn join_room(call: Call, room: String) -> HubResult {
    call.groups().add(call.connection_id(), room.as_str()).await.map_err(not_sent)?;
    let person = call.state().person(&call);
    call.clients().group(room.as_str()).send("RoomJoined", (&room, person)).await.map_err(not_sent)
}

async fn leave_room(call: Call, room: String) -> HubResult {
    call.groups().remove(call.connection_id(), room.as_str()).await.map_err(not_sent)?;
    let person = call.state().person(&call);
    call.clients().group(room.as_str()).send("RoomLeft", (&room, person)).await.map_err(not_sent)
}

async fn send_to_room(call: Call, room: String, message: String) -> HubResult {
    let person = call.state().person(&call);
    call.clients().group(room.as_str()).send("RoomMessage", (&room, person, message)).await.map_err(not_sent)
}

/// That nobody has the connection any more is no error.
async fn send_to_connection(call: Call, connection: String, message: String) -> HubResult {
    let person = call.state().person(&call);
    call.clients().client(connection).send("DirectMessage", (person, message)).await.map_err(not_sent)
}

/// To all connections of the user.
async fn send_to_user(call: Call, user: String, message: String) -> HubResult {
    let person = call.state().person(&call);
    call.clients().user(user).send("DirectMessage", (person, message)).await.map_err(not_sent)
}

/// Asks a client, wherever it is connected, and returns its answer.
async fn ask(call: Call, connection: String, question: String) -> HubResult<String> {
    let person = call.state().person(&call);
    let asked = call.clients().client(connection);
    asked.invoke_within("Question", (person, question), PATIENCE).await.map_err(unanswered)
}

/// Breaks the link of all servers on the embedded bus, or mends it, to see what happens then.
async fn set_link(call: Call, up: bool) -> HubResult {
    match &call.state().fault {
        Some(fault) if up => fault.up(),
        Some(fault) => fault.down(),
        None => {
            return Err(HubError::public(
                "Only the embedded bus can be broken from here. Stop the broker instead.",
            ));
        }
    }
    Ok(())
}

async fn connected(call: Call) -> HubResult {
    call.state().shared.0.people.lock().insert(call.connection_id().clone(), name_of(&call));
    Ok(())
}

async fn disconnected(call: Call, _why: Disconnect) -> HubResult {
    call.state().shared.0.people.lock().remove(call.connection_id());
    let clients: &Clients = &call.clients();
    // Who does not hear it, because the link is down, asks again when it is back.
    let _ = clients.all().send("Bye", (call.connection_id().as_str(),)).await;
    Ok(())
}

/// What the caller is told when its message did not go out.
pub(crate) fn not_sent(error: backplane::Error) -> HubError {
    HubError::public(match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Timeout if error.outcome_unknown() => {
            "The link of this server broke while the message was on its way: it may have arrived, or not."
        }
        ErrorKind::Unavailable => "The link of this server is down. The message was not sent.",
        ErrorKind::Overloaded => "This server has more to send than it can. The message was not sent.",
        ErrorKind::TooLarge => "The message is too large for the bus.",
        _ => return HubError::from(error),
    })
}

/// What the caller is told when its question has no answer.
pub(crate) fn unanswered(why: InvokeError) -> HubError {
    HubError::public(match why {
        InvokeError::Refused(text) => format!("They refused: {text}"),
        InvokeError::Timeout => "They did not answer in time.".to_owned(),
        InvokeError::Disconnected(_) => "They left before they answered.".to_owned(),
        InvokeError::NotFound(_) => "There is no such client on any server.".to_owned(),
        InvokeError::NoResult => "They answered nothing.".to_owned(),
        InvokeError::Backplane(error) if error.kind() == ErrorKind::Unavailable => {
            "The link of this server is down. They could not be asked.".to_owned()
        }
        other => return HubError::from(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_read_from_the_query() {
        assert_eq!(user_of("id=x&user=Ann+B%C3%A9").unwrap().as_str(), "Ann Bé");
        assert_eq!(user_of("user=%20&id=x"), None);
        assert_eq!(user_of("id=x"), None);
        assert_eq!(user_of(&format!("user={}", "x".repeat(70))).unwrap().as_str().len(), LONGEST_NAME);
    }
}
