//! Can a connection be ended from anywhere?

use std::time::Duration;

use backplane_core::{AbortReason, Backplane as _, CloseReason, ErrorKind, Target};

use super::fleet::{Fleet, Stage};
use super::wait::{failed, within};
use crate::{Broken, Outcome, ensure};

fn reason() -> AbortReason {
    AbortReason { message: Some("enough".into()), allow_reconnect: true }
}

/// A connection of this node ends with the reason, and no other one does.
pub(super) async fn a_local_connection_can_be_aborted(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    aborted_by(&fleet, 0).await?;
    fleet.end().await
}

/// A connection of another node ends with the reason; when `abort` returned, its queue is closed.
pub(super) async fn a_remote_connection_can_be_aborted(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    aborted_by(&fleet, 1).await?;
    fleet.end().await
}

async fn aborted_by(fleet: &Fleet, aborter: usize) -> Result<(), Broken> {
    let [mut aborted, mut other] = fleet.nodes[0].clients().await?;
    within("an abort", fleet.nodes[aborter].router.abort(aborted.id(), reason())).await??;
    let ended = aborted.end().await?;
    ensure!(ended == CloseReason::Aborted(reason()), "an aborted connection was ended by {ended:?}");
    fleet.nodes[aborter].send(&Target::all(), "hello").await?;
    other.expect("hello").await
}

/// The .NET layout has no command to end a connection: it is said, and the connection goes on.
pub(super) async fn a_remote_abort_is_unsupported(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[1].client().await?;
    let outcome = within("a remote abort", fleet.nodes[0].router.abort(client.id(), reason())).await?;
    failed("a remote abort", outcome, &[ErrorKind::Unsupported])?;
    fleet.nodes[0].send(&Target::connection(client.id()), "hello").await?;
    client.expect("hello").await?;
    fleet.end().await
}

/// What left or never was cannot be aborted, which is known at once. Without remote aborts it is `Unsupported`.
pub(super) async fn what_cannot_be_aborted_fails_typed(stage: Stage) -> Outcome {
    let at_once = Duration::from_secs(20);
    let fleet = Fleet::open_with(&stage, 2, |config, _| config.ack_timeout = at_once).await?;
    let mut left_here = fleet.nodes[0].client().await?;
    let mut left_there = fleet.nodes[1].client().await?;
    left_here.leave();
    left_there.leave();
    let mut ids =
        vec![left_here.id().clone(), left_there.id().clone(), fleet.nodes[1].router.new_connection_id()];
    if fleet.nodes[0].reports_reach() {
        ids.extend([fleet.format.new_connection_id(), "none".into()]);
    }
    for id in ids {
        let outcome = within("an abort of nobody", fleet.nodes[0].router.abort(&id, reason())).await?;
        let kinds = [ErrorKind::ConnectionNotFound, ErrorKind::Unsupported];
        failed("an abort of nobody", outcome, if stage.is_native() { &kinds[..1] } else { &kinds })?;
    }
    fleet.end().await
}
