"""Dialects of others: found when their routes are asked for, and under the rules of the built-in ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_models import Caller, fill_engine

from backline.access.access import Access, Policy
from backline.access.identity import Grant, Identity, anonymous
from backline.access.keys import hash_key
from backline.access.quota import Quota
from backline.access.scope import Scope
from backline.dialects.application import build_application
from backline.dialects.plugin import DIALECTS, DialectPlugin, check_dialects
from backline.engine.engine import Engine
from backline.plugins.dialects.console import PLUGINS as CONSOLE
from backline.plugins.dialects.openapi import PLUGINS as OPENAPI
from backline.plugins.dialects.plain import PLUGINS as PLAIN
from backline.testing.dialects import DialectConformance, Sample
from backline.wire.application import Ingress
from backline_client.values.errors import InvalidArgument
from support import distributions
from support.models import add1

CODE = """
from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.exchange import deadline_of
from backline.dialects.plugin import Dialect, DialectPlugin
from backline.wire.application import UnaryMethod
from backline_client.values.errors import NotFound

PLUGIN = DialectPlugin(
    name="{name}",
    target="{module}:Toy",
    summary="Counts",
    routes=(
        "POST /toy/models/{{}}/size", "POST /toy/size", "GET /toy", "GET /toy/own", "POST /toy/reset"{more}
    ),
    services=("toy.Toy",),
    api_version={version},
)


class Toy(Dialect):
    def add_routes(self, router):
        {fails}
        router.add(Scope.INFER, "POST", "/toy/models/{{}}/size", self.size)
        first = lambda body: bytes(body).partition(b" ")[0].decode()
        size = lambda request: self.size(first(request.body), request)
        router.add(Scope.INFER, "POST", "/toy/size", size, model_of=first)
        router.add(Scope.READ, "GET", "/toy", lambda request: respond_json(request, {{}}))
        form = lambda error: (418, b'["' + error.message.encode() + b'"]')
        router.add(Scope.READ, "GET", "/toy/own", self.refuse, errors=form)
        router.add(Scope.MANAGE, "POST", "/toy/reset", lambda request: respond_json(request, {{}}))

    def size(self, name, request):
        self.context.engine.find_ready(name, "")
        deadline_of(request.headers)
        respond_json(request, {{"size": len(request.body)}})

    def refuse(self, request):
        raise NotFound("no toys")

    def methods(self):
        return {{b"/toy.Toy/Size": UnaryMethod(lambda call, received: call.reply(b"ok"), Scope.READ)}}
"""


class Installer:
    """Installs distributions with one dialect each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str, version: int = 1, fails: str = "", more: str = "") -> None:
        module = f"{name}_dialect"
        (self._folder / f"{module}.py").write_text(
            CODE.format(name=name, module=module, version=version, fails=fails or "pass", more=more)
        )
        distributions.install(self._folder, name, {"backline.dialects": {name: f"{module}:PLUGIN"}})


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    monkeypatch.syspath_prepend(tmp_path)
    DIALECTS.__dict__.pop("installed", None)
    yield Installer(tmp_path)
    DIALECTS.__dict__.pop("installed", None)
    for module in [one for one in sys.modules if one.endswith("_dialect")]:
        del sys.modules[module]


def test_a_route_of_an_installed_dialect_works(install: Installer) -> None:
    install("toy")
    engine = fill_engine()
    caller = Caller(engine, build_application(engine))

    assert caller.post("/toy/models/add1/size", b"abc").json == {"size": 3}
    assert caller.post("/toy/models/nobody/size", b"abc").status == 404
    assert caller.call(b"/toy.Toy/Size", b"").message == b"ok"
    assert b"/toy.Toy/Other" not in caller.application.rpc


def test_errors_have_the_form_of_the_route(install: Installer) -> None:
    install("toy")
    engine = Engine()

    answer = Caller(engine, build_application(engine)).get("/toy/own")

    assert (answer.status, answer.json) == (418, ["no toys"])


def test_unknown_paths_cost_one_scan(install: Installer, monkeypatch: pytest.MonkeyPatch) -> None:
    install("toy")
    scans = []
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **asked: scans.append(asked) or [])
    application = build_application(Engine())
    caller = Caller(Engine(), application)

    assert caller.get("/v2").status == 200
    assert not scans
    for number in range(20):
        assert caller.get(f"/nowhere/{number}").status == 404
        assert application.rpc.get(f"/nowhere.Service{number}/Method".encode()) is None
    assert len(scans) == 1


