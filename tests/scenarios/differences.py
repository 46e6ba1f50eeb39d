"""Where Backline differs from Triton on purpose: which fields of which scenarios, what they hold, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from scenarios.runner import Deviation
from scenarios.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Difference:
    """In each of the scenarios (by title, or by title and way) some fields differ whose paths match one of `paths`.

    `holds` says of what Triton and Backline gave whether it is the difference that is meant. `reason` is a row of the table in
    docs/differences-from-triton.md. What Triton does by `chance` may be the same in a recording.
    """

    reason: str
    scenarios: tuple[str, ...]
    paths: tuple[str, ...]
    holds: Callable[[Any, Any], bool]
    chance: bool = False

    def applies(self, scenario: Scenario) -> bool:
        return scenario.title in self.scenarios or scenario.name in self.scenarios

    def covers(self, deviation: Deviation) -> bool:
        matches = any(fnmatchcase(deviation.path, path) for path in self.paths)
        return matches and self.holds(deviation.triton, deviation.backline)


def unlisted(scenario: Scenario, deviations: list[Deviation]) -> list[Deviation]:
    """The deviations that no difference covers."""
    listed = [difference for difference in DIFFERENCES if difference.applies(scenario)]
    return [
        deviation
        for deviation in deviations
        if not any(difference.covers(deviation) for difference in listed)
    ]


def gone(scenario: Scenario, deviations: list[Deviation]) -> list[Difference]:
    """The differences that are listed for the scenario but are no longer there."""
    listed = [
        difference for difference in DIFFERENCES if difference.applies(scenario) and not difference.chance
    ]
    return [
        difference
        for difference in listed
        if not any(difference.covers(deviation) for deviation in deviations)
    ]


def words(triton: Any, backline: Any) -> bool:
    """Backline's message has Triton's words in their order, and more or fewer of its own."""
    if not isinstance(triton, str) or not isinstance(backline, str):
        return False
    shorter, longer = sorted((_words(triton), _words(backline)), key=len)
    rest = iter(longer)
    return all(word in rest for word in shorter)


def _words(text: str) -> list[str]:
    return text.replace("[request id: <id_unknown>] ", "").replace(",", " ").replace(".", " ").split()


def less(triton: Any, backline: Any) -> bool:
    """Backline counts less."""
    return (backline or 0) < (triton or 0)


def more(triton: Any, backline: Any) -> bool:
    """Backline counts more."""
    return (backline or 0) > (triton or 0)


def any_value(triton: Any, backline: Any) -> bool:
    """What follows from another difference of the scenario."""
    return True


def is_gone(triton: Any, backline: Any) -> bool:
    """Backline has no such field."""
    return backline is None


def is_new(triton: Any, backline: Any) -> bool:
    """Triton has no such field."""
    return triton is None


def became(triton: Any, backline: Any) -> Callable[[Any, Any], bool]:
    """Backline gives the one where Triton gives the other."""
    return lambda one, other: (one, other) == (triton, backline)


#: Counts of requests that were answered: those that Backline does not count among them it counts as failed.
_OF_ANSWERS = tuple(f"statistics.*.{name}" for name in ("compute_*", "inference_count", "queue", "success"))
_COUNTS = ("statistics.*",)
_FEWER_RUNS = (*_OF_ANSWERS, "statistics.*.execution_count", "statistics.*.batches*")

#: Requests whose own answer is an error of the model.
_ANSWERED_WITH_ERRORS = (
    "one_request_of_a_batch_may_fail",
    "an_error_has_the_kind_that_the_model_says",
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
    "generate_with_parameters_of_their_own",
    "an_error_keeps_the_order_too",
    "an_error_of_one_ragged_request",
    "a_failed_run_gives_back_what_it_took",
)
_ENSEMBLES = (
    "a_chain_of_two",
    "a_batch_passes_as_one",
    "a_fork_and_a_join",
    "an_ensemble_in_an_ensemble",
    "steps_are_joined_with_other_requests",
    "ensembles_answer_with_requested_outputs",
    "steps_that_nobody_needs",
    "optional_inputs_of_steps",
    "the_priority_is_the_steps_too",
    "the_sequence_is_the_steps_too",
    "an_id_is_given_back",
    "a_step_of_an_ensemble_is_a_hit",
    "an_ensemble_is_a_hit_itself",
    "the_times_of_an_ensemble_are_those_of_its_steps",
    "a_decoupled_step_of_an_ensemble",
    "an_error_in_a_decoupled_step_of_an_ensemble",
    "a_deadline_that_does_not_pass",
    "the_timeout_is_the_steps_too",
    "a_batch_through_an_ensemble_is_a_hit",
    "an_ensemble_takes_what_its_steps_take",
    "generate_of_an_ensemble",
)
_ITERATED = (
    "a_request_is_run_until_it_is_answered",
    "a_request_is_answered_at_once",
    "the_start_is_told_once",
    "a_request_is_a_sequence_of_its_own",
    "a_named_sequence_ends_with_its_answer",
    "places_are_iterated_too",
    "who_comes_later_joins",
    "an_error_ends_the_iteration",
)
_WARMED = ("warm_ups_run_in_their_order_before_the_first_request", "a_warm_up_may_run_several_times")

DIFFERENCES: tuple[Difference, ...] = (
    # what runs together
    Difference(
        "batches form when an instance is free",
        ("the_largest_preferred_size_is_taken",),
        ("answers.*.COMPANY", "answers.*.RUN"),
        any_value,
    ),
    # requests that do not fit
    Difference(
        "messages say more",
        (
            "a_batch_for_a_model_without_batches_is_refused",
            "another_shape_is_refused",
            "an_unknown_output_is_refused",
            "a_request_that_does_not_fit_counts_nowhere",
            "a_level_has_a_limit_of_its_own",
            "the_default_limit_is_of_each_level",
            "a_full_queue_refuses",
            "a_full_queue_of_a_model_with_batches_refuses",
            "a_full_queue_with_levels_refuses",
            "requests_count_and_not_their_rows",
            "a_queue_takes_again_when_it_has_room",
            "a_level_has_a_timeout_of_its_own",
            "who_has_waited_for_too_long_is_refused",
            "a_request_may_ask_for_less_than_the_default",
            "a_request_may_not_ask_for_more_than_the_default",
            "a_full_queue_of_a_step",
            "a_timeout_in_a_step",
            "an_error_of_the_first_step",
            "an_error_of_the_last_step",
            "an_error_in_a_branch",
            "an_error_in_a_decoupled_step_of_an_ensemble",
            "an_exception_in_a_step",
            "the_timeout_is_the_steps_too",
            "levels_may_delay_or_refuse",
            "ragged_inputs_have_a_number_of_dimensions",
            "a_queue_fills_while_a_run_waits_for_its_turn",
            "a_timeout_while_a_run_waits_for_its_turn",
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
            "an_optional_input_with_other_rows_is_refused",
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
        ("an_error_has_the_kind_that_the_model_says [http]",),
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
        ("generate_with_an_input_of_another_type",),
        ("seen.status", "seen.events.0.error"),
        any_value,
    ),
    Difference("generate supports sequences", ("generate_in_a_sequence",), ("seen.*", *_COUNTS), any_value),
    # time
    Difference(
        "a request's own timeout counts",
        ("a_request_may_ask_where_there_is_no_default", "a_request_asks_in_vain_without_a_queue_policy"),
        ("answers.*", "statistics.*"),
        any_value,
    ),
    # ensembles
    Difference(
        "ensemble responses omit the sequence",
        _ENSEMBLES,
        ("answers.*.parameters", "seen.*.sequence_*"),
        is_gone,
    ),
    Difference(
        "a failed ensemble counts once",
        (
            "an_error_of_the_first_step",
            "an_error_of_the_last_step",
            "an_exception_in_a_step",
            "a_full_queue_of_a_step",
            "a_timeout_in_a_step",
            "the_sequence_is_the_steps_too",
            "the_timeout_is_the_steps_too",
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
            "a_request_that_is_cancelled_in_the_queue_is_not_run",
            "a_client_that_goes_away_is_not_answered",
            "a_step_that_is_cancelled_in_the_queue_is_not_run",
            "no_step_begins_after_a_cancellation",
            "who_waits_no_longer_than_the_client_allows",
            "a_run_is_told_that_nobody_waits",
            "a_stream_that_is_left_ends_its_requests",
            "a_deadline_in_the_first_step_ends_an_ensemble",
            "a_deadline_in_the_second_step_ends_an_ensemble",
            "a_cancelled_request_holds_up_no_order",
            "who_is_cancelled_while_he_waits_for_his_turn_is_not_run",
        ),
        ("answers.*.COMPANY", *_COUNTS),
        any_value,
    ),
    Difference(
        "cancelled requests leave the queue at once",
        ("a_request_that_is_cancelled_leaves_its_place",),
        ("answers.3.*", *_COUNTS),
        any_value,
    ),
    Difference(
        "a sequence continues after a cancellation",
        ("a_request_of_a_sequence_that_is_cancelled_in_the_queue",),
        ("answers.4.*", *_COUNTS),
        any_value,
    ),
    # sequences
    Difference(
        "string sequence ids",
        ("ids_may_be_texts", "a_number_for_a_text_id_input"),
        ("answers.*", *_COUNTS),
        lambda triton, backline: triton is None or backline is None,
    ),
    Difference(
        "sequence ids that do not fit are refused",
        ("a_text_for_a_numeric_id_input", "an_id_that_does_not_fit_its_input"),
        ("answers.0.*", *_COUNTS),
        lambda triton, backline: triton is None or backline is None,
    ),
    Difference("sequence state is kept", ("the_server_keeps_the_state",), ("answers.*.OUT",), more),
    Difference(
        "ready sequences are batched together",
        (
            "no_more_sequences_run_than_are_candidates",
            "who_comes_later_joins",
        ),
        (
            "answers.*.COMPANY",
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
        ("who_lacks_something_and_who_wants_something_else",),
        ("seen.*",),
        any_value,
    ),
    Difference(
        "waiting for a permit is waiting in the queue",
        ("a_timeout_while_a_run_waits_for_its_turn",),
        ("answers.1.*", "statistics.timed.*"),
        any_value,
    ),
    # warm-up
    Difference("a warm-up is not counted", _WARMED, ("seen.*_count", "seen.success"), less),
    Difference(
        "a warm-up is one request",
        ("warm_ups_run_in_their_order_before_the_first_request",),
        ("answers.0.SEEN", "seen.runs"),
        any_value,
    ),
    # cache
    Difference(
        "requested outputs and parameters are part of the cache key",
        ("fewer_outputs_after_all", "more_outputs_after_some", "parameters_do_not_matter"),
        ("answers.1.*", *_COUNTS),
        any_value,
    ),
    Difference("errors are not cached", ("errors_are_not_kept",), ("answers.1.*", *_COUNTS), any_value),
    Difference(
        "errors are not cached",
        ("a_failed_request_of_a_batch_is_not_kept",),
        ("answers.3.*", *_COUNTS),
        any_value,
    ),
    Difference(
        "identical requests in flight share a run",
        ("the_same_twice_at_once",),
        ("answers.*.COMPANY", *_COUNTS),
        any_value,
    ),
    # statistics
    Difference(
        "404",
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
