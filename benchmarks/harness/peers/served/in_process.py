"""Measures how many items per second ONNX Runtime computes. Prints a JSON list with a number per setting.

Usage: `in_process.py MODEL.onnx INPUT SHAPE SECONDS BATCH,THREADS,CALLERS...`

For SECONDS, CALLERS threads share one session, which uses THREADS threads for each run of BATCH items.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import onnxruntime


def items_per_second(
    path: str, name: str, shape: list[int], seconds: float, batch: int, threads: int, callers: int
) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: np.full([batch, *shape[1:]], 0.1, np.float32)}
    try:
        session.run(None, feed)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument:
        return 0.0  # the model does not accept this batch size
    runs = [0] * callers
    barrier = threading.Barrier(callers + 1)
    ended = [0.0] * callers

    def call(caller: int) -> None:
        barrier.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            session.run(None, feed)
            runs[caller] += 1
        ended[caller] = time.perf_counter()

    workers = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    return sum(runs) * batch / (max(ended) - started)


if __name__ == "__main__":
    path, name, shape, seconds = sys.argv[1:5]
    dimensions = [int(dimension) for dimension in shape.split(",")]
    rates = []
    for setting in sys.argv[5:]:
        batch, threads, callers = map(int, setting.split(","))
        rates.append(items_per_second(path, name, dimensions, float(seconds), batch, threads, callers))
    print(json.dumps(rates))
