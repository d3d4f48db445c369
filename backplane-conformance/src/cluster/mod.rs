//! Contracts of the whole: two or three routers over any bus behave as one SignalR server would, and never lie.
//!
//! Thirty-five of them carry the names of the behaviours that ASP.NET Core SignalR proves of its own scale-out, in
//! snake_case. Where ours is built differently the adaptation stands at the contract. These hold everywhere:
//!
//! - "does not publish" is asserted by counting the frames that the node hands to its bus ([`Tap`]), beats excluded;
//! - that something does *not* arrive is proven by a fence: a later message on the same path that arrives;
//! - `IOException` is [`ConnectionNotFound`](backplane_core::ErrorKind::ConnectionNotFound), `HubException` is
//!   [`ClientResult::Error`](backplane_core::ClientResult::Error) with the exact text, a cancelled token is a dropped
//!   future, and a client that leaves while asked is `ConnectionNotFound` with a context that says `disconnected`,
//!   local or remote;
//! - factory hooks of the original suite are no tests and have no contract.

mod aborts;
mod broker;
mod cancellation;
mod client;
mod disconnects;
mod fleet;
mod groups;
mod joins;
mod limits;
mod links;
mod load;
mod loss;
mod messages;
mod names;
mod ordering;
mod results;
mod sends;
mod shutdown;
mod tap;
mod targets;
mod users;
mod wait;
mod waits;

use std::borrow::Borrow;
use std::time::Duration;

use backplane_core::Wire;

pub use client::{Client, Manner};
pub use fleet::{Fleet, Node, Stage, heartbeat, value};
pub use load::Load;
pub use messages::{Arrived, message, question};
pub use tap::{Seen, Tap};
pub use wait::{Events, Task, failed, patience, poll_then_drop, until, until_stats, within};

use crate::Contract;

/// Behaviours that have their contract elsewhere, with the reason.
pub const LATER: &[(&str, &str)] = &[(
    "client_return_result_across_servers_with_wrong_returned_type_errors",
    "to the router a client's value is opaque bytes: only the hub server knows which type was asked for, and proves it",
)];

/// Contracts that need what only [`Wire::Native`] has, with the reason.
pub const NATIVE_ONLY: &[(&str, &str)] = &[
    ("a_thousand_connections_of_three_nodes_are_three_frames", "needs ids that carry their node"),
    ("the_owner_forgets_a_question_that_was_dropped", "the .NET layout cannot take a question back"),
    ("a_remote_connection_can_be_aborted", "the .NET layout has no such command"),
    ("a_lost_frame_raises_one_gap", "needs provenance"),
    ("a_lost_last_frame_raises_one_gap_within_two_beats", "needs provenance and beats"),
    ("a_repeated_frame_is_removed", "needs provenance"),
    ("nodes_are_seen_to_come_and_to_go", "needs beats"),
    ("a_node_that_dies_is_gone_and_waits_on_it_end", "needs beats"),
    ("a_silent_link_is_noticed_by_the_missing_echo", "needs beats"),
];

const DEADLINE: Duration = Duration::from_secs(60);

macro_rules! list {
    ($stage:ident: $($module:ident::$name:ident,)+) => {
        vec![$(Contract {
            id: "cluster",
            name: stringify!($name),
            deadline: DEADLINE,
            run: |harness| Box::pin($module::$name(Stage::$stage(harness))),
        }),+]
    };
}

