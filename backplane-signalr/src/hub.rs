//! A hub before it is served: its state, methods, callbacks and options.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use backplane_core::{Backplane, Error, ErrorKind, Result, UserId};
use futures::future::{BoxFuture, FutureExt as _};
use http::Extensions;
use http::request::Parts;

use crate::context::{CallPlace, Connection, Disconnect, HubContext};
use crate::dispatch::{Call, HubMethod, MethodArguments, Prepared, Refusal, Registered};
use crate::error::HubResult;
use crate::options::HubOptions;
use crate::protocol::{HubProtocol, Json};
use crate::server::HubServer;

type Connected<S> = Box<dyn Fn(HubContext<S>) -> BoxFuture<'static, HubResult> + Send + Sync>;
type Disconnected<S> = Box<dyn Fn(HubContext<S>, Disconnect) -> BoxFuture<'static, HubResult> + Send + Sync>;
type UserOf = Box<dyn Fn(&Parts) -> Option<UserId> + Send + Sync>;
type ItemsOf = Box<dyn Fn(&Parts, &mut Extensions) + Send + Sync>;

/// Builds a hub: methods are plain async functions, registered by name, with a state that all calls share.
///
/// ```
/// use backplane_signalr::{Hub, HubContext, HubError, HubResult};
///
/// async fn divide(_: HubContext<()>, a: i64, b: i64) -> HubResult<i64> {
///     a.checked_div(b).ok_or_else(|| HubError::public("not by zero"))
/// }
///
/// let hub = Hub::new(()).method("Divide", divide).on_connected(async |hub: HubContext<()>| {
///     Ok(hub.clients().others().send("Joined", (hub.connection_id().as_str(),)).await?)
/// });
/// # let _ = hub;
/// ```
pub struct Hub<S> {
    state: Arc<S>,
    methods: HashMap<String, Registered<S>>,
    connected: Option<Connected<S>>,
    disconnected: Option<Disconnected<S>>,
    user: Option<UserOf>,
    items: Option<ItemsOf>,
    options: HubOptions,
    protocols: Vec<Arc<dyn HubProtocol>>,
    twice: Option<String>,
}

impl<S: Send + Sync + 'static> Hub<S> {
    /// A hub without methods, that speaks JSON.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self {
            state: Arc::new(state),
            methods: HashMap::new(),
            connected: None,
            disconnected: None,
            user: None,
            items: None,
            options: HubOptions::default(),
            protocols: vec![Arc::new(Json)],
            twice: None,
        }
    }

    /// Registers a method: an async function of [`HubContext`] and up to eight arguments that can be deserialized, which
    /// returns [`HubResult`] of something that can be serialized. Clients find it by `name` in any case, as in .NET.
    #[must_use]
    pub fn method<F, A>(mut self, name: impl Into<String>, method: F) -> Self
    where
        F: HubMethod<S, A>,
        A: MethodArguments,
    {
        let name = name.into();
        if self.methods.insert(name.to_lowercase(), Registered::new(&name, method)).is_some() {
            self.twice.get_or_insert(name);
        }
        self
    }

    /// Runs when a client has connected, before any of its calls. An error closes the connection without permission
    /// to reconnect; what was sent to it before goes out first. No questions to clients from here. When the client
    /// leaves meanwhile the callback is dropped where it stands, and `on_disconnected` runs: what must not be left half
    /// done is spawned.
    #[must_use]
    pub fn on_connected<F, Fut>(mut self, callback: F) -> Self
    where
        F: Fn(HubContext<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HubResult> + Send + 'static,
    {
        self.connected = Some(Box::new(move |hub| callback(hub).boxed()));
        self
    }

    /// Runs when a connection has ended, also one that `on_connected` refused; its groups are still there. Bounded by
    /// [`HubOptions::call_grace`], together with the calls that still run.
    #[must_use]
    pub fn on_disconnected<F, Fut>(mut self, callback: F) -> Self
    where
        F: Fn(HubContext<S>, Disconnect) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = HubResult> + Send + 'static,
    {
        self.disconnected = Some(Box::new(move |hub, why| callback(hub, why).boxed()));
        self
    }

    /// Finds the user of a connection from the request that opens its transport (not from the negotiation), once.
    /// Default: no user. What a layer of the application put into the request's extensions is there.
    #[must_use]
    pub fn user_id(mut self, user: impl Fn(&Parts) -> Option<UserId> + Send + Sync + 'static) -> Self {
        self.user = Some(Box::new(user));
        self
    }

    /// Keeps something of the request that opens the transport for the connection's calls
    /// ([`HubContext::item`]): claims, an address, a header. Only what is kept here stays in memory.
    #[must_use]
    pub fn items(mut self, keep: impl Fn(&Parts, &mut Extensions) + Send + Sync + 'static) -> Self {
        self.items = Some(Box::new(keep));
        self
    }

    /// Replaces the options.
    #[must_use]
    pub fn options(mut self, options: HubOptions) -> Self {
        self.options = options;
        self
    }

    /// Adds a hub protocol, or replaces the one with the same name. Every message to clients is encoded once for each,
    /// in this order.
    #[must_use]
    pub fn protocol(mut self, protocol: Arc<dyn HubProtocol>) -> Self {
        self.protocols.retain(|known| known.protocol() != protocol.protocol());
        self.protocols.push(protocol);
        self
    }

    /// Serves the hub on a backplane; mount the result into an application. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig): an option is out of its bounds, or a method was registered twice or
    /// has an empty name.
    pub fn serve(self, backplane: Arc<dyn Backplane>) -> Result<HubServer> {
        self.options.validate()?;
        if self.methods.contains_key("") {
            return Err(
                Error::new(ErrorKind::InvalidConfig, "serve").with_context("a method has an empty name")
            );
        }
        if let Some(name) = &self.twice {
            let context = format!("the method {name} was registered twice; names are compared in any case");
            return Err(Error::new(ErrorKind::InvalidConfig, "serve").with_context(context));
        }
        let (options, protocols) = (self.options.clone(), self.protocols.clone());
        Ok(HubServer::new(Arc::new(self), backplane, options, protocols))
    }
}

