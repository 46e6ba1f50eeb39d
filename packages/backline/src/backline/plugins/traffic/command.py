"""`backline traffic`: shows and changes the routes of a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import click
import msgspec

from backline.cli.command import CommandGroup, run
from backline.cli.connection import connection_options
from backline.cli.options import json_option
from backline.cli.table import print_table
from backline.plugins.traffic.route import Bandit, Rollout, Route, Shadow, check_route, targets_of
from backline.plugins.traffic.routes import read_routes
from backline_client.client.aio import AsyncClient
from backline_client.client.control import USER_HEADER, user_name
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.values.errors import InvalidArgument, NotFound
from backline_client.values.names import printable

_EPILOG = """\b
Examples:
  backline traffic split basic_pitch basic_pitch@4=95 basic_pitch@5=5
  backline traffic show basic_pitch
  backline traffic promote basic_pitch basic_pitch@5
  backline traffic rollback basic_pitch"""

_SPLIT_EPILOG = """\b
Examples:
  backline traffic split basic_pitch basic_pitch@4=95 basic_pitch@5=5
  backline traffic split notes basic_pitch@stable=1 --fallback basic_pitch@4 --timeout-ms 200
  backline traffic split notes basic_pitch=1 crepe=1 --sticky header:x-user

Weights need not add up to 100. Options that are not given, and the rules of the route, stay as they are."""

_ROLLOUT_EPILOG = """\b
Examples:
  backline traffic rollout basic_pitch 5 --guard "errors<1%, p99<1.3x, distance<0.02"
  backline traffic rollout basic_pitch 5 --guard "errors<0.1%" --steps 1,10,50 --bake 600 --wait

