"""The routes under /v2/routes, by which clients read and change routes."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any

from msgspec import Struct, to_builtins

from backline.access.identity import Identity
from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.documents import read_document, read_query
from backline.dialects.open_inference.repository import who_asks
from backline.dialects.plugin import Dialect, DialectContext
from backline.dialects.router import Router
from backline.plugins.traffic.counts import Target
from backline.plugins.traffic.rollout import RolloutRun
from backline.plugins.traffic.route import Rollout, Route, shadow_of, split_target, targets_of
from backline.plugins.traffic.routes import RouteChange, Routes, open_routes
from backline.plugins.traffic.shadow import Mirror
from backline.wire.application import HttpRequest
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument


@decodable
class PutDocument(Struct, forbid_unknown_fields=True):
    """A route to set. `expected` is the revision that it must have now; None sets it in any case."""

    route: Route
    expected: int | None = None


@decodable
class RolloutDocument(Struct, forbid_unknown_fields=True):
    """A rollout to begin. `expected` is as in PutDocument."""

    rollout: Rollout
    expected: int | None = None


@decodable
class ExpectedDocument(Struct, forbid_unknown_fields=True):
    expected: int | None = None


@decodable
class FeedbackDocument(Struct, forbid_unknown_fields=True):
    """A reward from 0 to 1 for the response to the request with this `id`."""

    id: str
    reward: float


class RouteDialect(Dialect):
    """Reads and changes the routes of the engine. Who changes a route needs the scope `manage` for the
    route's name and for the models of all its targets, because whoever may use a route may use its targets.
    """

    def __init__(self, context: DialectContext) -> None:
        super().__init__(context)
        self._routes: Routes = open_routes(context.engine, context.state_folder)

    def add_routes(self, router: Router) -> None:
        add = partial(router.add, before_model="routes")
        add(Scope.READ, "GET", "/v2/routes", self._list, lists=True)
        add(Scope.READ, "GET", "/v2/routes/{}", self._show)
        add(Scope.MANAGE, "PUT", "/v2/routes/{}", self._put)
        add(Scope.MANAGE, "DELETE", "/v2/routes/{}", self._remove)
        add(Scope.READ, "GET", "/v2/routes/{}/history", self._history)
        add(Scope.MANAGE, "POST", "/v2/routes/{}/rollback", self._rollback)
        add(Scope.MANAGE, "POST", "/v2/routes/{}/rollout", self._roll_out)
        router.add(Scope.INFER, "POST", "/v2/models/{}/feedback", self._feedback)

    def _list(self, request: HttpRequest) -> None:
        identity = request.identity
        names = [one for one in self._routes.names if identity is None or identity.may(Scope.READ, one)]
        respond_json(request, {"routes": [self._document(name, identity) for name in names]})

    def _show(self, name: str, request: HttpRequest) -> None:
        respond_json(request, self._document(name, request.identity))

    def _put(self, name: str, request: HttpRequest) -> None:
        asked = read_document(PutDocument, request.body)
        self._check_targets(request, asked.route)
        self._answer(request, self._routes.put(name, asked.route, who_asks(request), asked.expected))

    def _remove(self, name: str, request: HttpRequest) -> None:
        asked = read_query(ExpectedDocument, request.query)
        self._answer(request, self._routes.remove(name, who_asks(request), asked.expected))

    def _roll_out(self, name: str, request: HttpRequest) -> None:
        asked = read_document(RolloutDocument, request.body)
        if request.identity is not None:
            request.identity.require(Scope.MANAGE, split_target(asked.rollout.to)[0])
        work = self._routes.roll_out(name, asked.rollout, who_asks(request), asked.expected)
        self._answer(request, work)

    def _rollback(self, name: str, request: HttpRequest) -> None:
        asked = read_document(ExpectedDocument, request.body)
        back = None if self._rolls_out(name) else self._routes.earlier(name).route
        if back is not None:
            self._check_targets(request, back)
        # The permission is for this state only, so nobody may change the route in between.
        expected = self._routes.revision(name) if asked.expected is None else asked.expected
        self._answer(request, self._routes.rollback(name, who_asks(request), expected))

    def _rolls_out(self, name: str) -> bool:
        return name in self._routes.names and self._routes.route(name).rollout is not None

    def _history(self, name: str, request: HttpRequest) -> None:
        changes = self._routes.history(name)
        if not changes:
            self._routes.front(name)
        respond_json(request, {"name": name, "changes": [_plain(one) for one in reversed(changes)]})

    def _feedback(self, name: str, request: HttpRequest) -> None:
        asked = read_document(FeedbackDocument, request.body)
        if not 0 <= asked.reward <= 1:  # also false for NaN
            raise InvalidArgument(f"the reward is {asked.reward}: expected 0 to 1")
        front = self._routes.front(name)
        identity = request.identity
        sender = None if identity is None or identity.may(Scope.MANAGE, name) else identity.holder
        target = front.sent.take(asked.id, sender)
        front.reward(target, asked.reward)
        respond_json(request, {"name": name, "target": target})

    def _check_targets(self, request: HttpRequest, route: Route) -> None:
        if request.identity is not None:
            for target in [*targets_of(route), *shadow_of(route)]:
                request.identity.require(Scope.MANAGE, split_target(target)[0])

    def _answer(self, request: HttpRequest, change: Coroutine[Any, Any, RouteChange]) -> None:
        self.context.deferred.answer(request, change, lambda changed: respond_json(request, _plain(changed)))

    def _document(self, name: str, identity: Identity | None) -> dict[str, Any]:
        """Returns a route as `identity` may see it: without the states of models that it may not read."""
        front, route = self._routes.front(name), self._routes.route(name)
        return {
            "name": name,
            "revision": self._routes.revision(name),
            "route": to_builtins(route),
            "targets": [
                self._state(one, route, identity is None or identity.may(Scope.READ, one.model))
                for one in front.by_name.values()
            ],
            "shadow": None if front.mirror is None else _copies(front.mirror),
            "rollout": None if front.run is None else _course(front.run),
        }

    def _state(self, target: Target, route: Route, visible: bool) -> dict[str, Any]:
        """Returns the share and the counts of a target and, if it is `visible`, its state: "serves" is the
        version that gets its requests.
        """
        counts = target.counts
        shown: dict[str, Any] = {
            "target": target.name,
            "share": route.targets.get(target.name, 0.0) / sum(route.targets.values()),
            "requests": counts.requests,
            "failures": counts.failures,
            "fallbacks": counts.fallbacks,
            "mean_ms": counts.mean_ms,
            "rewards": int(counts.arm.rewards),
            "mean_reward": counts.arm.total / counts.arm.rewards if counts.arm.rewards else None,
        }
        if visible:
            try:
                model = self.context.engine.find(target.model, target.version)
                serves, reason = model.version, "" if model.answers else model.reason or model.state.value
            except BacklineError as error:
                serves, reason = "", error.public_message
            shown |= {"ready": not reason, "reason": reason, "serves": serves}
        return shown


def _plain(change: RouteChange) -> dict[str, Any]:
    told: dict[str, Any] = to_builtins(change)
    return told


def _copies(mirror: Mirror) -> dict[str, Any]:
    """Returns how the copies of requests ended. "worst" and "errors" show the ids of their originals."""
    counts = mirror.counts
    return {
        "target": mirror.shadow.to,
        "compared": int(counts.compared.value),
        "failed": int(counts.failed.value),
        "skipped": int(counts.skipped.value),
        "mean_distance": counts.mean_distance,
        "worst": [{"id": id, "distance": distance} for distance, id in mirror.worst],
        "errors": [{"id": id, "error": error} for id, error in mirror.errors],
    }


def _course(run: RolloutRun) -> dict[str, Any]:
    """Returns how far a rollout has got. "evidence" is against each clause: 1 breaks the guard."""
    return {
        "to": run.rollout.to,
        "step": run.step,
        "share": run.share,
        "seconds": run.seconds,
        "seen": run.seen,
        "seen_in_all": run.seen_in_all,
        "evidence": run.guard.evidence,
    }
