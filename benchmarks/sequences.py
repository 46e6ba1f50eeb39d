"""Stateful speech detection: `python benchmarks/sequences.py` streams interleaved audio to silero_vad, batched and not.

Every stream sends its next chunk when the last one was answered, over HTTP and gRPC at once, one half each. The answers are compared bit by
bit with those of ONNX Runtime run on one stream after the other. Prints the throughput, the average batch and the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import backline
from backline.client.aio import AsyncClient
from backline.client.options import ClientOptions

CONFIG = """
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
#: 32 ms of audio at 16 kHz, and the 64 samples before it.
CHUNK = 576


def model_file() -> Path:
    distribution = importlib.metadata.distribution("silero-vad")
    return Path(str(distribution.locate_file("silero_vad/data/silero_vad.onnx")))


def write_model(repository: Path, batch: int) -> None:
    folder = repository / "vad" / "1"
    folder.mkdir(parents=True)
    shutil.copy(model_file(), folder / "model.onnx")
    (repository / "vad" / "model.toml").write_text(CONFIG.format(batch=batch))


def audio(streams: int, chunks: int) -> np.ndarray:
    noise = np.random.default_rng(7).standard_normal((streams, chunks, 1, CHUNK)).astype(np.float32)
    return noise * np.linspace(0.01, 0.5, streams, dtype=np.float32)[:, None, None, None]


def one_by_one(sound: np.ndarray) -> np.ndarray:
    """What ONNX Runtime says to each stream alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model_file()), options, providers=["CPUExecutionProvider"])
    answers = np.empty((*sound.shape[:2], 1, 1), np.float32)
    for stream, chunks in enumerate(sound):
        state = np.zeros((2, 1, 128), np.float32)
        for index, chunk in enumerate(chunks):
            answers[stream, index], state = session.run(None, {"input": chunk, "state": state, "sr": np.array(16000, np.int64)})
    return answers


async def stream_all(port: int, sound: np.ndarray) -> tuple[np.ndarray, float, dict]:
    streams, chunks = sound.shape[:2]
    answers = np.empty((streams, chunks, 1, 1), np.float32)
    options = ClientOptions(timeout=120)
    async with AsyncClient(f"http://127.0.0.1:{port}", options) as http, AsyncClient(f"grpc://127.0.0.1:{port}", options) as grpc:
        await http.wait_ready(60)

        async def talk(client: AsyncClient, stream: int) -> None:
            async with client["vad"].sequence(stream + 1) as say:
                for index in range(chunks):
                    answers[stream, index] = (await say(sound[stream, index], end=index == chunks - 1))["output"]

        began = time.perf_counter()
        await asyncio.gather(*(talk((http, grpc)[stream % 2], stream) for stream in range(streams)))
        seconds = time.perf_counter() - began
        (statistics,) = await http["vad"].statistics()
    return answers, seconds, statistics


def measure(batch: int, sound: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The answers, chunks a second, and the average batch."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), batch)
        command = [sys.executable, "-m", "backline", "serve", folder, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            port = _port(process)
            answers, seconds, statistics = asyncio.run(stream_all(port, sound))
        finally:
            process.terminate()
            process.wait(30)
    count = sound.shape[0] * sound.shape[1]
    return answers, count / seconds, int(statistics["inference_count"]) / int(statistics["execution_count"])


def _port(process: subprocess.Popen[str]) -> int:
    import re

    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        found = re.search(r"http://[^\s:]+:(\d+)", line)
        if found:
            return int(found[1])
    raise SystemExit(f"the server ended:\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    sound = audio(given.streams, given.chunks)
    began = time.perf_counter()
    expected = one_by_one(sound)
    alone = sound.shape[0] * sound.shape[1] / (time.perf_counter() - began)
    print(
        f"backline {backline.__version__}, {platform.machine()}, {os.cpu_count()} cores, {given.streams} streams of {given.chunks} chunks"
    )
    print(f"ONNX Runtime in a loop, no server   {alone:8.0f} chunks/s")
    rates = {}
    for batch in (1, given.batch):
        answers, rates[batch], size = measure(batch, sound)
        same = np.array_equal(answers, expected)
        print(f"max_batch_size {batch:3}                  {rates[batch]:8.0f} chunks/s, batches of {size:5.1f}, bit-identical: {same}")
    print(f"ratio {rates[given.batch] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
