//! The state of a server's link, and the task that tells the server's own clients when it changes.

use std::time::{SystemTime, UNIX_EPOCH};

use backplane::{Backplane as _, Event, Health, LinkState, Router};
use backplane_signalr::{Arguments, Clients};
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;

use crate::chat::Shared;

/// The link, as the page shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Link {
    pub(crate) up: bool,
    /// Since when, in milliseconds since 1970.
    since: u64,
    /// Why it is down, as far as known.
    why: Option<String>,
}

impl Link {
    pub(crate) fn of(health: &Health) -> Self {
        let why = match &health.state {
            LinkState::Down { error } => error.as_ref().map(|error| error.kind().to_string()),
            LinkState::Up | LinkState::Closed => None,
        };
        Self { up: health.is_up(), since: now(), why }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Tells the clients of this server when its link breaks and when it is back, when another server is gone, and when
/// messages may have been lost. Ends when the node was shut down.
pub(crate) async fn watch(node: Router, clients: Clients, shared: Shared) {
    let (mut health, mut events) = (node.health(), node.events());
    // It may have changed between the start of the server and that of this task.
    health.mark_changed();
    loop {
        tokio::select! {
            changed = health.changed() => {
                let link = Link::of(&health.borrow_and_update());
                if changed.is_err() {
                    return;
                }
                if link.up != shared.link().up {
                    shared.set_link(link.clone());
                    tell(&clients, &shared, "LinkChanged", &(link,));
                }
            }
            event = events.recv() => match event {
                Ok(Event::NodeGone(gone)) => tell(&clients, &shared, "ServerGone", &(gone.to_string(),)),
                Ok(Event::Gap(_)) | Err(RecvError::Lagged(_)) => tell(&clients, &shared, "MayHaveLost", &()),
                Ok(Event::Closed) | Err(RecvError::Closed) => return,
                Ok(_) => {}
            }
        }
    }
}

/// One by one, and not as `clients.all()`: that goes through the bus, which is just what may be down. A message to a
/// connection of this server does not.
fn tell<A: Arguments + Clone>(clients: &Clients, shared: &Shared, method: &str, arguments: &A) {
    for id in shared.here() {
        if let Err(error) = clients.client(id).post(method, arguments.clone()).map(drop) {
            // It left just now, and in the layout of .NET it could be anywhere else.
            tracing::debug!(%error, method, "not told");
        }
    }
}
