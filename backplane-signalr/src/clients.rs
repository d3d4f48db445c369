//! Whom a hub sends to, and how: `clients().group("room").send("ReceiveMessage", (user, text))`.

use std::any::{TypeId, type_name};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{
    Acceptance, Backplane, ClientInvocation, ClientResult, ConnectionId, EncodedMessage, Error, ErrorKind,
    GroupName, MembershipChange, Target, UserId,
};
use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::CallPlace;
use crate::error::HubError;
use crate::protocol::{HubProtocol, ServerMessage};

/// The arguments of a client's method: a tuple of up to eight values, or a `Vec` of values of one type.
pub trait Arguments: Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;
    /// Hands each to `visit`, in order, until one fails.
    ///
    /// # Errors
    /// What `visit` returned.
    fn each(
        &self,
        visit: &mut dyn FnMut(&dyn erased_serde::Serialize) -> Result<(), erased_serde::Error>,
    ) -> Result<(), erased_serde::Error>;
}

macro_rules! arguments {
    ($count:literal $(, $name:ident $index:tt)*) => {
        impl<$($name: Serialize + Send + Sync),*> Arguments for ($($name,)*) {
            fn count(&self) -> usize {
                $count
            }
            fn each(
                &self,
                visit: &mut dyn FnMut(&dyn erased_serde::Serialize) -> Result<(), erased_serde::Error>,
            ) -> Result<(), erased_serde::Error> {
                let _ = &visit;
                $(visit(&self.$index)?;)*
                Ok(())
            }
        }
    };
}

arguments!(0);
arguments!(1, A 0);
arguments!(2, A 0, B 1);
arguments!(3, A 0, B 1, C 2);
arguments!(4, A 0, B 1, C 2, D 3);
arguments!(5, A 0, B 1, C 2, D 3, E 4);
arguments!(6, A 0, B 1, C 2, D 3, E 4, F 5);
arguments!(7, A 0, B 1, C 2, D 3, E 4, F 5, G 6);
arguments!(8, A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

impl<T: Serialize + Send + Sync> Arguments for Vec<T> {
    fn count(&self) -> usize {
        self.len()
    }

    fn each(
        &self,
        visit: &mut dyn FnMut(&dyn erased_serde::Serialize) -> Result<(), erased_serde::Error>,
    ) -> Result<(), erased_serde::Error> {
        self.iter().try_for_each(|value| visit(value))
    }
}

/// What every handle to clients needs: where to send, and how to encode.
#[derive(Clone)]
pub(crate) struct Outlet {
    pub(crate) backplane: Arc<dyn Backplane>,
    pub(crate) protocols: Arc<[Arc<dyn HubProtocol>]>,
}

impl Outlet {
    /// Encodes once for each protocol that this hub speaks.
    fn encode(
        &self,
        id: Option<&str>,
        method: &str,
        arguments: &dyn Arguments,
    ) -> Result<EncodedMessage, Error> {
        let mut message = EncodedMessage::default();
        for protocol in self.protocols.iter() {
            let mut bytes = BytesMut::with_capacity(128);
            protocol
                .encode(&ServerMessage::Invocation { id, target: method, arguments }, &mut bytes)
                .map_err(|error| Error::new(ErrorKind::Malformed, "encode").with_source(error))?;
            message.push(protocol.protocol(), bytes.freeze());
        }
        Ok(message)
    }

    fn read<T: DeserializeOwned + 'static>(&self, result: ClientResult) -> Result<T, InvokeError> {
        let wrong = |reason: String| InvokeError::WrongType { expected: dotnet_name::<T>(), reason };
        match result {
            ClientResult::Value { protocol, value } => {
                let known =
                    self.protocols.iter().find(|known| known.protocol() == protocol).ok_or_else(|| {
                        wrong(format!("it came in the protocol {protocol}, which this hub does not speak"))
                    })?;
                read(known.as_ref(), &value).map_err(|error| wrong(error.to_string()))
            }
            ClientResult::Void if TypeId::of::<T>() == TypeId::of::<()>() => {
                T::deserialize(serde::de::value::UnitDeserializer::<serde::de::value::Error>::new())
                    .map_err(|error| wrong(error.to_string()))
            }
            ClientResult::Void => Err(InvokeError::NoResult),
            ClientResult::Error(text) => Err(InvokeError::Refused(text)),
        }
    }
}

