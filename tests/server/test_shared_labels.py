"""Server processes that share their labels in Redis, changed and listed by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backline.cli.models.show import every_server
from backline_client.values.errors import InvalidArgument
from support import models
from support.redis_server import RedisServer
from support.server import ServerProcess, serve
from support.waiting import until


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def backline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "backline", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def labelled(servers: str) -> dict[str, str]:
    """The version labelled stable, by server."""
    listed = json.loads(backline("models", "list", "--all", "--json", "--url", servers).stdout)
    return {
        one["server"]: entry["version"]
        for one in listed
        for entry in one["models"]
        if "stable" in entry["labels"]
    }


def test_one_promotion_moves_all_servers(redis: RedisServer, tmp_path: Path) -> None:
    for version in ("1", "2"):
        models.add1(tmp_path / "models", version=version, constant=float(version))
    options = ("--model-control-mode", "poll", "--labels", f"redis://127.0.0.1:{redis.port}/0")

    def start(name: str) -> ServerProcess:
        return serve(
            tmp_path / "models", tmp_path / name, *options, "--state-dir", str(tmp_path / name / "s")
        )

    with start("a") as one, start("b") as other:
        both = f"{one.url},{other.url}"
        done = backline("models", "promote", "add1", "1", "--url", one.url)
        assert done.returncode == 0, done.stderr
        until(lambda: labelled(both) == {one.url: "1", other.url: "1"})
        redis.stop()
        refused = backline("models", "promote", "add1", "2", "--url", other.url)
        assert refused.returncode == 1
        assert f"'redis://127.0.0.1:{redis.port}/0' cannot be reached" in refused.stderr
        assert labelled(both) == {one.url: "1", other.url: "1"}
        redis.start()  # it has lost everything, and the servers have not
        done = backline("models", "promote", "add1", "2", "--url", other.url)
        assert done.returncode == 0, done.stderr
        until(lambda: labelled(both) == {one.url: "2", other.url: "2"})
        table = backline("models", "list", "--all", "--url", f"{both},http://127.0.0.1:1")
    assert table.returncode == 1
    rows = [line.split() for line in table.stdout.splitlines()]
    assert [row[:5] for row in rows if row[0] in (one.url, other.url)] == [
        [url, "add1", version, "READY", "stable" if version == "2" else "-"]
        for version in ("1", "2")
        for url in sorted((one.url, other.url))
    ]
    assert any(row[0] == "http://127.0.0.1:1" and "ANSWER" in row for row in rows)


def test_a_host_name_stands_for_all_its_addresses() -> None:
    assert "http://127.0.0.1:8000" in every_server("http://localhost:8000")
    assert every_server("unix:/run/a.sock, https://localhost:1") == [
        "unix:/run/a.sock",
        "https://localhost:1",
    ]
    with pytest.raises(InvalidArgument, match=r"'no-such-host\.invalid' has no address"):
        every_server("grpc://no-such-host.invalid:1")
