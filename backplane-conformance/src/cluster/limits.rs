//! What happens at the bounds: of a frame, of the node's queue, of a client's queue?

use std::time::Duration;

use backplane_core::{
    Backplane as _, CloseReason, EncodedMessage, ErrorKind, Event, OutboundLimits, OverflowPolicy, Partial,
    Target,
};
use futures::future::try_join_all;

use super::client::Manner;
use super::fleet::{Fleet, Node, Stage};
use super::messages::{message, question};
use super::wait::{Events, failed, poll_then_drop, until_stats, within};
use crate::{Broken, Outcome, ensure};

/// The largest frame in these contracts: far from the sizes at which encodings of lengths grow by a byte.
const MAX_FRAME: usize = 8_000;

/// A message of `length` bytes for `json` clients, and its text.
fn json_message(length: usize) -> (EncodedMessage, String) {
    let around = message("").get(&backplane_core::Protocol::JSON).map_or(0, bytes::Bytes::len);
    let text = "x".repeat(length.saturating_sub(around));
    let encoded = message(&text).get(&backplane_core::Protocol::JSON).cloned().unwrap_or_default();
    (EncodedMessage::json(encoded), text)
}

/// Whether a message of `length` bytes can be sent.
async fn fits(node: &Node, target: &Target, length: usize) -> Result<bool, Broken> {
    match node.router.send(target, &[], json_message(length).0).await {
        Ok(()) => Ok(true),
        Err(error) => {
            failed("a message that is too large", Err::<(), _>(error), &[ErrorKind::TooLarge]).map(|_| false)
        }
    }
}

/// The largest message passes whose frame has exactly as many bytes as the link can carry; with one byte more it is
/// `TooLarge` and nothing is sent, for every kind of target.
pub(super) async fn a_frame_of_exactly_the_limit_passes_and_one_byte_more_does_not(stage: Stage) -> Outcome {
    let fleet = Fleet::open_with(&stage, 2, |_, tap| tap.limit_frames(MAX_FRAME)).await?;
    let sender = &fleet.nodes[0];
    let mut client = fleet.nodes[1].client_of("u").await?;
    sender.join(&client, "g").await?;
    for target in [Target::all(), Target::group("g"), Target::user("u"), Target::connection(client.id())] {
        let (mut fitting, mut too_large) = (MAX_FRAME / 2, MAX_FRAME);
        ensure!(fits(sender, &target, fitting).await?, "{fitting} of {MAX_FRAME} bytes are too large");
        ensure!(
            !fits(sender, &target, too_large).await?,
            "a frame of {MAX_FRAME} bytes and what is around it passed"
        );
        while too_large - fitting > 1 {
            let middle = usize::midpoint(fitting, too_large);
            if fits(sender, &target, middle).await? { fitting = middle } else { too_large = middle }
        }
        let largest = sender.tap.seen().largest;
        ensure!(largest == MAX_FRAME, "the largest frame that passed has {largest} of {MAX_FRAME} bytes");

        let before = sender.published();
        let refused = sender.router.send(&target, &[], json_message(too_large).0).await;
        let error = failed("a message of one byte too many", refused, &[ErrorKind::TooLarge])?;
        ensure!(!error.outcome_unknown(), "a message that was not sent has no unknown outcome: {error}");
        ensure!(sender.published() == before, "a message that is too large was published");
        sender.send(&target, "fence").await?;
        let arrived = client.take_until("fence").await?;
        ensure!(
            arrived.iter().any(|text| *text == json_message(fitting).1),
            "the largest message of {fitting} bytes did not arrive as it was"
        );
    }
    fleet.end().await
}

/// Between small ones: they pass, in their order. A question that is too large ends at once.
pub(super) async fn a_message_that_is_too_large_fails_alone(stage: Stage) -> Outcome {
    let fleet = Fleet::open_with(&stage, 2, |_, tap| tap.limit_frames(MAX_FRAME)).await?;
    let sender = &fleet.nodes[0];
    let mut client = fleet.nodes[1].client().await?;
    let large = "x".repeat(MAX_FRAME);
    let mut outcomes = Vec::new();
    for text in ["before", &large, "after"] {
        outcomes.push(match sender.router.post(&Target::all(), &[], message(text)) {
            Ok(acceptance) => within("a post to be accepted", acceptance).await?,
            Err(error) => Err(error),
        });
    }
    let [before, refused, after] = outcomes.try_into().expect("three were posted");
    before?;
    after?;
    failed("a post that is too large", refused, &[ErrorKind::TooLarge])?;
    client.expect("before").await?;
    client.expect("after").await?;
    let asked =
        within("a question that is too large", sender.router.invoke(client.id(), question(&large))).await?;
    failed("a question that is too large", asked, &[ErrorKind::TooLarge])?;
    fleet.end().await
}

/// Of a send of several frames the broker accepts some and refuses one: the error says how many, those arrive, and
/// whoever sends next is not concerned.
pub(super) async fn a_send_that_failed_in_part_says_how_far_it_came(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let sender = &fleet.nodes[0];
    let mut client = fleet.nodes[1].client().await?;
    for group in ["a", "b", "c"] {
        sender.join(&client, group).await?;
    }
    sender.tap.refuse_publish(Some(fleet.group_topic("b")));
    let sent =
        within("a send that is refused in part", sender.send(&Target::groups(["a", "b", "c"]), "part"))
            .await?;
    let error = failed("a send that is refused in part", sent, &[ErrorKind::Denied])?;
    let partial = Partial { accepted: 2, frames: 3 };
    ensure!(error.partial() == Some(partial), "two of three frames were accepted: {error}");
    sender.tap.refuse_publish(None);
    client.expect("part").await?;
    client.expect("part").await?;
    sender.send(&Target::group("b"), "whole").await?;
    client.expect("whole").await?;
    fleet.end().await
}

