"""Cases of the trace extension and trace file, run with stock tritonclient against a server with OPTIONS.

Each case starts from the settings at start.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from google.protobuf import json_format
from tritonclient.utils import InferenceServerException

SETTINGS = ("trace_level", "trace_rate", "trace_count", "log_frequency")
CLEAR = dict.fromkeys(SETTINGS)


def options(file: Path) -> list[str]:
    """Options of the server: it traces every request, each into its own file."""
    return [
        f"--trace-config={one}"
        for one in (f"triton,file={file}", "triton,log-frequency=1", "level=TIMESTAMPS", "rate=1")
    ]


class Ask:
    """A server with stock clients. `file` is its trace file."""

    def __init__(self, http_port: int, grpc_port: int, file: Path) -> None:
        self.http = http_client.InferenceServerClient(f"127.0.0.1:{http_port}")
        self.grpc = grpc_client.InferenceServerClient(f"127.0.0.1:{grpc_port}")
        self._file = file
        self._traces = 0

    def close(self) -> None:
        self.http.close()
        self.grpc.close()

    def reset(self) -> None:
        for model in ("add", "twice", None):
            self.http.update_trace_settings(model, CLEAR)

    def get(self, model: str | None = None, by: str = "http") -> Any:
        return self._told(lambda: (self.http if by == "http" else self.grpc).get_trace_settings(model))

    def update(self, settings: Mapping[str, Any], model: str | None = None, by: str = "http") -> Any:
        return self._told(
            lambda: (self.http if by == "http" else self.grpc).update_trace_settings(model, dict(settings))
        )

    def post(self, body: str, path: str = "v2/trace/setting") -> Any:
        response = self.http._post(request_uri=path, request_body=body, headers=None, query_params=None)
        return [response.status_code, _without_file(json.loads(response.read()))]

    def _told(self, ask: Callable[[], Any]) -> Any:
        try:
            found = ask()
        except InferenceServerException as error:
            return {"error": error.message(), "status": error.status()}
        if not isinstance(found, dict):
            found = {
                name: list(value["value"])
                for name, value in json_format.MessageToDict(found)["settings"].items()
            }
        return _without_file(found)

    def infer(self, model: str, value: float = 1.0, *, by: str = "http", **more: Any) -> Any:
        """The error, or None."""
        api, client = (http_client, self.http) if by == "http" else (grpc_client, self.grpc)
        given = api.InferInput("IN", [1, 4], "FP32")
        given.set_data_from_numpy(np.full((1, 4), value, np.float32))
        try:
            client.infer(model, [given], **more)
        except InferenceServerException as error:
            return {"status": error.status()}
        return None

    def traces(self, count: int = 1) -> list[Any]:
        """The next traces: each request's model, parent, and timestamp names in order of time."""
        found = [
            read_trace(self._file.with_name(f"{self._file.name}.{self._traces + index}"))
            for index in range(count)
        ]
        self._traces += count
        return found


def _without_file(found: dict[str, Any]) -> dict[str, Any]:
    """Removes the file name, which differs each time."""
    if found.get("trace_file"):
        found["trace_file"] = "FILE" if isinstance(found["trace_file"], str) else ["FILE"]
    return found


def read_trace(file: Path) -> list[dict[str, Any]]:
    """The requests in a file, numbered from 1. Waits until it is complete."""
    entries = _wait_for(file)
    first = min(entry["id"] for entry in entries)
    requests: dict[int, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        request = requests.setdefault(entry["id"] - first + 1, {"moments": [], "tensors": []})
        if "model_name" in entry:
            request.update({name: value for name, value in entry.items() if name not in ("id", "parent_id")})
            request["parent"] = entry["parent_id"] - first + 1 if "parent_id" in entry else 0
        for stamp in entry.get("timestamps", ()):
            request["moments"].append(stamp["name"])
            assert isinstance(stamp["ns"], int)
        if "tensor" in entry:
            request["tensors"].append({"activity": entry["activity"], **entry["tensor"]})
    for request in requests.values():
        request["moments"].sort()
    return [requests[id] for id in sorted(requests)]


def _wait_for(file: Path) -> list[dict[str, Any]]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError):
            time.sleep(0.01)
    raise TimeoutError(f"{file} was not written")


def _both(ask: Ask, settings: Mapping[str, Any], model: str | None = None) -> dict[str, Any]:
    """Runs over HTTP, then again over gRPC."""
    found = {"http": ask.update(settings, model)}
    ask.reset()
    return {**found, "grpc": ask.update(settings, model, "grpc")}


def _traced(ask: Ask, *asked: Callable[[], Any], count: int = 1) -> Any:
    answers = [one() for one in asked]
    return {"answers": answers, "traces": ask.traces(count)}