/// Reads one encoded value into its type.
pub(crate) fn read<T: DeserializeOwned>(
    protocol: &dyn HubProtocol,
    value: &[u8],
) -> Result<T, erased_serde::Error> {
    let mut read = None;
    protocol.read(value, &mut |deserializer| {
        read = Some(erased_serde::deserialize(deserializer)?);
        Ok(())
    })?;
    read.ok_or_else(|| serde::de::Error::custom("the protocol read no value"))
}

/// The name that a .NET server would give to a type in its error texts, which clients may match on.
fn dotnet_name<T>() -> &'static str {
    let name = type_name::<T>();
    match name {
        "i8" => "SByte",
        "i16" => "Int16",
        "i32" => "Int32",
        "i64" => "Int64",
        "u8" => "Byte",
        "u16" => "UInt16",
        "u32" => "UInt32",
        "u64" => "UInt64",
        "f32" => "Single",
        "f64" => "Double",
        "bool" => "Boolean",
        "char" => "Char",
        "alloc::string::String" | "core::option::Option<alloc::string::String>" => "String",
        _ => name.split('<').next().and_then(|path| path.rsplit("::").next()).unwrap_or(name),
    }
}

/// Why a question to a client has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvokeError {
    /// The client answered with an error.
    #[error("{0}")]
    Refused(String),
    /// The client completed the call without a value, though one was asked for.
    #[error("Exception of type 'Microsoft.AspNetCore.SignalR.HubException' was thrown.")]
    NoResult,
    /// The client's value is not of the type that was asked for.
    #[error("Error trying to deserialize result to {expected}. {reason}")]
    WrongType {
        /// The wanted type, as .NET calls it.
        expected: &'static str,
        /// Why not.
        reason: String,
    },
    /// No server has the connection.
    #[error("Connection '{0}' does not exist.")]
    NotFound(ConnectionId),
    /// The client left before it answered.
    #[error("Connection '{0}' disconnected.")]
    Disconnected(ConnectionId),
    /// The client did not answer in time.
    #[error("Invocation canceled by the server.")]
    Timeout,
    /// Asked from `on_connected`, where no answer could be read.
    #[error("Client results inside OnConnectedAsync Hub methods are not allowed.")]
    InOnConnected,
    /// The question could not be put: the link is down, it is too large, ...
    #[error(transparent)]
    Backplane(Error),
}

impl InvokeError {
    fn new(error: Error, connection: &ConnectionId) -> Self {
        match error.kind() {
            ErrorKind::ConnectionNotFound
                if error.context().is_some_and(|context| context.contains("disconnected")) =>
            {
                Self::Disconnected(connection.clone())
            }
            ErrorKind::ConnectionNotFound => Self::NotFound(connection.clone()),
            ErrorKind::Timeout => Self::Timeout,
            _ => Self::Backplane(error),
        }
    }

    /// What of it the caller of a hub method that fails with it is told, as .NET tells it.
    pub(crate) fn to_hub_error(&self) -> HubError {
        let text = self.to_string();
        match self {
            Self::Refused(_) | Self::NoResult | Self::WrongType { .. } | Self::Timeout => {
                HubError::public(text)
            }
            Self::NotFound(_) | Self::Disconnected(_) => HubError::private("IOException", text),
            Self::InOnConnected => HubError::private("InvalidOperationException", text),
            Self::Backplane(_) => HubError::private("Error", text),
        }
    }
}

/// The clients of a hub, on all servers. Cheap to clone; works from anywhere, also outside a hub method
/// ([`HubServer::clients`](crate::HubServer::clients)).
#[derive(Clone)]
pub struct Clients {
    pub(crate) outlet: Outlet,
    pub(crate) place: CallPlace,
}

impl Clients {
    /// Everybody.
    #[must_use]
    pub fn all(&self) -> Recipients {
        self.to(Target::All)
    }

    /// Everybody but these.
    pub fn all_except<I: Into<ConnectionId>>(&self, except: impl IntoIterator<Item = I>) -> Recipients {
        self.all().except(except)
    }

