//! LISTEN on a connection of its own.

use std::time::Duration;

use async_trait::async_trait;
use backplane_core::{Error, ErrorKind, Result};
use sqlx::Executor as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::fault::fault;
use crate::store::Doorbell;

/// How long connecting may take: the link waits for it, and can do without.
const CONNECT: Duration = Duration::from_secs(2);

/// After how long without a ring the connection is asked whether it lives, and how long the answer may take.
const QUIET: Duration = Duration::from_secs(10);

/// Rings when a node notified the log's channel.
///
/// A task listens, so that the server is always read from: one that could not get rid of its notifications would keep
/// them for all. It ends with this value, and at the first sign that the connection broke: what was notified from then
/// on would be missed, and connecting again is not its business.
pub(super) struct PgDoorbell {
    rings: mpsc::Receiver<Result<()>>,
    listening: JoinHandle<()>,
}

impl PgDoorbell {
    /// Connects and listens.
    pub(super) async fn listen(options: PgConnectOptions, channel: &str) -> Result<Self> {
        // The driver listens with connections of a pool only: one of a single connection, made once.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(options);
        let connected = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            // Otherwise it would connect again by itself, and the break would go by unseen.
            listener.eager_reconnect(false);
            listener.listen(channel).await?;
            Ok(listener)
        };
        let listener = connected.await.map_err(|error| fault("listen", error))?;
        // Of rings that nobody heard yet, one is enough.
        let (ring, rings) = mpsc::channel(1);
        let listening = tokio::spawn(async move {
            let Err(error) = attend(listener, &ring).await;
            // Whoever waits is told; nobody left to be told is no matter.
            let _ = ring.send(Err(error)).await;
        });
        Ok(Self { rings, listening })
    }
}

async fn attend(
    mut listener: PgListener,
    ring: &mpsc::Sender<Result<()>>,
) -> Result<std::convert::Infallible> {
    let broken = || Error::new(ErrorKind::Unavailable, "listen").with_context("the connection broke");
    loop {
        match tokio::time::timeout(QUIET, listener.try_recv()).await {
            Ok(Ok(Some(_))) => {
                while listener.next_buffered().is_some() {}
                // Full: a ring waits to be heard already.
                let _ = ring.try_send(Ok(()));
            }
            Ok(Ok(None)) => return Err(broken()),
            Ok(Err(error)) => return Err(fault("listen", error)),
            Err(_) => {
                let alive = tokio::time::timeout(QUIET, (&mut listener).execute(""));
                alive.await.map_err(|_| broken())?.map_err(|error| fault("listen", error))?;
            }
        }
    }
}

#[async_trait]
impl Doorbell for PgDoorbell {
    async fn rang(&mut self) -> Result<()> {
        let closed = || Err(Error::new(ErrorKind::Closed, "listen"));
        self.rings.recv().await.unwrap_or_else(closed)
    }
}

impl Drop for PgDoorbell {
    fn drop(&mut self) {
        self.listening.abort();
    }
}
