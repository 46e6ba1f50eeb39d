"""The routes of one engine: declared in files, changed by requests, and stored with their history."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.lifecycle.labels.document import Edition, FileDocument, Replaced
from backline.plugins.traffic.counts import Counters
from backline.plugins.traffic.front import RouteFront
from backline.plugins.traffic.guard import Violation
from backline.plugins.traffic.route import (
    Rollout,
    Route,
    check_cycles,
    check_route,
    shadow_of,
    split_target,
    targets_of,
)
from backline_client.values.control import Attempt
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable

log = logging.getLogger(__name__)

PLUGIN: Final = "routes"
#: Who changes a route at the end of a rollout.
GUARD: Final = "guard"
_STORED: Final = "routes.json"
_DECLARED: Final = "routes.toml"
_FORMAT: Final = 1
#: The maximum number of routes, and of changes that are kept for each.
_MOST_ROUTES = 256
_MOST_CHANGES = 64
_ATTEMPTS = 8


@decodable
class RouteChange(Struct, frozen=True, omit_defaults=True):
    """A change of a route. `route` is None if the change removed what requests had set. `restored` is the
    revision to which a rollback returned; -1 for other changes. `detail` says why a guard has changed it.
    """

    revision: int
    time: float
    who: str
    action: str
    route: Route | None = None
    restored: int = -1
    detail: str = ""


@decodable
class _Contents(Struct, forbid_unknown_fields=True):
    format: int = _FORMAT
    changes: dict[str, list[RouteChange]] = {}


class Routes:
    """Applies routes to an engine. Use it only on the event loop.

    `declared` are the routes in files, by name. Requests may set other routes in their place; these are kept
    in `document`, or only in memory if it is None.
    """

    def __init__(self, engine: Engine, declared: Mapping[str, Route], document: FileDocument | None) -> None:
        """Raises BacklineError if the stored routes cannot be read."""
        self._engine = engine
        self._declared = dict(declared)
        self._document = document
        self._counters = Counters(engine.custom_metrics)
        self._lock = asyncio.Lock()
        #: Strong references to the tasks, because the event loop keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()
        self._fronts: dict[str, RouteFront] = {}
        self._edition = Edition(None, "") if document is None else document.read()
        self._contents = _Contents() if document is None else _decode(self._edition.data, document.where)
        routes = self._in_force(self._contents)
        check_cycles(routes)
        for name in routes:
            self._apply(name)

    def _in_force(self, contents: _Contents) -> dict[str, Route]:
        stored = {name: changes[-1].route for name, changes in contents.changes.items()}
        return self._declared | {name: route for name, route in stored.items() if route is not None}

    # reading

    @property
    def names(self) -> list[str]:
        return sorted(self._fronts)

    def front(self, name: str) -> RouteFront:
        """Raises NotFound for an unknown route."""
        front = self._fronts.get(name)
        if front is None:
            raise NotFound(
                f"there is no route '{name[:255]}'; to make one: backline traffic split {name[:255]}"
                " MODEL@VERSION=WEIGHT"
            )
        return front

    def route(self, name: str) -> Route:
        """Raises NotFound for an unknown route."""
        self.front(name)
        return self._in_force(self._contents)[name]

    def revision(self, name: str) -> int:
        """Returns the number of the last change by a request; 0 if there was none."""
        changes = self.history(name)
        return changes[-1].revision if changes else 0

    def history(self, name: str) -> Sequence[RouteChange]:
        """Returns the last changes by requests, oldest first."""
        return self._contents.changes.get(name, ())

    # changing

    async def put(
        self, name: str, route: Route, who: str, expected: int | None, action: str = "set"
    ) -> RouteChange:
        """Sets a route, which applies to all requests from then on.

        Raises InvalidArgument if the route is not valid, names a model or version that the engine does not
        have, or has another revision than `expected` (0: never changed by a request).
        """
        check_route(name, route)
        for target in [*targets_of(route), *shadow_of(route)]:
            try:
                self._engine.find(*split_target(target))
            except BacklineError as error:
                raise InvalidArgument(f"route '{name}': target '{target}': {error.message}") from None
        return await self._change(
            name, expected, lambda changes: RouteChange(_next(changes), time.time(), who, action, route)
        )

    async def remove(self, name: str, who: str, expected: int | None) -> RouteChange:
        """Removes what requests have set; a route in a file then applies again. Raises the errors of `put`,
        and NotFound if there is nothing to remove.
        """

        def removed(changes: Sequence[RouteChange]) -> RouteChange:
            if not changes or changes[-1].route is None:
                if name in self._declared:
                    raise InvalidArgument(
                        f"route '{name}' is declared in {_DECLARED} and no request has changed it: remove it"
                        " there, and start the server again"
                    )
                self.front(name)
            return RouteChange(_next(changes), time.time(), who, "remove")

        return await self._change(name, expected, removed)

    def earlier(self, name: str) -> RouteChange:
        """Returns the change to which a rollback returns; revision 0 stands for the route in a file. Raises
        NotFound for an unknown route, and InvalidArgument if there is no earlier state.
        """
        return self._earlier(name, self.history(name))

    def _earlier(self, name: str, changes: Sequence[RouteChange]) -> RouteChange:
        if not changes:
            self.front(name)
        else:
            now = changes[-1].restored if changes[-1].restored >= 0 else changes[-1].revision
            for change in reversed(changes):
                if change.revision < now and change.restored < 0:
                    # Going back to the time of a rollout must not begin it again.
                    route = change.route and replace(change.route, rollout=None)
                    return replace(change, route=route)
            if now > 0 and name in self._declared:
                return RouteChange(0, 0.0, "", "declared")
        raise InvalidArgument(f"route '{name[:255]}' has no earlier state to which it could return")

    async def rollback(self, name: str, who: str, expected: int | None) -> RouteChange:
        """Returns a route to its state before the last change; again, to the state before that. Ends a
        rollout in progress. Raises the errors of `earlier`, and InvalidArgument as `put` for `expected`.
        """

        def restored(changes: Sequence[RouteChange]) -> RouteChange:
            now = self._in_force(self._contents).get(name)
            if now is not None and now.rollout is not None:
                now = replace(now, rollout=None)
                return RouteChange(_next(changes), time.time(), who, "rollback", now)
            back = self._earlier(name, changes)
            return RouteChange(_next(changes), time.time(), who, "rollback", back.route, back.revision)

        return await self._change(name, expected, restored)

    async def roll_out(self, name: str, rollout: Rollout, who: str, expected: int | None) -> RouteChange:
        """Begins a rollout on a route. For a model without a route, first makes one for the version that
        serves its requests now. Raises the errors of `put`, and NotFound if there is neither.
        """
        known = self._fronts.get(name)
        if known is not None:
            route = self.route(name)
        else:
            model = self._engine.find_ready(name)
            route = Route({f"{name}@{model.version}": 1.0})
        route = replace(route, rollout=rollout)
        return await self.put(name, route, who, expected, "rollout")

    def _rolled(self, name: str, rollout: Rollout, violation: Violation | None) -> None:
        """Called when a rollout has ended: rolls back or promotes, and says so."""
        if violation is None:
            action, detail = "promote", f"'{rollout.to}' has kept to the guard '{rollout.guard}'"
            log.info("the rollout of route '%s' is complete: %s", name, detail)
        else:
            shown = f" (requests {', '.join(violation.requests)})" if violation.requests else ""
            action = "guard"
            detail = f"'{rollout.to}' has broken '{violation.clause}': {violation.reason}{shown}"
            log.warning("the rollout of route '%s' was rolled back: %s", name, detail)
        task = asyncio.get_running_loop().create_task(self._conclude(name, rollout, action, detail))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _conclude(self, name: str, rollout: Rollout, action: str, detail: str) -> None:
        def concluded(changes: Sequence[RouteChange]) -> RouteChange:
            route = self.route(name)
            if route.rollout != rollout:
                raise InvalidArgument(f"route '{name}' was changed before its rollout ended")
            route = replace(route, rollout=None)
            if action == "promote":
                route = replace(route, targets={rollout.to: 1.0})
            return RouteChange(_next(changes), time.time(), GUARD, action, route, detail=detail)

        outcome: Literal["done", "failed"] = "done"
        try:
            await self._change(name, None, concluded)
        except BacklineError as error:  # the new version gets no requests any more in any case
            log.error("the end of the rollout of route '%s' could not be stored: %s", name, error.message)
            outcome, detail = "failed", f"{detail}; not stored: {error.message}"
        if self._engine.control is not None:
            route = f"{action} of route '{name}'"
            self._engine.control.note(Attempt(time.time(), outcome, route, GUARD, model=name, detail=detail))

    async def _change(
        self, name: str, expected: int | None, make: Callable[[Sequence[RouteChange]], RouteChange]
    ) -> RouteChange:
        async with self._lock:
            for _ in range(_ATTEMPTS):
                changes = self.history(name)
                if expected is not None and expected != self.revision(name):
                    raise InvalidArgument(
                        f"route '{name}' has revision {self.revision(name)}, not {expected}:"
                        f" {changes[-1].who if changes else 'somebody'} changed it in the meantime; nothing"
                        " was changed. Read it again"
                    )
                change = make(changes)
                contents = _with(self._contents, name, [*changes, change][-_MOST_CHANGES:])
                routes = self._in_force(contents)
                check_cycles(routes)
                try:
                    await self._store(contents)
                except Replaced:
                    await self._read()
                    continue
                self._contents = contents
                self._apply(name)
                return change
        raise Unavailable("other servers keep changing the routes in this state folder; try again", 1)

    async def _store(self, contents: _Contents) -> None:
        if self._document is not None:
            data = msgspec.json.format(msgspec.json.encode(contents, order="sorted"), indent=2) + b"\n"
            revision = await asyncio.to_thread(self._document.replace, data, self._edition.revision)
            self._edition = Edition(data, revision)

    async def _read(self) -> None:
        """Reads what another server with the same state folder has written."""
        assert self._document is not None, "only documents are replaced"
        self._edition = await asyncio.to_thread(self._document.read)
        self._contents = _decode(self._edition.data, self._document.where)
        for name in {*self._fronts, *self._in_force(self._contents)}:
            self._apply(name)

    def _apply(self, name: str) -> None:
        """Makes the engine use the route in force."""
        route = self._in_force(self._contents).get(name)
        front = self._fronts.get(name)
        if route is None:
            if front is not None:
                del self._fronts[name], self._engine.fronts[name]
                front.close()
        elif front is None:
            self._fronts[name] = RouteFront(
                name, route, self._engine, self._counters, partial(self._rolled, name)
            )
            self._engine.fronts[name] = self._fronts[name]
        else:
            front.change(route)


def _with(contents: _Contents, name: str, changes: list[RouteChange]) -> _Contents:
    """Returns the contents with other changes of a route. If there are too many routes, those that were
    removed are forgotten. Raises InvalidArgument if there are still too many.
    """
    new = {**contents.changes, name: changes}
    if len(new) > _MOST_ROUTES:
        new = {one: own for one, own in new.items() if one == name or own[-1].route is not None}
    if len(new) > _MOST_ROUTES:
        raise InvalidArgument(f"there are {_MOST_ROUTES} routes already, the maximum: remove some")
    return _Contents(changes=new)


def _next(changes: Sequence[RouteChange]) -> int:
    return changes[-1].revision + 1 if changes else 1


def open_routes(engine: Engine, state_folder: Path | None, folders: Sequence[Path] = ()) -> Routes:
    """Returns the routes of an engine; creates them at the first call. `folders` may hold routes.toml, and a
    later folder does not change what an earlier one declares.

    Raises InvalidArgument if a file is not valid.
    """
    known = engine.fronts.plugins.get(PLUGIN)
    if isinstance(known, Routes):
        return known
    declared: dict[str, Route] = {}
    for folder in folders:
        file = folder / _DECLARED
        if file.is_file():
            declared = read_routes(file) | declared
    document = None if state_folder is None else FileDocument(state_folder / _STORED, private=True)
    routes = engine.fronts.plugins[PLUGIN] = Routes(engine, declared, document)
    return routes


def read_routes(file: Path) -> dict[str, Route]:
    """Reads a file such as routes.toml: a table for each route. Raises InvalidArgument if it is not valid."""
    try:
        routes = msgspec.toml.decode(file.read_bytes(), type=dict[str, Route])
        for name, route in routes.items():
            check_route(name, route)
        check_cycles(routes)
    except OSError as error:
        raise InvalidArgument(f"'{file}' cannot be read: {error.strerror or error}") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"'{file}': {error.message}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"'{file}' is not valid: {error}") from None
    return routes


def _decode(data: bytes | None, where: str) -> _Contents:
    if data is None:
        return _Contents()
    try:
        contents = msgspec.json.decode(data, type=_Contents)
        if contents.format != _FORMAT:
            raise InvalidArgument(f"format {contents.format} is of a newer server")
        for name, changes in contents.changes.items():
            if not changes:
                raise InvalidArgument(f"route '{name[:255]}' has no changes")
            for change in changes:
                if change.route is not None:
                    check_route(name, change.route)
    except (msgspec.DecodeError, RecursionError, InvalidArgument) as error:
        raise InvalidArgument(
            f"the routes in {where} are damaged: {error}. Repair them, or remove the file to start with the"
            f" routes in {_DECLARED}"
        ) from None
    return contents
