//! The hub of the script: every kind of send, by the words of its caller.

use std::time::Duration;

use backplane::ErrorKind;
use backplane_signalr::{Hub, HubContext, HubError, HubResult};
use serde::{Deserialize, Serialize};

use crate::chat::{not_sent, unanswered, user_of};

/// What one is told who ends a connection of another server in the layout of .NET.
pub(crate) const UNSUPPORTED: &str = "unsupported: this wire format has no such command";

type Call = HubContext<()>;

/// Whom a message is for: each a way to name clients.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Audience {
    All,
    AllExcept(Vec<String>),
    Others,
    Caller,
    Client(String),
    Clients(Vec<String>),
    Group(String),
    Groups(Vec<String>),
    GroupExcept(String, Vec<String>),
    OthersInGroup(String),
    User(String),
    Users(Vec<String>),
}

pub(crate) fn hub() -> Hub<()> {
    Hub::new(())
        .method("Id", async |call: Call| Ok(call.connection_id().to_string()))
        .method("Send", send)
        .method("Join", join)
        .method("Leave", leave)
        .method("Ask", ask)
        .method("End", end)
        .user_id(|request| user_of(request.uri.query().unwrap_or_default()))
}

async fn send(call: Call, audience: Audience, text: String) -> HubResult {
    let clients = call.clients();
    let recipients = match audience {
        Audience::All => clients.all(),
        Audience::AllExcept(ids) => clients.all_except(ids),
        Audience::Others => clients.others(),
        Audience::Caller => return clients.caller().send("Say", (text,)).await.map_err(not_sent),
        Audience::Client(id) => return clients.client(id).send("Say", (text,)).await.map_err(not_sent),
        Audience::Clients(ids) => clients.clients(ids),
        Audience::Group(name) => clients.group(name),
        Audience::Groups(names) => clients.groups(names),
        Audience::GroupExcept(name, ids) => clients.group_except(name, ids),
        Audience::OthersInGroup(name) => clients.others_in_group(name),
        Audience::User(id) => clients.user(id),
        Audience::Users(ids) => clients.users(ids),
    };
    recipients.send("Say", (text,)).await.map_err(not_sent)
}

async fn join(call: Call, connection: String, group: String) -> HubResult {
    call.groups().add(connection, group).await.map_err(not_sent)
}

async fn leave(call: Call, connection: String, group: String) -> HubResult {
    call.groups().remove(connection, group).await.map_err(not_sent)
}

/// `patience` in milliseconds.
async fn ask(call: Call, connection: String, question: String, patience: u64) -> HubResult<String> {
    let asked = call.clients().client(connection);
    let answer = asked.invoke_within("Question", (question,), Duration::from_millis(patience)).await;
    answer.map_err(unanswered)
}

async fn end(call: Call, connection: String) -> HubResult {
    call.clients().client(connection).abort().await.map_err(|error| match error.kind() {
        ErrorKind::Unsupported => HubError::public(UNSUPPORTED),
        _ => error.into(),
    })
}