macro_rules! of_every_wire_format {
    ($stage:ident) => {
        list![$stage:
            sends::send_all_async_writes_to_all_connections_output,
            sends::send_all_async_does_not_write_to_disconnected_connections_output,
            sends::send_group_async_writes_to_all_connections_in_group_output,
            sends::send_group_except_async_does_not_write_to_excluded_connections,
            sends::send_connection_async_writes_to_connection_output,
            results::can_process_client_return_result,
            results::can_process_client_return_error_result,
            results::exception_when_incorrect_client_completes_client_result,
            results::connection_id_not_present_when_invoking_client_result,
            results::invokes_for_multiple_clients_do_not_collide,
            disconnects::client_disconnects_without_completing_client_result,
            waits::can_cancel_client_result,
            sends::invoke_all_async_with_multiple_servers_writes_to_all_connections_output,
            sends::invoke_all_async_with_multiple_servers_does_not_write_to_disconnected_connections_output,
            sends::invoke_connection_async_on_server_without_connection_writes_output_to_connection,
            sends::invoke_group_async_on_server_without_connection_writes_output_to_group_connection,
            groups::disconnect_connection_removes_connection_from_group,
            groups::remove_group_from_local_connection_not_in_group_does_nothing,
            groups::remove_group_from_connection_on_different_server_not_in_group_does_nothing,
            groups::add_group_async_for_connection_on_different_server_works,
            groups::add_group_async_for_local_connection_already_in_group_does_nothing,
            groups::add_group_async_for_connection_on_different_server_already_in_group_does_nothing,
            groups::remove_group_async_for_connection_on_different_server_works,
            sends::invoke_connection_async_for_local_connection_does_not_publish_to_backplane,
            sends::writing_to_remote_connection_that_fails_does_not_throw,
            sends::writing_to_group_with_one_connection_failing_second_connection_still_receives_message,
            users::invoke_user_sends_to_all_connections_for_user,
            users::still_subscribed_to_user_after_one_of_multiple_connections_associated_with_user_disconnects,
            results::can_process_client_return_result_across_servers,
            results::can_process_client_return_error_result_across_servers,
            results::connection_id_not_present_multi_server_when_invoking_client_result,
            disconnects::client_disconnects_without_completing_client_result_on_second_server,
            results::invocations_from_different_servers_use_unique_ids,
            results::connection_does_not_exist_fails_invoke_connection_async,

            targets::a_connection_named_twice_is_served_once,
            targets::a_group_named_twice_is_served_once,
            targets::a_user_named_twice_is_served_once,
            targets::a_connection_in_two_listed_groups_gets_one_copy_for_each,
            targets::exceptions_hold_for_every_kind_of_target,
            targets::an_empty_list_publishes_nothing,
            targets::nobody_is_a_valid_target,
            targets::each_client_gets_the_encoding_of_its_protocol,
            targets::two_hubs_of_a_node_do_not_meet,
            targets::nodes_of_different_prefixes_do_not_meet,
            users::an_empty_user_is_no_user,
            users::an_id_is_registered_once_at_a_time,
            users::an_id_of_its_own_is_reachable_or_refused,
            ordering::messages_of_one_sender_arrive_in_order,
            ordering::all_nodes_see_one_order,
            names::any_text_names_a_group,
            names::any_text_names_a_user,
            joins::whoever_awaited_a_join_may_send_from_any_node,
            joins::a_join_while_the_last_member_leaves_is_not_lost,
            joins::a_change_for_a_connection_that_is_gone_fails_typed,
            joins::a_failed_join_leaves_nothing_behind,
            joins::a_join_does_not_wait_for_the_joins_of_others,
            joins::a_thousand_joins_are_few_commands,
            joins::leaving_and_disconnecting_free_the_topics,
            joins::a_returning_connection_is_in_no_group,
            waits::a_question_times_out_at_its_own_deadline,
            waits::many_questions_at_once_get_their_own_answers,
            waits::every_kind_of_answer_arrives_as_it_was_given,
            waits::only_the_client_that_was_asked_can_answer,
            waits::a_node_that_dies_leaves_no_wait_beyond_its_deadline,
            aborts::a_local_connection_can_be_aborted,
            aborts::what_cannot_be_aborted_fails_typed,
            limits::a_frame_of_exactly_the_limit_passes_and_one_byte_more_does_not,
            limits::a_message_that_is_too_large_fails_alone,
            limits::a_send_that_failed_in_part_says_how_far_it_came,
            limits::a_full_queue_refuses_posts_and_delays_sends,
            limits::a_slow_client_is_its_own_problem,
            limits::ten_thousand_clean_messages_raise_no_gap,
            links::everything_fails_fast_while_the_link_is_down,
            links::a_send_in_flight_as_the_link_breaks_has_an_unknown_outcome,
            links::a_node_may_start_before_its_broker,
            links::health_and_events_tell_of_the_link,
            links::everything_works_again_after_a_reconnect,
            links::a_reconnect_resumes_or_raises_a_gap,
            links::what_left_during_an_outage_stays_gone,
            links::a_dropped_node_frees_its_link,
            load::links_cut_under_load_lose_nothing_in_silence,
            broker::a_broker_gone_under_load_loses_nothing_in_silence,
            broker::a_short_freeze_loses_nothing,
            broker::a_long_freeze_ends_the_links_within_the_bound,
            shutdown::a_shutdown_ends_what_waits_and_can_be_repeated,
            shutdown::everything_is_closed_after_a_shutdown,
            cancellation::a_register_dropped_anywhere_leaves_nothing,
            cancellation::a_join_dropped_anywhere_can_be_left,
            cancellation::a_leave_dropped_anywhere_can_be_repeated,
            cancellation::a_question_dropped_anywhere_is_forgotten,
            cancellation::a_send_dropped_anywhere_arrives_once_or_never,
            cancellation::a_send_dropped_while_it_waits_for_room_sends_nothing,
            cancellation::an_abort_dropped_anywhere_can_be_repeated,
        ]
    };
}

/// The contracts of a wire format. Nodes name themselves: a server name in `wire` is ignored.
///
/// # Panics
/// For a wire format that has no list yet.
#[must_use]
pub fn contracts(wire: impl Borrow<Wire>) -> Vec<Contract> {
    match wire.borrow() {
        Wire::Native => {
            let mut contracts = of_every_wire_format!(native);
            contracts.extend(list![native:
                targets::a_thousand_connections_of_three_nodes_are_three_frames,
                waits::the_owner_forgets_a_question_that_was_dropped,
                aborts::a_remote_connection_can_be_aborted,
                loss::a_lost_frame_raises_one_gap,
                loss::a_lost_last_frame_raises_one_gap_within_two_beats,
                loss::a_repeated_frame_is_removed,
                loss::nodes_are_seen_to_come_and_to_go,
                loss::a_node_that_dies_is_gone_and_waits_on_it_end,
                loss::a_silent_link_is_noticed_by_the_missing_echo,
            ]);
            contracts
        }
        Wire::AspNetCore { .. } => {
            let mut contracts = of_every_wire_format!(aspnetcore);
            contracts.extend(list![aspnetcore: aborts::a_remote_abort_is_unsupported,]);
            contracts
        }
        other => panic!("no contracts for {other:?} yet"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_the_reasons_name_what_is_there() {
        let native = contracts(&Wire::Native);
        let aspnetcore = contracts(&Wire::AspNetCore { server_name: None });
        let names = |contracts: &[Contract]| contracts.iter().map(|one| one.name).collect::<BTreeSet<_>>();
        assert_eq!(names(&native).len(), native.len());
        assert_eq!(names(&aspnetcore).len(), aspnetcore.len());
        let only_native: BTreeSet<_> = names(&native).difference(&names(&aspnetcore)).copied().collect();
        assert_eq!(only_native, NATIVE_ONLY.iter().map(|(name, _)| *name).collect());
        assert!(LATER.iter().all(|(name, _)| !names(&native).contains(name)));
    }
}