def _follows(ask: Ask) -> Any:
    """A model's own settings stay; the others follow the global ones."""
    found = [
        ask.update({"trace_rate": "5"}, "add"),
        ask.update({"trace_rate": "6", "trace_count": "3"}),
        ask.get("add"),
        ask.get("twice"),
    ]
    found += [ask.update({"trace_rate": None}, "add"), ask.update(CLEAR), ask.get("add")]
    return found


def _counted(ask: Ask) -> Any:
    """Every second request is traced, until there are two traces."""
    ask.update({"trace_rate": "2", "trace_count": "2"})
    for number in range(7):
        ask.infer("add", request_id=f"r{number}")
    return {"settings": ask.get(), "traces": [trace[0]["request_id"] for trace in ask.traces(2)]}


def _gathered(ask: Ask) -> Any:
    """One file holds several traces."""
    ask.update({"log_frequency": "3"})
    for number in range(3):
        ask.infer("add", request_id=f"g{number}")
    return [request["request_id"] for request in ask.traces()[0]]


def _tensors(ask: Ask) -> Any:
    ask.update({"trace_level": ["TENSORS"]})
    return _traced(ask, lambda: ask.infer("add", 0.1))


CASES: dict[str, Callable[[Ask], Any]] = {
    "settings": lambda ask: {by: ask.get(by=by) for by in ("http", "grpc")},
    "settings of a model": lambda ask: {by: ask.get("add", by) for by in ("http", "grpc")},
    "settings of no model": lambda ask: {by: ask.get("nobody", by) for by in ("http", "grpc")},
    "update of no model": lambda ask: _both(ask, {"trace_rate": "2"}, "nobody"),
    "rate": lambda ask: _both(ask, {"trace_rate": "2"}),
    "rate of a model": lambda ask: _both(ask, {"trace_rate": "2"}, "add"),
    "count": lambda ask: _both(ask, {"trace_count": "7"}),
    "frequency": lambda ask: _both(ask, {"log_frequency": "9"}),
    "off": lambda ask: _both(ask, {"trace_level": ["OFF"]}),
    "tensors": lambda ask: _both(ask, {"trace_level": ["TIMESTAMPS", "TENSORS"]}),
    "several": lambda ask: _both(
        ask, {"trace_level": ["TENSORS"], "trace_rate": "3", "trace_count": "4", "log_frequency": "5"}
    ),
    "nothing": lambda ask: _both(ask, {}),
    "cleared": lambda ask: [ask.update({"trace_rate": "3"}), ask.update({"trace_rate": None}, by="grpc")],
    "follows": _follows,
    "off among others": lambda ask: _both(ask, {"trace_level": ["OFF", "TIMESTAMPS"]}),
    "no level": lambda ask: _both(ask, {"trace_level": ["NOPE"]}),
    "rate of zero": lambda ask: _both(ask, {"trace_rate": "0"}),
    "no rate": lambda ask: _both(ask, {"trace_rate": "x"}),
    "empty rate": lambda ask: ask.update({"trace_rate": ""}),
    "negative rate": lambda ask: _both(ask, {"trace_rate": "-1"}),
    "broken rate": lambda ask: _both(ask, {"trace_rate": "1.5"}),
    "large rate": lambda ask: _both(ask, {"trace_rate": "4294967296"}),
    "two rates": lambda ask: ask.update({"trace_rate": ["1", "2"]}, by="grpc"),
    "rate as a number": lambda ask: ask.post('{"trace_rate": 3}'),
    "level as a text": lambda ask: ask.post('{"trace_level": "TIMESTAMPS"}'),
    "levels without any": lambda ask: ask.post('{"trace_level": []}'),
    "no count": lambda ask: _both(ask, {"trace_count": "x"}),
    "negative count": lambda ask: _both(ask, {"trace_count": "-2"}),
    "large count": lambda ask: _both(ask, {"trace_count": "2147483648"}),
    "no frequency": lambda ask: _both(ask, {"log_frequency": "x"}),
    "file": lambda ask: _both(ask, {"trace_file": "other"}),
    "mode": lambda ask: _both(ask, {"trace_mode": "opentelemetry"}),
    "unknown": lambda ask: _both(ask, {"trace_color": "red"}),
    "no json": lambda ask: ask.post("{"),
    "no object": lambda ask: ask.post("[]"),
    "trace by http": lambda ask: _traced(ask, lambda: ask.infer("add", request_id="by http")),
    "trace by grpc": lambda ask: _traced(ask, lambda: ask.infer("add", by="grpc", request_id="by grpc")),
    "trace of an ensemble": lambda ask: _traced(ask, lambda: ask.infer("twice", request_id="e")),
    "trace of a call": lambda ask: _traced(ask, lambda: ask.infer("caller")),
    "trace of a failure": lambda ask: _traced(ask, lambda: ask.infer("add", -1.0)),
    "trace of a failed step": lambda ask: _traced(ask, lambda: ask.infer("twice", -1.0)),
    "trace of tensors": _tensors,
    "counted": _counted,
    "gathered": _gathered,
}
