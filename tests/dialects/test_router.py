"""Paths that lead nowhere: anybody may send any number of them."""

from __future__ import annotations

import time

import pytest

from backline.dialects.application import build_application
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.errors import NotFound
from backline.wire.application import HttpRequest

#: The seconds of CPU time that one path may cost.
MOST = 0.005
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
    router: Router = build_application(Engine()).http._resolve.__self__  # type: ignore[attr-defined]
    return router


class Asked(HttpRequest):
    """A request for a path."""

    def __init__(self, path: bytes) -> None:
        super().__init__(b"GET", path, b"", {}, b"")

    def respond(self, *_: object) -> None:
        raise NotImplementedError

    def stream(self, *_: object) -> None:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_that_leads_nowhere_costs_little(router: Router, path: bytes) -> None:
    """The gate and the handler each look up the target, before the request fails."""
    costs = []
    for _ in range(5):
        began = time.thread_time()
        assert router.target(b"GET", path) is None
        assert router.target(b"GET", path) is None
        with pytest.raises(NotFound):
            router.resolve(Asked(path))
        costs.append(time.thread_time() - began)
    assert min(costs) < MOST


def test_a_long_path_is_not_found_and_shown_in_part(router: Router) -> None:
    with pytest.raises(NotFound, match=r"Not Found: GET /v2/x{200,300}$"):
        router.resolve(Asked(b"/v2/" + b"x" * 20_000))
