"""Spans of a real server, as received over OTLP/HTTP."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from observe.tracing.repository import add_models, write_repository
from support.otlp import Receiver, Span, receiver
from support.repositories import put
from support.server import ServerProcess, serve

SERVER = 2  # the span kind of a server
COMPUTE = {"compute": ["input", "infer", "output"]}
RUN = ["queue", COMPUTE]
ADD = {"add": RUN}


@dataclass
class Traced:
    """A server that traces all requests, and the receiver of its spans."""

    server: ServerProcess
    receiver: Receiver
    folder: Path

    def infer(
        self,
        model: str,
        id: str,
        inputs: dict[str, np.ndarray] | None = None,
        *,
        by: str = "http",
        **more: Any,
    ) -> Any:
        """The client's response or error."""
        api, port = (
            (http_client, self.server.http_port) if by == "http" else (grpc_client, self.server.grpc_port)
        )
        types = {"f": "FP32", "i": "INT32", "O": "BYTES"}
        given = []
        for name, array in (inputs or {"IN": np.ones((1, 4), np.float32)}).items():
            one = api.InferInput(name, list(array.shape), types[array.dtype.kind])
            one.set_data_from_numpy(array)
            given.append(one)
        with api.InferenceServerClient(f"127.0.0.1:{port}") as client:
            try:
                return client.infer(model, given, request_id=id, **more)
            except InferenceServerException as error:
                return error

    def root(self, id: str) -> Span:
        """The trace of the request with this id. Its spans may arrive before the root."""
        return self.receiver.wait_for(
            lambda root: (
                root.name == "InferRequest"
                and any(child.attributes.get("triton.request_id") == id for child in root.children)
            )
        )


def tracing(receiver: Receiver) -> list[str]:
    """The options of a server that sends a trace of each request to a receiver."""
    settings = ["mode=opentelemetry", "level=TIMESTAMPS", "rate=1", f"opentelemetry,url={receiver.url}"]
    settings += ["opentelemetry,resource=service.name=music", "opentelemetry,bsp_schedule_delay=50"]
    return [text for one in settings for text in ("--trace-config", one)]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("spans")
    repository = add_models(write_repository(folder / "models"))
    with receiver() as received:
        options = tracing(received)
        with serve(
            repository, folder / "log", *options, "--cache-config", "local,size=65536", "--log-level", "info"
        ) as server:
            yield Traced(server, received, folder)


def test_a_request_is_a_span_with_queue_and_compute_below(traced: Traced) -> None:
    traced.infer("add", "plain")

    root = traced.root("plain")

    assert root.tree() == {"InferRequest": [ADD]}
    assert (root.kind, root.error, root.resource["service.name"]) == (SERVER, "", "music")
    assert root.attributes == {"network.protocol.name": "http"}
    assert root.events == [
        "HTTP_RECV_START",
        "HTTP_RECV_END",
        "INFER_RESPONSE_COMPLETE",
        "HTTP_SEND_START",
        "HTTP_SEND_END",
    ]
    add = root.below("add")
    assert add.attributes.pop("triton.trace_id") > 0
    assert add.attributes == {
        "triton.model_name": "add",
        "triton.model_version": 1,
        "triton.trace_parent_id": 0,
        "triton.request_id": "plain",
        "backline.batch_size": 1,
    }
    assert add.events == ["REQUEST_START", "QUEUE_START", "REQUEST_END"]
    assert add.below("compute").events == [
        "COMPUTE_START",
        "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START",
        "COMPUTE_END",
    ]


def test_child_spans_lie_within_their_parent_in_order(traced: Traced) -> None:
    before = time.time_ns()
    traced.infer("add", "times")
    after = time.time_ns()

    root = traced.root("times")

    def check(span: Span) -> None:
        assert span.began <= span.ended
        for child in span.children:
            assert span.began <= child.began, (span.name, child.name)
            assert child.ended <= span.ended, (span.name, child.name)
            check(child)

    check(root)
    assert (
        before - 5_000_000 < root.began < root.ended < after + 5_000_000
    )  # the clock may have been adjusted
    queue, compute = root.below("add").children
    assert queue.ended == compute.began
    assert [(one.began, one.ended) for one in compute.children] == [
        (compute.began, compute.children[0].ended),
        (compute.children[0].ended, compute.children[2].began),
        (compute.children[2].began, compute.ended),
    ]


