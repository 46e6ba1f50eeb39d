"""Python models that call others: responses, streams, errors, cycles, and changes to the models."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import suppress

import numpy as np
import pytest

from backline_client.client import Client
from backline_client.values.errors import Internal, InvalidArgument, NotFound, Unavailable
from support.server import ServerProcess
from support.waiting import until
from workers.process.calls.running import text


@pytest.mark.parametrize("columns", [4, 100_000], ids=["in frames", "in shared memory"])
@pytest.mark.parametrize(("model", "times"), [("fourfold", 4), ("join", 6), ("threads", 16)])
def test_a_model_calls_others_by_functions_coroutines_and_threads(
    client: Client, model: str, times: int, columns: int
) -> None:
    x = np.random.default_rng(0).random((2, columns)).astype(np.float32)
    for _ in range(3):
        np.testing.assert_allclose(client[model](x)["output"], x * times, rtol=1e-6)


def test_a_model_that_takes_batches_calls_others_with_its_batch(client: Client) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(client["batched"](x)["output"], x * 2 + 1)


@pytest.mark.parametrize("model", ["streamed", "streamed_async"])
def test_responses_of_a_called_model_come_one_by_one(client: Client, model: str) -> None:
    assert [int(part["output"][0]) for part in client[model].stream([100])] == list(range(0, 1000, 10))


def test_a_called_model_waits_while_its_responses_are_not_read(client: Client) -> None:
    assert client["held"]([1_000_000])["output"][0] < 100


def test_closing_a_stream_cancels_the_called_model(client: Client) -> None:
    assert client["first"]([1_000_000])["output"][0] == 0
    assert client["first"]([1_000_000])["output"][0] == 0


def test_errors_of_a_called_model_have_their_class(client: Client) -> None:
    def caught(model: str, how: str) -> str:
        return client["catching"](text(model), text(how))["output"][0].decode()

    assert caught("failing", "invalid") == "InvalidArgument: how is no way"
    assert (
        caught("failing", "x")
        == "Internal: model 'failing' version 1 failed: ValueError: too loud (model.py, line 9, in failing)"
    )
    assert caught("nobody", "x") == "NotFound: Request for unknown model: 'nobody' is not found"
    assert caught("counting", "x").startswith("InvalidArgument")


@pytest.mark.parametrize(
    ("model", "how", "kind", "reason"),
    [
        ("failing", "invalid", InvalidArgument, "how is no way"),
        (
            "failing",
            "x",
            Internal,
            "model 'calling' version 1 failed: model 'failing' version 1 failed: ValueError: too loud",
        ),
        ("nobody", "x", NotFound, "'nobody' is not found"),
    ],
)
def test_an_uncaught_error_becomes_the_response(
    client: Client, model: str, how: str, kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason):
        client["calling"](text(model), text(how))


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("self", "'self' version 1 -> 'self' version 1"),
        ("self_async", "'self_async' version 1 -> 'self_async' version 1"),
        ("ping", "'pong' version 1 -> 'ping' version 1 -> 'pong' version 1"),
        ("in_ensemble", "'in_ensemble' version 1 -> 'around' version 1 -> 'in_ensemble' version 1"),
        ("around", "'in_ensemble' version 1 -> 'around' version 1 -> 'in_ensemble' version 1"),
    ],
)
def test_a_cycle_of_calls_is_refused_rather_than_deadlocking(client: Client, model: str, way: str) -> None:
    with pytest.raises(Internal, match=f"the call would close a cycle of waiting models: {way}"):
        client[model](text("x"), timeout=5)


def test_the_error_of_a_call_carries_retry_after(server: ServerProcess) -> None:
    body = b'{"model": "failing", "how": "busy"}'
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{server.url}/v2/models/calling/generate", body, timeout=10)

    assert (raised.value.code, raised.value.headers["Retry-After"]) == (503, "7")


def test_a_call_has_a_clients_parameters_and_the_requests_id(client: Client) -> None:
    request = client["telling"](text("x"), request_id="mine")["output"][0]

    assert request == {"id": "mine", "parameters": {"loud": True}, "sequence": [8, True, False]}


def answers(client: Client, model: str) -> bool:
    with suppress(Unavailable):
        return client[model](text("fine"))["output"][0] == b"fine"
    return False


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("noise", "a frame of kind 255"),
        ("response", "a frame of kind RESPONSE"),
        ("memory", "outside the other side's half of the shared memory"),
        ("limit", "2 numbers, expected 1"),
        ("file", "a file that is not a column of UINT8"),
    ],
)
def test_a_worker_that_breaks_the_protocol_fails_its_own_request_only(
    client: Client, what: str, reason: str
) -> None:
    until(lambda: answers(client, "rude"))  # The worker that another case ended may still be starting again.
    with pytest.raises(Internal, match=f"its worker process broke the protocol: .*{reason}"):
        client["rude"](text(what))
    assert client["after"](text("fine"))["output"][0] == b"fine"


def test_another_version_of_a_model_is_another_model(client: Client) -> None:
    assert client["versions"](text("x"), version=2)["output"][0] == b"two of one of x"


def test_a_model_loads_and_unloads_others(client: Client) -> None:
    def change(what: str, name: str) -> str:
        return client["changing"](text(what), text(name))["output"][0].decode()

    assert change("unload", "after") == "False"
    assert change("load", "after") == "True"
    assert change("load", "nobody").startswith("NotFound: failed to load 'nobody'")
    assert change("bring", "brought") == "True"
    assert client["brought"](text("n"))["output"][0] == b"nn"
    assert "model 'changing' version 1" in {change.who for change in client.history("after")}
