//! What this node waits for: acknowledgements and client results from other nodes.
//!
//! Each wait belongs to the call that created it: a [`Wait`] dropped (answered, timed out, given up) is forgotten. The
//! deadline is the caller's.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::id::NodeId;

/// Waits for answers of type `A`, by key.
pub(crate) struct Pending<K, A>(Mutex<HashMap<K, Entry<A>, RandomState>>);

struct Entry<A> {
    /// The node that must answer, where known: its death ends the wait.
    node: Option<NodeId>,
    since: Instant,
    answer: oneshot::Sender<Result<A>>,
}

impl<K: Clone + Eq + Hash, A> Pending<K, A> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(HashMap::default())))
    }

    /// Begins to wait for the answer to `key`.
    pub(crate) fn begin(self: &Arc<Self>, key: K, node: Option<NodeId>) -> Wait<K, A> {
        let (answer, receiver) = oneshot::channel();
        self.0.lock().insert(key.clone(), Entry { node, since: Instant::now(), answer });
        Wait { key, receiver, pending: Arc::downgrade(self) }
    }

    /// The answer came. `false`: nobody waits for it (any more).
    pub(crate) fn answer(&self, key: &K, answer: Result<A>) -> bool {
        match self.0.lock().remove(key) {
            Some(entry) => entry.answer.send(answer).is_ok(),
            None => false,
        }
    }

    /// A node is gone: waits on it end.
    pub(crate) fn node_gone(&self, node: NodeId) {
        let context = format!("node {node} is gone");
        self.fail(
            |entry| entry.node == Some(node),
            &Error::new(ErrorKind::ConnectionNotFound, "await").with_context(context),
        );
    }

    /// Ends all waits.
    pub(crate) fn fail_all(&self, error: &Error) {
        self.fail(|_| true, error);
    }

    /// The nodes that somebody waits for, each with the beginning of its oldest wait.
    pub(crate) fn nodes(&self) -> Vec<(NodeId, Instant)> {
        let entries = self.0.lock();
        let mut nodes: Vec<(NodeId, Instant)> =
            entries.values().filter_map(|entry| Some((entry.node?, entry.since))).collect();
        drop(entries);
        nodes.sort_unstable();
        nodes.dedup_by_key(|(node, _)| *node);
        nodes
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn fail(&self, of: impl Fn(&Entry<A>) -> bool, error: &Error) {
        let failed: Vec<Entry<A>> = {
            let mut entries = self.0.lock();
            entries.extract_if(|_, entry| of(entry)).map(|(_, entry)| entry).collect()
        };
        for entry in failed {
            // Who no longer waits needs no answer.
            let _ = entry.answer.send(Err(error.clone()));
        }
    }
}

/// One wait; dropping it forgets it.
pub(crate) struct Wait<K: Eq + Hash, A> {
    key: K,
    receiver: oneshot::Receiver<Result<A>>,
    pending: Weak<Pending<K, A>>,
}

impl<K: Eq + Hash, A> Wait<K, A> {
    /// The answer.
    pub(crate) async fn answer(&mut self) -> Result<A> {
        match (&mut self.receiver).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::new(ErrorKind::Closed, "await")),
        }
    }
}

impl<K: Eq + Hash, A> Drop for Wait<K, A> {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.upgrade() {
            pending.0.lock().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_ends_its_wait_and_late_ones_are_dropped() {
        let pending = Pending::<u32, &str>::new();
        let mut wait = pending.begin(1, None);
        assert!(pending.answer(&1, Ok("yes")));
        assert_eq!(wait.answer().await.unwrap(), "yes");
        assert!(!pending.answer(&1, Ok("late")));
        assert!(!pending.answer(&2, Ok("unknown")));
    }

    #[tokio::test]
    async fn a_dead_node_ends_only_the_waits_on_it() {
        let pending = Pending::<u32, ()>::new();
        let (dead, alive) = (NodeId::from_bytes([1; 6]), NodeId::from_bytes([2; 6]));
        let mut on_dead = pending.begin(1, Some(dead));
        let _on_alive = pending.begin(2, Some(alive));
        let between = Instant::now();
        let _later = pending.begin(3, Some(alive));
        let nodes = pending.nodes();
        assert_eq!(nodes.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [dead, alive]);
        assert!(nodes.iter().all(|(_, since)| *since <= between), "the oldest wait counts");
        pending.node_gone(dead);
        assert_eq!(on_dead.answer().await.unwrap_err().kind(), ErrorKind::ConnectionNotFound);
        assert_eq!(pending.len(), 2);
    }

    #[test]
    fn a_dropped_wait_is_forgotten() {
        let pending = Pending::<u32, ()>::new();
        drop(pending.begin(1, None));
        assert_eq!(pending.len(), 0);
    }
}