/// With the queue full `post` is refused and `send` waits, until there is room or its deadline passes. What was
/// accepted arrives in order; what was refused never does.
pub(super) async fn a_full_queue_refuses_posts_and_delays_sends(stage: Stage) -> Outcome {
    const ROOM: usize = 8;
    const DEADLINE: Duration = Duration::from_millis(300);
    // A beat needs room too; none is due before the first one of the new link has long been accepted.
    let fleet = Fleet::open_with(&stage, 2, |config, _| {
        config.queue_frames = ROOM;
        config.send_timeout = DEADLINE;
        config.heartbeat = Duration::from_secs(60);
    })
    .await?;
    let sender = &fleet.nodes[0];
    let mut client = fleet.nodes[1].client().await?;
    until_stats(&sender.router, "an empty queue", |stats| stats.queued_frames == 0).await?;
    sender.tap.hold_acceptance(true);
    let mut accepted = Vec::new();
    let refused = loop {
        match sender.router.post(&Target::all(), &[], message(&accepted.len().to_string())) {
            Ok(acceptance) => accepted.push(acceptance),
            Err(error) => break error,
        }
        ensure!(accepted.len() <= ROOM, "a queue of {ROOM} frames took {} of them", accepted.len());
    };
    failed("a post into a full queue", Err::<(), _>(refused), &[ErrorKind::Overloaded])?;
    ensure!(accepted.len() == ROOM, "a queue of {ROOM} frames was full with {}", accepted.len());
    let late = within("a send into a full queue", sender.send(&Target::all(), "too late")).await?;
    failed("a send into a full queue", late, &[ErrorKind::Timeout])?;

    let waiting =
        async { within("a send that waits for room", sender.send(&Target::all(), "in time")).await };
    let release = async { sender.tap.hold_acceptance(false) };
    let (in_time, ()) = tokio::join!(waiting, release);
    in_time??;
    within("what was queued to be accepted", try_join_all(accepted)).await??;
    for number in 0..ROOM {
        client.expect(&number.to_string()).await?;
    }
    client.expect("in time").await?;
    fleet.end().await
}

/// A client that never reads is disconnected when its bounded queue is full, and nobody else waits for it.
pub(super) async fn a_slow_client_is_its_own_problem(stage: Stage) -> Outcome {
    const ROOM: usize = 50;
    const MESSAGES: usize = 500;
    let fleet = Fleet::open(&stage, 2).await?;
    let node = &fleet.nodes[1];
    let mut events = Events::of(&node.router);
    let limits = OutboundLimits { messages: ROOM, bytes: 1 << 20, overflow: OverflowPolicy::Disconnect };
    let mut slow = node.client_like(Manner { limits, ..Manner::default() }).await?;
    let [mut beside, mut here] = [node.client().await?, fleet.nodes[0].client().await?];
    for number in 0..MESSAGES {
        fleet.nodes[0].send(&Target::all(), &number.to_string()).await?;
    }
    for client in [&mut beside, &mut here] {
        for number in 0..MESSAGES {
            client.expect(&number.to_string()).await?;
        }
    }
    let overflowed = events.until("an overflow", |event| match event {
        Event::Overflow(id) => Some(id),
        _ => None,
    });
    let overflowed = overflowed.await?;
    ensure!(overflowed == *slow.id(), "another client overflowed than the slow one");
    let reason = slow.end().await?;
    ensure!(reason == CloseReason::Overflow, "a slow client was ended by {reason:?}");
    let overflows = node.router.stats().overflows;
    ensure!(overflows == 1, "one overflow was counted as {overflows}");
    fleet.end().await
}

/// Ten thousand messages of two nodes at once, without a fault: no gap, no repeat, nothing missing.
pub(super) async fn ten_thousand_clean_messages_raise_no_gap(stage: Stage) -> Outcome {
    const MESSAGES: usize = 5_000;
    /// At once, in this order: one at a time would measure round trips.
    const WINDOW: usize = 20;
    let fleet = Fleet::open(&stage, 2).await?;
    let mut clients = [fleet.nodes[0].client().await?, fleet.nodes[1].client().await?];
    let post_all = fleet.nodes.iter().enumerate().map(|(number, node)| async move {
        let all = Target::all();
        for start in (0..MESSAGES).step_by(WINDOW) {
            let texts: Vec<_> = (start..start + WINDOW).map(|count| format!("{number}:{count}")).collect();
            let send_all = texts.iter().map(|text| node.send(&all, text));
            within("messages to be accepted", try_join_all(send_all)).await??;
        }
        Ok::<_, Broken>(())
    });
    let posting = try_join_all(post_all);
    let [one, two] = &mut clients;
    let (sent, one, two) = tokio::join!(posting, one.take(2 * MESSAGES), two.take(2 * MESSAGES));
    sent?;
    for texts in [one?, two?] {
        for number in 0..2 {
            let own = format!("{number}:");
            let of_one = texts.iter().filter(|text| text.starts_with(&own)).enumerate();
            let mut out_of_place = of_one.filter(|(count, text)| **text != format!("{own}{count}"));
            ensure!(out_of_place.next().is_none(), "messages of node {number} arrived out of place");
        }
    }
    // Dropped before it is polled, a future says nothing; one more message shows that the nodes still work.
    let _ = poll_then_drop(0, fleet.nodes[0].send(&Target::all(), "never sent")).await?;
    fleet.nodes[0].send(&Target::all(), "fence").await?;
    for client in &mut clients {
        client.expect("fence").await?;
    }
    fleet.end().await
}
