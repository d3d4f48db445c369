//! How the contracts wait: for facts, each with a deadline.

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use backplane_core::{Backplane, Error, ErrorKind, Event, Result, Stats};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::{Broken, bound};

/// How long a contract waits for one thing that must happen: 10 s, and more where [`bound`] says so.
#[must_use]
pub fn patience() -> Duration {
    bound(Duration::from_secs(10))
}

/// Awaits `future` for at most [`patience`].
///
/// # Errors
/// [`Broken`] naming `what`.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> std::result::Result<T, Broken> {
    match tokio::time::timeout(patience(), future).await {
        Ok(value) => Ok(value),
        Err(_) => Err(Broken(format!("waited {:?} in vain for {what}", patience()))),
    }
}

/// Waits until the counters of `node` fulfil `condition`. They announce nothing, so they are looked at again and again.
///
/// # Errors
/// [`Broken`] naming `what`, with the counters.
pub async fn until_stats(
    node: &(impl Backplane + ?Sized),
    what: &str,
    condition: impl Fn(&Stats) -> bool,
) -> std::result::Result<(), Broken> {
    let looked = until(what, || condition(&node.stats())).await;
    looked.map_err(|Broken(text)| Broken(format!("{text}: {:?}", node.stats())))
}

/// Looks again and again until `condition` holds: for facts that nothing announces.
///
/// # Errors
/// [`Broken`] naming `what`.
pub async fn until(what: &str, condition: impl Fn() -> bool) -> std::result::Result<(), Broken> {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

/// The error of `result`, whose kind must be one of `kinds`.
///
/// # Errors
/// [`Broken`] naming `what` when it succeeded or failed otherwise.
pub fn failed<T: Debug>(
    what: &str,
    result: Result<T>,
    kinds: &[ErrorKind],
) -> std::result::Result<Error, Broken> {
    match result {
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        other => Err(Broken(format!("{what}: expected one of {kinds:?}, found {other:?}"))),
    }
}

/// A spawned task that ends with its owner.
#[derive(Debug)]
pub struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    /// Spawns `future`.
    pub fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    /// What it returned.
    ///
    /// # Errors
    /// [`Broken`] naming `what` when it does not end in time, or panicked.
    pub async fn outcome(mut self, what: &str) -> std::result::Result<T, Broken> {
        within(what, &mut self.0).await?.map_err(|error| Broken(format!("{what}: {error}")))
    }
}

impl<T> Task<T> {
    /// Whether it still runs.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.0.is_finished()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Polls `future` at most `polls` times, each time when it asked for it, and then drops it. `None`: it was not done.
///
/// # Errors
/// [`Broken`] when it never asks to be polled again.
pub async fn poll_then_drop<T>(
    polls: usize,
    future: impl Future<Output = T>,
) -> std::result::Result<Option<T>, Broken> {
    let mut future = pin!(future);
    let mut left = polls;
    let polled = std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    within("a future that was not polled again", polled).await
}

/// What a node says of itself, from now on.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// From now on.
    #[must_use]
    pub fn of(node: &(impl Backplane + ?Sized)) -> Self {
        Self(node.events())
    }

    /// The first event for which `wanted` gives something; those before it are passed over.
    ///
    /// # Errors
    /// [`Broken`] naming `what` when it does not come, or events were missed.
    pub async fn until<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(Event) -> Option<T>,
    ) -> std::result::Result<T, Broken> {
        within(what, async {
            loop {
                let event =
                    self.0.recv().await.map_err(|error| Broken(format!("waiting for {what}: {error}")))?;
                if let Some(found) = wanted(event) {
                    return Ok(found);
                }
            }
        })
        .await?
    }

    /// Those that came already.
    ///
    /// # Errors
    /// [`Broken`] when events were missed.
    pub fn so_far(&mut self) -> std::result::Result<Vec<Event>, Broken> {
        let mut events = Vec::new();
        loop {
            match self.0.try_recv() {
                Ok(event) => events.push(event),
                Err(broadcast::error::TryRecvError::Lagged(n)) => {
                    return Err(Broken(format!("{n} events missed")));
                }
                Err(_) => return Ok(events),
            }
        }
    }
}
