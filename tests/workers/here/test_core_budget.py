"""Runs share the cores: never more than there are, in order, and no run waits for long."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from queue import SimpleQueue

import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading.run_time import measure
from backline.plugins.runtimes.reference.identity import Identity
from backline.system.cores import pinned
from backline.workers.batch import Batch
from backline.workers.here import execution
from backline.workers.here.execution import BudgetedExecution, CoreBudget
from backline_client.values.datatypes import DataType
from backline_client.values.signature import Signature, TensorSpec


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "PATIENCE", 20.0)


def start(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("cores", "threads", "at_once"),
    [(1, 1, 1), (2, 1, 2), (2, 2, 2), (4, 4, 2), (4, 0, 2), (3, 3, 1), (2, 8, 2)],
)
def test_runs_never_use_more_cores_than_there_are(cores: int, threads: int, at_once: int) -> None:
    lock = threading.Lock()
    now = most = 0

    def run(_: Batch) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.001)
        with lock:
            now -= 1

    execution = BudgetedExecution(run, CoreBudget(cores), threads)
    callers = [start(lambda: [execution(Batch([], 0, 0)) for _ in range(20)]) for _ in range(6)]
    for caller in callers:
        caller.join(20)

    assert 0 < most <= at_once


@pytest.mark.usefixtures("patient")
def test_runs_start_in_the_order_in_which_they_ask() -> None:
    budget = CoreBudget(2)
    begun: SimpleQueue[str] = SimpleQueue()
    budget.take(2)

    def run(name: str, cores: int) -> threading.Thread:
        waiting = len(budget._waiting)
        thread = start(lambda: (budget.take(cores), begun.put(name)))
        while len(budget._waiting) == waiting:
            time.sleep(0.001)
        return thread

    run("large", 2)
    run("small", 1)
    budget.give(1)  # enough for the small run, but it is not its turn
    assert begun.empty()
    budget.give(1)
    assert begun.get(timeout=10) == "large"
    budget.give(2)
    assert begun.get(timeout=10) == "small"


def test_runs_waiting_for_a_long_one_start_after_a_moment() -> None:
    budget = CoreBudget(1)
    budget.take(1)

    assert budget.take(1)  # returns although no core was freed

    budget.give(1)
    budget.give(1)
    assert not budget.take(1)


def test_an_abandoned_run_frees_its_cores_exactly_once() -> None:
    budget = CoreBudget(1)
    going, leave = threading.Event(), threading.Event()

    def hang(_: Batch) -> None:
        going.set()
        leave.wait(20)

    execution = BudgetedExecution(hang, budget, 1)
    batch = Batch([], 0, 0)
    thread = start(lambda: execution(batch))
    assert going.wait(20)

    execution.release(batch)
    assert not budget.take(1)
    leave.set()
    thread.join(20)

    assert budget.take(1)  # had to wait: the abandoned run had no cores left to free


class Computing:
    """Keeps a core busy for two milliseconds."""

    signature = Signature((TensorSpec("x", DataType.FP32, (1,)),), (TensorSpec("y", DataType.FP32, (1,)),))
    threads_per_run = 1
    warnings = ()

    def run(self, inputs, outputs) -> list[np.ndarray]:
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass
        return [inputs["x"]]

    def close(self) -> None:
        pass


def test_a_waiting_model_is_distinguished_from_a_computing_one() -> None:
    spec = (TensorSpec("x", DataType.FP32, (1,)),)
    sleeping = ModelConfig("m", inputs=spec, outputs=spec, parameters={"execute_delay_ms": "30"})

    assert measure(Identity().load(None, sleeping), 0).waits  # type: ignore[arg-type]  # it has no file
    assert not measure(Computing(), 0).waits


def test_a_model_that_computes_on_a_busy_core_does_not_look_as_if_it_waited() -> None:
    core = min(os.sched_getaffinity(0))
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(20)]
    try:
        for one in neighbours:
            os.sched_setaffinity(one.pid, {core})
        with pinned({core}):
            assert not measure(Computing(), 0).waits
    finally:
        for one in neighbours:
            one.kill()
            one.wait()
