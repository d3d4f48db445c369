//! How the suite gets at the bus under test, and which faults it may provoke.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::memory::{MemoryBus, MemoryFaults};
use backplane_core::{Bus, Result};

/// A bus under test. Everything it hands out reaches the same broker and the same address space; contracts keep out of
/// each other's way by random topic prefixes.
#[async_trait]
pub trait Harness: Debug + Send + Sync + 'static {
    /// How reports call it.
    fn name(&self) -> &str;

    /// A bus as one more process would open it.
    ///
    /// # Errors
    /// Whatever the bus says when it cannot be opened; the contract then fails.
    async fn bus(&self) -> Result<Arc<dyn Bus>>;

    /// The faults that this harness can provoke. `None`: contracts that need faults are reported as not applicable.
    fn faults(&self) -> Option<Arc<dyn Faults>> {
        None
    }
}

/// Faults between all buses of a harness and their broker.
#[async_trait]
pub trait Faults: Debug + Send + Sync + 'static {
    /// Ends every link as a broken connection does; new ones are accepted at once.
    async fn cut(&self);

    /// The broker goes away: every link ends and new ones are refused at once, until [`up`](Faults::up).
    async fn down(&self);

    /// The broker is back. Returns when it accepts links.
    async fn up(&self);

    /// Nothing moves any more and nothing is closed, as with a stopped process or a pulled cable, until
    /// [`thaw`](Faults::thaw). New links hang too.
    async fn freeze(&self);

    /// Everything moves again.
    async fn thaw(&self);
}

/// The memory bus under test, with all faults.
#[derive(Clone, Debug)]
pub struct MemoryHarness {
    bus: MemoryBus,
}

impl MemoryHarness {
    /// Around a bus; every [`Harness::bus`] is a clone of it.
    #[must_use]
    pub fn new(bus: MemoryBus) -> Self {
        Self { bus }
    }
}

#[async_trait]
impl Harness for MemoryHarness {
    fn name(&self) -> &str {
        "memory"
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok(Arc::new(self.bus.clone()))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        Some(Arc::new(self.bus.faults()))
    }
}

#[async_trait]
impl Faults for MemoryFaults {
    async fn cut(&self) {
        MemoryFaults::cut(self);
    }

    async fn down(&self) {
        self.refuse(true);
        MemoryFaults::cut(self);
    }

    async fn up(&self) {
        self.refuse(false);
    }

    async fn freeze(&self) {
        MemoryFaults::freeze(self, true);
    }

    async fn thaw(&self) {
        MemoryFaults::freeze(self, false);
    }
}
