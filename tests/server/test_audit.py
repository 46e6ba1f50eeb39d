"""The audit log of a server: every change, every refusal, and nothing that acts on a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backline.cli.audit import command as audit_command
from backline.cli.keys import command
from backline_client.system.file_lock import edited
from support import models
from support.server import ServerProcess, serve
from support.waiting import until as wait_until


class Audited:
    """A server with keys, and its audit log."""

    def __init__(self, folder: Path) -> None:
        self.file, self.state = folder / "auth.toml", folder / "state"
        self.server: ServerProcess
        self.keys = {
            "root": self.create("root", "infer", "read", "manage", "admin"),
            "app": self.create("app", "infer", models="add1"),
        }

    def create(self, name: str, *scopes: str, models: str = "*") -> str:
        given = [word for scope in scopes for word in ("--scope", scope)]
        arguments = ["create", name, "--auth", str(self.file), "--model", models, *given]
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    def ask(self, method: str, path: str, key: str | None, body: str = "") -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {self.keys.get(key, key)}"}
        with closing(HTTPConnection("127.0.0.1", self.server.http_port, timeout=60)) as connection:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status

    def read(self, path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.keys['root']}"}
        with closing(HTTPConnection("127.0.0.1", self.server.http_port, timeout=60)) as connection:
            connection.request("GET", path, headers=headers)
            page: dict[str, Any] = json.loads(connection.getresponse().read())
            return page

    def entries(self) -> list[dict[str, Any]]:
        """The entries, as printed from the state folder; the same comes from the server."""
        shown = run("--state-dir", str(self.state), "--limit", "10000")
        assert "\x1b" not in shown
        entries = [json.loads(line) for line in shown.splitlines()]
        key = self.keys["root"]
        url = f"http://127.0.0.1:{self.server.http_port}"
        asked = run("--url", url, "--limit", "10000", "--header", f"Authorization: Bearer {key}")
        later = [json.loads(line) for line in asked.splitlines()]
        assert all(entry in later for entry in entries)
        return entries

    def find(self, **fields: str | None) -> dict[str, Any]:
        """The last entry with these fields, which may take a moment to be written."""
        end = time.monotonic() + 20
        while True:
            entries = self.entries()
            found = [one for one in entries if all(one.get(name) == fields[name] for name in fields)]
            if found or time.monotonic() > end:
                assert found, (fields, entries)
                return found[-1]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(audit_command, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    folder = tmp_path_factory.mktemp("audited")
    models.add1(folder / "models")
    models.add1(folder / "models", name="add2")
    found = Audited(folder)
    options = ("--auth", str(found.file), "--state-dir", str(found.state))
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with serve(folder / "models", folder / "log", *options, *explicit) as running:
        found.server = running
        yield found


@pytest.mark.parametrize(
    ("method", "path", "body", "model"),
    [
        ("POST", "/v2/repository/models/add2/load", "", "add2"),
        ("PUT", "/v2/models/add2/labels/blue", '{"version": "1"}', "add2"),
        ("POST", "/v2/logging", '{"log_verbose_level": 0}', None),
        ("POST", "/v2/models/add1/trace/setting", "{}", "add1"),
        ("POST", "/v2/models/add1/record", "{}", "add1"),
        ("POST", "/v2/repository/refresh", "", None),
        ("POST", "/v2/repository/models/add2/unload", "", "add2"),
    ],
)
def test_every_change_over_http_is_entered(
    audited: Audited, method: str, path: str, body: str, model: str | None
) -> None:
    assert audited.ask(method, path, "root", body) == 200
    entry = audited.find(outcome="done", route=f"{method} {path}")
    assert (entry["identity"], entry["address"], entry.get("model")) == ("root", "127.0.0.1", model)
    assert abs(entry["time"] - time.time()) < 60


def test_a_change_that_fails_is_entered_with_its_error(audited: Audited) -> None:
    assert audited.ask("POST", "/v2/repository/models/nowhere/load", "root") == 404
    entry = audited.find(outcome="failed", model="nowhere")
    assert "nowhere" in entry["detail"]
    assert audited.ask("POST", "/v2/systemsharedmemory/region/a/register", "root", "{}") >= 400
    audited.find(outcome="failed", route="POST /v2/systemsharedmemory/region/a/register")


def test_changes_over_grpc_are_entered(audited: Audited) -> None:
    metadata = [("authorization", f"Bearer {audited.keys['root']}")]
    with grpc.insecure_channel(f"127.0.0.1:{audited.server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.RepositoryModelLoad(
            service_pb2.RepositoryModelLoadRequest(model_name="add1"), metadata=metadata, timeout=60
        )
        with pytest.raises(grpc.RpcError):
            stub.SystemSharedMemoryUnregister(
                service_pb2.SystemSharedMemoryUnregisterRequest(name="a"), metadata=metadata, timeout=60
            )
    load = audited.find(outcome="done", route="/inference.GRPCInferenceService/RepositoryModelLoad")
    assert (load["identity"], load["model"], load["address"]) == ("root", "add1", "127.0.0.1")
    audited.find(outcome="failed", route="/inference.GRPCInferenceService/SystemSharedMemoryUnregister")


@pytest.mark.parametrize(
    ("key", "identity"), [(None, None), ("bk_wrong", None), ("app", "app")], ids=["none", "wrong", "scope"]
)
def test_every_refusal_over_http_is_entered(audited: Audited, key: str | None, identity: str | None) -> None:
    path = f"/v2/repository/models/add1/load?{key}"
    for _ in range(2):
        assert audited.ask("POST", path, key) in (401, 403)
    route = "POST /v2/repository/models/add1/load"
    entry = audited.find(outcome="refused", route=route, identity=identity)
    assert entry.get("identity") == identity
    assert entry["model"] == "add1"
    assert "bk_wrong" not in json.dumps(entry)


@pytest.mark.parametrize("streamed", [False, True])
def test_every_refusal_over_grpc_is_entered(audited: Audited, streamed: bool) -> None:
    request = service_pb2.ModelInferRequest(model_name="add2")
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    request.raw_input_contents.append(np.full(16, 1.5, np.float32).tobytes())
    metadata = [("authorization", f"Bearer {audited.keys['app']}")]
    route = f"/inference.GRPCInferenceService/{'ModelStreamInfer' if streamed else 'ModelInfer'}"
    with grpc.insecure_channel(f"127.0.0.1:{audited.server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if streamed:
            (answer,) = stub.ModelStreamInfer(iter([request]), metadata=metadata, timeout=60)
            assert "does not have the scope" in answer.error_message
        else:
            with pytest.raises(grpc.RpcError, match="does not have the scope"):
                stub.ModelInfer(request, metadata=metadata, timeout=60)
    entry = audited.find(outcome="refused", route=route, identity="app")
    assert (entry["model"], entry["address"]) == ("add2", "127.0.0.1")


def test_a_reload_of_the_keys_is_entered(audited: Audited) -> None:
    audited.create("later", "read")
    assert audited.find(outcome="done", route=f"reload of '{audited.file}'")
    text = audited.file.read_text()
    audited.file.write_text("keys = 1")
    assert "not valid" in audited.find(outcome="failed", route=f"reload of '{audited.file}'")["detail"]
    audited.file.write_text(text)


def test_many_refusals_of_one_address_are_counted(audited: Audited) -> None:
    with closing(HTTPConnection("127.0.0.1", audited.server.http_port, timeout=60)) as connection:
        for _ in range(300):
            connection.request("GET", "/v2/models/stats")
            assert connection.getresponse().read()
    end = time.monotonic() + 20
    while True:
        entries = [
            one
            for one in audited.entries()
            if one.get("outcome") == "refused" and one["route"] == "GET /v2/models/stats"
        ]
        if sum(one.get("suppressed", 1) for one in entries) == 300:
            break
        assert time.monotonic() < end, entries
    assert len(entries) < 200


def test_the_log_comes_in_pages(audited: Audited) -> None:
    for number in range(30):
        assert audited.ask("POST", f"/v2/repository/models/paged{number}/load", "root") == 404
    audited.find(outcome="failed", model="paged29")
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"cursor": ""}
    while page["cursor"] or not found:
        cursor = quote(page["cursor"], safe="")
        page = audited.read(f"/v2/audit?limit=7{f'&cursor={cursor}' if cursor else ''}")
        assert len(page["entries"]) <= 7
        found += page["entries"]
    assert [one["model"] for one in found if one["model"].startswith("paged") and one.get("outcome")] == [
        f"paged{number}" for number in range(29, -1, -1)
    ]
    changes = audited.read("/v2/repository/history?limit=1")
    older = audited.read(f"/v2/repository/history?limit=1&cursor={quote(changes['cursor'], safe='')}")
    assert changes["changes"][0]["time"] > older["changes"][0]["time"]


@pytest.mark.parametrize("path", ["/v2/audit", "/v2/repository/history"])
def test_a_page_is_limited(audited: Audited, path: str) -> None:
    assert audited.ask("GET", f"{path}?limit=1000", "root") == 200
    assert audited.ask("GET", f"{path}?limit=1001", "root") == 400
    assert audited.ask("GET", f"{path}?cursor=x", "root") == 400


def test_many_readers_of_the_log_delay_neither_others_nor_a_revocation(audited: Audited) -> None:
    audited.keys |= {name: audited.create(name, "read") for name in ("reader", "auditor")}
    wait_until(lambda: audited.ask("GET", "/v2", "auditor") == 200)
    with ThreadPoolExecutor(40) as threads:
        with edited(audited.state / "audit.jsonl"):  # holds up the thread of the log
            assert audited.ask("POST", "/v2/repository/models/blocked/load", "root") == 404
            reading = [
                threads.submit(audited.ask, "GET", "/v2/audit?limit=1000", "reader") for _ in range(30)
            ]
            refused = islice(as_completed(reading), 21)
            assert {one.result() for one in refused} == {503}
            other = threads.submit(audited.ask, "GET", "/v2/audit", "auditor")
            assert audited.ask("GET", "/v2/models/add1", "reader") == 200
            revoked = CliRunner().invoke(command, ["revoke", "reader", "--auth", str(audited.file)])
            assert revoked.exit_code == 0
            wait_until(lambda: audited.ask("GET", "/v2/models/add1", "reader") == 401)
            assert not other.done()
        assert other.result() == 200
        assert sorted(one.result() for one in reading) == [200] * 9 + [503] * 21


def test_a_client_that_has_left_does_not_keep_its_turn(audited: Audited) -> None:
    def leave() -> None:
        connection = HTTPConnection("127.0.0.1", audited.server.http_port, timeout=0.5)
        connection.request("GET", "/v2/audit", headers={"Authorization": f"Bearer {audited.keys['root']}"})
        with closing(connection), pytest.raises(TimeoutError):
            connection.getresponse()

    with edited(audited.state / "audit.jsonl"):
        assert audited.ask("POST", "/v2/repository/models/blocked/load", "root") == 404
        with ThreadPoolExecutor(9) as threads:
            for left in [threads.submit(leave) for _ in range(9)]:
                left.result()
        # The request that was being handled keeps its turn; the eight that waited have given up theirs.
        threads = ThreadPoolExecutor(9)
        reading = [threads.submit(audited.ask, "GET", "/v2/audit", "root") for _ in range(9)]
        assert next(as_completed(reading)).result() == 503
    with threads:
        assert sorted(one.result() for one in reading) == [200] * 8 + [503]


def test_nothing_in_the_log_acts_on_a_terminal(audited: Audited) -> None:
    assert audited.ask("GET", "/v2/models/%1b%5b31m%0d%0aforged", None) == 401
    audited.find(outcome="refused", model="\\x1b[31m\\r\\nforged")
    files = [path.read_text() for path in audited.state.glob("*.jsonl")]
    assert all(text.replace("\n", "").isprintable() for text in files)
    table = CliRunner().invoke(audit_command, ["--state-dir", str(audited.state), "--limit", "1000"]).stdout
    assert table.replace("\n", "").isprintable()


def test_the_log_can_be_followed(audited: Audited) -> None:
    arguments = ["audit", "--follow", "--json", "--limit", "1", "--state-dir", str(audited.state)]
    with subprocess.Popen(
        [sys.executable, "-m", "backline", *arguments], stdout=subprocess.PIPE, text=True
    ) as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline()
            assert audited.ask("POST", "/v2/repository/models/followed/load", "root") == 404
            assert json.loads(follower.stdout.readline())["model"] == "followed"
        finally:
            follower.kill()


def test_changes_and_refusals_do_not_mix_in_the_history_of_models(audited: Audited) -> None:
    assert audited.ask("POST", "/v2/repository/models/add2/load", "root") == 200
    with closing(HTTPConnection("127.0.0.1", audited.server.http_port, timeout=60)) as connection:
        headers = {"Authorization": f"Bearer {audited.keys['root']}"}
        connection.request("GET", "/v2/repository/history?limit=1000", headers=headers)
        changes = json.loads(connection.getresponse().read())["changes"]
    assert changes
    assert all("outcome" not in change for change in changes)


def test_only_the_owner_may_read_the_state_folder(audited: Audited) -> None:
    assert audited.ask("PUT", "/v2/models/add2/labels/green", "root", '{"version": "1"}') == 200
    assert audited.ask("POST", "/v2/repository/models/add2/load", None) == 401
    audited.find(route="POST /v2/repository/models/add2/load", outcome="refused")

    modes = {path: path.stat().st_mode & 0o777 for path in (audited.state, *audited.state.rglob("*"))}

    assert {path.name for path in modes} >= {"audit.jsonl", "labels.json"}
    assert not {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077}
