"""A scenario's connection to a server: sends requests, waits on queues, controls gates, reads statistics."""

from __future__ import annotations

import itertools
import re
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http

from scenarios.exchanges import Exchanges
from scenarios.gate import PATIENCE, Gate, Note
from scenarios.requests import Grpc, Http, Pending, Request, Stream, Way

_COUNTED = (
    "success",
    "fail",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
_gates = itertools.count()


@dataclass(frozen=True, slots=True)
class Server:
    """A server's addresses, the folder of its models' gates, its repository and its log.

    `settle` is how many seconds it may go on acting after it noticed a request or sent an answer.
    """

    name: str
    http: str
    grpc: str
    metrics: str
    gates: Path
    repository: Path
    log: Path
    settle: float = 0.0


class Session:
    """The interface of a scenario. `answers` are all answers in order of arrival."""

    def __init__(self, server: Server, scenario: str, way: str, watched: tuple[str, ...] = ()) -> None:
        self.server = server
        self.way = way
        #: A value unique to this scenario, so that no earlier answer to it is cached.
        self.fresh = 1_000_000 + 2 * (zlib.crc32(f"{scenario} {way}".encode()) % 100_000_000)
        #: New requests use the last one.
        self._clients: list[Way] = [Http(server.http) if way == "http" else Grpc(server.grpc)]
        self._streams: list[Stream] = []
        self._gates: list[Gate] = []
        self._statistics = tritonclient.http.InferenceServerClient(server.http)
        #: Requests as bytes on the wire.
        self.wire = Exchanges(server.http, server.grpc, {str(server.repository): "{repository}"})
        self._before: dict[str, dict[str, Any]] = {}
        self._sent: list[Pending] = []
        self._order: list[Pending] = []
        self._lock = threading.Lock()
        #: Requests in flight by the model whose queue they enter, and how many of them wait at gates.
        self._at: dict[str, list[Pending]] = {}
        self._held: dict[str, int] = {}
        for model in watched:
            self.watch(model)

    # requests

    def connect_again(self) -> None:
        """Sends later gRPC requests over a new connection."""
        self._clients.append(Grpc(self.server.grpc, warm=False))

    def request(
        self, model: str, value: Any = 0, *, outputs: tuple[str, ...] | None = None, **options: Any
    ) -> Request:
        """A request with `value` as the input IN (one number, or an array).

        `inputs` are further inputs, `parameters` are for the model.
        """
        given = np.asarray(value, np.int32)
        inputs = {"IN": given.reshape(1, 1) if given.ndim == 0 else given, **options.pop("inputs", {})}
        self.watch(model)
        return Request(model, inputs, outputs, options)

    def send(self, request: Request, *, at: str = "") -> Pending:
        """Sends a request without waiting."""
        pending = Pending(request, self._done)
        self._sent.append(pending)
        self._at.setdefault(at or request.model, []).append(pending)
        self._clients[-1].send(pending)
        return pending

    def ask(self, model: str, value: Any = 0, *, at: str = "", **options: Any) -> Pending:
        """Sends a request without waiting. `at` names the model whose queue it enters, if not `model`."""
        return self.send(self.request(model, value, **options), at=at)

    def infer(self, model: str, value: Any = 0, **options: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        return self.ask(model, value, **options).result()

    def queue(self, model: str, value: Any = 0, *, at: str = "", **options: Any) -> Pending:
        """Sends a request and waits until it is queued or refused."""
        pending = self.ask(model, value, at=at, **options)
        self.wait_queued(at or model)
        return pending

    def stream(self, headers: dict[str, str] | None = None) -> Stream:
        """A new stream, closed when the scenario ends."""
        stream = Stream(self.server.grpc, headers)
        self._streams.append(stream)
        return stream

    def wait_all(self) -> None:
        """Waits for the answers to all requests so far."""
        for pending in self._sent:
            pending.result()

    def _done(self, pending: Pending) -> None:
        with self._lock:
            self._order.append(pending)

    @property
    def order(self) -> list[Any]:
        """The inputs of the requests in order of their answers."""
        return [int(pending.request.inputs["IN"].reshape(-1)[0]) for pending in self._order]

    # gates

    def gate(self) -> Gate:
        """A new gate."""
        gate = Gate(self.server.gates, f"g{next(_gates)}")
        self._gates.append(gate)
        return gate

    def note(self) -> Note:
        """A new note."""
        return Note(self.server.gates, f"n{next(_gates)}")

    @contextmanager
    def busy(self, model: str, *, instances: int = 1, value: Any = 0, **options: Any) -> Iterator[None]:
        """Occupies each instance of a model with one request until the block ends."""
        gates = [self.gate() for _ in range(instances)]
        for gate in gates:
            self.ask(model, value, parameters={"gate": gate.name}, **options)
            gate.wait_entered()
        self._held[model] = instances
        try:
            yield
        finally:
            self._held[model] = 0
            for gate in gates:
                gate.open()

    def pause(self, seconds: float = 0.05) -> None:
        """Gives the server time for what it does not report: a cancellation, a timeout, a late count."""
        time.sleep(seconds)

    def wait_queued(self, model: str) -> None:
        """Waits until each request sent to the model is at a gate, in the queue, or refused."""
        sent, held = self._at[model], self._held.get(model, 0)
        self._wait(
            lambda: sum(not pending.done for pending in sent) - self.pending(model) == held,
            f"{len(sent)} requests for model '{model}' executing, queued or answered",
        )

    def wait_pending(self, model: str, count: int) -> None:
        """Waits until `count` requests are queued for the model, whoever sent them."""
        self._wait(lambda: self.pending(model) == count, f"{count} requests waiting for model '{model}'")

    def wait_executions(self, model: str, count: int) -> None:
        """Waits until the model has executed `count` times in this scenario."""
        self.watch(model)
        end = self._before[model].get("execution_count", 0) + count
        self._wait(
            lambda: self._read(model).get("execution_count", 0) >= end,
            f"{count} executions of model '{model}'",
        )

    def wait_runs(self, note: Note, count: int) -> None:
        """Waits until the note lists `count` executions."""
        self._wait(lambda: len(note.runs) >= count, f"{count} runs")

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > end:
                raise TimeoutError(f"timed out waiting for {what}")
            time.sleep(0.001)
        time.sleep(self.server.settle)

    def pending(self, model: str) -> int:
        """The number of requests queued for the model, from the metrics."""
        with urllib.request.urlopen(f"http://{self.server.metrics}/metrics", timeout=PATIENCE) as answer:
            text = answer.read().decode()
        found = re.search(
            rf'^nv_inference_pending_request_count{{model="{model}",version="1"}} (\d+)', text, re.MULTILINE
        )
        return int(found[1]) if found else 0

    # results

    def finish(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """All answers in the order of their requests, and each model's growth of statistics."""
        answers = [pending.result() for pending in self._sent]
        self._count_runs_from_zero()
        return answers, {
            model: _difference(self._settled(model), before) for model, before in self._before.items()
        }

    def close(self) -> None:
        """Opens all gates and closes all clients."""
        for gate in self._gates:
            gate.open()
        for stream in self._streams:
            stream.close(cancel=True)
        for client in self._clients:
            client.close()
        self._statistics.close()
        self.wire.close()

    def _count_runs_from_zero(self) -> None:
        """Numbers each model's executions in this scenario from zero."""
        models = {pending.request.model for pending in self._sent}
        for model in models:
            outcomes = [pending.outcome for pending in self._sent if pending.request.model == model]
            for name in {name for outcome in outcomes for name in outcome if name.startswith("RUN")}:
                first = min(int(np.min(outcome[name])) for outcome in outcomes if name in outcome)
                for outcome in outcomes:
                    if name in outcome:
                        outcome[name] = (np.asarray(outcome[name]) - first).tolist()

    def watch(self, model: str) -> None:
        """Compares the statistics of a model from now on."""
        if model not in self._before:
            self._before[model] = self._read(model)

    def _read(self, model: str) -> dict[str, Any]:
        (counted,) = self._statistics.get_inference_statistics(model)["model_stats"]
        return counted  # type: ignore[no-any-return]

    def _settled(self, model: str) -> dict[str, Any]:
        """The statistics once they stop changing: a server may count after it answers."""
        counted = self._read(model)
        while self.server.settle:
            time.sleep(4 * self.server.settle)
            again = self._read(model)
            if again == counted:
                break
            counted = again
        return counted


def _difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The growth of all non-zero counts, without durations; batches by size."""
    counted: dict[str, Any] = {
        key: after.get(key, 0) - before.get(key, 0) for key in ("inference_count", "execution_count")
    }
    for name in _COUNTED:
        counted[name] = _count(after["inference_stats"], name) - _count(before["inference_stats"], name)
    earlier = {
        batch["batch_size"]: batch["compute_infer"]["count"] for batch in before.get("batch_stats", ())
    }
    later = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after.get("batch_stats", ())}
    counted["batches"] = {
        str(size): count - earlier.get(size, 0)
        for size, count in sorted(later.items())
        if count != earlier.get(size, 0)
    }
    return {name: count for name, count in counted.items() if count}


def _count(statistics: dict[str, Any], name: str) -> int:
    return int(statistics.get(name, {}).get("count", 0))