    /// One connection.
    pub fn client(&self, id: impl Into<ConnectionId>) -> Client {
        Client { outlet: self.outlet.clone(), place: self.place.clone(), connection: id.into() }
    }

    /// Several connections; an id that occurs twice is served once.
    pub fn clients<I: Into<ConnectionId>>(&self, ids: impl IntoIterator<Item = I>) -> Recipients {
        self.to(Target::connections(ids))
    }

    /// The members of a group.
    pub fn group(&self, name: impl Into<GroupName>) -> Recipients {
        self.to(Target::group(name))
    }

    /// The members of several groups; a member of two of them is served twice, as in .NET.
    pub fn groups<G: Into<GroupName>>(&self, names: impl IntoIterator<Item = G>) -> Recipients {
        self.to(Target::groups(names))
    }

    /// The members of a group but these.
    pub fn group_except<I: Into<ConnectionId>>(
        &self,
        name: impl Into<GroupName>,
        except: impl IntoIterator<Item = I>,
    ) -> Recipients {
        self.group(name).except(except)
    }

    /// All connections of a user.
    pub fn user(&self, id: impl Into<UserId>) -> Recipients {
        self.to(Target::user(id))
    }

    /// All connections of several users.
    pub fn users<U: Into<UserId>>(&self, ids: impl IntoIterator<Item = U>) -> Recipients {
        self.to(Target::users(ids))
    }

    fn to(&self, target: Target) -> Recipients {
        Recipients { outlet: self.outlet.clone(), target, except: Vec::new() }
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// [`Clients`] as seen from a call: knows who calls.
#[derive(Clone, Debug)]
pub struct CallerClients {
    pub(crate) clients: Clients,
    pub(crate) caller: ConnectionId,
}

impl CallerClients {
    /// The connection that calls.
    #[must_use]
    pub fn caller(&self) -> Client {
        self.client(&self.caller)
    }

    /// Everybody but the connection that calls.
    #[must_use]
    pub fn others(&self) -> Recipients {
        self.all_except([&self.caller])
    }

    /// The members of a group but the connection that calls.
    pub fn others_in_group(&self, name: impl Into<GroupName>) -> Recipients {
        self.group_except(name, [&self.caller])
    }
}

impl Deref for CallerClients {
    type Target = Clients;

    fn deref(&self) -> &Clients {
        &self.clients
    }
}

/// Whom the next message goes to.
#[derive(Clone)]
pub struct Recipients {
    outlet: Outlet,
    target: Target,
    except: Vec<ConnectionId>,
}

impl Recipients {
    /// Leaves these connections out, beside those left out already.
    #[must_use]
    pub fn except<I: Into<ConnectionId>>(mut self, connections: impl IntoIterator<Item = I>) -> Self {
        self.except.extend(connections.into_iter().map(Into::into));
        self
    }

    /// Calls `method` of these clients. `Ok`: the broker accepted it; whether somebody is there is not known.
    ///
    /// # Errors
    /// [`Backplane::send`]'s; [`Malformed`](ErrorKind::Malformed) when an argument cannot be encoded.
    pub async fn send(&self, method: &str, arguments: impl Arguments) -> Result<(), Error> {
        let message = self.outlet.encode(None, method, &arguments)?;
        self.outlet.backplane.send(&self.target, &self.except, message).await
    }

    /// As [`send`](Recipients::send), without waiting: queued in the order of the calls. The returned future awaits the
    /// broker's acceptance and may be dropped.
    ///
    /// # Errors
    /// [`Backplane::post`]'s; [`Malformed`](ErrorKind::Malformed) when an argument cannot be encoded.
    pub fn post(&self, method: &str, arguments: impl Arguments) -> Result<Acceptance, Error> {
        let message = self.outlet.encode(None, method, &arguments)?;
        self.outlet.backplane.post(&self.target, &self.except, message)
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipients")
            .field("target", &self.target)
            .field("except", &self.except)
            .finish_non_exhaustive()
    }
}

/// One client, on whatever server it is.
#[derive(Clone)]
pub struct Client {
    outlet: Outlet,
    place: CallPlace,
    connection: ConnectionId,
}

impl Client {
    /// Its connection id.
    #[must_use]
    pub fn id(&self) -> &ConnectionId {
        &self.connection
    }

    /// Calls `method` of this client. A client of the same server is served at once, in order; an unknown id is no error.
    ///
    /// # Errors
    /// See [`Recipients::send`].
    pub async fn send(&self, method: &str, arguments: impl Arguments) -> Result<(), Error> {
        self.recipients().send(method, arguments).await
    }

    /// See [`Recipients::post`].
    ///
    /// # Errors
    /// See [`Recipients::post`].
    pub fn post(&self, method: &str, arguments: impl Arguments) -> Result<Acceptance, Error> {
        self.recipients().post(method, arguments)
    }

    /// Asks this client and awaits its answer, for as long as the node's configuration says (default 30 s). A hub
    /// method that asks gives its place among the running calls of its client away, so that the answer can be read.
    ///
    /// # Errors
    /// [`InvokeError`] says why there is no answer.
    pub async fn invoke<T: DeserializeOwned + 'static>(
        &self,
        method: &str,
        arguments: impl Arguments + 'static,
    ) -> Result<T, InvokeError> {
        self.ask(method, arguments, None).await
    }

    /// As [`invoke`](Client::invoke), with a deadline of its own.
    ///
    /// # Errors
    /// See [`invoke`](Client::invoke).
    pub async fn invoke_within<T: DeserializeOwned + 'static>(
        &self,
        method: &str,
        arguments: impl Arguments + 'static,
        timeout: Duration,
    ) -> Result<T, InvokeError> {
        self.ask(method, arguments, Some(timeout)).await
    }

