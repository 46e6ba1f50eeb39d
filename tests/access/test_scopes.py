"""Every route has a scope, and every route that changes something is guarded."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.access.scope import GUARDED, Scope
from backline.dialects.application import build_application
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.observe.metrics import Metrics
from backline.observe.recording import Recorder
from backline.wire.application import REMOTE, Application, UnaryMethod
from support.scope_oracle import RULES, scope_by

EXPECTED_RPCS = {
    "Check": Scope.HEALTH,
    "Watch": Scope.HEALTH,
    "ServerLive": Scope.HEALTH,
    "ServerReady": Scope.HEALTH,
    "RepositoryModelLoad": Scope.MANAGE,
    "RepositoryModelUnload": Scope.MANAGE,
    "SystemSharedMemoryRegister": Scope.MANAGE,
    "SystemSharedMemoryUnregister": Scope.MANAGE,
    "CudaSharedMemoryRegister": Scope.MANAGE,
    "CudaSharedMemoryUnregister": Scope.MANAGE,
    "LogSettings": Scope.ADMIN,
    "TraceSetting": Scope.ADMIN,
    "ModelInfer": Scope.INFER,
    "ModelStreamInfer": Scope.INFER,
}


@pytest.fixture
def application(tmp_path: Path) -> Application:
    engine = Engine()
    return build_application(engine, Metrics(engine).page, recorder=Recorder(engine, tmp_path))


def test_every_route_has_the_expected_scope(application: Application) -> None:
    router: Router = application.http.router  # type: ignore[attr-defined]
    list(router.routes())  # also adds the routes that are added late
    routes = {
        (method.decode(), "/" + "/".join(segments)): route.scope
        for segments, methods in router._patterns.items()
        for method, route in methods.items()
    }

    assert len(routes) > 50
    for (method, pattern), scope in routes.items():
        assert scope == scope_by(RULES, f"{method} {pattern}"), (method, pattern)


def test_every_method_has_the_expected_scope(application: Application) -> None:
    scopes = {path.decode().rpartition("/")[2]: method.scope for path, method in application.rpc.items()}

    assert {name: scope for name, scope in scopes.items() if scope != Scope.READ} == EXPECTED_RPCS
    assert len(scopes) > len(EXPECTED_RPCS)


def test_the_gate_refuses_a_page_wherever_something_is_changed(application: Application) -> None:
    headers = {b"host": b"localhost:8000", b"origin": b"http://evil.example"}
    router: Router = application.http.router  # type: ignore[attr-defined]
    list(router.routes())  # also adds the routes that are added late
    routes = [
        (method, ("/" + "/".join(segments)).replace("{}", "x").encode(), route.scope)
        for segments, methods in router._patterns.items()
        for method, route in methods.items()
    ]
    calls = [(b"POST", path, method.scope) for path, method in application.rpc.items()]

    for method, path, scope in routes + calls:
        refusal = application.gate.refusal(method, path, headers, REMOTE)
        assert (refusal is None) == (scope not in GUARDED), (method, path)


def test_a_route_without_a_scope_cannot_be_registered() -> None:
    with pytest.raises(TypeError):
        Router().add("POST", "/v2/new", lambda request: None)  # type: ignore[call-arg,arg-type]
    with pytest.raises(TypeError):
        UnaryMethod(lambda call, message: None)  # type: ignore[call-arg]
