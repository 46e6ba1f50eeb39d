"""A route as people write it, in TOML or JSON, and the checks that it must pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, Literal

from msgspec import Struct

from backline.plugins.traffic.guard import parse_guard
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import fault_in_name

MOST_TARGETS: Final = 32
MOST_RULES: Final = 64
MOST_VALUES: Final = 256
MOST_COPIES: Final = 256
MOST_STEPS: Final = 32
_LONGEST_BAKE = 30 * 24 * 3600
_MOST_REQUESTS = 1_000_000
_LONGEST_VALUE = 256
_LONGEST_TIMEOUT_MS = 3_600_000
#: Header fields that hold secrets, which must not be written into a route or shown with it.
_SECRET = frozenset(("authorization", "proxy-authorization", "cookie"))


@decodable
class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """Sends the requests to which all of `when` applies to the target `to`, whatever the weights say. `when`
    maps sources to the value, or the list of values, that a request must have.
    """

    when: dict[str, str | list[str]]
    to: str


@decodable
class Shadow(Struct, frozen=True, forbid_unknown_fields=True):
    """Sends copies of a `share` of the requests to the target `to`, at most `max_in_flight` at a time, and
    compares the responses.
    """

    to: str
    share: float = 1.0
    max_in_flight: int = 4


@decodable
class Bandit(Struct, frozen=True, forbid_unknown_fields=True):
    """Lets rewards decide between the targets in place of their weights. `epsilon` is the share of requests
    that epsilon-greedy sends to random targets.
    """

    policy: Literal["epsilon-greedy", "thompson", "ucb"]
    epsilon: float = 0.1


@decodable
class Rollout(Struct, frozen=True, forbid_unknown_fields=True):
    """Raises the share of the target `to` step by step, in place of the route's other targets, as long as
    it keeps to the `guard`.

    `steps` are shares in percent; at 0, the target gets only copies. A step lasts at least `bake_seconds`,
    and until the target has had `requests` requests or copies. `mirror` is the share of the other requests of
    which it gets copies, at most `max_in_flight` at a time.
    """

    to: str
    guard: str
    steps: tuple[float, ...] = (0.0, 1.0, 5.0, 25.0, 50.0)
    bake_seconds: float = 60.0
    requests: int = 100
    mirror: float = 1.0
    max_in_flight: int = 4


@decodable
class Route(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the requests for one name are spread.

    `targets` maps targets to weights. A target is MODEL or MODEL@VERSION, where VERSION may be a label.
    `sticky` is a source: requests with equal values go to the same target. If a target fails, or takes longer
    than `timeout_ms`, the request goes to the targets in `fallback`, one after the other.
    """

    targets: dict[str, float]
    rules: list[Rule] = []
    sticky: str = ""
    fallback: list[str] = []
    timeout_ms: float = 0.0
    shadow: Shadow | None = None
    bandit: Bandit | None = None
    rollout: Rollout | None = None


class Source(Struct, frozen=True):
    """Where a request has a value: `kind` is "header", "parameter" or "identity", and `name` the name of the
    header field or parameter.
    """

    kind: str
    name: str = ""


def parse_source(text: str) -> Source:
    """Reads "header:NAME", "parameter:NAME" or "identity". Raises InvalidArgument for any other text."""
    kind, colon, name = text.partition(":")
    if text == "identity":
        return Source("identity")
    if kind not in ("header", "parameter") or not colon or not name or len(name) > _LONGEST_VALUE:
        raise InvalidArgument(
            f"'{text[:64]}' names no part of a request: expected identity, header:NAME or parameter:NAME"
        )
    if kind == "header":
        name = name.lower()
        if not name.isascii() or name in _SECRET:
            raise InvalidArgument(
                f"the header field '{name[:64]}' cannot be used in a route, because it may hold a secret: use"
                " identity, which is the name of the caller's key, token or certificate"
                if name in _SECRET
                else f"'{name[:64]}' is not the name of a header field"
            )
    return Source(kind, name)


def split_target(target: str) -> tuple[str, str]:
    """Returns the model and the version or label of a target, such as "basic_pitch@4"; the version may be
    empty. Only the last @ counts. Raises InvalidArgument if no model or version can have this name.
    """
    model, at, version = target.rpartition("@") if "@" in target else (target, "", "")
    for what, name in (("model", model), ("version", version)):
        fault = fault_in_name(name) if what == "model" or at else ""
        if fault:
            raise InvalidArgument(
                f"target '{target[:64]}' must be MODEL or MODEL@VERSION, but the {what} {fault}"
            )
    return model, version


def targets_of(route: Route) -> list[str]:
    """Returns all targets of a route, those with the largest weights first, each once."""
    weighted = sorted(route.targets, key=lambda one: -route.targets[one])
    new = [] if route.rollout is None else [route.rollout.to]
    return list(dict.fromkeys((*weighted, *(rule.to for rule in route.rules), *route.fallback, *new)))


def copies_of(route: Route) -> Shadow | None:
    """Returns what copies a route makes, for a shadow or for a rollout."""
    rollout = route.rollout
    if rollout is None:
        return route.shadow
    return Shadow(rollout.to, rollout.mirror, rollout.max_in_flight) if rollout.mirror else None


def shadow_of(route: Route) -> list[str]:
    """Returns the target that gets copies of requests, if there is one."""
    return [] if route.shadow is None else [route.shadow.to]


