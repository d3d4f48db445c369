//! A SignalR-compatible hub server, mountable into any axum application. Official, unmodified SignalR clients connect to
//! it; a [`Backplane`](backplane_core::Backplane) carries what it sends to the clients of the other servers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use backplane_core::{MemoryBus, Router, RouterConfig};
//! use backplane_signalr::{Hub, HubContext, HubResult};
//!
//! async fn send_message(hub: HubContext<()>, user: String, message: String) -> HubResult<()> {
//!     Ok(hub.clients().all().send("ReceiveMessage", (user, message)).await?)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Router::open(Arc::new(MemoryBus::new()), RouterConfig::default()).await?;
//! let chat = Hub::new(()).method("SendMessage", send_message).serve(Arc::new(node))?;
//! let app: axum::Router = chat.mount("/chatHub", axum::Router::new());
//! # let _ = app;
//! // axum::serve(listener, app).await?;
//! chat.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # What is served
//! Negotiation (versions 0 and 1), WebSockets, the JSON hub protocol, invocations in both directions with and without a
//! result. Streaming, MessagePack, server-sent events, long polling and stateful reconnect are not served yet, and not
//! offered to clients that negotiate; the seams [`protocol`] and [`transport`] are where they go.

mod clients;
mod connection;
mod context;
mod dispatch;
mod error;
mod health;
mod hub;
mod keepalive;
mod mount;
mod options;
pub mod protocol;
mod seldom;
mod server;
mod sessions;
pub mod transport;

pub use clients::{Arguments, CallerClients, Client, Clients, Groups, InvokeError, Recipients};
pub use context::{Disconnect, HubContext};
pub use dispatch::{HubMethod, MethodArguments};
pub use error::{HubError, HubResult};
pub use health::health;
pub use hub::Hub;
pub use options::{HubOptions, SubprotocolSelector, Transports};
pub use server::HubServer;