@pytest.mark.parametrize("by", ["http", "grpc"])
def test_the_clients_trace_is_continued(traced: Traced, by: str) -> None:
    trace, span = (
        f"{'ab' if by == 'http' else 'cd'}7651916cd43dd8448eb211c80319c0"[:32].ljust(32, "1"),
        "b7ad6b7169203331",
    )

    traced.infer(
        "add",
        f"child by {by}",
        by=by,
        headers={"traceparent": f"00-{trace}-{span}-01", "tracestate": "vendor=value"},
    )

    root = traced.root(f"child by {by}")
    assert (root.trace_id, root.parent_id) == (trace, span)
    assert root.attributes["network.protocol.name"] == by
    assert all(one.trace_id == trace for one in (root.below("add"), root.below("add", "compute", "infer")))


@pytest.mark.parametrize("by", ["http", "grpc"])
def test_a_remote_model_passes_the_trace_on(traced: Traced, tmp_path: Path, by: str) -> None:
    url = traced.server.url if by == "http" else traced.server.grpc_url
    put(
        tmp_path / "models" / "add" / "config.pbtxt",
        f'backend: "remote" parameters {{ key: "urls" value {{ string_value: "{url}" }} }}',
    )
    put(tmp_path / "models" / "add" / "1" / "empty", "")
    with serve(tmp_path / "models", tmp_path / "log", *tracing(traced.receiver)) as front:
        Traced(front, traced.receiver, tmp_path).infer("add", f"passed on by {by}")

    # The servers send their spans separately, so those of the other server may arrive first.
    root = traced.receiver.wait_for(
        lambda root: any(
            child.attributes.get("triton.request_id") == f"passed on by {by}" and len(child.children) == 3
            for child in root.children
        )
    )

    queue, compute, passed_on = root.below("add").children
    assert (queue.name, compute.name) == ("queue", "compute")
    assert passed_on.tree() == {"InferRequest": [ADD]}
    assert compute.began <= passed_on.began < passed_on.ended


def test_an_ensemble_has_a_span_per_step(traced: Traced) -> None:
    traced.infer("twice", "steps")

    root = traced.root("steps")

    assert root.tree() == {"InferRequest": [{"twice": [ADD, ADD]}]}
    twice = root.below("twice")
    assert {step.attributes["triton.trace_parent_id"] for step in twice.children} == {
        twice.attributes["triton.trace_id"]
    }


def test_calls_of_a_pipeline_are_children_of_its_request(traced: Traced) -> None:
    traced.infer("pipeline", "calls", {"x": np.ones((1, 4), np.float32)})

    pipeline = traced.root("calls").below("pipeline")

    assert [child.name for child in pipeline.children] == ["queue", "compute", "add", "add", "add"]
    compute, first, second, joined = pipeline.children[1:]
    assert all(compute.began <= call.began < call.ended <= compute.ended for call in (first, second, joined))
    assert max(first.ended, second.ended) <= joined.began
    assert first.tree() == ADD


def test_calls_of_triton_models_are_children_with_or_without_passing_the_trace(traced: Traced) -> None:
    traced.infer("caller", "scripted", {"IN": np.full((1, 4), 6, np.float32)})

    caller = traced.root("scripted").below("caller")

    assert [child.name for child in caller.children] == ["queue", "compute", "add", "add"]


def test_the_trace_context_in_a_model_is_its_span(traced: Traced) -> None:
    traced.infer("caller", "context")

    caller = traced.root("context").below("caller")

    contexts = [
        json.loads(text)["traceparent"] for text in re.findall(r"context (\{.*\})", traced.server.output)
    ]
    assert [text.split("-")[2] for text in contexts if text.split("-")[1] == caller.trace_id] == [caller.id]


