"""The console's files and routes, without a browser."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fake_control import FakeControl
from fake_models import Caller, arrived_at, fill_engine

from backline.access.identity import Grant, Identity
from backline.access.scope import Scope
from backline.dialects.application import build_application
from backline.engine.model import Model
from backline.observe.log.server_log import ServerLog
from backline.observe.log.settings import LogSettings
from backline.observe.tracing.settings import TraceConfig
from backline.observe.tracing.tracing import Tracing
from backline.observe.tracing.watch import PER_SECOND, TraceWatch
from backline.plugins.dialects.console.activity import Activity
from backline.plugins.dialects.console.service import FOLDER, permissions

BROWSER = {b"accept": b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
MAX_WEIGHT = 300_000


def test_browsers_get_the_page_and_other_clients_the_routes(caller: Caller) -> None:
    page = caller.http("GET", "/", headers=BROWSER).answer
    assert page.fields[b"content-type"] == b"text/html; charset=utf-8"
    assert page.body == caller.get("/console").body
    assert caller.get("/").json["urls"]["console"] == "/console"


def test_the_page_may_load_nothing_from_elsewhere_and_not_be_framed(caller: Caller) -> None:
    policy = caller.get("/console").fields[b"content-security-policy"].decode()
    assert {"default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"} <= {
        one.strip() for one in policy.split(";")
    }
    assert b"access-control-allow-origin" not in caller.get("/console").fields


def test_every_file_is_served_with_its_type(caller: Caller) -> None:
    types = {".js": b"text/javascript", ".css": b"text/css", ".html": b"text/html", ".svg": b"image/svg+xml"}
    for path in FOLDER.iterdir():
        answer = caller.get(f"/console/{path.name}")
        assert (answer.status, answer.body) == (200, path.read_bytes())
        assert answer.fields[b"content-type"].startswith(types[path.suffix])


def test_the_files_weigh_at_most_300_kb_and_name_no_other_host() -> None:
    texts = [path.read_text() for path in FOLDER.iterdir()]
    assert sum(len(text.encode()) for text in texts) <= MAX_WEIGHT
    named = {url for text in texts for url in re.findall(r"https?://[\w.-]+", text)}
    assert named <= {"http://www.w3.org"}  # the name of a namespace


def test_a_file_that_the_browser_has_is_not_sent_again(caller: Caller) -> None:
    tag = caller.get("/console/app.js").fields[b"etag"]
    answer = caller.http("GET", "/console/app.js", headers={b"if-none-match": tag}).answer
    assert (answer.status, answer.body) == (304, b"")


@pytest.mark.parametrize("name", ["none.js", "..", "%2e%2e%2fservice.py", "__init__.py"])
def test_only_the_consoles_files_are_served(caller: Caller, name: str) -> None:
    assert caller.get(f"/console/{name}").status == 404


def test_without_a_console_browsers_get_the_routes() -> None:
    engine = fill_engine()
    caller = Caller(engine, build_application(engine, console=False))
    assert caller.http("GET", "/", headers=BROWSER).answer.json["name"] == "backline"
    assert caller.get("/console").status == caller.get("/console/app.js").status == 404


def test_a_caller_learns_what_it_may_do(caller: Caller) -> None:
    told: Any = caller.get("/v2/access").json
    assert told["grants"] == [{"scopes": ["admin", "infer", "manage", "metrics", "read"], "models": ["*"]}]
    assert told["changeable"] is False  # the engine has no control

    identity = Identity("app", (Grant(frozenset((Scope.INFER,)), ("speech-*",)),))
    assert permissions(identity) == {
        "name": "app",
        "kind": "key",
        "grants": [{"scopes": ["infer"], "models": ["speech-*"]}],
    }


async def test_the_activity_has_every_version_with_its_counters(caller: Caller) -> None:
    caller.engine.find("add1", "1").statistics.record_batch([arrived_at(0)], 1, 1000, 2000, 5000, 6000)
    told: Any = (await caller.get_later("/v2/activity")).json
    found = {(one["name"], one["version"]): one for one in told["models"]}
    assert set(found) == {(model.name, model.version) for model in caller.engine.models()}
    assert found["add1", "1"]["success"] == 1
    assert found["add1", "1"]["ns"] == {
        "total": 6000,
        "queue": 1000,
        "input": 1000,
        "infer": 3000,
        "output": 1000,
    }
    assert found["loading", "1"]["reason"] == "reading the file"
    assert found["add1", "2"]["default"]


async def test_a_reading_has_only_what_has_changed_since_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backline.plugins.dialects.console.activity.INTERVAL", 0.0)
    engine = fill_engine()
    activity = Activity(engine)
    number, _ = await activity.frame(0)
    number, unchanged = await activity.frame(number)
    assert json.loads(unchanged)["models"] == []

    engine.find("add1", "1").statistics.record_batch([arrived_at(0)], 1, 1000, 2000, 5000, 6000)
    engine.remove(engine.find("pair", "1"))
    _, changed = await activity.frame(number)

    assert [one["name"] for one in json.loads(changed)["models"]] == ["add1"]
    assert ["pair", "1"] not in json.loads(changed)["present"]


async def test_readers_share_a_reading() -> None:
    activity = Activity(fill_engine())
    frames = await asyncio.gather(*(activity.frame(0) for _ in range(10)))
    assert all(frame[1] is frames[0][1] for frame in frames)


def test_the_graph_has_the_calls_of_pipelines(caller: Caller) -> None:
    model: Model = caller.engine.find("pair")
    model.statistics.record_call("add1", "success", 1000)
    told: Any = caller.get("/v2/graph").json
    assert [(one["name"], one["kind"], one["calls"]) for one in told["models"]] == [
        ("pair", "pipeline", ["add1"])
    ]


def test_without_tracing_there_are_no_traces(caller: Caller) -> None:
    assert caller.get("/v2/traces").status == 501


def test_requests_are_traced_only_while_somebody_watches(caller: Caller) -> None:
    engine = caller.engine
    tracing = Tracing(engine, TraceConfig())
    assert engine.tracer is None

    seen: list[Any] = []
    stop = tracing.watch(seen.append)
    caller.http("POST", "/models/add1", json.dumps({"INPUT0": [1] * 16}).encode(), {b"x-request-id": b"mine"})
    caller.http("POST", "/models/add1", json.dumps({"INPUT0": [1]}).encode())
    stop()

    assert engine.tracer is None
    assert [(one["model"], one["id"]) for one in seen] == [("add1", "mine"), ("add1", "")]
    assert [one["requests"][0]["version"] for one in seen] == ["2", "2"]
    assert "unexpected shape" in seen[1]["error"]
    assert [one["id"] for one in caller.get("/v2/traces").json["traces"]] == ["mine", ""]


def test_on_a_busy_server_some_requests_are_traced_and_the_consoles_own_always() -> None:
    watch = TraceWatch()
    assert not watch.admits(0, b"console-1")  # nobody watches
    watch.watchers.append(lambda _: None)
    assert [watch.admits(7, b"") for _ in range(PER_SECOND + 2)] == [True] * PER_SECOND + [False] * 2
    assert watch.admits(8, b"console-1")
    assert watch.admits(1_000_000_000, b"")  # a second later


def test_the_log_has_its_last_lines_without_secrets(caller: Caller, tmp_path: Path) -> None:
    assert caller.get("/v2/logging/lines").status == 501
    with ServerLog(LogSettings(file=str(tmp_path / "log"))).installed() as log:
        caller.engine.log_control = log
        logging.getLogger("model").warning(
            "called with bk_0123456789abcdef and https://me:secret@example.org/"
        )
        logging.getLogger("model").info("not logged")
        told: Any = caller.get("/v2/logging/lines").json
    assert [(one["level"], one["logger"]) for one in told["lines"]] == [("warning", "model")]
    assert told["lines"][0]["text"].endswith("called with bk_*** and https://***@example.org/")
    assert told["lost"] == 0


def test_a_repository_is_shown_without_the_path_of_the_server(caller: Caller) -> None:
    caller.engine.control = FakeControl(caller.engine)
    told: Any = caller.get("/v2/repository/locations").json
    (shown,) = told["repositories"]
    assert (shown["location"], shown["mode"], shown["problem"]) == ("/models", "explicit", "")
    assert "add1" in shown["models"]


async def test_examples_are_listed_and_served_as_nothing_that_a_browser_shows(
    caller: Caller, tmp_path: Path
) -> None:
    files = {"a.json": b'{"INPUT0": [1]}', "b.html": b"<script>", "c.json": b"[1]"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "secret").write_text("not an example")
    caller.engine.find("add1").examples = tuple(tmp_path / name for name in files)

    told: Any = (await caller.get_later("/v2/models/add1/examples")).json
    assert told["examples"] == [
        {"name": "a", "inputs": {"INPUT0": [1]}},
        {"name": "b.html", "file": "b.html"},
        {"name": "c", "problem": "expected a JSON object with the inputs by name"},
    ]
    page = await caller.get_later("/v2/models/add1/examples/b.html")
    assert page.body == b"<script>"
    assert page.fields[b"content-type"] == b"application/octet-stream"
    assert page.fields[b"content-security-policy"] == b"sandbox"
    for name in ("secret", "..%2fa.json", "none"):
        assert caller.get(f"/v2/models/add1/examples/{name}").status == 404
