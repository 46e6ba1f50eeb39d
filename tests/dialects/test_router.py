"""Paths that lead nowhere: anybody may send any number of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import unquote

import pytest
from fake_models import FakeHttpRequest

from backline.access.scope import Scope
from backline.dialects.application import build_application
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.wire.application import HttpRequest
from backline_client.values.errors import NotFound

#: A path may cost as much CPU time as decoding the segments of this one. A limit in seconds would depend on
#: the machine, and on what else runs on it.
MEASURE = "/v%32" * 3_000
PATHS = {
    "a misspelt route": b"/v2/models/" + b"a" * 200 + b"/redy",
    "as many segments as fit": b"/a" * 30_000,
    "empty segments": b"/" * 60_000,
    "percent-encoded": b"/v2/models/" + b"%61" * 20_000 + b"/redy",
    "percent signs": b"/v2/models/" + b"%" * 60_000 + b"/ready",
    "an encoded slash": b"/v2" + b"%2f" * 20_000,
    "a long name": b"/v2/models/" + b"x" * 60_000 + b"/redy",
    "the route of another protocol": b"/v1/models/" + b"x:" * 30_000,
    "not UTF-8": b"/v2/models/" + b"%ff" * 20_000,
}


@pytest.fixture
def router() -> Router:
    router: Router = build_application(Engine()).http.router  # type: ignore[attr-defined]
    return router


class Asked(HttpRequest):
    """A request for a path."""

    def __init__(self, path: bytes, method: bytes = b"GET") -> None:
        super().__init__(method, path, b"", {}, b"")

    def respond(self, *_: object) -> None:
        raise NotImplementedError

    def stream(self, *_: object) -> None:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_that_leads_nowhere_costs_little(router: Router, path: bytes) -> None:
    """The gate and the handler each look up the target, before the request fails."""
    units, costs = [], []
    for _ in range(9):
        began = time.thread_time()
        "/".join(unquote(segment) for segment in MEASURE.split("/"))
        units.append(time.thread_time() - began)
        began = time.thread_time()
        assert router.target(b"GET", path) is None
        assert router.target(b"GET", path) is None
        with pytest.raises(NotFound):
            router.resolve(Asked(path))
        costs.append(time.thread_time() - began)
    assert min(costs) < min(units)


def test_a_long_path_is_not_found_and_shown_in_part(router: Router) -> None:
    with pytest.raises(NotFound, match=r"Not Found: GET /v2/x{200,300}$"):
        router.resolve(Asked(b"/v2/" + b"x" * 20_000))


def test_routes_for_later_are_added_when_no_other_fits() -> None:
    router, added = Router(), []

    def add_routes(to: Router) -> None:
        added.append(True)
        to.add(Scope.READ, "GET", "/later/{}", lambda *_: None)

    router.add(Scope.READ, "GET", "/now", lambda *_: None)
    router.add_later(add_routes)
    assert router.target(b"GET", b"/now") is not None
    assert not added

    found = router.target(b"GET", b"/later/a")
    assert found is not None
    assert found.scope is Scope.READ
    assert router.target(b"GET", b"/nowhere") is None
    assert added == [True]


def test_no_more_routes_for_later_are_added_than_needed() -> None:
    router, added = Router(), []

    def adding(path: str) -> Callable[[Router], None]:
        def add_routes(to: Router) -> None:
            added.append(path)
            to.add(Scope.READ, "GET", path, lambda *_: None)

        return add_routes

    for path in ("/first", "/second", "/third"):
        router.add_later(adding(path))

    assert router.target(b"GET", b"/second") is not None
    assert added == ["/first", "/second"]
    assert len(list(router.routes())) == 3


def test_routes_for_later_cannot_change_how_a_path_was_resolved() -> None:
    router = Router()
    router.add(Scope.READ, "GET", "/now", lambda *_: None)
    router.add_later(lambda to: to.add(Scope.READ, "POST", "/now", lambda *_: None))

    with pytest.raises(ValueError, match="resolved without it"):
        list(router.routes())


def test_a_segment_may_have_a_fixed_ending_after_its_name() -> None:
    router, called = Router(), []

    def add(method: str, pattern: str) -> None:
        router.add(Scope.INFER, method, pattern, lambda *names: called.append((pattern, names[:-1])))

    add("POST", "/v1/models/{}")
    add("POST", "/v1/models/{}:predict")
    add("POST", "/v1/models/{}/versions/{}:predict")
    add("POST", "/v1/models/{}:classify")

    for path in (
        b"/v1/models/a%20b:predict",
        b"/v1/models/a:b:classify",
        b"/v1/models/a/versions/2:predict",
        b"/v1/models/:predict",
        b"/v1/models/a:regress",
    ):
        request = Asked(path, b"POST")
        router.resolve(request).handler(request)

    assert called == [
        ("/v1/models/{}:predict", ("a b",)),
        ("/v1/models/{}:classify", ("a:b",)),
        ("/v1/models/{}/versions/{}:predict", ("a", "2")),
        ("/v1/models/{}", (":predict",)),
        ("/v1/models/{}", ("a:regress",)),
    ]
    target = router.target(b"POST", b"/v1/models/a/versions/2:predict")
    assert target is not None
    assert target.model == "a"


def test_dialects_share_a_path_if_their_methods_differ() -> None:
    router, created = Router(), []

    def announce(method: str) -> None:
        def add_routes(to: Router) -> None:
            created.append(method)
            to.add(Scope.READ, method, "/models/{}", lambda *_: None)

        router.announce(f"the dialect of {method}", [f"{method} /models/{{}}"], add_routes)

    announce("POST")
    announce("DELETE")
    with pytest.raises(ValueError, match=r"dialect of POST cannot serve /models/\{\}"):
        announce("POST")

    assert router.target(b"POST", b"/models/a") is not None
    assert router.target(b"DELETE", b"/models/a") is not None
    assert router.target(b"PUT", b"/models/a") is None
    assert created == ["POST", "DELETE"]


def test_a_route_names_the_segment_before_its_model() -> None:
    router = Router()
    router.add(Scope.INFER, "POST", "/predictions/{}/{}", lambda *_: None, before_model="predictions")

    target = router.target(b"POST", b"/predictions/a/1")

    assert target is not None
    assert target.model == "a"


def test_dialects_that_share_a_route_respond_with_one_document() -> None:
    router = Router()

    def announce(key: str, status: int, shared: tuple[str, ...] = ("GET /models/{}",)) -> None:
        def add_routes(to: Router) -> None:
            to.join(Scope.READ, "/models/{}", lambda name, _: (status, {key: name}))

        router.announce(f"the dialect of {key}", ["GET /models/{}"], add_routes, shared=shared)

    announce("id", 200)
    announce("name", 503)
    with pytest.raises(ValueError, match=r"dialect of other cannot serve /models/\{\}"):
        announce("other", 200, ())

    request = FakeHttpRequest(b"GET", b"/models/a", {}, b"")
    router.resolve(request).handler(request)

    assert request.answer is not None
    assert (request.answer.status, request.answer.json) == (503, {"id": "a", "name": "a"})
