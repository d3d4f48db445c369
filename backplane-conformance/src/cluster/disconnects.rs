//! How does a question end whose client leaves?

use backplane_core::ErrorKind;

use super::fleet::{Fleet, Stage};
use super::wait::failed;
use crate::{Broken, Outcome, ensure};

/// One server: the client leaves while asked.
pub(super) async fn client_disconnects_without_completing_client_result(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    leaves_while_asked(&fleet, 0).await?;
    fleet.end().await
}

/// Two servers: the client of the other one leaves while asked. The original has another exception and text here
/// than locally; ours are the same.
pub(super) async fn client_disconnects_without_completing_client_result_on_second_server(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    leaves_while_asked(&fleet, 1).await?;
    fleet.end().await
}

async fn leaves_while_asked(fleet: &Fleet, asker: usize) -> Result<(), Broken> {
    let mut client = fleet.nodes[0].client().await?;
    let asking = fleet.nodes[asker].ask(client.id(), "test");
    let _ = client.asked("test").await?;
    client.leave();
    let outcome = asking.outcome("the end of a question whose client left").await?;
    let error = failed("a question whose client left", outcome, &[ErrorKind::ConnectionNotFound])?;
    ensure!(
        error.context().is_some_and(|context| context.contains("disconnected")),
        "the error does not say that the client disconnected: {error}"
    );
    Ok(())
}
