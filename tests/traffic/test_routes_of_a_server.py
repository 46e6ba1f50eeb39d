"""Routes of a real server: over HTTP, gRPC and streams, changed under load, with scopes, by command."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from click.testing import CliRunner

from backline.cli.main import command
from support import models
from support.server import ServerProcess, metrics_page, serve

ALL = "version_policy: { all {} }\n"
X = np.zeros((1, 16), np.float32)
OWNER, NARROW = "owner-key-0123456789abcdef0123456789", "narrow-key-0123456789abcdef012345678"
KEYS = f"""
[[keys]]
name = "owner"
sha256 = "{sha256(OWNER.encode()).hexdigest()}"
scopes = ["infer", "read", "manage"]
models = ["notes", "add1"]

[[keys]]
name = "narrow"
sha256 = "{sha256(NARROW.encode()).hexdigest()}"
scopes = ["infer", "read", "manage"]
models = ["notes"]
"""


def lay_out(folder: Path) -> Path:
    models.add1(folder)
    models.add1(folder, version="2", constant=2.0)
    (folder / "add1" / "config.pbtxt").write_text(ALL)
    return folder


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("routed")
    with serve(lay_out(folder / "models"), folder / "log", "--state-dir", str(folder / "state")) as server:
        yield server


def ask(
    server: ServerProcess, method: str, path: str, document: object = None, key: str = ""
) -> tuple[int, Any]:
    body = None if document is None else json.dumps(document).encode()
    fields = {"authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{server.url}{path}", body, fields, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def put(server: ServerProcess, name: str, route: dict[str, Any], **more: Any) -> int:
    status, found = ask(server, "PUT", f"/v2/routes/{name}", {"route": route, **more})
    assert status == 200, found
    return int(found["revision"])


def run(*arguments: str) -> str:
    done = CliRunner().invoke(command, ["traffic", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def triton_input(module: Any) -> Any:
    given = module.InferInput("INPUT0", [1, 16], "FP32")
    given.set_data_from_numpy(X)
    return given


def test_stock_clients_use_a_route_like_a_model(routed: ServerProcess) -> None:
    put(routed, "stock", {"targets": {"add1@2": 1}})
    http = triton_http.InferenceServerClient(routed.url.removeprefix("http://"))
    grpc = triton_grpc.InferenceServerClient(routed.grpc_url.removeprefix("grpc://"))

    for client, module in ((http, triton_http), (grpc, triton_grpc)):
        assert client.is_model_ready("stock")
        assert client.infer("stock", [triton_input(module)]).as_numpy("OUTPUT0")[0, 0] == 2
        metadata = client.get_model_metadata("stock")
        assert (metadata if isinstance(metadata, dict) else {"name": metadata.name})["name"] == "stock"
    client.close()
    http.close()


def test_rules_see_the_header_fields_of_every_protocol(routed: ServerProcess) -> None:
    rule = {"when": {"header:x-tier": "beta"}, "to": "add1@2"}
    put(routed, "tiers", {"targets": {"add1@1": 1}, "rules": [rule]})
    http = triton_http.InferenceServerClient(routed.url.removeprefix("http://"))
    grpc = triton_grpc.InferenceServerClient(routed.grpc_url.removeprefix("grpc://"))

    for client, module in ((http, triton_http), (grpc, triton_grpc)):
        for headers, added in (({"x-tier": "beta"}, 2), ({"x-tier": "no"}, 1), ({}, 1)):
            result = client.infer("tiers", [triton_input(module)], headers=headers)
            assert result.as_numpy("OUTPUT0")[0, 0] == added
    answers: Queue[Any] = Queue()
    grpc.start_stream(lambda result, error: answers.put((result, error)), headers={"x-tier": "beta"})
    grpc.async_stream_infer("tiers", [triton_input(triton_grpc)])
    result, error = answers.get(timeout=20)
    assert error is None
    assert result.as_numpy("OUTPUT0")[0, 0] == 2
    grpc.stop_stream()
    for path in ("/models/tiers", "/v2/models/tiers/generate"):
        body = json.dumps({"INPUT0": X.tolist()}).encode()
        fields = {"x-tier": "beta", "content-type": "application/json"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{routed.url}{path}", body, fields), timeout=20
        ) as answer:
            found = json.loads(answer.read())["OUTPUT0"]
            assert np.ravel(found)[0] == 2, path


def test_no_request_is_lost_in_200_changes_under_load(routed: ServerProcess) -> None:
    """Over HTTP, gRPC and a stream at once; each response is right for one of the route's versions."""
    put(routed, "busy", {"targets": {"add1@1": 1, "add1@2": 1}})
    stop = threading.Event()
    answers: Counter[Any] = Counter()
    failures: list[str] = []

    def load(client: Any, module: Any, kind: str) -> None:
        while not stop.is_set():
            try:
                result = client.infer("busy", [triton_input(module)])
                answers[kind, float(result.as_numpy("OUTPUT0")[0, 0])] += 1
            except Exception as error:
                failures.append(f"{kind}: {error}")

    def stream() -> None:
        client = triton_grpc.InferenceServerClient(routed.grpc_url.removeprefix("grpc://"))
        found: Queue[Any] = Queue()
        client.start_stream(lambda result, error: found.put((result, error)))
        while not stop.is_set():
            for _ in range(8):
                client.async_stream_infer("busy", [triton_input(triton_grpc)])
            for _ in range(8):
                result, error = found.get(timeout=20)
                if error is None:
                    answers["stream", float(result.as_numpy("OUTPUT0")[0, 0])] += 1
                else:
                    failures.append(f"stream: {error}")
        client.stop_stream()

    http = triton_http.InferenceServerClient(routed.url.removeprefix("http://"))
    grpc = triton_grpc.InferenceServerClient(routed.grpc_url.removeprefix("grpc://"))
    threads = [
        threading.Thread(target=load, args=(http, triton_http, "http")),
        threading.Thread(target=load, args=(grpc, triton_grpc, "grpc")),
        threading.Thread(target=stream),
    ]
    for thread in threads:
        thread.start()
    try:
        for change in range(200):
            if change % 10 == 9:
                status, found = ask(routed, "POST", "/v2/routes/busy/rollback")
                assert status == 200, found
            else:
                weights = {"add1@1": 1 + change % 3, "add1@2": 1 + change % 2}
                fallback = ["add1@2"] if change % 4 == 0 else []
                put(routed, "busy", {"targets": weights, "fallback": fallback})
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)

    assert failures == []
    for kind in ("http", "grpc", "stream"):
        assert answers[kind, 1.0] > 0, answers
        assert answers[kind, 2.0] > 0, answers
    assert {added for _, added in answers} == {1.0, 2.0}


