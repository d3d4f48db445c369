//! A client in miniature: a connection of one server that keeps what it hears and answers what it is asked.

use std::sync::Arc;

use backplane::{
    Backplane as _, ClientResult, CloseReason, ConnectionId, LocalConnection, OutboundLimits,
    OutboundReceiver, Protocol, Registration, Result, Router, UserId, outbound,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::message::{self, Heard};

/// Most arrivals that may wait to be checked; no step makes nearly as many.
const UNCHECKED: usize = 1024;

/// A question that is answered with an error.
pub(crate) const REFUSED: &str = "your password?";
/// A question that is never answered.
pub(crate) const IGNORED: &str = "are you there?";

/// A connected client. Leaves when dropped.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) id: ConnectionId,
    /// What it heard, in order; how its connection ended stands there too.
    pub(crate) arrivals: mpsc::Receiver<String>,
    /// Reads and answers.
    task: JoinHandle<()>,
}

impl Client {
    /// Connects to `server` as `user`.
    pub(crate) async fn connect(server: &Router, name: &'static str, user: &str) -> Result<Self> {
        let id = server.new_connection_id();
        let (sender, receiver) = outbound(OutboundLimits::default());
        let connection = LocalConnection {
            id: id.clone(),
            user: Some(UserId::from(user)),
            protocol: Protocol::JSON,
            outbound: sender,
        };
        let registration = Arc::new(server.register(connection).await?);
        let (heard, arrivals) = mpsc::channel(UNCHECKED);
        let task = tokio::spawn(listen(name, registration, receiver, heard));
        Ok(Self { name, id, arrivals, task })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(
    name: &'static str,
    registration: Arc<Registration>,
    mut receiver: OutboundReceiver,
    heard: mpsc::Sender<String>,
) {
    loop {
        let item = match receiver.next().await {
            Ok(item) => item,
            Err(reason) => {
                // Nobody listens any more when the script has ended.
                let _ = heard.send(ended(&reason)).await;
                return;
            }
        };
        for message in message::read(&item.bytes) {
            let arrival = match message {
                Ok(Heard::Say(text)) => text,
                Ok(Heard::Ask { id, question }) => match answer(name, &question) {
                    None => continue,
                    Some(result) => match registration.complete(&id, result) {
                        Ok(()) => continue,
                        Err(error) => format!("the answer failed: {error}"),
                    },
                },
                Err(unreadable) => unreadable,
            };
            if heard.send(arrival).await.is_err() {
                return;
            }
        }
    }
}

fn answer(name: &str, question: &str) -> Option<ClientResult> {
    match question {
        IGNORED => None,
        REFUSED => Some(ClientResult::error(refusal(name))),
        _ => Some(ClientResult::value(Protocol::JSON, serde_json::Value::from(name).to_string())),
    }
}

/// How the client called `name` declines.
pub(crate) fn refusal(name: &str) -> String {
    format!("{name} does not tell")
}

/// How the end of a connection stands among the arrivals.
pub(crate) fn ended(reason: &CloseReason) -> String {
    match reason {
        CloseReason::Aborted(why) => {
            format!("ended: {}", why.message.as_deref().unwrap_or("no reason given"))
        }
        other => format!("ended: {other:?}"),
    }
}
