//! One AMQP connection: opened once, watched, and cut when it is given up.

use std::sync::Arc;

use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use backplane_core::Result;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, ConnectionProperties};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::config::{RabbitAddress, RabbitConfig};
use super::refusal::refusal;
use super::socket::{Cable, Socket, Sockets};

/// The largest frame that we offer to negotiate, in bytes. lapin allocates 64 of them for each connection, so the usual
/// 128 KiB would make 16 MiB for each link.
const FRAME: u32 = 32 << 10;

/// How an orderly end is named.
const GOODBYE: u16 = 200;

/// An open connection. Dropping it cuts it: lapin's thread ends, and the broker frees what belongs to it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) connection: lapin::Connection,
    cut: Cut,
}

/// Cuts when dropped.
#[derive(Debug)]
struct Cut(Arc<Cable>);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.cut();
    }
}

impl Line {
    /// Connects and authenticates, once; the caller sets the deadline. Dropping the future frees all of it.
    ///
    /// `name` is what operators see. `heartbeat` is in seconds.
    pub(super) async fn open(
        config: &RabbitConfig,
        address: &RabbitAddress,
        name: String,
        heartbeat: u16,
    ) -> Result<Self> {
        let (socket, cable) = Socket::connect(config, address).await?;
        let cut = Cut(cable);
        // lapin asks for a stream once for each attempt, and makes one attempt.
        let socket = Mutex::new(Some(socket));
        let connect = async move |_: AMQPUri, _: Runtime<RuntimeParts<Tokio, Sockets>>| {
            let socket = socket.lock().take();
            socket.map(AsyncTcpStream::Plain).ok_or_else(|| {
                lapin::Error::from(std::io::Error::new(
                    std::io::ErrorKind::ConnectionAborted,
                    "one attempt is made",
                ))
            })
        };
        let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Sockets));
        // Neither retries nor recovery: that is the router's.
        let properties = ConnectionProperties::default()
            .with_connection_name(name.into())
            .with_client_property("product".into(), "backplane-amqp".into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let connection =
            lapin::Connection::connector(uri(config, address, heartbeat), runtime, connect, properties)
                .await
                .map_err(|error| {
                    refusal("connect", &format!("{address}, vhost `{}`", config.vhost), error)
                })?;
        Ok(Self { connection, cut })
    }

    /// Opens a channel.
    pub(super) async fn channel(&self) -> Result<Channel> {
        self.connection.create_channel().await.map_err(|error| refusal("connect", "open a channel", error))
    }

    /// When the broker was last heard on it.
    pub(super) fn heard(&self) -> Instant {
        self.cut.0.heard()
    }

    /// Ends it in order. When this returns the broker has freed what belonged to it, or the connection has broken, after
    /// which the broker frees it by itself.
    pub(super) async fn close(&self) {
        tokio::select! {
            closed = self.connection.close(GOODBYE, "the link was closed".into()) => {
                if let Err(error) = closed {
                    tracing::debug!(%error, "a rabbitmq connection had ended before its goodbye");
                }
            }
            () = self.cut.0.over() => {}
        }
    }
}

fn uri(config: &RabbitConfig, address: &RabbitAddress, heartbeat: u16) -> AMQPUri {
    AMQPUri {
        // TLS, if any, lies below what lapin sees.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: config.username.clone(), password: config.password.clone() },
            host: address.host.clone(),
            port: address.port,
        },
        vhost: config.vhost.clone(),
        query: AMQPQueryString {
            frame_max: Some(FRAME),
            heartbeat: Some(heartbeat),
            ..AMQPQueryString::default()
        },
    }
}
