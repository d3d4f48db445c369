//! What a link does when the database or its keeper do what they should not.

use std::time::Duration;

use backplane_core::{ErrorKind, LossReason, Topic};
use tokio::time::{sleep, timeout};

use super::super::fake::{Bell, Commit, Fake};
use super::{Node, WAIT, frame, frames, link, loss, next, outgoing, publish};

#[tokio::test(start_paused = true)]
async fn a_rolled_back_insert_costs_nobody_anything() {
    let fake = Fake::new(Bell::Works);
    let mut one = link(&fake, &["a"]).await;
    publish(&one, "a", &["1"]).await;
    fake.with(|log| log.next_id += 3);
    publish(&one, "a", &["2"]).await;
    assert_eq!(frames(&mut one, 2).await, ["1", "2"]);
    // Its gap is looked for only so long.
    sleep(Duration::from_secs(15)).await;
    let before = fake.statements();
    sleep(Duration::from_secs(10)).await;
    assert!(fake.statements() - before < 30);
    publish(&one, "a", &["3"]).await;
    assert_eq!(frame(&mut one).await.0, "3");
}

#[tokio::test(start_paused = true)]
async fn rows_that_were_committed_and_are_gone_are_a_loss() {
    let fake = Fake::new(Bell::None);
    let (mut reader, writer) = (link(&fake, &["a", "b"]).await, link(&fake, &[]).await);
    publish(&writer, "a", &["1"]).await;
    assert_eq!(frame(&mut reader).await.0, "1");
    fake.freeze(true);
    let gone = writer.sender.publish(vec![outgoing("a", "2")]);
    let kept = writer.sender.publish(vec![outgoing("b", "3")]);
    fake.freeze(false);
    // Both are committed before the reader looks again; somebody deletes the first.
    gone.await;
    fake.with(|log| log.rows.retain(|id, _| *id != 2));
    kept.await;
    publish(&writer, "a", &["4"]).await;
    assert_eq!(loss(&mut reader).await, LossReason::Hole);
    assert_eq!(frames(&mut reader, 2).await, ["3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_emptied_is_read_from_its_new_beginning() {
    for ids_go_on in [true, false] {
        let fake = Fake::new(Bell::Works);
        let mut one = link(&fake, &["a"]).await;
        publish(&one, "a", &["1", "2", "3"]).await;
        frames(&mut one, 3).await;
        fake.with(|log| {
            log.rows.clear();
            if !ids_go_on {
                log.next_id = 1;
            }
        });
        assert_eq!(loss(&mut one).await, LossReason::Reset);
        publish(&one, "a", &["4", "5"]).await;
        assert_eq!(frames(&mut one, 2).await, ["4", "5"], "ids go on: {ids_go_on}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_state_is_a_loss_and_never_deafness() {
    for overtaken in [false, true] {
        let fake = Fake::new(Bell::Works);
        let (mut reader, writer) = (link(&fake, &["a"]).await, link(&fake, &[]).await);
        publish(&writer, "a", &["1"]).await;
        let backup = fake.with(|log| (log.rows.clone(), log.next_id));
        publish(&writer, "a", &["2", "3"]).await;
        let (_, position) = {
            frames(&mut reader, 2).await;
            frame(&mut reader).await
        };
        // A restore ends every connection but the reader's, let us say.
        let other = link(&fake, &[]).await;
        fake.with(|log| (log.rows, log.next_id) = backup);
        if overtaken {
            publish(&other, "a", &["x", "y", "z"]).await;
        }
        assert_eq!(loss(&mut reader).await, LossReason::Reset);
        publish(&other, "a", &["after"]).await;
        assert_eq!(frame(&mut reader).await.0, "after");
        drop(reader);
        let resumed = Node::new(&fake).link(&["a"], Some(&position)).await.resumed;
        assert!(!resumed, "the position stands on a row that is no longer there");
    }
}

#[tokio::test(start_paused = true)]
async fn another_epoch_is_a_loss_and_positions_of_the_old_one_are_refused() {
    let fake = Fake::new(Bell::None);
    let mut node = Node::new(&fake);
    let mut reader = node.link(&["a"], None).await;
    let writer = link(&fake, &[]).await;
    publish(&writer, "a", &["1", "2"]).await;
    frame(&mut reader).await;
    let (_, position) = frame(&mut reader).await;
    fake.with(|log| {
        log.rows.clear();
        log.next_id = 1;
        log.epoch = [2; 16];
    });
    let other = link(&fake, &[]).await;
    publish(&other, "a", &["x", "y", "z"]).await;
    assert_eq!(loss(&mut reader).await, LossReason::Reset);
    publish(&other, "a", &["after"]).await;
    let (after, new) = frame(&mut reader).await;
    assert_eq!(after, "after");
    drop(reader);
    assert!(!node.link(&["a"], Some(&position)).await.resumed);
    assert!(node.link(&["a"], Some(&new)).await.resumed);
}

#[tokio::test(start_paused = true)]
async fn a_reader_behind_retention_is_told_and_goes_on_at_the_oldest() {
    let fake = Fake::new(Bell::Works);
    let (mut reader, writer) = (link(&fake, &["a", "b"]).await, link(&fake, &[]).await);
    publish(&writer, "a", &["1"]).await;
    frame(&mut reader).await;
    // By turns, so that each has a row of its own.
    let topic = |number| if number % 2 == 0 { "a" } else { "b" };
    let batch = (2..=10).map(|number: u32| outgoing(topic(number), &number.to_string())).collect();
    let accepted = writer.sender.publish(batch);
    // In the moment in which they are committed the older ones are deleted.
    fake.with(|log| log.commit = Commit::Late);
    while fake.with(|log| log.next_id) < 11 {
        sleep(Duration::from_millis(1)).await;
    }
    fake.commit();
    let deleted = async {
        while fake.with(|log| log.rows.len()) < 10 {
            tokio::task::yield_now().await;
        }
        fake.with(|log| log.rows.retain(|id, _| *id > 5));
    };
    tokio::join!(accepted, deleted);
    assert_eq!(loss(&mut reader).await, LossReason::Retention);
    assert_eq!(frames(&mut reader, 5).await, ["6", "7", "8", "9", "10"]);
}

#[tokio::test(start_paused = true)]
async fn an_old_log_is_trimmed_by_one_node_and_an_idle_reader_is_told_of_no_loss() {
    let fake = Fake::new(Bell::Works);
    let (mut one, mut two) = (link(&fake, &["a"]).await, link(&fake, &["a"]).await);
    for round in 0..3 {
        let frames_out: Vec<String> = (0..2_000).map(|number| format!("{round} {number}")).collect();
        let frames_out: Vec<&str> = frames_out.iter().map(String::as_str).collect();
        publish(&one, "a", &frames_out).await;
        assert_eq!(frames(&mut one, 2_000).await, frames_out);
        assert_eq!(frames(&mut two, 2_000).await, frames_out);
        sleep(Duration::from_secs(80)).await;
        assert_eq!(fake.with(|log| log.rows.len()), 1, "the newest row is spared");
    }
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_fails_does_not_end_the_link() {
    let fake = Fake::new(Bell::None);
    fake.with(|log| log.keeper_fails = true);
    let mut one = link(&fake, &["a"]).await;
    publish(&one, "a", &["1", "2"]).await;
    frames(&mut one, 2).await;
    sleep(Duration::from_secs(200)).await;
    assert_eq!(fake.with(|log| log.rows.len()), 2);
    fake.with(|log| log.keeper_fails = false);
    sleep(Duration::from_secs(200)).await;
    assert_eq!(fake.with(|log| log.rows.len()), 1, "it tried again");
    publish(&one, "a", &["3"]).await;
    assert_eq!(frame(&mut one).await.0, "3");
}

#[tokio::test(start_paused = true)]
async fn a_statement_that_hangs_ends_the_link_within_the_heartbeat_bound() {
    let fake = Fake::new(Bell::Works);
    let mut one = link(&fake, &["a"]).await;
    fake.freeze(true);
    let accepted = one.sender.publish(vec![outgoing("a", "x")]);
    let start = tokio::time::Instant::now();
    let ended = next(&mut one).await.expect("an error first").expect_err("ended");
    assert_eq!(ended.kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(next(&mut one).await.is_none());
    let outcome = accepted.await.remove(0).unwrap_err();
    assert!(outcome.kind() == ErrorKind::Unavailable && outcome.outcome_unknown(), "{outcome}");
    fake.until_connections(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_append_ends_the_link_with_what_the_database_said() {
    let fake = Fake::new(Bell::None);
    let mut one = link(&fake, &["a"]).await;
    publish(&one, "a", &["1"]).await;
    frame(&mut one).await;
    fake.with(|log| log.commit = Commit::Denied);
    let first = one.sender.publish(vec![outgoing("a", "2")]);
    assert!(first.await[0].is_err());
    assert_eq!(next(&mut one).await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
    let later = one.sender.publish(vec![outgoing("a", "3")]).await.remove(0).unwrap_err();
    assert!(later.kind() == ErrorKind::Closed && !later.outcome_unknown());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_panics_ends_the_link_and_hangs_nobody() {
    let fake = Fake::new(Bell::None);
    let mut one = link(&fake, &["a"]).await;
    fake.with(|log| log.commit = Commit::Panic);
    let outcome = one.sender.publish(vec![outgoing("a", "2")]).await.remove(0).unwrap_err();
    assert!(outcome.outcome_unknown());
    assert_eq!(next(&mut one).await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    one.sender.close().await.unwrap();
    fake.until_connections(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_subscription_waits_for_no_oldest_row_behind_millions_of_deleted_ones() {
    let fake = Fake::new(Bell::Works);
    let (mut reader, writer) = (link(&fake, &["a"]).await, link(&fake, &[]).await);
    publish(&writer, "a", &["1"]).await;
    assert_eq!(frame(&mut reader).await.0, "1");
    // Longer than a statement may take: a link that asked for it would end.
    fake.with(|log| log.oldest_takes = Duration::from_secs(6));
    let start = tokio::time::Instant::now();
    publish(&writer, "b", &["from before"]).await;
    reader.sender.subscribe(&[Topic::from("b")]).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    publish(&writer, "b", &["2"]).await;
    assert_eq!(frame(&mut reader).await.0, "2");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_amid_a_backlog_begins_behind_all_of_it() {
    let fake = Fake::new(Bell::Works);
    let (mut reader, writer) = (link(&fake, &["a"]).await, link(&fake, &[]).await);
    // More than wait for whoever does not poll, and more rows behind that than one look at them takes.
    let large = outgoing("a", &"x".repeat(1 << 20));
    for _ in 0..40 {
        assert!(writer.sender.publish(vec![large.clone()]).await[0].is_ok());
    }
    let earlier: Vec<&str> = vec!["from before"; 3_000];
    publish(&writer, "b", &earlier).await;
    reader.sender.subscribe(&[Topic::from("b")]).await.unwrap();
    publish(&writer, "b", &["after"]).await;
    frames(&mut reader, 40).await;
    assert_eq!(frame(&mut reader).await.0, "after");
}

/// A runtime may end between the last poll of whoever connected and the first of the link's tasks.
#[test]
fn a_link_whose_tasks_never_ran_leaves_nobody_waiting() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let (ending, other) = (runtime().unwrap(), runtime().unwrap());
    let fake = Fake::new(Bell::None);
    let mut one = ending.block_on(link(&fake, &["a"]));
    let early = one.sender.publish(vec![outgoing("a", "1")]);
    drop(ending);
    other.block_on(async {
        for publish in [early, one.sender.publish(vec![outgoing("a", "2")])] {
            let error = timeout(WAIT, publish).await.expect("an answer").remove(0).unwrap_err();
            assert!(!error.outcome_unknown(), "nothing was sent: {error}");
        }
        assert_eq!(next(&mut one).await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
        let changed = timeout(WAIT, one.sender.subscribe(&[Topic::from("b")])).await.expect("an answer");
        assert!(changed.is_err());
        timeout(WAIT, one.sender.close()).await.expect("an answer").unwrap();
        fake.until_connections(0).await;
    });
}

/// Whoever waits when a link is lost is told that, and not that it was closed.
#[tokio::test(start_paused = true)]
async fn who_waits_while_reading_fails_hears_of_an_outage() {
    let fake = Fake::new(Bell::None);
    let one = link(&fake, &["a"]).await;
    fake.freeze(true);
    let published = one.sender.publish(vec![outgoing("a", "1")]);
    let topics = [Topic::from("b")];
    let (published, subscribed) = tokio::join!(published, one.sender.subscribe(&topics));
    let published = published.into_iter().next().unwrap().unwrap_err();
    assert_eq!((published.kind(), published.outcome_unknown()), (ErrorKind::Unavailable, true));
    assert_eq!(subscribed.unwrap_err().kind(), ErrorKind::Unavailable);
    fake.freeze(false);
}