def test_the_metrics_count_the_requests_of_each_target(routed: ServerProcess) -> None:
    put(routed, "counted", {"targets": {"add1@2": 1}})
    client = triton_http.InferenceServerClient(routed.url.removeprefix("http://"))
    for _ in range(3):
        client.infer("counted", [triton_input(triton_http)])
    client.close()

    page = metrics_page(routed)

    labels = '{route="counted",target="add1@2"}'
    assert page[f"backline_route_requests_total{labels}"] == 3
    assert page[f"backline_route_failures_total{labels}"] == 0
    assert page[f"backline_route_latency_seconds_count{labels}"] == 3


def test_the_api_shows_changes_and_refuses_what_does_not_fit(routed: ServerProcess) -> None:
    assert put(routed, "shown", {"targets": {"add1@1": 3, "add1@2": 1}}, expected=0) == 1

    status, found = ask(routed, "GET", "/v2/routes/shown")
    assert status == 200
    assert found["revision"] == 1
    assert [(one["target"], one["share"], one["serves"]) for one in found["targets"]] == [
        ("add1@1", 0.75, "1"),
        ("add1@2", 0.25, "2"),
    ]
    assert "shown" in {one["name"] for one in ask(routed, "GET", "/v2/routes")[1]["routes"]}
    for document, wrong in (
        ({"route": {"targets": {"add1@9": 1}}}, "version 9 is not found"),
        ({"route": {"targets": {"add1@1": 1}}, "expected": 5}, "has revision 1, not 5"),
        ({"route": {"targets": {}}}, "at least one must have a weight"),
        ({"route": {"targets": {"add1@1": 1}, "stiky": ""}}, "stiky"),
        ({}, "route"),
    ):
        status, error = ask(routed, "PUT", "/v2/routes/shown", document)
        assert status == 400
        assert wrong in error["error"], error
    assert ask(routed, "DELETE", "/v2/routes/shown?expected=1")[0] == 200
    assert ask(routed, "GET", "/v2/routes/shown")[0] == 404
    assert ask(routed, "POST", "/v2/routes/unknown/rollback")[0] == 404
    changes = ask(routed, "GET", "/v2/routes/shown/history")[1]["changes"]
    assert [one["action"] for one in changes] == ["remove", "set"]


