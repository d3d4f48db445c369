//! The judge acquits what a correct backplane may do under faults, and convicts each way of being wrong.

use std::time::{Duration, Instant};

use backplane_conformance::history::{
    Audience, AudienceKind, History, NodeLog, Outcome, ReceiverLog, SenderLog, Stamp, Verdict,
};
use backplane_core::{Error, ErrorKind, Gap, LossReason, NodeId, Partial, Topic};

/// One sender on node A, one receiver on node B, one audience, and a clock of milliseconds.
struct Run {
    history: History,
    start: Instant,
    a: NodeLog,
    b: NodeLog,
    sender: SenderLog,
    receiver: ReceiverLog,
    everybody: Audience,
}

const A: NodeId = NodeId::from_bytes([1; 6]);
const B: NodeId = NodeId::from_bytes([2; 6]);

impl Run {
    fn new() -> Self {
        let history = History::new().with_grace(Duration::from_millis(100));
        let start = Instant::now();
        let (a, b) = (history.node(A), history.node(B));
        let (sender, receiver) = (a.sender(), b.receiver());
        let everybody = history.audience(AudienceKind::All, "everybody");
        everybody.joined_at(&receiver, start);
        Self { history, start, a, b, sender, receiver, everybody }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Sent at a time and accepted 1 ms later.
    fn send(&self, ms: u64) -> Stamp {
        self.send_with(ms, Outcome::Accepted)
    }

    fn send_with(&self, ms: u64, outcome: Outcome) -> Stamp {
        let stamp = self.sender.begin_at(&self.everybody, self.at(ms));
        self.sender.settle_at(stamp, outcome, self.at(ms + 1));
        stamp
    }

    fn arrives(&self, stamp: Stamp, ms: u64) {
        assert_eq!(self.receiver.delivered_at(&stamp.payload(0), self.at(ms)), 1);
    }

    fn sent_and_arrived(&self, ms: u64) -> Stamp {
        let stamp = self.send(ms);
        self.arrives(stamp, ms + 2);
        stamp
    }

    fn told(&self, origin: Option<NodeId>, ms: u64) {
        let gap = Gap { origin, ..Gap::unknown(LossReason::Reconnect) };
        self.b.gap_at(gap, self.at(ms));
    }

    /// Clean traffic each 10 ms, from one time up to another.
    fn traffic(&self, from: u64, to: u64) {
        for ms in (from..to).step_by(10) {
            self.sent_and_arrived(ms);
        }
    }

    fn judge(&self) -> Verdict {
        self.history.judge()
    }
}

/// Lost, repeated, reordered, phantom, unreadable.
fn findings(verdict: &Verdict) -> [u64; 5] {
    [
        verdict.lost.total,
        verdict.repeated.total,
        verdict.reordered.total,
        verdict.phantom.total,
        verdict.unreadable.total,
    ]
}

#[track_caller]
fn assert_lost(verdict: &Verdict, stamp: Stamp, why: &str) {
    assert_eq!(findings(verdict), [1, 0, 0, 0, 0], "{verdict}");
    assert_eq!(verdict.lost.first[0].stamp, stamp);
    assert!(verdict.to_string().contains(why), "{verdict}");
}

#[test]
fn a_clean_run_is_acquitted() {
    let run = Run::new();
    run.traffic(0, 1_000);
    let verdict = run.judge();
    verdict.assert_clean();
    assert_eq!((verdict.counts.accepted, verdict.counts.owed, verdict.counts.delivered), (100, 100, 100));
    assert!(verdict.to_string().starts_with("clean: 100 messages accepted"), "{verdict}");
}

#[test]
fn a_loss_inside_an_outage_that_ended_with_a_gap_is_acquitted() {
    for origin in [None, Some(A)] {
        let run = Run::new();
        run.traffic(0, 100);
        // Four seconds of silence.
        for ms in (100..4_100).step_by(100) {
            run.send(ms);
        }
        run.told(origin, 4_100);
        run.traffic(4_110, 5_000);
        let verdict = run.judge();
        verdict.assert_clean();
        assert_eq!(verdict.counts.excused, 40);
    }
}

#[test]
fn a_gap_told_just_behind_the_message_that_proved_it_counts() {
    let run = Run::new();
    run.send(10);
    run.sent_and_arrived(20);
    run.told(Some(A), 90);
    run.judge().assert_clean();
}

#[test]
fn a_loss_that_nothing_followed_may_be_told_by_a_beat_much_later() {
    let run = Run::new();
    run.traffic(0, 100);
    run.send(100);
    run.told(Some(A), 6_000);
    run.judge().assert_clean();
}

#[test]
fn failed_and_unknown_messages_are_not_owed() {
    let run = Run::new();
    run.send_with(10, Outcome::Failed);
    run.send_with(20, Outcome::Unknown);
    let late = run.send_with(30, Outcome::Unknown);
    run.arrives(late, 500);
    run.sender.begin_at(&run.everybody, run.at(40));
    let verdict = run.judge();
    verdict.assert_clean();
    assert_eq!((verdict.counts.owed, verdict.counts.failed, verdict.counts.unknown), (0, 1, 3));
}

#[test]
fn lost_without_a_gap_is_convicted() {
    let run = Run::new();
    run.traffic(0, 100);
    let lost = run.send(100);
    run.traffic(110, 200);
    assert_lost(&run.judge(), lost, "its node was told of no gap");
}

#[test]
fn lost_inside_a_gap_of_another_origin_is_convicted() {
    let run = Run::new();
    let lost = run.send(100);
    run.told(Some(B), 110);
    assert_lost(&run.judge(), lost, "no gap that its node was told of concerns it");
}

#[test]
fn lost_inside_a_gap_that_another_node_was_told_of_is_convicted() {
    let run = Run::new();
    let lost = run.send(100);
    run.a.gap_at(Gap::lagged(), run.at(110));
    assert_lost(&run.judge(), lost, "its node was told of no gap");
}

#[test]
fn a_gap_of_no_frames_excuses_nothing() {
    let run = Run::new();
    let lost = run.send(100);
    let empty = Gap { origin: Some(A), after: 7, through: 7, ..Gap::lagged() };
    run.b.gap_at(empty, run.at(110));
    assert_lost(&run.judge(), lost, "no gap that its node was told of concerns it");
}

#[test]
fn lost_after_the_gap_was_told_is_convicted() {
    let run = Run::new();
    run.told(None, 100);
    let lost = run.send(101);
    assert_lost(&run.judge(), lost, "it was sent after its node was told of the last gap");
}

#[test]
fn lost_long_before_the_gap_is_convicted_by_what_arrived_in_between() {
    let run = Run::new();
    run.traffic(0, 100);
    let lost = run.send(100);
    run.traffic(110, 1_000);
    for ms in (1_000..2_000).step_by(100) {
        run.send(ms);
    }
    run.told(None, 2_000);
    run.traffic(2_010, 2_100);
    let verdict = run.judge();
    assert_lost(&verdict, lost, "later messages had arrived long before");
    assert_eq!(verdict.counts.excused, 10);
}

#[test]
fn what_the_same_node_sent_to_others_proves_an_old_loss_too() {
    // Given a group in which nothing follows the lost message, and others of the receiving node that hear on.
    let run = Run::new();
    let quiet = run.history.audience(AudienceKind::Group, "quiet");
    quiet.joined_at(&run.receiver, run.start);
    let other = run.b.receiver();
    run.everybody.joined_at(&other, run.start);
    let lost = run.sender.begin_at(&quiet, run.at(100));
    run.sender.settle_at(lost, Outcome::Accepted, run.at(101));
    let send_to_both = |ms| {
        let stamp = run.send(ms);
        run.arrives(stamp, ms + 1);
        other.delivered_at(&stamp.payload(0), run.at(ms + 1));
    };
    send_to_both(200);

    // When a gap is told long afterwards, then it is about something else.
    run.told(None, 900);
    assert_lost(&run.judge(), lost, "later messages had arrived long before");
    // And when one was told at the time, then it excuses.
    run.told(None, 250);
    run.judge().assert_clean();
}

#[test]
fn what_was_posted_before_a_message_was_accepted_proves_nothing_across_audiences() {
    let run = Run::new();
    let group = run.history.audience(AudienceKind::Group, "group");
    group.joined_at(&run.receiver, run.start);
    let slow = run.sender.begin_at(&group, run.at(100));
    let quick = run.send(101);
    run.arrives(quick, 103);
    run.sender.settle_at(slow, Outcome::Accepted, run.at(1_000));
    run.told(None, 2_000);
    run.judge().assert_clean();
}

#[test]
fn a_gap_on_other_topics_excuses_nothing() {
    let run = Run::new();
    let (mine, other) = (Topic::from("mine"), Topic::from("other"));
    let group = run.history.audience_on_topics(AudienceKind::Group, "group", vec![mine.clone()]);
    group.joined_at(&run.receiver, run.start);
    let lost = run.sender.begin_at(&group, run.at(100));
    run.sender.settle_at(lost, Outcome::Accepted, run.at(101));
    let on = |topic| Gap { topics: Some(vec![topic]), ..Gap::lagged() };
    run.b.gap_at(on(other), run.at(110));
    assert_lost(&run.judge(), lost, "no gap that its node was told of concerns it");
    run.b.gap_at(on(mine), run.at(120));
    run.judge().assert_clean();
}

#[test]
fn a_message_to_a_connection_of_the_own_node_cannot_be_lost_on_the_way() {
    let run = Run::new();
    let neighbour = run.a.receiver();
    let direct = run.history.audience(AudienceKind::Connections, "neighbour");
    direct.joined_at(&neighbour, run.start);
    let lost = run.sender.begin_at(&direct, run.at(10));
    run.sender.settle_at(lost, Outcome::Accepted, run.at(10));
    run.a.gap_at(Gap::lagged(), run.at(20));
    assert_lost(&run.judge(), lost, "it did not have to travel");
}

#[test]
fn a_direct_delivery_does_not_prove_that_the_broker_delivers() {
    // Given a node that hears itself through the broker, cut off from it.
    let run = Run::new();
    let neighbour = run.a.receiver();
    let direct = run.history.audience(AudienceKind::Connections, "neighbour");
    direct.joined_at(&neighbour, run.start);
    run.everybody.joined_at(&neighbour, run.start);
    let lost = run.send(100);
    run.arrives(lost, 102);
    // When it still reaches its own connections directly, before it is told of the gap.
    let near = run.sender.begin_at(&direct, run.at(200));
    run.sender.settle_at(near, Outcome::Accepted, run.at(200));
    neighbour.delivered_at(&near.payload(0), run.at(200));
    run.a.gap_at(Gap::unknown(LossReason::Reconnect), run.at(3_000));
    // Then that is no evidence against the gap.
    let verdict = run.judge();
    verdict.assert_clean();
    assert_eq!(verdict.counts.excused, 1);
}

#[test]
fn repeats_are_convicted() {
    let run = Run::new();
    let first = run.sent_and_arrived(10);
    run.sent_and_arrived(20);
    run.arrives(first, 30);
    let verdict = run.judge();
    assert_eq!(findings(&verdict), [0, 1, 0, 0, 0], "{verdict}");
    assert!(verdict.to_string().contains("message 0 of sender 0 reached receiver 0 again"), "{verdict}");
}

#[test]
fn a_message_of_unknown_outcome_must_not_arrive_twice_either() {
    let run = Run::new();
    let stamp = run.send_with(10, Outcome::Unknown);
    run.arrives(stamp, 11);
    run.arrives(stamp, 12);
    assert_eq!(findings(&run.judge()), [0, 1, 0, 0, 0]);
}

#[test]
fn wrong_order_is_convicted_per_sender_and_audience() {
    let run = Run::new();
    let (first, second) = (run.send(10), run.send(20));
    run.arrives(second, 30);
    run.arrives(first, 31);
    let verdict = run.judge();
    assert_eq!(findings(&verdict), [0, 0, 1, 0, 0], "{verdict}");
    assert!(verdict.to_string().contains("message 0 of sender 0 reached receiver 0 behind message 1"));

    // Two audiences of one sender, or one audience of two senders, have no order between them.
    let run = Run::new();
    let group = run.history.audience(AudienceKind::Group, "group");
    group.joined_at(&run.receiver, run.start);
    let other = run.a.sender();
    let to_group = run.sender.begin_at(&group, run.at(5));
    let to_all = run.send(10);
    let of_other = other.begin_at(&run.everybody, run.at(20));
    for stamp in [of_other, to_all, to_group] {
        run.arrives(stamp, 30);
    }
    run.judge().assert_clean();
}

#[test]
fn phantoms_are_convicted() {
    let run = Run::new();
    let failed = run.send_with(10, Outcome::Failed);
    run.arrives(failed, 11);
    run.arrives(Stamp { sender: 0, number: 77 }, 12);
    run.arrives(Stamp { sender: 5, number: 0 }, 13);
    let others = run.history.audience(AudienceKind::Group, "others");
    let foreign = run.sender.begin_at(&others, run.at(20));
    run.arrives(foreign, 21);
    let verdict = run.judge();
    assert_eq!(findings(&verdict), [0, 0, 0, 4, 0], "{verdict}");
    for why in ["its sender was told that it failed", "it was never sent", "it was meant for others"] {
        assert!(verdict.to_string().contains(why), "{verdict}");
    }
}

#[test]
fn damage_is_convicted() {
    let run = Run::new();
    let stamp = run.send(10);
    let mut payload = stamp.payload(30).to_vec();
    payload[20] = b'!';
    run.receiver.delivered_at(&payload, run.at(11));
    let verdict = run.judge();
    assert_eq!(findings(&verdict), [1, 0, 0, 0, 1], "{verdict}");
    assert!(verdict.to_string().contains("unreadable: \"0:0......"), "{verdict}");
}

#[test]
fn a_member_is_owed_what_is_sent_between_its_join_and_its_leave() {
    let run = Run::new();
    let late = run.b.receiver();
    run.everybody.joined_at(&late, run.at(100));
    run.everybody.leaving_at(&late, run.at(500));
    for ms in [50, 99, 401, 450, 600] {
        run.sent_and_arrived(ms);
    }
    run.judge().assert_clean();
    let owed = run.sent_and_arrived(700);
    run.everybody.joined_at(&late, run.at(700));
    assert_lost(&run.judge(), owed, "to \"everybody\" never reached receiver 1");
}

#[test]
fn outcomes_follow_from_errors() {
    let error = || Error::new(ErrorKind::Unavailable, "send");
    let partial = |accepted| error().with_partial(Partial { accepted, frames: 3 });
    assert_eq!(Outcome::of(&Ok(())), Outcome::Accepted);
    assert_eq!(Outcome::of(&Err(error())), Outcome::Failed);
    assert_eq!(Outcome::of(&Err(error().with_outcome_unknown())), Outcome::Unknown);
    assert_eq!(Outcome::of(&Err(partial(2))), Outcome::Unknown);
    assert_eq!(Outcome::of(&Err(partial(0))), Outcome::Failed);
}

#[tokio::test]
async fn settle_waits_for_what_is_under_way() {
    let run = Run::new();
    let stamp = run.sender.begin(&run.everybody);
    run.sender.settle(stamp, Outcome::Accepted);
    let history = run.history.clone();
    let settled = tokio::spawn(async move { history.settle(Duration::from_secs(10)).await });
    tokio::task::yield_now().await;
    run.receiver.delivered(&stamp.payload(128));
    settled.await.unwrap().assert_clean();

    let lost = run.sender.begin(&run.everybody);
    run.sender.settle(lost, Outcome::Accepted);
    assert_eq!(findings(&run.history.settle(Duration::from_millis(50)).await), [1, 0, 0, 0, 0]);
}

#[test]
fn a_load_recorded_on_many_threads_is_judged_whole() {
    const SENDERS: usize = 4;
    const RECEIVERS: usize = 50;
    const MESSAGES: usize = 5_000;
    let history = History::new();
    let (a, b) = (history.node(A), history.node(B));
    let everybody = history.audience(AudienceKind::All, "everybody");
    let receivers: Vec<ReceiverLog> = (0..RECEIVERS).map(|_| b.receiver()).collect();
    receivers.iter().for_each(|receiver| everybody.joined(receiver));
    std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                let sender = a.sender();
                for _ in 0..MESSAGES / 100 {
                    let mut joined = Vec::new();
                    for _ in 0..100 {
                        let stamp = sender.begin(&everybody);
                        sender.settle(stamp, Outcome::Accepted);
                        joined.extend_from_slice(&stamp.payload(0));
                    }
                    for receiver in &receivers {
                        assert_eq!(receiver.delivered(&joined), 100);
                    }
                }
            });
        }
    });
    let start = Instant::now();
    let verdict = history.judge();
    verdict.assert_clean();
    println!("{} deliveries judged in {:?}", verdict.counts.delivered, start.elapsed());
    assert_eq!(verdict.counts.owed, (SENDERS * MESSAGES * RECEIVERS) as u64);
    assert_eq!(receivers[0].count(), SENDERS * MESSAGES);
}
