//! The life of one connection, in one task: handshake, registration, the loop, the end.

mod calls;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

use std::convert::Infallible;
use std::sync::Arc;

use backplane_core::{AbortReason, CloseReason, ErrorKind, LocalConnection, Registration, outbound};
use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout};

use crate::context::{Connection, Disconnect};
use crate::error::HubError;
use crate::protocol::{HubProtocol, ProtocolError, ServerMessage, handshake};
use crate::server::Server;
use crate::sessions::Session;
use crate::transport::{Ended, Transport};
use calls::Calls;
use serve::Serving;
use wire::Wire;

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum End {
    /// Its transport ended.
    Transport(Ended),
    /// Its client said Close.
    Client(Option<String>),
    /// Its hub ended it.
    Aborted,
    /// Somebody ended it through the backplane.
    Told(AbortReason),
    /// The server shuts down, or its node was shut down.
    Shutdown,
    /// `on_connected` refused it.
    Refused(HubError),
    /// Something went wrong; the client may try again.
    Failed(HubError),
    /// A write did not get through.
    Stuck,
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        Self::Transport(ended)
    }
}

impl From<ProtocolError> for End {
    fn from(error: ProtocolError) -> Self {
        Self::Failed(HubError::private("InvalidDataException", error.to_string()))
    }
}

impl From<CloseReason> for End {
    fn from(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Aborted(reason) => Self::Told(reason),
            CloseReason::Closed => Self::Shutdown,
            CloseReason::Overflow => Self::Failed(HubError::private(
                "Overflow",
                "The client did not read fast enough: its outbound queue overflowed.",
            )),
            CloseReason::MissingProtocol => Self::Failed(HubError::private(
                "InvalidOperationException",
                "This message was received from another server that did not have the requested protocol available.",
            )),
        }
    }
}

impl End {
    /// The Close message for the client; `None`: there is nobody to read it.
    fn close(&self, detailed: bool) -> Option<(Option<String>, bool)> {
        let failed = |error: &HubError| Some(error.tell("Connection closed with an error.", detailed));
        match self {
            Self::Transport(_) | Self::Stuck => None,
            Self::Client(_) | Self::Aborted => Some((None, false)),
            Self::Told(reason) => Some((reason.message.clone(), reason.allow_reconnect)),
            Self::Shutdown => Some((None, true)),
            Self::Refused(error) => Some((failed(error), false)),
            Self::Failed(error) => Some((failed(error), true)),
        }
    }

    /// What `on_disconnected` is told.
    fn disconnect(&self) -> Disconnect {
        match self {
            Self::Transport(Ended::ByClient) | Self::Client(None) | Self::Aborted | Self::Told(_) => {
                Disconnect::Normal
            }
            Self::Shutdown => Disconnect::Normal,
            Self::Client(Some(error)) => Disconnect::ClientError(error.clone()),
            Self::Transport(ended) => Disconnect::Failed(ended.to_string()),
            Self::Refused(error) | Self::Failed(error) => Disconnect::Failed(error.message().to_owned()),
            Self::Stuck => Disconnect::Failed("a write did not get through in time".into()),
        }
    }
}

/// Runs a connection to its end. Until then the token of its `session` is in use; whoever has seen its Close finds the
/// token unknown.
pub(crate) async fn run(
    server: Arc<Server>,
    connection: Arc<Connection>,
    transport: Box<dyn Transport>,
    session: Session,
) {
    let mut wire = Wire::new(transport, server.options.max_record);
    let Some(protocol) = shake_hands(&server, &mut wire).await else {
        drop(session);
        finish(&server, wire, Bytes::new()).await;
        return;
    };
    wire.set_format(protocol.transfer_format());
    let (sender, outbound) = outbound(server.options.outbound);
    let local = LocalConnection {
        id: connection.id.clone(),
        user: connection.user.clone(),
        protocol: protocol.protocol(),
        outbound: sender,
    };
    let (end, calls, registration) = match register(&server, &mut wire, local).await {
        Ok(registration) => {
            let mut serving =
                Serving::new(&server, &connection, protocol.clone(), wire, outbound, registration);
            let end = serving.run().await;
            let (rest, calls, registration) = serving.into_parts();
            wire = rest;
            (end, calls, Some(registration))
        }
        Err(end) => (end, Calls::new(1), None),
    };
    tracing::debug!(connection = %connection.id, ?end, "the connection ends");
    drop(session);
    connection.ended.cancel();
    let close =
        end.close(server.options.detailed_errors).map_or_else(Bytes::new, |(error, allow_reconnect)| {
            let message = ServerMessage::Close { error: error.as_deref(), allow_reconnect };
            let mut bytes = BytesMut::new();
            protocol.encode(&message, &mut bytes).expect("a Close holds nothing but text");
            bytes.freeze()
        });
    let leave = leave(&server, &connection, end.disconnect(), calls, registration);
    // The hub hears of it at once, however long the client takes to let go.
    if matches!(end, End::Stuck) {
        drop(wire);
        leave.await;
    } else {
        futures::future::join(finish(&server, wire, close), leave).await;
    }
}