    /// Ends the connection, wherever it is: its client gets a Close without permission to reconnect by itself. What
    /// waits in its queue is dropped; [`HubContext::abort`](crate::HubContext::abort) lets it out first.
    ///
    /// # Errors
    /// [`Backplane::abort`]'s.
    pub async fn abort(&self) -> Result<(), Error> {
        self.outlet.backplane.abort(&self.connection, backplane_core::AbortReason::default()).await
    }

    async fn ask<T: DeserializeOwned + 'static>(
        &self,
        method: &str,
        arguments: impl Arguments + 'static,
        timeout: Option<Duration>,
    ) -> Result<T, InvokeError> {
        if matches!(self.place, CallPlace::Connecting) {
            return Err(InvokeError::InOnConnected);
        }
        // Arguments that cannot be encoded fail here, where it can be said.
        self.outlet.encode(None, method, &arguments).map_err(InvokeError::Backplane)?;
        let (outlet, method) = (self.outlet.clone(), method.to_owned());
        let mut call = ClientInvocation::new(move |id| {
            outlet.encode(Some(id.as_str()), &method, &arguments).unwrap_or_default()
        });
        call.timeout = timeout;
        self.place.give_away();
        let result = self.outlet.backplane.invoke(&self.connection, call).await;
        self.outlet.read(result.map_err(|error| InvokeError::new(error, &self.connection))?)
    }

    fn recipients(&self) -> Recipients {
        let target = Target::Connection(self.connection.clone());
        Recipients { outlet: self.outlet.clone(), target, except: Vec::new() }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.connection)
    }
}

/// Membership in groups, of connections on any server. Nobody may be asked who is in a group; it begins with its first
/// member and ends with its last, and a connection leaves all of them when it ends.
#[derive(Clone)]
pub struct Groups {
    pub(crate) backplane: Arc<dyn Backplane>,
}

impl Groups {
    /// Makes a connection a member. When it returns, the next message to the group from any server arrives.
    ///
    /// # Errors
    /// [`Backplane::update_group`]'s.
    pub async fn add(
        &self,
        connection: impl Into<ConnectionId> + Send,
        group: impl Into<GroupName> + Send,
    ) -> Result<(), Error> {
        self.backplane.update_group(MembershipChange::join(connection, group)).await
    }

    /// Ends a membership; one that is none is no error.
    ///
    /// # Errors
    /// [`Backplane::update_group`]'s.
    pub async fn remove(
        &self,
        connection: impl Into<ConnectionId> + Send,
        group: impl Into<GroupName> + Send,
    ) -> Result<(), Error> {
        self.backplane.update_group(MembershipChange::leave(connection, group)).await
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").finish_non_exhaustive()
    }
}
