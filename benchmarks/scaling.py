"""Simulates how many servers an autoscaler runs: by Backline's signal, and by CPU as is usual in Kubernetes.

`python benchmarks/scaling.py` prints a table for several loads; `--plot scaling.png` also draws them. A
simulated server has eight instances of a model that takes 50 ms, and a queue of 400 requests. The autoscaler
checks the load every 15 s, and a new server is ready after 20 s. Nothing is measured, so the table is the
same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import click

from backline.observe.scaling import DemandCounters, Scaling, ScalingPolicy, replicas

#: The number of requests that a server runs at once, and the seconds that each takes.
INSTANCES, RUN_SECONDS = 8, 0.05
CAPACITY = INSTANCES / RUN_SECONDS
#: Times in seconds: of a simulation step, between two checks of the autoscaler, until a new server is ready,
#: and of the whole simulation.
STEP, LOOK, START, DURATION = 1, 15, 20, 3600
MOST = 40
LONGEST_QUEUE = 400
#: The autoscaler of Kubernetes by CPU: the target, the tolerance, and the seconds before a smaller number of
#: servers takes effect.
CPU_TARGET, CPU_TOLERANCE, CPU_STABILIZATION = 0.8, 0.1, 300

LOADS: dict[str, Callable[[int], float]] = {
    "constant": lambda second: 500,
    "step": lambda second: 200 if second < 600 else 2000,
    "ramp": lambda second: 200 + 1800 * min(second / 1800, 1),
    "day": lambda second: 1000 - 800 * math.cos(2 * math.pi * second / DURATION),
    "spikes": lambda second: 2000 if second % 900 < 60 else 400,
}


@dataclass
class SimulatedServer:
    """A server with a queue in front of its instances. `ready_at` is the time in seconds at which it is
    ready.
    """

    ready_at: int
    scaling: Scaling = field(default_factory=lambda: Scaling(ScalingPolicy(INSTANCES * 0.8)))
    waiting: float = 0.0
    request_seconds: float = 0.0
    busy: float = 0.0

    def run(self, arrived: float) -> float:
        """Runs one step. Returns how many requests the server had to refuse."""
        self.waiting += arrived
        done = min(self.waiting, CAPACITY * STEP)
        self.waiting -= done
        refused = max(self.waiting - LONGEST_QUEUE, 0.0)
        self.waiting -= refused
        self.busy = done / (CAPACITY * STEP)
        # Each request that has run spent the time of its run in the server; each waiting request spent this
        # step.
        self.request_seconds += done * RUN_SECONDS + self.waiting * STEP
        return refused


@dataclass
class Outcome:
    """The results of an hour: the server hours, those beyond need, the maximum wait in seconds, and the
    number of refused requests.
    """

    hours: float = 0.0
    spare_hours: float = 0.0
    longest_wait: float = 0.0
    refused: float = 0.0
    changes: int = 0
    #: The number of servers that were needed, and that were running, at each step.
    needed: list[int] = field(default_factory=list)
    servers: list[int] = field(default_factory=list)


def by_signal(servers: list[SimulatedServer], second: int) -> int:
    signals = [
        one.scaling.read(second, DemandCounters(one.request_seconds), int(one.waiting)) for one in servers
    ]
    return replicas(signals, 1, MOST)


def by_cpu() -> Callable[[list[SimulatedServer], int], int]:
    """Returns the rule of the HorizontalPodAutoscaler with its default tolerance and stabilization."""
    wanted: list[tuple[int, int]] = []

    def look(servers: list[SimulatedServer], second: int) -> int:
        ratio = sum(one.busy for one in servers) / len(servers) / CPU_TARGET
        now = len(servers) if abs(ratio - 1) <= CPU_TOLERANCE else math.ceil(len(servers) * ratio)
        wanted.append((second, now))
        recent = [number for moment, number in wanted if moment > second - CPU_STABILIZATION]
        held = now if now >= len(servers) else min(max(recent), len(servers))
        return min(max(held, 1), MOST)

    return look


def simulate(load: Callable[[int], float], decide: Callable[[list[SimulatedServer], int], int]) -> Outcome:
    first = math.ceil(load(0) / CAPACITY / 0.8)
    servers = [SimulatedServer(0) for _ in range(first)]
    outcome = Outcome()
    numbers = [first]
    for second in range(0, DURATION, STEP):
        ready = [one for one in servers if one.ready_at <= second]
        for one in ready:
            outcome.refused += one.run(load(second) * STEP / len(ready))
        outcome.longest_wait = max(outcome.longest_wait, *(one.waiting / CAPACITY for one in ready))
        needed = math.ceil(load(second) / CAPACITY)
        outcome.needed.append(needed)
        outcome.servers.append(len(servers))
        outcome.hours += len(servers) * STEP / 3600
        outcome.spare_hours += max(len(servers) - needed, 0) * STEP / 3600
        if second % LOOK == 0:
            starting = len(servers) - len(ready)
            wanted = max(decide(ready, second), 1)
            if wanted > len(ready) + starting:
                servers += [SimulatedServer(second + START) for _ in range(wanted - len(servers))]
            elif wanted < len(ready) and not starting:
                servers = servers[:wanted]
            numbers.append(len(servers))
    outcome.changes = sum(before != after for before, after in pairwise(numbers))
    return outcome


def outcomes() -> Iterator[tuple[str, str, Outcome]]:
    """Yields the name of each load, the rule, and the outcome."""
    for name, load in LOADS.items():
        for rule, decide in (("signal", by_signal), ("CPU", by_cpu())):
            yield name, rule, simulate(load, decide)


def rows() -> Iterator[str]:
    for name, rule, found in outcomes():
        yield (
            f"| {name} | {rule} | {found.hours:.1f} | {found.spare_hours:.1f} |"
            f" {found.longest_wait:.1f} | {found.refused:.0f} | {found.changes} |"
        )


def draw(path: Path) -> None:
    """Writes a picture with a panel for each load, which shows how many servers were needed and how many were
    running.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(LOADS), figsize=(3.4 * len(LOADS), 3.2), squeeze=False)
    panels = dict(zip(LOADS, axes[0], strict=True))
    for name, rule, found in outcomes():
        axis, minutes = panels[name], [second / 60 for second in range(0, DURATION, STEP)]
        if rule == "signal":
            axis.fill_between(minutes, found.needed, step="post", color="0.85", label="needed")
        axis.step(minutes, found.servers, where="post", label=f"by {rule}")
        axis.set_title(name)
        axis.set_xlabel("minutes")
    axes[0][0].set_ylabel("servers")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


@click.command()
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw the numbers of servers, as a PNG.")
def main(plot: Path | None) -> None:
    """Print a table of simulated loads."""
    if plot is not None:
        draw(plot)
    print("| load | by | server hours | beyond need | longest wait s | refused | changes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows():
        print(row)


if __name__ == "__main__":
    main()
