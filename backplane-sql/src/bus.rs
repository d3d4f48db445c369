//! The bus: which database, which log, and one link for each node.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::{Attach, Bus, Capabilities, Link, Order, Result};

use crate::config::{LogConfig, LogOrder};
use crate::link::{self, Complaints};
use crate::store::Database;

/// A log in a database as a bus. Each link has three connections, or four with a doorbell, and a task for each.
pub struct SqlBus {
    database: Arc<dyn Database>,
    config: LogConfig,
    complaints: Complaints,
}

impl SqlBus {
    /// Over an opened dialect; `config` is checked already.
    pub(crate) fn new(database: Arc<dyn Database>, config: LogConfig) -> Self {
        Self { database, config, complaints: Complaints::default() }
    }

    /// The log that `url` names; its scheme picks the database, its parameters the options. Connects nothing yet.
    ///
    /// # Errors
    /// [`InvalidConfig`](backplane_core::ErrorKind::InvalidConfig) when the URL cannot be read, its scheme is unknown or
    /// not compiled in, or a parameter is unknown, repeated or out of its bounds. Holds neither user nor password.
    pub fn from_url(url: &str) -> Result<Self> {
        Self::with_config(url, LogConfig::default())
    }

    /// As [`from_url`](Self::from_url), with the options of `config` where the URL says nothing else.
    ///
    /// # Errors
    /// Those of [`from_url`](Self::from_url).
    pub fn with_config(url: &str, config: LogConfig) -> Result<Self> {
        let (database, config) = crate::url::open(url, config)?;
        Ok(Self::new(database, config))
    }
}

impl fmt::Debug for SqlBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlBus").field("database", &self.database).field("config", &self.config).finish()
    }
}

#[async_trait]
impl Bus for SqlBus {
    fn capabilities(&self) -> Capabilities {
        let database = self.database.capabilities();
        Capabilities {
            order: if self.config.order == LogOrder::Total { Order::Total } else { database.order },
            // A link that resumes hands out again what followed its position.
            repeats: true,
            resume: true,
            ..database
        }
    }

    async fn connect(&self, attach: Attach<'_>) -> Result<Link> {
        link::connect(self.database.clone(), &self.config, &self.complaints, attach).await
    }
}
