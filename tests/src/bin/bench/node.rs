//! Our side: nodes with connections, and how the benchmarks publish and receive through them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backplane::{
    Acceptance, Backplane, BackplaneExt as _, EncodedMessage, GroupName, LocalConnection, OutboundLimits,
    OutboundReceiver, Protocol, Registration, Router, Target, outbound,
};
use futures::future::try_join_all;
use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::payload::{self, Ledger};

/// Tasks that post, and how many acceptances each of them leaves outstanding: 512 in all.
const TASKS: usize = 64;
const OUTSTANDING: usize = 8;

/// A registered connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) registration: Registration,
    pub(crate) receiver: OutboundReceiver,
}

impl Client {
    /// A new connection of `node`, with the usual bounds.
    pub(crate) async fn register(node: &Router) -> Result<Self> {
        let (sender, receiver) = outbound(OutboundLimits::default());
        let id = node.new_connection_id();
        let connection = LocalConnection { id, user: None, protocol: Protocol::JSON, outbound: sender };
        Ok(Self { registration: node.register(connection).await?, receiver })
    }

    /// So many connections.
    pub(crate) async fn register_many(node: &Router, count: usize) -> Result<Vec<Self>> {
        try_join_all((0..count).map(|_| Self::register(node))).await
    }

    /// Makes it a member of a group.
    pub(crate) async fn join(&self, node: &Router, group: &GroupName) -> Result<()> {
        Ok(node.join(self.registration.connection(), group).await?)
    }

    /// Receives payloads up to the end, as a connection's writer would: all that waits at once.
    pub(crate) async fn receive(&mut self, ledger: &mut Ledger) -> Result<()> {
        loop {
            let item = self.receiver.next_joined().await;
            let item = item.map_err(|reason| format!("the connection was ended: {reason:?}"))?;
            ledger.look(Instant::now());
            if ledger.read(&item.bytes) {
                return Ok(());
            }
        }
    }
}

fn message(payload: &[u8]) -> EncodedMessage {
    EncodedMessage::json(payload.to_vec())
}

/// Posts to the group as fast as acceptances allow for that long, and the end. How many.
pub(crate) async fn post_flat_out(node: &Router, group: &GroupName, duration: Duration) -> Result<u64> {
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let target = Target::Group(group.clone());
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(post_until_told(node.clone(), target.clone(), sent.clone(), stop.clone())))
        .collect();
    tokio::time::sleep(duration).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    let sent = sent.load(Ordering::Relaxed);
    node.send(&target, &[], message(&payload::end(sent))).await?;
    Ok(sent)
}

/// The runtime has one thread, and nothing is awaited between taking a number and posting: so payloads are posted in
/// the order of their numbers.
async fn post_until_told(
    node: Router,
    target: Target,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> backplane::Result<()> {
    let mut outstanding: VecDeque<Acceptance> = VecDeque::with_capacity(OUTSTANDING);
    while !stop.load(Ordering::Relaxed) {
        while outstanding.len() < OUTSTANDING {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            outstanding.push_back(node.post(&target, &[], message(&payload::numbered(number)))?);
        }
        if let Some(oldest) = outstanding.pop_front() {
            oldest.await?;
        }
    }
    for acceptance in outstanding {
        acceptance.await?;
    }
    Ok(())
}

/// Posts so many per second to the group, one at a time, for that long, and the end. How many.
pub(crate) async fn post_paced(
    node: &Router,
    group: &GroupName,
    duration: Duration,
    pace: u32,
) -> Result<u64> {
    let target = Target::Group(group.clone());
    let mut sent = 0;
    let mut ticks = interval(Duration::from_secs(1) / pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let until = Instant::now() + duration;
    while Instant::now() < until {
        ticks.tick().await;
        node.post(&target, &[], message(&payload::stamped(sent)))?.await?;
        sent += 1;
    }
    node.send(&target, &[], message(&payload::end(sent))).await?;
    Ok(sent)
}
