"""Event streams of the console: they lock nobody out, and each trace is encoded once."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

import pytest

from backline.engine.engine import Engine
from backline.observe.tracing.settings import TraceConfig
from backline.observe.tracing.tracing import Tracing
from backline.plugins.dialects.console import service
from backline.plugins.dialects.console.service import MOST_WATCHERS, TraceFeed
from support import models
from support.server import ServerProcess, serve

PATHS = ("/v2/activity", "/v2/traces", "/v2/logging/lines")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("streams")
    models.add1(folder / "models")
    with serve(
        folder / "models", folder / "log", "--max-concurrent-requests", "16", "--max-peer-share", "1"
    ) as running:
        yield running


def watch(server: ServerProcess, path: str, source: str = "127.0.0.1") -> HTTPConnection:
    connection = HTTPConnection("127.0.0.1", server.http_port, 20, source_address=(source, 0))
    connection.request("GET", path, headers={"accept": "text/event-stream"})
    return connection


def status(server: ServerProcess, path: str) -> int:
    with urllib.request.urlopen(server.url + path, timeout=20) as answer:
        return int(answer.status)


@pytest.mark.parametrize("path", PATHS)
def test_open_event_streams_take_no_requests_from_others(server: ServerProcess, path: str) -> None:
    with ExitStack() as stack:
        for source in ("127.0.0.2", "127.0.0.3"):
            for _ in range(20):
                watcher = watch(server, path, source)
                stack.callback(watcher.close)
                assert watcher.getresponse().status == 200
        assert status(server, "/v2/models/add1") == 200


def test_a_caller_may_have_a_number_of_event_streams(server: ServerProcess) -> None:
    with ExitStack() as stack:
        for number in range(MOST_WATCHERS):
            watcher = watch(server, PATHS[number % 3], "127.0.0.4")
            stack.callback(watcher.close)
            assert watcher.getresponse().status == 200
        refused = watch(server, PATHS[0], "127.0.0.4")
        stack.callback(refused.close)
        answer = refused.getresponse()
        assert (answer.status, answer.getheader("retry-after")) == (429, "1")
        assert "event streams" in json.loads(answer.read())["error"]
        other = watch(server, PATHS[0], "127.0.0.5")
        stack.callback(other.close)
        assert other.getresponse().status == 200


async def test_each_trace_is_encoded_once_for_all_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def encode(document: Any) -> bytes:
        encoded.append(document)
        return b"{}"

    monkeypatch.setattr(service, "encode_json", encode)
    control = Tracing(Engine(), TraceConfig())
    feed = TraceFeed()
    with ExitStack() as stack:
        queues = [stack.enter_context(feed.watch(control)) for _ in range(10)]
        (note,) = control.watched.watchers
        note({"model": "add1"})
        events = [await asyncio.wait_for(one.get(), 5) for one in queues]
        assert all(one is events[0] for one in events)
        assert len(encoded) == 1
        for _ in range(1000):  # nobody reads, so further traces are dropped unencoded
            note({"model": "add1"})
        assert len(encoded) < 1000
    assert not control.watched.watchers
