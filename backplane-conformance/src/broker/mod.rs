//! Private brokers: real servers that a test starts for itself, and may therefore kill, freeze and restart.
//!
//! Each runs in its own process group, on a free loopback port, in its own temporary folder. Nothing is left behind:
//! not when it is dropped (also while frozen), and not when the test process itself is killed. Unix only.
//!
//! A broker that is not installed is a visible skip, and a failure when `BACKPLANE_TEST_REQUIRE` names it:
//!
//! ```no_run
//! use backplane_conformance::broker::{Broker, Redis, RedisOptions};
//!
//! # async fn test() -> backplane_core::Result<()> {
//! let Some(redis) = Redis::require(RedisOptions::default()).await else { return Ok(()) };
//! redis.freeze()?;
//! redis.thaw()?;
//! redis.kill();
//! redis.restart().await?;
//! assert!(redis.url().starts_with("redis://"));
//! # Ok(())
//! # }
//! ```
//!
//! A new kind of broker is one file with one implementation of [`Broker`]: how it is configured, and how one knows
//! that it is ready.
#![cfg(unix)]

mod account;
mod folder;
mod mariadb;
mod nats;
mod pgbouncer;
mod port;
mod postgres;
mod process;
mod rabbitmq;
mod redis;
mod require;
mod resp;
mod tls;
mod tree;

use std::fmt::Debug;
use std::future::Future;

use backplane_core::Result;

pub use folder::Folder;
pub use mariadb::{MariaDb, MariaDbOptions};
pub use nats::{Nats, NatsOptions};
pub use pgbouncer::{PgBouncer, PgBouncerOptions};
pub use port::free_port;
pub use postgres::{Postgres, PostgresOptions};
pub use process::{Launch, Process, StartError};
pub use rabbitmq::{RabbitMq, RabbitMqHoldings, RabbitMqOptions};
pub use redis::{Redis, RedisOptions};
pub use require::{Missing, REQUIRE_VARIABLE, find, given_url, missing};
pub use resp::Reply;
pub use tls::TlsFiles;

/// A kind of broker that tests can start for themselves.
pub trait Broker: Debug + Send + Sync + Sized + 'static {
    /// How it is set up; the default suits most tests.
    type Options: Default + Send;

    /// What `BACKPLANE_TEST_REQUIRE` and `BACKPLANE_TEST_<NAME>_URL` call it, in lower case.
    const NAME: &'static str;

    /// The server's program.
    const PROGRAM: &'static str;

    /// Starts one on a free port; it accepts connections when this returns.
    ///
    /// # Errors
    /// [`Unsupported`](backplane_core::ErrorKind::Unsupported) when the program is not installed,
    /// [`InvalidConfig`](backplane_core::ErrorKind::InvalidConfig) with the end of its output when it refused to
    /// run, [`Timeout`](backplane_core::ErrorKind::Timeout) when it did not accept in time.
    fn start(options: Self::Options) -> impl Future<Output = Result<Self>> + Send;

    /// The server's process.
    fn process(&self) -> &Process;

    /// Where to connect, with the credentials of the most privileged user.
    fn url(&self) -> String;

    /// Starts it again with the same options on the same port, after [`kill`](Broker::kill) or
    /// [`stop`](Broker::stop). Returns when it accepts. One that still runs is killed first.
    ///
    /// # Errors
    /// As [`start`](Broker::start).
    fn restart(&self) -> impl Future<Output = Result<()>> + Send;

    /// Ends it at once (SIGKILL), frozen or not. When this returns the process is gone.
    fn kill(&self) {
        self.process().kill();
    }

    /// Stops it without ending it (SIGSTOP): connections stay open, nothing moves, new ones hang.
    ///
    /// # Errors
    /// [`Unavailable`](backplane_core::ErrorKind::Unavailable) when it does not run.
    fn freeze(&self) -> Result<()> {
        self.process().freeze()
    }

    /// Ends a [`freeze`](Broker::freeze).
    ///
    /// # Errors
    /// [`Unavailable`](backplane_core::ErrorKind::Unavailable) when it does not run.
    fn thaw(&self) -> Result<()> {
        self.process().thaw()
    }

    /// Asks it to end in order (SIGTERM), and kills it when it has not within 10 s.
    fn stop(&self) -> impl Future<Output = ()> + Send {
        self.process().stop()
    }

    /// Starts one for a test that cannot do without. `None`: it is not installed; the skip was printed.
    ///
    /// # Panics
    /// When it is installed but does not start, and when it is missing although `BACKPLANE_TEST_REQUIRE` names it.
    fn require(options: Self::Options) -> impl Future<Output = Option<Self>> + Send {
        async {
            if let Err(why) = find(Self::PROGRAM) {
                missing(Self::NAME, &why);
                return None;
            }
            Some(Self::start(options).await.unwrap_or_else(|error| panic!("{}: {error}", Self::NAME)))
        }
    }

    /// For tests that only need some broker of the kind, and neither kill nor freeze it: the one whose URL stands in
    /// `BACKPLANE_TEST_<NAME>_URL`, else a private one as by [`require`](Broker::require).
    ///
    /// # Panics
    /// As [`require`](Broker::require).
    fn reachable() -> impl Future<Output = Option<Reachable<Self>>> + Send {
        async {
            if let Some(url) = given_url(Self::NAME) {
                return Some(Reachable::Given(url));
            }
            Self::require(Self::Options::default()).await.map(Reachable::Private)
        }
    }
}

/// A broker to talk to, and not necessarily ours to disturb. See [`Broker::reachable`].
#[derive(Debug)]
pub enum Reachable<B> {
    /// Named by the environment; it belongs to somebody else.
    Given(String),
    /// Started for this test; ends when this is dropped.
    Private(B),
}

impl<B: Broker> Reachable<B> {
    /// Where to connect.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Given(url) => url.clone(),
            Self::Private(broker) => broker.url(),
        }
    }
}
