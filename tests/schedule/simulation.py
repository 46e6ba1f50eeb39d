"""A server with a latency objective in simulated time: real policies, random load, runs of `a * n + b`
seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from msgspec.structs import replace

from backline.engine.config.model_config import QueuePolicy
from backline.engine.ticket import Ticket
from backline.schedule.objective.policy import Outlook
from backline.schedule.objective.queue import ObjectiveQueue
from backline.schedule.queues.queue import QueueSettings
from schedule.tickets import ticket


@dataclass(frozen=True)
class Machine:
    """`instances` that run up to `most` items in `a * n + b` seconds, with some `noise`, under an
    `objective` in seconds.
    """

    a: float
    b: float
    most: int
    instances: int
    objective: float
    noise: float = 0.05

    @property
    def capacity(self) -> float:
        """Items per second in the largest batches that meet the objective."""
        sizes = [n for n in range(1, self.most + 1) if self.a * n + self.b <= self.objective]
        return max(self.instances * n / (self.a * n + self.b) for n in sizes)


@dataclass
class Fates:
    """The outcomes of requests; `late` ones completed but missed the objective."""

    latencies: list[float] = field(default_factory=list)
    good: int = 0
    late: int = 0
    refused: int = 0
    given_up: int = 0
    batches: list[int] = field(default_factory=list)

    @property
    def p99(self) -> float:
        return sorted(self.latencies)[int(0.99 * len(self.latencies))]


def simulate(
    machine: Machine,
    load: float,
    *,
    seconds: float = 10.0,
    seed: int = 1,
    make: Callable[[random.Random], Ticket] = lambda _: ticket(),
) -> Fates:
    """Poisson arrivals at `load` times the capacity."""
    chance = random.Random(seed)
    rate = load * machine.capacity
    outlook = Outlook({n: machine.a * n + machine.b for n in (1, 2, 4, 8, 16, 32, 64) if n <= machine.most})
    queue = ObjectiveQueue(QueueSettings(QueuePolicy(10**6), 3, 2), 0.95 * machine.objective, outlook)
    idle = list(range(machine.instances))
    fates = Fates()
    events: list[tuple[float, int, tuple[int, list[Ticket], float] | None]] = [(0.0, 0, None)]
    count = 0

    def dispatch(now: float) -> None:
        nonlocal count
        while idle and queue.size:
            tickets, items = queue.take(machine.most, now)
            fates.given_up += len(queue.expired)
            queue.expired.clear()
            if not tickets:
                return
            instance = idle.pop()
            outlook.started(instance, now, 0, items)
            fates.batches.append(items)
            count += 1
            took = (machine.a * items + machine.b) * chance.lognormvariate(0, machine.noise)
            heappush(events, (now + took, count, (instance, tickets, now)))

    while events:
        now, _, ended = heappop(events)
        if ended is None:
            arrived = make(chance)
            arrived.request = replace(arrived.request, arrived_ns=round(now * 1e9))
            late = queue.lateness(arrived, outlook.free(now, len(idle)), machine.most)
            if late > 0 and (queue.size or not idle):
                fates.refused += 1
            else:
                queue.add(arrived)
            count += 1
            if now < seconds:
                heappush(events, (now + chance.expovariate(rate), count, None))
        else:
            instance, tickets, began = ended
            idle.append(instance)
            expected = outlook.ended(instance)
            outlook.latency.learn(0, sum(one.batch_size for one in tickets), now - began)
            assert expected is not None
            outlook.slipped(now - expected)
            for one in tickets:
                latency = now - one.request.arrived_ns / 1e9
                fates.latencies.append(latency)
                fates.good += latency <= machine.objective
                fates.late += latency > machine.objective
        dispatch(now)
    return fates