Clauses of a guard, each for the new version:
  errors<1%      the share of requests that fail
  distance<0.02  the mean distance of outputs from the base's, on copies
  p99<1.3x       the 99th percentile of the latency, as a multiple of the base's; any percentile
  memory<1.5x    the memory of a worker process, as a multiple of that at the start"""

#: Seconds between two looks at a rollout.
_LOOK_SECONDS = 1.0

expect_option = click.option(
    "--expect",
    type=int,
    metavar="REVISION",
    help="Do nothing unless the route has this revision; 0 means that no request has changed it.",
)


class _Server:
    """The routes of a server, over HTTP."""

    def __init__(self, transport: HttpTransport, url: str, timeout: float) -> None:
        self._transport = transport
        self._url = url
        self._timeout = timeout

    async def ask(self, method: str, name: str = "", end: str = "", document: object = None) -> Any:
        """Sends a request and returns the JSON document in the response. Raises BacklineError on failure."""
        path = f"/v2/routes{'/' if name else ''}{quote(name, safe='')}{end}".encode()
        body = b"" if document is None else msgspec.json.encode(document)
        fields = f"{USER_HEADER}: {user_name()}\r\n".encode()
        answer = await self._transport.exchange(method.encode(), path, self._timeout, body, fields)
        if answer.status != 200:
            error = self._transport.failure(answer)
            if error.message.startswith(("Not Found", "Method Not Allowed")):
                raise InvalidArgument(
                    f"{self._url} has no routes: this needs a Backline server with the dialect 'routes'"
                )
            raise error
        return self._transport.document(path, answer)

    async def route(self, name: str) -> tuple[Route | None, int]:
        """Returns a route and its revision; None and 0 if there is no such route."""
        try:
            found = await self.ask("GET", name)
        except NotFound:
            return None, 0
        return msgspec.convert(found["route"], Route), found["revision"]


def _with(url: str, options: ClientOptions, work: Callable[[_Server], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        async with AsyncClient(url, options) as client:
            transport = await client.transport()
            if not isinstance(transport, HttpTransport):
                raise InvalidArgument(f"routes are changed over HTTP: use http://HOST:PORT instead of {url}")
            return await work(_Server(transport, url, options.timeout))

    return run(main())


@click.group("traffic", cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """Show and change how routes spread requests over versions, labels and models."""


@command.command("show")
@click.argument("name", required=False)
@json_option()
@connection_options
def show(url: str, options: ClientOptions, name: str | None, as_json: bool) -> None:
    """Show the routes of a server, or one route, with what their targets have answered."""
    if name is None:
        routes = _with(url, options, lambda server: server.ask("GET"))["routes"]
    else:
        routes = [_with(url, options, lambda server: server.ask("GET", name))]
    if as_json:
        print(json.dumps(routes if name is None else routes[0]))
    elif not routes:
        print("no routes. Make one: backline traffic split NAME MODEL@VERSION=WEIGHT...")
    else:
        head = ("route", "revision", "target", "share", "serves", "requests", "failures", "mean ms")
        print_table(head, [row for route in routes for row in _rows(route)])
        for route in routes:
            _print_rules(route)


def _rows(route: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for target in route["targets"]:
        mean = target["mean_ms"]
        serves = "?" if "ready" not in target else target["serves"] if target["ready"] else "not ready"
        rows.append(
            (
                route["name"],
                str(route["revision"]),
                target["target"],
                f"{100 * target['share']:.4g} %",
                serves,
                str(target["requests"]),
                str(target["failures"]),
                "-" if mean is None else f"{mean:.3g}",
            )
        )
    return rows


def _print_rules(document: dict[str, Any]) -> None:
    name, route = document["name"], msgspec.convert(document["route"], Route)
    for rule in route.rules:
        when = " and ".join(f"{source} = {value}" for source, value in rule.when.items())
        print(printable(f"{name}: if {when}: {rule.to}"))
    if route.sticky:
        print(printable(f"{name}: requests with the same {route.sticky} go to the same target"))
    if route.bandit:
        means = ", ".join(
            f"{one['target']} {one['mean_reward']:.3g} ({one['rewards']})"
            for one in document["targets"]
            if one["mean_reward"] is not None
        )
        print(printable(f"{name}: {route.bandit.policy} by rewards: {means or 'none yet'}"))
    if document["rollout"] is not None:
        print(printable(f"{name}: {_progress(document)}"))
    if document["shadow"] is not None:
        print(printable(f"{name}: {_copies(document['shadow'])}"))
    if route.fallback:
        after = f" or after {route.timeout_ms:g} ms" if route.timeout_ms else ""
        print(printable(f"{name}: on failure{after}: {', then '.join(route.fallback)}"))


def _copies(shadow: dict[str, Any]) -> str:
    distances = ""
    if shadow["mean_distance"] is not None:
        farthest = max(one["distance"] for one in shadow["worst"])
        distances = f", distance {shadow['mean_distance']:.3g} on average, {farthest:.3g} at most"
    return (
        f"copies to {shadow['target']}: {shadow['compared']} compared{distances},"
        f" {shadow['failed']} failed, {shadow['skipped']} skipped"
    )


@command.command("split", epilog=_SPLIT_EPILOG)
@click.argument("name")
@click.argument("weights", metavar="TARGET=WEIGHT...", nargs=-1, required=True)
@click.option("--sticky", metavar="SOURCE", help="identity, header:NAME or parameter:NAME; '' for none.")
@click.option(
    "--fallback",
    multiple=True,
    metavar="TARGET",
    help="Where requests go on failure; repeatable; '' for none.",
)
@click.option(
    "--bandit",
    type=click.Choice(("epsilon-greedy", "thompson", "ucb", "none")),
    help="Let rewards decide in place of the weights.",
)
@click.option("--timeout-ms", type=float, help="The time after which a request goes to the fallback.")
@expect_option
@json_option()
@connection_options
def split(
    url: str,
    options: ClientOptions,
    name: str,
    weights: tuple[str, ...],
    sticky: str | None,
    fallback: tuple[str, ...],
    bandit: Literal["epsilon-greedy", "thompson", "ucb", "none"] | None,
    timeout_ms: float | None,
    expect: int | None,
    as_json: bool,
) -> None:
    """Spread the requests for NAME over targets by weight. A target is MODEL or MODEL@VERSION-OR-LABEL."""
    targets = dict(map(_weight, weights))
    given: dict[str, Any] = {"targets": targets}
    if sticky is not None:
        given["sticky"] = sticky
    if fallback:
        given["fallback"] = [one for one in fallback if one]
    if timeout_ms is not None:
        given["timeout_ms"] = timeout_ms
    if bandit is not None:
        given["bandit"] = None if bandit == "none" else Bandit(bandit)

    def changed(route: Route | None) -> Route:
        return Route(**given) if route is None else msgspec.structs.replace(route, **given)

    _print_change(name, _with(url, options, lambda one: _put(one, name, changed, expect)), as_json)


@command.command("shadow")
@click.argument("name")
@click.argument("target", required=False)
@click.option("--share", type=float, default=1.0, show_default=True, help="The share of requests to copy.")
@click.option(
    "--max-in-flight", type=int, default=4, show_default=True, help="The maximum number of copies at a time."
)
@click.option("--off", is_flag=True, help="Make no more copies.")
@expect_option
@json_option()
@connection_options
def shadow(
    url: str,
    options: ClientOptions,
    name: str,
    target: str | None,
    share: float,
    max_in_flight: int,
    off: bool,
    expect: int | None,
    as_json: bool,
) -> None:
    """Send copies of the requests for the route NAME to TARGET, and compare the responses."""
    if off == (target is not None):
        raise click.UsageError("Give either a TARGET for the copies, or --off")

    def changed(route: Route | None) -> Route:
        if route is None:
            raise NotFound(
                f"there is no route '{name}'; to make one: backline traffic split {name} MODEL@VERSION=1"
            )
        copies = None if target is None else Shadow(target, share, max_in_flight)
        return msgspec.structs.replace(route, shadow=copies)

    _print_change(name, _with(url, options, lambda one: _put(one, name, changed, expect)), as_json)


@command.command("promote")
@click.argument("name")
@click.argument("target")
@expect_option
@json_option()
@connection_options
def promote(
    url: str, options: ClientOptions, name: str, target: str, expect: int | None, as_json: bool
) -> None:
    """Send all requests for NAME to one target, and remove the rules of the route."""

    def changed(route: Route | None) -> Route:
        if route is None:
            raise NotFound(
                f"there is no route '{name}'; to make one: backline traffic split {name} {target}=1"
            )
        if target not in targets_of(route):
            raise InvalidArgument(
                f"'{target}' is not a target of route '{name}'; its targets: {', '.join(targets_of(route))}."
                f" To send requests elsewhere: backline traffic split {name} {target}=1"
            )
        return msgspec.structs.replace(route, targets={target: 1.0}, rules=[], rollout=None)

    _print_change(name, _with(url, options, lambda one: _put(one, name, changed, expect)), as_json)


@command.command("rollout", epilog=_ROLLOUT_EPILOG)
@click.argument("name")
@click.argument("version", metavar="VERSION|TARGET")
@click.option("--guard", required=True, help="What the new version must keep to.")
@click.option("--steps", default="0,1,5,25,50", show_default=True, help="Its shares, in percent.")
@click.option(
    "--bake", type=float, default=60.0, show_default=True, help="Seconds that a step lasts at least."
)
@click.option(
    "--requests", type=int, default=100, show_default=True, help="Requests or copies that a step needs."
)
@click.option(
    "--mirror", type=float, default=1.0, show_default=True, help="The share of the other requests to copy."
)
@click.option("--wait", is_flag=True, help="Show the progress, and fail if the guard is broken.")
@expect_option
@json_option()
@connection_options
def rollout(
    url: str,
    options: ClientOptions,
    name: str,
    version: str,
    guard: str,
    steps: str,
    bake: float,
    requests: int,
    mirror: float,
    wait: bool,
    expect: int | None,
    as_json: bool,
) -> None:
    """Raise the share of a new version step by step, as long as it keeps to a guard.

    NAME is a model or a route. If the guard is broken, the new version gets no further requests, the route
    returns to what it was, and its history says why.
    """
    to = version if "@" in version else f"{name}@{version}"
    asked = Rollout(to, guard, _percentages(steps), bake, requests, mirror)

    async def begin(server: _Server) -> Any:
        document = {"rollout": msgspec.to_builtins(asked), "expected": expect}
        change = await server.ask("POST", name, "/rollout", document)
        if not wait:
            return change
        return await _awaited(server, name, change["revision"], quiet=as_json)

    change = _with(url, options, begin)
    if as_json:
        print(json.dumps(change))
    elif not wait:
        print(printable(f"{name}: revision {change['revision']}: {to} begins at {asked.steps[0]:g} %"))
    else:
        print(printable(f"{name}: {change['action']}: {change.get('detail', '')}"))
    if wait and change["action"] != "promote":
        raise SystemExit(1)


async def _awaited(server: _Server, name: str, begun: int, *, quiet: bool) -> Any:
    """Returns the change that ends a rollout, which began with the revision `begun`."""
    shown = ""
    while True:
        document = await server.ask("GET", name)
        if document["revision"] != begun:
            changes = (await server.ask("GET", name, "/history"))["changes"]
            return next(change for change in reversed(changes) if change["revision"] > begun)
        told = _progress(document)
        if not quiet and told != shown:
            print(printable(f"{name}: {told}"), flush=True)
        shown = told
        await asyncio.sleep(_LOOK_SECONDS)


def _progress(document: dict[str, Any]) -> str:
    course = document["rollout"]
    if course is None:
        return "the rollout has ended"
    steps = len(document["route"]["rollout"]["steps"])
    evidence = ", ".join(f"{clause} {100 * share:.0f} %" for clause, share in course["evidence"].items())
    against = f"; evidence against {evidence}" if evidence else ""
    return (
        f"rollout of {course['to']}: step {course['step'] + 1} of {steps}, {100 * course['share']:g} %, for"
        f" {course['seconds']:.0f} s, {course['seen']} requests and copies{against}"
    )


def _percentages(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is not a list of percentages, such as 0,1,5,25,50") from None


@command.command("rollback")
@click.argument("name")
@expect_option
@json_option()
@connection_options
def rollback(url: str, options: ClientOptions, name: str, expect: int | None, as_json: bool) -> None:
    """Return a route to its state before the last change. Repeat the command to go back further."""
    document = {"expected": expect}
    found = _with(url, options, lambda server: server.ask("POST", name, "/rollback", document))
    _print_change(name, found, as_json)


@command.command("remove")
@click.argument("name")
@expect_option
@json_option()
@connection_options
def remove(url: str, options: ClientOptions, name: str, expect: int | None, as_json: bool) -> None:
    """Remove a route. If a file declares it, the route in the file applies again."""
    query = "" if expect is None else f"?expected={expect}"
    _print_change(name, _with(url, options, lambda server: server.ask("DELETE", name, query)), as_json)


@command.command("apply")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option()
@connection_options
def apply(url: str, options: ClientOptions, file: Path, as_json: bool) -> None:
    """Set all routes in a TOML file, which has the form of routes.toml. Other routes stay as they are."""

    async def put_all(server: _Server) -> list[tuple[str, Any]]:
        done = []
        for name, route in read_routes(file).items():
            document = {"route": msgspec.to_builtins(route)}
            done.append((name, await server.ask("PUT", name, document=document)))
        return done

    for name, change in _with(url, options, put_all):
        _print_change(name, change, as_json)


@command.command("history")
@click.argument("name")
@json_option()
@connection_options
def history(url: str, options: ClientOptions, name: str, as_json: bool) -> None:
    """Show who changed a route, and when."""
    changes = _with(url, options, lambda server: server.ask("GET", name, "/history"))["changes"]
    if as_json:
        print(json.dumps(changes))
        return
    if not changes:
        print(f"no request has changed {name}")
        return
    rows = []
    for change in changes:
        when = datetime.fromtimestamp(change["time"]).astimezone().isoformat(" ", "seconds")
        restored = f"to {change['restored']}" if "restored" in change else ""
        targets = change.get("route", {}).get("targets", {})
        told = ", ".join(f"{target} {weight:g}" for target, weight in targets.items())
        action = f"{change['action']} {restored}".strip()
        rows.append((str(change["revision"]), when, action, told or "-", change["who"]))
    print_table(("revision", "time", "action", "weights", "who"), rows)
    for change in changes:
        if change.get("detail"):
            print(printable(f"revision {change['revision']}: {change['detail']}"))


async def _put(
    server: _Server, name: str, changed: Callable[[Route | None], Route], expect: int | None
) -> Any:
    """Changes a route, unless somebody else changes it in between."""
    now, revision = await server.route(name)
    route = changed(now)
    check_route(name, route)
    document = {
        "route": msgspec.to_builtins(route),
        "expected": (None if now is None else revision) if expect is None else expect,
    }
    return await server.ask("PUT", name, document=document)


def _weight(text: str) -> tuple[str, float]:
    target, equals, weight = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return target, float(weight)
    except ValueError:
        raise click.BadParameter(
            f"'{text}' is not of the form TARGET=WEIGHT, such as basic_pitch@5=10"
        ) from None


def _print_change(name: str, change: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(change))
        return
    route = change.get("route")
    if route is None:
        print(printable(f"{name}: revision {change['revision']}: removed"))
        return
    total = sum(route["targets"].values())
    shares = ", ".join(
        f"{target} {100 * weight / total:.4g} %" for target, weight in route["targets"].items()
    )
    print(printable(f"{name}: revision {change['revision']}: {shares}"))
