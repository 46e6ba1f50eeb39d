"""The format of request lines."""

from __future__ import annotations

import pytest

from backline.observe.log.requests import text

ANSWERED = {"protocol": "HTTP", "model": "add1", "version": "1", "status": 200, "duration_us": 412}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "HTTP add1 version 1: 200 in 412 us"),
        (
            {"queue_us": 35, "compute_us": 340, "batch_size": 4},
            "HTTP add1 version 1: 200 in 412 us (queue 35 us, compute 340 us, batch of 4)",
        ),
        (
            {"protocol": "GRPC", "status": "OK", "responses": 3},
            "GRPC add1 version 1: OK in 412 us (3 responses)",
        ),
        ({"id": "4711"}, 'HTTP add1 version 1 id "4711": 200 in 412 us'),
        (
            {"status": 503, "error": "the queue is full"},
            "HTTP add1 version 1: 503 in 412 us: the queue is full",
        ),
        ({"id": 'a"\n2026-01-01 ERROR'}, 'HTTP add1 version 1 id "a\\"\\n2026-01-01 ERROR": 200 in 412 us'),
        ({"model": "a\nb", "error": "one\ntwo"}, 'HTTP "a\\nb" version 1: 200 in 412 us: "one\\ntwo"'),
        ({"id": "half \ud800"}, 'HTTP add1 version 1 id "half ?": 200 in 412 us'),
    ],
)
def test_a_request_is_one_line_whatever_clients_send(fields: dict[str, object], line: str) -> None:
    assert text({**ANSWERED, **fields}) == line


def test_an_unreadable_request_has_no_version_and_over_grpc_no_model() -> None:
    assert (
        text({"protocol": "GRPC", "status": "INVALID_ARGUMENT", "duration_us": 5})
        == "GRPC -: INVALID_ARGUMENT in 5 us"
    )