def test_a_call_for_several_requests_is_a_child_of_one_and_linked_to_the_rest(traced: Traced) -> None:
    ids = ("one of two", "two of two")
    asking = [
        threading.Thread(target=traced.infer, args=("batched", id, {"x": np.ones((1, 4), np.float32)}))
        for id in ids
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()

    spans = [traced.root(id).below("batched") for id in ids]

    (call,) = (child for span in spans for child in span.children if child.name == "add")
    assert {call.parent_id, *call.links} == {span.id for span in spans}
    assert [span.below("compute").attributes["backline.run_batch_size"] for span in spans] == [2, 2]


def test_a_failure_is_recorded_on_the_span_where_it_happened(traced: Traced) -> None:
    traced.infer("twice", "failed", {"IN": np.full((1, 4), -1, np.float32)})

    root = traced.root("failed")

    twice = root.below("twice")
    assert root.error == twice.error == "in ensemble 'twice', model 'add': negative"
    assert twice.below("add").error == "negative"
    assert root.attributes["error.type"] == "ModelFailed"


def test_a_refused_request_is_an_error_without_a_run(traced: Traced) -> None:
    wrong = traced.infer("add", "refused", {"IN": np.ones((1, 5), np.float32)}, by="grpc")

    root = traced.root("refused")

    assert root.tree() == {"InferRequest": ["add"]}
    assert root.error == wrong.message()
    assert root.attributes["error.type"] == "InvalidArgument"


def test_an_unreadable_request_is_an_error(traced: Traced) -> None:
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{traced.server.url}/v2/models/add/infer", data=b"{", timeout=10)

    root = traced.receiver.wait_for(lambda root: "JSON" in root.error)
    assert root.children == []


@pytest.fixture
def occupied(traced: Traced) -> Iterator[str]:
    """Keeps the model `waiting` busy until the test ends."""
    gate = traced.folder / f"gate{time.monotonic_ns()}"
    running = threading.Thread(target=traced.infer, args=("waiting", "first", {"path": _path(gate)}))
    running.start()
    while not gate.with_suffix(".begun").exists():
        time.sleep(0.005)
    yield str(gate)
    gate.touch()
    running.join()


def _path(path: object) -> np.ndarray:
    return np.array([str(path).encode()], np.object_)


def test_a_full_queue_is_an_error(traced: Traced, occupied: str) -> None:
    waiting = [
        threading.Thread(target=traced.infer, args=("waiting", f"waits {n}", {"path": _path(occupied)}))
        for n in range(2)
    ]
    for one in waiting:
        one.start()
    while _pending(traced) < 2:
        time.sleep(0.005)
    traced.infer("waiting", "too many", {"path": _path(occupied)})

    root = traced.root("too many")

    assert "maximum queue size" in root.error
    assert root.attributes["error.type"] == "Unavailable"
    Path(occupied).touch()
    for one in waiting:
        one.join()


def test_a_timeout_in_the_queue_is_an_error(traced: Traced, occupied: str) -> None:
    traced.infer("waiting", "expired", {"path": _path(occupied)}, timeout=1000)

    root = traced.root("expired")

    assert "timeout expired" in root.error
    assert root.tree() == {"InferRequest": [{"waiting": ["queue"]}]}


def test_an_expired_deadline_is_an_error(traced: Traced, occupied: str) -> None:
    # Over HTTP, because gRPC clients cancel a call at their own deadline, which may be before the server's.
    traced.infer("waiting", "late", {"path": _path(occupied)}, headers={"grpc-timeout": "200m"})

    root = traced.root("late")

    assert (
        root.attributes["error.type"] == root.below("waiting").attributes["error.type"] == "DeadlineExceeded"
    )


def test_a_cancelled_call_is_an_error(traced: Traced, occupied: str) -> None:
    with grpc_client.InferenceServerClient(f"127.0.0.1:{traced.server.grpc_port}") as client:
        given = grpc_client.InferInput("path", [1], "BYTES")
        given.set_data_from_numpy(_path(occupied))
        call = client.async_infer("waiting", [given], lambda result, error: None, request_id="gone")
        while _pending(traced) == 0:
            time.sleep(0.005)
        call.cancel()

        root = traced.root("gone")

    assert root.attributes["error.type"] == "Cancelled"


def _pending(traced: Traced) -> int:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{traced.server.metrics_port}/metrics", timeout=10
    ) as answer:
        text = answer.read().decode()
    return int(
        float(re.search(r'nv_inference_pending_request_count\{[^}]*model="waiting"[^}]*\} (\S+)', text)[1])
    )


def test_a_stream_has_its_response_count(traced: Traced) -> None:
    done = threading.Event()
    with grpc_client.InferenceServerClient(f"127.0.0.1:{traced.server.grpc_port}") as client:
        client.start_stream(
            lambda result, error: (
                result.get_response().parameters["triton_final_response"].bool_param and done.set()
            )
        )
        given = grpc_client.InferInput("count", [1], "INT32")
        given.set_data_from_numpy(np.array([3], np.int32))
        client.async_stream_infer("counting", [given], request_id="stream", enable_empty_final_response=True)
        assert done.wait(10)
        client.stop_stream()

    counting = traced.root("stream").below("counting")

    assert counting.attributes["backline.response_count"] == 3
    assert "FIRST_RESPONSE" in counting.events


def test_a_cache_hit_has_no_run(traced: Traced) -> None:
    for id in ("runs", "cached"):
        traced.infer("cached", id)

    assert traced.root("runs").tree() == {"InferRequest": [{"cached": RUN}]}
    assert traced.root("cached").tree() == {"InferRequest": ["cached"]}
    assert traced.root("cached").below("cached").attributes["backline.cache_hit"] is True


def test_a_cache_hit_of_an_ensemble_has_no_steps(traced: Traced) -> None:
    for id in ("steps run", "steps cached"):
        traced.infer("cached_steps", id)

    first, second = (traced.root(id).below("cached_steps") for id in ("steps run", "steps cached"))
    assert (first.tree(), first.attributes.get("backline.cache_hit")) == ({"cached_steps": [ADD, ADD]}, None)
    assert (second.children, second.attributes["backline.cache_hit"]) == ([], True)


def test_a_sequence_request_has_its_run(traced: Traced) -> None:
    traced.infer("sequential", "in a sequence", sequence_id=7, sequence_start=True, sequence_end=True)

    assert traced.root("in a sequence").tree() == {"InferRequest": [{"sequential": RUN}]}


def test_a_split_request_has_all_its_runs(traced: Traced) -> None:
    traced.infer("splitting", "large", {"IN": np.ones((19, 4), np.float32)})

    parts = [child for child in traced.root("large").below("splitting").children if child.name == "compute"]
    assert sorted(part.attributes["backline.run_batch_size"] for part in parts) == [3, 8, 8]


@pytest.mark.parametrize("route", ["generate", "generate_stream", "infer_stream"])
def test_other_routes_are_traced(traced: Traced, route: str) -> None:
    generate = {"id": route, "count": 1}
    given = [{"name": "count", "datatype": "INT32", "shape": [1], "data": [1]}]
    body = json.dumps({"id": route, "inputs": given} if route == "infer_stream" else generate).encode()

    urllib.request.urlopen(f"{traced.server.url}/v2/models/counting/{route}", data=body, timeout=10).read()

    root = traced.root(route)
    assert root.tree() == {"InferRequest": [{"counting": RUN}]}
    assert root.events[-1] == "HTTP_SEND_END"


def test_a_python_model_receives_its_trace_context(traced: Traced) -> None:
    traced.infer(
        "counting", "told", {"count": np.array([1], np.int32)}
    )  # over HTTP, a decoupled model is refused
    body = json.dumps({"id": "where", "count": 1}).encode()
    urllib.request.urlopen(f"{traced.server.url}/v2/models/counting/generate", data=body, timeout=10).read()

    counting = traced.root("where").below("counting")

    assert counting.trace_id in traced.server.output
    assert f"-{counting.id}-" in traced.server.output
    assert "decoupled" in traced.root("told").error


def test_a_disconnect_is_an_error(traced: Traced, occupied: str) -> None:
    body = json.dumps(
        {"id": "hung up", "inputs": [{"name": "path", "datatype": "BYTES", "shape": [1], "data": [occupied]}]}
    ).encode()
    with socket.create_connection(("127.0.0.1", traced.server.http_port)) as client:
        client.sendall(
            b"POST /v2/models/waiting/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        while _pending(traced) == 0:
            time.sleep(0.005)

    root = traced.root("hung up")

    assert root.attributes["error.type"] == "Cancelled"
    assert root.tree() == {"InferRequest": [{"waiting": ["queue"]}]}


def test_with_a_rate_never_reached_only_sampled_client_traces_are_followed(
    traced: Traced,
) -> None:
    client = http_client.InferenceServerClient(f"127.0.0.1:{traced.server.http_port}")
    client.update_trace_settings("add", {"trace_rate": "1000000"})
    traced.infer("add", "not followed")
    traced.infer("add", "not sampled", headers={"traceparent": f"00-{'e' * 32}-{'e' * 16}-00"})
    traced.infer("add", "followed", headers={"traceparent": f"00-{'f' * 32}-{'f' * 16}-01"})
    client.update_trace_settings("add", {"trace_rate": None})
    client.close()

    assert traced.root("followed").parent_id == "f" * 16
    found = {span.attributes.get("triton.request_id") for span in traced.receiver.spans}
    assert not found & {"not followed", "not sampled"}


def test_tracing_can_be_switched_at_run_time(traced: Traced) -> None:
    client = grpc_client.InferenceServerClient(f"127.0.0.1:{traced.server.grpc_port}")
    client.update_trace_settings(settings={"trace_level": ["OFF"]})
    traced.infer("add", "dark")
    client.update_trace_settings(settings={"trace_level": None})
    traced.infer("add", "light")
    client.close()

    traced.root("light")
    assert "dark" not in {span.attributes.get("triton.request_id") for span in traced.receiver.spans}


def test_settings_shown_in_mode_opentelemetry(traced: Traced) -> None:
    client = http_client.InferenceServerClient(f"127.0.0.1:{traced.server.http_port}")

    assert client.get_trace_settings() == {
        "trace_level": ["TIMESTAMPS"],
        "trace_rate": "1",
        "trace_count": "-1",
        "trace_mode": "opentelemetry",
        "url": traced.receiver.url,
        "resource": ["service.name=music"],
        "bsp_max_queue_size": "2048",
        "bsp_schedule_delay": "50",
        "bsp_max_export_batch_size": "512",
    }
    with pytest.raises(InferenceServerException, match="spans carry no tensors"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS", "TENSORS"]})
    client.close()
