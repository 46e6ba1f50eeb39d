"""Runs ONNX Runtime without a server, at its best batch size and thread count, as an upper bound."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.metadata import version
from itertools import product

from harness.case import Case, Measurement
from harness.environment import CannotRun
from harness.folders import HARNESS
from harness.model import Model
from harness.peers.peer import Peer

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
#: The batch size, the threads per run and the number of concurrent runs.
Setting = tuple[int, int, int]


class InProcess(Peer):
    """ONNX Runtime in a process without a server. A sweep finds the best settings for each model; the best
    two run in every round, and the better one counts.

    With `one_caller`, runs are not concurrent: only the batch size and the number of threads vary.
    """

    name = "in-process"
    ways = frozenset({("http", "binary"), ("grpc", "binary")})
    setup = (
        "ONNX Runtime in a separate program, no server: "
        "the best of batch size x threads per run x concurrent runs"
    )

    def __init__(self, *, one_caller: bool = False) -> None:
        super().__init__()
        self.one_caller = one_caller
        self.best: dict[str, list[Setting]] = {}

    def start(self, models: list[Model]) -> None:
        cores = len(os.sched_getaffinity(0))
        most = 1 if self.one_caller else cores
        pairs = sorted(
            {
                (threads, callers)
                for threads in (1, cores)
                for callers in (1, most)
                if threads * callers <= cores
            }
        )
        for model in models:
            settings = [
                (batch, threads, callers) for batch, (threads, callers) in product(BATCH_SIZES, pairs)
            ]
            rates = self._run(model, settings, max(0.2, model.run_ms * 12 / 1000))
            ranked = sorted(zip(rates, settings, strict=True), reverse=True)
            self.best[model.name] = [setting for _, setting in ranked[:2]]
        self.versions = {name: version(name) for name in ("onnxruntime", "numpy")}

    def measures(self, case: Case) -> bool:
        # The result does not depend on the client, so one of the two gRPC load generators is enough.
        return super().measures(case) and (case.generator != "h2load" or case.model.large)

    def measure(self, case: Case, seconds: float) -> Measurement:
        settings = self.best[case.model.name]
        rate = max(self._run(case.model, settings, seconds / len(settings)))
        return Measurement(rate, math.nan, math.nan, round(rate * seconds))

    def remarks(self) -> list[str]:
        words = "best batch size, threads per run, concurrent runs"
        return [
            f"in-process, {name}: {words}: {' and '.join(map(str, best))}" for name, best in self.best.items()
        ]

    def check(self, case: Case) -> None:
        """Does nothing: this peer's answers are the reference."""

    def settle(self, case: Case) -> None:
        """Does nothing: the program has exited."""

    def _run(self, model: Model, settings: list[Setting], seconds: float) -> list[float]:
        described = [",".join(map(str, setting)) for setting in settings]
        shape = ",".join(map(str, model.shape))
        script = HARNESS / "peers" / "served" / "in_process.py"
        command = [
            sys.executable,
            str(script),
            str(model.file),
            model.input_name,
            shape,
            str(seconds),
            *described,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRun(f"ONNX Runtime failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
        return json.loads(done.stdout)