/// The handshake. `None`: it failed; what is to be said about it waits in the wire.
async fn shake_hands(server: &Server, wire: &mut Wire) -> Option<Arc<dyn HubProtocol>> {
    let options = &server.options;
    let request = async {
        loop {
            let (input, searched) = wire.input();
            match handshake::next_request(input, searched, options.max_record) {
                Ok(Some(request)) => return Ok(Some(request)),
                Ok(None) => {}
                Err(error) => return Err(error.text(options.detailed_errors)),
            }
            if let Err(ended) = wire.receive().await {
                tracing::debug!(%ended, "the transport ended before the handshake");
                return Ok(None);
            }
        }
    };
    let chosen = tokio::select! {
        () = server.stopping.cancelled() => Err(handshake::CANCELED.to_owned()),
        request = timeout(options.handshake_timeout, request) => match request {
            Err(_) => Err(handshake::CANCELED.to_owned()),
            Ok(Err(text)) => Err(text),
            Ok(Ok(None)) => return None,
            Ok(Ok(Some(request))) => {
                handshake::choose(&request, &server.outlet.protocols, |format| wire.carries(format))
            }
        },
    };
    match chosen {
        Ok(protocol) => {
            wire.push(&handshake::accepted());
            Some(protocol)
        }
        Err(text) => {
            tracing::debug!(text, "a handshake was refused");
            wire.push(&handshake::refused(&text));
            None
        }
    }
}

/// Registers with the backplane. The client has its answer to the handshake meanwhile.
async fn register(server: &Server, wire: &mut Wire, local: LocalConnection) -> Result<Registration, End> {
    let flush = async {
        if let Err(ended) = wire.flush().await {
            tracing::debug!(%ended, "the transport ended behind the handshake");
        }
        std::future::pending::<Infallible>().await
    };
    let registered = tokio::select! {
        registered = server.outlet.backplane.register(local) => registered,
        never = flush => match never {},
    };
    registered.map_err(|error| {
        if let Some(suppressed) = server.unregistered.due() {
            tracing::warn!(%error, suppressed, "a connection could not be registered with the backplane");
        }
        End::Failed(match error.kind() {
            ErrorKind::Unavailable => {
                HubError::public("This server has no link to the others at the moment.")
            }
            _ => HubError::from(error),
        })
    })
}

/// Ends the transport in order, within its deadline.
async fn finish(server: &Server, mut wire: Wire, last: Bytes) {
    wire.push(&last);
    if timeout(server.options.close_timeout, wire.close()).await.is_err() {
        tracing::debug!("the client did not end its transport in time");
    }
}

/// Tells the hub, lets running calls come to their end, and deregisters.
async fn leave(
    server: &Server,
    connection: &Arc<Connection>,
    why: Disconnect,
    mut calls: Calls,
    registration: Option<Registration>,
) {
    let deadline = Instant::now() + server.options.call_grace;
    let tell = async {
        if registration.is_some() {
            let told = serve::guarded(async { server.hub.disconnected(connection.clone(), why).await });
            match tokio::time::timeout_at(deadline, told).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(connection = %connection.id, ?error, "on_disconnected failed");
                }
                Err(_) => tracing::warn!(connection = %connection.id, "on_disconnected did not end in time"),
            }
        }
        drop(registration);
    };
    // At the same time: a call may hold a lock that `on_disconnected` waits for.
    let finish = async {
        if tokio::time::timeout_at(deadline, calls.finish()).await.is_err() {
            tracing::warn!(connection = %connection.id, "calls did not end in time and were dropped");
        }
    };
    futures::future::join(tell, finish).await;
}
