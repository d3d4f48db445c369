//! The negative controls: buses that are broken on purpose, each in one way, and the contracts that convict them.
//!
//! They prove the suite: a contract that convicts nobody is worth nothing, and one that convicts the innocent is worth
//! less. Every bus here is a healthy one behind one flaw, so that any healthy bus can be broken.

mod flaw;
mod linking;
mod receiving;
mod sending;
mod subscribing;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backplane_core::{Bus, Result};

use crate::harness::{Faults, Harness};
use flaw::flawed;
use linking as link;
use receiving as receive;
use sending as send;
use subscribing as subscribe;

/// The largest frame of the buses that the list is meant for: small, because breaking them is tried often.
pub const MAX_FRAME: usize = 256 << 10;

/// A way to break a bus.
#[derive(Clone, Copy)]
pub struct BrokenBus {
    /// What it does wrong, in snake_case; unique.
    pub name: &'static str,
    /// The contracts that it breaks, all of them, on a bus that promises everything (order on all nodes, any topic,
    /// resume, reach) under a harness with faults. Every other contract acquits it.
    pub convicted_by: &'static [&'static str],
    /// Breaks a healthy bus.
    pub make: fn(Arc<dyn Bus>) -> Arc<dyn Bus>,
}

impl fmt::Debug for BrokenBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A harness all of whose buses are broken in one way.
#[derive(Debug)]
pub struct BrokenHarness {
    whole: Arc<dyn Harness>,
    broken: BrokenBus,
}

impl BrokenHarness {
    /// Breaks every bus of `whole`.
    #[must_use]
    pub fn new(whole: Arc<dyn Harness>, broken: BrokenBus) -> Self {
        Self { whole, broken }
    }
}

#[async_trait]
impl Harness for BrokenHarness {
    fn name(&self) -> &str {
        self.broken.name
    }

    async fn bus(&self) -> Result<Arc<dyn Bus>> {
        Ok((self.broken.make)(self.whole.bus().await?))
    }

    fn faults(&self) -> Option<Arc<dyn Faults>> {
        self.whole.faults()
    }
}

macro_rules! broken {
    ($($name:ident: $flaw:expr => [$($contract:ident),* $(,)?];)+) => {
        vec![$(BrokenBus {
            name: stringify!($name),
            convicted_by: &[$(stringify!($contract)),*],
            make: |whole| flawed(whole, || Arc::new($flaw)),
        }),+]
    };
}

