//! Does a question to a client end with that client's answer? The named behaviours of client results.

use std::time::Duration;

use backplane_core::{Backplane as _, ClientResult, ConnectionId, ErrorKind};

use super::fleet::{Fleet, Stage, value};
use super::messages::question;
use super::wait::failed;
use crate::{Broken, Outcome, ensure};

const ERROR: &str = "Error from client";

/// One server: the caller gets the client's value.
pub(super) async fn can_process_client_return_result(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    answers(&fleet, 0, value("10")).await?;
    fleet.end().await
}

/// One server: the caller gets exactly the text of the client's error.
pub(super) async fn can_process_client_return_error_result(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    answers(&fleet, 0, ClientResult::error(ERROR)).await?;
    fleet.end().await
}

/// Two servers: the caller gets the value of a client of the other one.
pub(super) async fn can_process_client_return_result_across_servers(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    answers(&fleet, 1, value("10")).await?;
    fleet.end().await
}

/// Two servers: the caller gets exactly the text of the error of a client of the other one.
pub(super) async fn can_process_client_return_error_result_across_servers(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    answers(&fleet, 1, ClientResult::error(ERROR)).await?;
    fleet.end().await
}

/// A client of the first node is asked by node `asker` and answers `result`.
async fn answers(fleet: &Fleet, asker: usize, result: ClientResult) -> Result<(), Broken> {
    let mut client = fleet.nodes[0].client().await?;
    let asking = fleet.nodes[asker].ask(client.id(), "test");
    let id = client.asked("test").await?;
    ensure!(!id.as_str().is_empty(), "a question without an id");
    ensure!(client.expects(&id), "a client that was asked is not expected to answer");
    client.complete(&id, result.clone())?;
    ensure!(!client.expects(&id), "a client that answered is expected to answer again");
    let answer = asking.outcome("an answer").await??;
    ensure!(answer == result, "the client answered {result:?}, the caller got {answer:?}");
    Ok(())
}

/// The answer of a client that was not asked is refused, and the question stays open for the one that was.
pub(super) async fn exception_when_incorrect_client_completes_client_result(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let [mut asked, other] = fleet.nodes[0].clients().await?;
    let asking = fleet.nodes[0].ask(asked.id(), "test");
    let id = asked.asked("test").await?;
    failed("an answer of the wrong client", other.complete(&id, value("11")), &[ErrorKind::Denied])?;
    ensure!(asking.is_open() && asked.expects(&id), "the wrong client's answer ended the question");
    asked.complete(&id, value("10"))?;
    ensure!(asking.outcome("an answer").await?? == value("10"), "the caller got another value");
    fleet.end().await
}

/// One server: to ask a connection that does not exist fails with `ConnectionNotFound`.
pub(super) async fn connection_id_not_present_when_invoking_client_result(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    asking_nobody_fails(&fleet, &"none".into()).await?;
    fleet.end().await
}

/// Two servers: the same.
pub(super) async fn connection_id_not_present_multi_server_when_invoking_client_result(
    stage: Stage,
) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    asking_nobody_fails(&fleet, &"none".into()).await?;
    fleet.end().await
}

/// Two servers: the same for another id, and for one of this fleet whose connection never came.
pub(super) async fn connection_does_not_exist_fails_invoke_connection_async(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    asking_nobody_fails(&fleet, &"1234".into()).await?;
    asking_nobody_fails(&fleet, &fleet.nodes[0].router.new_connection_id()).await?;
    asking_nobody_fails(&fleet, &fleet.nodes[1].router.new_connection_id()).await?;
    fleet.end().await
}

/// The error comes at once where the owner answers, where no node can have such an id, or where the bus proves that
/// nobody listens; otherwise the deadline ends the wait.
async fn asking_nobody_fails(fleet: &Fleet, id: &ConnectionId) -> Result<(), Broken> {
    let node = &fleet.nodes[0];
    let timeout = Duration::from_secs(if node.reports_reach() { 20 } else { 1 });
    let outcome = node.router.invoke(id, question("test").with_timeout(timeout)).await;
    let kinds = [ErrorKind::ConnectionNotFound, ErrorKind::Timeout];
    let allowed = if node.reports_reach() { &kinds[..1] } else { &kinds[..] };
    failed("a question to nobody", outcome, allowed)?;
    Ok(())
}

/// Two questions at once to two clients: the error of one does not end the other.
pub(super) async fn invokes_for_multiple_clients_do_not_collide(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 1).await?;
    let node = &fleet.nodes[0];
    let [mut one, mut two] = node.clients().await?;
    let (asking_one, asking_two) = (node.ask(one.id(), "first"), node.ask(two.id(), "second"));
    let (id_one, id_two) = (one.asked("first").await?, two.asked("second").await?);
    ensure!(id_one != id_two, "two questions of one id");
    two.complete(&id_two, ClientResult::error(ERROR))?;
    ensure!(
        asking_two.outcome("an error").await?? == ClientResult::error(ERROR),
        "another error than was given"
    );
    ensure!(
        asking_one.is_open() && one.expects(&id_one),
        "the answer of one client ended the question to another"
    );
    one.complete(&id_one, value("3"))?;
    ensure!(asking_one.outcome("an answer").await?? == value("3"), "another value than was given");
    fleet.end().await
}

/// Questions of two servers to one client have different ids, and each gets its own answer. Both answers are given
/// at the owner of the connection, which alone knows the client (in the original each goes to its asker).
pub(super) async fn invocations_from_different_servers_use_unique_ids(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[0].client().await?;
    let local = fleet.nodes[0].ask(client.id(), "local");
    let local_id = client.asked("local").await?;
    let remote = fleet.nodes[1].ask(client.id(), "remote");
    let remote_id = client.asked("remote").await?;
    ensure!(local_id != remote_id, "two servers gave their questions the same id");
    client.complete(&remote_id, value("5"))?;
    ensure!(remote.outcome("the remote answer").await?? == value("5"), "the remote caller got another value");
    ensure!(local.is_open(), "the answer to one server ended the question of another");
    client.complete(&local_id, value("2"))?;
    ensure!(local.outcome("the local answer").await?? == value("2"), "the local caller got another value");
    fleet.end().await
}