def test_the_commands_split_promote_and_roll_back(routed: ServerProcess, tmp_path: Path) -> None:
    url = ("--url", routed.url)
    assert "no routes" in run("show", *url) or "revision" in run("show", *url)
    assert run("split", "cli", "add1@1=95", "add1@2=5", "--sticky", "header:x-user", *url) == (
        "cli: revision 1: add1@1 95 %, add1@2 5 %\n"
    )
    shown = run("show", "cli", *url)
    assert "95 %" in shown
    assert "requests with the same header:x-user go to the same target" in shown
    assert run("promote", "cli", "add1@2", *url) == "cli: revision 2: add1@2 100 %\n"
    assert run("rollback", "cli", *url) == "cli: revision 3: add1@1 95 %, add1@2 5 %\n"
    assert "rollback to 1" in run("history", "cli", *url)
    file = tmp_path / "more.toml"
    file.write_text(
        '[more]\ntargets = { "add1@1" = 1 }\n\n[[more.rules]]\nwhen = { identity = "lab" }\nto = "add1@2"\n'
    )
    assert run("apply", str(file), *url) == "more: revision 1: add1@1 100 %\n"
    assert "more: if identity = lab: add1@2" in run("show", *url)
    assert run("remove", "more", *url) == "more: revision 2: removed\n"


def test_shadow_bandit_and_feedback_over_http(routed: ServerProcess) -> None:
    url = ("--url", routed.url)
    run("split", "learns", "add1@1=1", "add1@2=1", "--bandit", "ucb", *url)
    assert "add1@1 50 %" in run("shadow", "learns", "add1", "--share", "0.5", *url)
    client = triton_http.InferenceServerClient(routed.url.removeprefix("http://"))
    for number in range(40):
        found = client.infer("learns", [triton_input(triton_http)], request_id=f"r{number}")
        reward = float(found.as_numpy("OUTPUT0")[0, 0] == 2)
        status, answer = ask(
            routed, "POST", "/v2/models/learns/feedback", {"id": f"r{number}", "reward": reward}
        )
        assert (status, answer["name"]) == (200, "learns")
    client.close()

    document = ask(routed, "GET", "/v2/routes/learns")[1]

    assert sum(one["rewards"] for one in document["targets"]) == 40
    assert {one["target"]: one["mean_reward"] for one in document["targets"]} == {"add1@1": 0, "add1@2": 1}
    assert document["shadow"]["target"] == "add1"
    shown = run("show", "learns", *url)
    assert "learns: ucb by rewards: add1@" in shown
    assert "learns: copies to add1: " in shown
    for document, status in (
        ({"id": "r1", "reward": 1}, 404),
        ({"id": "r1", "reward": 2}, 400),
        ({"id": "r1"}, 400),
    ):
        assert ask(routed, "POST", "/v2/models/learns/feedback", document)[0] == status
    assert ask(routed, "POST", "/v2/models/add1/feedback", {"id": "r1", "reward": 1})[0] == 404
    run("shadow", "learns", "--off", *url)
    assert ask(routed, "GET", "/v2/routes/learns")[1]["shadow"] is None


def test_the_command_rolls_out_a_version_and_says_why_it_does_not(routed: ServerProcess) -> None:
    put(routed, "rolls", {"targets": {"add1@1": 1}})
    stop = threading.Event()

    def load() -> None:
        client = triton_http.InferenceServerClient(routed.url.removeprefix("http://"))
        while not stop.is_set():
            client.infer("rolls", [triton_input(triton_http)], request_id="mine")
        client.close()

    thread = threading.Thread(target=load)
    thread.start()
    options = ("--steps", "0,50", "--bake", "0", "--requests", "20", "--wait", "--url", routed.url)
    try:
        good = CliRunner().invoke(
            command, ["traffic", "rollout", "rolls", "add1@2", "--guard", "errors<1%", *options]
        )
        put(routed, "rolls", {"targets": {"add1@1": 1}})
        bad = CliRunner().invoke(
            command, ["traffic", "rollout", "rolls", "add1@2", "--guard", "distance<0.02", *options]
        )
    finally:
        stop.set()
        thread.join(30)

    assert good.exit_code == 0, good.output
    assert "rolls: promote: 'add1@2' has kept to the guard 'errors<1%'" in good.output
    assert bad.exit_code == 1, bad.output
    assert "rolls: guard: 'add1@2' has broken 'distance<0.02': the mean distance of" in bad.output
    assert "(requests mine" in bad.output
    assert "has broken 'distance<0.02'" in run("history", "rolls", "--url", routed.url)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("split", "cli2", "add1@1"), "not of the form TARGET=WEIGHT"),
        (("split", "cli2", "add1@7=1"), "version 7 is not found"),
        (("promote", "unknown", "add1@1"), "there is no route 'unknown'"),
        (("rollback", "unknown"), "there is no route 'unknown'"),
        (("split", "cli2", "add1@1=1", "--expect", "4"), "has revision 0, not 4"),
    ],
)
def test_a_command_that_fails_says_why(routed: ServerProcess, arguments: tuple[str, ...], wrong: str) -> None:
    done = CliRunner().invoke(command, ["traffic", *arguments, "--url", routed.url])

    assert done.exit_code != 0
    assert wrong in done.output + str(done.exception or "")


