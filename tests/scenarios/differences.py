"""Intended differences of `backline serve` from Triton. docs/differences-from-triton.md says why."""

from __future__ import annotations

from scenarios.difference import Difference, any_value, became, is_gone, less, more, words

#: Counts of successful requests; Backline counts more of them as failed.
_OF_ANSWERS = tuple(f"statistics.*.{name}" for name in ("compute_*", "inference_count", "queue", "success"))
_COUNTS = ("statistics.*",)
_FEWER_RUNS = (*_OF_ANSWERS, "statistics.*.execution_count", "statistics.*.batches*")

#: Scenarios in which the model answers a request with an error.
_ANSWERED_WITH_ERRORS = (
    "one_request_of_a_batch_may_fail",
    "an_error_has_the_code_that_the_model_sets",
    "an_error_of_the_first_step",
    "an_error_of_the_last_step",
    "an_error_in_a_branch",
    "an_error_among_the_responses",
    "an_error_as_the_only_response",
    "an_error_of_a_model_with_one_response_on_a_stream",
    "an_error_in_a_decoupled_step_of_an_ensemble",
    "strict_errors_end_the_stream",
    "generate_with_an_error",
    "generate_stream_with_an_error_first",
    "generate_stream_with_an_error_among_the_responses",
    "generate_with_a_parameters_object",
    "errors_are_ordered_too",
    "an_error_of_one_ragged_request",
    "a_failed_execution_releases_its_resources",
)
_ENSEMBLES = (
    "a_chain_of_two",
    "a_batch_passes_through_the_steps_whole",
    "a_fork_and_a_join",
    "an_ensemble_in_an_ensemble",
    "steps_are_batched_with_other_requests",
    "ensembles_return_only_requested_outputs",
    "unneeded_steps",
    "optional_inputs_of_steps",
    "a_step_omits_an_output_that_is_optional_for_the_next_step",
    "a_step_omits_an_output_of_the_ensemble",
    "the_last_response_of_a_decoupled_step_may_be_the_final_one",
    "the_last_response_of_an_ensemble_is_the_final_one",
    "steps_inherit_the_priority",
    "steps_inherit_the_sequence",
    "the_request_id_is_returned",
    "a_step_of_an_ensemble_is_a_hit",
    "an_ensemble_can_be_cached",
    "the_times_of_an_ensemble_are_those_of_its_steps",
    "a_decoupled_step_of_an_ensemble",
    "an_error_in_a_decoupled_step_of_an_ensemble",
    "a_deadline_that_does_not_pass",
    "steps_inherit_the_timeout",
    "a_batch_through_an_ensemble_is_a_hit",
    "an_ensemble_uses_the_resources_of_its_steps",
    "generate_of_an_ensemble",
)
_ITERATED = (
    "a_request_runs_until_it_is_answered",
    "a_request_answered_by_its_first_execution",
    "the_start_flag_is_set_once",
    "each_request_is_a_separate_sequence",
    "a_named_sequence_ends_with_its_answer",
    "the_direct_strategy_iterates_too",
    "later_requests_join_the_batch",
    "an_error_ends_the_iteration",
)
_WARMED = ("warm_ups_run_in_order_before_the_first_request", "a_warm_up_may_run_several_times")

