//! Do waits for a client's answer end, each with its own outcome?

use std::time::{Duration, Instant};

use backplane_core::{Backplane as _, ClientResult, ErrorKind, MembershipChange, Protocol};
use futures::future::try_join_all;

use super::client::{Client, Manner};
use super::fleet::{Fleet, Stage, value};
use super::messages::question;
use super::wait::{Task, failed, until, until_stats, within};
use crate::{Broken, Outcome, bound, ensure};

/// A caller that no longer wants the answer drops its future (the original cancels a token and gets an exception);
/// the client's answer, late, is no error.
pub(super) async fn can_cancel_client_result(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[0].client().await?;
    for asker in &fleet.nodes {
        let asking = asker.ask(client.id(), "test");
        let id = client.asked("test").await?;
        drop(asking);
        until_stats(&asker.router, "a dropped question to be forgotten", |stats| stats.pending == 0).await?;
        client.complete(&id, value("10"))?;
        let again = asker.ask(client.id(), "again");
        let id = client.asked("again").await?;
        client.complete(&id, value("11"))?;
        ensure!(
            again.outcome("an answer").await?? == value("11"),
            "a late answer was given to the next question"
        );
    }
    fleet.end().await
}

/// Dropped at the asker, forgotten at the owner, without waiting for a deadline.
pub(super) async fn the_owner_forgets_a_question_that_was_dropped(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[1].client().await?;
    let asking = fleet.nodes[0].ask(client.id(), "test");
    let id = client.asked("test").await?;
    ensure!(client.expects(&id), "the owner does not know the question");
    drop(asking);
    until("the owner to forget a dropped question", || !client.expects(&id)).await?;
    client.complete(&id, value("10"))?;
    fleet.end().await
}

/// The wait of a question ends at the deadline given with it, here and across nodes; what comes later is dropped.
pub(super) async fn a_question_times_out_at_its_own_deadline(stage: Stage) -> Outcome {
    const DEADLINE: Duration = Duration::from_millis(300);
    const LATE: Duration = Duration::from_secs(2);
    let fleet = Fleet::open(&stage, 2).await?;
    let mut client = fleet.nodes[0].client().await?;
    for asker in &fleet.nodes {
        let start = Instant::now();
        let outcome = asker.router.invoke(client.id(), question("test").with_timeout(DEADLINE)).await;
        let waited = start.elapsed();
        failed("a question without an answer", outcome, &[ErrorKind::Timeout])?;
        ensure!(
            waited >= DEADLINE && waited < DEADLINE + bound(LATE),
            "a wait of {DEADLINE:?} took {waited:?}"
        );
        let id = client.asked("test").await?;
        if stage.is_native() {
            until("the owner to forget a question whose time is over", || !client.expects(&id)).await?;
        }
        client.complete(&id, value("10"))?;
        ensure!(asker.router.stats().pending == 0, "a question whose time is over still waits");
    }
    fleet.end().await
}

/// Many questions at once, to clients here and elsewhere, answered in the reverse order: each gets its own answer.
pub(super) async fn many_questions_at_once_get_their_own_answers(stage: Stage) -> Outcome {
    const QUESTIONS: usize = 200;
    let fleet = Fleet::open(&stage, 2).await?;
    let mut clients = [fleet.nodes[0].client().await?, fleet.nodes[1].client().await?];
    let asked: Vec<_> = (0..QUESTIONS)
        .map(|number| (number, fleet.nodes[0].ask(clients[number % 2].id(), &number.to_string())))
        .collect();
    let mut questions = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        for _ in 0..QUESTIONS / 2 {
            let arrived = client.next().await?;
            let id = arrived.asked.ok_or_else(|| Broken("a question without an id".into()))?;
            questions.push((index, id, arrived.text));
        }
    }
    for (index, id, text) in questions.into_iter().rev() {
        clients[index].complete(&id, ClientResult::value(Protocol::JSON, text))?;
    }
    let check = |(number, asking): (usize, Task<backplane_core::Result<ClientResult>>)| async move {
        let answer = asking.outcome("an answer").await??;
        let own = ClientResult::value(Protocol::JSON, number.to_string());
        ensure!(answer == own, "question {number} got another one's answer");
        Ok(())
    };
    try_join_all(asked.into_iter().map(check)).await?;
    fleet.end().await
}

