//! The contracts of the seam, B1-B12 of [`Bus`](backplane_core::Bus), as code that tries to catch a bus breaking them.
//!
//! Each contract looks at one promise and passes over what other contracts judge: the one about order does not mind a
//! lost frame, the one about loss does not mind order. So its name tells what is wrong. Nothing is proven by waiting:
//! that a frame did *not* arrive is shown by a later one (a fence) that did. Contracts that provoke faults disturb every
//! link of their harness: run the list one after another, as [`Report::of`](crate::Report::of) does.

mod accepted;
mod bytes;
mod connect;
mod death;
mod flood;
mod interest;
mod ledger;
mod order;
mod polling;
mod probe;
mod publisher;
mod release;
mod repeats;
mod resume;
mod space;
mod subscribe;
mod topics;

use std::time::Duration;

use crate::report::Contract;

/// Far more than any contract needs whose own waits end; what hangs past them is broken.
const DEADLINE: Duration = Duration::from_secs(60);

macro_rules! contracts {
    ($($id:literal $module:ident { $($name:ident),+ $(,)? })+) => {
        vec![$($(Contract {
            id: $id,
            name: stringify!($name),
            deadline: DEADLINE,
            run: |harness| Box::pin($module::$name(harness)),
        },)+)+]
    };
}

/// Every contract of a bus, in the order of their numbers.
#[must_use]
pub fn contracts() -> Vec<Contract> {
    contracts! {
        "B1" subscribe {
            a_confirmed_subscription_receives_the_next_publish,
            every_topic_of_a_large_subscribe_is_confirmed,
            topics_of_attach_are_confirmed_before_connect_returns,
            a_topic_works_again_after_unsubscribe_and_subscribe,
            subscribing_more_keeps_what_was_subscribed,
            every_subscriber_receives_its_own_copy,
            a_publisher_hears_itself,
            two_links_of_one_bus_are_two_subscribers,
            fifty_tasks_at_once_do_not_disturb_each_other,
        }
        "B2" bytes {
            any_bytes_arrive_unchanged,
            many_frames_arrive_undamaged,
            a_frame_arrives_under_its_own_topic,
            a_frame_of_the_limit_arrives,
            one_byte_more_is_too_large_and_sends_nothing,
        }
        "B3" order {
            order_is_kept_within_a_batch,
            order_is_kept_over_calls_that_nobody_awaited,
            order_is_kept_when_publishers_interleave,
            all_receivers_see_one_order,
        }
        "B4" accepted {
            one_result_for_each_frame_of_a_batch,
            accepted_frames_arrive,
            frames_accepted_before_close_arrive,
            a_dropped_publish_loses_its_outcome_but_no_frame,
            publishing_to_nobody_is_ok,
            reach_counts_the_links_that_listen,
        }
        "B5" repeats {
            no_frame_arrives_twice,
            a_topic_subscribed_twice_arrives_once,
        }
        "B6" death {
            a_cut_link_ends_with_an_error,
            a_frozen_link_ends_with_an_error_within_the_heartbeat_bound,
            a_lost_broker_ends_links_and_comes_back,
            a_sender_answers_errors_after_its_link_died,
            nothing_in_flight_hangs_when_the_link_dies,
            an_idle_link_stays_alive,
        }
        "B7" release {
            close_frees_the_link,
            dropping_inbound_frees_the_link,
            a_closed_sender_answers_closed,
            a_sender_that_outlives_inbound_answers_closed,
            close_is_idempotent_and_ends_inbound_without_an_error,
            closing_a_link_that_has_just_died_is_no_error,
            a_dropped_connect_leaves_nothing_behind,
        }
        "B8" polling {
            cancelled_polls_lose_nothing,
            inbound_may_move_between_tasks,
        }
        "B9" connect {
            connecting_to_a_lost_broker_fails_typed_and_in_time,
            connecting_to_a_frozen_broker_fails_typed_and_in_time,
            connect_does_not_retry_in_secret,
        }
        "B10" interest {
            unsubscribe_ends_delivery,
            one_unsubscribe_frees_whatever_was_subscribed_how_often,
            unsubscribing_leaves_other_topics_alone,
            unsubscribing_unknown_topics_is_no_error,
        }
        "B10" topics {
            topics_that_differ_only_by_case_are_two,
            long_topics_are_compared_to_their_last_byte,
            topics_that_begin_alike_are_distinct,
            hostile_topics_are_literal,
        }
        "B11" flood {
            a_reader_that_falls_behind_is_told,
            a_short_freeze_loses_nothing_in_silence,
            nothing_is_missing_before_the_error_of_a_cut_link,
        }
        "B12" resume {
            a_resumed_link_continues_where_the_last_one_ended,
            a_position_that_is_too_old_loses_nothing_in_silence,
            a_foreign_position_is_not_resumed,
            resumed_is_claimed_only_when_promised_and_asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_every_promise_has_a_contract() {
        let contracts = super::contracts();
        let names: HashSet<_> = contracts.iter().map(|contract| contract.name).collect();
        assert_eq!(names.len(), contracts.len());
        for number in 1..=12 {
            assert!(contracts.iter().any(|contract| contract.id == format!("B{number}")), "B{number}");
        }
    }
}
