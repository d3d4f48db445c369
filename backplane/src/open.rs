//! From a URL to a bus and a node, with the schemes that are compiled in.

use std::sync::Arc;

use backplane_core::{Bus, Result, Router, RouterConfig};

use crate::schemes::Schemes;

/// Opens a node on the bus that `url` names. One attempt; see [`start=degraded`](RouterConfig::start) for a node that
/// starts down and keeps trying.
///
/// ```
/// use backplane::Backplane as _;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> backplane::Result<()> {
/// let node = backplane::open("memory:?hub=chat").await?;
/// assert!(node.health().borrow().is_up());
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of [`resolve`] and of [`Router::open`].
pub async fn open(url: &str) -> Result<Router> {
    Schemes::compiled().open(url).await
}

/// The bus that `url` names, not connected yet. Nodes that share the returned value share the bus, which is the only
/// way to do so for `memory:`; a node is opened on it with [`Router::open`].
///
/// ```
/// use backplane::{Router, RouterConfig};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> backplane::Result<()> {
/// let bus = backplane::open_bus("memory:?max_frame=1MiB")?;
/// let north = Router::open(bus.clone(), RouterConfig::default()).await?;
/// let south = Router::open(bus, RouterConfig::default()).await?;
/// assert_ne!(north.node_id(), south.node_id());
/// # Ok(()) }
/// ```
///
/// # Errors
/// Those of [`resolve`]; and [`InvalidConfig`](crate::ErrorKind::InvalidConfig) for a parameter that configures a node,
/// since it would have no effect here: [`resolve`] returns both.
pub fn open_bus(url: &str) -> Result<Arc<dyn Bus>> {
    Schemes::compiled().open_bus(url)
}

/// What `url` stands for: the bus, not connected yet, and the configuration of a node on it. Asks nobody.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> backplane::Result<()> {
/// let resolved = backplane::resolve("memory:?hub=chat")?;
/// let (north, south) = (resolved.open().await?, resolved.open().await?);     // two nodes, one bus
/// # drop((north, south));
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`InvalidConfig`](crate::ErrorKind::InvalidConfig) when `url` cannot be read, its scheme is not known (the error
/// lists those that are compiled in) or not compiled in (it names the feature), or a parameter is unknown, repeated or
/// wrong. Whatever the bus says about its part of the URL. None of them holds user or password.
pub fn resolve(url: &str) -> Result<Resolved> {
    Schemes::compiled().resolve(url)
}

/// A URL, resolved: see [`resolve`].
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The bus. Nodes that share it meet.
    pub bus: Arc<dyn Bus>,
    /// How a node on it is set up: the defaults, and what the URL says.
    pub config: RouterConfig,
}

impl Resolved {
    /// Opens one more node on the bus.
    ///
    /// # Errors
    /// Those of [`Router::open`].
    pub async fn open(&self) -> Result<Router> {
        Router::open(self.bus.clone(), self.config.clone()).await
    }
}