impl<S> fmt::Debug for Hub<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut methods: Vec<&str> = self.methods.values().map(Registered::name).collect();
        methods.sort_unstable();
        f.debug_struct("Hub")
            .field("methods", &methods)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A hub of any state, as the connections see it.
pub(crate) trait AnyHub: Send + Sync {
    fn user(&self, request: &Parts) -> Option<UserId>;
    fn items(&self, request: &Parts) -> Extensions;
    fn connected(&self, connection: Arc<Connection>) -> BoxFuture<'static, HubResult>;
    fn disconnected(&self, connection: Arc<Connection>, why: Disconnect) -> BoxFuture<'static, HubResult>;
    /// Finds the method of a call and binds its arguments.
    fn prepare(&self, connection: Arc<Connection>, call: &Call) -> std::result::Result<Prepared, Refusal>;
}

impl<S: Send + Sync + 'static> Hub<S> {
    fn context(&self, connection: Arc<Connection>, place: CallPlace) -> HubContext<S> {
        HubContext { state: self.state.clone(), connection, place }
    }
}

impl<S: Send + Sync + 'static> AnyHub for Hub<S> {
    fn user(&self, request: &Parts) -> Option<UserId> {
        self.user.as_ref().and_then(|user| user(request)).filter(|user| !user.as_str().is_empty())
    }

    fn items(&self, request: &Parts) -> Extensions {
        let mut items = Extensions::new();
        if let Some(keep) = &self.items {
            keep(request, &mut items);
        }
        items
    }

    fn connected(&self, connection: Arc<Connection>) -> BoxFuture<'static, HubResult> {
        match &self.connected {
            Some(callback) => callback(self.context(connection, CallPlace::Connecting)),
            None => futures::future::ready(Ok(())).boxed(),
        }
    }

    fn disconnected(&self, connection: Arc<Connection>, why: Disconnect) -> BoxFuture<'static, HubResult> {
        match &self.disconnected {
            Some(callback) => callback(self.context(connection, CallPlace::Outside), why),
            None => futures::future::ready(Ok(())).boxed(),
        }
    }

    fn prepare(&self, connection: Arc<Connection>, call: &Call) -> std::result::Result<Prepared, Refusal> {
        let method =
            self.methods.get(&call.target.to_lowercase()).ok_or_else(|| Refusal::unknown(&call.target))?;
        method.prepare(self.context(connection, call.place.clone()), call)
    }
}
