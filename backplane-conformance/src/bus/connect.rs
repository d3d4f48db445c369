//! B9: `connect` tries once, within its deadline, and says in a typed way why it failed.

use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Attach, Error, NodeId};
use tokio::time::{Instant, timeout};

use super::probe::WAIT;
use super::space::{NO_FAULTS, Space};
use crate::ensure;
use crate::harness::Harness;
use crate::report::{Broken, Kept, Outcome, bound};

/// What a deadline may be missed by on a busy machine.
const SLACK: Duration = Duration::from_millis(2_000);

/// One attempt to connect, which has to fail.
async fn attempt(space: &Space, deadline: Duration) -> Result<(Error, Duration), Broken> {
    let bus = space.harness.bus().await?;
    let topics = [space.topic("attempt")];
    let heartbeat = Duration::from_secs(10);
    let attach =
        Attach { node: NodeId::random(), attempt: 1, topics: &topics, resume: None, deadline, heartbeat };
    let start = Instant::now();
    match timeout(deadline + bound(SLACK), bus.connect(attach)).await {
        Ok(Err(error)) => Ok((error, start.elapsed())),
        Ok(Ok(_)) => Err(Broken("connected although the broker did not answer".to_owned())),
        Err(_) => Err(Broken(format!(
            "connect with a deadline of {deadline:?} still tried {:?} later",
            bound(SLACK)
        ))),
    }
}

fn retryable((error, _): (Error, Duration)) -> Outcome {
    ensure!(error.is_retryable(), "says with {:?} that trying again cannot help: {error}", error.kind());
    Ok(Kept::Yes)
}

pub(super) async fn connecting_to_a_lost_broker_fails_typed_and_in_time(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    faults.down().await;
    let failed = attempt(&space, Duration::from_millis(600)).await;
    faults.up().await;
    retryable(failed?)
}

pub(super) async fn connecting_to_a_frozen_broker_fails_typed_and_in_time(
    harness: Arc<dyn Harness>,
) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    faults.freeze().await;
    let failed = attempt(&space, Duration::from_millis(600)).await;
    faults.thaw().await;
    retryable(failed?)
}

pub(super) async fn connect_does_not_retry_in_secret(harness: Arc<dyn Harness>) -> Outcome {
    let space = Space::new(harness);
    let Some(faults) = space.faults() else { return Ok(NO_FAULTS) };
    let deadline = bound(WAIT);
    faults.down().await;
    // A broker that is gone refuses at once. Whoever uses up the deadline tries again and again.
    let failed = attempt(&space, deadline).await;
    faults.up().await;
    let (error, time) = failed?;
    ensure!(time < deadline / 2, "refused by the broker, connect went on for {time:?}: {error}");
    Ok(Kept::Yes)
}
