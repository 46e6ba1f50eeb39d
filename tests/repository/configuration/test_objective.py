"""Latency objectives and default deadlines in a model's configuration, in both forms, and their conflicts."""

from __future__ import annotations

import pytest

from backline.engine.config.model_config import ModelConfig
from backline.repository.configuration import read
from backline.repository.listing import FileEntry, Listing
from backline_client.values.errors import InvalidArgument

OBJECTIVE = "[objective]\np99_ms = 50\n"
TENSORS = (
    '[[input]]\nname = "x"\ndata_type = "FP32"\ndims = [4]\n'
    '[[output]]\nname = "y"\ndata_type = "FP32"\ndims = [4]\n'
)


def config(text: str, file: str = "model.toml") -> ModelConfig:
    found = read(Listing("m", {file: FileEntry(len(text), "")}, frozenset(), lambda _: text.encode()), "m")
    assert found is not None
    return found


def test_both_forms_mean_the_same() -> None:
    plain = config("default_deadline_seconds = 2\n" + OBJECTIVE)
    pbtxt = config(
        'parameters { key: "backline.objective.p99_ms" value { string_value: "50" } }'
        ' parameters { key: "backline.default_deadline_seconds" value { string_value: "2" } }',
        "config.pbtxt",
    )
    for one in (plain, pbtxt):
        assert (one.objective_seconds, one.default_deadline_seconds, one.warnings) == (0.05, 2.0, ())


def test_there_is_no_objective_or_deadline_by_default() -> None:
    assert (config("").objective_seconds, config("").default_deadline_seconds) == (None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "objective.p99_ms = 0",
            "parameter 'backline.objective.p99_ms' is '0', expected a number of milliseconds above 0",
        ),
        ("objective.p99_ms = 'soon'", "'objective.p99_ms' is 'soon', expected a whole number or a number"),
        (
            "objective.p99 = 50",
            "unknown parameter 'backline.objective.p99', did you mean 'backline.objective.p99_ms'?",
        ),
        ("objective = 50", "'objective' is 50, expected a table"),
        (
            "default_deadline_seconds = -1",
            "parameter 'backline.default_deadline_seconds' is '-1', expected a number of seconds above 0",
        ),
        (
            OBJECTIVE + "[dynamic_batching]\nmax_queue_delay_microseconds = 5",
            "remove max_queue_delay_microseconds",
        ),
        (
            "max_batch_size = 8\n" + OBJECTIVE + "[dynamic_batching]\npreferred_batch_size = [4]",
            "remove preferred_batch_size",
        ),
        (
            OBJECTIVE + "[dynamic_batching.default_queue_policy]\ntimeout_action = 'DELAY'",
            "timeout_action cannot be DELAY",
        ),
        (OBJECTIVE + "[sequence_batching]", "would break the sequences of m"),
        (
            OBJECTIVE + "[model_transaction_policy]\ndecoupled = true",
            "an objective needs one response per request",
        ),
        (
            "platform = 'ensemble'\n"
            + TENSORS
            + "[[ensemble_scheduling.step]]\nmodel_name = 'a'\nmodel_version = -1\n"
            "input_map = {i = 'x'}\noutput_map = {o = 'y'}\n" + OBJECTIVE,
            "set the objective for the models of its steps",
        ),
    ],
)
def test_contradictions_with_an_objective_are_errors(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        config(text)
    assert said in raised.value.message


def test_a_preferred_size_that_changes_nothing_is_allowed() -> None:
    assert (
        config(
            "max_batch_size = 8\n" + OBJECTIVE + "[dynamic_batching]\npreferred_batch_size = [8]"
        ).objective_seconds
        == 0.05
    )
