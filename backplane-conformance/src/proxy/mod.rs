//! A TCP proxy between a bus and its broker that provokes faults and counts what passes.
//!
//! It runs on a thread of its own, so that neither a busy test nor a paused clock disturbs it. Every switch works at
//! once: when the call returns, no byte moves any more that it forbids.
//!
//! ```
//! use backplane_conformance::proxy::FaultProxy;
//!
//! # fn main() -> std::io::Result<()> {
//! # let broker = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
//! let proxy = FaultProxy::start(broker)?;
//! let client = std::net::TcpStream::connect(proxy.address())?;
//! proxy.freeze(); // half-open: nothing moves, nothing is closed
//! proxy.thaw();
//! proxy.cut(); // every connection is reset
//! assert_eq!(proxy.traffic().bytes_to_server, 0);
//! # drop(client);
//! # Ok(())
//! # }
//! ```

mod commands;
mod connection;
mod switches;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::harness::Faults;
use connection::serve;
use switches::{Ending, Meters, Switches};

pub use commands::CommandCount;
pub use switches::{Direction, Traffic};

/// A running proxy. Its connections and its thread end when it is dropped.
pub struct FaultProxy {
    address: SocketAddr,
    switches: watch::Sender<Switches>,
    meters: Arc<Meters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Listens on a free loopback port and passes everything on to `upstream`, which need not be there yet: a client
    /// that comes while it is down is reset.
    ///
    /// # Errors
    /// When no port can be bound or no thread started.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (switches, watched) = watch::channel(Switches::default());
        let meters = Arc::new(Meters::default());
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("fault-proxy".to_owned()).spawn({
            let meters = meters.clone();
            move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = accept(listener, upstream, watched, meters) => {}
                    }
                });
            }
        })?;
        Ok(Self { address, switches, meters, stop: Some(stop), thread: Some(thread) })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection, frozen or not. New ones are accepted.
    pub fn cut(&self) {
        self.end(Ending::Reset);
    }

    /// Closes every connection in order (both sides see an end of stream). New ones are accepted.
    pub fn hang_up(&self) {
        self.end(Ending::Close);
    }

    fn end(&self, ending: Ending) {
        self.switches.send_modify(|switches| {
            switches.generation += 1;
            switches.ending = ending;
        });
    }

    /// From now on new connections are reset at once. Those that there are stay.
    pub fn refuse(&self) {
        self.switches.send_modify(|switches| switches.refusing = true);
    }

    /// Ends [`refuse`](FaultProxy::refuse).
    pub fn accept(&self) {
        self.switches.send_modify(|switches| switches.refusing = false);
    }

    /// Half-open: no byte and no end of stream moves either way, nothing is closed. New connections are accepted,
    /// and mute.
    pub fn freeze(&self) {
        self.switches.send_modify(|switches| switches.frozen = [true; 2]);
    }

    /// What the server says no longer arrives; what the clients say does.
    pub fn freeze_to_client(&self) {
        self.freeze_one(Direction::ToClient);
    }

    /// What the clients say no longer arrives; what the server says does.
    pub fn freeze_to_server(&self) {
        self.freeze_one(Direction::ToServer);
    }

    fn freeze_one(&self, direction: Direction) {
        self.switches.send_modify(|switches| switches.frozen[direction as usize] = true);
    }

    /// Everything moves again, both ways. What was held back arrives.
    pub fn thaw(&self) {
        self.switches.send_modify(|switches| switches.frozen = [false; 2]);
    }

    /// Every chunk arrives that much later, in order, both ways; zero (the default) for at once. The rate stays:
    /// up to 4 MiB are under way per connection and direction.
    pub fn delay(&self, delay: Duration) {
        self.switches.send_modify(|switches| switches.delay = delay);
    }

    /// All connections together carry at most `bytes_per_second` each way; `None` (the default) for no limit. At
    /// least 1.
    pub fn throttle(&self, bytes_per_second: Option<u64>) {
        self.switches.send_modify(|switches| switches.rate = bytes_per_second.map(|rate| rate.max(1)));
    }

    /// The next `bytes` in that direction, of whatever connection, are lost. Adds to what is still to be lost.
    pub fn drop_bytes(&self, bytes: u64, direction: Direction) {
        self.meters.lose(bytes, direction);
    }

    /// What passed so far. Whatever a client or the server has received is counted.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.await_write();
        self.meters.traffic()
    }

    /// Lets a write that is under way be counted: the proxy counts while it holds the switches for reading.
    fn await_write(&self) {
        self.switches.send_if_modified(|_| false);
    }

    /// The Redis commands that the server was sent since the start or [`reset_counts`](FaultProxy::reset_counts), by
    /// name in upper case. Bytes that are no Redis protocol (RESP arrays) count as nothing.
    #[must_use]
    pub fn commands(&self) -> HashMap<String, CommandCount> {
        self.await_write();
        self.meters.commands()
    }

    /// Forgets [`commands`](FaultProxy::commands).
    pub fn reset_counts(&self) {
        self.await_write();
        self.meters.reset_commands();
    }
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy")
            .field("address", &self.address)
            .field("switches", &*self.switches.borrow())
            .field("traffic", &self.traffic())
            .finish_non_exhaustive()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It never blocks but in its poll, so it ends at once. A panic there was already printed.
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Faults for FaultProxy {
    async fn cut(&self) {
        FaultProxy::cut(self);
    }

    async fn down(&self) {
        self.refuse();
        FaultProxy::cut(self);
    }

    async fn up(&self) {
        self.accept();
    }

    async fn freeze(&self) {
        FaultProxy::freeze(self);
    }

    async fn thaw(&self) {
        FaultProxy::thaw(self);
    }
}

/// Owns the tasks of all connections: they end with this future.
async fn accept(
    listener: std::net::TcpListener,
    upstream: SocketAddr,
    switches: watch::Receiver<Switches>,
    meters: Arc<Meters>,
) {
    let listener = TcpListener::from_std(listener).expect("a non-blocking listener can be registered");
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let now = *switches.borrow();
                    if now.refusing {
                        meters.refused();
                        connection::reset(&client);
                        continue;
                    }
                    let open = Meters::opened(&meters);
                    connections.spawn(serve(client, upstream, switches.clone(), now.generation, open));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: those that close make room.
                    tracing::warn!(%error, "the fault proxy cannot accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
        }
    }
}
