"""The line for people about how a model's requests are scheduled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from backline.lifecycle.loading.queueing import scheduling_text
from support.repositories import only, put

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
"""
STEPS = """
platform: "ensemble"
input { name: "a" data_type: TYPE_FP32 dims: [ 1 ] } output { name: "c" data_type: TYPE_FP32 dims: [ 1 ] }
ensemble_scheduling { step [
  { model_name: "one" model_version: -1
    input_map { key: "x" value: "a" } output_map { key: "y" value: "b" } },
  { model_name: "two" model_version: -1
    input_map { key: "x" value: "b" } output_map { key: "y" value: "c" } } ] }
"""
FILLED = """
max_batch_size: 8
parameters { key: "backline.allowed_batch_sizes" value { string_value: "2,8" } }
parameters { key: "backline.pad_variable_length_inputs" value { string_value: "true" } }
"""
QUEUE = (
    "default_queue_policy { max_queue_size: 64 default_timeout_microseconds: 100000 timeout_action: DELAY }"
)


def told(
    folder: Path,
    config: str,
    batch_limit: int,
    seconds: Mapping[int, float] | None = None,
    *,
    cached: bool = False,
) -> str:
    put(folder / "m" / "1" / "model.onnx")
    put(folder / "m" / "config.pbtxt", config)
    config_read = only(folder).config
    return scheduling_text(config_read, batch_limit, seconds, decoupled=config_read.decoupled, cached=cached)


@pytest.mark.parametrize(
    ("config", "batch_limit", "text"),
    [
        ("", 16, "up to 16 together, no delay"),
        ("", 1, "one by one"),
        ("max_batch_size: 0", 0, "one by one"),
        (
            "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 500 }",
            8,
            "up to 8 together, waits 500 us",
        ),
        (
            (
                "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, 8 ]"
                " max_queue_delay_microseconds: 5000 }"
            ),
            8,
            "up to 8 together, waits 5 ms for 4 or 8",
        ),
        (
            "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, 2, 4 ] }",
            8,
            "up to 8 together, preferably 2 or 4",
        ),
        (
            "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 8 ] }",
            8,
            "up to 8 together, no delay",
        ),
        (
            f"max_batch_size: 8 dynamic_batching {{ priority_levels: 3 default_priority_level: 2 {QUEUE} }}",
            8,
            "up to 8 together, no delay, 3 priorities, delayed after 100 ms, queue of 64",
        ),
        (
            "max_batch_size: 8 dynamic_batching { preserve_ordering: true }",
            8,
            "up to 8 together, no delay, in order",
        ),
        (f"max_batch_size: 8 {TENSORS}", 8, "up to 8 together, no delay, ragged"),
        (
            FILLED,
            8,
            "up to 8 together, no delay, filled up to 2 or 8, padded",
        ),
        (
            (
                'max_batch_size: 8 parameters { key: "backline.enable_large_batch_splitting" value {'
                ' string_value: "true" } }'
            ),
            8,
            "up to 8 together, no delay, larger ones in parts",
        ),
        ("max_batch_size: 4 sequence_batching { direct { } }", 4, "sequences, direct, 4 an instance"),
        (
            "max_batch_size: 4 sequence_batching { oldest { max_candidate_sequences: 9 } }",
            4,
            "sequences, oldest, 9 an instance",
        ),
        (
            "max_batch_size: 4 sequence_batching { iterative_sequence: true }",
            4,
            "iterative sequences, 4 together",
        ),
        ("model_transaction_policy { decoupled: true }", 0, "one by one, any number of responses"),
        (STEPS, 0, "ensemble of one, two"),
    ],
)
def test_the_settings_of_a_configuration_are_described(
    tmp_path: Path, config: str, batch_limit: int, text: str
) -> None:
    assert told(tmp_path, config, batch_limit) == text


def test_an_objective_shows_the_measured_time_of_the_largest_batch(tmp_path: Path) -> None:
    config = 'max_batch_size: 16 parameters { key: "backline.objective.p99_ms" value { string_value: "50" } }'
    assert (
        told(tmp_path, config, 8, {1: 0.001, 8: 0.0046, 16: 0.009})
        == "up to 8 together, no delay, within 50 ms (8 take 4.6 ms)"
    )
    assert told(tmp_path, config, 8) == "up to 8 together, no delay, within 50 ms"


def test_the_cache_is_shown_if_the_server_has_one(tmp_path: Path) -> None:
    assert (
        told(tmp_path, "response_cache { enable: true }", 8, cached=True)
        == "up to 8 together, no delay, cached"
    )
    assert told(tmp_path, "response_cache { enable: true }", 8) == "up to 8 together, no delay"
