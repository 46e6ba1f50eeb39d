"""Makes changes under constant load and reports what the load saw."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass
from statistics import median

import backline
from support.server import ServerProcess
from under_load.changes import Deployment
from under_load.constant_load import Answer, ConstantLoad

TARGETS = ("", "stable", "canary")
#: Seconds of load before the first change, as the baseline.
BEFORE = 4.0


@dataclass
class Outcome:
    """Results of a run. Latencies are medians in seconds."""

    changes: Counter[str]
    seconds: float
    answers: int
    errors: list[Answer]
    wrong: list[tuple[Answer, set[float]]]
    constants: int
    latency_before: float
    latency_during: float

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in self.changes.items())
        return (
            f"{sum(self.changes.values())} changes in {self.seconds:.1f} s ({kinds});"
            f" {self.answers} answers of {self.constants} different networks, {len(self.errors)} errors,"
            f" {len(self.wrong)} wrong; median latency {self.latency_before * 1e3:.2f} ms before,"
            f" {self.latency_during * 1e3:.2f} ms during"
            f" ({self.latency_during / self.latency_before:.2f} times)"
        )


async def change_under_load(
    server: ServerProcess, deployment: Deployment, changes: int, rate: float = 200.0
) -> Outcome:
    """Makes `changes` under `rate` requests a second, to a deployment that is already served."""
    await deployment.label_first()
    load = ConstantLoad(f"127.0.0.1:{server.http_port}", f"127.0.0.1:{server.grpc_port}", rate, TARGETS)
    stop = asyncio.Event()
    sending = asyncio.create_task(load.run(stop))
    made: Counter[str] = Counter()
    try:
        await asyncio.sleep(BEFORE)
        began = time.monotonic()
        for step, _ in zip(itertools.cycle(deployment.steps()), range(changes), strict=False):
            await step()
            made[getattr(step, "__name__", "moved_label").replace("<lambda>", "moved_label")] += 1
        ended = time.monotonic()
    finally:
        stop.set()
        await sending
    return judge(load.answers, deployment, made, began, ended)


def judge(
    answers: list[Answer], deployment: Deployment, made: Counter[str], began: float, ended: float
) -> Outcome:
    errors = [answer for answer in answers if answer.error]
    wrong = []
    for answer in answers:
        allowed = deployment.timeline.allowed(answer.target, answer.sent, answer.answered)
        if not answer.error and answer.constant not in allowed:
            wrong.append((answer, allowed))
    # The first second is left out: it includes connecting.
    before = [answer.latency for answer in answers if began - BEFORE / 2 < answer.sent < began]
    during = [answer.latency for answer in answers if began <= answer.sent <= ended]
    return Outcome(
        made,
        ended - began,
        len(answers),
        errors,
        wrong,
        len({answer.constant for answer in answers if not answer.error}),
        median(before),
        median(during),
    )


def run(server: ServerProcess, deployment: Deployment, changes: int) -> Outcome:
    """A whole run against a server of the deployment's initial state."""

    async def whole() -> Outcome:
        async with backline.connect_async(server.url) as client:
            deployment.client = client
            return await change_under_load(server, deployment, changes)

    return asyncio.run(whole())