def check_route(name: str, route: Route) -> None:
    """Raises InvalidArgument, saying where and what to do, if a route is not valid."""
    try:
        if fault := fault_in_name(name):
            raise InvalidArgument(f"the name {fault}")
        _check(route)
        for target in [*targets_of(route), *shadow_of(route)]:
            if split_target(target) == (name, ""):
                raise InvalidArgument(
                    f"target '{target}' is the route itself: name a version or label, as in {name}@stable"
                )
    except InvalidArgument as error:
        raise InvalidArgument(f"route '{name[:64]}': {error.message}") from None


def _check(route: Route) -> None:
    _check_count("targets", len(route.targets), MOST_TARGETS)
    _check_count("fallback", len(route.fallback), MOST_TARGETS)
    _check_count("rules", len(route.rules), MOST_RULES)
    for target, weight in route.targets.items():
        if not math.isfinite(weight) or weight < 0:
            raise InvalidArgument(f"the weight of '{target[:64]}' is {weight}: expected 0 or more")
    total = sum(route.targets.values())
    if not 0 < total < math.inf:
        raise InvalidArgument("targets: at least one must have a weight above 0, as in {'model@4': 1}")
    if route.sticky:
        parse_source(route.sticky)
    if not 0 <= route.timeout_ms <= _LONGEST_TIMEOUT_MS:  # also false for NaN
        raise InvalidArgument(f"timeout_ms is {route.timeout_ms}: expected 0 to {_LONGEST_TIMEOUT_MS}")
    if route.timeout_ms and not route.fallback:
        raise InvalidArgument("timeout_ms needs a fallback, to which requests go after that time")
    if route.shadow is not None:
        _check_shadow("shadow: ", route.shadow)
    if route.rollout is not None:
        _check_rollout(route, route.rollout)
    if route.bandit is not None:
        if route.sticky:
            raise InvalidArgument("a route has either 'sticky' or 'bandit', because both choose the target")
        if not 0 <= route.bandit.epsilon <= 1:
            raise InvalidArgument(f"bandit: epsilon is {route.bandit.epsilon}: expected 0 to 1")
    for number, rule in enumerate(route.rules, 1):
        try:
            _check_rule(rule)
        except InvalidArgument as error:
            raise InvalidArgument(f"rule {number}: {error.message}") from None


def _check_shadow(where: str, shadow: Shadow) -> None:
    if not 0 < shadow.share <= 1:  # also false for NaN
        raise InvalidArgument(f"{where}share is {shadow.share}: expected above 0, at most 1")
    if not 1 <= shadow.max_in_flight <= MOST_COPIES:
        raise InvalidArgument(f"{where}max_in_flight is {shadow.max_in_flight}: expected 1 to {MOST_COPIES}")


def _check_rollout(route: Route, rollout: Rollout) -> None:
    clauses = parse_guard(rollout.guard)
    if rollout.to in route.targets:
        raise InvalidArgument(f"rollout: '{rollout.to}' is among the targets already")
    if route.shadow is not None or route.bandit is not None:
        raise InvalidArgument("a route has only one of 'shadow', 'bandit' and 'rollout'")
    _check_count("steps", len(rollout.steps), MOST_STEPS)
    rising = all(one < other for one, other in pairwise(rollout.steps))
    if not rollout.steps or not rising or rollout.steps[0] < 0 or rollout.steps[-1] > 100:
        raise InvalidArgument("rollout: steps are percentages from 0 to 100, each above the one before")
    if rollout.mirror:
        _check_shadow("rollout: ", Shadow(rollout.to, rollout.mirror, rollout.max_in_flight))
    elif not rollout.steps[0] or any(clause.metric == "distance" for clause in clauses):
        raise InvalidArgument("rollout: the distance of outputs, and the step 0, need copies: set mirror")
    if not 0 <= rollout.bake_seconds <= _LONGEST_BAKE or not 1 <= rollout.requests <= _MOST_REQUESTS:
        raise InvalidArgument(
            f"rollout: expected bake_seconds from 0 to {_LONGEST_BAKE}, and requests from 1 to"
            f" {_MOST_REQUESTS}"
        )


def _check_rule(rule: Rule) -> None:
    if not rule.when:
        raise InvalidArgument("'when' is empty: name a header field, a parameter or identity, with a value")
    _check_count("when", len(rule.when), MOST_RULES)
    for source, given in rule.when.items():
        parse_source(source)
        values = values_of(given)
        _check_count(source, len(values), MOST_VALUES)
        if not values or any(len(value) > _LONGEST_VALUE for value in values):
            raise InvalidArgument(
                f"'{source}' needs a value, or several, of at most {_LONGEST_VALUE} characters"
            )


def _check_count(what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidArgument(f"{what[:64]} has {count} entries, more than the {most} allowed")


def values_of(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def check_cycles(routes: Mapping[str, Route]) -> None:
    """Raises InvalidArgument if requests to a route could come back to it through other routes."""
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            told = " -> ".join((*way[way.index(name) :], name))
            raise InvalidArgument(f"routes form a cycle, so requests would never arrive: {told}")
        if name in done or name not in routes:
            return
        for further in _unversioned([*targets_of(routes[name]), *shadow_of(routes[name])]):
            follow(further, (*way, name))
        done.add(name)

    for name in routes:
        follow(name, ())


def _unversioned(targets: Iterable[str]) -> list[str]:
    return [model for model, version in map(split_target, targets) if not version]