/// All of them.
#[must_use]
pub fn all() -> Vec<BrokenBus> {
    let mut all = broken! {
        drops_one_frame_in_a_hundred: receive::Drops(100) => [
            every_topic_of_a_large_subscribe_is_confirmed,
            fifty_tasks_at_once_do_not_disturb_each_other,
            accepted_frames_arrive,
        ];
        drops_one_frame_in_ten: receive::Drops(10) => [
            a_confirmed_subscription_receives_the_next_publish,
            every_topic_of_a_large_subscribe_is_confirmed,
            topics_of_attach_are_confirmed_before_connect_returns,
            a_topic_works_again_after_unsubscribe_and_subscribe,
            subscribing_more_keeps_what_was_subscribed,
            every_subscriber_receives_its_own_copy,
            fifty_tasks_at_once_do_not_disturb_each_other,
            any_bytes_arrive_unchanged,
            accepted_frames_arrive,
            frames_accepted_before_close_arrive,
            a_dropped_publish_loses_its_outcome_but_no_frame,
            cancelled_polls_lose_nothing,
            inbound_may_move_between_tasks,
            hostile_topics_are_literal,
            a_reader_that_falls_behind_is_told,
            a_short_freeze_loses_nothing_in_silence,
            nothing_is_missing_before_the_error_of_a_cut_link,
            a_resumed_link_continues_where_the_last_one_ended,
        ];
        repeats_one_frame_in_twenty: receive::Repeats(20) => [
            no_frame_arrives_twice,
            a_topic_subscribed_twice_arrives_once,
        ];
        truncates_long_frames: receive::Truncates => [
            any_bytes_arrive_unchanged,
            a_frame_of_the_limit_arrives,
        ];
        corrupts_one_frame_in_five_hundred: receive::Corrupts => [
            every_topic_of_a_large_subscribe_is_confirmed,
            fifty_tasks_at_once_do_not_disturb_each_other,
            many_frames_arrive_undamaged,
            accepted_frames_arrive,
        ];
        swallows_empty_frames: receive::SwallowsEmpty => [
            any_bytes_arrive_unchanged,
        ];
        mixes_up_topics: receive::MixesTopics => [
            a_confirmed_subscription_receives_the_next_publish,
            every_topic_of_a_large_subscribe_is_confirmed,
            topics_of_attach_are_confirmed_before_connect_returns,
            subscribing_more_keeps_what_was_subscribed,
            fifty_tasks_at_once_do_not_disturb_each_other,
            a_frame_arrives_under_its_own_topic,
            hostile_topics_are_literal,
            a_resumed_link_continues_where_the_last_one_ended,
        ];
        goes_quiet_when_the_link_dies: receive::GoesQuiet => [
            a_cut_link_ends_with_an_error,
            a_frozen_link_ends_with_an_error_within_the_heartbeat_bound,
            a_lost_broker_ends_links_and_comes_back,
            closing_a_link_that_has_just_died_is_no_error,
        ];
        ends_a_dead_link_without_an_error: receive::EndsWithoutError => [
            a_cut_link_ends_with_an_error,
            a_frozen_link_ends_with_an_error_within_the_heartbeat_bound,
            a_lost_broker_ends_links_and_comes_back,
            closing_a_link_that_has_just_died_is_no_error,
        ];
        delivers_after_the_error: receive::DeliversAfterError => [
            a_cut_link_ends_with_an_error,
            a_lost_broker_ends_links_and_comes_back,
        ];
        ends_idle_links: receive::EndsIdleLinks::default() => [
            an_idle_link_stays_alive,
        ];
        keeps_losses_to_itself: receive::SwallowsLosses => [
            a_reader_that_falls_behind_is_told,
        ];
        sheds_when_the_reader_is_slow: receive::ShedsWhenSlow => [
            a_reader_that_falls_behind_is_told,
        ];
        loses_frames_on_cancelled_polls: receive::LosesOnCancelledPolls => [
            cancelled_polls_lose_nothing,
        ];
        wakes_the_task_that_polled_first: receive::WakesTheFirst => [
            inbound_may_move_between_tasks,
        ];
        does_not_deliver_to_the_publisher: receive::HearsOnlyOthers::default() => [
            a_publisher_hears_itself,
        ];
        hands_each_frame_to_one_subscriber: receive::SharesAmongSubscribers => [
            every_subscriber_receives_its_own_copy,
            two_links_of_one_bus_are_two_subscribers,
            all_receivers_see_one_order,
        ];
        forgets_positions: receive::ForgetsPositions => [
            a_resumed_link_continues_where_the_last_one_ended,
            a_position_that_is_too_old_loses_nothing_in_silence,
        ];

        swaps_neighbours_in_a_batch: send::SwapsNeighbours => [
            order_is_kept_within_a_batch,
            order_is_kept_over_calls_that_nobody_awaited,
            order_is_kept_when_publishers_interleave,
        ];
        lets_calls_overtake_each_other: send::CallsOvertake::default() => [
            order_is_kept_over_calls_that_nobody_awaited,
        ];
        sends_only_when_polled: send::SendsWhenPolled => [
            order_is_kept_over_calls_that_nobody_awaited,
            a_dropped_publish_loses_its_outcome_but_no_frame,
        ];
        accepts_frames_it_does_not_send: send::AcceptsUnsent::default() => [
            a_confirmed_subscription_receives_the_next_publish,
            every_topic_of_a_large_subscribe_is_confirmed,
            topics_of_attach_are_confirmed_before_connect_returns,
            a_topic_works_again_after_unsubscribe_and_subscribe,
            fifty_tasks_at_once_do_not_disturb_each_other,
            any_bytes_arrive_unchanged,
            accepted_frames_arrive,
            a_dropped_publish_loses_its_outcome_but_no_frame,
            cancelled_polls_lose_nothing,
            hostile_topics_are_literal,
            a_short_freeze_loses_nothing_in_silence,
            nothing_is_missing_before_the_error_of_a_cut_link,
            a_resumed_link_continues_where_the_last_one_ended,
        ];
        accepts_before_sending_and_forgets_on_close: send::AcceptsBeforeSending::default() => [
            one_byte_more_is_too_large_and_sends_nothing,
            frames_accepted_before_close_arrive,
            reach_counts_the_links_that_listen,
            a_sender_answers_errors_after_its_link_died,
            a_sender_that_outlives_inbound_answers_closed,
        ];
        drops_oversize_with_ok: send::DropsOversize => [
            one_byte_more_is_too_large_and_sends_nothing,
        ];
        sends_more_than_its_limit: send::SendsOversize => [
            one_byte_more_is_too_large_and_sends_nothing,
        ];
        carries_less_than_its_limit: send::CarriesLessThanItSays => [
            a_frame_of_the_limit_arrives,
        ];
        refuses_a_batch_for_one_frame: send::OversizeTakesAll(MAX_FRAME) => [
            one_byte_more_is_too_large_and_sends_nothing,
        ];
        answers_a_batch_with_one_result: send::OneResult => [
            one_byte_more_is_too_large_and_sends_nothing,
            one_result_for_each_frame_of_a_batch,
            reach_counts_the_links_that_listen,
        ];
        says_that_reach_is_one: send::ReachIsOne => [
            reach_counts_the_links_that_listen,
        ];
        fails_when_nobody_listens: send::NobodyIsAnError => [
            publishing_to_nobody_is_ok,
            reach_counts_the_links_that_listen,
        ];
        hangs_when_the_link_is_dead: send::HangsWhenDead => [
            a_sender_answers_errors_after_its_link_died,
            nothing_in_flight_hangs_when_the_link_dies,
            a_closed_sender_answers_closed,
            a_sender_that_outlives_inbound_answers_closed,
        ];
        accepts_when_the_link_is_dead: send::AcceptsWhenDead => [
            a_sender_answers_errors_after_its_link_died,
            a_closed_sender_answers_closed,
            a_sender_that_outlives_inbound_answers_closed,
        ];
        forgets_what_is_sent_while_frozen: send::ForgetsWhileFrozen => [
            a_short_freeze_loses_nothing_in_silence,
        ];
        lets_its_own_echo_overtake: send::EchoOvertakes::default() => [
            all_receivers_see_one_order,
        ];

        forgets_the_last_topic_of_subscribe: subscribe::ForgetsTheLast => [
            every_topic_of_a_large_subscribe_is_confirmed,
            subscribing_more_keeps_what_was_subscribed,
            hostile_topics_are_literal,
        ];
        forgets_the_last_topic_of_attach: subscribe::ForgetsTheLastOfAttach => [
            topics_of_attach_are_confirmed_before_connect_returns,
        ];
        subscribes_a_topic_only_once: subscribe::SubscribesOnce::default() => [
            a_topic_works_again_after_unsubscribe_and_subscribe,
            fifty_tasks_at_once_do_not_disturb_each_other,
        ];
        confirms_subscribe_too_early: subscribe::ConfirmsTooEarly => [
            a_confirmed_subscription_receives_the_next_publish,
            every_topic_of_a_large_subscribe_is_confirmed,
            a_topic_works_again_after_unsubscribe_and_subscribe,
            subscribing_more_keeps_what_was_subscribed,
            fifty_tasks_at_once_do_not_disturb_each_other,
            a_sender_answers_errors_after_its_link_died,
            nothing_in_flight_hangs_when_the_link_dies,
            a_closed_sender_answers_closed,
            a_sender_that_outlives_inbound_answers_closed,
            hostile_topics_are_literal,
        ];
        forgets_topics_when_more_are_subscribed: subscribe::SubscribeReplaces::default() => [
            subscribing_more_keeps_what_was_subscribed,
        ];
        never_unsubscribes: subscribe::NeverUnsubscribes => [
            unsubscribe_ends_delivery,
            one_unsubscribe_frees_whatever_was_subscribed_how_often,
        ];
        unsubscribes_topics_that_begin_alike: subscribe::UnsubscribesPrefixes::default() => [
            unsubscribing_leaves_other_topics_alone,
        ];
        counts_subscriptions: subscribe::CountsSubscriptions::default() => [
            one_unsubscribe_frees_whatever_was_subscribed_how_often,
        ];
        delivers_once_for_each_subscribe: subscribe::DeliversPerSubscription::default() => [
            a_topic_subscribed_twice_arrives_once,
        ];
        fails_to_unsubscribe_unknown_topics: subscribe::UnknownIsAnError::default() => [
            unsubscribing_unknown_topics_is_no_error,
        ];
        ignores_case: subscribe::Renames(<[u8]>::to_ascii_lowercase) => [
            topics_that_differ_only_by_case_are_two,
            hostile_topics_are_literal,
        ];
        cuts_long_topics: subscribe::Renames(|topic| topic[..topic.len().min(128)].to_vec()) => [
            long_topics_are_compared_to_their_last_byte,
            hostile_topics_are_literal,
        ];
        cuts_topics_at_nul: subscribe::Renames(|topic| topic.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()) => [
            hostile_topics_are_literal,
        ];
        trims_topics: subscribe::Renames(|topic| topic.trim_ascii().to_vec()) => [
            hostile_topics_are_literal,
        ];
        reads_wildcards_as_patterns: subscribe::AlsoMatches(subscribe::wildcards) => [
            hostile_topics_are_literal,
        ];
        delivers_to_parent_topics: subscribe::AlsoMatches(subscribe::parent) => [
            topics_that_begin_alike_are_distinct,
            hostile_topics_are_literal,
        ];

        retries_connect_past_its_deadline: link::Retries(60.0) => [
            connecting_to_a_lost_broker_fails_typed_and_in_time,
            connecting_to_a_frozen_broker_fails_typed_and_in_time,
            connect_does_not_retry_in_secret,
        ];
        retries_connect_within_its_deadline: link::Retries(0.9) => [
            connect_does_not_retry_in_secret,
        ];
        ignores_the_deadline_of_connect: link::IgnoresDeadline => [
            connecting_to_a_frozen_broker_fails_typed_and_in_time,
        ];
        ignores_the_heartbeat_bound: link::IgnoresHeartbeat => [
            a_frozen_link_ends_with_an_error_within_the_heartbeat_bound,
            nothing_in_flight_hangs_when_the_link_dies,
        ];
        gives_up_on_a_lost_broker: link::GivesUp => [
            connecting_to_a_lost_broker_fails_typed_and_in_time,
            connecting_to_a_frozen_broker_fails_typed_and_in_time,
        ];
        goes_on_with_a_dropped_connect: link::ConnectsForNobody => [
            a_dropped_connect_leaves_nothing_behind,
        ];
        leaks_links_that_are_closed: link::LeaksWhenClosed::default() => [
            close_frees_the_link,
        ];
        leaks_links_that_are_dropped: link::LeaksWhenDropped => [
            dropping_inbound_frees_the_link,
            a_sender_that_outlives_inbound_answers_closed,
            a_dropped_connect_leaves_nothing_behind,
        ];
        fails_to_close_twice: link::ClosesOnce::default() => [
            close_is_idempotent_and_ends_inbound_without_an_error,
            closing_a_link_that_has_just_died_is_no_error,
        ];
        fails_to_close_what_has_died: link::ClosesWithTheEnd::default() => [
            a_sender_answers_errors_after_its_link_died,
            closing_a_link_that_has_just_died_is_no_error,
        ];
        claims_to_have_resumed: link::ClaimsToResume => [
            a_resumed_link_continues_where_the_last_one_ended,
            a_position_that_is_too_old_loses_nothing_in_silence,
            a_foreign_position_is_not_resumed,
        ];
        claims_to_have_resumed_without_promising: link::ClaimsUnpromised => [
            resumed_is_claimed_only_when_promised_and_asked,
        ];
        promises_to_resume_and_never_does: link::NeverResumes => [
            a_resumed_link_continues_where_the_last_one_ended,
        ];
        resumes_one_frame_too_far: link::ResumesTooFar::default() => [
            a_resumed_link_continues_where_the_last_one_ended,
        ];
    };
    // What is wrong with these is shared by all links of a bus.
    all.push(BrokenBus {
        name: "closes_all_links_of_a_bus_with_one",
        convicted_by: &["two_links_of_one_bus_are_two_subscribers"],
        make: |whole| {
            let links = Arc::default();
            flawed(whole, move || Arc::new(link::ClosesTogether(Arc::clone(&links))))
        },
    });
    all.push(BrokenBus {
        name: "allows_one_link_per_node",
        convicted_by: &["two_links_of_one_bus_are_two_subscribers"],
        make: |whole| {
            let last = Arc::default();
            flawed(whole, move || Arc::new(link::OneLinkPerNode(Arc::clone(&last))))
        },
    });
    all
}
