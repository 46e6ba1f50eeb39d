"""Measures what batching gains for stateful speech detection (silero_vad): `python benchmarks/sequences.py`.

Half of the streams use HTTP and half use gRPC. Each stream sends its next chunk, whose bytes are prepared in
advance, after the last answer. The answers are compared bit by bit with those that the same runtime gives for
one stream after another without a server. The script prints throughput, average batch size, the server's CPU
time and the machine. The exit status is 1 unless the answers are equal, batches have at least 8 items on
average, and throughput is at least 4 times that without batching. These claims are for OpenVINO, where eight
rows take little longer than one; with `--backend onnxruntime`, batching this network gains less.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from harness.machine import machine
from harness.prepared_streams import Grpc, Http, Stream, run
from harness.server_process import ServerProcess, answers_200, free_ports

import backline

CONFIG = """
backend = "{backend}"
max_batch_size = {batch}
instance_group = [{{ count = 1 }}]

[batch_axis]
state = 1
stateN = 1

[constant_input]
sr = 16000

[sequence_batching]
max_sequence_idle_microseconds = 30000000
oldest = {{ max_candidate_sequences = 1024 }}

[[sequence_batching.state]]
input_name = "state"
output_name = "stateN"
data_type = "TYPE_FP32"
dims = [2, 128]
"""
#: The number of samples per request: 32 ms of audio at 16 kHz, preceded by the 64 samples before them.
CHUNK = 576
LEAST_BATCH = 8
LEAST_RATIO = 4.0
GRPC_CONNECTIONS = 8
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def model_file() -> Path:
    distribution = importlib.metadata.distribution("silero-vad")
    return Path(str(distribution.locate_file("silero_vad/data/silero_vad_op18_ifless.onnx")))


def write_model(repository: Path, backend: str, batch: int) -> None:
    folder = repository / "vad" / "1"
    folder.mkdir(parents=True)
    shutil.copy(model_file(), folder / "model.onnx")
    (repository / "vad" / "model.toml").write_text(CONFIG.format(backend=backend, batch=batch))


def audio(streams: int, chunks: int) -> np.ndarray:
    noise = np.random.default_rng(7).standard_normal((streams, chunks, 1, CHUNK)).astype(np.float32)
    return noise * np.linspace(0.01, 0.5, streams, dtype=np.float32)[:, None, None, None]


def onnxruntime_step() -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model_file()), options, providers=["CPUExecutionProvider"])
    rate = np.array(16000, np.int64)
    return lambda chunk, state: session.run(None, {"input": chunk, "state": state, "sr": rate})


def openvino_step() -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}
    request = openvino.Core().compile_model(str(model_file()), "CPU", settings).create_infer_request()
    rate = np.array(16000, np.int64)

    def step(chunk: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = request.infer({"input": chunk, "state": state, "sr": rate})
        return np.array(found["output"]), np.array(found["stateN"])

    return step


STEPS = {"openvino": openvino_step, "onnxruntime": onnxruntime_step}


def one_by_one(backend: str, sound: np.ndarray) -> np.ndarray:
    """Returns the answers of the runtime when it processes one stream after another without a server."""
    step = STEPS[backend]()
    answers = np.empty(sound.shape[:2], np.float32)
    for stream, chunks in enumerate(sound):
        state = np.zeros((2, 1, 128), np.float32)
        for index, chunk in enumerate(chunks):
            answer, state = step(chunk, state)
            answers[stream, index] = answer[0, 0]
    return answers


def http_request(sequence: int, chunk: np.ndarray, *, start: bool, end: bool) -> bytes:
    parameters = {"sequence_id": sequence, "binary_data_output": True}
    parameters |= ({"sequence_start": True} if start else {}) | ({"sequence_end": True} if end else {})
    tensor = {
        "name": "input",
        "shape": [1, CHUNK],
        "datatype": "FP32",
        "parameters": {"binary_data_size": chunk.nbytes},
    }
    body = json.dumps({"inputs": [tensor], "parameters": parameters}, separators=(",", ":")).encode()
    head = (
        "POST /v2/models/vad/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(body)}\r\nContent-Length: {len(body) + chunk.nbytes}\r\n\r\n"
    )
    return head.encode() + body + chunk.tobytes()


def grpc_request(sequence: int, chunk: np.ndarray, *, start: bool, end: bool) -> bytes:
    from tritonclient.grpc import service_pb2

    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, CHUNK])
    message = service_pb2.ModelInferRequest(
        model_name="vad", inputs=[tensor], raw_input_contents=[chunk.tobytes()]
    )
    message.parameters["sequence_id"].int64_param = sequence
    for name, value in (("sequence_start", start), ("sequence_end", end)):
        if value:
            message.parameters[name].bool_param = True
    return message.SerializeToString()


def streams_of(sound: np.ndarray) -> list[Stream]:
    """Returns a stream per row of sound, alternating between HTTP and gRPC."""
    last = sound.shape[1] - 1
    made = []
    for number, chunks in enumerate(sound):
        request = grpc_request if number % 2 else http_request
        requests = [
            request(number + 1, chunk, start=index == 0, end=index == last)
            for index, chunk in enumerate(chunks)
        ]
        made.append(Stream(requests, kept=4))
    return made


@dataclass(frozen=True)
class Run:
    """The results of one run of all streams: chunks per second, average batch size and CPU time per chunk."""

    answers: np.ndarray
    rate: float
    batch: float
    cpu_us: float


def measure(backend: str, batch: int, sound: np.ndarray) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), backend, batch)
        http, grpc, metrics = free_ports(3)
        ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        server = ServerProcess(
            "sequences",
            [sys.executable, "-m", "backline", "serve", folder, *ports],
            environment=dict(os.environ),
        )
        try:
            server.wait_until(lambda: answers_200(f"http://127.0.0.1:{http}/v2/health/ready"))
            streams = streams_of(sound)
            calls = streams[1::2]
            shared = [
                Grpc(grpc, METHOD, calls[number::GRPC_CONNECTIONS])
                for number in range(min(GRPC_CONNECTIONS, len(calls)))
            ]
            before = server.cpu_seconds()
            seconds = run([*(Http(http, stream) for stream in streams[::2]), *shared])
            spent = server.cpu_seconds() - before
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/models/vad/stats", timeout=10) as answer:
                (statistics,) = json.load(answer)["model_stats"]
        finally:
            server.end()
    count = sound.shape[0] * sound.shape[1]
    answers = np.stack([np.frombuffer(b"".join(stream.answers), np.float32) for stream in streams])
    return Run(
        answers,
        count / seconds,
        statistics["inference_count"] / statistics["execution_count"],
        spent / count * 1e6,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=tuple(STEPS), default="openvino")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(
        f"backline {backline.__version__}; "
        + ", ".join(f"{name} {value}" for name, value in machine().items())
    )
    print(
        f"silero_vad by {given.backend}, {given.streams} streams of {given.chunks} chunks,"
        " half over HTTP, half over gRPC"
    )
    sound = audio(given.streams, given.chunks)
    began = time.perf_counter()
    expected = one_by_one(given.backend, sound)
    print(
        f"one stream after the other, no server "
        f" {sound.shape[0] * sound.shape[1] / (time.perf_counter() - began):8.0f} chunks/s"
    )
    runs: dict[int, list[Run]] = {1: [], given.batch: []}
    same = True
    for number in range(given.rounds):
        for batch in (1, given.batch) if number % 2 == 0 else (given.batch, 1):
            found = measure(given.backend, batch, sound)
            runs[batch].append(found)
            identical = np.array_equal(found.answers, expected)
            same = same and identical
            print(
                f"max_batch_size {batch:3}                     {found.rate:8.0f} chunks/s,"
                f" batches of {found.batch:5.1f},"
                f" {found.cpu_us:4.0f} us of processor time, bit-identical: {identical}",
                flush=True,
            )
    ratio = median(large.rate / small.rate for large, small in zip(runs[given.batch], runs[1], strict=True))
    average = min(found.batch for found in runs[given.batch])
    holds = same and average >= LEAST_BATCH and ratio >= LEAST_RATIO
    print(
        f"{'holds' if holds else 'MISSED'}: {ratio:.2f} times the throughput (at least {LEAST_RATIO:g}),"
        f" batches of {average:.1f}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
