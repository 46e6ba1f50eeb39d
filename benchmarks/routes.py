"""Measures what a route adds to a request in the engine: `python benchmarks/routes.py`.

Each decision is timed as a whole: choosing the target, naming it in the request, and counting. The exit
status is 1 if the median of a policy without a fallback is above MOST_NS.
"""

from __future__ import annotations

import sys
from statistics import median
from time import perf_counter_ns

import click
from harness.machine import machine

from backline.engine.engine import Engine
from backline.engine.ticket import Ticket
from backline.plugins.traffic.counts import Counters
from backline.plugins.traffic.front import RouteFront
from backline.plugins.traffic.route import Bandit, Route, Rule
from backline_client.values.messages import InferRequest

MOST_NS = 2_000
ROUND = 1_000
ROUTES = {
    "weights": Route({"m@1": 95, "m@2": 5}),
    "weights over 32 targets": Route({f"m@{number}": 1 + number for number in range(32)}),
    "a rule by header, then weights": Route({"m@1": 95, "m@2": 5}, [Rule({"header:x-tier": "beta"}, "m@2")]),
    "bandit, epsilon-greedy": Route({"m@1": 1, "m@2": 1}, bandit=Bandit("epsilon-greedy")),
    "bandit, Thompson sampling": Route({"m@1": 1, "m@2": 1}, bandit=Bandit("thompson")),
    "bandit, UCB1": Route({"m@1": 1, "m@2": 1}, bandit=Bandit("ucb")),
    "sticky, known clients": Route({"m@1": 95, "m@2": 5}, sticky="header:x-user"),
}


class AllServed(Engine):
    """An engine that would serve any version, so that only the route is measured."""

    def serves(self, name: str, version: str) -> bool:
        return (name, version) not in self._routes


def decision_ns(route: Route, rounds: int) -> float:
    """Returns the median time of a decision, in nanoseconds, over rounds of ROUND requests."""
    engine = AllServed()
    front = RouteFront("m", route, engine, Counters(engine.custom_metrics))
    times = []
    for _ in range(rounds):
        tickets = [Ticket(InferRequest("m", {}), lambda *_: None) for _ in range(ROUND)]
        for number, ticket in enumerate(tickets):
            ticket.fields = {b"x-user": b"user-%d" % number, b"x-tier": b"stable"}
        began = perf_counter_ns()
        for ticket in tickets:
            front.take(ticket)
        times.append((perf_counter_ns() - began) / ROUND)
    return median(times)


@click.command()
@click.option("--rounds", default=200, show_default=True)
def main(rounds: int) -> None:
    """Measures the decisions of routes."""
    for name, value in machine().items():
        click.echo(f"{name}: {value}")
    slow = False
    for name, route in ROUTES.items():
        taken = decision_ns(route, rounds)
        slow = slow or taken > MOST_NS
        click.echo(f"{name:32} {taken:6.0f} ns a request")
    sys.exit(int(slow))


if __name__ == "__main__":
    main()
