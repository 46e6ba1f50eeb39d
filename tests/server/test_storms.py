"""Storms of abandoned requests on a real server leave nothing in its queues, batchers or limits."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import tritonclient.http
from tritonclient.grpc import service_pb2

from backline.wire.http2 import frames
from support.server import ServerProcess, metrics_page, serve
from wire.http2.served import FrameClient

IDENTITY = """
backend: "identity"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }}
instance_group {{ count: 1 rate_limiter {{ resources {{ name: "shared" count: 1 }} }} }}
parameters {{ key: "execute_delay_ms" value {{ string_value: "2" }} }}
{}
"""
POLICY = "default_timeout_microseconds: 50000 allow_timeout_override: true timeout_action: DELAY"
MODELS = {
    "priorities": f"dynamic_batching {{ priority_levels: 3 default_priority_level: 2 "
    f"default_queue_policy {{ {POLICY} }} }}",
    "objective": "dynamic_batching { } "
    'parameters { key: "backline.objective.p99_ms" value { string_value: "50" } }',
    "cached": "dynamic_batching { } response_cache { enable: true }",
    "direct": "sequence_batching { direct { } max_sequence_idle_microseconds: 200000 }",
    "oldest": "sequence_batching { oldest { max_candidate_sequences: 4 } "
    "max_sequence_idle_microseconds: 200000 }",
}
STEP = """
  step {{ model_name: "{0}" model_version: -1
    input_map {{ key: "x" value: "{1}" }} output_map {{ key: "y" value: "{2}" }} }}
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }}
ensemble_scheduling {{ {} }}
"""
SECONDS = 1.5
#: Less memory than a storm would leave if it leaked anything per request.
LIMITS = ("--max-concurrent-requests", "500", "--max-queued-requests", "300")
OPTIONS = (
    "--cache-config",
    "local,size=1MiB",
    "--rate-limit",
    "execution_count",
    "--rate-limit-resource",
    "shared:2",
    *LIMITS,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("storms")
    steps = STEP.format("cached", "x", "between") + STEP.format("priorities", "between", "y")
    configs = {name: IDENTITY.format(scheduling) for name, scheduling in MODELS.items()} | {
        "steps": ENSEMBLE.format(steps)
    }
    for name, config in configs.items():
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "config.pbtxt").write_text(config)
    with serve(folder / "models", folder / "log", *OPTIONS) as running:
        yield running


def parameters(model: str, chance: random.Random) -> dict[str, int | bool]:
    if model in ("direct", "oldest"):
        return {
            "sequence_id": chance.randrange(1, 9),
            "sequence_start": chance.random() < 0.3,
            "sequence_end": chance.random() < 0.3,
        }
    return {"priority": chance.randrange(4), "timeout": chance.randrange(100_000)}


def grpc_message(model: str, chance: random.Random) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.float32(chance.randrange(3)).tobytes())
    for name, value in parameters(model, chance).items():
        if isinstance(value, bool):
            request.parameters[name].bool_param = value
        else:
            request.parameters[name].int64_param = value
    message = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(message)) + message


def over_http2(port: int, models: list[str], chance: random.Random) -> None:
    """One connection with many calls, some of which are reset, then closed."""
    with FrameClient(port) as client:
        last = 2 * chance.randrange(1, 40)
        for number in range(1, last, 2):
            client.call(
                number,
                "/inference.GRPCInferenceService/ModelInfer",
                grpc_message(chance.choice(models), chance),
            )
            if chance.random() < 0.3:
                client.write(
                    frames.frame(
                        frames.RST_STREAM,
                        0,
                        chance.randrange(1, number + 1, 2),
                        struct.pack(">I", frames.CANCEL),
                    )
                )
        leave(client.socket, chance)


def over_http1(port: int, models: list[str], chance: random.Random) -> None:
    """A few requests in a row on one connection, then closed."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        for _ in range(chance.randrange(1, 5)):
            model = chance.choice(models)
            x = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [chance.randrange(3)]}
            body = json.dumps({"inputs": [x], "parameters": parameters(model, chance)}).encode()
            client.sendall(
                b"POST /v2/models/%s/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
                % (model.encode(), len(body))
                + body
            )
        leave(client, chance)


def leave(client: socket.socket, chance: random.Random) -> None:
    """Closes after a moment, often with a reset."""
    time.sleep(chance.random() * 0.01)
    if chance.random() < 0.5:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def answers(server: ServerProcess, model: str) -> None:
    x = tritonclient.http.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.full((1, 1), 7, np.float32))
    options = (
        {"sequence_id": 99, "sequence_start": True, "sequence_end": True}
        if model in ("direct", "oldest")
        else {}
    )
    with tritonclient.http.InferenceServerClient(
        server.url.removeprefix("http://"), network_timeout=10
    ) as client:
        assert client.infer(model, [x], **options).as_numpy("y").tolist() == [[7]]


@pytest.mark.parametrize("storm", [over_http2, over_http1])
@pytest.mark.parametrize(
    "models",
    [["priorities", "objective", "cached", "steps"], ["direct", "oldest"]],
    ids=["requests", "sequences"],
)
def test_requests_of_vanished_clients_leave_nothing(
    server: ServerProcess, storm: Callable[[int, list[str], random.Random], None], models: list[str]
) -> None:
    chance = random.Random(1)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            storm(server.http_port, models, chance)

    for model in models:
        answers(server, model)
    end = time.monotonic() + 5
    while left := {
        name: value for name, value in metrics_page(server).items() if "pending" in name and value
    }:
        assert time.monotonic() < end, left
        time.sleep(0.05)
    assert "Traceback" not in server.output