def test_the_rules_hold_for_a_dialect_of_others(install: Installer) -> None:
    install("toy")
    grant = Grant(frozenset({Scope.INFER}), ("a*",))
    quota = Quota(requests_per_second=0.001, burst=2)
    access = Access(Policy(anonymous(()), {hash_key("bk_a"): Identity("a", (grant,), quotas=(quota,))}))
    engine = fill_engine()
    application = build_application(engine, access=access)
    caller = Caller(engine, application)
    key = {b"authorization": b"Bearer bk_a"}

    def ask(path: str, headers: dict[bytes, bytes]) -> int:
        request = caller.http("POST", path, b"x", headers=headers)
        assert request.answer is not None
        return request.answer.status

    assert ask("/toy/models/add1/size", {}) == 401
    assert ask("/toy/models/identity/size", key) == 403
    assert ask("/toy/reset", key) == 403
    assert [ask("/toy/models/add1/size", key) for _ in range(3)].count(429) == 1
    refused = application.gate.refusal(b"POST", b"/toy/reset", key, Ingress())
    assert refused is not None
    assert refused.status == 403


def test_a_scope_is_checked_for_the_model_that_a_body_names(install: Installer) -> None:
    install("toy")
    one, all_models = Grant(frozenset({Scope.INFER}), ("add1",)), Grant(frozenset({Scope.INFER}))
    keys = {hash_key("bk_1"): Identity("one", (one,)), hash_key("bk_2"): Identity("all", (all_models,))}
    engine = fill_engine()
    caller = Caller(engine, build_application(engine, access=Access(Policy(anonymous(()), keys))))

    def ask(body: bytes, key: bytes) -> int:
        request = caller.http("POST", "/toy/size", body, headers={b"authorization": b"Bearer " + key})
        assert request.answer is not None
        return request.answer.status

    assert ask(b"add1 x", b"bk_1") == 200
    assert ask(b"identity x", b"bk_1") == 403
    assert ask(b"", b"bk_1") == 403
    assert ask(b"add1 x", b"bk_1") == 200
    assert ask(b"add1 x", b"bk_2") == 200
    assert ask(b"nobody x", b"bk_2") == 404
    assert ask(b"add1 x", b"bk_3") == 401


def test_a_dialect_that_is_not_named_is_never_imported(install: Installer) -> None:
    install("toy")
    caller = Caller(Engine(), build_application(Engine(), dialects=("plain",)))

    assert caller.get("/toy").status == 404
    assert caller.get("/console").status == 404
    assert "toy_dialect" not in sys.modules


def test_a_dialect_that_fails_spoils_only_its_own_routes(install: Installer) -> None:
    install("toy", fails="raise OSError('no')")
    caller = Caller(Engine(), build_application(Engine()))

    assert caller.get("/toy").status == 500
    assert caller.get("/openapi.json").status == 200


def test_a_dialect_cannot_take_the_routes_of_another(
    install: Installer, caplog: pytest.LogCaptureFixture
) -> None:
    install("toy", more=', "GET /console"')
    caller = Caller(Engine(), build_application(Engine()))

    assert caller.get("/toy").status == 404
    assert caller.get("/console").status == 200
    assert "cannot serve /console, which is already taken" in caplog.text


def test_a_dialect_for_another_version_is_refused(install: Installer) -> None:
    install("toy", version=99)

    with pytest.raises(InvalidArgument, match="version 99"):
        check_dialects(("toy",))


def test_a_misspelt_dialect_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InvalidArgument, match="did you mean 'plain'"):
        check_dialects(("plian",))


ROW = b'{"INPUT0": [%b]}' % b", ".join([b"1.0"] * 16)


class OurConformance(DialectConformance):
    @classmethod
    def add_models(cls, repository: Path) -> None:
        add1(repository)


class TestPlain(OurConformance):
    plugin: DialectPlugin = PLAIN[0]
    requests = (
        Sample("POST", "/models/add1", ROW),
        Sample("POST", "/models/add1/versions/1", ROW),
    )


class TestOpenApi(OurConformance):
    plugin: DialectPlugin = OPENAPI[0]
    requests = (Sample("GET", "/openapi.json"), Sample("GET", "/v2/models/add1/openapi.json"))


class TestConsole(OurConformance):
    plugin: DialectPlugin = CONSOLE[0]
    requests = (Sample("GET", "/"), Sample("GET", "/console"), Sample("GET", "/v2/models/add1/examples"))
