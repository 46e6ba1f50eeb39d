"""Cancelled calls, and calls of models that are killed or unloaded."""

from __future__ import annotations

import os
import queue
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from backline_client.client import Client
from backline_client.values.errors import Unavailable
from support.server import ServerProcess
from support.waiting import until
from workers.process.calls.running import Gate, executions, text, waiting


@pytest.mark.parametrize("model", ["steps", "steps_async"])
def test_cancelling_a_request_cancels_its_call_and_the_remaining_steps(
    client: Client, stock: triton.InferenceServerClient, repository: Path, model: str
) -> None:
    gate = Gate(repository, f"cancel-{model}")
    before = executions(client, "after")
    answers: queue.Queue[Any] = queue.Queue()

    call = stock.async_infer(model, [gate.input], lambda result, error: answers.put(error))
    gate.wait()
    call.cancel()

    gate.wait("cancelled")
    gate.open()
    assert (
        client[model]([gate.name.encode()])["output"][0] == gate.name.encode()
    )  # proves that the worker still serves
    assert executions(client, "after") == before + 1
    assert "CANCELLED" in str(answers.get(timeout=10))


@pytest.mark.parametrize("model", ["steps", "steps_async"])
def test_calls_inherit_the_deadline_of_their_request(
    client: Client, stock: triton.InferenceServerClient, repository: Path, model: str
) -> None:
    gate = Gate(repository, f"deadline-{model}")
    before = executions(client, "after")

    with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
        stock.infer(model, [gate.input], client_timeout=0.5)

    gate.wait("cancelled")
    gate.open()
    client[model]([gate.name.encode()])
    assert executions(client, "after") == before + 1


def test_a_client_leaving_a_stream_cancels_the_call_its_model_waits_for(
    stock: triton.InferenceServerClient, repository: Path
) -> None:
    gate = Gate(repository, "stream")
    answers: queue.Queue[Any] = queue.Queue()

    stock.start_stream(lambda result, error: answers.put(result or error))
    stock.async_stream_infer("watching", [gate.input])
    assert answers.get(timeout=10).as_numpy("output")[0] == b"begun"
    gate.wait()
    stock.stop_stream(cancel_requests=True)

    gate.wait("cancelled")
    error = repository / "watching" / "1" / "told-stream"
    until(error.exists)
    until(lambda: error.read_text() == "Cancelled")


def test_a_queued_call_never_runs_after_the_client_disconnected(
    server: ServerProcess, client: Client, stock: triton.InferenceServerClient, repository: Path
) -> None:
    first, second = Gate(repository, "1", "serial"), Gate(repository, "2", "serial")
    second.open()
    order = repository / "serial" / "1" / "order"
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(client["serial"], [[b"1"]])
        until(lambda: order.exists() and order.read_text() == "1")

        call = stock.async_infer("urgent", [second.input], lambda result, error: None)
        until(lambda: waiting(server, "serial") == 1)
        call.cancel()
        until(lambda: waiting(server, "serial") == 0)
        first.open()
        busy.result()

    assert client["urgent"]([b"2"])["output"][0] == b"2"
    assert order.read_text() == "12"


def test_waiting_for_an_on_demand_model_ends_when_the_client_disconnects(
    client: Client, stock: triton.InferenceServerClient, repository: Path
) -> None:
    gate = Gate(repository, "load", "sleeping")
    asked = [triton.InferInput(name, [1], "BYTES") for name in ("model", "how")]
    for given, value in zip(asked, ("sleeping", "you"), strict=True):
        given.set_data_from_numpy(text(value))

    call = stock.async_infer("calling", asked, lambda result, error: None)
    gate.wait()
    call.cancel()
    other = client["calling"](text("after"), text("x"))  # by the same worker, one request at a time
    gate.open()

    assert other["output"][0] == b"x"
    assert client["calling"](text("sleeping"), text("you"))["output"][0] == b"awake for you"


def test_calls_inherit_the_priority_of_their_request(
    server: ServerProcess, client: Client, repository: Path
) -> None:
    gates = {name: Gate(repository, name, "serial") for name in "abc"}
    gates["b"].open()
    gates["c"].open()
    order = repository / "serial" / "1" / "order"
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(client["serial"], [[b"a"]])]
        until(lambda: order.read_text().endswith("a"))
        asked.append(threads.submit(client["serial"], [[b"b"]]))
        until(lambda: waiting(server, "serial") == 1)
        asked.append(threads.submit(client["urgent"], [b"c"], parameters={"priority": 1}))
        until(lambda: waiting(server, "serial") == 2)
        gates["a"].open()
        for one in asked:
            one.result()

    assert order.read_text().endswith("acb")


def test_a_call_may_have_a_shorter_timeout_than_its_request(client: Client, repository: Path) -> None:
    error = client["limited"]([b"limited"])["output"][0].decode()

    assert error.startswith("DeadlineExceeded: The deadline of the request passed ")
    Gate(repository, "limited").wait("cancelled")


def test_calls_in_flight_are_cancelled_when_their_request_is_answered(
    client: Client, repository: Path
) -> None:
    assert client["left"]([b"left"])["output"][0] == b"answered"

    Gate(repository, "left").wait("cancelled")


# what happens meanwhile


def test_killing_a_worker_cancels_its_calls_and_retries_its_request(client: Client, repository: Path) -> None:
    gate = Gate(repository, "kill")
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client["steps"], [b"kill"])
        gate.wait()
        gate.forget()

        os.kill(int((repository / "steps" / "1" / "pid").read_text()), signal.SIGKILL)

        gate.wait("cancelled")
        gate.wait()
        gate.open()
        assert asked.result(timeout=20)["output"][0] == b"kill"


def test_a_called_model_being_unloaded_still_responds_to_its_calls(client: Client, repository: Path) -> None:
    gate = Gate(repository, "unload")
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client["steps"], [b"unload"])
        gate.wait()

        client.unload("gated")
        client.unload("after")
        gate.open()

        with pytest.raises(Unavailable, match="'after' has no available versions: version 1 is not at"):
            asked.result(timeout=20)
    client.load("gated")
    client.load("after")
    assert client["steps"]([b"unload"])["output"][0] == b"unload"