/// Values of both protocols, byte by byte, no value, and error texts: what the client gave is what the caller gets.
pub(super) async fn every_kind_of_answer_arrives_as_it_was_given(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let text = "Error: \u{1f980} \"quoted\" \\ \n \u{1} \u{e9}";
    let json =
        ["10", "null", "-0.5e3", "{ \"a\" : [1, \"\\u00e9 \u{e9}\", {}], \"invocationId\":\"x\" }", "\"\""];
    let packed: [&[u8]; 5] =
        [b"\x0a", b"\xc0", b"\xd2\x00\x00\x00\x01", b"\x81\xa1a\x92\x01\xc4\x01\x00", b"\xa0"];
    let json = json.map(|value| ClientResult::value(Protocol::JSON, value)).into_iter();
    let packed = packed.map(|value| ClientResult::value(Protocol::MESSAGEPACK, value)).into_iter();
    let long = ClientResult::error("x".repeat(70_000));
    let both = [ClientResult::Void, ClientResult::error(text), long];
    let answers = [
        (Protocol::JSON, json.chain(both.clone()).collect::<Vec<_>>()),
        (Protocol::MESSAGEPACK, packed.chain(both).collect()),
    ];
    for (protocol, answers) in answers {
        let mut client = fleet.nodes[0].client_like(Manner { protocol, ..Manner::default() }).await?;
        for answer in answers {
            for asker in &fleet.nodes {
                let asking = asker.ask(client.id(), "test");
                let id = client.asked("test").await?;
                client.complete(&id, answer.clone())?;
                let got = asking.outcome("an answer").await??;
                ensure!(got == answer, "the client answered {answer:?}, the caller got {got:?}");
            }
        }
    }
    fleet.end().await
}

/// A question across nodes can be answered by nobody but the client that was asked, neither at its node nor at the
/// asker's; the attempt leaves it open.
pub(super) async fn only_the_client_that_was_asked_can_answer(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let [mut asked, beside] = fleet.nodes[1].clients().await?;
    let at_the_asker = fleet.nodes[0].client().await?;
    let asking = fleet.nodes[0].ask(asked.id(), "test");
    let id = asked.asked("test").await?;
    failed("an answer of a client beside", beside.complete(&id, value("11")), &[ErrorKind::Denied])?;
    // The asker's node may know that the question is for another client, or not know it among its own clients'.
    if let Err(error) = at_the_asker.complete(&id, value("12")) {
        failed("an answer at the asker", Err::<(), _>(error), &[ErrorKind::Denied])?;
    }
    ensure!(asking.is_open() && asked.expects(&id), "an answer of the wrong client ended the question");
    asked.complete(&id, value("10"))?;
    ensure!(asking.outcome("an answer").await?? == value("10"), "the answer of the wrong client was taken");
    fleet.end().await
}

/// A node dies while others wait for its acknowledgement and its client's answer, and while it waits itself: every
/// wait ends typed, at its deadline at the latest.
pub(super) async fn a_node_that_dies_leaves_no_wait_beyond_its_deadline(stage: Stage) -> Outcome {
    const DEADLINE: Duration = Duration::from_secs(3);
    const LATE: Duration = Duration::from_secs(1);
    let fleet = Fleet::open(&stage, 2).await?;
    let (lives, dies) = (&fleet.nodes[0], &fleet.nodes[1]);
    let mut here = lives.client().await?;
    let mut there = dies.client().await?;
    dies.tap.hold_subscribe(true);
    let start = Instant::now();
    let change = MembershipChange::join(there.id(), "g").with_timeout(DEADLINE);
    let router = lives.router.clone();
    let joining = Task::spawn(async move { router.update_group(change).await.map(|()| ClientResult::Void) });
    let ask = |asker: &super::Node, client: &Client| {
        let (router, id) = (asker.router.clone(), client.id().clone());
        Task::spawn(async move { router.invoke(&id, question("test").with_timeout(DEADLINE)).await })
    };
    let (asking, asking_back) = (ask(lives, &there), ask(dies, &here));
    there.asked("test").await?;
    here.asked("test").await?;
    dies.tap.until("a subscription that is held", |seen| seen.subscribing > 0).await?;
    dies.kill();
    for (what, waiting) in
        [("a join", joining), ("a question", asking), ("a question of the dead", asking_back)]
    {
        let outcome = within(what, waiting.outcome(what)).await??;
        let kinds = [ErrorKind::ConnectionNotFound, ErrorKind::Timeout, ErrorKind::Unavailable];
        failed(what, outcome, &kinds)?;
    }
    let waited = start.elapsed();
    ensure!(waited < DEADLINE + bound(LATE), "waits of {DEADLINE:?} took {waited:?}");
    if !stage.is_native() {
        // The .NET layout does not tell how long an asker waits: a question stays until its client answers or goes.
        here.leave();
        there.leave();
    }
    fleet.end_disturbed().await
}