def test_who_changes_a_route_needs_the_scope_for_its_targets_too(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "models")
    models.add1(folder, name="secret", constant=42.0)
    keys = tmp_path / "keys.toml"
    keys.write_text(KEYS)
    keys.chmod(0o600)
    options = ("--auth", str(keys), "--state-dir", str(tmp_path / "state"))
    with serve(folder, tmp_path / "log", *options, ready=False) as server:
        server.wait_started()
        mine = {"route": {"targets": {"add1@1": 1}}}

        assert ask(server, "PUT", "/v2/routes/notes", mine)[0] == 401
        status, error = ask(server, "PUT", "/v2/routes/notes", mine, NARROW)
        assert (status, "model 'add1'" in error["error"]) == (403, True)
        status, error = ask(server, "PUT", "/v2/routes/notes", {"route": {"targets": {"secret": 1}}}, OWNER)
        assert (status, "model 'secret'" in error["error"]) == (403, True)
        assert ask(server, "PUT", "/v2/routes/other", mine, OWNER)[0] == 403
        assert ask(server, "PUT", "/v2/routes/notes", mine, OWNER)[0] == 200
        assert ask(server, "PUT", "/v2/routes/notes", {"route": {"targets": {"add1@2": 1}}}, OWNER)[0] == 200
        assert ask(server, "POST", "/v2/routes/notes/rollback", {}, NARROW)[0] == 403
        assert "serves" not in ask(server, "GET", "/v2/routes/notes", key=NARROW)[1]["targets"][0]
        assert ask(server, "GET", "/v2/routes", key=NARROW)[1]["routes"][0]["name"] == "notes"
        body = {"inputs": [{"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": [0.0] * 16}]}
        status, found = ask(server, "POST", "/v2/models/notes/infer", body, NARROW)
        assert (status, found["outputs"][0]["data"][0]) == (200, 2)
        assert ask(server, "POST", "/v2/models/add1/infer", body, NARROW)[0] == 403


def test_declared_routes_work_without_any_request_to_the_api(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "models")
    (folder / "routes.toml").write_text('[add1]\ntargets = { "add1@1" = 1 }\n')
    with serve(
        folder, tmp_path / "log", "--dialects", "none", "--state-dir", str(tmp_path / "state")
    ) as server:
        body = {"inputs": [{"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": [0.0] * 16}]}

        found = ask(server, "POST", "/v2/models/add1/infer", body)[1]

        assert (found["model_version"], found["outputs"][0]["data"][0]) == ("1", 1)


def test_a_remote_model_may_be_a_target_and_a_route_may_be_a_remote_model(
    routed: ServerProcess, tmp_path: Path
) -> None:
    put(routed, "far", {"targets": {"add1@2": 1}})
    folder = lay_out(tmp_path / "models")
    (folder / "far" / "1").mkdir(parents=True)
    (folder / "far" / "config.pbtxt").write_text(
        f'backend: "remote"\nparameters {{ key: "urls" value {{ string_value: "{routed.grpc_url}" }} }}\n'
    )
    (folder / "routes.toml").write_text('[near]\ntargets = { far = 1 }\nfallback = ["add1@1"]\n')
    with serve(folder, tmp_path / "log", "--state-dir", str(tmp_path / "state")) as server:
        body = {"inputs": [{"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": [0.0] * 16}]}

        found = ask(server, "POST", "/v2/models/near/infer", body)[1]

        assert (found["model_name"], found["outputs"][0]["data"][0]) == ("far", 2)


async def test_many_changes_at_once_keep_one_order(routed: ServerProcess) -> None:
    before = put(routed, "racing", {"targets": {"add1@1": 1}})
    document = {"route": {"targets": {"add1@2": 1}}, "expected": before}

    outcomes = await asyncio.gather(
        *(asyncio.to_thread(ask, routed, "PUT", "/v2/routes/racing", document) for _ in range(8))
    )

    assert Counter(status for status, _ in outcomes) == {200: 1, 400: 7}