DIFFERENCES: tuple[Difference, ...] = (
    # batching
    Difference(
        "batches form when an instance is free",
        ("the_largest_preferred_size_is_taken",),
        ("answers.*.BATCH", "answers.*.RUN"),
        any_value,
    ),
    # invalid requests
    Difference(
        "messages say more",
        (
            "an_unknown_output_is_refused",
            "each_priority_has_its_own_limit",
            "the_default_limit_applies_to_each_priority",
            "a_full_queue_refuses",
            "a_full_queue_of_a_batching_model_refuses",
            "a_full_queue_with_priorities_refuses",
            "the_limit_counts_requests_not_items",
            "a_queue_accepts_again_once_it_has_room",
            "each_priority_has_its_own_timeout",
            "a_request_that_waits_too_long_is_rejected",
            "a_request_may_lower_the_timeout",
            "a_request_may_not_raise_the_timeout",
            "a_timeout_counts_while_the_sequence_waits_for_a_slot",
            "a_timeout_of_a_later_request_counts_while_the_sequence_waits_for_a_slot",
            "a_full_queue_of_a_step",
            "a_timeout_in_a_step",
            "an_error_of_the_first_step",
            "an_error_of_the_last_step",
            "an_error_in_a_branch",
            "an_error_in_a_decoupled_step_of_an_ensemble",
            "an_exception_in_a_step",
            "steps_inherit_the_timeout",
            "a_priority_may_delay_or_reject",
            "a_queue_fills_while_waiting_for_a_turn",
            "a_timeout_while_waiting_for_a_turn",
        ),
        ("answers.*.error", "seen.*.error"),
        words,
    ),
    Difference(
        "wrong inputs are named",
        (
            "a_request_without_rows_is_refused",
            "an_unknown_input_is_refused",
            "a_missing_required_input_is_refused",
            "an_optional_input_of_a_different_batch_size_is_refused",
        ),
        ("answers.0.error",),
        any_value,
    ),
    Difference(
        "wrong inputs are named",
        ("a_missing_required_input_is_refused",),
        ("answers.0.status", "statistics.shapes.*"),
        any_value,
    ),
    # errors
    Difference(
        "an error response counts as a failure",
        (*_ANSWERED_WITH_ERRORS, "an_error_ends_the_iteration"),
        _OF_ANSWERS,
        less,
    ),
    Difference(
        "an error response counts as a failure",
        _ANSWERED_WITH_ERRORS,
        ("statistics.*.fail",),
        more,
    ),
    Difference(
        "a cancellation is 499",
        ("an_error_has_the_code_that_the_model_sets [http]",),
        ("answers.6.status",),
        became("400", "499"),
    ),
    Difference(
        "an error is the last response",
        ("an_error_among_the_responses", "an_error_as_the_only_response"),
        ("seen",),
        lambda triton, backline: triton[: len(backline)] == backline and "error" in backline[-1],
    ),
    Difference(
        "an error is the last response",
        ("generate_stream_with_an_error_first", "generate_stream_with_an_error_among_the_responses"),
        ("seen.events",),
        lambda triton, backline: triton[: len(backline)] == backline and "error" in backline[-1],
    ),
    Difference(
        "generate reports errors in the status",
        ("generate_with_no_response", "generate_with_several_responses"),
        ("seen.status",),
        became(200, 500),
    ),
    Difference(
        "generate keeps the kind of an error",
        ("generate_with_an_error", "generate_stream_with_an_error_first"),
        ("seen.status",),
        became(400, 500),
    ),
    Difference(
        "a client's mistake is 400",
        ("generate_with_an_input_of_the_wrong_type",),
        ("seen.status", "seen.events.0.error"),
        any_value,
    ),
    Difference("generate supports sequences", ("generate_in_a_sequence",), ("seen.*", *_COUNTS), any_value),
    # time
    Difference(
        "a request's own timeout counts",
        ("a_request_may_set_a_timeout_without_a_default", "a_request_timeout_without_a_queue_policy"),
        ("answers.*", "statistics.*"),
        any_value,
    ),
    # ensembles
    Difference(
        "ensemble responses omit the sequence",
        _ENSEMBLES,
        ("answers.*.parameters", "seen.*.sequence_*", "seen.*.parameters.sequence_*"),
        is_gone,
    ),
    Difference(
        "a failed ensemble counts once",
        (
            "a_step_omits_an_output_that_the_next_step_requires",
            "an_error_of_the_first_step",
            "an_error_of_the_last_step",
            "an_exception_in_a_step",
            "a_full_queue_of_a_step",
            "a_timeout_in_a_step",
            "steps_inherit_the_sequence",
            "steps_inherit_the_timeout",
        ),
        ("statistics.*.fail",),
        became(2, 1),
    ),
    Difference(
        "unneeded steps do not run",
        ("an_error_in_a_branch",),
        ("statistics.first.*",),
        any_value,
    ),
    # cancellation
    Difference(
        "cancelled requests do not run",
        (
            "a_request_cancelled_in_the_queue_does_not_run",
            "a_client_that_disconnects_is_not_answered",
            "a_step_cancelled_in_the_queue_does_not_run",
            "no_step_starts_after_a_cancellation",
            "a_request_is_cancelled_at_the_clients_timeout",
            "an_executing_model_sees_the_cancellation",
            "an_abandoned_stream_cancels_its_requests",
            "a_deadline_in_the_first_step_ends_an_ensemble",
            "a_deadline_in_the_second_step_ends_an_ensemble",
            "a_cancelled_request_does_not_block_ordered_answers",
            "a_request_cancelled_while_waiting_for_its_turn_does_not_run",
        ),
        ("answers.*.BATCH", *_COUNTS),
        any_value,
    ),
    Difference(
        "cancelled requests leave the queue at once",
        ("a_cancelled_request_frees_its_queue_slot",),
        ("answers.3.*", *_COUNTS),
        any_value,
    ),
    Difference(
        "a sequence continues after a cancellation",
        ("a_sequence_request_cancelled_in_the_queue",),
        ("answers.4.*", *_COUNTS),
        any_value,
    ),
    # sequences
    Difference(
        "string sequence ids",
        ("ids_may_be_strings", "a_number_for_a_string_id_input"),
        ("answers.*", *_COUNTS),
        lambda triton, backline: triton is None or backline is None,
    ),
    Difference(
        "sequence ids that do not fit are refused",
        ("a_string_for_a_numeric_id_input", "an_id_too_large_for_its_input"),
        ("answers.0.*", *_COUNTS),
        lambda triton, backline: triton is None or backline is None,
    ),
    Difference("sequence state is kept", ("the_server_keeps_the_state",), ("answers.*.OUT",), more),
    Difference(
        "ready sequences are batched together",
        (
            "the_number_of_candidates_is_limited",
            "later_requests_join_the_batch",
        ),
        (
            "answers.*.BATCH",
            "answers.*.RUN",
            "answers.*.SEEN",
            "statistics.*.batches.*",
            "statistics.*.execution_count",
        ),
        any_value,
        chance=True,
    ),
    Difference("a rescheduled request has not failed", _ITERATED, ("statistics.*.fail",), less),
    # the rate limiter
    Difference(
        "waiting for a resource blocks only its users",
        ("a_waiting_model_and_one_that_needs_another_resource",),
        ("seen.*",),
        any_value,
    ),
    Difference(
        "waiting for a permit is waiting in the queue",
        ("a_timeout_while_waiting_for_a_turn",),
        ("answers.1.*", "statistics.timed.*"),
        any_value,
    ),
    # warm-up
    Difference("a warm-up is not counted", _WARMED, ("seen.*_count", "seen.success"), less),
    Difference(
        "a warm-up is one request",
        ("warm_ups_run_in_order_before_the_first_request",),
        ("answers.0.SEEN", "seen.runs"),
        any_value,
    ),
    # cache
    Difference(
        "requested outputs and parameters are part of the cache key",
        ("fewer_outputs_than_cached", "more_outputs_than_cached", "different_parameters"),
        ("answers.1.*", *_COUNTS),
        any_value,
    ),
    Difference("errors are not cached", ("errors_are_not_cached",), ("answers.1.*", *_COUNTS), any_value),
    Difference(
        "errors are not cached",
        ("a_failed_request_of_a_batch_is_not_cached",),
        ("answers.3.*", *_COUNTS),
        any_value,
    ),
    Difference(
        "identical requests in flight share a run",
        ("identical_concurrent_requests",),
        ("answers.*.BATCH", *_COUNTS),
        any_value,
    ),
    # statistics
    Difference(
        "unknown models are 404",
        ("an_unknown_model_in_statistics", "an_unknown_version"),
        ("seen.status", "seen.error"),
        any_value,
    ),
    Difference(
        "response statistics",
        ("the_fields_of_a_model", "the_responses_of_a_decoupled_model"),
        ("seen", "seen.response_stats*"),
        lambda triton, backline: triton in (None, "NoneType"),
    ),
    Difference(
        "failures by reason",
        ("the_fields_of_a_model [http]",),
        ("seen.failure_stats",),
        lambda triton, backline: triton is None,
    ),
)
