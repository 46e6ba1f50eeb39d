"""Suggestions for misspelt names."""

from __future__ import annotations

import time

import pytest

from backline_client.values.spelling import nearest

OPTIONS = [
    "--host",
    "--http-address",
    "--http-port",
    "--grpc-port",
    "--metrics-port",
    "--max-queued-requests",
]


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        ("add11", ["add1", "other"], "add1"),
        ("ad1", ["add1", "other"], "add1"),
        ("da1", ["add1", "ad1"], "ad1"),  # neighbours swapped
        ("TEXT", ["test", "text"], "text"),
        ("BACKLINE_HTP_PORT", ["BACKLINE_HTTP_PORT", "BACKLINE_HOST"], "BACKLINE_HTTP_PORT"),
        ("model_repository", ["--model-repository", "--model-name"], "--model-repository"),
        ("--max-queue", OPTIONS, "--max-queued-requests"),
        ("--host", OPTIONS, "--host"),
        ("inputs", ["pad_variable_length_inputs", "input"], "input"),
    ],
)
def test_the_nearest_name_is_found(given: str, known: list[str], expected: str) -> None:
    assert nearest(given, known) == [expected]


def test_a_misspelt_word_of_longer_names_is_found() -> None:
    assert nearest("--prot", OPTIONS, 3) == ["--http-port", "--grpc-port", "--metrics-port"]


@pytest.mark.parametrize("given", ["", "x", "--verbose", "an entirely different name"])
def test_names_that_resemble_none_get_no_suggestion(given: str) -> None:
    assert nearest(given, OPTIONS) == []


def test_thousands_of_long_names_are_compared_within_a_second() -> None:
    names = [f"model-{number}-with-a-long-name" for number in range(3000)]
    began = time.process_time()

    assert nearest("modle-77-wiht-a-long-name", names) == ["model-77-with-a-long-name"]
    assert nearest("x" * 100_000, ["x" * 100_000]) == ["x" * 100_000]

    assert time.process_time() - began < 1
