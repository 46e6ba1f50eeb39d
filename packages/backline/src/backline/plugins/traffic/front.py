"""Applies the policy of a route to requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import random

from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.engine.ticket import Ticket
from backline.plugins.traffic.bandit import Chooser
from backline.plugins.traffic.counts import Counters, Target
from backline.plugins.traffic.fallback import FallbackRun
from backline.plugins.traffic.feedback import Sent
from backline.plugins.traffic.guard import Violation
from backline.plugins.traffic.policy import Policy
from backline.plugins.traffic.rollout import RolloutRun
from backline.plugins.traffic.route import Rollout, Route, Source, copies_of, targets_of
from backline.plugins.traffic.shadow import Mirror
from backline_client.values.messages import InferRequest

#: The maximum number of open sequences whose targets a route remembers; above it, the oldest are forgotten.
_MOST_SEQUENCES = 65_536


class RouteFront:
    """Serves the requests for a route. A change of the route applies to all requests that follow."""

    def __init__(
        self,
        name: str,
        route: Route,
        engine: Engine,
        counters: Counters,
        end_rollout: Callable[[Rollout, Violation | None], None] = lambda *_: None,
    ) -> None:
        """`end_rollout` is called when a rollout of the route ends, with the violation of its guard or
        None.
        """
        self._end_rollout = end_rollout
        self._name = name
        self._engine = engine
        self._counters = counters
        #: The targets of open sequences, by caller and sequence.
        self._sequences: dict[tuple[str, int | str], str] = {}
        #: The requests to which clients may give feedback.
        self.sent = Sent()
        self.mirror: Mirror | None = None
        #: The rollout in progress.
        self.run: RolloutRun | None = None
        self.change(route)

    def change(self, route: Route) -> None:
        names = targets_of(route)
        self.policy = Policy(route)
        self.by_name = {name: Target(name, self._counters.of(self._name, name), self.sent) for name in names}
        arms = {name: self.by_name[name].counts for name, weight in route.targets.items() if weight > 0}
        self._bandit = (
            None
            if route.bandit is None
            else Chooser(route.bandit, lambda: {name: counts.arm for name, counts in arms.items()})
        )
        self.targets: Sequence[tuple[str, str]] = [(one.model, one.version) for one in self.by_name.values()]
        #: The targets to use, in this order, instead of one that cannot respond.
        self._others = [
            self.by_name[name] for name in (*route.fallback, *names) if name not in _unused(route)
        ]
        self._fallback = [self.by_name[name] for name in route.fallback]
        self._timeout = route.timeout_ms / 1e3
        copies = copies_of(route)
        self._counters.forget(self._name, names if copies is None else [*names, copies.to])
        if copies is None:
            self.mirror = None
        elif self.mirror is None or self.mirror.shadow != copies:
            counts = self._counters.of_shadow(self._name, copies.to)
            self.mirror = Mirror(self._engine, copies, counts)
        self._roll(route.rollout)

    def _roll(self, rollout: Rollout | None) -> None:
        """Begins a rollout, unless it is the one in progress, which continues."""
        if self.run is not None and self.run.rollout != rollout:
            self.run.close()
            self.run = None
        if self.mirror is not None:
            self.mirror.observe = None
        if rollout is None:
            return
        if self.run is None:
            self.run = RolloutRun(rollout, self._engine, partial(self._end_rollout, rollout))
        for target in self.by_name.values():
            target.observe = self.run.served if target.name == rollout.to else self.run.based
        if self.mirror is not None:
            self.mirror.observe = self.run.copied

    def reward(self, target: str, reward: float) -> None:
        """Counts a reward. Has no effect if the route no longer has the target."""
        known = self.by_name.get(target)
        if known is not None:
            known.counts.reward(reward)
            if self._bandit is not None:
                self._bandit.rewarded()

    def close(self) -> None:
        self._roll(None)
        self._counters.forget(self._name)

    def take(self, ticket: Ticket) -> bool:
        """Chooses the target of a request; see Front.take."""
        request = ticket.request
        target = self._target(ticket, request)
        if self.mirror is not None and self.mirror.shadow.to != target.name:
            self.mirror.follow(ticket, request)
        fallback = self._fallback
        if self.run is not None and target.name == self.run.rollout.to:
            # Clients must not meet the errors of the new version.
            fallback = [self.by_name[self.policy.by_weight(random())], *fallback]
        if fallback and request.sequence is None:
            further = [one for one in dict.fromkeys(fallback) if one is not target]
            FallbackRun(self._engine.submit, ticket, [target, *further], self._timeout).start()
            return True
        ticket.request = replace(request, model_name=target.model, model_version=target.version)
        target.follow(ticket)
        return False

    def _target(self, ticket: Ticket, request: InferRequest) -> Target:
        if request.sequence is not None:
            target = self._of_sequence(ticket, request)
        elif self.policy.plain and self._bandit is None and self.run is None:
            target = self.by_name[self.policy.by_weight(random())]
        else:
            target = self.by_name[self._chosen(ticket)]
        if not self._engine.serves(target.model, target.version):
            for other in self._others:
                if self._engine.serves(other.model, other.version):
                    return other
        return target

    def _chosen(self, ticket: Ticket) -> str:
        def read(source: Source) -> str | None:
            return _value(ticket, source)

        ruled = self.policy.by_rule(read)
        if ruled is not None:
            return ruled
        run = None if ticket.request.sequence is not None else self.run
        if run is not None and self.policy.in_share(read, run.share, random()):
            return run.rollout.to
        if self._bandit is not None:
            return self._bandit.choose()
        return self.policy.without_rules(read, random())

    def _of_sequence(self, ticket: Ticket, request: InferRequest) -> Target:
        """Returns the target of a sequence: that of its first request, as long as the route has it."""
        step = request.sequence
        assert step is not None, "the caller has checked it"
        key = (ticket.identity, step.id)
        name = "" if step.start else self._sequences.get(key, "")
        target = self.by_name.get(name) or self.by_name[self._chosen(ticket)]
        if step.end:
            self._sequences.pop(key, None)
        elif step.start:
            if len(self._sequences) >= _MOST_SEQUENCES:
                del self._sequences[next(iter(self._sequences))]
            self._sequences[key] = target.name
        return target


def _unused(route: Route) -> set[str]:
    """Returns the targets that only rules or fallbacks name, or whose weight is 0."""
    return (
        set(targets_of(route))
        - {one for one, weight in route.targets.items() if weight > 0}
        - set(route.fallback)
    )


def _value(ticket: Ticket, source: Source) -> str | None:
    """Returns what a request has at a source; None if it has nothing there."""
    match source.kind:
        case "header":
            found = None if ticket.fields is None else ticket.fields.get(source.name.encode())
            return None if found is None else found.decode("latin-1")
        case "parameter":
            value = (ticket.request.parameters or {}).get(source.name)
            return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        case _:
            return ticket.identity or None
